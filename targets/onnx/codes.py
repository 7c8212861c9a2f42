"""States that are stored as codes: the buffers of one state, and numbers into codes and back, in operators.

A state ``i4<g32, asym>[B, G, S, D]`` is three buffers, each bound as input and as output: its codes u8 [B, G, S, D/2]
in the canonical packing (the lowest bits the lowest index; 8-bit codes are i8), ``.scale`` f16 [B, G, S, D/32] and
``.zero`` u8 of the same shape; with scales of one only the codes.  A state in blocks of tokens, ``i4<g32, asym,
axis-2>[B, G, S, D]``, has one entry a block instead of one a slot: u8 [B, G, S/32, 16 D], channel by channel, and f16
and u8 [B, G, S/32, D].  Every step is the one of
:func:`omnic.ir.packing.quantise`, in f32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as onnx

from omnic.ir.dims import Dim
from omnic.ir.packing import FP4_LEVELS, NF4_LEVELS, peak_of
from omnic.ir.types import Storage, TensorType
from omnic.targets.onnx.writer import GraphWriter

__all__ = ["BUFFER_TYPES", "buffers", "decode", "decode_blocks", "encode", "encode_blocks"]

#: type of a buffer in a program's description -> numpy's
BUFFER_TYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "u8": np.uint8}
Parts = dict[str, onnx.Value]


def buffers(type: TensorType) -> dict[str, tuple[str, tuple[Dim, ...]]]:
    """Return (type, shape) of each buffer of a state, by the suffix of its name."""
    element, (*others, size) = type.element, type.shape
    if not isinstance(element, Storage):
        return {"": ("f16" if str(element) == "f16" else "f32", type.shape)}
    if element.axis == -2:
        return _block_buffers(element, type.shape)
    assert isinstance(size, int)
    codes = ("i8" if element.bits == 8 else "u8", (*others, -(-size * element.bits // 8)))
    found: dict[str, tuple[str, tuple[Dim, ...]]] = {"": codes}
    if element.scale != "one":
        found[".scale"] = (element.scale, (*others, element.groups(size)))
    if element.asym:
        found[".zero"] = ("u8", (*others, element.groups(size)))
    return found


def _block_buffers(element: Storage, shape: tuple[Dim, ...]) -> dict[str, tuple[str, tuple[Dim, ...]]]:
    *others, slots, width = shape
    assert isinstance(slots, int) and isinstance(width, int)
    count = slots // element.group
    bytes = width * -(-element.group * element.bits // 8)
    found: dict[str, tuple[str, tuple[Dim, ...]]] = {
        "": ("i8" if element.bits == 8 else "u8", (*others, count, bytes)),
        ".scale": (element.scale, (*others, count, width)),
    }
    if element.asym:
        found[".zero"] = ("u8", (*others, count, width))
    return found


def encode_blocks(w: GraphWriter, x: onnx.Value, type: Storage, rank: int, width: int) -> Parts:
    """Return the buffers' numbers for blocks of tokens, x f32 [..., n, group, D]; ``rank`` is the state's."""
    turned = w.op("Transpose", x, perm=[*range(rank - 1), rank, rank - 1])
    parts = encode(w, turned, type, rank + 1, type.group)
    lead = [0] * (rank - 1)
    return {s: w.op("Reshape", part, w.ints(*lead, -1)) for s, part in parts.items()}


def decode_blocks(w: GraphWriter, parts: Parts, type: Storage, rank: int, width: int) -> onnx.Value:
    """Return the numbers [..., n * group, D] of the buffers of n blocks; ``rank`` is the state's."""
    lead = [0] * (rank - 1)
    split = {s: w.op("Reshape", part, w.ints(*lead, width, -1)) for s, part in parts.items()}
    numbers = decode(w, split, type, rank + 1, type.group)
    turned = w.op("Transpose", numbers, perm=[*range(rank - 1), rank, rank - 1])
    return w.op("Reshape", turned, w.ints(*[0] * (rank - 2), -1, width))


def _groups(type: Storage, size: int) -> tuple[int, int]:
    """(groups of a token, numbers of a group)."""
    return type.groups(size), type.group if 0 < type.group < size else size


def _number(w: GraphWriter, value: float) -> onnx.Value:
    return w.const(np.float32(value))


def _padded(w: GraphWriter, x: onnx.Value, fill: int) -> onnx.Value:
    """Numbers with ``fill`` zeros behind each row."""
    return w.op("Pad", x, w.ints(0, fill), None, w.ints(-1)) if fill else x


def encode(w: GraphWriter, x: onnx.Value, type: Storage, rank: int, size: int) -> Parts:
    """Return the buffers' numbers for x f32 [..., size] of ``rank`` dims."""
    count, group = _groups(type, size)
    same = [0] * (rank - 1)
    shaped = w.op("Reshape", _padded(w, x, count * group - size), w.ints(*same, count, group))
    last, levels = w.ints(-1), float(2**type.bits - 1)
    parts: Parts = {}
    shift: onnx.Value | None = None
    if type.scale == "one":
        units = shaped
    else:
        if type.asym:
            low = w.op("Min", w.op("ReduceMin", shaped, last, keepdims=1), _number(w, 0))
            high = w.op("Max", w.op("ReduceMax", shaped, last, keepdims=1), _number(w, 0))
            value = w.op("Div", w.op("Sub", high, low), _number(w, levels))
        else:
            value = w.op("Div", w.op("ReduceMax", w.op("Abs", shaped), last, keepdims=1), _number(w, peak_of(type)))
        stored = w.op("Cast", value, to=onnx.DataType.FLOAT16) if type.scale == "f16" else value
        parts[".scale"] = w.op("Squeeze", stored, last)
        scale = w.op("Cast", stored, to=onnx.DataType.FLOAT) if type.scale == "f16" else value
        used = w.op("Greater", scale, _number(w, 0))
        divisor = w.op("Where", used, scale, _number(w, 1))
        units = w.op("Div", shaped, divisor)
        if type.asym:
            steps = w.op("Round", w.op("Div", w.op("Neg", low), divisor))
            shift = w.op("Clip", steps, _number(w, 0), _number(w, levels))
            parts[".zero"] = w.op("Squeeze", w.op("Cast", shift, to=onnx.DataType.UINT8), last)
        else:
            units = w.op("Where", used, units, _number(w, 0))
    codes = w.op("Reshape", _codes(w, units, type, shift), w.ints(*same, count * group))
    if count * group != size:
        codes = w.op("Slice", codes, w.ints(0), w.ints(size), last)
    parts[""] = _packed(w, codes, type, rank, size)
    return parts


def _codes(w: GraphWriter, units: onnx.Value, type: Storage, shift: onnx.Value | None) -> onnx.Value:
    """Codes as f32 whole numbers: signed at 8 bits, else from 0 on."""
    half = float(2 ** (type.bits - 1))
    if type.kind == "nf4":
        middles = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / np.float32(2)
        above = w.op("Greater", w.op("Unsqueeze", units, w.ints(-1)), w.const(middles))
        return w.op("ReduceSum", w.op("Cast", above, to=onnx.DataType.FLOAT), w.ints(-1), keepdims=0)
    rounded = w.op("Round", units)
    if shift is not None:
        found = w.op("Clip", w.op("Add", rounded, shift), _number(w, 0), _number(w, 2 * half - 1))
        return w.op("Sub", found, _number(w, half)) if type.bits == 8 else found
    found = w.op("Clip", rounded, _number(w, -half), _number(w, half - 1))
    return found if type.bits == 8 else w.op("Add", found, _number(w, half))


def _packed(w: GraphWriter, codes: onnx.Value, type: Storage, rank: int, size: int) -> onnx.Value:
    if type.bits == 8:
        return w.op("Cast", codes, to=onnx.DataType.INT8)
    per = 8 // type.bits
    codes = _padded(w, codes, -size % per)
    shaped = w.op("Reshape", codes, w.ints(*[0] * (rank - 1), -(-size // per), per))
    places = w.const(np.array([2.0 ** (type.bits * i) for i in range(per)], np.float32))
    total = w.op("ReduceSum", w.op("Mul", shaped, places), w.ints(-1), keepdims=0)
    return w.op("Cast", total, to=onnx.DataType.UINT8)


def decode(w: GraphWriter, parts: Parts, type: Storage, rank: int, size: int) -> onnx.Value:
    """Return the numbers [..., size] that buffers of ``rank`` dims stand for."""
    count, group = _groups(type, size)
    same, codes = [0] * (rank - 1), parts[""]
    if type.bits < 8:
        per, mask = 8 // type.bits, w.const(2**type.bits - 1, np.uint8)
        split: list[onnx.Value] = []
        for place in range(per):
            bits = w.const(place * type.bits, np.uint8)
            moved = w.op("BitShift", codes, bits, direction="RIGHT") if place else codes
            kept = w.op("BitwiseAnd", moved, mask) if place < per - 1 else moved
            split.append(w.op("Unsqueeze", kept, w.ints(-1)))
        width = -(-size // per) * per
        codes = w.op("Reshape", w.op("Concat", *split, axis=-1), w.ints(*same, width))
        if width != size:
            codes = w.op("Slice", codes, w.ints(0), w.ints(size), w.ints(-1))
    if type.kind in ("nf4", "fp4"):
        levels = w.const(NF4_LEVELS if type.kind == "nf4" else FP4_LEVELS)
        units = w.op("Gather", levels, w.op("Cast", codes, to=onnx.DataType.INT32))
    else:
        units = w.op("Cast", codes, to=onnx.DataType.FLOAT)
    half = float(2 ** (type.bits - 1))
    if type.scale == "one":
        plain = type.bits == 8 or type.kind in ("nf4", "fp4")
        return units if plain else w.op("Sub", units, _number(w, half))
    shaped = w.op("Reshape", _padded(w, units, count * group - size), w.ints(*same, count, group))
    if ".zero" in parts:
        zero = w.op("Cast", parts[".zero"], to=onnx.DataType.FLOAT)
        zero = w.op("Sub", zero, _number(w, half)) if type.bits == 8 else zero
        shaped = w.op("Sub", shaped, w.op("Unsqueeze", zero, w.ints(-1)))
    elif type.bits < 8 and type.kind not in ("nf4", "fp4"):
        shaped = w.op("Sub", shaped, _number(w, half))
    scale = w.op("Cast", parts[".scale"], to=onnx.DataType.FLOAT) if type.scale == "f16" else parts[".scale"]
    numbers = w.op("Reshape", w.op("Mul", shaped, w.op("Unsqueeze", scale, w.ints(-1))), w.ints(*same, count * group))
    return w.op("Slice", numbers, w.ints(0), w.ints(size), w.ints(-1)) if count * group != size else numbers
