"""Mixture of experts: routing and the experts themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omnic.ir.dims import Dim, product
from omnic.ir.op import Array, Attr, In, ShapeError, find_op, register
from omnic.ir.ops.composite import (
    ACTIVATIONS,
    GATE_ATTRS,
    Composite,
    activate,
    as_element,
    check_fits,
    check_gate,
    check_rank,
    check_shape,
    decompose_activation,
    decompose_gate,
    gate_of,
    gated,
    plain,
    scalar,
    select,
)
from omnic.ir.ops.index import check_indices, stable_topk
from omnic.ir.ops.linear import check_activation, decompose_quantise_activation, quantise_activation
from omnic.ir.ops.reduce import softmax
from omnic.ir.router_training import RouterTraining
from omnic.ir.types import DType, TensorType

if TYPE_CHECKING:
    from omnic.ir.builder import FunctionBuilder
    from omnic.ir.graph import Value

__all__ = ["group_scores"]


@register
class Router(Composite):
    """Chooses ``top_k`` experts per token and their gates; all in f32.

    logits = x gate^T + gate_bias; selection score s = logits (``softmax``) or sigmoid(logits) (``sigmoid``), plus
    ``bias``, which enters the selection only.  With ``groups`` (contiguous sizes) only experts of the ``top_groups``
    best groups can be chosen; a group's score is its best s, or the sum of its two best (``group_score = top2_sum``),
    or the group logit x group_gate^T when a group gate is given.
    indices = the top_k by s (descending, ties to the lower index).  gates = softmax over the chosen logits
    (``softmax``, ``renormalise``), or softmax over all E taken at the indices (not ``renormalise``), or
    sigmoid(logits) at the indices, divided by their sum when ``renormalise`` (``sigmoid``); times ``scale``.  With a
    group gate and P = softmax of the group logits, the gate of an expert of group g is also multiplied by P_g, divided
    by the sum of P over the chosen experts when ``top_groups`` > 1, so that the group gate is trained.
    ``train`` names a stochastic training rule (``noisy(gumbel=1.0, dropout=0.1)``, with ``temperature``, ``gaussian``
    and ``jitter``: :class:`omnic.ir.router_training.RouterTraining`); the value here is the one of evaluation.
    """

    name = "router"
    category = "moe"
    source = "arXiv:1701.06538; softmax over the chosen arXiv:2401.04088; groups, sigmoid and bias arXiv:2412.19437"
    inputs = (
        In("x", "float", doc="[B, T, D]"),
        In("gate", "float", doc="[E, D]"),
        In("group_gate", "float", optional=True, doc="[G, D]"),
        In("bias", "float", optional=True, doc="[E], for the selection only"),
        In("gate_bias", "float", optional=True, doc="[E], of the logits"),
    )
    attrs = (
        Attr("top_k", "int", doc="experts per token"),
        Attr("groups", "ints", None, doc="sizes of contiguous expert groups"),
        Attr("top_groups", "int", 1, doc="groups a token may use"),
        Attr("group_score", "str", "max", choices=("max", "top2_sum"), doc="of the experts' s, without a group gate"),
        Attr("score", "str", "softmax", choices=("softmax", "sigmoid"), doc="how logits become scores"),
        Attr("renormalise", "bool", True, doc="gates over the chosen experts only"),
        Attr("scale", "float", 1.0, doc="multiplies the gates"),
        Attr("train", "str", "none", doc="rule of training; the meaning here is evaluation"),
    )
    outputs = ("indices", "gates", "logits")

    def infer(self, *types: Any, **attrs: Any) -> tuple[TensorType, ...]:
        """Indices i64 [B, T, k], gates f32 [B, T, k], logits f32 [B, T, E]."""
        x, gate, group_gate, bias, gate_bias = types
        try:
            RouterTraining.parse(attrs["train"])
        except ValueError as error:
            raise ShapeError(f"router: train: {error}") from error
        check_rank("router", "x", x, 3)
        check_rank("router", "gate", gate, 2)
        experts, groups, top_k = gate.shape[0], attrs["groups"], attrs["top_k"]
        check_fits("router", "last dim of x and of gate", x.shape[2], gate.shape[1])
        if not isinstance(experts, int) or not 1 <= top_k <= experts:
            raise ShapeError(f"router: top_k = {top_k} of {experts} experts")
        if bias is not None:
            check_shape("router", "bias", bias, experts)
        if gate_bias is not None:
            check_shape("router", "gate_bias", gate_bias, experts)
        if attrs["group_score"] != "max":
            self._check_group_score(attrs["group_score"], groups, group_gate)
        if groups is None:
            if group_gate is not None:
                raise ShapeError("router: a group gate needs the attribute groups")
        else:
            self._check_groups(experts, groups, attrs["top_groups"], top_k)
            if group_gate is not None:
                check_shape("router", "group_gate", group_gate, len(groups), x.shape[2])
        batch, tokens = x.shape[:2]
        chosen = TensorType(DType.I64, (batch, tokens, top_k))
        return chosen, chosen.with_element(DType.F32), TensorType(DType.F32, (batch, tokens, experts))

    def _check_group_score(self, rule: str, groups: tuple[int, ...] | None, group_gate: TensorType | None) -> None:
        if groups is None:
            raise ShapeError(f"router: group_score = {rule} needs the attribute groups")
        if group_gate is not None:
            raise ShapeError(f"router: group_score = {rule} is for groups without a gate of their own")
        if min(groups, default=0) < 2:
            raise ShapeError(f"router: group_score = {rule} needs two experts in every group, got {list(groups)}")

    def _check_groups(self, experts: int, groups: tuple[int, ...], top_groups: int, top_k: int) -> None:
        if min(groups, default=0) < 1 or sum(groups) != experts:
            raise ShapeError(f"router: groups {list(groups)} do not sum to {experts} experts")
        if not 1 <= top_groups <= len(groups):
            raise ShapeError(f"router: top_groups = {top_groups} of {len(groups)} groups")
        if sum(sorted(groups)[:top_groups]) < top_k:
            raise ShapeError(
                f"router: {top_groups} of the groups {list(groups)} may hold fewer than top_k = {top_k} experts"
            )

    def reference(self, *arrays: Any, **attrs: Any) -> tuple[Array, ...]:
        """All tokens at once."""
        x, gate, group_gate, bias, gate_bias = arrays
        logits = x @ gate.T
        if gate_bias is not None:
            logits = logits + gate_bias
        squashed = find_op("sigmoid").reference(logits)
        assert isinstance(squashed, np.ndarray)
        score = logits if attrs["score"] == "softmax" else squashed
        if bias is not None:
            score = score + bias
        groups = attrs["groups"]
        group_logits = None if group_gate is None else x @ group_gate.T
        member = np.zeros(0, np.int64)
        if groups is not None:
            member = np.repeat(np.arange(len(groups)), groups)
            best = group_scores(score, groups, attrs["group_score"]) if group_logits is None else group_logits
            _, kept = stable_topk(best, attrs["top_groups"])
            allowed = np.any(member == kept[..., None], axis=-2)
            score = select(allowed, score, -np.inf)
        _, indices = stable_topk(score, attrs["top_k"])
        chosen = np.take_along_axis(logits, indices, axis=-1)
        if attrs["score"] == "sigmoid":
            gates = np.take_along_axis(squashed, indices, axis=-1)
            if attrs["renormalise"]:
                gates = gates / np.sum(gates, axis=-1, keepdims=True)
        elif attrs["renormalise"]:
            gates = softmax(chosen)
        else:
            gates = np.take_along_axis(softmax(logits), indices, axis=-1)
        if group_logits is not None:
            weight = np.take_along_axis(softmax(group_logits), member[indices], axis=-1)
            if attrs["top_groups"] > 1:
                weight = weight / np.sum(weight, axis=-1, keepdims=True)
            gates = gates * weight
        return indices, gates * attrs["scale"], logits

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> tuple[Value, ...]:
        """Products, top-k over groups, top-k over experts, and the gates."""
        x, gate, group_gate, bias, gate_bias = values
        x = as_element(b, x, DType.F32)
        logits = b.op("matmul", x, as_element(b, gate, DType.F32), tb=True)
        if gate_bias is not None:
            logits = b.op("add", logits, as_element(b, gate_bias, DType.F32))
        squashed = b.op("sigmoid", logits) if attrs["score"] == "sigmoid" else logits
        select = squashed if bias is None else b.op("add", squashed, as_element(b, bias, DType.F32))
        groups = attrs["groups"]
        group_logits = None
        if group_gate is not None:
            group_logits = b.op("matmul", x, as_element(b, group_gate, DType.F32), tb=True)
        if groups is not None:
            select = self._mask_groups(b, select, group_logits, attrs)
        _, indices = b.emit("topk", select, k=attrs["top_k"], axis=2)
        chosen = b.op("gather", logits, indices, axis=2)
        if attrs["score"] == "sigmoid":
            gates = b.op("sigmoid", chosen)
            if attrs["renormalise"]:
                gates = b.op("div", gates, b.op("sum", gates, axes=(2,), keepdims=True))
        elif attrs["renormalise"]:
            gates = b.op("softmax", chosen, axis=2)
        else:
            gates = b.op("gather", b.op("softmax", logits, axis=2), indices, axis=2)
        if group_logits is not None and groups is not None:
            of_group = b.op("index_select", _member(b, groups), indices, axis=0)
            weight = b.op("gather", b.op("softmax", group_logits, axis=2), of_group, axis=2)
            if attrs["top_groups"] > 1:
                weight = b.op("div", weight, b.op("sum", weight, axes=(2,), keepdims=True))
            gates = b.op("mul", gates, weight)
        if attrs["scale"] != 1.0:
            gates = b.op("mul", gates, scalar(b, attrs["scale"], gates))
        return indices, gates, logits

    def _mask_groups(
        self, b: FunctionBuilder, select: Value, group_logits: Value | None, attrs: dict[str, Any]
    ) -> Value:
        """Put a number below every score where the group is not among the best."""
        batch, tokens, experts = select.type.shape
        groups, top_groups = attrs["groups"], attrs["top_groups"]
        best = group_logits
        if best is None:
            parts = b.emit("split", select, axis=2, sizes=groups)
            if attrs["group_score"] == "top2_sum":
                parts = [b.emit("topk", p, k=2, axis=2)[0] for p in parts]
            rule = "max" if attrs["group_score"] == "max" else "sum"
            best = b.op("concat", *(b.op(rule, p, axes=(2,), keepdims=True) for p in parts), axis=2)
        _, kept = b.emit("topk", best, k=top_groups, axis=2)
        wanted = b.reshape(_member(b, groups), 1, 1, experts, 1)
        match = b.op("eq", wanted, b.reshape(kept, batch, tokens, 1, top_groups))
        hits = b.op("sum", b.op("cast", match, to=DType.F32), axes=(3,))
        allowed = b.op("gt", hits, b.constant(0.5))
        return b.op("where", allowed, select, b.constant(-1e30))

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """Of the gate products."""
        x, gate, group_gate = types[:3]
        rows = gate.shape[0] if group_gate is None else gate.shape[0] + group_gate.shape[0]
        return 2 * product(x.shape) * rows


def group_scores(scores: Array, groups: tuple[int, ...], rule: str) -> Array:
    """Return each contiguous group's score [..., G] from its experts' [..., E]: the best, or the two best's sum."""
    if rule == "max":
        return np.maximum.reduceat(scores, np.cumsum((0, *groups[:-1])), axis=-1)
    parts = np.split(scores, np.cumsum(groups)[:-1], axis=-1)
    return np.stack([np.sum(np.sort(p, axis=-1)[..., -2:], axis=-1) for p in parts], axis=-1)


def _member(b: FunctionBuilder, groups: tuple[int, ...]) -> Value:
    """Return the group of each expert as a constant i64 [E]."""
    return b.constant(tuple(g for g, size in enumerate(groups) for _ in range(size)), DType.I64)


@register
class Moe(Composite):
    """y = sum over j of gates[j] * down_e act(up_e x), e = indices[j]; with ``gate`` the inside is
    act(gate_e x) * up_e x; biases are added to each product.  No token is dropped.  ``alpha``, ``beta`` and ``limit``
    change the inside with ``gate`` as those of ``gated_act`` do.

    ``dispatch`` says how the work is laid out, never the result: ``grouped`` sorts tokens by expert, ``dense`` lets
    every expert see every token, ``gather`` reads each token's experts (for a few tokens).  ``act`` says how the
    inputs of all products (x, and what ``down`` reads) are quantised before them, as for ``linear``.
    """

    name = "moe"
    category = "moe"
    source = "arXiv:1701.06538; without capacity limits arXiv:2211.15841"
    inputs = (
        In("x", "float", doc="[B, T, D]"),
        In("indices", "index", doc="[B, T, k]"),
        In("gates", "float", doc="[B, T, k]"),
        In("up", "float", doc="[E, F, D]"),
        In("down", "float", doc="[E, D, F]"),
        In("gate", "float", optional=True, doc="[E, F, D]"),
        In("up_bias", "float", optional=True, doc="[E, F]"),
        In("down_bias", "float", optional=True, doc="[E, D]"),
        In("gate_bias", "float", optional=True, doc="[E, F]"),
    )
    attrs = (
        Attr("kind", "str", choices=ACTIVATIONS, doc="act, as the op act"),
        Attr("dispatch", "str", "grouped", choices=("grouped", "dense", "gather"), doc="layout of the work"),
        Attr("act", "str", "none", doc="none, bf16, i8<per_token> or i8<gN>"),
        *GATE_ATTRS,
    )

    def infer(self, *types: Any, **attrs: Any) -> TensorType:
        """The type of x."""
        x, indices, gates, up, down, gate, up_bias, down_bias, gate_bias = types
        check_rank("moe", "x", x, 3)
        check_rank("moe", "indices", indices, 3)
        check_rank("moe", "up", up, 3)
        batch, tokens, width = x.shape
        experts, hidden, _ = up.shape
        check_shape("moe", "indices", indices, batch, tokens, indices.shape[2])
        check_shape("moe", "gates", gates, *indices.shape)
        check_shape("moe", "up", up, experts, hidden, width)
        check_shape("moe", "down", down, experts, width, hidden)
        for name, type, shape in (
            ("gate", gate, (experts, hidden, width)), ("up_bias", up_bias, (experts, hidden)),
            ("down_bias", down_bias, (experts, width)), ("gate_bias", gate_bias, (experts, hidden)),
        ):
            if type is not None:
                check_shape("moe", name, type, *shape)
        if gate_bias is not None and gate is None:
            raise ShapeError("moe: gate_bias needs gate")
        changed = [a.name for a in GATE_ATTRS if attrs[a.name] != a.default]
        if changed and gate is None:
            raise ShapeError(f"moe: {changed[0]} needs gate")
        check_gate("moe", attrs)
        check_activation("moe", attrs["act"], width)
        check_activation("moe", attrs["act"], hidden)
        return x.with_element(plain(x))

    def reference(self, *arrays: Any, **attrs: Any) -> Array:
        """A loop over the experts that some token chose.

        Each sees all tokens and its result is weighted, by 0 where it was not chosen: the products then have the
        same shape whatever the routing, so one token's routing cannot change the rounding of another's result.
        """
        x, indices, gates, up, down, gate, up_bias, down_bias, gate_bias = arrays
        check_indices("moe", indices, len(up))
        flat: Array = quantise_activation(x, attrs["act"]).reshape(-1, x.shape[-1])
        chosen, weights = indices.reshape(len(flat), -1), gates.reshape(len(flat), -1)
        y = np.zeros_like(flat)
        experts: list[int] = np.unique(chosen).tolist()
        for expert in experts:
            inner = flat @ up[expert].T
            if up_bias is not None:
                inner = inner + up_bias[expert]
            if gate is None:
                hidden = activate(inner, attrs["kind"])
            else:
                opening = flat @ gate[expert].T
                if gate_bias is not None:
                    opening = opening + gate_bias[expert]
                hidden = gated(opening, inner, attrs["kind"], **gate_of(attrs))
            out = quantise_activation(hidden, attrs["act"]) @ down[expert].T
            if down_bias is not None:
                out = out + down_bias[expert]
            share = np.sum(select(np.equal(chosen, expert), weights, np.zeros_like(weights)), axis=-1, keepdims=True)
            y += share.astype(y.dtype) * out
        return y.reshape(x.shape)

    def decompose(self, b: FunctionBuilder, *values: Any, **attrs: Any) -> Value:
        """``gather``: products with each token's own experts; else all experts on all tokens, weighted."""
        x, indices, gates = values[:3]
        element = plain(x.type)
        x, gates = as_element(b, x, element), as_element(b, gates, element)
        weights = [None if w is None else as_element(b, w, element) for w in values[3:]]
        batch, tokens, width = x.type.shape
        rows, top_k, experts = batch * tokens, indices.type.shape[2], weights[0].type.shape[0]  # type: ignore[union-attr]
        flat = b.reshape(decompose_quantise_activation(b, x, attrs["act"]), rows, width)
        chosen, share = b.reshape(indices, rows, top_k), b.reshape(gates, rows, top_k)
        if attrs["dispatch"] == "gather":
            picked = [None if w is None else b.op("index_select", w, chosen, axis=0) for w in weights]
            out = _expert_products(b, b.reshape(flat, rows, 1, 1, width), picked, attrs)
            out = b.reshape(out, rows, top_k, width)
            y = b.op("matmul", b.reshape(share, rows, 1, top_k), out)
            return b.reshape(y, batch, tokens, width)
        out = _expert_products(b, b.reshape(flat, 1, rows, width), weights, attrs)
        every = b.reshape(b.op("iota", size=(experts,)), 1, 1, experts)
        match = b.op("eq", b.reshape(chosen, rows, top_k, 1), every)
        spread = b.op("where", match, b.reshape(share, rows, top_k, 1), scalar(b, 0.0, x))
        total = b.op("transpose", b.op("sum", spread, axes=(1,)), perm=(1, 0))
        y = b.op("sum", b.op("mul", out, b.reshape(total, experts, rows, 1)), axes=(0,))
        return b.reshape(y, batch, tokens, width)

    def flops(self, *types: Any, **attrs: Any) -> Dim:
        """Of the chosen experts' products."""
        _, indices, _, up, _, gate = types[:6]
        products = 2 if gate is None else 3
        return 2 * products * product(indices.shape) * up.shape[1] * up.shape[2]


def _expert_products(b: FunctionBuilder, x: Value, weights: list[Value | None], attrs: dict[str, Any]) -> Value:
    """Build act(up x) (or act(gate x) * up x) times down: x [..., N, D] with weights [..., F, D] and [..., D, F]."""
    up, down, gate, up_bias, down_bias, gate_bias = weights
    assert up is not None
    assert down is not None
    inner, kind = _affine(b, x, up, up_bias), attrs["kind"]
    if gate is None:
        hidden = decompose_activation(b, inner, kind)
    else:
        hidden = decompose_gate(b, _affine(b, x, gate, gate_bias), inner, kind, **gate_of(attrs))
    return _affine(b, decompose_quantise_activation(b, hidden, attrs["act"]), down, down_bias)


def _affine(b: FunctionBuilder, x: Value, w: Value, bias: Value | None) -> Value:
    y = b.op("matmul", x, w, tb=True)
    if bias is None:
        return y
    *lead, width = bias.type.shape
    return b.op("add", y, b.reshape(bias, *lead, 1, width))
