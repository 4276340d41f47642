"""Variants against their controls: figures and differences by hand, perplexities by their definition, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.small_reports import write_run

from metarec.errors import ConfigError
from metarec.report.contrasts import contrasts
from metarec.report.contrasts_text import contrasts_page
from metarec.report.finished import Run, read_run

CONFIG = {"evaluation": {"bootstrap": 400, "confidence": 0.95, "monitor": "mrr"}, "seeds": [1, 2], "reported": None}
BLOCK = ("wikitext2", "nested")


def run(path: Path, seed: int, **extra: Any) -> Run:
    write_run(path, seed=seed, n_users=3, extra=extra)
    return read_run(path, path.name)


def text(*costs: float, n: tuple[int, ...] = (1, 3)) -> dict[str, Any]:
    names = [f"d{i}" for i in range(len(costs))]
    return {"by_document": {"names": names, "n": list(n), "cross_entropy": {"zeroshot": list(costs)}}}


def cells_of_text(tmp_path: Path) -> dict[str, Any]:
    """Two documents of one and three characters; variant a costs 1, 2 and 2, 1 nats, b a half more."""
    a = [run(tmp_path / "a1", 1, perplexity=text(1.0, 2.0)), run(tmp_path / "a2", 2, perplexity=text(2.0, 1.0))]
    b = [run(tmp_path / "b1", 1, perplexity=text(1.5, 2.5)), run(tmp_path / "b2", 2, perplexity=text(2.5, 1.5))]
    return {BLOCK: [(("a", "supervised"), a), (("b", "supervised"), b)]}


def made(blocks: Any, *asked: list[str], metric: str = "mrr", **config: Any) -> dict[str, Any]:
    found = contrasts(blocks, asked, metric=metric, failures={}, config={**CONFIG, **config})
    document: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    return document


def test_perplexity_is_of_characters_and_its_difference_of_nats(tmp_path: Path) -> None:
    (block,) = made(cells_of_text(tmp_path), ["a", "b"], metric="perplexity")["blocks"]
    a, b = block["rows"]
    each = [math.exp((1 + 3 * 2) / 4), math.exp((2 + 3 * 1) / 4)]
    assert a["of_seeds"] == pytest.approx(each)
    assert a["mean"] == pytest.approx(math.exp(np.mean([7 / 4, 5 / 4])))  # over characters and seeds, then exp
    assert a["sd_seeds"] == pytest.approx(np.std(each, ddof=1))
    assert b["mean"] == pytest.approx(a["mean"] * math.exp(0.5))
    assert a["low"] <= a["mean"] <= a["high"]
    (one,) = block["contrasts"]
    assert (one["of"], one["against"]) == (["a", "supervised"], ["b", "supervised"])
    assert one["mean"] == one["low"] == one["high"] == pytest.approx(0.5)  # saved in every document and seed
    assert one["verdict"] == "better"  # less perplexity is better
    assert one["per_cent"] == pytest.approx(100 * (a["mean"] / b["mean"] - 1))
    assert (block["unit"], block["units"], block["targets"]) == ("documents", 2, 4)


def test_of_a_log_the_figures_are_those_of_few_shot_and_what_does_not_adapt_is_judged_by_zero_shot(
    tmp_path: Path,
) -> None:
    slow = {"cost": {"seconds_per_step": 0.3, "growth_bytes": 2**21}}
    a, b = [run(tmp_path / "a1", 1, **slow)], [run(tmp_path / "b1", 1)]
    for one, values in ((a[0], [0.1, 0.2, 0.6]), (b[0], [0.1, 0.1, 0.1])):
        one.table["fewshot.mrr"] = np.array(values)
    del b[0].document["metrics"]["fewshot"]
    b[0].table["zeroshot.mrr"] = np.array([0.2, 0.2, 0.2])
    (block,) = made({("log", "gru4rec"): [(("a", "fomaml"), a), (("b", "fomaml"), b)]}, ["a", "b"])["blocks"]
    assert [(row["method"], row["mean"]) for row in block["rows"]] == [
        ("fewshot", pytest.approx(0.3)), ("zeroshot", pytest.approx(0.2)),
    ]  # fmt: skip
    (one,) = block["contrasts"]
    assert one["mean"] == pytest.approx(0.1)
    assert "per_cent" not in one
    assert (one["time_ratio"], one["memory_ratio"]) == (pytest.approx(3.0), pytest.approx(2.0))


def test_a_pair_is_tested_where_both_are_and_of_one_algorithm(tmp_path: Path) -> None:
    runs = {name: [run(tmp_path / name, 1)] for name in "abcd"}
    blocks = {
        ("log", "m"): [(("a", "maml"), runs["a"]), (("b", "maml"), runs["b"]), (("b", "anil"), runs["c"])],
        ("other", "m"): [(("a", "maml"), runs["d"])],
    }
    first, second = made(blocks, ["a", "b"])["blocks"]
    assert [(one["of"], one["against"]) for one in first["contrasts"]] == [(["a", "maml"], ["b", "maml"])]
    assert second["contrasts"] == []


def test_corrected_over_the_contrasts_of_a_block(tmp_path: Path) -> None:
    blocks = cells_of_text(tmp_path)
    (alone,) = made(blocks, ["a", "b"], metric="perplexity")["blocks"][0]["contrasts"]
    both = made(blocks, ["a", "b"], ["b", "a"], metric="perplexity")["blocks"][0]["contrasts"]
    assert both[0]["p_holm"] == pytest.approx(min(1.0, 2 * alone["p_value"]))
    assert [one["verdict"] for one in both] == ["better", "worse"]


def test_other_documents_and_none_at_all_are_refused(tmp_path: Path) -> None:
    blocks = cells_of_text(tmp_path)
    other = [run(tmp_path / "c1", 1, perplexity=text(1.0, 2.0, n=(2, 2)))]
    with pytest.raises(ConfigError, match="other test targets"):
        made({BLOCK: [*blocks[BLOCK], (("c", "supervised"), other)]}, ["a", "b"], metric="perplexity")
    none = [run(tmp_path / "d1", 1)]
    with pytest.raises(ConfigError, match="has measured none"):
        made({BLOCK: [(("d", "supervised"), none)]}, ["a", "b"], metric="perplexity")


def test_the_page_says_it_in_words_and_shows_what_others_reported(tmp_path: Path) -> None:
    blocks = cells_of_text(tmp_path)
    document = made(blocks, ["a", "b"], metric="perplexity", reported="nested_wikitext2")
    page = contrasts_page(document, blocks)
    for whole in (page.html(), page.markdown()):
        assert "a minus b: better" in whole
        assert "reported by others, not measured here" in whole
        assert "133.62" in whole
        assert "+.50000" in whole
    assert "<svg" in page.html()
    assert "lower is better" in page.latex()
