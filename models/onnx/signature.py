"""Which input of a foreign decoder is what: tokens, positions, the mask, the cache, counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omnic.errors import InputError
from omnic.ir.dims import Dim
from omnic.ir.graph import Role
from omnic.ir.types import DType
from omnic.models.onnx.converter import B, S, T
from omnic.models.onnx.kinds import dtype_of_onnx

__all__ = ["CacheInput", "Signature", "read_signature"]


@dataclass(frozen=True)
class CacheInput:
    """One past input.

    Attributes:
        value: the ONNX input.
        state: the name of the state it becomes.
        role: what it holds.
        group: its layer.
        axis: the dim that grows.
        shape: its ONNX shape in dims, S - T on the axis that grows.
        dtype: its element type.
    """

    value: Any
    state: str
    role: Role
    group: int
    axis: int
    shape: tuple[Dim, ...]
    dtype: DType


@dataclass(frozen=True)
class Signature:
    """The inputs of a decoder by what they are; None where it has no such input."""

    tokens: Any
    positions: Any | None
    mask: Any | None
    caches: tuple[CacheInput, ...]
    counts: tuple[tuple[Any, Dim], ...]
    batch: Dim
    length: Dim


_TOKENS = re.compile(r"input_?ids|tokens?|token_ids|idx|ids|x|input", re.I)
_MASK = re.compile(r"(attention_?|padding_?|attn_)?mask", re.I)
_POSITIONS = re.compile(r"position|pos_ids|^pos$|input_pos", re.I)
_PAST_COUNT = re.compile(r"past_(seq|sequence|key_values?|kv)_?(len|length)|start_pos|cache_length|n_past", re.I)
_TOTAL_COUNT = re.compile(r"total_(seq|sequence)_?(len|length)", re.I)


def read_signature(graph: Any) -> Signature:
    """Classify the inputs of an ``onnx_ir`` graph.

    Raises:
        InputError: there are no tokens, or inputs that are none of these; all are listed together.
    """
    integers, floats, unknown = list[Any](), list[Any](), list[str]()
    tokens = positions = mask = None
    counts: list[tuple[Any, Dim]] = []
    for value in graph.inputs:
        if value.name in graph.initializers:
            continue
        dtype, shape = _dtype(value), value.shape
        rank = -1 if shape is None else len(shape)
        if dtype is None or shape is None:
            unknown.append(f"'{value.name}' has no type or no shape")
        elif _MASK.search(value.name) and rank == 2:
            mask = value
        elif dtype.is_float and rank >= 3:
            floats.append(value)
        elif dtype.is_integer and _POSITIONS.search(value.name) and rank in (1, 2):
            positions = value
        elif dtype.is_integer and _PAST_COUNT.search(value.name) and rank <= 1:
            counts.append((value, S - T))
        elif dtype.is_integer and _TOTAL_COUNT.search(value.name) and rank <= 1:
            counts.append((value, S))
        elif dtype.is_integer and rank == 2:
            integers.append(value)
        else:
            unknown.append(f"'{value.name}' is {dtype}[{', '.join(str(d) for d in shape)}]")
    named = [v for v in integers if _TOKENS.fullmatch(v.name)]
    tokens = named[0] if named else integers[0] if len(integers) == 1 else None
    unknown += [f"'{v.name}' is another input of integers" for v in integers if v is not tokens and tokens is not None]
    if tokens is None:
        names = ", ".join(v.name for v in graph.inputs)
        raise InputError("the graph has no input of token ids, integers [batch, tokens]", f"its inputs: {names}")
    batch, length = _size(tokens, 0, B), _size(tokens, 1, T)
    caches = _caches(graph, floats, batch, unknown)
    if unknown:
        raise InputError(f"{len(unknown)} inputs are none of tokens, positions, mask, cache or a count: "
                         f"{'; '.join(unknown)}", "export the decoder with those inputs fixed")
    return Signature(tokens, positions, mask, caches, tuple(counts), batch, length)


def _dtype(value: Any) -> DType | None:
    return None if value.dtype is None else dtype_of_onnx(int(value.dtype))


def _size(value: Any, axis: int, symbol: Dim) -> Dim:
    size = value.shape[axis]
    return int(size) if isinstance(size, int) else symbol


def _caches(graph: Any, inputs: Sequence[Any], batch: Dim, unknown: list[str]) -> tuple[CacheInput, ...]:
    found: list[CacheInput] = []
    taken: set[str] = set()
    for order, value in enumerate(inputs):
        axis = _growing(value)
        if axis is None:
            written = ", ".join(str(d) for d in value.shape)
            unknown.append(f"'{value.name}' [{written}] grows along no dim: a cache of fixed size, or another input")
            continue
        shape: list[Dim] = []
        for at, dim in enumerate(value.shape):
            if at == axis:
                shape.append(S - T)
            elif at == 0:
                shape.append(batch)
            elif isinstance(dim, int):
                shape.append(dim)
            elif at == 3 and (size := _head_size(value)) is not None:
                shape.append(size)
            else:
                unknown.append(f"'{value.name}': dim {at} ({dim}) is neither the batch nor the past")
                shape.append(1)
        role, group = _role(value.name, order, len(shape))
        name = f"kv.{group}.{role}"
        while name in taken:
            group += 1
            name = f"kv.{group}.{role}"
        taken.add(name)
        dtype = _dtype(value)
        assert dtype is not None
        found.append(CacheInput(value, name, role, group, axis, tuple(shape), dtype))
    return tuple(sorted(found, key=lambda cache: cache.group))


def _growing(value: Any) -> int | None:
    """Return the dim along which a cache grows: by the node that extends it, else by its symbolic dims."""
    rank, pending = len(value.shape), [value]
    while pending:
        for node, index in pending.pop().uses():
            if node.op_type == "Concat" and len(node.inputs) > 1:
                return int(node.attributes["axis"].value) % rank
            if node.op_type == "GroupQueryAttention" and index in (3, 4):
                return 2
            if node.op_type in ("Identity", "Cast", "Concat"):
                pending += node.outputs
    return None


def _head_size(value: Any) -> int | None:
    """Return the width of a head from the GroupQueryAttention that reads a cache, for caches that leave it open."""
    for node, _ in value.uses():
        if node.op_type != "GroupQueryAttention" or node.inputs[0].shape is None:
            continue
        heads, groups = (int(node.attributes[name].value) for name in ("num_heads", "kv_num_heads"))
        width = node.inputs[0].shape[-1]
        if isinstance(width, int):
            return width // (heads if node.inputs[1] is not None else heads + 2 * groups)
    return None


def _role(name: str, order: int, rank: int) -> tuple[Role, int]:
    number = re.search(r"\d+", name)
    group = int(number.group()) if number else order // 2
    if re.search(r"rope|k_pe|rotary", name, re.I):
        return "rope_k", group
    if re.search(r"latent|compressed|c_kv|ckv", name, re.I):
        return "latent", group
    tail = name[number.end() :] if number else name
    if re.search(r"value|(^|[._])v($|[._])|v$", tail, re.I):
        return "v", group
    if re.search(r"key|(^|[._])k($|[._])|k$", tail, re.I):
        return "k", group
    return ("k" if order % 2 == 0 else "v"), group
