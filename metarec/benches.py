"""What every method of a run is measured with: data, model, objective and device, for sequences and for images.

These, and text (`text_bench`), answer the same questions (`AnyBench`), so that training, tuning and measuring are one code
for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.config.schema import EvaluationConfig, TrainSection
from metarec.core.batch import EpisodeBatch
from metarec.data.batches import Batcher
from metarec.data.bayes import bayes_scores
from metarec.data.episodes import EpisodeRanges, rows_of, sample
from metarec.data.history import shown
from metarec.data.omniglot import ImageEpisodes, Omniglot
from metarec.data.past import Past
from metarec.data.prompt_batches import TextEpisodes
from metarec.data.store import Prepared, train_sessions
from metarec.data.synthetic import World
from metarec.evaluate import Episodes, Ints, Seen, known, repeats, seen
from metarec.metrics import LISTS
from metarec.metrics.lists import Lists
from metarec.metrics.ranks import rank_of_target
from metarec.residual import Residual
from metarec.tasks import Model, Objective, Tasks
from metarec.text_bench import TextBench
from metarec.workbench import Hardware, chunks, identity, spread, tasks_over


@dataclass(frozen=True)
class SequenceBench:
    prepared: Prepared
    batcher: Batcher
    model: Model
    objective: Objective
    hardware: Hardware
    evaluation: EvaluationConfig
    held: Ints | None = None  # rows of the training episodes that pretraining does not read, and meta-training alone
    taught: Ints | None = None  # users that meta-training draws from, int64 [U], where not from all

    @property
    def n_items(self) -> int:
        """V, of the vocabulary: all that is ranked and drawn from."""
        return self.prepared.n_items

    def tasks(self, over: Residual | None = None) -> Tasks:
        """Losses and logits over the model's own weights, or over what `over` composes from them."""
        return tasks_over(self.model, self.objective, self.hardware, over)

    @property
    def support_share(self) -> float:
        """Of the pairs of a training episode."""
        training = self.prepared.episodes("train")
        return training.n_support / (training.n_support + training.n_query)

    @cached_property
    def _training(self) -> EpisodeRanges:
        every = self.prepared.episodes("train")
        every = every if self.held is None else rows_of(every, self.held)
        return every if self.taught is None else rows_of(every, np.flatnonzero(np.isin(every.user, self.taught)))

    @property
    def unread(self) -> Ints:
        """The users that pretraining does not read, int64 [U]; mostly none."""
        return np.zeros(0, dtype=np.int64) if self.held is None else self._training.user

    def training_batches(self, section: TrainSection, seed: int, step: int) -> Iterator[EpisodeBatch]:
        """The meta-batch of an outer step, in chunks of tasks; a function of (seed, step)."""
        training = self._training
        first, row = sample(training, seed=seed, step=step, n_tasks=section.meta_batch_size, sampler=section.sampler)
        for own in chunks(len(row), section.task_chunk):
            batch = self.batcher.episodes(training.user[row[own]], first[own], training.n_support, training.n_query)
            yield batch.to(self.hardware.device)

    def episodes(
        self, split: str, *, n_support: int | None = None, rows: np.ndarray | None = None, stored: int | None = None
    ) -> Episodes:
        """The episodes of a split. `n_support`: use the latest so many of the stored support pairs; `stored`: of the
        users who have as many pairs to support as that, in place of the configured number;
        `rows` [N]: of these users alone."""
        ranges = self.prepared.episodes(split, stored)
        return Episodes(
            self.batcher,
            ranges,
            np.arange(len(ranges.user)) if rows is None else rows,
            ranges.n_support if n_support is None else n_support,
            self.evaluation.task_chunk,
            self.hardware.device,
        )

    def past(self, split: str, rows: Ints | None = None, most: int | None = None) -> Past:
        """The users of a split with more of their history to adapt on, at most `most` pairs (None: all), the latest.

        Of validation and test: every pair before the first query pair of their episodes, in the order of
        `episodes(split)`, with the same query. Of training: every pair but the last Q that may be trained on, which are
        the query; users whom `pretrain.hold_out` has kept from pretraining, alone. `rows` int64 [R]: of these users alone.
        """
        ranges = self._training if split == "train" else self.prepared.episodes(split)
        user = ranges.user if rows is None else ranges.user[rows]
        if split == "train":
            begin, end = (np.asarray(part)[user] for part in self.prepared.train_pairs)
            middle = end - ranges.n_query
        else:
            begin, at = np.asarray(self.prepared.user_pairs)[user], ranges.first_pair + ranges.n_support
            middle = at if rows is None else at[rows]
        first = begin if most is None else np.maximum(begin, middle - most)
        return Past(self.batcher, user, first, middle, ranges.n_query, self.evaluation.task_chunk, self.hardware.device)

    def tuning_rows(self) -> Ints:
        """int64 [N]: rows of the validation episodes, at most `control.users` of them, evenly spaced."""
        return spread(len(self.prepared.episodes("val").user), self.evaluation.control.users)

    def seen(self) -> Seen | None:
        """What is no candidate, where `evaluation.candidates` says so."""
        return seen(self.batcher, self.n_items) if self.evaluation.candidates == "unseen" else None

    def user_ids(self, rows: Ints) -> Any:
        """The users' own names, of `rows` [N]."""
        return self.prepared.user_ids[rows]

    def most_remembered(self, split: str) -> int:
        """Events of the user of a split whose support has the most of them: what a memory keeps of him."""
        support, _ = self.episodes(split).pairs()
        return int(shown(*self.batcher.ends(support), breaks=False)[1].max(initial=0))

    def repeats(self, episodes: Any) -> NDArray[np.bool_]:
        """bool [N, Q]: the target stands in its own prefix or in the support."""
        return repeats(self.batcher, episodes)

    def about(self, episodes: Any) -> dict[str, Ints]:
        """What targets are sliced by: the user's events before his first query, training events of the target.

        `history`, `popularity` [N, Q]; `item_counts` [V], training events of every item.
        """
        _, query = episodes.pairs()
        prepared = self.prepared
        first = prepared.pair_event[query[:, 0]]
        begin = np.asarray(prepared.session_offsets[prepared.user_sessions[episodes.user]])
        history = np.broadcast_to((np.asarray(first) - begin)[:, None], query.shape)
        counts = item_counts(prepared)
        target = np.asarray(prepared.item[prepared.pair_event[query]], dtype=np.int64)
        return {"history": history, "popularity": counts[np.maximum(target, 1) - 1], "item_counts": counts}

    def optimum(self, episodes: Any, split: str) -> dict[str, Ints]:
        """Ranks under the exact optimum, where the law of the data is known (dataset=synthetic): method -> [N, Q]."""
        path = self.prepared.root / "world.npz"
        if not path.exists() or self.prepared.order != "real":  # the law of a shuffled log is not the world's
            return {}
        world = World.load(path)
        _, query = episodes.pairs()
        target = torch.from_numpy(np.asarray(self.prepared.item[self.prepared.pair_event[query]], dtype=np.int64))
        out = {}
        for mode in ("zeroshot", "fewshot"):
            scores = bayes_scores(world, self.prepared, split, episodes.rows, mode, episodes.n_support)
            out[f"bayes_{mode}"] = rank_of_target(torch.from_numpy(scores), target, self.evaluation.ties).numpy()
        return out

    def beyond(self, episodes: Any, tops: Mapping[str, Ints]) -> dict[str, dict[str, float]]:
        """Every metric of lists, of the ten best items [N, Q, 10] of every method; one without a figure is left out."""
        support, query = episodes.pairs()
        counts = item_counts(self.prepared)
        # read where a metric asks for them, once for all methods
        of_support = cache(lambda: known(self.batcher, support, targets=True))
        of_prefix = cache(lambda: known(self.batcher, query.reshape(-1, 1), targets=False))
        out = {}
        for method, top in tops.items():
            lists = Lists(top, self.n_items, counts, of_support, of_prefix)
            figures = {name: metric(lists) for name, metric in LISTS.items()}
            out[method] = {name: figure for name, figure in figures.items() if figure is not None}
        return out

    def conditions(self) -> dict[str, Any]:
        """What a reader must know before figures are compared, as metrics.json keeps it under ``protocol``."""
        return {
            "split_by": self.prepared.split_by,
            "leaky": self.prepared.leaky,
            "split_note": self.prepared.split_note,
            "max_len": self.batcher.max_len,
            "vocabulary": "all" if self.prepared.given_vocabulary else "training",
            "history": "sessions" if self.batcher.stream is None else "user",
            **({} if self.prepared.order == "real" else {"order": self.prepared.order}),
            **identity(self.prepared, self._candidates()),
        }

    def _candidates(self) -> str:
        catalogue = "every item of the log" if self.prepared.given_vocabulary else "the training catalogue"
        return catalogue + (" less the query's own prefix" if self.evaluation.candidates == "unseen" else "")

    def longest_prefix(self, episodes: Any) -> int:
        """Events of the longest prefix in the support and query pairs: a smaller `max_len` cuts something off."""
        pairs = np.concatenate([part.ravel() for part in episodes.pairs()])
        return int((self.prepared.pair_event[pairs] - self.prepared.pair_begin[pairs]).max(initial=0))


@dataclass(frozen=True)
class ImageBench:
    """N-way K-shot classification: the classes of an episode are its items, hr@1 is the accuracy."""

    prepared: Omniglot
    model: Model
    objective: Objective
    hardware: Hardware
    evaluation: EvaluationConfig

    @property
    def n_items(self) -> int:
        """The classes of an episode, n_way."""
        return self.prepared.n_items

    def tasks(self, over: Residual | None = None) -> Tasks:
        """Losses and logits over the model's own weights, or over what `over` composes from them."""
        return tasks_over(self.model, self.objective, self.hardware, over)

    @property
    def support_share(self) -> float:
        """Of the images of an episode; the classes cancel out."""
        spec = self.prepared.spec
        return spec.n_shot / (spec.n_shot + spec.n_query)

    def training_batches(self, section: TrainSection, seed: int, step: int) -> Iterator[EpisodeBatch]:
        """The meta-batch of an outer step, in chunks of tasks; a function of (seed, step)."""
        drawn = self.prepared.training(seed, step, section.meta_batch_size)
        for own in chunks(len(drawn), section.task_chunk):
            yield self._on(self.prepared.batch(drawn, own))

    def episodes(self, split: str, *, n_support: int | None = None, rows: np.ndarray | None = None) -> ImageEpisodes:
        """The fixed episodes of a split, or `rows` [N] of them; shots are fixed too, so `n_support` is not read."""
        drawn = self.prepared.fixed[split]
        chosen = np.arange(len(drawn)) if rows is None else rows
        return ImageEpisodes(self.prepared, drawn, chosen, self.evaluation.task_chunk, self._on)

    def _on(self, batch: EpisodeBatch) -> EpisodeBatch:
        return batch.cast(self.hardware.dtype).to(self.hardware.device)

    def tuning_rows(self) -> Ints:
        """int64 [N]: rows of the validation episodes, at most `control.users` of them, evenly spaced."""
        return spread(len(self.prepared.fixed["val"]), self.evaluation.control.users)

    def seen(self) -> Seen | None:
        """None: every class of an episode is a candidate."""
        return None

    def user_ids(self, rows: Ints) -> Any:
        """A name for each of the `rows` [N], "episode 7": there is no user."""
        return np.array([f"episode {row}" for row in rows])

    def repeats(self, episodes: Any) -> NDArray[np.bool_]:
        """bool [N, Q], all false: every class stands in the support, and no query is a drawing of it."""
        return np.zeros((len(episodes), episodes.n_query), dtype=bool)

    def about(self, episodes: Any) -> dict[str, Ints]:
        """Empty: images have no history and no popularity to be sliced by (of a log: [N, Q] and [V])."""
        return {}

    def optimum(self, episodes: Any, split: str) -> dict[str, Ints]:
        """Empty: the law of the drawings is not known (where it is: ranks [N, Q])."""
        return {}

    def beyond(self, episodes: Any, tops: Mapping[str, Ints]) -> dict[str, dict[str, float]]:
        """Empty: ten best [N, Q, 10] of a few classes say nothing of a catalogue."""
        return {}

    def conditions(self) -> dict[str, Any]:
        """What a reader must know before figures are compared; `classification` puts accuracy into the tables."""
        return {
            "split_by": self.prepared.split_by,
            "leaky": False,
            "split_note": self.prepared.split_note,
            "classification": True,
            **identity(self.prepared, "the classes of the episode"),
        }

    def longest_prefix(self, episodes: Any) -> int:
        """1 event, so no `max_len` cuts anything off."""
        return 1  # the image itself


AnyBench = SequenceBench | ImageBench | TextBench
AnyEpisodes = Episodes | ImageEpisodes | TextEpisodes


def item_counts(prepared: Prepared) -> np.ndarray:
    """Training events of every item, int64 [V]."""
    begin, end = train_sessions(prepared)
    edge = np.zeros(len(prepared.item) + 1, dtype=np.int64)
    np.add.at(edge, np.asarray(begin), 1)
    np.add.at(edge, np.asarray(end), -1)
    items = np.asarray(prepared.item)[np.cumsum(edge[:-1]) > 0]
    return np.bincount(items, minlength=prepared.n_items + 1)[1:]
