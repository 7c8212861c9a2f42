"""Capability records: every fact has a document, and what is refused says why."""

from __future__ import annotations

from typing import Any

import pytest

from omnic.errors import InputError, InternalError
from omnic.ir.caps import Caps, GroupRule, OpSupport
from omnic.ir.types import DType, Storage, parse_element

DOC = "vendor manual 1.2"


def record(**changes: Any) -> Caps:
    facts: dict[str, Any] = {
        "ops": {
            "matmul": OpSupport("native", DOC),
            "rms_norm": OpSupport("decompose", DOC),
            "sort": OpSupport("excluded", "no text model sorts"),
        },
        "elements": frozenset({DType.F32}),
        "storage": (GroupRule("i4", (32, 64, 0), asym=True), GroupRule("i8", (0,), ragged=True)),
        "limits": {"rank": 5},
        "sources": {"elements": DOC, "storage": DOC, "limits": DOC},
    }
    return Caps("chip", **{**facts, **changes})


def test_a_record_answers_for_ops() -> None:
    caps = record()
    assert caps.lowers("matmul") and not caps.lowers("rms_norm") and not caps.lowers("add")
    assert caps.refusal("rms_norm") is None
    assert caps.refusal("sort") == "chip excludes sort: no text model sorts"
    assert caps.refusal("add") == "chip has no lowering of add"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {"elements": DOC, "storage": DOC}}, "'limits' has no source"),
        ({"host": "callback"}, "'host' has no source"),
        ({"numeric": "f17"}, "numeric class 'f17' is not one of f64, f32, f16, int8"),
        ({"ops": {"matmull": OpSupport("native", DOC)}}, "op 'matmull' does not exist"),
        ({"ops": {"matmul": OpSupport("native", "")}}, "op 'matmul' has no source"),
        ({"ops": {"matmul": OpSupport("decompose", DOC)}}, "op 'matmul' is core and cannot be decomposed"),
        ({"storage": (GroupRule("i4", (32,)), GroupRule("i4", (64,)))}, "two rules for i4"),
        ({"limits": {"rank": 0}}, "limit 'rank' must be positive"),
        (
            {"sources": {"elements": DOC, "storage": DOC, "limits": DOC, "speed": DOC}},
            "a source is given for 'speed', which is not a fact",
        ),
    ],
)
def test_wrong_records_do_not_exist(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InternalError) as caught:
        record(**changes)
    assert message in caught.value.message and caught.value.message.startswith(
        "internal error: the capabilities of chip: "
    )


@pytest.mark.parametrize(
    ("text", "size", "reason"),
    [
        ("i4<g32>", 64, None),
        ("i4<g64, asym>", 64, None),
        ("i4<row>", 50, None),
        ("i8<row>", 50, None),
        ("i4<g32>", 48, "chip, i4: group 32 does not divide 48"),
        ("i4<g16>", 64, "chip, i4: group 16 is not one of 32, 64, row"),
        ("i8<row, asym>", 64, "chip, i8: a zero point is not supported"),
        ("i4<g32, s4>", 64, "chip, i4: s4 scales are not one of f16"),
        ("i4<g32, axis-2>", 64, "chip, i4: groups along dim -2 are not supported"),
        ("nf4<g32>", 64, "chip stores no weights as nf4"),
    ],
)
def test_storage_rules(text: str, size: int, reason: str | None) -> None:
    element = parse_element(text)
    assert isinstance(element, Storage)
    assert record().storage_refusal(element, size) == reason


def test_states_have_rules_of_their_own() -> None:
    element = parse_element("i4<g32>")
    assert isinstance(element, Storage)
    assert record().storage_refusal(element, 64, state=True) == "chip stores no states as i4"


def test_pick_takes_the_largest_group_that_fits() -> None:
    rule = GroupRule("i4", (16, 32, 128, 0))
    assert rule.pick(96, 128) == 32
    assert rule.pick(256, 64) == 32
    assert rule.pick(40, 128) is None
    assert GroupRule("i4", (16, 32), ragged=True).pick(40, 128) == 32


def test_limits_are_named() -> None:
    assert record().limit("rank") == 5
    with pytest.raises(InputError) as caught:
        record().limit("batch")
    assert (caught.value.message, caught.value.hint) == ("chip states no limit 'batch'", "known: rank")
