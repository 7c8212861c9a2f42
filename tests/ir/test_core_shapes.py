"""The shape rule of every core op says what its reference really gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnic.ir.dims import Expr, evaluate
from omnic.ir.op import ShapeError, all_ops, find_op
from omnic.ir.packing import QTensor
from omnic.ir.types import DType, Storage, TensorType, parse_type
from tests.ir.core_cases import CASES, SIZES, Maker

CORE = sorted(name for name, op in all_ops().items() if not op.composite)


def test_every_core_op_has_cases() -> None:
    assert sorted(CASES) == CORE


def bound(value: Any) -> Any:
    """Return attributes with their dims as numbers."""
    if isinstance(value, Expr):
        return evaluate(value, SIZES)
    return tuple(bound(v) for v in value) if isinstance(value, tuple) else value


def is_kind(element: Any, result: Any) -> bool:
    """Whether an array may stand for a value of this element type in the reference."""
    if isinstance(element, Storage):
        return isinstance(result, QTensor) and result.type == element
    kind = np.asarray(result).dtype
    if element.is_float:
        return kind.kind == "f" or kind == element.numpy
    return kind == element.numpy


@pytest.mark.parametrize("name", CORE)
@given(data=st.data())
def test_shape_rule_is_the_real_shape(name: str, data: st.DataObject) -> None:
    made = CASES[name](Maker(data.draw))
    op = find_op(name)
    attrs = op.bind(made.attrs)
    inferred = op.infer(*made.types, **attrs)
    found = op.reference(*made.arrays, **{k: bound(v) for k, v in attrs.items()})
    types = inferred if isinstance(inferred, tuple) else (inferred,)
    results = found if isinstance(found, tuple) else (found,)
    assert len(types) == len(results)
    for type, result in zip(types, results, strict=True):
        assert tuple(evaluate(d, SIZES) for d in type.shape) == result.shape, (type, made)
        assert is_kind(type.element, result), (type, result)


def t(text: str) -> TensorType:
    return parse_type(text)


REFUSED = [
    ("add", ("f32[3]", "f32[4]"), {}, "shapes [3] and [4] do not broadcast: 3 against 4"),
    ("add", ("f32[3]", "i64[3]"), {}, "add: operands are f32[3] and i64[3]"),
    ("mul", ("i32[3]", "i64[3]"), {}, "mul: operands are i32[3] and i64[3]"),
    ("matmul", ("f32[2, 3]", "f32[4, 5]"), {}, "matmul of f32[2, 3] and f32[4, 5] contracts 3 with 4"),
    (
        "matmul",
        ("f32[2, 3]", "f32[4, 5]"),
        {"ta": True, "tb": True},
        "matmul of f32[2, 3] transposed and f32[4, 5] transposed contracts 2 with 5",
    ),
    ("matmul", ("f32[3]", "f32[3, 5]"), {}, "matmul needs at least two dims, got f32[3] and f32[3, 5]"),
    (
        "reshape",
        ("f32[B, 4]",),
        {"shape": (3,)},
        "reshape of f32[B, 4] to [3] changes the number of elements from 4*B to 3",
    ),
    ("transpose", ("f32[2, 3]",), {"perm": (0, 0)}, "transpose: (0, 0) does not order the 2 dims of f32[2, 3]"),
    (
        "slice",
        ("f32[4]",),
        {"axis": 0, "start": (1,), "stop": (5,)},
        "slice: stop 5 is beyond the 4 of dim 0 of f32[4]",
    ),
    ("concat", ("f32[2, 3]", "f32[3, 3]"), {"axis": 1}, "concat: f32[3, 3] and f32[2, 3] differ in a dim other than 1"),
    ("split", ("f32[4]",), {"axis": 0, "sizes": (1, 2)}, "split: the sizes 1, 2 sum to 3, dim 0 of f32[4] has 4"),
    ("sum", ("f32[4]",), {"axes": (1,)}, "sum: axis 1 is not a dim of f32[4]"),
    ("sum", ("f32[4]",), {"axes": (0, -1)}, "sum: axes (0, -1) must name at least one dim, each once"),
    ("topk", ("f32[4]",), {"k": 5}, "topk: k = 5 is not in 1..4"),
    ("clamp", ("f32[4]",), {}, "clamp needs min, max or both"),
    ("clamp", ("f32[4]",), {"min": 2.0, "max": 1.0}, "clamp: min 2.0 is above max 1.0"),
    ("cast", ("f32[4]",), {"to": Storage("i4", 32)}, "cast to i4<g32>: a storage type is made by quantise"),
    ("quantise", ("f32[4]",), {"to": DType.F16}, "quantise to f16: a plain type is made by cast"),
    (
        "quantise",
        ("f32[4, 4]",),
        {"to": Storage("nf4", 4, asym=True)},
        "quantise: nf4<g4, asym>: nf4 has no zero point",
    ),
    ("dequantise", ("f32[4]",), {}, "dequantise takes a storage type, got f32[4]"),
    ("gather", ("f32[2, 3]", "i64[3]"), {"axis": 0}, "gather: f32[2, 3] and the index i64[3] differ in rank"),
    ("gather", ("f32[2, 3]", "i64[4, 5]"), {"axis": 0}, "gather: dim 1 of f32[2, 3] and of the index i64[4, 5] differ"),
    (
        "scatter",
        ("f32[2, 3]", "i64[1, 3]", "f32[2, 3]"),
        {"axis": 0},
        "scatter: updates f32[2, 3] at index i64[1, 3] do not fit f32[2, 3] along dim 0",
    ),
    ("iota", (), {"size": (2, 3)}, "iota: size is one dim"),
    (
        "constant",
        (),
        {"values": (1.0, 2.0), "shape": (3,), "type": DType.F32},
        "constant has 2 values for the shape of f32[3]",
    ),
    ("constant", (), {"values": (1.5,), "shape": (), "type": DType.I64}, "constant of i64 holds a fraction"),
    ("exp", ("i64[3]",), {}, "exp: input 'x' takes float, got i64[3]"),
    ("index_select", ("f32[3]", "f32[2]"), {}, "index_select: input 'index' takes index, got f32[2]"),
    ("softmax", ("f32[3]",), {"dim": 1}, "softmax has no attribute 'dim'"),
    (
        "cache_write",
        ("f32[B, 8, 4]", "f32[B, T, 5]", "i64[B]", "i64[B]"),
        {},
        "cache_write: f32[B, T, 5] does not fit the state f32[B, 8, 4]: all dims but the slots must be equal",
    ),
    (
        "cache_write",
        ("f32[8, 4]", "f32[T, 4]", "i64[8]", "i64[8]"),
        {},
        "cache_write: a state is [B, ..., S, D], got f32[8, 4]",
    ),
    (
        "cache_read",
        ("i8<head>[B, 8, 4]", "i64[B]", "i64[B]"),
        {},
        "cache_read: tokens are written one at a time, so i8<head>[B, 8, 4] must group along its last dim",
    ),
    (
        "cache_move",
        ("f32[B, 8, 4]", "i64[B, N]", "i64[B, M]"),
        {},
        "cache_move: source i64[B, N] and target i64[B, M] must both be i64[B, N]",
    ),
    (
        "depthwise_conv1d",
        ("f32[1, 2, 3]", "f32[3, 4]"),
        {},
        "depthwise_conv1d: f32[1, 2, 3] is shorter than the kernel of f32[3, 4]",
    ),
]


@pytest.mark.parametrize(
    ("name", "types", "attrs", "message"), REFUSED, ids=[f"{i}-{r[0]}" for i, r in enumerate(REFUSED)]
)
def test_misfits_are_refused(name: str, types: tuple[str, ...], attrs: dict[str, Any], message: str) -> None:
    op = find_op(name)
    given_types: list[TensorType | None] = [t(text) for text in types]
    while len(given_types) < len(op.inputs) and not op.inputs[-1].variadic:
        given_types.append(None)
    with pytest.raises(ShapeError) as caught:
        op.infer_results(tuple(given_types), attrs)
    assert caught.value.message == message


def test_flops_count_two_per_multiply_add() -> None:
    assert str(find_op("matmul").flops(t("f32[B, 2, 3]"), t("f32[3, 5]"))) == "60*B"
    assert find_op("matmul").flops(t("f32[3, 2]"), t("f32[5, 3]"), ta=True, tb=True) == 60
    assert find_op("depthwise_conv1d").flops(t("f32[1, 6, 4]"), t("f32[4, 3]")) == 96
    assert find_op("add").flops(t("f32[4]"), t("f32[4]")) == 0
