"""The proof by unpacking itself: it holds for the canonical packing, and finds a nibble in the wrong place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnic.ir.packing import QTensor, pack_codes, pack_scales, unpack_codes, unpack_scales
from omnic.ir.types import Storage, parse_element
from tests.passes.quantise.repacking import Arrays, assert_unpacks, random_tensor

TYPES = ["i8<row>", "i6<g32>", "i5<g32, asym>", "i4<g32, asym>", "i4<g32, s4>", "i3<g32, asym>", "i2<g16>", "nf4<g32>",
         "fp4<g32>", "t2<g32>"]


def tensors() -> list[QTensor]:
    found: list[QTensor] = []
    for seed, text in enumerate(TYPES):
        type = parse_element(text)
        assert isinstance(type, Storage)
        found.append(random_tensor(type, (5, 96), seed))
    return found


def canonical(q: QTensor) -> dict[str, Any]:
    parts = {"": pack_codes(q.codes, q.type), ".scale": q.scale if q.row is None else pack_scales(q.scale)}
    return parts | {f".{n}": p for n, p in (("zero", q.zero), ("row", q.row)) if p is not None}


def unpack(type: Storage, shape: tuple[int, ...], arrays: Arrays) -> QTensor:
    scale = arrays[".scale"] if type.scale != "s4" else unpack_scales(arrays[".scale"], type.groups(shape[-1]))
    return QTensor(unpack_codes(arrays[""], type, shape), scale, arrays.get(".zero"), type, arrays.get(".row"))


def test_the_canonical_packing_unpacks() -> None:
    assert_unpacks([(q, canonical(q)) for q in tensors()], unpack)


def test_swapped_nibbles_are_found() -> None:
    q = tensors()[3]
    arrays = canonical(q)
    arrays[""] = (arrays[""] << np.uint8(4)) | (arrays[""] >> np.uint8(4))
    with pytest.raises(AssertionError):
        assert_unpacks([(q, arrays)], unpack)
