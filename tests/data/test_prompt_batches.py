"""Batches of text: exact contents, prompts never targets, padding and company that change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.small_prompts import EOS, ROWS, SEP, SPEC, bytes_of, load, write
from torch import Tensor

from metarec.core.batch import PairBatch
from metarec.core.seeding import generator
from metarec.data import prompt_batches
from metarec.data.batches import Batcher
from metarec.data.prompt_batches import TextEpisodes, batcher_of, episodes_batch, examples_batch
from metarec.data.prompts import Prompts
from metarec.models.gru4rec import GRU4Rec
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.tasks import Tasks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return load(write(tmp_path_factory.mktemp("prompts") / "x.jsonl"))


@pytest.fixture(scope="module")
def batcher(small: Prompts) -> Batcher:
    return batcher_of(small, 48, CPU)


def read(batch: PairBatch) -> list[list[tuple[list[int], int]]]:
    """(tokens before the target, target) of every pair of every task, as the batch itself says."""
    sequences, found = batch.sequences, []
    row, step = sequences.row.tolist(), sequences.step.tolist()
    for task in range(batch.n_tasks):
        own = []
        for at, target in zip(batch.at[task].tolist(), batch.target[task].tolist(), strict=True):
            if target == 0:
                assert at == 0
                continue
            assert row[at - 1] // sequences.lengths.shape[1] == task
            begin = int(sequences.starts.flatten()[row[at - 1]])
            own.append((sequences.items[task, begin : begin + step[at - 1] + 1].tolist(), target))
        found.append(own)
    return found


def expected(data: Prompts, examples: list[int]) -> list[tuple[list[int], int]]:
    rows = [row for name in data.domains for row in ROWS if row["metadata"]["domain"] == name]
    out = []
    for example in examples:
        ahead, behind = bytes_of(rows[example]["prompt"], rows[example]["response"])
        out += [([*ahead, *behind[:place]], token) for place, token in enumerate(behind)]
    return out


def test_a_batch_byte_by_byte(small: Prompts, batcher: Batcher) -> None:
    """Two examples of one task: "ab" -> "b" and "q" -> "q"; as the tensors stand."""
    ab, q = (int(small.domain_examples[2]) + place for place in (0, 2))
    batch = examples_batch(small, batcher, np.array([[ab, q]]))
    a, b, q_ = ord("a") + 1, ord("b") + 1, ord("q") + 1
    assert batch.sequences.items.tolist() == [[257, a, b, SEP, b, 257, q_, SEP, q_]]  # no EOS is read
    assert batch.sequences.starts.tolist() == [[0, 5]]
    assert batch.sequences.lengths.tolist() == [[5, 4]]
    assert batch.target.tolist() == [[b, EOS, q_, EOS]]
    assert batch.at.tolist() == [[4, 5, 8, 9]]  # behind the separator, behind the response


def test_contents_of_ragged_batches(small: Prompts, batcher: Batcher) -> None:
    """Any examples in any order: the pairs of each task, its prefixes and targets."""
    draw = np.random.default_rng(0)
    for n_tasks, n_each in ((1, 1), (3, 2), (4, 4), (2, 1)):
        examples = np.stack([draw.permutation(12)[:n_each] for _ in range(n_tasks)])
        batch = examples_batch(small, batcher, examples)
        assert read(batch) == [expected(small, own) for own in examples.tolist()]
        counts = np.diff(small.example_pairs)[examples].sum(1)
        assert batch.target.shape[1] == counts.max()
        assert (batch.target > 0).sum(1).tolist() == counts.tolist()
        assert all((lengths[:-1] >= lengths[1:]).all() for lengths in batch.sequences.lengths)  # longest first


def test_prompts_are_never_targets(small: Prompts, batcher: Batcher) -> None:
    """Every target stands behind the separator of its example: one separator in each prefix (no text holds one)."""
    batch = examples_batch(small, batcher, np.arange(12)[None])
    assert all(prefix.count(SEP) == 1 for prefix, _ in read(batch)[0])
    assert SEP not in batch.target
    # the fault: a target too early
    early = replace(small, answer=small.answer - 1)
    wrong = examples_batch(early, batcher_of(early, 48, CPU), np.arange(12)[None])
    assert SEP in wrong.target


def test_without_an_example_a_task_has_no_pair(small: Prompts, batcher: Batcher) -> None:
    """Support of K = 0."""
    batch = examples_batch(small, batcher, np.zeros((3, 0), dtype=np.int64))
    assert batch.target.shape == (3, 0)


# -- what is beside an example changes nothing ----------------------------------------------------------------------

MODELS = {
    "gru4rec": GRU4Rec(259, 6, 5),
    "sasrec": SASRec(259, 8, max_len=48),
}


def losses(name: str, batch: PairBatch) -> Tensor:
    """[T] in float64."""
    model = MODELS[name]
    tasks = Tasks(model, CrossEntropy(), lambda phi: phi)
    return tasks.loss(batch)(model.init(generator(1, "init"), torch.float64))


def alone_and_beside(name: str, small: Prompts, batcher: Batcher) -> tuple[Tensor, Tensor]:
    """The loss of "q" -> "q" by itself, and in a batch with one that has far more tokens."""
    q, long = int(small.domain_examples[2]) + 2, 1
    alone = losses(name, examples_batch(small, batcher, np.array([[q]])))
    return alone[0], losses(name, examples_batch(small, batcher, np.array([[long], [q]])))[1]


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_no_loss(name: str, small: Prompts, batcher: Batcher) -> None:
    alone, beside = alone_and_beside(name, small, batcher)
    assert abs(float(alone - beside)) < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_padding_that_counted_would_be_seen(
    name: str, small: Prompts, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault: the repeated last pair, which fills a task up, taken for a pair."""
    whole = PairBatch
    kept = []

    def unmasked(sequences: object, at: Tensor, target: Tensor) -> PairBatch:
        rows = torch.arange(target.shape[1]).clamp(max=1)
        kept.append(target)
        return whole(sequences, at[:, rows], target[:, rows])  # type: ignore[arg-type]

    monkeypatch.setattr(prompt_batches, "PairBatch", unmasked)
    q, long = int(small.domain_examples[2]) + 2, 1
    beside = losses(name, examples_batch(small, batcher, np.array([[long], [q]])))[1]
    monkeypatch.undo()
    alone, _ = alone_and_beside(name, small, batcher)
    assert kept
    assert abs(float(alone - beside)) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_a_task_is_the_mean_over_its_response_tokens(name: str, small: Prompts, batcher: Batcher) -> None:
    """Against a sum over single examples, each by itself: -log softmax at the token, by hand from the scores."""
    model = MODELS[name]
    params = model.init(generator(1, "init"), torch.float64)
    tasks = Tasks(model, CrossEntropy(), lambda phi: phi)
    examples = np.array([[0, 4, 9], [1, 2, 11]])
    found = losses(name, examples_batch(small, batcher, examples))
    for task, own in enumerate(examples.tolist()):
        each = []
        for example in own:
            batch = examples_batch(small, batcher, np.array([[example]]))
            scores = tasks.logits(params, batch)[0]
            each += [float(torch.logsumexp(s, 0) - s[t - 1]) for s, t in zip(scores, batch.target[0], strict=True)]
        assert float(found[task]) == pytest.approx(sum(each) / len(each), abs=1e-12)


# -- episodes -------------------------------------------------------------------------------------------------------


def test_episodes_of_a_batch(small: Prompts, batcher: Batcher) -> None:
    drawn = small.episodes("test")
    batch = episodes_batch(small, batcher, drawn, slice(None), SPEC.n_support)
    assert read(batch.query) == [expected(small, own[:1]) for own in drawn.example.tolist()]
    assert read(batch.support) == [expected(small, own[1:]) for own in drawn.example.tolist()]
    assert batch.user.tolist() == drawn.domain.tolist()


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_are_parts_of_the_whole(chunk: int, small: Prompts, batcher: Batcher) -> None:
    drawn = small.training(1, 2, 5, 9)
    whole = episodes_batch(small, batcher, drawn, slice(None), 2)
    parts = [episodes_batch(small, batcher, drawn, slice(begin, begin + chunk), 2) for begin in range(0, 5, chunk)]
    for kind in ("support", "query"):
        assert [task for part in parts for task in read(getattr(part, kind))] == read(getattr(whole, kind))


def test_fewer_support_examples_are_the_first_of_them(small: Prompts, batcher: Batcher) -> None:
    drawn, rows = small.episodes("val"), np.array([1, 0])
    for k in (0, 1, 2):
        (batch,) = TextEpisodes(small, batcher, drawn, rows, k, 8, CPU).batches()
        assert read(batch.support) == [expected(small, drawn.example[row, 1 : 1 + k].tolist()) for row in rows]
        assert read(batch.query) == [expected(small, drawn.example[row, :1].tolist()) for row in rows]


def test_the_width_is_that_of_the_widest_batch(small: Prompts, batcher: Batcher) -> None:
    drawn = small.episodes("test")
    episodes = TextEpisodes(small, batcher, drawn, np.arange(len(drawn)), 2, 1, CPU)
    assert episodes.width == max(batch.query.target.shape[1] for batch in episodes.batches())


def test_lines_in_another_order_are_the_same_domains(tmp_path: Path, small: Prompts) -> None:
    data = load(write(tmp_path / "x.jsonl", ROWS[::-1]))
    assert (data.domains, data.split) == (small.domains, small.split)
    assert data.contents != small.contents
