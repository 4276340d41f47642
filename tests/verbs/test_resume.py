"""A run that is killed anywhere and resumed ends with the bits of one that never was; and how a run ends on a signal.

The runs under attack are processes of their own, killed with real signals.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference.tiny_runs import Work, assert_same_run, ended, metrics, state, wait_for

from metarec import cli
from metarec.runs.rundir import verify, write_run_card

META = (  # clipping, drawing and pulling: whatever depends on the order of the weights
    "train.steps=40", "train.eval_every=8", "train.checkpoint_every=12", "train.patience=0",
    "optimizer.clip_norm=0.1", "residual.init_scale=0.01", "residual.l2=0.01",
)  # fmt: skip
SUPERVISED = (
    "algorithm=supervised", "pretrain.epochs=8", "pretrain.batch_size=64", "pretrain.patience=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Callable[..., Path]:
    """The uninterrupted run of some words, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*words: str) -> Path:
        if words not in made:
            made[words] = Work(tmp_path_factory.mktemp("whole"), cache).train(*words)
        return made[words]

    return run


def card(work: Work) -> Path | None:
    """The run directory, once it says what the run is; before that there is nothing to resume."""
    return next((path for path in work.directories("train") if (path / "config.yaml").exists()), None)


def lines(work: Work) -> int:
    """Records in the history so far."""
    run = card(work)
    path = run / "history.jsonl" if run else None
    return len(path.read_bytes().splitlines()) if path and path.exists() else 0


def resume(work: Work) -> None:
    """`metarec train resume=RUN` until done."""
    (run,) = work.directories("train")
    assert cli.main(["train", f"resume={run}"]) == 0
    assert verify(run) == []


def killed(work: Work, words: tuple[str, ...], ready: Callable[[], Any], number: int = signal.SIGKILL) -> int | None:
    process = work.start_train(*words)
    wait_for(ready, process)
    os.kill(process.pid or 0, number)
    return ended(process)


@pytest.mark.parametrize(
    ("words", "after"), [(META, 1), (META, 17), (META, 45), (SUPERVISED, 130)], ids=lambda value: str(value)[-20:]
)
def test_killed_and_resumed_ends_with_the_same_bits(
    words: tuple[str, ...], after: int, work: Work, whole: Callable[..., Path]
) -> None:
    """Killed when the history has so many records: just begun, between two checkpoints, at the end."""
    assert killed(work, words, lambda: lines(work) >= after) == -signal.SIGKILL
    resume(work)
    assert_same_run(work.directories("train")[0], whole(*words))


def test_killed_while_pretraining_starts_over_and_ends_equal(work: Work, whole: Callable[..., Path]) -> None:
    cold = Work(work.root, work.root / "cold")
    words = (*META, "pretrain.epochs=10", "pretrain.patience=0")

    def pretraining() -> bool:
        run = card(cold)
        path = run / "pretrain_history.jsonl" if run else None
        return bool(path and path.exists() and len(path.read_bytes().splitlines()) > 5)

    assert killed(cold, words, pretraining) == -signal.SIGKILL
    assert not (cold.directories("train")[0] / "checkpoints").exists()
    resume(cold)
    assert_same_run(cold.directories("train")[0], whole(*words))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_saves_and_leaves_with_its_code(
    number: signal.Signals, work: Work, whole: Callable[..., Path]
) -> None:
    """The next step is the last; resuming from it ends with the bits of the uninterrupted run."""
    process = work.start_train(*META)
    wait_for(lambda: lines(work) >= 15, process)
    begin = time.monotonic()
    os.kill(process.pid or 0, number)
    assert ended(process) == 128 + number
    assert time.monotonic() - begin < 10
    (run,) = work.directories("train")
    stopped_at = state(run, "last")["progress"]["step"]
    records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert stopped_at == records[-1]["step"] > 0
    told = work.output(process)
    assert f"error: {number.name}: step {stopped_at}: stopped as asked, after a checkpoint" in told
    assert "Traceback" not in told
    if number == signal.SIGTERM:
        resume(work)
        assert_same_run(run, whole(*META))


def test_a_signal_while_pretraining_keeps_what_a_resume_needs(work: Work) -> None:
    cold = Work(work.root, work.root / "cold")
    words = (*META, "pretrain.epochs=200", "pretrain.patience=0")

    def pretraining() -> Any:
        run = card(cold)
        return run and (run / "pretrain_history.jsonl").exists()

    assert killed(cold, words, pretraining, signal.SIGTERM) == 143
    (run,) = cold.directories("train")
    assert (run / "config.yaml").exists()
    assert not (run / "checkpoints").exists()


def test_a_signal_during_preparation_ends_at_once(work: Work) -> None:
    """No loop asks for the signal there."""
    cold = Work(work.root, work.root / "cold")
    process = cold.start(*cold.words("train", "dataset.world.n_users=50000", "logger.console=quiet"))
    wait_for(lambda: any((cold.cache / "prepared").glob(".tmp-*")), process)
    begin = time.monotonic()
    process.terminate()
    assert ended(process) == 143
    assert time.monotonic() - begin < 10
    assert [path for path in (cold.cache / "prepared").iterdir() if path.is_dir()] == []


def test_a_finished_run_is_not_resumed(work: Work, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in finished.iterdir())
    assert cli.main(["train", f"resume={finished}"]) == 2
    assert "the run is finished" in capsys.readouterr().err
    assert sorted(path.name for path in finished.iterdir()) == before
    assert verify(finished) == []


def test_a_run_killed_after_its_training_only_measures_again(work: Work, whole: Callable[..., Path]) -> None:
    copy = Path(shutil.copytree(whole(*META), work.root / "outputs" / "train" / "run"))
    for name in ("manifest.json", "metrics.json", "per_user.parquet"):
        (copy / name).unlink()
    resume(work)
    assert_same_run(copy, whole(*META))


def interrupted(work: Work, run: Path, step: int) -> Path:
    """A copy of a whole run as if it had been killed after the checkpoint of `step`, which is its last."""
    copy = Path(shutil.copytree(run, work.root / "outputs" / "train" / "run"))
    for name in ("manifest.json", "metrics.json", "per_user.parquet"):
        (copy / name).unlink()
    for path in (copy / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return copy


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_and_said(
    name: str, work: Work, whole: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Resume takes an earlier good one, or the beginning, and still ends with the same bits."""
    copy = interrupted(work, whole(*META), 40)
    flip(copy / "checkpoints" / "step-000040" / name)
    resume(work)
    told = capsys.readouterr().err
    assert "skipped step-000040" in told
    assert "damaged" in told
    assert_same_run(copy, whole(*META))


def test_a_damaged_best_is_made_again(
    work: Work, whole: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Going on from a good last checkpoint would end with a best that nobody can read."""
    copy = interrupted(work, whole(*META), 40)
    best = Path(metrics(whole(*META))["checkpoint"])
    flip(copy / best / "tensors.safetensors")
    resume(work)
    assert f"skipped {best.name}" in capsys.readouterr().err
    assert_same_run(copy, whole(*META))


def test_damaged_pointers_are_set_anew(work: Work, whole: Callable[..., Path]) -> None:
    copy = interrupted(work, whole(*META), 40)
    for pointer in ("best", "last"):
        flip(copy / "checkpoints" / f"{pointer}.json")
    resume(work)
    assert_same_run(copy, whole(*META))


def test_of_a_run_that_goes_on_the_one_before_the_last_is_kept(work: Work, whole: Callable[..., Path]) -> None:
    """With its best, so that damage of the last costs one interval; all checkpoints damaged is a start from nothing."""
    process = work.start_train(*META)
    wait_for(lambda: lines(work) >= 45, process)  # step 38 of 40
    process.kill()
    assert ended(process) == -signal.SIGKILL
    (run,) = work.directories("train")
    found = sorted((run / "checkpoints").glob("step-*"))
    last, before = found[-1], found[-2]
    assert int(last.name[5:]) - int(before.name[5:]) in (4, 8)
    for path in found[-1:]:
        flip(path / "tensors.safetensors")
    second = work.start("train", f"resume={run}")
    assert ended(second) == 0
    told = work.output(second)
    assert f"skipped {last.name}" in told
    assert f"skipped {before.name}" not in told
    assert_same_run(run, whole(*META))


def test_where_every_checkpoint_is_damaged_the_run_starts_over(work: Work, whole: Callable[..., Path]) -> None:
    copy = interrupted(work, whole(*META), 40)
    for path in (copy / "checkpoints").glob("step-*"):
        flip(path / "state.json")
    resume(work)
    assert_same_run(copy, whole(*META))


def test_a_damaged_line_of_a_history_is_passed_over_and_said(
    work: Work, whole: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A digit that flips leaves valid JSON. The checkpoints saved behind that line do not count any more."""
    copy = interrupted(work, whole(*META), 40)
    history = copy / "history.jsonl"
    rows = history.read_bytes().splitlines(keepends=True)
    (place,) = [number for number, row in enumerate(rows) if b'"step": 14, "kind": "train"' in row]
    digit = rows[place].index(b'"loss": ') + len(b'"loss": ')
    rows[place] = rows[place][:digit] + bytes([rows[place][digit] ^ 1]) + rows[place][digit + 1 :]
    json.loads(rows[place])
    history.write_bytes(b"".join(rows))
    resume(work)
    told = capsys.readouterr().err
    assert f"skipped step-000040: {history}: damaged" in told
    assert_same_run(copy, whole(*META))


def test_a_damaged_run_card_is_refused(
    work: Work, whole: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = interrupted(work, whole(*META), 40)
    for name in ("config.yaml", "overrides.json", "environment.json", "card.json"):
        kept = (copy / name).read_bytes()
        flip(copy / name)
        assert cli.main(["train", f"resume={copy}"]) == 4, name
        assert f"error: {copy / name}: damaged" in capsys.readouterr().err
        (copy / name).write_bytes(kept)
    (copy / "card.json").unlink()  # a run of a metarec that wrote none
    resume(work)
    assert "card.json is missing, so nothing vouches for its config.yaml" in capsys.readouterr().err
    assert_same_run(copy, whole(*META))


def test_of_two_resumes_at_once_one_runs(work: Work, whole: Callable[..., Path]) -> None:
    """The second leaves with 5 and names the holder; after a kill of the holder the next start works at once."""
    assert killed(work, META, lambda: lines(work) >= 5) == -signal.SIGKILL
    (run,) = work.directories("train")
    first = work.start("train", f"resume={run}")
    holder = run / ".lock_holder.json"
    wait_for(lambda: holder.exists() and str(first.pid) in holder.read_text(), first)
    os.kill(first.pid or 0, signal.SIGSTOP)
    second = work.start("train", f"resume={run}")
    assert ended(second) == 5
    assert f"held by pid {first.pid}" in work.output(second)
    first.kill()
    assert ended(first) == -signal.SIGKILL
    resume(work)
    assert_same_run(run, whole(*META))


def test_data_that_changed_since_is_refused(
    work: Work, whole: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = interrupted(work, whole(*META), 24)
    text = (copy / "config.yaml").read_text()
    assert "n_items: 30\n" in text
    write_run_card(copy, config_yaml=text.replace("n_items: 30\n", "n_items: 31\n"), overrides=[])
    assert cli.main(["train", f"resume={copy}"]) == 4
    assert "vocabulary" in capsys.readouterr().err
