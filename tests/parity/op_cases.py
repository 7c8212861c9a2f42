"""One table of cases for every op of the IR, which every target runs: operands with their numbers, and attributes.

A case is a call of one op on fixed shapes of one row; its numbers come from a seed that is its name.  Operands are
inputs of the program, or weights of it, as models have them.  ``tests/ir`` draws shapes at random and holds the
reference against decompositions; here every attribute takes every kind of value that it has, ties, halves, signs and
infinities included, and the programs of targets are held against the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from omnic.ir.op import all_ops
from tests.parity.op_cases_model import MODEL_CASES
from tests.parity.op_operands import B, Case, F, K, N, Operand, P, W, X, one

__all__ = ["CASES"]

TIES = X(1.0, 3.0, 3.0, -2.0, 3.0, 1.0)
HALVES = X(-2.5, -1.5, -0.5, -0.2, 0.0, 0.5, 0.7, 1.5, 2.5)
WIDE = X(-100.0, -20.0, -3.0, -0.5, 0.0, 1e-4, 0.5, 3.0, 20.0, 80.0)


def _arithmetic() -> list[Case]:
    found: list[Case] = []
    for op in ("add", "sub", "mul", "minimum", "maximum"):
        found += [
            one(op, "broadcast", F(2, 1, 4), F(3, 1)),
            one(op, "scalar", F(2, 3), F()),
            one(op, "whole", N(2, 3), N(3)),
        ]
    whole = [N(12), K([1, 2, 3, 4, -1, -2, -3, -4, 5, -5, 7, -7])]
    for op in ("floordiv", "mod"):
        found += [
            one(op, "whole", *whole),
            one(op, "float", X(7.5, -7.5, 7.5, -7.5, 0.25, -6.1), X(2.0, 2.0, -2.0, -2.0, 3.0, 1.7)),
        ]
    found += [
        one("div", "broadcast", F(2, 3), P(3)),
        one("div", "by zero", X(1.0, -1.0, 2.0), X(0.0, 0.0, 4.0)),
        one("pow", "positive", P(2, 3), F(3)),
        one("pow", "whole exponents", X(-2.0, -3.0, 0.5, 0.0), X(3.0, 2.0, -1.0, 2.0)),
    ]
    for op in ("eq", "ne", "lt", "le", "gt", "ge"):
        found += [
            one(op, "float", X(1.0, 2.0, 3.0, -0.0), X(1.0, 3.0, 2.0, 0.0)),
            one(op, "whole", N(3, 4, low=0, high=3), N(4, low=0, high=3)),
        ]
    found += [one(op, "bool", B(3, 4), B(4)) for op in ("eq", "ne")]
    found += [one(op, "broadcast", B(3, 4), B(4)) for op in ("and", "or")] + [one("not", "bool", B(3, 4))]
    for op in ("neg", "abs"):
        found += [one(op, "float", F(2, 3)), one(op, "whole", N(2, 3))]
    found += [one(op, "wide", WIDE) for op in ("tanh", "sigmoid", "erf", "relu", "sin", "cos")]
    found += [
        one("exp", "wide", X(-100.0, -1.0, 0.0, 1.0, 20.0)),
        one("log", "positive", P(2, 3)),
        one("log", "zero", X(0.0, 1.0, 1e-30)),
        one("sqrt", "zero", X(0.0, 1.0, 2.0, 1e4)),
        one("rsqrt", "positive", P(2, 3)),
        one("round", "halves", HALVES),
    ]
    found += [
        one("clamp", "both", F(2, 3), min=-0.5, max=0.25),
        one("clamp", "min", F(2, 3), min=0.0),
        one("clamp", "max", F(2, 3), max=0.5),
        one("clamp", "whole", N(2, 6), min=-3.0, max=4.0),
    ]
    found += [
        one("where", "float", B(3, 1), F(3, 4), F(4)),
        one("where", "whole", B(4), N(3, 4), N(1)),
        one("where", "bool", B(3, 4), B(4), B(3, 4)),
        one("where", "wide condition", B(3, 4), F(), F()),
    ]
    found += [one("cast", f"float to {to}", HALVES, to=to) for to in ("f16", "bf16", "i64", "i32", "bool")]
    found += [one("cast", f"float to {to}", X(0.0, 1.9, 7.0, 126.6), to=to) for to in ("i8", "u8")]
    found += [one("cast", f"whole to {to}", N(2, 5), to=to) for to in ("f32", "bool", "i32")]
    found += [one("cast", f"bool to {to}", B(5), to=to) for to in ("f32", "i64")]
    found += [
        one("constant", "floats", values=(1.5, -2.0, 0.0, 4.0), shape=(2, 2), type="f32"),
        one("constant", "fill", values=(2.5,), shape=(2, 3), type="f32"),
        one("constant", "whole", values=(1, -2), shape=(2,), type="i64"),
        one("constant", "bools", values=(1, 0, 1), shape=(3,), type="bool"),
    ]
    return found


def _reductions() -> list[Case]:
    found: list[Case] = []
    for op in ("sum", "max", "mean"):
        found += [
            one(op, "last", F(2, 3, 4), axes=(-1,)),
            one(op, "two", F(2, 3, 4), axes=(0, 2)),
            one(op, "kept", F(2, 3, 4), axes=(1,), keepdims=True),
        ]
    found += [one(op, "whole", N(2, 3, 4), axes=(1,)) for op in ("sum", "max")]
    found += [
        one("argmax", "ties", TIES, axis=0),
        one("argmax", "first", F(3, 4), axis=0),
        one("argmax", "last", F(2, 3, 4), axis=-1),
        one("argmax", "whole", N(3, 9, low=0, high=3), axis=1),
    ]
    found += [
        one("cumsum", "first", F(3, 4), axis=0),
        one("cumsum", "last", F(2, 3, 4), axis=-1),
        one("cumsum", "whole", N(3, 4), axis=1),
    ]
    found += [
        one("softmax", "last", F(2, 3, 4)),
        one("softmax", "first", F(3, 4), axis=0),
        one("softmax", "masked", X(0.0, -200.0, 1.0, -200.0)),
        one("softmax", "far", X(-300.0, -300.5, -302.0)),
    ]
    return found


def _products() -> list[Case]:
    return [
        one("matmul", "plain", F(3, 4), F(4, 5)),
        one("matmul", "left turned", F(4, 3), F(4, 5), ta=True),
        one("matmul", "right turned", F(3, 4), F(5, 4), tb=True),
        one("matmul", "both turned", F(4, 3), F(5, 4), ta=True, tb=True),
        one("matmul", "batches", F(2, 1, 3, 4), F(3, 4, 5)),
        one("matmul", "weight", F(2, 3, 4), W(4, 5)),
        one("depthwise_conv1d", "bias", F(1, 6, 4), W(4, 3), W(4)),
        one("depthwise_conv1d", "inputs", F(2, 5, 3), F(3, 2)),
        one("linear", "weight", F(1, 5, 8), W(7, 8)),
        one("linear", "bias", F(1, 5, 8), W(7, 8), W(7)),
        one("linear", "vector", F(8), W(7, 8)),
        one("linear", "inputs", F(3, 8), F(7, 8), F(7)),
        one("linear", "f16 weight", F(1, 5, 8), W(7, 8, type="f16")),
        one("linear", "bf16 weight", F(1, 5, 8), W(7, 8, type="bf16")),
        one("linear", "8-bit tokens", F(1, 5, 8), W(7, 8), act="i8<per_token>"),
        one("linear", "bf16 tokens", F(1, 5, 8), W(7, 8), act="bf16"),
        one("linear", "8-bit groups", F(1, 5, 32), W(7, 32), act="i8<g16>"),
        one("embedding", "weight", W(9, 8), N(1, 5, low=0, high=9)),
        one("embedding", "inputs", F(9, 8), K([[0, 8, 3]])),
        one("embedding", "bf16 weight", W(9, 8, type="bf16"), K([[0, 8, 3]])),
        one("lm_head", "all rows", F(1, 5, 8), W(9, 8)),
        one("lm_head", "rows", F(1, 5, 8), W(9, 8), K([[4, 1]])),
        one("lm_head", "bias", F(1, 5, 8), W(9, 8), None, W(9)),
        one("lm_head", "softcap", F(1, 5, 8), W(9, 8), K([[2]]), softcap=3.0),
        one("lm_head", "8-bit tokens", F(1, 5, 8), W(9, 8), act="i8<per_token>"),
        one("lm_argmax", "all rows", F(1, 5, 8), W(9, 8)),
        one("lm_argmax", "rows", F(1, 5, 8), W(9, 8), K([[4, 1]])),
        one("lm_argmax", "shortlist", F(1, 5, 8), W(9, 8), None, W(4, 8), W(9, 4),
            Operand(lambda _: np.full((3, 9), 100.0, np.float32), "f32")),
        one("lm_argmax", "8-bit tokens", F(1, 5, 8), W(9, 8), act="i8<per_token>"),
        one("lm_head", "bf16 tokens", F(1, 5, 8), W(9, 8), act="bf16"),
        one("dequantise", "weight", W(4, 64, type="i4<g32>")),
        one("dequantise", "f16", W(4, 64, type="i8<row>"), to="f16"),
        one("dequantise", "levels", W(4, 64, type="nf4<g32>")),
        one("dequantise", "zero point", W(4, 64, type="i4<g32, asym>")),
        one("quantise", "codes", F(2, 32), to="i8<g32>"),
        *(
            one("fake_quant", f"{k}", F(3, 16), to=k)
            for k in ("i4<g16>", "i8<row>", "i4<g8, asym>", "nf4<g16>", "t2<g8>")
        ),
        *(one("fake_quant", f"{k}", F(3, 16), to=k) for k in ("f16", "bf16")),
    ]


def _shapes() -> list[Case]:
    return [
        one("reshape", "merge", F(2, 3, 4), shape=(6, 4)),
        one("reshape", "whole", N(2, 6), shape=(3, 2, 2)),
        one("reshape", "bool", B(2, 3), shape=(6,)),
        one("reshape", "scalar", F(1, 1), shape=()),
        one("transpose", "all", F(2, 3, 4), perm=(2, 0, 1)),
        one("transpose", "whole", N(2, 3), perm=(1, 0)),
        one("broadcast", "new dims", F(3, 1), shape=(2, 3, 4)),
        one("broadcast", "scalar", F(), shape=(2, 2)),
        one("broadcast", "whole", N(1, 3), shape=(4, 3)),
        one("slice", "middle", F(2, 6), axis=1, start=(2,), stop=(5,)),
        one("slice", "first", N(5, 2), axis=-2, start=(0,), stop=(2,)),
        one("slice", "bool", B(4), axis=0, start=(1,), stop=(4,)),
        one("concat", "three", F(2, 3), F(2, 1), F(2, 2), axis=1),
        one("concat", "one", F(2, 3), axis=-1),
        one("concat", "whole", N(2), N(3), axis=0),
        one("split", "three", F(2, 6), axis=-1, sizes=(1, 2, 3)),
        one("split", "one", F(4, 2), axis=0, sizes=(4,)),
        one("split", "whole", N(4, 2), axis=0, sizes=(1, 3)),
        one("pad", "both", F(2, 3), axis=1, before=1, after=2, value=1.5),
        one("pad", "first", F(2, 3), axis=0, before=2),
        one("pad", "whole", N(2, 3), axis=-1, after=1, value=-1.0),
        one("iota", "whole", size=(5,)),
        one("iota", "float", size=(4,), type="f32"),
    ]


def _indices() -> list[Case]:
    return [
        one("gather", "last", F(3, 5), N(3, 2, low=0, high=5), axis=-1),
        one("gather", "wide numbers", F(1, 5), N(3, 2, low=0, high=5), axis=1),
        one("gather", "wide index", F(3, 5), K([[4, 0]]), axis=1),
        one("gather", "whole", N(3, 5), K([[2], [0], [4]]), axis=1),
        one("index_select", "rows", F(5, 4), K([4, 0, 0])),
        one("index_select", "columns", F(2, 5), K([[1, 3], [0, 4]]), axis=1),
        one("index_select", "whole", N(5, 2), K([3])),
        one("index_select", "one", F(5, 2), K(2)),
        one("scatter", "none", F(3, 5), K([[0, 4], [1, 3], [2, 0]]), F(3, 2), axis=1),
        one("scatter", "add", F(3, 5), K([[0, 0], [1, 3], [2, 2]]), F(3, 2), axis=-1, reduce="add"),
        one("scatter", "wide index", F(4, 3), K([[3], [0]]), F(2, 3), axis=0),
        one("topk", "ties", TIES, k=4),
        one("topk", "first", F(5, 3), k=2, axis=0),
        one("topk", "whole", N(2, 9, low=0, high=4), k=5),
        one("topk", "all", F(2, 4), k=4),
        one("sort", "ties", TIES),
        one("sort", "descending", X(1.0, 3.0, 3.0, -2.0, 3.0), descending=True),
        one("sort", "first", F(5, 3), axis=0),
        one("sort", "whole", N(2, 9, low=0, high=4), descending=True),
    ]


def _activations() -> list[Case]:
    kinds = ("gelu", "gelu_tanh", "relu", "relu2", "silu")
    return [
        *(one("act", kind, F(1, 3, 8, scale=2.0), kind=kind) for kind in kinds),
        *(one("gated_act", kind, F(1, 3, 8), F(1, 3, 8), kind=kind) for kind in kinds),
        one("gated_act", "alpha", F(1, 3, 8), F(1, 3, 8), kind="silu", alpha=1.702),
        one("gated_act", "beta and limit", F(1, 3, 8), F(1, 3, 8), kind="silu", alpha=1.702, beta=1.0, limit=0.5),
        one("rms_norm", "weight", F(1, 3, 8), W(8)),
        one("rms_norm", "plain", F(1, 3, 8), eps=0.1),
        one("rms_norm", "vectors", F(3, 8), W(8)),
        one("layer_norm", "weight", F(1, 3, 8), W(8)),
        one("layer_norm", "bias", F(1, 3, 8), W(8), W(8)),
        one("layer_norm", "plain", F(1, 3, 8), eps=0.1),
        one("host.fetch", "experts", N(1, 3, 2, low=0, high=9), kind="expert", layer=3),
        one("host.fetch", "blocks", N(1, 4, low=0, high=9), kind="kv_block", layer=0),
    ]


def _unique(cases: Sequence[Case]) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for case in cases:
        assert case.name not in found, case.name
        found[case.name] = case
    return found


#: every case by its name, ``op.variant``
CASES: Mapping[str, Case] = _unique(
    [
        *_arithmetic(),
        *_reductions(),
        *_products(),
        *_shapes(),
        *_indices(),
        *_activations(),
        *MODEL_CASES,
    ]
)
assert {case.op for case in CASES.values()} == set(all_ops())
