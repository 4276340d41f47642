"""The table of a comparison against hand values, scipy and laws: rows over seeds, shared rows, differences, names."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.small_reports import METHODS, write_run
from scipy import stats

from metarec.config.fields import group_schema
from metarec.errors import ConfigError
from metarec.metrics.intervals import verdict
from metarec.report import paired
from metarec.report.comparison import comparison
from metarec.report.comparison_text import comparison_latex, comparison_markdown
from metarec.report.configurations import configurations
from metarec.report.finished import Run, read_run


def usual(group: str, name: str) -> dict[str, Any]:
    schema = group_schema(group, name)
    assert schema is not None
    return asdict(schema())


def runs(tmp_path: Path, *wanted: tuple[str, int, float], **options: Any) -> list[Run]:
    """Runs of (algorithm, seed, gain)."""
    found = []
    for algorithm, seed, gain in wanted:
        name = f"{algorithm}_{seed}"
        write_run(tmp_path / name, algorithm=algorithm, seed=seed, gain=gain, **options)
        found.append(read_run(tmp_path / name, name))
    return found


def table(found: list[Run], **options: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(comparison(found, defaults=usual, **options)))
    return document


def set_values(run: Run, method: str, values: list[float]) -> None:
    run.table[f"{method}.mrr"] = np.array(values)


def test_means_over_seeds_and_users_by_hand(tmp_path: Path) -> None:
    found = runs(tmp_path, ("maml", 1, 0.5), ("maml", 2, 0.5), n_users=3)
    set_values(found[0], "fewshot", [0.1, 0.3, 0.5])  # mean .3
    set_values(found[1], "fewshot", [0.3, 0.3, 0.9])  # mean .5
    for run in found:
        set_values(run, "control", [0.1, 0.2, 0.3])
    document = table(found, metric="mrr", methods=["fewshot", "control"])
    few, control = sorted(document["rows"], key=lambda row: -row["mean"])
    assert few["of_seeds"] == pytest.approx([0.3, 0.5])
    assert (few["mean"], few["sd_seeds"]) == (pytest.approx(0.4), pytest.approx(0.2 / 2**0.5))
    assert few["sd_users"] == pytest.approx(np.std([0.2, 0.3, 0.7], ddof=1))  # a user's mean over seeds
    assert (control["mean"], control["sd_seeds"]) == (pytest.approx(0.2), pytest.approx(0.0))
    (entry,) = document["differences"]
    delta = np.array([0.1, 0.1, 0.4])
    assert entry["mean"] == pytest.approx(delta.mean())
    assert entry["effect_size"] == pytest.approx(delta.mean() / delta.std(ddof=1))
    assert (entry["of"]["method"], entry["against"]["method"]) == ("fewshot", "control")
    assert entry["p_value"] >= 0.2  # three users have eight signs: at best 2/8


def test_targets_weigh_where_users_have_different_numbers_of_them(tmp_path: Path) -> None:
    (run,) = runs(tmp_path, ("maml", 1, 0.5), n_users=2)
    run.table["n_targets"] = np.array([1, 3])
    set_values(run, "fewshot", [1.0, 0.0])
    set_values(run, "control", [0.0, 1.0])
    document = table([run], metric="mrr", methods=["fewshot", "control"])
    assert {row["method"]: row["mean"] for row in document["rows"]} == {"control": 0.75, "fewshot": 0.25}
    assert document["differences"][0]["mean"] == pytest.approx(-0.5)  # (1 * 1 - 3 * 1) / 4
    assert document["differences"][0]["effect_size"] == pytest.approx(0.0)  # over users: 1 and -1


def test_a_table_of_one_run_has_the_runs_own_figures(tmp_path: Path) -> None:
    (run,) = runs(tmp_path, ("maml", 1, 0.5))
    document = table([run])
    for row in document["rows"]:
        assert row["mean"] == pytest.approx(run.document["metrics"][row["method"]]["ndcg@10"], abs=1e-12)
        low, high = run.document["intervals"][row["method"]]["ndcg@10"]
        assert (row["low"], row["high"]) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))  # other draws
    own = run.document["differences"]["gain_over_control"]["ndcg@10"]
    assert document["differences"][0]["mean"] == pytest.approx(own["mean"], abs=1e-12)


def test_equal_rows_are_shown_once(tmp_path: Path) -> None:
    """pretrained, control and zeroshot of a seed are the same draw in all runs here; few-shot is not."""
    document = table(runs(tmp_path, *[(a, s, g) for a, g in (("maml", 0.5), ("fomaml", 0.3)) for s in (1, 2)]))
    rows = [(row["method"], row["configurations"], row["shared"]) for row in document["rows"]]
    both = ["algorithm=maml", "algorithm=fomaml"]
    assert rows == [
        *((method, both, True) for method in ("pretrained", "control", "zeroshot")),
        ("fewshot", both[:1], False), ("fewshot", both[1:], False),
    ]  # fmt: skip
    assert all(row["seeds"] == [1, 2] for row in document["rows"])


def test_a_row_of_other_seeds_is_not_shared(tmp_path: Path) -> None:
    document = table(runs(tmp_path, ("maml", 1, 0.5), ("maml", 2, 0.5), ("fomaml", 1, 0.5)))
    control = [(row["configurations"], row["seeds"]) for row in document["rows"] if row["method"] == "control"]
    assert control == [(["algorithm=maml"], [1, 2]), (["algorithm=fomaml"], [1])]


def test_one_changed_user_makes_a_row_of_its_own(tmp_path: Path) -> None:
    found = runs(tmp_path, ("maml", 1, 0.5), ("fomaml", 1, 0.3))
    column = found[1].table["control.ndcg@10"].copy()
    column[7] += 0.001
    found[1].table["control.ndcg@10"] = column
    assert sum(row["method"] == "control" for row in table(found)["rows"]) == 2


def test_differences_are_paired_corrected_and_worded(tmp_path: Path) -> None:
    document = table(runs(tmp_path, ("maml", 1, 0.5), ("fomaml", 1, 0.45), ("anil", 1, 0.1)))
    entries = document["differences"]
    said = [(e["of"]["configuration"], e["against"]["method"], e["against"]["configuration"]) for e in entries]
    maml, fomaml, anil = (f"algorithm={name}" for name in ("maml", "fomaml", "anil"))
    assert said == [(maml, "control", None), (fomaml, "control", None), (fomaml, "fewshot", maml), (anil, "control", None),
                    (anil, "fewshot", maml)]  # fmt: skip
    p = [entry["p_value"] for entry in entries]
    by_hand, largest = {}, 0.0
    for rank, k in enumerate(sorted(range(5), key=lambda k: p[k])):
        largest = max(largest, (5 - rank) * p[k])
        by_hand[k] = min(largest, 1.0)
    assert [entry["p_holm"] for entry in entries] == pytest.approx([by_hand[k] for k in range(5)])
    assert all(entry["verdict"] == verdict(entry["low"], entry["high"]) for entry in entries)


def test_against_a_method_or_a_run(tmp_path: Path) -> None:
    found = runs(tmp_path, ("maml", 1, 0.5), ("fomaml", 1, 0.3))

    def said(**options: Any) -> list[tuple[str, str | None, str, str | None]]:
        return [(*e["of"].values(), *e["against"].values()) for e in table(found, **options)["differences"]]

    assert said(against="pretrained", methods=["fewshot", "control"]) == [
        ("control", None, "pretrained", None), ("fewshot", "algorithm=maml", "pretrained", None),
        ("fewshot", "algorithm=fomaml", "pretrained", None),
    ]  # fmt: skip
    expected = [("fewshot", "algorithm=fomaml", "fewshot", "algorithm=maml")]
    for word in ("maml_1", str(found[0].path), "algorithm=maml"):
        assert said(against=word) == expected
    with pytest.raises(ConfigError, match=r"against: pretrainde: neither .* did you mean pretrained\?"):
        said(against="pretrainde")
    with pytest.raises(ConfigError, match=r"methods: fewshoot: .* did you mean fewshot\?"):
        said(methods=["fewshoot"])


def test_detectable_is_that_of_the_textbook(tmp_path: Path) -> None:
    """For many users with equal numbers of targets the standard error is sd / sqrt(U); the quantiles are scipy's."""
    rng = np.random.default_rng(3)
    delta = rng.normal(0.01, 0.2, size=(800, 1))
    pair = (delta.T, np.zeros_like(delta.T))
    (entry,) = paired.differences([pair], np.full(800, 10.0), paired.Draws(4000, 0.9))
    factor = stats.norm.ppf(0.95) + stats.norm.ppf(0.8)
    assert entry["detectable"] == pytest.approx(factor * delta.std(ddof=1) / 800**0.5, rel=0.04)
    t = stats.ttest_1samp(delta[:, 0], 0.0)
    assert entry["effect_size"] == pytest.approx(t.statistic / 800**0.5)  # d_z = t / sqrt(n)
    assert entry["p_value"] == pytest.approx(t.pvalue, abs=0.03)


def test_a_true_difference_of_the_detectable_size_is_found_in_four_of_five_draws() -> None:
    """What the word means, by simulation: power 80 % at the nominal size."""
    rng, n, sd = np.random.default_rng(5), 200, 0.2
    size = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * sd / n**0.5
    draws = rng.normal(size, sd, size=(2000, n))
    found = np.abs(draws.mean(1) / (draws.std(1, ddof=1) / n**0.5)) > stats.norm.ppf(0.975)
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    sample = rng.normal(0.0, sd, size=(1, n))
    (entry,) = paired.differences([(sample, np.zeros_like(sample))], np.ones(n), paired.Draws(4000, 0.95))
    assert entry["detectable"] == pytest.approx(size * sample.std(ddof=1) / sd, rel=0.04)


def test_from_three_seeds_on_seeds_are_drawn_too() -> None:
    """Seeds that disagree widen the interval by their own spread; of two seeds only users are drawn."""
    rng = np.random.default_rng(2)
    users = rng.normal(0.3, 0.05, size=(1, 400))
    apart = users + np.array([[-0.1], [0.0], [0.1]])
    (alike, differing, two) = paired.figures(
        [np.repeat(users, 3, 0), apart, apart[:2]], np.ones(400), paired.Draws(2000, 0.95)
    )
    assert (alike["resampled"], two["resampled"]) == ("users and seeds", "users")
    wide = differing["high"] - differing["low"]
    assert wide > 10 * (alike["high"] - alike["low"])
    assert wide == pytest.approx(2 * 4.303 * 0.1 / 3**0.5, rel=0.01)  # t[2] standard errors of a mean of three
    (entry,) = paired.differences([(apart, users)], np.ones(400), paired.Draws(200, 0.95))
    assert entry["resampled"] == "users"
    assert entry["mean"] == pytest.approx(0.0, abs=1e-12)


def test_nothing_is_said_of_one_user_or_of_no_spread() -> None:
    pair = (np.array([[0.5]]), np.array([[0.2]]))
    (one,) = paired.differences([pair], np.array([4.0]), paired.Draws(50, 0.95))
    assert (one["low"], one["high"], one["effect_size"], one["detectable"]) == (None, None, None, None)
    assert one["verdict"] == "no difference shown"
    alike = np.full((1, 9), 0.1)
    (same,) = paired.differences([(alike, np.zeros_like(alike))], np.ones(9), paired.Draws(50, 0.95))
    assert same["effect_size"] is None
    (row,) = paired.figures([np.array([[0.5]])], np.array([4.0]), paired.Draws(50, 0.95))
    assert (row["sd_users"], row["sd_seeds"]) == (None, None)


def test_the_interval_is_wider_where_users_differ_more(tmp_path: Path) -> None:
    """A law of the table that shares no code with it: two sets of users of the same mean, one spread out."""
    widths = []
    for spread in (0.01, 0.2):
        rng = np.random.default_rng(1)
        few = np.clip(0.5 + spread * rng.standard_normal(200), 0, 1)
        (run,) = runs(tmp_path / str(spread), ("maml", 1, 0.5), n_users=200)
        set_values(run, "fewshot", few.tolist())
        set_values(run, "control", (few - 0.01).tolist())
        document = table([run], metric="mrr", methods=["fewshot", "control"])
        assert document["differences"][0]["mean"] == pytest.approx(0.01)
        (row,) = [row for row in document["rows"] if row["method"] == "fewshot"]
        widths.append(row["high"] - row["low"])
        assert widths[-1] == pytest.approx(2 * 1.96 * few.std(ddof=1) / np.sqrt(200), rel=0.25)  # 200 draws
    assert widths[1] > 10 * widths[0]


def test_different_monitors_need_a_metric(tmp_path: Path) -> None:
    found = runs(tmp_path / "1", ("maml", 1, 0.5))
    found += runs(tmp_path / "2", ("maml", 2, 0.5), config={"evaluation.monitor": "hr@10"})
    with pytest.raises(ConfigError, match=r"metric: hr@10, ndcg@10: .* add metric=hr@10"):
        table(found)
    assert table(found, metric="hr@5")["metric"] == "hr@5"


def test_the_same_seed_twice_is_refused(tmp_path: Path) -> None:
    found = [*runs(tmp_path / "1", ("maml", 1, 0.5)), *runs(tmp_path / "2", ("maml", 1, 0.5))]
    with pytest.raises(ConfigError, match=r"2/maml_1: the same configuration and seed as .*1/maml_1"):
        table(found)


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({}, {"algorithm.inner.steps": 3}, ["algorithm.inner.steps=null", "algorithm.inner.steps=3"]),
        ({"train.steps": 5}, {"train.steps": 6, "optimizer.lr": 0.1},
         ["optimizer.lr=null train.steps=5", "optimizer.lr=0.1 train.steps=6"]),
        ({"logger.every": 5, "cache_dir": "x"}, {"dataset.path": "y"}, None),  # moves no figure
    ],
)  # fmt: skip
def test_configurations_are_named_by_what_differs(
    first: Any, second: Any, names: list[str] | None, tmp_path: Path
) -> None:
    found = runs(tmp_path / "1", ("maml", 1, 0.5), config=first, n_users=3)
    found += runs(tmp_path / "2", ("maml", 2, 0.5), config=second, n_users=3)
    assert [one.name for one in configurations(found, usual)] == (names or ["gru4rec, maml, residual context"])


def test_what_comes_with_an_algorithm_is_said_by_its_name(tmp_path: Path) -> None:
    """meta_sgd brings inner.rates=element; an option that was set besides is named."""
    found = runs(tmp_path, ("fomaml", 1, 0.5), ("meta_sgd", 1, 0.5), n_users=3)
    assert [one.name for one in configurations(found, usual)] == ["algorithm=fomaml", "algorithm=meta_sgd"]
    found[1].document["config"]["algorithm"]["inner"]["steps"] = 3
    assert configurations(found, usual)[1].name == "algorithm=meta_sgd algorithm.inner.steps=3"
    assert "algorithm.inner.rates" in configurations(found, usual)[1].differs


def test_runs_of_different_versions_are_told(tmp_path: Path) -> None:
    found = runs(tmp_path, ("maml", 1, 0.5), ("maml", 2, 0.5), n_users=3)
    assert table(found)["notes"] == []
    (found[1].path / "environment.json").write_text('{"metarec": "0.2.0", "python": "3.11"}')
    assert "different versions (metarec)" in table(found)["notes"][0]


def test_the_pages_hold_every_row_and_difference(tmp_path: Path) -> None:
    document = table(runs(tmp_path, ("maml", 1, 0.5), ("fomaml", 1, 0.3)))
    page, paper = comparison_markdown(document), comparison_latex(document)
    for row in document["rows"]:
        shown = f"{row['mean']:.4f}".removeprefix("0")
        assert shown in page
        assert shown in paper
    assert page.count("few-shot minus control, algorithm=") == 2
    assert paper.count(r"\begin{tabular}") == paper.count(r"\end{tabular}") == 3
    assert METHODS.keys() == {row["method"] for row in document["rows"]}
