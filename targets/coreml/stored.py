"""Weights as constants of MIL: plain ones, codes in blocks with scales, and codes through a table.

While a function is built a weight is a constant without bytes (an array of stride 0); its numbers are made when the
package is written, one weight at a time, once for all functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import InputError
from omnic.ir.graph import Weight
from omnic.ir.packing import FP4_LEVELS, NF4_LEVELS, QTensor, scale_numbers
from omnic.ir.types import Storage
from omnic.ir.weights import WeightStore
from omnic.ir.weights.store import fixed_shape
from omnic.targets.coreml.evaluator.types import BITS
from omnic.targets.coreml.mil import BlobWriter, Builder, Var, nptype

__all__ = ["Blob", "Form", "WeightTable", "check_scales", "form_of", "read_codes", "stored_bytes", "unplaced"]

#: kind -> numbers of its table; integers are their own
_LEVELS = {
    "nf4": tuple(float(x) for x in NF4_LEVELS),
    "fp4": tuple(float(x) for x in FP4_LEVELS),
    "t2": (-1.0, 0.0, 1.0, 1.0),
    **{f"i{b}": tuple(float(q) for q in range(-(2 ** (b - 1)), 2 ** (b - 1))) for b in (2, 3, 4, 6)},
}
_OFFSETS = {"t2": 1, "i2": 2, "i3": 4, "i4": 8, "i6": 32}
_INDEX_BITS = {"nf4": 4, "fp4": 4, "t2": 2, "i2": 2, "i3": 3, "i4": 4, "i6": 6}


@dataclass(frozen=True)
class Form:
    """How a storage type lies in a package.

    Attributes:
        kind: ``blocks`` (integers times scales) or ``table`` (indices into a table, times scales).
        codes: type of the codes: ``int4``, ``int8``, ``uint2``, ...
        scale: shape of the scales, of the tensor's rank: each scales a block.
        repeat: how often a scale of the IR is repeated along the grouped dim.
        zero: whether zero points lie beside.
    """

    kind: str
    codes: str
    scale: tuple[int, ...]
    repeat: int
    zero: bool


@dataclass(frozen=True)
class Blob:
    """One tensor of the weight file.

    Attributes:
        weight: its weight's name, empty for a constant of the program.
        part: ``""`` (numbers), ``codes``, ``scale``, ``zero`` or ``table``.
        word: MIL's word for its elements.
        shape: as it is written.
        make: makes its numbers.
    """

    weight: str
    part: str
    word: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]


def form_of(type: Storage, shape: tuple[int, ...], tables: bool = False) -> Form:
    """Return how a weight of ``shape`` lies in a package.

    Args:
        type: its storage type.
        shape: of the weight.
        tables: whether codes of 4 bits and less go through a table (what the neural engine takes).
    """
    rank, axis = len(shape), len(shape) + type.axis
    size = shape[axis]
    if type.group == -1:
        scale = (shape[0], *(1,) * (rank - 1))
        repeat = 1
    else:
        group = size if type.group == 0 else type.group
        # Blocks are all of one size: a short last group is cut to what divides both.
        block = group if size % group == 0 else gcd(group, size)
        scale = tuple(size // block if i == axis else d for i, d in enumerate(shape))
        repeat = 1 if size % group == 0 else group // block
    integer = type.kind in ("i4", "i8")
    if type.asym or type.kind == "i5" or (integer and not (tables and type.kind == "i4")):
        return Form("blocks", "int4" if type.kind == "i4" else "int8", scale, repeat, type.asym)
    return Form("table", f"uint{_INDEX_BITS[type.kind]}", scale, repeat, False)


def stored_bytes(weight: Weight, half: bool, tables: bool) -> int:
    """Return the bytes that a weight takes in a package.

    Args:
        weight: of the module.
        half: whether plain numbers and scales are fp16.
        tables: whether codes of 4 bits and less go through a table.
    """
    shape, type, wide = fixed_shape(weight.type), weight.type.element, 2 if half else 4
    count = int(np.prod(shape, dtype=np.int64))
    if not isinstance(type, Storage):
        return count * (wide if type.is_float else 4)
    form = form_of(type, shape, tables)
    bits, scales = BITS[form.codes], int(np.prod(form.scale, dtype=np.int64))
    beside = scales * wide + (-(-scales * bits // 8) if form.zero else 0)
    rows = wide * count // shape[type.axis] if type.scale == "s4" else 0
    return -(-count * bits // 8) + beside + rows


def _scales(q: QTensor, form: Form) -> NDArray[Any]:
    """Return the scales in the shape of ``form``, f32 or as they are stored."""
    return _placed(q.scale if q.scale.dtype == np.float16 else scale_numbers(q), q, form)


def _placed(values: NDArray[Any], q: QTensor, form: Form) -> NDArray[Any]:
    if q.type.group == -1:
        return values.reshape(form.scale)
    axis = len(q.shape) + q.type.axis
    if form.repeat > 1:
        values = np.repeat(values, form.repeat, axis=-1)[..., : form.scale[axis]]
    return np.ascontiguousarray(np.moveaxis(values, -1, axis))


def codes_of(q: QTensor, form: Form) -> NDArray[Any]:
    """Return codes as they are written: signed integers, or indices of the table."""
    if form.kind == "blocks":
        return q.codes
    return (q.codes + np.int8(_OFFSETS.get(q.type.kind, 0))).astype(np.uint8)


def read_codes(codes: NDArray[Any], type: Storage, form: Form) -> NDArray[Any]:
    """Return the codes of the IR from those of the file."""
    if form.kind == "blocks":
        return codes.astype(np.int8)
    return (codes.astype(np.int16) - _OFFSETS.get(type.kind, 0)).astype(np.int8)


def unplaced(values: NDArray[Any], type: Storage, shape: tuple[int, ...], form: Form) -> NDArray[Any]:
    """Return scales of the shape of ``form`` as the IR has them: groups last, none repeated."""
    if type.group == -1:
        return values.reshape(shape[0])
    moved = np.moveaxis(values, len(shape) + type.axis, -1)
    return np.ascontiguousarray(moved[..., :: form.repeat])


def check_scales(weight: Weight, half: bool) -> None:
    """Refuse scales that an fp16 program cannot hold.

    Raises:
        InputError: naming the weight and what to do.
    """
    type = weight.type.element
    if half and isinstance(type, Storage) and type.scale not in ("f16", "one"):
        raise InputError(
            f"coreml cannot keep weight {weight.name} as {type} in fp16: constexpr_blockwise_shift_scale makes numbers"
            f" of the type of its scales (coremltools 9.0, iOS18 compression ops), and {type.scale} scales are no fp16"
            " ones",
            "quantise with scale=f16, or compile with precision=f32",
        )


class WeightTable:
    """Constants of one package, each made once for all of its functions.

    Args:
        store: the numbers.
        tables: whether codes of 4 bits go through tables.
    """

    def __init__(self, store: WeightStore, tables: bool = False) -> None:
        self.store, self.tables = store, tables
        self.blobs: dict[str, Blob] = {}
        #: numbers that are written into the program itself, by key
        self.inline: dict[str, NDArray[Any]] = {}
        self.weights: dict[str, dict[str, str]] = {}

    def constant(self, weight: Weight, name: str, half: bool, columns: bool) -> Var:
        """Return the constant of a weight, for the function that is being built."""
        shape = fixed_shape(weight.type)
        tail = (1, 1) if columns else ()
        word = "fp16" if half else "fp32"
        type = weight.type.element
        if not isinstance(type, Storage):
            if not type.is_float:
                word = "int32"
            return self._const(weight, "", word, (*shape, *tail), name, lambda: self._plain(weight, word))
        check_scales(weight, half)
        form = form_of(type, shape, self.tables)
        scale_shape = (*form.scale, *tail)
        codes = self._const(
            weight, "codes", form.codes, (*shape, *tail), f"{name}_codes", lambda: codes_of(self._codes(weight), form)
        )
        scale = self._const(
            weight, f"scale.{word}", word, scale_shape, f"{name}_scale",
            lambda: _scales(self._codes(weight), form).astype(nptype(word)),
        )
        if form.kind == "table":
            table = np.array(_LEVELS[type.kind], nptype(word)).reshape((1,) * (len(shape) + len(tail)) + (-1, 1))
            codes = Builder.constexpr_lut_to_dense(indices=codes, lut=self.array(table, f"{name}_table"),
                                                   name=f"{name}_levels")
        zero = None
        if form.zero:
            half_range = 2 ** (type.bits - 1)
            zero = self._const(
                weight, "zero", form.codes, scale_shape, f"{name}_zero",
                lambda: _placed((_zero(self._codes(weight)).astype(np.int16) - half_range).astype(np.int8),
                                self._codes(weight), form),
            )
        given = {"offset": zero} if zero is not None else {}
        if type.scale != "s4":
            return Builder.constexpr_blockwise_shift_scale(data=codes, scale=scale, name=name, **given)
        # Codes times steps, and that times the row's factor: in this order the products are the IR's to the bit.
        axis = len(shape) + type.axis
        rows = tuple(1 if i == axis else d for i, d in enumerate(shape)) + tail
        factor = self._const(weight, "row", word, rows, f"{name}_row", lambda: _rows(self._codes(weight)))
        steps = Builder.constexpr_blockwise_shift_scale(data=codes, scale=scale, name=f"{name}_steps", **given)
        return Builder.constexpr_blockwise_shift_scale(data=steps, scale=factor, name=name)

    def array(self, values: NDArray[Any], name: str) -> Var:
        """Return a constant of the program that is no weight, such as a table of cosines."""
        key = f"array.{hashlib.sha256(values.tobytes()).hexdigest()}.{values.dtype.str}.{values.shape}"
        word = {"f": f"fp{8 * values.itemsize}", "b": "bool"}.get(values.dtype.kind, "int32")
        self.blobs.setdefault(key, Blob("", "", word, values.shape, lambda: values))
        made = Builder.const(val=values, name=name)
        made.op.weight_id = key
        return made

    def _const(
        self, weight: Weight, part: str, word: str, shape: tuple[int, ...], name: str, make: Callable[[], NDArray[Any]]
    ) -> Var:
        key = f"{weight.name}/{part or word}/{len(shape)}"
        self.blobs.setdefault(key, Blob(weight.name, part, word, shape, make))
        self.weights.setdefault(weight.name, {})[part.split(".")[0]] = key
        if int(np.prod(shape, dtype=np.int64)) < 10:  # the exporter writes so few numbers into the program itself
            values = make().reshape(shape).astype(nptype(word))
            self.inline[key] = values
            made = Builder.const(val=values, name=name)
        else:
            made = Builder.const(val=np.broadcast_to(np.zeros((), nptype(word)), shape), name=name)
            made.op.weight_id = key
        return made

    def _plain(self, weight: Weight, word: str) -> NDArray[Any]:
        numbers = self.store.array(weight.name)
        with np.errstate(over="ignore"):
            stored = numbers.astype(nptype(word), copy=False)
        if word == "fp16" and not np.isfinite(stored).all():
            raise InputError(
                f"coreml cannot keep weight {weight.name} in fp16: it has numbers beyond 65504",
                "compile with precision=f32",
            )
        return stored

    def _codes(self, weight: Weight) -> QTensor:
        return self.store.quantised(weight.name)

    def write(self, key: str, writer: BlobWriter) -> int:
        """Write one tensor and return its offset in the file."""
        blob = self.blobs[key]
        return write_blob(writer, blob.word, blob.make())

    def record(self, offsets: Mapping[str, int], package: str) -> dict[str, dict[str, Any]]:
        """Return weight -> part -> where it lies, for reading it back from ``package``."""
        found: dict[str, dict[str, Any]] = {}
        for name, parts in self.weights.items():
            for part, key in parts.items():
                blob = self.blobs[key]
                entry: dict[str, Any] = {"package": package, "word": blob.word, "shape": list(blob.shape)}
                if key in self.inline:
                    entry["values"] = self.inline[key].reshape(-1).tolist()
                else:
                    entry["offset"] = offsets[key]
                found.setdefault(name, {})["" if part in ("fp16", "fp32", "int32") else part] = entry
        return found


def _rows(q: QTensor) -> NDArray[Any]:
    assert q.row is not None
    return q.row


def _zero(q: QTensor) -> NDArray[Any]:
    assert q.zero is not None
    return q.zero


_WRITERS = {
    "fp32": ("write_float_data", np.float32), "fp16": ("write_fp16_data", np.uint16),
    "int32": ("write_int32_data", np.int32), "int8": ("write_int8_data", np.int8), "int4": ("write_int4_data", np.int8),
    **{f"uint{b}": (f"write_uint{b}_data", np.uint8) for b in (1, 2, 3, 4, 6, 8)},
}


def write_blob(writer: BlobWriter, word: str, values: NDArray[Any]) -> int:
    """Write numbers as MIL's ``word`` and return their offset."""
    method, dtype = _WRITERS[word]
    flat = np.ascontiguousarray(values).reshape(-1)
    flat = flat.view(np.uint16) if word == "fp16" else flat.astype(dtype, copy=False)
    return int(getattr(writer, method)(flat))
