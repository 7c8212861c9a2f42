"""The lowering table: op of the IR -> torch operators that ExecuTorch has kernels for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnic.ir.graph import Node
from omnic.ir.types import DType
from omnic.targets.executorch.attend import STATEFUL, activated, gated
from omnic.targets.executorch.coded import Coded, coded_product, coded_rows
from omnic.targets.executorch.module import TORCH_DTYPES, Walk
from omnic.targets.executorch.states import CACHES

__all__ = ["LOWERINGS", "Lowering", "ranked"]

Lowering = Callable[..., Any]


def _plain(function: Callable[..., Any]) -> Lowering:
    return lambda walk, node, *operands, **attrs: function(*operands)


def _number(value: Any, kind: DType) -> Any:
    if not kind.is_float:
        return bool(value) if kind == DType.BOOL else int(value)
    number = float(value)
    if math.isfinite(number) and abs(number) > float(ml_dtypes.finfo(kind.numpy).max):
        number = float(np.float64(number).astype(kind.numpy))
    return number


def _mod(a: Tensor, b: Tensor) -> Tensor:
    """The remainder with the sign of the divisor; ExecuTorch's kernel gives whole numbers the dividend's."""
    return torch.remainder(a, b) if a.is_floating_point() else a - torch.floor_divide(a, b) * b


def _constant(walk: Walk, node: Node, *, values: Any, shape: Any, type: DType) -> Tensor:
    numbers, kind = [_number(v, type) for v in values], TORCH_DTYPES[type]
    sizes = walk.shape(shape)
    if len(numbers) == 1:
        return torch.full(sizes, numbers[0], dtype=kind)
    return torch.tensor(numbers, dtype=kind).reshape(sizes)


def _cast(walk: Walk, node: Node, x: Tensor, *, to: DType) -> Tensor:
    return (
        x.to(TORCH_DTYPES[to])
        if to in (DType.I64, DType.I32, DType.BOOL, DType.I8, DType.U8) or not to.is_float
        else (x.float() if to == DType.F32 else x.to(TORCH_DTYPES[to]).float())
    )


def _clamp(walk: Walk, node: Node, x: Tensor, *, min: float | None, max: float | None) -> Tensor:
    return torch.clamp(x, min, max)


def _reduce(function: Callable[..., Tensor]) -> Lowering:
    return lambda walk, node, x, *, axes, keepdims: function(x, list(axes), keepdims)


def _softmax(walk: Walk, node: Node, x: Tensor, *, axis: int) -> Tensor:
    power = torch.exp(x - x.amax(axis, keepdim=True).clamp(min=-1e30))
    total = power.sum(axis, keepdim=True)
    return power / torch.where(total == 0, 1.0, total)


def _matmul(walk: Walk, node: Node, a: Tensor, b: Tensor, *, ta: bool, tb: bool) -> Tensor:
    return (a.transpose(-1, -2) if ta else a) @ (b.transpose(-1, -2) if tb else b)


def _reshape(walk: Walk, node: Node, x: Tensor, *, shape: Any) -> Tensor:
    return x.reshape(walk.shape(shape))


def _slice(walk: Walk, node: Node, x: Tensor, *, axis: int, start: Any, stop: Any) -> Tensor:
    begin, end = walk.shape(start)[0], walk.shape(stop)[0]
    return x.narrow(axis, begin, end - begin)


def _split(walk: Walk, node: Node, x: Tensor, *, sizes: Any, axis: int) -> tuple[Tensor, ...]:
    return tuple(torch.split(x, walk.shape(sizes), axis))


def _pad(walk: Walk, node: Node, x: Tensor, *, axis: int, before: int, after: int, value: float) -> Tensor:
    behind = x.dim() - 1 - axis % x.dim()
    return F.pad(x, [0, 0] * behind + [before, after], value=value)


def _iota(walk: Walk, node: Node, *, size: Any, type: DType) -> Tensor:
    return torch.arange(walk.shape(size)[0], dtype=TORCH_DTYPES[type])


def _common(x: Tensor, index: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    axis = axis % x.dim()
    shape = [b if a == 1 else a for a, b in zip(x.shape, index.shape, strict=True)]
    ours = [x.shape[i] if i == axis else d for i, d in enumerate(shape)]
    theirs = [index.shape[i] if i == axis else d for i, d in enumerate(shape)]
    return x.expand(ours), index.expand(theirs)


def _gather(walk: Walk, node: Node, x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    wide, where = _common(x, index, axis)
    return torch.gather(wide, axis, where)


def _index_select(walk: Walk, node: Node, x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    """``index_select`` and never ``aten.index``, which is many times slower."""
    axis = axis % x.dim()
    found = torch.index_select(x, axis, index.reshape(-1))
    return found.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _scatter(walk: Walk, node: Node, x: Tensor, index: Tensor, updates: Tensor, *, axis: int, reduce: str) -> Tensor:
    where = index.expand(updates.shape)
    add = reduce == "add"
    return torch.scatter_add(x, axis, where, updates) if add else torch.scatter(x, axis, where, updates)


def ranked(x: Tensor, count: int, axis: int, descending: bool = True) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` in order and where they were; equal numbers by ascending index.

    ExecuTorch has no sort, and its topk leaves the order of equal numbers open: the rank of a number is how many stand
    before it.
    """
    last = x.transpose(axis, -1)
    size = last.shape[-1]
    mine, other = last[..., :, None], last[..., None, :]
    place = torch.arange(size)
    before = (other > mine if descending else other < mine) | ((other == mine) & (place[None, :] < place[:, None]))
    rank = before.long().sum(-1)
    at = torch.where(rank[..., None, :] == torch.arange(count)[:, None], place, 0).sum(-1)
    return torch.gather(last, -1, at).transpose(axis, -1), at.transpose(axis, -1)


def _topk(walk: Walk, node: Node, x: Tensor, *, k: int, axis: int) -> tuple[Tensor, Tensor]:
    return ranked(x, k, axis)


def _sort(walk: Walk, node: Node, x: Tensor, *, axis: int, descending: bool) -> tuple[Tensor, Tensor]:
    return ranked(x, x.shape[axis], axis, descending)


def _conv(walk: Walk, node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    size = weight.shape[1]
    steps = x.shape[1] - size + 1
    y = x.narrow(1, 0, steps) * weight[:, 0]
    for k in range(1, size):
        y = y + x.narrow(1, k, steps) * weight[:, k]
    return y if bias is None else y + bias


# -- composites
def _product(x: Tensor, w: Tensor | Coded, bias: Tensor | None) -> Tensor:
    return coded_product(x, w, bias) if isinstance(w, Coded) else F.linear(x, w, bias)


def _linear(walk: Walk, node: Node, x: Tensor, w: Tensor | Coded, bias: Tensor | None, *, act: str) -> Tensor:
    return _product(x, w, bias)


def _embedding(walk: Walk, node: Node, w: Tensor | Coded, tokens: Tensor) -> Tensor:
    if isinstance(w, Coded):
        return coded_rows(w, tokens, node.result.type.shape[-1])  # type: ignore[arg-type]
    return F.embedding(tokens, w)


def _gated_act(
    walk: Walk, node: Node, gate: Tensor, up: Tensor, *, kind: str, alpha: float, beta: float, limit: float | None
) -> Tensor:
    return gated(gate, up, kind, alpha, beta, limit)


def _rms_norm(walk: Walk, node: Node, x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    # The mean as a product: XNNPACK takes it, and the norm does not end its part of the program, as ``mean`` does.
    mean = (x * x).mean(-1, keepdim=True) if walk.plain else F.linear(x * x, walk.means[x.shape[-1]])
    y = x * torch.rsqrt(mean + eps)
    return y if weight is None else y * weight


def _layer_norm(walk: Walk, node: Node, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _lm_head(
    walk: Walk,
    node: Node,
    x: Tensor,
    w: Tensor | Coded,
    rows: Tensor | None,
    bias: Tensor | None,
    *,
    softcap: float,
    act: str,
) -> Tensor:
    # The only token of a call, asked for once, is there already.
    if rows is not None and (node.operands[0].type.shape[1], node.result.type.shape[1]) != (1, 1):  # type: ignore
        x = torch.index_select(x, 1, rows[0])
    logits = _product(x, w, bias)
    return torch.tanh(logits / softcap) * softcap if softcap else logits


LOWERINGS: dict[str, Lowering] = {
    "constant": _constant,
    "add": _plain(torch.add),
    "sub": _plain(torch.sub),
    "mul": _plain(torch.mul),
    "div": _plain(torch.div),
    "pow": _plain(torch.pow),
    "minimum": _plain(torch.minimum),
    "maximum": _plain(torch.maximum),
    "floordiv": _plain(torch.floor_divide),
    "mod": _plain(_mod),
    "eq": _plain(torch.eq),
    "ne": _plain(torch.ne),
    "lt": _plain(torch.lt),
    "le": _plain(torch.le),
    "gt": _plain(torch.gt),
    "ge": _plain(torch.ge),
    "and": _plain(torch.logical_and),
    "or": _plain(torch.logical_or),
    "not": _plain(torch.logical_not),
    "neg": _plain(torch.neg),
    "abs": _plain(torch.abs),
    "exp": _plain(torch.exp),
    "log": _plain(torch.log),
    "sqrt": _plain(torch.sqrt),
    "rsqrt": _plain(torch.rsqrt),
    "sin": _plain(torch.sin),
    "cos": _plain(torch.cos),
    "tanh": _plain(torch.tanh),
    "sigmoid": _plain(torch.sigmoid),
    "erf": _plain(torch.erf),
    "round": _plain(torch.round),
    "relu": _plain(torch.relu),
    "clamp": _clamp,
    "where": _plain(torch.where),
    "cast": _cast,
    "sum": _reduce(torch.sum),
    "max": _reduce(torch.amax),
    "mean": _reduce(torch.mean),
    "argmax": lambda walk, node, x, *, axis: torch.argmax(x, axis),
    "cumsum": lambda walk, node, x, *, axis: torch.cumsum(x, axis),
    "softmax": _softmax,
    "matmul": _matmul,
    "reshape": _reshape,
    "transpose": lambda walk, node, x, *, perm: x.permute(list(perm)),
    "broadcast": lambda walk, node, x, *, shape: x.expand(walk.shape(shape)),
    "slice": _slice,
    "concat": lambda walk, node, *xs, axis: torch.cat(xs, axis),
    "split": _split,
    "pad": _pad,
    "iota": _iota,
    "gather": _gather,
    "index_select": _index_select,
    "scatter": _scatter,
    "topk": _topk,
    "sort": _sort,
    "depthwise_conv1d": _plain(lambda *x: _conv(None, None, *x)),  # type: ignore[arg-type]
    "linear": _linear,
    "embedding": _embedding,
    "act": lambda walk, node, x, *, kind: activated(x, kind),
    "gated_act": _gated_act,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "lm_head": _lm_head,
    **CACHES,
    **STATEFUL,
}
