"""Rows by hand, over four training sessions: abc, abd, ab, ca, the last one the newest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from reference.baselines_reference import spelt

from metarec.baselines import BASELINES

TRAINING = "abc abd ab ca"  # a 4 times, b 3, c 2, d 1, e never


def scores(name: str, asked: str, n_support: int = 0, training: str = TRAINING, **options: Any) -> list[float]:
    s = spelt(training, asked, n_support)
    found: list[float] = BASELINES[name](s.log, **options)(s.asked)[0, 0].tolist()
    return found


def order(name: str, asked: str, n_support: int = 0, training: str = TRAINING, **options: Any) -> str:
    found = scores(name, asked, n_support, training, **options)
    assert len(set(found)) == len(found)
    return "".join("abcde"[i] for i in np.argsort(found)[::-1])


def test_popularity() -> None:
    assert scores("popularity", "ab") == [4 / 5, 3 / 5, 2 / 5, 1 / 5, 0]


def test_what_stands_outside_training_sessions_does_not_count() -> None:
    assert scores("popularity", "eeeee") == [4 / 5, 3 / 5, 2 / 5, 1 / 5, 0]


def test_recent_popularity() -> None:
    assert scores("recent_popularity", "ab", share=0.2) == [1 + 4 / 5, 3 / 5, 1 + 2 / 5, 1 / 5, 0]  # the last 2 of 10
    assert scores("recent_popularity", "ab", share=1.0) == [4 + 4 / 5, 3 + 3 / 5, 2 + 2 / 5, 1 + 1 / 5, 0]


def test_repeats() -> None:
    assert order("repeat_last", "abdcdb") == "dcbae"
    assert scores("frequent_prefix", "abdcdb") == [1 + 4 / 5, 1 + 3 / 5, 1 + 2 / 5, 2 + 1 / 5, 0]
    assert order("frequent_prefix", "abdcdb") == "dabce"


def test_frequent_support_with_a_decay() -> None:
    """The support is a, d, a, c, b; the prefix c, b is in it."""
    s = spelt(TRAINING, "ada cbe", n_support=3)
    assert [row.tolist() for row in s.asked.histories(True)] == [[1, 4, 1, 3, 2]]
    assert order("frequent_support", "ada cbe", n_support=3) == "abcde"  # 2 a, then one each, the latest first
    assert order("frequent_support", "ada cbe", n_support=3, decay=0.7) == "bacde"  # a: .7^2 + .7^4 = .73
    assert order("frequent_support", "ada cbe", n_support=3, decay=0.6) == "bcade"  # a: .6^2 + .6^4 = .49


def test_markov() -> None:
    """After a: b three times; two events on: c and d once each."""
    share = np.array([4, 3, 2, 1, 0]) / 10
    assert scores("markov", "ab") == pytest.approx(0.1 * share + [0, 3, 0, 0, 0])
    assert scores("markov", "ab", window=2, smoothing=10.0) == pytest.approx(10 * share + [0, 3, 0.5, 0.5, 0])
    assert scores("markov", "cba") == pytest.approx(0.1 * share + [0, 0, 1, 1, 0])  # of the last item, b
    assert scores("markov", "-a") == pytest.approx(0.1 * share)


def votes(found: list[float]) -> list[float]:
    """The votes as shares of the largest."""
    return [math.floor(score) / 1e9 for score in found]


def test_session_knn() -> None:
    """a is in all four: cosines 1/sqrt(3) (abc, abd) and 1/sqrt(2) (ab, ca)."""
    third, half = 1 / math.sqrt(3), 1 / math.sqrt(2)
    top = 2 * third + 2 * half
    wanted = [1, (2 * third + half) / top, (third + half) / top, third / top, 0]
    assert votes(scores("session_knn", "ab")) == pytest.approx(wanted, abs=1e-8)
    wanted = [1, 1 / 2 / (2 / 3 + 1), 1 / 3 / (2 / 3 + 1), 1 / 3 / (2 / 3 + 1), 0]  # without "ab", jaccard
    found = scores("session_knn", "ab", training="abc ade ca xx".replace("x", "-"), similarity="jaccard")
    assert votes(found)[0] == 1
    assert votes(found)[2] == pytest.approx((1 / 3 + 1 / 2) / (1 / 3 + 1 / 3 + 1 / 2), abs=1e-8)
    assert order("session_knn", "ab", k=1) == "acbde"  # ca is as near as ab and newer; b stands on its popularity
    assert order("session_knn", "ab", k=3, sample_size=1) == "acbde"  # the newest alone
    assert order("session_knn", "ab", repeats=False) == "bcdae"  # a stands on its popularity
    assert order("session_knn", "-a") == "abcde"  # nothing known: popularity


def test_session_knn_with_the_support_in_front() -> None:
    """Prefix d finds abd alone; with the support ca in front, ca is the nearest."""
    assert order("session_knn", "cac db", n_support=2, k=1) == "abdce"
    assert order("session_knn", "cac db", n_support=2, k=1, support=True) == "acbde"


def test_v_sknn() -> None:
    """History c b, weights 1/2 and 1: abc 1.5, abd 1, ab 1, ca .5; what c alone found counts half."""
    wanted = np.array([1.5 + 1 + 1 + 0.25, 3.5, 1.5 + 0.25, 1, 0])
    assert votes(scores("v_sknn", "cba")) == pytest.approx(wanted / wanted.max(), abs=1e-8)
    wanted *= [1, 1 + math.log(4 / 3), 1 + math.log(4 / 2), 1 + math.log(4), 1]
    assert votes(scores("v_sknn", "cba", idf_weighting=1)) == pytest.approx(wanted / wanted.max(), abs=1e-8)


@pytest.mark.parametrize(
    ("weighting", "of_c", "of_b"),  # ages 1 and 0 in a session of 2
    [
        ("same", 1, 1),
        ("linear", 0.9, 1),
        ("div", 1 / 2, 1),
        ("log", 1 / math.log10(2.7), 1 / math.log10(1.7)),
        ("quadratic", 1 / 4, 1),
    ],
)
def test_weights_of_v_sknn(weighting: str, of_c: float, of_b: float) -> None:
    wanted = np.array([3 * of_b + 2 * of_c, 3 * of_b + of_c, of_b + 2 * of_c, of_b, 0])
    found = votes(scores("v_sknn", "cba", weighting=weighting, weighting_score="same"))
    assert found == pytest.approx(wanted / wanted.max(), abs=1e-8)


@pytest.mark.parametrize(
    ("decay", "of_c", "of_b"),
    [
        ("same", 1, 1),
        ("linear", 0.8, 0.9),
        ("div", 1 / 2, 1),
        ("log", 1 / math.log10(3.7), 1 / math.log10(2.7)),
        ("quadratic", 1 / 4, 1),
    ],
)
def test_decays_of_v_sknn(decay: str, of_c: float, of_b: float) -> None:
    """abc shares both, and b, the later one, counts."""
    wanted = np.array([4 * of_b + of_c, 4 * of_b, 2 * of_b + of_c, of_b, 0])
    found = votes(scores("v_sknn", "cba", weighting="same", weighting_score=decay))
    assert found == pytest.approx(wanted / wanted.max(), abs=1e-8)


def test_pair_knn() -> None:
    """Pairs a>b, ab>c, a>b, ab>d, a>b, c>a; asked a: b 1 + 1 + 1, c and d 1/2 each, a 0."""
    assert scores("pair_knn", "ab") == [2, 5, 4, 3, 1]
    assert scores("pair_knn", "eb") == [2, 5, 4, 3, 1]  # nothing in common: the first stored pairs vote with 0
    assert order("pair_knn", "abcd", training="ab bc ca") == "bcade"  # 1/3 each: the earlier vote; d, e by column
    many = "ab " * 100 + "cd ce ce"  # a hundred neighbours, so d and e have no vote: e is a target more often
    assert order("pair_knn", "ab", training=many) == "bedac"
    assert order("pair_knn", "ab", training=many[:-3]) == "bdeac"  # once each: the first stored
    assert order("pair_knn", "ab", training="ab " * 100 + "ce cd") == "bedac"
