"""`metarec eval`: a run's figures again, exactly; other support sizes, steps and users; and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from reference.tiny_runs import Work, metrics

from metarec.errors import CheckpointError, ConfigError, DataError
from metarec.metrics import METRICS
from metarec.runs.rundir import verify

SAME = (
    "metrics", "intervals", "macro", "repeat", "novel", "differences", "comparison", "improvement", "share_of_gap",
    "counts", "bootstrap", "beyond", "control", "control_grid", "protocol", "seeds", "config", "model", "dataset",
)  # fmt: skip


def assert_same_figures(found: dict, run: Path) -> None:
    expected = metrics(run)
    assert {key: found.get(key) for key in SAME} == {key: expected.get(key) for key in SAME}


def test_the_figures_of_a_run_again_exactly(work: Work, finished: Path) -> None:
    assert_same_figures(work.eval(finished), finished)
    (made,) = work.directories("eval")
    assert verify(made) == []
    assert pq.read_table(made / "per_user.parquet").equals(pq.read_table(finished / "per_user.parquet"))


@pytest.mark.parametrize(
    "words",
    [
        ("hardware.precision=float64", "evaluation.bootstrap=77", "evaluation.confidence=0.9"),
        ("hardware.precision=bfloat16",),
        ("algorithm=supervised", "evaluation.ties=first", "hardware.precision=bfloat16"),
        ("algorithm=maml", "residual=context", "hardware.precision=bfloat16"),
        ("algorithm=supervised", "evaluation.ties=first"),
        ("residual=off", "evaluation.test_steps=5", "evaluation.task_chunk=7", "model.max_len=3"),
        ("residual.alpha=0.5", "residual.l2=0.1", "dataset.episodes.n_support=3", "dataset.episodes.n_query=4"),
    ],
    ids=" ".join,
)
def test_the_figures_of_a_run_with_options_of_its_own(words: tuple[str, ...], work: Work) -> None:
    run = work.train(*words)
    assert_same_figures(work.eval(run), run)


def test_the_whole_command_gives_the_figures_too(work: Work, finished: Path) -> None:
    assert work.main("eval", f"ckpt={finished}") == 0
    (made,) = work.directories("eval")
    assert_same_figures(metrics(made), finished)
    assert metrics(made)["evaluated"]["ckpt"] == str(finished)


def test_options_given_now_win_over_those_of_the_run(work: Work, finished: Path) -> None:
    found = work.eval(finished, "evaluation.bootstrap=20", "hardware.precision=float64")
    assert found["bootstrap"]["n_resamples"] == 20
    assert found["evaluated"]["hardware"]["precision"] == "float64"
    assert found["evaluated"]["evaluation"]["confidence"] == 0.95
    assert found["metrics"]["fewshot"] == pytest.approx(metrics(finished)["metrics"]["fewshot"], abs=0.02)


def test_a_checkpoint_of_the_run_by_its_own_path(work: Work, finished: Path) -> None:
    start = work.eval(finished / "checkpoints" / "step-000000")
    assert start["metrics"]["zeroshot"] == start["metrics"]["pretrained"]  # delta = 0
    last = work.eval(finished / "checkpoints" / "last.json")
    assert last["evaluated"]["checkpoint"].endswith("step-000006")


def test_fewer_support_pairs_keep_users_and_targets(work: Work, finished: Path) -> None:
    whole = metrics(finished)
    for n_support in (0, 1, 4, 5):
        found = work.eval(finished, f"n_support={n_support}")
        assert found["counts"] == whole["counts"] | {"repeat_share": found["counts"]["repeat_share"]}
        assert found["metrics"]["zeroshot"] == whole["metrics"]["zeroshot"]
        same = found["metrics"]["fewshot"] == found["metrics"]["zeroshot"]
        assert same if n_support == 0 else not same
        if n_support == 0:
            assert found["metrics"]["control"] == found["metrics"]["pretrained"]
            assert found["metrics"]["bayes_fewshot"] == found["metrics"]["bayes_zeroshot"]
    assert found["metrics"] == whole["metrics"]


@pytest.mark.parametrize("algorithm", ["maml", "meta_sgd", "imaml"])
def test_no_support_pair_is_zero_shot_after_any_number_of_steps(algorithm: str, work: Work) -> None:
    run = work.train(f"algorithm={algorithm}", "residual=off", "algorithm.inner.steps=3")
    found = work.eval(run, "n_support=0")["metrics"]
    assert found["fewshot"] == found["zeroshot"] == metrics(run)["metrics"]["zeroshot"]


def test_no_step_or_a_step_of_size_zero_is_zero_shot(work: Work, finished: Path) -> None:
    users = []
    for word in ("steps=0", "lr=0"):
        run = work.evaluated(finished, word)
        assert metrics(run)["metrics"]["fewshot"] == metrics(run)["metrics"]["zeroshot"]
        users.append(pq.read_table(run / "per_user.parquet"))
    for table in users:
        for metric in METRICS:
            assert table[f"fewshot.{metric}"].equals(table[f"zeroshot.{metric}"])


def test_other_steps_and_step_sizes_change_few_shot_only(work: Work, finished: Path) -> None:
    whole = metrics(finished)["metrics"]
    for words in (("steps=8",), ("lr=0.7",)):
        found = work.eval(finished, *words)["metrics"]
        assert found["fewshot"] != whole["fewshot"]
        assert all(found[name] == whole[name] for name in whole if name != "fewshot")


def test_chosen_users_have_the_figures_they_have_in_the_whole(work: Work, finished: Path) -> None:
    whole = pq.read_table(finished / "per_user.parquet").to_pandas().set_index("user_id")
    chosen = [whole.index[7], whole.index[2]]
    listed = work.root / "users.txt"
    listed.write_text("".join(f"{user}\n" for user in chosen))
    tables = []
    for users in (f"[{','.join(chosen)}]", str(listed)):
        run = work.evaluated(finished, f"users={users}")
        assert metrics(run)["counts"]["users"] == 2
        tables.append(pq.read_table(run / "per_user.parquet").to_pandas().set_index("user_id"))
    assert tables[0].equals(tables[1])
    assert set(tables[0].index) == set(chosen)
    exact = [name for name in whole if not name.startswith("bayes")]
    assert tables[0].loc[chosen, exact].equals(whole.loc[chosen, exact])


def test_the_validation_split(work: Work, finished: Path) -> None:
    found = work.eval(finished, "split=val")
    assert found["protocol"]["split"] == "val"
    training = metrics(finished)["training"]
    # what the best was chosen by; the two sums are taken in another order
    assert found["metrics"]["fewshot"]["ndcg@10"] == pytest.approx(training["val_ndcg@10"], abs=1e-12)
    assert found["control"]["value"] == metrics(finished)["control"]["value"]


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["n_support=6"], ConfigError, "n_support: 6: the stored episodes have 5 support pairs"),
        (["users=[nobody]"], DataError, "users: nobody: no episode of this user in the test split"),
        (["users=missing.txt"], DataError, "not a readable list of users"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wish_that_the_run_cannot_meet_leaves_nothing(
    words: list[str], kind: type[Exception], says: str, work: Work, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work.main("eval", f"ckpt={finished}", *words) == kind.exit_code  # type: ignore[attr-defined]
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert work.directories("eval") == []


def test_a_step_size_that_diverges_is_told_and_leaves_nothing(
    work: Work, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work.main("eval", f"ckpt={finished}", "lr=3e38", "steps=9") == 6
    assert "not finite" in capsys.readouterr().err
    assert work.directories("eval") == []


def test_steps_of_a_run_without_an_inner_loop_are_refused(work: Work) -> None:
    run = work.train("algorithm=supervised")
    with pytest.raises(ConfigError, match="has no inner loop"):
        work.eval(run, "steps=2")


def small_log(path: Path) -> Path:
    """60 users who walk through 20 items, one event a day."""
    rows = [f"u{u},i{(u + 3 * t) % 20},{1_600_000_000 + 90_000 * t + u}" for u in range(60) for t in range(24)]
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return path


def test_a_checkpoint_of_another_vocabulary_is_refused(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """The same number of items, another set of them: the sizes all fit, only the vocabulary tells."""
    log = small_log(work.root / "log.csv")
    words = (
        "dataset=events", f"dataset.path={log}", "dataset.sessions.by=user", "dataset.split.by=user_disjoint",
        "residual=off",
    )  # fmt: skip
    run = work.train(*words)
    log.write_text(log.read_text().replace(",i7,", ",i07,"))
    assert work.main("eval", f"ckpt={run}") == 4
    error = capsys.readouterr().err
    assert "vocabulary" in error
    assert len(error.splitlines()) == 1
    assert work.directories("eval") == []


def test_a_moved_log_is_named_by_dataset_path(work: Work) -> None:
    log = small_log(work.root / "log.csv")
    run = work.train(
        "dataset=events", f"dataset.path={log}", "dataset.sessions.by=user", "dataset.split.by=user_disjoint"
    )
    moved = log.rename(work.root / "moved.csv")
    assert_same_figures(work.eval(run, f"dataset_path={moved}"), run)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("whole_run", [True, False], ids=["run", "checkpoint"])
def test_a_flipped_bit_is_refused(
    name: str, whole_run: bool, work: Work, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, work.root / "run"))
    best = run / Path(metrics(finished)["checkpoint"])
    data = bytearray((best / name).read_bytes())
    data[len(data) // 2] ^= 4
    (best / name).write_bytes(data)
    assert work.main("eval", f"ckpt={run if whole_run else best}") == 4
    error = capsys.readouterr().err
    assert name in error
    assert "damaged" in error
    assert len(error.splitlines()) == 1
    assert work.directories("eval") == []


def test_what_is_no_checkpoint_is_refused(work: Work, finished: Path) -> None:
    with pytest.raises(CheckpointError, match="did you mean"):
        work.eval(finished.with_name(finished.name + "x"))
    (empty := work.root / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither a run nor a checkpoint"):
        work.eval(empty)
