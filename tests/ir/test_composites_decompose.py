"""Every composite is its decomposition, and its shape rule tells the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnic.ir.decompose import decompose
from omnic.ir.dims import Dim, evaluate, symbol
from omnic.ir.op import all_ops, find_op
from omnic.ir.types import DType, TensorType
from tests.ir.composite_cases import CASES, SLOTS, TOKENS, Case, Maker, check_decomposition, module_of

COMPOSITES = sorted(name for name, op in all_ops().items() if op.composite)


def test_every_composite_has_cases() -> None:
    assert sorted(CASES) == COMPOSITES


@pytest.mark.parametrize("op", COMPOSITES)
@settings(max_examples=30)
@given(data=st.data())
def test_decomposition_is_the_op(op: str, data: st.DataObject) -> None:
    maker = Maker(data.draw)
    case = CASES[op](maker)
    symbols = {"T": TOKENS, "S": SLOTS} if maker.flag() else {}
    check_decomposition(op, case.arrays, symbols, **case.attrs)


@pytest.mark.parametrize("op", COMPOSITES)
def test_op_tells_its_formula_and_source(op: str) -> None:
    definition = find_op(op)
    assert definition.__doc__
    assert definition.source
    assert all(i.doc for i in definition.inputs)
    assert all(a.doc for a in definition.attrs)


def flops(op: str, *shapes: str, **attrs: object) -> Dim:
    definition = find_op(op)
    types = [TensorType(DType.I64 if s.startswith("i") else DType.F32, dims(s)) if s else None for s in shapes]
    return definition.flops(*types, **definition.bind(attrs))  # type: ignore[arg-type]


def dims(text: str) -> tuple[Dim, ...]:
    return tuple(int(d) if d.isdigit() else symbol(d) for d in text.lstrip("i").split())


def test_flops_are_two_per_multiply_add() -> None:
    assert flops("linear", "B T 8", "7 8", "7") == 2 * symbol("B") * symbol("T") * 7 * 8
    assert flops("embedding", "9 8", "iB T") == 0
    attention = flops("attention", "B 4 T 6", "B 2 S 6", "B 2 S 5", "iB T", "iB S", "", "", "", scale=1.0)
    assert evaluate(attention, {"B": 3, "T": 2, "S": 10}) == 2 * 3 * 4 * 2 * 10 * (6 + 5)
    assert flops("lm_head", "2 5 8", "9 8", "i2 3", "") == 2 * 2 * 3 * 9 * 8
    routed = ("2 5 8", "i2 5 3", "2 5 3", "4 6 8", "4 8 6")
    assert flops("moe", *routed, "", "", "", "", kind="gelu") == 2 * 30 * 2 * 48
    assert flops("moe", *routed, "4 6 8", "", "", "", kind="silu") == 2 * 30 * 3 * 48
    shapes = ("1 4 2 6", "1 4 2 3", "1 10 7", "1 10 3", "4 6 7", "4 5 7", "i1 2", "i1 10", "", "")
    assert flops("mla", *shapes, form="naive", scale=1.0) == 2 * 4 * 10 * 7 * 11 + 2 * 4 * 2 * 10 * (6 + 3 + 5)
    assert flops("mla", *shapes, form="absorbed", scale=1.0) == 2 * 4 * 2 * 7 * 11 + 2 * 4 * 2 * 10 * (7 + 3 + 7)


def _mla_case() -> Case:
    random = np.random.default_rng(0)
    arrays = [random.normal(size=s) for s in ((1, 2, 3, 6), (1, 2, 3, 2), (1, 4, 7), (1, 4, 2), (2, 6, 7), (2, 3, 7))]
    return Case([*arrays, np.arange(3)[None], np.arange(4)[None], None, None], {"form": "absorbed", "scale": 0.3})


def test_kept_composites_stay_and_names_do_not_move() -> None:
    case = _mla_case()
    module = module_of("mla", case.arrays, {}, **case.attrs)
    kept = decompose(module, lambda node: node.op == "attention")
    assert [n.op for n in kept.function().nodes].count("attention") == 1
    assert "mla" not in {n.op for n in kept.function().nodes}
    assert decompose(module, lambda node: True).function().nodes[0].name == module.function().nodes[0].name
