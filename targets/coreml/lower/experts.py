"""Mixtures of experts as operations of a program: the same ones, and so the same roundings, for calls of any length."""

from __future__ import annotations

from typing import Any

from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Value
from omnic.ir.ops.composite import as_element, gate_of, plain, scalar
from omnic.ir.ops.linear import decompose_quantise_activation

__all__ = ["decompose_experts"]


def decompose_experts(b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
    """Build ``moe``: experts gathered, or all of them; either way a token's outputs are weighted in one product.

    So both round alike: each product, each activation, and the weighted sum once, to which experts that were not chosen
    add nothing.
    """
    x, indices, gates = values[:3]
    element = plain(x.type)
    x, gates = as_element(b, x, element), as_element(b, gates, element)
    weights = [None if w is None else as_element(b, w, element) for w in values[3:]]
    up = weights[0]
    assert up is not None
    batch, tokens, width = x.type.shape
    rows, top_k, experts = batch * tokens, indices.type.shape[2], up.type.shape[0]
    flat = b.reshape(decompose_quantise_activation(b, x, attrs["act"]), rows, width)
    chosen, share = b.reshape(indices, rows, top_k), b.reshape(gates, rows, top_k)
    if attrs["dispatch"] == "gather":
        picked = [None if w is None else b.op("index_select", w, chosen, axis=0) for w in weights]
        out = b.reshape(_products(b, b.reshape(flat, rows, 1, 1, width), picked, attrs), rows, top_k, width)
        y = b.op("matmul", b.reshape(share, rows, 1, top_k), out)
        return b.reshape(y, batch, tokens, width)
    out = b.op("transpose", _products(b, b.reshape(flat, 1, rows, width), weights, attrs), perm=(1, 0, 2))
    every = b.reshape(b.op("iota", size=(experts,)), 1, 1, experts)
    match = b.op("eq", b.reshape(chosen, rows, top_k, 1), every)
    spread = b.op("sum", b.op("where", match, b.reshape(share, rows, top_k, 1), scalar(b, 0.0, x)), axes=(1,))
    y = b.op("matmul", b.reshape(spread, rows, 1, experts), out)
    return b.reshape(y, batch, tokens, width)


def _products(b: FunctionBuilder, x: Value, weights: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Build act(up x), or act(gate x) * up x, times down; x [..., N, D], weights [..., F, D] and [..., D, F]."""
    up, down, gate, up_bias, down_bias, gate_bias = weights
    assert up is not None
    assert down is not None
    inner = _affine(b, x, up, up_bias)
    if gate is None:
        hidden = b.op("act", inner, kind=attrs["kind"])
    else:
        hidden = b.op("gated_act", _affine(b, x, gate, gate_bias), inner, kind=attrs["kind"], **gate_of(attrs))
    return _affine(b, decompose_quantise_activation(b, hidden, attrs["act"]), down, down_bias)


def _affine(b: FunctionBuilder, x: Value, w: Value, bias: Value | None) -> Value:
    y = b.op("matmul", x, w, tb=True)
    if bias is None:
        return y
    *lead, width = bias.type.shape
    return b.op("add", y, b.reshape(bias, *lead, 1, width))
