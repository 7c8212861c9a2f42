"""Options of passes: types, ranges, texts, and what tables say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from omnic.errors import InputError
from omnic.passes.options import (
    OptionError,
    check_options,
    describe_options,
    option,
    read_options,
    split_call,
)


@dataclass(frozen=True)
class Sample:
    """Have options of every kind.

    1. Nothing is done.

    Attributes:
        group: numbers that share a scale,
            on one row.
        share: of something.
        layers: which ones.
        names: of what.
        asym: with a zero point.
        kind: a code.
        budget: bytes.
    """

    name: ClassVar[str] = "sample"
    group: int = option(64, choices=(32, 64, 128))
    share: float = option(0.5, low=0.0, high=1.0)
    layers: tuple[int, ...] = option((), low=0)
    names: tuple[str, ...] = ()
    asym: bool = False
    kind: str = option("i4", choices=("i4", "none"), doc="the code")
    budget: int | None = option(None, low=1)


@pytest.mark.parametrize(("given", "want"), [
    ({}, Sample()),
    ({"group": "32", "share": "1e-3", "asym": "true"}, Sample(group=32, share=0.001, asym=True)),
    ({"layers": "[0, 3]", "names": ["a", "b"]}, Sample(layers=(0, 3), names=("a", "b"))),
    ({"layers": 2, "names": "a"}, Sample(layers=(2,), names=("a",))),
    ({"kind": None, "budget": "none"}, Sample(kind="none")),
    ({"budget": 7}, Sample(budget=7)),
])
def test_values_are_read(given: dict[str, Any], want: Sample) -> None:
    made = Sample(**read_options("sample", Sample, given))
    assert made == want
    check_options(made)


@pytest.mark.parametrize(("given", "message"), [
    ({"group": 48}, "option 'group' of pass 'sample' must be one of 32, 64, 128, got 48"),
    ({"group": 32.5}, "option 'group' of pass 'sample' must be int, got '32.5'"),
    ({"group": True}, "option 'group' of pass 'sample' must be int, got 'True'"),
    ({"share": 1.5}, "option 'share' of pass 'sample' must be 0..1, got 1.5"),
    ({"share": "nan"}, "option 'share' of pass 'sample' must be 0..1, got nan"),
    ({"share": "much"}, "option 'share' of pass 'sample' must be a number, got 'much'"),
    ({"share": [1]}, "option 'share' of pass 'sample' must be a number, got '[1]'"),
    ({"layers": "[1, -1]"}, "option 'layers' of pass 'sample' must be at least 0, got -1"),
    ({"asym": 1}, "option 'asym' of pass 'sample' must be true or false, got '1'"),
    ({"budget": 0}, "option 'budget' of pass 'sample' must be at least 1, got 0"),
    ({"kind": "i5"}, "option 'kind' of pass 'sample' must be one of i4, none, got i5"),
])
def test_what_an_option_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_options("sample", Sample, given)
    assert caught.value.message == message
    assert caught.value.option == next(iter(given))


def test_a_pass_made_in_python_is_checked_too() -> None:
    with pytest.raises(OptionError, match=r"option 'share' of pass 'sample' must be 0\.\.1, got -0.5"):
        check_options(Sample(share=-0.5))


@pytest.mark.parametrize(("text", "want"), [
    ("a", ("a", {})),
    (" a { x = 1 , y=two } ", ("a", {"x": "1", "y": "two"})),
    ("a{type=i4<g32, s4>, layers=[0,1]}", ("a", {"type": "i4<g32, s4>", "layers": "[0,1]"})),
])
def test_a_call_is_split(text: str, want: tuple[str, dict[str, str]]) -> None:
    assert split_call(text) == want


@pytest.mark.parametrize("text", ["", "{}", "a{", "a}", "a{=1}", "a{x}", "a{x=1, x=2}", "a b"])
def test_what_is_no_call(text: str) -> None:
    with pytest.raises(InputError):
        split_call(text)


def test_a_table_says_what_options_are() -> None:
    rows = {row["name"]: row for row in describe_options(Sample)}
    assert rows["group"] == {
        "name": "group", "type": "int", "default": 64, "range": "one of 32, 64, 128",
        "about": "numbers that share a scale, on one row.",
    }
    assert rows["kind"]["about"] == "the code"
    assert (rows["budget"]["type"], rows["budget"]["range"]) == ("int | none", "at least 1")
