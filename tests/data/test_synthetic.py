"""The embedded worlds: the law of the table, the log drawn from it, options refused, files."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from metarec.data import synthetic
from metarec.data.spec import WorldSpec
from metarec.data.synthetic import World, build_world, event_blocks, generate, spec_problems
from metarec.errors import ConfigError, DataError

KINDS = pytest.mark.parametrize("kind", ["preference", "transition"])
TINY = WorldSpec(n_users=60, n_items=12, n_types=3, n_topics=4, concentration=0.5)


def numbers(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User number, item number, whether the event opens a session."""
    user = np.array([int(name[1:]) for name in table["user_id"].to_pylist()])
    item = np.array([int(name[1:]) for name in table["item_id"].to_pylist()])
    session = table["session_id"].to_numpy()
    return user, item, np.r_[True, session[1:] != session[:-1]]


@KINDS
def test_table_is_a_distribution_without_repeats(kind: str) -> None:
    world = build_world(WorldSpec(kind=kind))
    assert world.next_item.shape == (8, 200, 200) and world.next_item.dtype == np.float64
    assert np.allclose(world.next_item.sum(-1), 1, atol=1e-12) and np.allclose(world.start.sum(-1), 1, atol=1e-12)
    assert (np.diagonal(world.next_item, axis1=1, axis2=2) == 0).all()
    off_diagonal = world.next_item + np.eye(200)
    assert (off_diagonal > 0).all(), "popularity reaches every other item"


def test_preference_is_the_published_mixture() -> None:
    """Take the table apart: .6 taste (popularity inside each of 20 topics) + .3 shared transitions + .1 popularity."""
    world = build_world(WorldSpec(kind="preference"))
    popularity = world.start[0]
    everywhere = np.zeros((8, 200))  # .6 taste + .1 popularity: what all rows of a type share
    for _ in range(50):  # the current item's mass went to the others: row i was divided by 1 - everywhere[t, i]
        undone = world.next_item * (1 - everywhere)[..., None]
        everywhere = np.median(undone, axis=1)  # the median row has j neither as itself nor as a transition
    assert np.allclose(everywhere.sum(-1), 0.7, atol=1e-9)
    items = np.arange(200)
    shared = undone - everywhere[:, None]
    shared[:, items, items] = 0
    assert np.allclose(np.sort(shared, axis=-1)[..., -3:], 0.1, atol=1e-9), "3 successors, .1 each"
    assert np.allclose(np.sort(shared, axis=-1)[..., :-3], 0, atol=1e-9)
    assert np.allclose(shared, shared[0], atol=1e-9), "the same for every type"
    lift = (everywhere - 0.1 * popularity) / popularity  # constant inside a topic, for all types at once
    topics = np.unique(lift.T.round(9), axis=0, return_counts=True)[1]
    assert topics.tolist() == [10] * 20


def test_transition_is_the_published_mixture() -> None:
    world = build_world(WorldSpec(kind="transition"))
    popularity = world.start[0]
    for item in range(200):
        kept = 1 - 0.2 * popularity[item]
        row = world.next_item[:, item]
        successor = row.argmax(-1)
        assert np.allclose(row[np.arange(8), successor], (0.8 + 0.2 * popularity[successor]) / kept)
        assert len(set(successor.tolist())) <= 4
    several = [len(set(world.next_item[:, item].argmax(-1).tolist())) for item in range(200)]
    # 8 types throw into 4 bins: 4 * (1 - .75^8) = 3.5995 occupied on average, sd of the mean .04
    assert np.mean(several) == pytest.approx(3.5995, abs=0.13)


@KINDS
def test_log_has_the_shape_that_was_asked_for(kind: str) -> None:
    table, world = generate(WorldSpec(kind=kind, n_users=500))
    assert table.column_names == ["user_id", "item_id", "timestamp", "session_id"]
    assert [str(t) for t in table.schema.types] == ["string", "string", "int64", "int64"]
    user, item, opens = numbers(table)
    assert (np.diff(user) >= 0).all() and set(user.tolist()) == set(range(500))
    assert [world.user_ids[0], world.item_ids[3]] == ["u0000000", "i003"]
    assert not ((item[1:] == item[:-1]) & ~opens[1:]).any()
    sessions = np.bincount(user[opens])
    lengths = np.diff(np.r_[np.flatnonzero(opens), len(user)])
    assert (sessions.min(), sessions.max(), lengths.min(), lengths.max()) == (8, 12, 2, 4)
    for counts, values in ((sessions, 5), (lengths, 3)):  # uniform: 4 standard deviations of a share
        share = np.unique(counts, return_counts=True)[1] / len(counts)
        assert (abs(share - 1 / values) < 4 * np.sqrt((1 / values) * (1 - 1 / values) / len(counts))).all()
    order = table["timestamp"].to_numpy()
    for one in (0, 17, 499):
        assert order[user == one].tolist() == list(range((user == one).sum()))


def chi_square_z(counts: np.ndarray, probability: np.ndarray) -> float:
    """Pearson's statistic over all cells with an expected count of 5 or more, as a normal deviate."""
    expected = counts.sum(-1, keepdims=True) * probability
    use = expected >= 5
    statistic = ((counts - expected)[use] ** 2 / expected[use]).sum()
    degrees = use.sum() - use.any(-1).sum()  # the rare cells left out make this slightly conservative
    return float((statistic - degrees) / np.sqrt(2 * degrees))


@KINDS
def test_events_follow_the_law(kind: str) -> None:
    table, world = generate(replace(TINY, kind=kind, n_users=8000))
    user, item, opens = numbers(table)
    types = world.user_types[user]
    after = np.flatnonzero(~opens)
    pairs = np.zeros((3, 12, 12))
    np.add.at(pairs, (types[after], item[after - 1], item[after]), 1)
    firsts = np.zeros((3, 12))
    np.add.at(firsts, (types[opens], item[opens]), 1)
    assert abs(chi_square_z(pairs, world.next_item)) < 4
    assert abs(chi_square_z(firsts, world.start)) < 4
    assert (pairs[world.next_item == 0] == 0).all()
    share = np.bincount(world.user_types, minlength=3) / 8000
    assert (abs(share - 1 / 3) < 4 * np.sqrt(2 / 9 / 8000)).all()
    # planted faults: the law of another type, a law 2 % flatter
    assert chi_square_z(pairs, np.roll(world.next_item, 1, axis=0)) > 50
    assert chi_square_z(pairs, 0.98 * world.next_item + 0.02 / 12) > 4


def test_bisection_draws_the_first_column_beyond() -> None:
    generator = np.random.default_rng(3)
    for columns in (1, 2, 3, 5, 8, 13):
        probability = generator.random((4, columns)) * (generator.random((4, columns)) < 0.6)
        probability[:, generator.integers(columns)] += 0.1
        cdf = synthetic._cdf(probability / probability.sum(-1, keepdims=True))
        row = generator.integers(0, 4, 300)
        uniform = np.r_[generator.random(298), 0.0, np.nextafter(1, 0)]
        drawn = synthetic._draw(cdf, row, uniform)
        assert drawn.tolist() == [int((cdf[r] <= u).sum()) for r, u in zip(row, uniform, strict=True)]
        assert (probability[row, drawn] > 0).all()


@KINDS
def test_same_seed_same_log_and_users_do_not_depend_on_their_number(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(TINY, kind=kind)
    table, world = generate(spec)
    again, _ = generate(spec)
    assert table.equals(again)
    monkeypatch.setattr(synthetic, "USERS_PER_BLOCK", 64)  # 60 users: one block; 200: four
    wide, wide_world = generate(replace(spec, n_users=200))
    assert np.array_equal(world.next_item, wide_world.next_item)
    assert np.array_equal(world.user_types, wide_world.user_types[:60])
    assert wide.slice(0, len(table)).to_pylist() == table.to_pylist()
    assert len(wide["user_id"].unique()) == 200
    other, other_world = generate(replace(spec, seed=8))
    assert not table.equals(other) and not np.array_equal(world.next_item, other_world.next_item)


def test_default_log_is_the_one_whose_figures_are_published() -> None:
    """A change of this digest moves every figure measured on the embedded worlds."""
    digests = {}
    for kind in ("preference", "transition"):
        table, _ = generate(WorldSpec(kind=kind, n_users=100))
        digests[kind] = hashlib.sha256("".join(table["item_id"].to_pylist()).encode()).hexdigest()[:16]
    assert digests == {"preference": "f2c8887bb54eba9d", "transition": "f3342bf9e8856b77"}


def test_six_thousand_users_take_about_a_second() -> None:
    begin = time.perf_counter()
    table, _ = generate(WorldSpec())
    assert table.num_rows == pytest.approx(6000 * 30, rel=0.02)
    assert time.perf_counter() - begin < 5  # measured: 0.1 s; the rest is for a busy machine


def test_blocks_are_the_log() -> None:
    table, world = generate(TINY)
    assert pa.concat_tables(event_blocks(world)).equals(table)


@KINDS
def test_extremes_are_still_distributions(kind: str) -> None:
    for change in (
        {"noise": 0.0},
        {"noise": 1.0},
        {"n_types": 1},
        {"n_topics": 12},
        {"n_topics": 1},
        {"n_items": 5, "n_topics": 5},
        {"concentration": 1e-6},
        {"min_sessions": 1, "max_sessions": 1, "min_events": 2, "max_events": 2},
    ):
        table, world = generate(replace(TINY, kind=kind, **change))  # type: ignore[arg-type]
        assert np.isfinite(world.next_item).all() and np.allclose(world.next_item.sum(-1), 1)
        assert table.num_rows >= 2 * 60


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"kind": "preferences"}, "kind"),
        ({"n_users": 0}, "n_users"),
        ({"n_items": 4, "n_topics": 2}, "n_items"),
        ({"n_items": 100_000}, "n_items"),
        ({"n_types": 0}, "n_types"),
        ({"n_topics": 0}, "n_topics"),
        ({"n_topics": 201}, "n_topics"),
        ({"concentration": 0.0}, "concentration"),
        ({"concentration": float("nan")}, "concentration"),
        ({"min_sessions": 0}, "min_sessions"),
        ({"min_sessions": 13}, "max_sessions"),
        ({"min_events": 1}, "min_events"),
        ({"max_events": 1}, "max_events"),
        ({"noise": 1.5}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_option_names_its_key(change: dict[str, object], key: str) -> None:
    spec = replace(WorldSpec(), **change)  # type: ignore[arg-type]
    assert [problem.where for problem in spec_problems(spec)] == [f"dataset.world.{key}"]
    with pytest.raises(ConfigError, match=rf"^dataset\.world\.{key}: .+: .+ -- .+"):
        build_world(spec)


def test_all_bad_options_are_found_together() -> None:
    spec = WorldSpec(kind="transitions", n_users=0, noise=2.0)
    problems = [str(problem) for problem in spec_problems(spec)]
    assert len(problems) == 3 and "did you mean transition?" in problems[0]
    assert spec_problems(WorldSpec(kind="transition", n_topics=0)) == [], "topics belong to the preference world only"


@KINDS
def test_file_round_trip(kind: str, tmp_path: Path) -> None:
    world = build_world(replace(TINY, kind=kind))
    world.save(tmp_path / "world.npz")
    back = World.load(tmp_path / "world.npz")
    assert back.spec == world.spec
    for name in ("next_item", "start", "user_types"):
        assert np.array_equal(getattr(back, name), getattr(world, name))


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "world.npz"
    world = build_world(TINY)
    with pytest.raises(DataError, match="is not a readable world"):
        World.load(path)
    world.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is not a readable world"):
        World.load(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DataError, match="is not a readable world"):
        World.load(path)
    np.savez(path, spec=np.array("{}"))
    with pytest.raises(DataError, match="is not a readable world"):
        World.load(path)
    np.savez(path, spec=np.array(["a", None], object))  # a pickled array is never opened
    with pytest.raises(DataError, match="is not a readable world"):
        World.load(path)
    replace(world, start=world.start[:, :3]).save(path)
    with pytest.raises(DataError, match="do not fit"):
        World.load(path)
