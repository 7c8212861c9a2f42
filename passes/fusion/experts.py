"""The experts' products of a mixture, in three layouts of the work.

* dense: sum over e of share[e] * mlp_e(x), the experts' matrices in one weight [E, F, D];
* loop: the same, one addition an expert, each with matrices of its own;
* gather: for each token (or each pair of a token and an expert it chose), gates times the products with its own
  experts' matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from omnic.ir.dims import Dim
from omnic.ir.graph import AttrValue, Node, Recipe, Value
from omnic.ir.op import Array
from omnic.ir.types import TensorType
from omnic.passes.fusion.look import Declined, Look, Site
from omnic.passes.fusion.probe import run, scalar_of, shape_at, sizes

__all__ = ["Experts", "Matrix", "find_experts", "unshaped"]

_MOST = 1024


@dataclass(frozen=True)
class _Part:
    """One weight of an expert (or of all): whether it is stored [.., K, N], and which rows of N are meant.

    ``rows`` are (start, stop, step).
    """

    weight: Value
    across: bool = False
    rows: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Matrix:
    """A matrix (or bias) of every expert: one weight [E, N, K] when ``stacked``, else one [N, K] for each."""

    name: str
    parts: tuple[_Part, ...]
    stacked: bool

    def build(self, site: Site) -> Value:
        """Return the weight [E, N, K] (or [E, N])."""
        first = self.parts[0]
        if self.stacked and not first.across and first.rows is None:
            return site.current(first.weight)
        made = [_recipe(site, part, 1 if self.stacked else 0) for part in self.parts]
        recipe, shape = made[0]
        element = first.weight.type.element
        if self.stacked:
            return site.derived(f"{first.weight.name}.{self.name}", TensorType(element, shape), recipe)
        stack = Recipe("stack", {}, tuple(r for r, _ in made))
        return site.derived(_common(self.parts), TensorType(element, (len(made), *shape)), stack)


def _recipe(site: Site, part: _Part, axis: int) -> tuple[Recipe, tuple[Dim, ...]]:
    """Return how a part is made, rows of outputs (dim ``axis``) before columns, and its shape."""
    recipe, shape = site.recipe(part.weight), part.weight.type.shape
    if part.across:
        perm = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        recipe, shape = Recipe("transpose", {"perm": perm}, (recipe,)), tuple(shape[p] for p in perm)
    if part.rows is not None:
        start, stop, step = part.rows
        if step > 1:
            # Every step-th row: the rows in lots of ``step``, and one of each lot.
            lots = (*shape[:axis], (stop - start) // step, step, *shape[axis + 1 :])
            picked = Recipe("slice", {"axis": axis + 1, "start": start, "stop": start + 1},
                            (Recipe("reshape", {"shape": lots}, (recipe,)),))
            shape = (*lots[: axis + 1], *lots[axis + 2 :])
            return Recipe("reshape", {"shape": shape}, (picked,)), shape
        recipe = Recipe("slice", {"axis": axis, "start": start, "stop": stop}, (recipe,))
        shape = (*shape[:axis], stop - start, *shape[axis + 1 :])
    return recipe, shape


def _common(experts: tuple[_Part, ...]) -> str:
    """Return the name that the experts' weights share: ``experts.gate`` for ``experts.0.gate``, ``experts.1.gate``."""
    parts = [p.weight.name.split(".") for p in experts]
    kept: list[str] = []
    if len({len(p) for p in parts}) == 1:
        kept = [column[0] for column in zip(*parts, strict=True) if len(set(column)) == 1]
    return ".".join(kept) or f"{experts[0].weight.name}.stacked"


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture.

    Attributes:
        x: what they see.
        count: how many there are.
        act: the attributes of the activation.
        matrices: up, down, gate, and the biases of the same three.
        shares: values whose numbers are the share of each expert, by ``layout``.
        layout: ``dense`` [E, rows, 1], ``loop`` one [rows, 1] an expert, ``gather`` gates and then indices, k a row.
        top_k: for ``gather``, k.
    """

    x: Value
    count: int
    act: Mapping[str, AttrValue]
    matrices: tuple[Matrix | None, ...]
    shares: tuple[Value, ...]
    layout: str
    top_k: int = 0

    def build(self, site: Site) -> list[Value | None]:
        """Return the operands of ``moe`` from ``up`` on."""
        return [None if m is None else m.build(site) for m in self.matrices]

    def table(self, arrays: list[Array]) -> Array:
        """Return [rows, E] from the evaluated ``shares``."""
        if self.layout == "dense":
            return arrays[0].reshape(self.count, -1).T
        if self.layout == "loop":
            return np.stack([a.reshape(-1) for a in arrays], axis=1)
        gates, chosen = arrays
        chosen = chosen.reshape(-1, self.top_k).astype(np.int64)
        out = np.zeros((len(chosen), self.count))
        np.add.at(out, (np.arange(len(chosen))[:, None], chosen), gates.reshape(chosen.shape))
        return out


@dataclass(frozen=True)
class _Affine:
    """x times a matrix, plus a bias, picked among experts by ``picked``."""

    x: Value
    matrix: _Part
    bias: _Part | None
    picked: Value | None


@dataclass(frozen=True)
class _Mlp:
    """One expert's (or all experts') products, as found."""

    x: Value
    act: Mapping[str, AttrValue]
    parts: tuple[_Part | None, ...]
    picked: Value | None


def find_experts(look: Look, node: Node) -> Experts | None:
    """Return the experts whose mixture ``node`` makes; None when it makes none."""
    if node.op == "sum":
        return _dense(look, node) or _pairs(look, node)
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


# -- layouts ----------------------------------------------------------------------------------------------


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
        if mlp is None or mlp.picked is not None or not isinstance(count, int):
            continue
        return Experts(mlp.x, count, mlp.act, _matrices([mlp], True), (share,), "dense")
    return None


def _loop(look: Look, node: Node) -> Experts | None:
    """A chain of additions, one expert each; the chain may begin with zeros."""
    if any(r.op == "add" and _term(look, r) is not None for r in look.readers(node.result)):
        return None
    mlps: list[_Mlp] = []
    shares: list[Value] = []
    value: Value = node.result
    while len(mlps) <= _MOST:
        top = look.is_op(value, "add")
        found = _term(look, top) if top is not None else None
        if found is None:
            break
        mlp, share, value = found
        mlps.append(mlp)
        shares.append(share)
    last = _weighted(look, value)
    if last is not None:
        mlps.append(last[0])
        shares.append(last[1])
    elif scalar_of(look, value) != 0.0:
        return None
    if len(mlps) < 2:
        return None
    first = mlps[-1]
    for other in mlps:
        if other.act != first.act or not look.same(unshaped(look, other.x), unshaped(look, first.x)):
            raise Declined("the experts of the sum do not see the same tokens through the same activation", node)
    return Experts(first.x, len(mlps), first.act, _matrices(mlps[::-1], False), tuple(shares[::-1]), "loop")


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
    top_k = gates.type.shape[-1]
    if mlp is None or mlp.picked is None or not isinstance(top_k, int):
        return None
    return Experts(mlp.x, _count(mlp), mlp.act, _matrices([mlp], True), (gates, mlp.picked), "gather", top_k)


def _pairs(look: Look, node: Node) -> Experts | None:
    """The sum over the chosen experts of gates times products, one row for each pair of a token and an expert."""
    inner = node.operands[0]
    product = look.is_op(_strip(look, inner), "mul")
    if product is None or inner is None or inner.type.rank != 3 or node.attrs["axes"] != (1,):
        return None
    top_k = inner.type.shape[1]
    for out, share in (product.operands, product.operands[::-1]):
        if out is None or share is None or share.type.shape[-1] != 1 or not isinstance(top_k, int):
            continue
        mlp = _mlp(look, out, 3)
        if mlp is None or mlp.picked is None:
            continue
        x = _repeated(look, mlp.x, top_k, node)
        return Experts(x, _count(mlp), mlp.act, _matrices([mlp], True), (share, mlp.picked), "gather", top_k)
    return None


def _count(mlp: _Mlp) -> int:
    up = mlp.parts[0]
    assert up is not None
    count = up.weight.type.shape[0]
    assert isinstance(count, int)
    return count


def _repeated(look: Look, value: Value, times: int, node: Node) -> Value:
    """Return the tokens of which ``value`` holds each ``times`` times, one after the other."""
    x = value
    while (moved := look.is_op(x, "reshape", "broadcast", "index_select")) is not None:
        if moved.operands[0] is None or moved.operands[0].weight:
            break
        x = moved.operands[0]
    dims = sizes(look.module.dims, B=2, T=3)
    shape = shape_at(x.type.shape, dims)
    numbered = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)
    found = run(look, value, {x: numbered}, dims)
    wanted = np.repeat(numbered.reshape(-1, shape[-1]), times, axis=0)
    if not np.array_equal(found.reshape(-1, shape[-1]), wanted):
        raise Declined(f"the experts do not see every token {times} times in a row", node)
    return x


# -- products ---------------------------------------------------------------------------------------------


def _matrices(mlps: list[_Mlp], stacked: bool) -> tuple[Matrix | None, ...]:
    names = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias")
    out: list[Matrix | None] = []
    for name, column in zip(names, zip(*(m.parts for m in mlps), strict=True), strict=True):
        have = [part for part in column if part is not None]
        if not have:
            out.append(None)
            continue
        if len(have) != len(column) or len({(p.across, p.rows) for p in have}) != 1:
            raise Declined("some experts have a bias or a gate and others have none")
        if len({p.weight.type for p in have}) != 1:
            raise Declined("the experts' matrices differ in shape")
        out.append(Matrix(name, tuple(have), stacked))
    return tuple(out)


def _mlp(look: Look, out: Value, rank: int) -> _Mlp | None:
    """Return down(act(up x)) or down(act(gate x) * up x); matrices of ``rank`` dims."""
    last = _affine(look, out, rank)
    hidden = None if last is None else look.is_op(_strip(look, last.x), "gated_act", "act")
    if last is None or hidden is None:
        return None
    found: list[_Affine] = []
    for value in hidden.inputs():
        whole, rows = _cut(look, value)
        one = _affine(look, whole, rank)
        if one is None:
            return None
        bias = None if one.bias is None else replace(one.bias, rows=rows)
        found.append(replace(one, matrix=replace(one.matrix, rows=rows), bias=bias))
    up, gate = found[-1], found[0] if len(found) == 2 else None
    if gate is not None and not look.same(unshaped(look, gate.x), unshaped(look, up.x)):
        return None
    picks = [a.picked for a in (up, last, gate) if a is not None]
    picked = picks[0]
    if any((p is None) != (picked is None) for p in picks):
        return None
    if picked is not None and not all(p is not None and look.same(p, picked) for p in picks):
        return None
    parts = (up.matrix, last.matrix, gate and gate.matrix, up.bias, last.bias, gate and gate.bias)
    return _Mlp(up.x, hidden.attrs, parts, picked)


def _cut(look: Look, value: Value) -> tuple[Value, tuple[int, int, int] | None]:
    """Return the product that a value is part of, and which of its outputs the part is."""
    stripped = unshaped(look, value)
    node = look.is_op(stripped, "split", "slice")
    if node is None or node.operands[0] is None:
        return value, None
    whole = node.operands[0]
    if int(str(node.attrs["axis"])) % whole.type.rank != whole.type.rank - 1:
        return value, None
    size, begin = stripped.type.shape[-1], 0
    if node.op == "slice":
        start = node.attrs["start"]
        begin = start[0] if isinstance(start, tuple) and isinstance(start[0], int) else -1
    else:
        before = [r.type.shape[-1] for r in node.results[: node.results.index(stripped)]]
        begin = sum(d for d in before if isinstance(d, int))
    if not isinstance(size, int) or begin < 0:
        return value, None
    lots = look.is_op(whole, "reshape")
    source, count = None if lots is None else lots.operands[0], whole.type.shape[-2]
    step = whole.type.shape[-1]
    if size == 1 and source is not None and isinstance(count, int) and isinstance(step, int) and step > 1:
        # Outputs in lots of ``step`` (gate and up next to each other), and one of each lot.
        if source.type.shape[-1] != count * step or value.type.shape[-1] != count:
            return value, None
        return source, (begin, begin + count * step, step)
    return whole, (begin, begin + size, 1)


def _affine(look: Look, value: Value, rank: int) -> _Affine | None:
    """Return the product that ``value`` is, None when it is none with a weight of ``rank`` dims."""
    node = look.is_op(_strip(look, value), "matmul", "linear", "add")
    if node is None:
        return None
    bias: _Part | None = None
    if node.op == "add":
        for inner, added in (node.operands, node.operands[::-1]):
            product = look.is_op(_strip(look, inner), "matmul", "linear")
            found = None if product is None or added is None else _stored(look, _strip(look, added))
            if product is not None and found is not None and found[0].type.rank == rank - 1:
                node, bias = product, _Part(found[0])
                break
        else:
            return None
    if node.op == "linear":
        x, w, b = node.operands
        weight = None if w is None else look.weight(w)
        if rank != 2 or x is None or weight is None:
            return None
        own = None if b is None else look.weight(b)
        return _Affine(x, _Part(weight), bias if own is None else _Part(own), None)
    left, right = node.operands
    assert left is not None
    assert right is not None
    ta, tb = bool(node.attrs.get("ta", False)), bool(node.attrs.get("tb", False))
    found = _stored(look, right)
    if found is not None and found[0].type.rank == rank and not ta:
        return _Affine(left, _Part(found[0], across=not tb), bias, found[1])
    # The matrix may stand on the left of a single column.
    found = _stored(look, left)
    column = right.type.shape[-2] if tb else right.type.shape[-1]
    if found is not None and found[0].type.rank == rank and column == 1:
        return _Affine(right, _Part(found[0], across=ta), bias, found[1])
    return None


def _stored(look: Look, value: Value | None) -> tuple[Value, Value | None] | None:
    """Return the weight behind a value, and the indices that pick among experts, if any do."""
    if value is None:
        return None
    weight = look.weight(value)
    if weight is not None:
        return weight, None
    # Rows of a matrix are an embedding, in the words of an importer.
    node = look.is_op(value, "index_select", "embedding")
    if node is None or node.operands[0] is None or node.attrs.get("axis", 0) != 0:
        return None
    weight = look.weight(node.operands[0])
    return None if weight is None else (weight, node.operands[1])
