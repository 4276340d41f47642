"""Rules of optimizers: options of a base that was not chosen, and what nothing would read."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen


def base_unused(seen: Seen) -> Iterator[Refusal]:
    """Moments of Adam over SGD, or momentum over Adam."""
    base = seen.get("optimizer.base")
    if base is None:
        return
    for name in ("betas", "eps") if base.endswith("sgd") else ("momentum",):
        for key in seen.asked(f"optimizer.{name}"):
            yield key, f"does nothing: optimizer.base={base} has none", "drop it, or choose another optimizer.base"
    if not base.startswith("delta_"):
        for name in ("decay", "form", "unstable"):
            for key in seen.asked(f"optimizer.{name}"):
                what = f"does nothing: with optimizer.base={base} nothing forgets"
                yield key, what, "drop it, or use optimizer.base=delta_adam or delta_sgd"


def chunks_of_one(seen: Seen) -> Iterator[Refusal]:
    """How a chunk is reduced, scaled or ended, where every chunk is a single step."""
    chunks = seen.get("optimizer.chunks")
    if chunks is None or max(chunks) > 1:
        return
    for name in ("grad_reduction", "lr_scale", "flush"):
        for key in seen.asked(f"optimizer.{name}"):
            yield key, "does nothing: every chunk is one step", "drop it, or give larger optimizer.chunks"


def delta_unused(seen: Seen) -> Iterator[Refusal]:
    """How to forget where nothing is forgotten, and what to do where the proximal form would grow, which it never does."""
    decay, base = seen.get("optimizer.decay"), str(seen.get("optimizer.base", "delta_"))
    if decay is None or not base.startswith("delta_"):
        return
    if decay == 0:
        for name in ("form", "unstable"):
            for key in seen.asked(f"optimizer.{name}"):
                yield key, "does nothing: with optimizer.decay=0 nothing forgets", "drop it, or raise optimizer.decay"
    elif seen.get("optimizer.form") == "proximal":
        for key in seen.asked("optimizer.unstable"):
            yield key, "does nothing: the proximal form is stable for every decay", "drop it, or use form=explicit"


def pretrain_by_the_run(seen: Seen) -> Iterator[Refusal]:
    """What has a key of its own in pretraining, or loses it there, where pretraining steps as the run does."""
    if seen.get("pretrain.optimizer") != "run":
        return
    for key in seen.asked("pretrain.weight_decay"):
        yield key, "does nothing: with pretrain.optimizer=run the optimizer has its own", "set optimizer.weight_decay"
    if seen.supervised:
        own_lr = seen.get("optimizer.adaptive") or seen.get("pretrain.lr") is not None
        for name in ("clip_norm", "lr") if own_lr else ("clip_norm",):
            for key in seen.asked(f"optimizer.{name}"):
                yield key, f"does nothing: pretraining has pretrain.{name}", f"set pretrain.{name}"


RULES = (base_unused, chunks_of_one, delta_unused, pretrain_by_the_run)
