"""Omniglot: the real archive and its split; episodes drawn, turned, labelled and hashed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from reference.small_images import N_CLASSES, N_DRAWINGS, SMALL, table, write

from metarec.core.batch import EpisodeBatch
from metarec.data import omniglot
from metarec.data.omniglot import Drawn, ImageEpisodes, Omniglot
from metarec.data.spec import ImageSpec


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Omniglot:
    return Omniglot.load(write(tmp_path_factory.mktemp("omniglot")), SMALL)


@pytest.fixture(scope="module")
def real(data_dir: Path) -> Omniglot:
    return Omniglot.load(data_dir / "omniglot", ImageSpec())


def number(image: torch.Tensor) -> int:
    """Which of the small images it is, class * N_DRAWINGS + drawing."""
    return int((image.flatten()[:10].long() << torch.arange(10)).sum())


# -- the real archive -----------------------------------------------------------------------------------------------


def test_the_published_numbers(real: Omniglot) -> None:
    """1,623 characters of 20 drawings; 1,028, 172 and 423 of them, and four times as many to train on."""
    assert real.images.shape == (1_623, 20, 28, 28)
    assert {split: len(own) for split, own in real.classes.items()} == {"train": 1_028, "val": 172, "test": 423}
    assert sorted(np.concatenate(list(real.classes.values())).tolist()) == list(range(1_623))
    assert real.counts["classes"] == {"train": 4_112, "val": 172, "test": 423}
    assert real.counts["fixed episodes"] == {"val": 200, "test": 600}
    assert real.funnel[0]["rows"] == 32_460


def test_one_image_straight_from_the_file(real: Omniglot, data_dir: Path) -> None:
    """Class and drawing, ink and place of each pixel, read apart."""
    with np.load(data_dir / "omniglot" / "omniglot28.npz") as held:
        packed, class_id, drawer = held["images_packed"], held["class_id"], held["drawer"]
    for wanted_class, wanted_drawer in ((0, 1), (7, 3), (1_622, 20)):
        ((row,),) = np.nonzero((class_id == wanted_class) & (drawer == wanted_drawer))
        bits = [[(byte >> (7 - bit)) & 1 for bit in range(8)] for byte in packed[row].tolist()]
        pixels = np.array(bits).reshape(28, 28)
        assert np.array_equal(real.images[wanted_class, wanted_drawer - 1], pixels)
        assert 20 < pixels.sum() < 300
    assert int(real.images[7, 2].sum()) == 78  # the drawing by drawer 3 of class 7, counted with numpy alone
    mean = float(real.images.mean())
    assert 0.05 < mean < 0.25  # 1 is ink


def test_classes_of_a_split_are_those_of_the_list(real: Omniglot, data_dir: Path) -> None:
    listed = pq.read_table(data_dir / "omniglot" / "classes.parquet").to_pylist()
    for split, own in real.classes.items():
        assert own.tolist() == sorted(row["class_id"] for row in listed if row["vinyals_split"] == split)


def test_no_class_of_validation_or_test_is_trained_on(real: Omniglot) -> None:
    """Over 300 outer steps, which between them see nearly every training class."""
    seen = np.unique(np.concatenate([real.training(1, step, 16).class_id.ravel() for step in range(300)]))
    fixed = {split: np.unique(real.fixed[split].class_id) for split in ("val", "test")}
    assert set(seen.tolist()) <= set(real.classes["train"].tolist())
    assert len(seen) > 1_027 * 0.99
    assert not np.intersect1d(seen, fixed["val"]).size
    assert not np.intersect1d(seen, fixed["test"]).size
    assert not np.intersect1d(fixed["val"], fixed["test"]).size


def test_the_fixed_episodes_are_those_of_every_machine(real: Omniglot, data_dir: Path) -> None:
    """What a figure was measured on, by its hash; another seed draws others."""
    again = Omniglot.load(data_dir / "omniglot", ImageSpec())
    other = Omniglot.load(data_dir / "omniglot", ImageSpec(seed=2))
    for split in ("val", "test"):
        assert real.episodes(split).sha256 == again.episodes(split).sha256 == SHA256[split]
        assert other.episodes(split).sha256 != SHA256[split]
    assert real.contents == again.contents == other.contents
    assert real.fingerprint == again.fingerprint != other.fingerprint  # a control is tuned on these episodes


SHA256 = {
    "val": "a91b05fa21fb3ccbdb4b8066a4d4617a7e7f4da670282aee11d49f91d9316fa0",
    "test": "a4c9e212cd49402b456e94d9d1a2f88b5280b4a20b433b4c9508e05d5e4426bc",
}


# -- episodes -------------------------------------------------------------------------------------------------------


def check_episodes(data: Omniglot, drawn: Drawn, split: str, turns: set[int]) -> None:
    """Distinct classes in an episode, K + Q different drawings of each, classes of the split, turns of the set."""
    spec = data.spec
    n_each = spec.n_shot + spec.n_query
    assert drawn.drawing.shape == (len(drawn), spec.n_way, n_each)
    for task in range(len(drawn)):
        own = list(zip(drawn.class_id[task].tolist(), drawn.turn[task].tolist(), strict=True))
        assert len(set(own)) == spec.n_way
        assert {turn for _, turn in own} <= turns
        assert {class_id for class_id, _ in own} <= set(data.classes[split].tolist())
        for way in range(spec.n_way):
            assert len(set(drawn.drawing[task, way].tolist())) == n_each  # support and query share none
    assert drawn.drawing.min() >= 0
    assert drawn.drawing.max() < data.images.shape[1]


def test_training_episodes(small: Omniglot) -> None:
    drawn = small.training(1, 5, 40)
    check_episodes(small, drawn, "train", {0, 1, 2, 3})
    assert set(drawn.turn.ravel().tolist()) == {0, 1, 2, 3}
    upright = replace(small, spec=replace(SMALL, rotations=False)).training(1, 5, 40)
    check_episodes(small, upright, "train", {0})
    # without turns a class may not stand twice in an episode
    assert all(len(set(row)) == 3 for row in upright.class_id.tolist())


@pytest.mark.parametrize("split", ["val", "test"])
def test_fixed_episodes(split: str, small: Omniglot) -> None:
    """They stand upright, whatever training does."""
    drawn = small.episodes(split)
    assert len(drawn) == {"val": 7, "test": 5}[split]
    check_episodes(small, drawn, split, {0})


def test_every_class_and_drawing_is_drawn_alike(small: Omniglot) -> None:
    """Within five standard deviations of an even draw."""
    drawn = small.training(1, 0, 3_000)
    turned = drawn.class_id * 4 + drawn.turn
    for counts, share in (
        (np.unique(turned, return_counts=True)[1], 1 / 24),
        (np.bincount(drawn.drawing[..., 0].ravel()), 1 / N_DRAWINGS),
    ):
        expected = 9_000 * share
        assert len(counts) == round(1 / share)
        assert np.abs(counts - expected).max() < 5 * (expected * (1 - share)) ** 0.5


def check_images(data: Omniglot, drawn: Drawn, batch: EpisodeBatch) -> None:
    """Each image is the drawing that it should be, turned as it should be, beside the right label."""
    k = drawn.n_shot
    for part, places in ((batch.support, range(k)), (batch.query, range(k, drawn.drawing.shape[2]))):
        for task in range(len(drawn)):
            n = 0
            for way in range(drawn.class_id.shape[1]):
                for place in places:
                    original = data.images[drawn.class_id[task, way], drawn.drawing[task, way, place]]
                    wanted = np.rot90(original, drawn.turn[task, way])
                    assert np.array_equal(part.images[task, n, 0].numpy(), wanted)
                    assert part.target[task, n] == way + 1
                    n += 1
            assert part.images[task].shape == (n, 1, 28, 28)
            assert part.target[task].shape == (n,)


def test_images_and_labels(small: Omniglot) -> None:
    for drawn in (small.training(3, 2, 6), small.episodes("val")):
        batch = small.batch(drawn)
        check_images(small, drawn, batch)
        assert batch.support.images.dtype == torch.float32
        assert batch.support.target.dtype == torch.int64
        assert set(batch.query.images.unique().tolist()) == {0.0, 1.0}
        assert batch.user.tolist() == list(range(len(drawn)))


def test_drawings_are_in_the_order_of_their_drawers(small: Omniglot) -> None:
    """Whatever order the file has."""
    for class_id in range(N_CLASSES):
        for drawing in range(N_DRAWINGS):
            image = torch.from_numpy(small.images[class_id, drawing])
            assert number(image) == class_id * N_DRAWINGS + drawing


def test_classes_may_be_listed_in_any_order(small: Omniglot, tmp_path: Path) -> None:
    listed = {name: values[::-1] for name, values in table().items()}
    found = Omniglot.load(write(tmp_path, listed=listed), SMALL)
    assert {split: own.tolist() for split, own in found.classes.items()} == {
        "train": list(range(6)), "val": list(range(6, 10)), "test": list(range(10, 14))
    }  # fmt: skip
    assert found.fingerprint == small.fingerprint


def test_training_is_a_function_of_seed_and_step(small: Omniglot) -> None:
    """Not of what was drawn before; another seed or step draws others."""
    first = small.training(1, 3, 4)
    small.training(9, 9, 9)
    assert small.training(1, 3, 4).sha256 == first.sha256
    hashes = {small.training(seed, step, 4).sha256 for seed in range(4) for step in range(25)}
    assert len(hashes) == 100


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_chunks_of_a_meta_batch_are_parts_of_it(size: int, small: Omniglot) -> None:
    """Bit for bit, and the numbers of the tasks go on."""
    drawn = small.training(1, 3, 5)
    whole = small.batch(drawn)
    parts = [small.batch(drawn, slice(begin, begin + size)) for begin in range(0, 5, size)]
    for kind in ("support", "query"):
        assert torch.equal(torch.cat([getattr(p, kind).images for p in parts]), getattr(whole, kind).images)
        assert torch.equal(torch.cat([getattr(p, kind).target for p in parts]), getattr(whole, kind).target)
    assert torch.cat([p.user for p in parts]).tolist() == list(range(5))


def test_fixed_episodes_are_the_same_on_reload_and_in_any_chunk(small: Omniglot, tmp_path: Path) -> None:
    again = Omniglot.load(write(tmp_path / "again"), SMALL)
    other = Omniglot.load(tmp_path / "again", replace(SMALL, seed=12))
    for split in ("val", "test"):
        assert again.episodes(split).sha256 == small.episodes(split).sha256
        assert other.episodes(split).sha256 != small.episodes(split).sha256
    assert small.episodes("val").sha256 != small.episodes("test").sha256
    rows = np.array([6, 1, 4])
    whole = small.batch(small.episodes("val"))
    for chunk in (1, 2, 3):
        episodes = ImageEpisodes(small, small.episodes("val"), rows, chunk, lambda batch: batch)
        found = list(episodes.batches())
        assert torch.equal(torch.cat([b.query.images for b in found]), whole.query.images[rows])
        assert torch.cat([b.user for b in found]).tolist() == rows.tolist()
        assert (len(episodes), episodes.n_support, episodes.n_query) == (3, 6, 9)


def test_more_fixed_episodes_of_one_split_leave_the_other_as_it_is(small: Omniglot) -> None:
    more = replace(small, spec=replace(SMALL, n_val=9))
    assert more.episodes("test").sha256 == small.episodes("test").sha256
    assert more.episodes("val").sha256 != small.episodes("val").sha256


def test_the_hash_sees_every_part(small: Omniglot) -> None:
    drawn = small.episodes("val")
    others = [replace(drawn, n_shot=1)]
    for name in ("class_id", "turn", "drawing"):
        array = getattr(drawn, name).copy()
        array.flat[-1] += 1
        others.append(replace(drawn, **{name: array}))
    assert len({one.sha256 for one in (drawn, *others)}) == 5


def test_the_fingerprint_sees_images_and_splits(small: Omniglot) -> None:
    images = small.images.copy()
    images[3, 2, 5, 7] ^= 1
    assert replace(small, images=images).fingerprint != small.fingerprint
    moved = small.classes | {"train": small.classes["train"][1:]}
    assert replace(small, classes=moved).fingerprint != small.fingerprint


# -- the checks above are seen to fail ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["turned the other way", "drawings with replacement", "labels from 0"])
def test_faults_are_seen(fault: str, small: Omniglot, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = small.training(3, 2, 6)
    if fault == "turned the other way":
        true_turn = np.rot90
        monkeypatch.setattr(omniglot.np, "rot90", lambda image, k, axes: true_turn(image, -k, axes))
        batch = small.batch(drawn)
        monkeypatch.undo()
        with pytest.raises(AssertionError):
            check_images(small, drawn, batch)
    elif fault == "drawings with replacement":
        monkeypatch.setattr(
            omniglot, "_order", lambda stream, rows, n: (stream.random_raw(rows * n) % n).reshape(rows, n)
        )
        with pytest.raises(AssertionError):
            check_episodes(small, small.training(3, 2, 6), "train", {0, 1, 2, 3})
    else:
        batch = small.batch(drawn)
        batch.support.target.sub_(1)
        with pytest.raises(AssertionError):
            check_images(small, drawn, batch)
