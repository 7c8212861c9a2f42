"""Storage types in a package: every code, scale and zero point comes back from its bytes, and decodes to the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Module, Recipe
from omnic.ir.types import DType, Storage, TensorType, parse_type
from omnic.ir.weights import WeightStore, saved
from omnic.targets.coreml.evaluator import Program
from omnic.targets.coreml.target import TARGET
from tests.targets.coreml.helpers import emitted

KINDS = (
    "i8<row>", "i8<g32>", "i8<g16, asym>", "i4<g32>", "i4<g16, asym>", "i4<g32, f32>", "i4<g32, s4>", "i6<g32>",
    "i5<g16>", "i3<g32>", "i2<g32>", "i2<g16, asym>", "t2<g32>", "nf4<g32>", "fp4<g32>", "fp4<g32, e8m0>", "i4<g40>",
    "i4<g16, axis-2>", "i8<head>",
)
HALF = tuple(k for k in KINDS if not any(s in k for s in ("f32", "s4", "e8m0")))


def _module(kinds: tuple[str, ...]) -> Module:
    """A sum of products, one with a weight of each type."""
    b = ModuleBuilder("stored", {"B": DimRange(1, 4), "T": DimRange(1, 4)})
    f = b.function("forward")
    batch, tokens = symbol("B"), symbol("T")
    x = f.param("hidden", TensorType(DType.F32, (batch, tokens, 96)))
    total = None
    with f.scope("head"):
        for at, kind in enumerate(kinds):
            weight = b.weight(f"w.{at}", parse_type(f"{kind}[48, 96]"), Recipe("normal", {"std": 0.5}))
            y = f.op("linear", x, weight)
            total = y if total is None else f.op("add", total, y)
    assert total is not None
    f.result("hidden", total)
    return b.build()


@pytest.mark.parametrize(("compute", "kinds"), [("cpu", KINDS), ("gpu", HALF), ("ane", HALF)])
def test_codes_scales_and_zero_points_come_back_bit_for_bit(
    compute: str, kinds: tuple[str, ...], tmp_path: Path
) -> None:
    module = _module(kinds)
    weights = WeightStore.random(module, 3)
    emitted(module, weights, tmp_path, compute=compute, state="explicit", verify="none")
    back = WeightStore.loaded(saved(module), TARGET.weights(tmp_path))
    function = Program.open(tmp_path / "model.mlpackage").function("decode")
    for at, kind in enumerate(kinds):
        sent, came = weights.parts(f"w.{at}"), back.parts(f"w.{at}")
        assert sent.keys() == came.keys(), kind
        for suffix, part in sent.items():
            assert np.array_equal(part, came[suffix]), (kind, suffix)
        name = f"w_w_{at}" + ("_conv" if compute == "ane" else "")
        decoded = np.asarray(function.stored(name).array(), np.float32).reshape(48, 96)
        q = weights.quantised(f"w.{at}")
        exact = packing.decode(q, np.float32)
        if compute == "cpu":
            assert np.array_equal(decoded, exact), kind
        else:
            assert np.abs(decoded - exact).max() <= 2.0**-10 * np.abs(exact).max(), kind


@pytest.mark.parametrize("kind", ["i4<g32, s4>", "i4<g32, f32>", "fp4<g32, e8m0>"])
def test_scales_that_are_no_fp16_are_refused_in_fp16(kind: str, tmp_path: Path) -> None:
    module = _module((kind,))
    with pytest.raises(InputError) as error:
        emitted(module, WeightStore.random(module, 3), tmp_path, compute="gpu")
    element = module.weights["w.0"].type.element
    assert isinstance(element, Storage)
    assert error.value.message.startswith(f"coreml cannot keep weight w.0 as {element} in fp16: constexpr_blockwise")
    assert error.value.hint == "quantise with scale=f16, or compile with precision=f32"
    assert not (tmp_path / "model.mlpackage").exists()
