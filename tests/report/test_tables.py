"""Tables: every figure of the document shown, at most 100 columns, words only where the interval allows them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from reference.small_documents import CONDITIONS, PANEL, TUNING, curved, document
from rich.console import Console

from metarec.baselines import NAMES
from metarec.metrics import METRICS, heading
from metarec.report.labels import LABELS, brief, groups, label, labels_of
from metarec.report.tables import WIDTH, funnel_table, plain_text, results_table, show


def line_of(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(label))


def test_methods_differences_shares_and_conditions() -> None:
    data = document(**CONDITIONS)
    text = plain_text(results_table(data, title="ml1m, fomaml", headline=("hr@10", "ndcg@10")))
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "\x1b" not in text
    assert "…" not in text
    for said in (*(label(m) for m in data["metrics"]), "share of gap: few-shot", "share of gap: control"):
        assert any(line.startswith(said) for line in lines), said
    few = line_of(text, "few-shot (meta)")
    low, high = data["intervals"]["fewshot"]["ndcg@10"]
    figures = data["metrics"]["fewshot"]
    for shown in (figures["hr@1"], figures["hr@20"], figures["mrr"], figures["ndcg@10"]):
        assert f"{shown:.4f}".lstrip("0") in few
    assert f"[{low:.3f},{high:.3f}]".replace("0.", ".") in few
    gain = data["differences"]["gain_over_control"]["hr@10"]
    row = line_of(text, "over control")
    assert f"{gain['mean']:+.4f}".replace("0.", ".", 1) in row
    assert "better" in row
    assert "gain of few-shot" in text
    assert "control over pretrained" in text
    assert "60 users, 60 episodes, 600 targets; unknown targets 0.00 %" in text
    assert f"corrected over all {4 * len(METRICS)} differences (4 at {len(METRICS)} metrics)" in text
    assert "split test of user_disjoint; K=5, Q=10; ties conservative; the log has no clock" in text
    assert "LEAKY" in text
    assert "step size 0.3, 5 steps" in text
    assert "seeds: run 1, split 20260107" in text
    assert "coverage@10: few-shot .400" in text
    assert "repeat targets:" in text
    assert "novel targets:" in text


def test_the_whole_panel_stands_in_its_groups() -> None:
    text = plain_text(results_table(document(methods=PANEL, **CONDITIONS, **TUNING)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "…" not in text
    first = [lines.index(line_of(text, label(m))) for m in PANEL]
    assert first == sorted(first)  # PANEL is in the order of the table
    for after in (list(NAMES)[-1], "in_context_user", "scratch", "fewshot"):
        below = lines[lines.index(line_of(text, label(after))) + 1]
        assert set(below) <= {"─", " "}, after  # a rule between groups
    for method in PANEL:
        if method not in ("fewshot", "bayes_zeroshot", "bayes_fewshot"):
            assert line_of(text, f"over {brief(method)}")
    assert "V-SKNN tuned on 75 validation users: k 100, sample 500 (NDCG@10 .2100, best of 2)" in text
    assert "an equal budget for every tuned method: 2 settings" in text
    assert "step size 0.3" not in text  # the control is among the tuned


def test_words_only_where_the_interval_is_without_zero() -> None:
    data = document()
    entry = data["differences"]["gain_over_control"]["hr@1"]
    entry.update(low=-0.01, high=0.02, verdict="no difference shown")
    row = line_of(plain_text(results_table(data, headline=("hr@1", "hr@5"))), "over control")
    assert "none" in row.split()
    assert row.split().count("better") <= 1  # of hr@5


def test_a_small_or_silent_test_set_says_what_it_could_have_shown() -> None:
    small = document(n_users=60)
    known = small["differences"]["gain_over_control"]["hr@10"]["detectable"]
    text = plain_text(results_table(small, headline=("hr@10",)))
    assert (
        f"smallest gain over control shown with 80 % power by as many users: HR@10 {known:.3f}".replace("0.", ".")
        in text
    )
    large = document(n_users=250)
    assert "80 % power" not in plain_text(results_table(large))
    for metric in ("hr@1", "hr@5"):
        large["differences"]["gain_over_control"][metric]["verdict"] = "no difference shown"
    assert "80 % power" in plain_text(results_table(large))


def test_slices_and_curves() -> None:
    data = document(sliced=True)
    data["k_curve"] = curved()
    text = plain_text(results_table(data, headline=("hr@10", "ndcg@10")))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "few-shot by events before the query, gain over control" in text
    assert "few-shot by training events of the target, gain over control" in text
    entry = data["slices"]["history_length"][0]
    row = line_of(text, entry["label"])
    assert f"{entry['metrics']['fewshot']['ndcg@10']:.4f}".lstrip("0") in row
    assert f"{entry['gain']['hr@10']['mean']:+.4f}".replace("0.", ".", 1) in row
    assert f"{entry['targets']:,}" in row
    assert "NDCG@10 by support pairs K; 40 users, 400 targets" in text
    points = [f"{at['mean']:.4f}".lstrip("0") for at in data["k_curve"]["methods"]["control"]["ndcg@10"]]
    assert any(line.startswith("fine-tune control") and all(p in line for p in points) for line in text.splitlines())
    assert line_of(text, "few-shot, K over 0: low")


def test_divergence_is_one_line_where_it_was_measured() -> None:
    found = {"pretrained": {"cross_entropy": 3.21, "kl": 0.0}, "fewshot": {"cross_entropy": 2.5, "kl": 0.125}}
    text = plain_text(results_table(document(divergence=found), title="t", headline=("hr@10", "ndcg@10")))
    said = "cross-entropy/KL from the pretrained model: pretrained 3.2100/.0000, few-shot 2.5000/.1250"
    assert said in " ".join(text.split())
    assert "nats" not in plain_text(results_table(document(), title="t", headline=("hr@10", "ndcg@10")))


def test_a_run_without_bayes_or_control_and_one_user() -> None:
    text = plain_text(results_table(document(n_users=1, methods=("zeroshot", "fewshot"))))
    assert "share of gap" not in text
    assert "control" not in text
    assert "LEAKY" not in text
    assert "[none]" in text
    assert "better" not in text


def test_supervised_training_is_compared_with_its_panel() -> None:
    text = plain_text(results_table(document(methods=("popularity", "control", "zeroshot"))))
    assert "gain of zero-shot" in text
    assert line_of(text, "over popularity")
    assert "(meta)" not in text


@pytest.mark.parametrize("methods", [PANEL, ("pretrained", "control", "zeroshot", "fewshot")])
def test_a_narrow_terminal_cuts_no_figure(methods: tuple[str, ...]) -> None:
    data = document(methods=methods, sliced=True)
    data["k_curve"] = curved()
    stream = io.StringIO()
    Console(file=stream, width=80).print(results_table(data))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in stream.getvalue()
    assert lines[0].split() == [heading(metric) for metric in METRICS]


def test_the_headline_is_chosen_by_the_caller() -> None:
    row = line_of(plain_text(results_table(document(), headline=("hr@1", "mrr"))), "few-shot (meta)")
    cells = row.split()
    assert [cell.startswith("[") for cell in cells].count(True) == 2
    with pytest.raises(ValueError, match="at most two"):
        results_table(document(), headline=("hr@1", "hr@5", "mrr"))
    with pytest.raises(ValueError, match="at most two"):
        results_table(document(), headline=("recall",))


def test_a_classification_shows_its_accuracy() -> None:
    data = document(
        methods=("pretrained", "control", "zeroshot", "fewshot"),
        protocol={**CONDITIONS["protocol"], "classification": True},
    )
    text = plain_text(results_table(data))
    assert text.splitlines()[0].split() == ["ACCURACY", "MRR"]
    assert "random weights" in text
    assert "60 tasks, 600 targets" in text


def test_output_that_is_no_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    show(results_table(document()), stream)
    assert "\x1b" not in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= WIDTH
    show(funnel_table([]))
    assert "\x1b" not in capsys.readouterr().out


def test_funnel() -> None:
    steps: list[dict[str, Any]] = [
        {"step": "read", "rows": 3655, "users": 822, "items": 776, "sessions": None, "dropped": 0, "why": "events.csv"},
        {"step": "sessions of two or more", "rows": 2894, "users": 378, "items": 600, "sessions": 561, "dropped": 761,
         "why": "a gap of 30 minutes ends a session, shorter ones have no pair"},
    ]  # fmt: skip
    counts = {"pairs": {"train": 693, "val": 545, "test": 1095}, "unknown_target_share": {"val": 0.01, "test": 0.025}}
    text = plain_text(funnel_table(steps, counts))
    assert "3,655" in text
    assert "1,095" in text
    assert "0.0250" in text
    assert "unknown target share" in text
    assert max(map(len, text.splitlines())) <= WIDTH


GENERATED = ("mean_teacher", "other_support", "inner_loop", "generated", "refined", "teacher")  # of algorithm=generator


def test_labels_and_groups() -> None:
    assert [method for group in groups(PANEL) for method in group] == list(PANEL)
    assert len(groups(PANEL)) == 5
    assert groups(("fewshot", "control", "own")) == [["own", "control", "fewshot"]]
    assert groups(()) == []
    assert labels_of(("my_method", "zeroshot")) == {"my_method": "my method", "zeroshot": "zero-shot"}
    assert {*PANEL, *GENERATED} == {*LABELS, *NAMES}
    assert groups(GENERATED) == [list(GENERATED)]
    assert len(LABELS) + len(NAMES) == len(PANEL) + len(
        GENERATED
    )  # no row takes the name of a method that is no baseline
    assert max(len(label(method)) for method in (*PANEL, *GENERATED)) <= 22
