"""What is drawn from, for every form of the override grammar that leaves a value open."""

from __future__ import annotations

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from metarec.config.space import Dimension, dimension, grid, size
from metarec.errors import ConfigError


def read(word: str) -> Dimension:
    override = OverridesParser.create().parse_override(word)
    texts = [str(text) for text in override.sweep_string_iterator()] if override.is_choice_sweep() else []
    return dimension(override, texts)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a=1,2,3", Dimension("a", "choice", ("1", "2", "3"))),
        ("a=x,null,[1,2],'b c',x", Dimension("a", "choice", ("x", "null", "[1,2]", "'b c'"))),
        ("a=range(1,10)", Dimension("a", "int", range(1, 10), 1, 9, 1)),
        ("a=range(1,10,4)", Dimension("a", "int", range(1, 10, 4), 1, 9, 4)),
        ("a=range(10,1,-4)", Dimension("a", "int", range(2, 11, 4), 2, 10, 4)),
        ("a=range(4)", Dimension("a", "int", range(4), 0, 3, 1)),
        ("a=range(0,0.5,0.2)", Dimension("a", "float", (0.0, 0.2, 0.4), 0.0, 0.4, 0.2)),
        ("a=interval(0,1)", Dimension("a", "float", None, 0.0, 1.0)),
        ("a=int(interval(1,8))", Dimension("a", "int", range(1, 9), 1, 8, 1)),
        ("a=tag(int,interval(1,8))", Dimension("a", "int", range(1, 9), 1, 8, 1)),
        ("a=tag(log,interval(1e-4,1e-2))", Dimension("a", "float", None, 1e-4, 1e-2, log=True)),
        ("a=tag(int,log,interval(1,64))", Dimension("a", "int", range(1, 65), 1, 64, 1, log=True)),
        ("a=tag(log,range(1,65))", Dimension("a", "int", range(1, 65), 1, 64, 1, log=True)),
    ],
)
def test_every_form(word: str, expected: Dimension) -> None:
    assert read(word) == expected


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("a=tag(log,choice(1,2))", "a list takes no tag log"),
        ("a=tag(big,interval(0,1))", "tag big is not known"),
        ("a=shuffle(1,2)", "a sampler has an order of its own"),
        ("a=range(3,1)", "an empty range"),
        ("a=interval(2,1)", "holds nothing"),
        ("a=interval(1,1)", "holds nothing"),
        ("a=tag(int,interval(0.5,3))", "not whole"),
        ("a=tag(int,range(0,3,0.5))", "not whole"),
        ("a=tag(log,interval(0,1))", "no logarithm"),
        ("a=tag(log,range(1,9,2))", "no logarithm"),
        ("a=tag(log,range(0.5,2,0.5))", "no logarithm"),
    ],
)
def test_what_cannot_be_drawn_from(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(word)


def test_words_are_as_typed_and_numbers_keep_every_digit() -> None:
    assert read("a='b c',null").word("'b c'") == "a='b c'"
    assert read("a=interval(0,1)").word(0.1 + 0.2) == "a=0.30000000000000004"
    assert read("a=range(1,4)").word(2) == "a=2"


def test_a_check_of_the_probes_vouches_for_the_rest() -> None:
    assert read("a=1,2,3").probes() == ["a=1", "a=2", "a=3"]
    assert read("a=range(1,100)").probes() == ["a=1", "a=99"]
    assert read("a=tag(log,interval(1e-4,1))").probes() == ["a=0.0001", "a=1.0"]


def test_the_grid_is_the_product_in_the_order_of_a_plain_sweep() -> None:
    space = [read("a=x,y"), read("b=range(1,4)")]
    assert size(space) == 6
    assert list(grid(space)) == [{"a": a, "b": b} for a in ("x", "y") for b in (1, 2, 3)]
    assert size([*space, read("c=interval(0,1)")]) == math.inf


def test_steps_added_up_with_rounding_are_the_element_meant() -> None:
    assert read("a=range(0,0.5,0.1)").nearest(0.1 + 0.2) == 0.3
    assert read("a=range(0,9,2)").nearest(4) == 4
    assert read("a=x,y").nearest("y") == "y"
