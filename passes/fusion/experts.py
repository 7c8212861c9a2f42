"""The experts' products of a mixture, in three layouts of the work.

dense     sum over e of share[e] * mlp_e(x), the experts' matrices in one weight [E, F, D]
loop      the same, one addition an expert, each with matrices of its own
gather    for each token, gates times the products with its own experts' matrices
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from omnic.ir.graph import Node, Recipe, Value
from omnic.ir.op import Array
from omnic.ir.types import TensorType
from omnic.passes.fusion.look import Declined, Look, Site
from omnic.passes.fusion.probe import scalar_of

__all__ = ["Experts", "Matrix", "find_experts", "unshaped"]

_MOST = 1024


@dataclass(frozen=True)
class Matrix:
    """A matrix (or bias) of every expert: one weight [E, N, K] when ``stacked``, else one [N, K] for each.

    ``across`` ones are stored [.., K, N].
    """

    weights: tuple[Value, ...]
    across: bool = False
    stacked: bool = False

    def build(self, site: Site) -> Value:
        """Return the weight [E, N, K]."""
        first = self.weights[0]
        shape, element = first.type.shape, first.type.element
        if self.stacked:
            if not self.across:
                return site.current(first)
            recipe = Recipe("transpose", {"perm": (0, 2, 1)}, (site.recipe(first),))
            return site.derived(f"{first.name}.rows", TensorType(element, (shape[0], shape[2], shape[1])), recipe)
        recipe = Recipe("stack", {}, tuple(site.recipe(w) for w in self.weights))
        return site.derived(f"{_common(self.weights)}", TensorType(element, (len(self.weights), *shape)), recipe)


def _common(weights: tuple[Value, ...]) -> str:
    """Return the name that the experts' weights share: ``experts.gate`` for ``experts.0.gate``, ``experts.1.gate``."""
    parts = [w.name.split(".") for w in weights]
    if len(weights) > 1 and len({len(p) for p in parts}) == 1:
        kept = [column[0] for column in zip(*parts, strict=True) if len(set(column)) == 1]
        return ".".join(kept) or f"{weights[0].name}.stacked"
    return f"{weights[0].name}.stacked"


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture.

    Attributes:
        x: what they see.
        count: how many there are.
        kind: the activation.
        matrices: up, down, gate, and the biases of the same three.
        shares: values whose numbers are the share of each expert, by ``layout``.
        layout: ``dense`` [E, rows, 1], ``loop`` one [rows, 1] an expert, ``gather`` gates [rows, 1, k].
        chosen: for ``gather``, the indices [rows, k].
    """

    x: Value
    count: int
    kind: str
    matrices: tuple[Matrix | None, ...]
    shares: tuple[Value, ...]
    layout: str
    chosen: Value | None = None

    def build(self, site: Site) -> list[Value | None]:
        """Return the operands of ``moe`` from ``up`` on."""
        return [None if m is None else m.build(site) for m in self.matrices]

    def table(self, arrays: list[Array]) -> Array:
        """Return [rows, E] from the evaluated ``shares`` (and the indices, for ``gather``)."""
        if self.layout == "dense":
            return arrays[0].reshape(self.count, -1).T
        if self.layout == "loop":
            return np.stack([a.reshape(-1) for a in arrays], axis=1)
        gates, chosen = arrays
        chosen = chosen.reshape(-1, chosen.shape[-1]).astype(np.int64)
        out = np.zeros((len(chosen), self.count))
        np.add.at(out, (np.arange(len(chosen))[:, None], chosen), gates.reshape(chosen.shape))
        return out


@dataclass
class _Mlp:
    """One expert's (or all experts') products, as found."""

    x: Value
    kind: str
    parts: list[tuple[Value, bool] | None] = field(default_factory=list[tuple[Value, bool] | None])
    picked: Value | None = None


def find_experts(look: Look, node: Node) -> Experts | None:
    """Return the experts whose mixture ``node`` makes; None when it makes none."""
    if node.op == "sum":
        return _dense(look, node)
    if node.op == "add":
        return _loop(look, node)
    return _gather(look, node) if node.op == "matmul" else None


def unshaped(look: Look, value: Value) -> Value:
    """Return what ``value`` is a reshape of."""
    found = _strip(look, value)
    return value if found is None else found


def _strip(look: Look, value: Value | None) -> Value | None:
    while (node := look.is_op(value, "reshape")) is not None:
        value = node.operands[0]
    return value


def _dense(look: Look, node: Node) -> Experts | None:
    axes = node.attrs["axes"]
    product = look.is_op(node.operands[0], "mul")
    if axes != (0,) or product is None:
        return None
    for out, share in (product.operands, product.operands[::-1]):
        if out is None or share is None or share.type.rank != 3 or share.type.shape[-1] != 1:
            continue
        mlp = _mlp(look, out, 3)
        count = out.type.shape[0]
        if mlp is None or not isinstance(count, int):
            continue
        return Experts(mlp.x, count, mlp.kind, _matrices([mlp], True), (share,), "dense")
    return None


def _loop(look: Look, node: Node) -> Experts | None:
    """A chain of additions, one expert each; the chain may begin with zeros."""
    if any(r.op == "add" and _term(look, r) is not None for r in look.readers(node.result)):
        return None
    mlps: list[_Mlp] = []
    shares: list[Value] = []
    value: Value | None = node.result
    while len(mlps) <= _MOST:
        top = look.is_op(value, "add")
        found = _term(look, top) if top is not None else None
        if found is None:
            break
        mlp, share, value = found
        mlps.append(mlp)
        shares.append(share)
    last = _weighted(look, value) if value is not None else None
    if last is not None:
        mlps.append(last[0])
        shares.append(last[1])
    elif value is not None and not _zero(look, value):
        return None
    if len(mlps) < 2:
        return None
    first = mlps[-1]
    for other in mlps:
        if other.kind != first.kind or not look.same(unshaped(look, other.x), unshaped(look, first.x)):
            raise Declined("the experts of the sum do not see the same tokens through the same activation", node)
    return Experts(first.x, len(mlps), first.kind, _matrices(mlps[::-1], False), tuple(shares[::-1]), "loop")


def _zero(look: Look, value: Value) -> bool:
    return scalar_of(look, value) == 0.0


def _term(look: Look, node: Node) -> tuple[_Mlp, Value, Value] | None:
    """Return one expert's share of a sum, and the rest of the sum."""
    for term, rest in (node.operands[::-1], node.operands):
        found = _weighted(look, term) if term is not None else None
        if found is not None and rest is not None:
            return (*found, rest)
    return None


def _weighted(look: Look, value: Value) -> tuple[_Mlp, Value] | None:
    product = look.is_op(_strip(look, value), "mul")
    if product is None:
        return None
    for out, share in (product.operands, product.operands[::-1]):
        if out is None or share is None or share.type.shape[-1:] != (1,) or out.type.shape[-1] == 1:
            continue
        mlp = _mlp(look, out, 2)
        if mlp is not None:
            return mlp, share
    return None


def _gather(look: Look, node: Node) -> Experts | None:
    gates, out = node.operands
    if gates is None or out is None or node.attrs.get("tb", False) or gates.type.shape[-2:-1] != (1,):
        return None
    mlp = _mlp(look, out, 3)
    if mlp is None or mlp.picked is None:
        return None
    up = mlp.parts[0]
    assert up is not None
    count = up[0].type.shape[0]
    assert isinstance(count, int)
    return Experts(mlp.x, count, mlp.kind, _matrices([mlp], True), (gates, mlp.picked), "gather", mlp.picked)


def _matrices(mlps: list[_Mlp], stacked: bool) -> tuple[Matrix | None, ...]:
    out: list[Matrix | None] = []
    for column in zip(*(m.parts for m in mlps), strict=True):
        have = [part for part in column if part is not None]
        if not have:
            out.append(None)
            continue
        if len(have) != len(column) or len({across for _, across in have}) != 1:
            raise Declined("some experts have a bias or a gate and others have none")
        if len({w.type for w, _ in have}) != 1:
            raise Declined("the experts' matrices differ in shape")
        out.append(Matrix(tuple(w for w, _ in have), have[0][1], stacked))
    return tuple(out)


def _mlp(look: Look, out: Value, rank: int) -> _Mlp | None:
    """Return down(act(up x)) or down(act(gate x) * up x); matrices of ``rank`` dims."""
    last = _affine(look, out, rank)
    if last is None:
        return None
    inner, down, down_bias, picked = last
    hidden = look.is_op(_strip(look, inner), "gated_act", "act")
    if hidden is None:
        return None
    kind = str(hidden.attrs["kind"])
    first = [None if v is None else _affine(look, v, rank) for v in hidden.operands]
    if any(f is None for f in first):
        return None
    found = [f for f in first if f is not None]
    x, up, up_bias, _ = found[-1]
    gate = found[0] if len(found) == 2 else None
    if gate is not None and not look.same(unshaped(look, gate[0]), unshaped(look, x)):
        return None
    parts = [up, down, gate and gate[1], up_bias, down_bias, gate and gate[2]]
    return _Mlp(x, kind, parts, picked)


_Affine = tuple[Value, tuple[Value, bool], "tuple[Value, bool] | None", "Value | None"]


def _affine(look: Look, value: Value, rank: int) -> _Affine | None:
    """Return x, the matrix and whether it is across, the bias, and the indices it was picked by."""
    top = _strip(look, value)
    node = look.is_op(top, "matmul", "linear", "add")
    if node is None:
        return None
    bias: tuple[Value, bool] | None = None
    if node.op == "add":
        for inner, added in (node.operands, node.operands[::-1]):
            product = look.is_op(_strip(look, inner), "matmul", "linear")
            found = None if product is None or added is None else _stored(look, _strip(look, added))
            if product is not None and found is not None and found[0].type.rank == rank - 1:
                node, bias = product, (found[0], False)
                break
        else:
            return None
    if node.op == "linear":
        x, w, b = node.operands
        weight = None if w is None else look.weight(w)
        if rank != 2 or x is None or weight is None:
            return None
        inner_bias = None if b is None else look.weight(b)
        return x, (weight, False), bias if inner_bias is None else (inner_bias, False), None
    x, w = node.operands
    found = _stored(look, w)
    if x is None or found is None or found[0].type.rank != rank or node.attrs.get("ta", False):
        return None
    return x, (found[0], not node.attrs.get("tb", False)), bias, found[1]


def _stored(look: Look, value: Value | None) -> tuple[Value, Value | None] | None:
    """Return the weight behind a value, and the indices that pick among experts, if any do."""
    if value is None:
        return None
    weight = look.weight(value)
    if weight is not None:
        return weight, None
    node = look.is_op(value, "index_select")
    if node is None or node.operands[0] is None or node.attrs.get("axis", 0) != 0:
        return None
    weight = look.weight(node.operands[0])
    return None if weight is None else (weight, node.operands[1])

