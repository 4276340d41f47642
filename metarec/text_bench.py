"""What text tasks are trained, tuned and measured with: tokens in place of items, a domain in place of a user.

hr@1 is the accuracy over response tokens, each behind the true tokens before it (no text is generated). Intervals draw
domains, since the episodes of one domain share its rule. Everything that reads a log (panel, slices, repeats) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.config.schema import EvaluationConfig, TrainSection
from metarec.core.batch import EpisodeBatch, PairBatch
from metarec.data.batches import Batcher
from metarec.data.prompt_batches import TextEpisodes, episodes_batch, examples_batch
from metarec.data.prompts import Prompts
from metarec.evaluate import Seen
from metarec.pretrain import VALIDATION_PAIRS, Pieces
from metarec.ragged import ranges
from metarec.residual import Residual
from metarec.tasks import Model, Objective, Tasks
from metarec.workbench import Hardware, Ints, chunks, identity, spread, tasks_over

HELD_OUT_TARGETS = 8_192  # of a batch of held-out text


@dataclass(frozen=True)
class TextBench:
    prepared: Prompts
    batcher: Batcher
    model: Model
    objective: Objective
    hardware: Hardware
    evaluation: EvaluationConfig

    @property
    def n_items(self) -> int:
        """Tokens of the tokenizer."""
        return self.prepared.n_items

    def tasks(self, over: Residual | None = None) -> Tasks:
        """Losses and logits over the model's own weights, or over what `over` composes from them."""
        return tasks_over(self.model, self.objective, self.hardware, over)

    @property
    def support_share(self) -> float:
        """Of the examples of an episode."""
        spec = self.prepared.spec
        return spec.n_support / (spec.n_support + spec.n_query)

    def training_batches(self, section: TrainSection, seed: int, step: int) -> Iterator[EpisodeBatch]:
        """The meta-batch of an outer step, in chunks of tasks; a function of (seed, step, steps)."""
        drawn = self.prepared.training(seed, step, section.meta_batch_size, section.steps)
        for own in chunks(len(drawn), section.task_chunk):
            batch = episodes_batch(self.prepared, self.batcher, drawn, own, self.prepared.n_support)
            yield batch.to(self.hardware.device)

    def episodes(
        self, split: str, *, n_support: int | None = None, rows: np.ndarray | None = None, stored: int | None = None
    ) -> TextEpisodes:
        """The fixed episodes of a split, or `rows` [N] of them. `n_support`: use so many of the support examples;
        `stored`: of the domains that have as many to support as that; the queries stay the same."""
        drawn = self.prepared.episodes(split, stored)
        used = (self.prepared.n_support if stored is None else stored) if n_support is None else n_support
        chosen = np.arange(len(drawn)) if rows is None else rows
        return TextEpisodes(
            self.prepared, self.batcher, drawn, chosen, used, self.evaluation.task_chunk, self.hardware.device
        )

    def tuning_rows(self) -> Ints:
        """int64 [N]: rows of the validation episodes, at most `control.users` of them, evenly spaced."""
        return spread(len(self.prepared.episodes("val")), self.evaluation.control.users)

    def seen(self) -> Seen | None:
        """None: every token is a candidate."""
        return None

    def user_ids(self, rows: Ints) -> Any:
        """The names of the domains, of `rows` [N]."""
        return np.array(self.prepared.domains)[rows]

    def repeats(self, episodes: Any) -> NDArray[np.bool_]:
        """bool [N, Q], all false: a token that stands in the prompt already is no repeat purchase."""
        return np.zeros((len(episodes), episodes.width), dtype=bool)

    def about(self, episodes: Any) -> dict[str, Ints]:
        """Empty: text has no history and no popularity to be sliced by (of a log: [N, Q] and [V])."""
        return {}

    def optimum(self, episodes: Any, split: str) -> dict[str, Ints]:
        """Empty: the optimum of the tasks is not computed (where it is: ranks [N, Q])."""
        return {}

    def beyond(self, episodes: Any, tops: Mapping[str, Ints]) -> dict[str, dict[str, float]]:
        """Empty: ten best tokens [N, Q, 10] say nothing of a catalogue."""
        return {}

    def conditions(self) -> dict[str, Any]:
        """What a reader must know before figures are compared; `unit` puts token accuracy into the tables."""
        return {
            "split_by": self.prepared.split_by,
            "leaky": False,
            "split_note": self.prepared.split_note,
            "unit": "token",
            **identity(self.prepared, "every token"),
        }

    def longest_prefix(self, episodes: Any) -> int:
        """Tokens of the longest prefix in support and query."""
        used = episodes.drawn.example[episodes.rows, : episodes.n_query + episodes.n_support]
        return int(np.diff(self.prepared.example_tokens)[used].max(initial=0)) - 1

    def blocks(self, split: str) -> Ints:
        """Numbers of the examples of a split, rising, int64 [n]: of running text, every character once."""
        return self.prepared.examples_of(self.prepared.of(split))

    def held_out(self, split: str) -> Iterator[PairBatch]:
        """The blocks of a split, one task [1, N] of some thousand targets after another."""
        own = self.blocks(split)
        size = max(HELD_OUT_TARGETS // self.prepared.spec.max_tokens, 1)
        for begin in range(0, len(own), size):
            yield examples_batch(self.prepared, self.batcher, own[None, begin : begin + size])

    # pretraining

    def pieces(self, batch_size: int, seed: int) -> Pieces:
        """The examples that are pretrained on, in batches of about `batch_size` response tokens."""
        own, prepared = self.prepared.pretraining, self.prepared
        first, last, start = prepared.answer[own], prepared.example_tokens[own + 1], prepared.example_tokens[own]
        return Pieces(first, last, start, batch_size, seed)

    def validation_pairs(self) -> Ints:
        """Numbers of the response tokens of the validation domains, rising, evenly thinned to 20,000; int64 [pairs].

        Of running text whole blocks are left out, so that what is read for one target is read for its neighbours too.
        """
        own = self.prepared.examples_of(self.prepared.of("val"))
        first = self.prepared.example_pairs
        if self.prepared.running:
            own = own[spread(len(own), max(VALIDATION_PAIRS // self.prepared.spec.max_tokens, 1))]
        pairs = ranges(first[own], np.diff(first)[own])
        if len(pairs) > VALIDATION_PAIRS:
            pairs = pairs[np.linspace(0, len(pairs) - 1, VALIDATION_PAIRS).astype(np.int64)]
        return pairs
