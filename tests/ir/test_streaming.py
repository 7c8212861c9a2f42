"""Products with large weights are the same numbers read in blocks as held whole, and hold only blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange
from omnic.ir.graph import Module, Recipe
from omnic.ir.reference import Interpreter, streaming
from omnic.ir.types import parse_type
from omnic.ir.weights import WeightStore, blocks

NORMAL = Recipe("normal", {"std": 0.5})


def _module(softcap: float = 0.0) -> Module:
    mb = ModuleBuilder("m", dims={"T": DimRange(1, 400)})
    weights = {
        n: mb.weight(n, parse_type(t), NORMAL)
        for n, t in {"embed": "bf16[400, 24]", "w": "i4<g8>[90, 24]", "bias": "f32[90]", "head": "f16[70, 90]"}.items()
    }
    f = mb.function("forward")
    x = f.op("embedding", weights["embed"], f.param("tokens", parse_type("i64[1, T]")))
    x = f.op("linear", x, weights["w"], weights["bias"])
    f.result("logits", f.op("lm_head", x, weights["head"], softcap=softcap))
    return mb.build()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("count", [1, 7, 390])
def test_blocks_of_rows_give_what_the_whole_weight_gives(
    dtype: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _module(softcap=3.0)
    store = WeightStore.random(module, 3)
    tokens = np.random.default_rng(0).integers(0, 400, (1, count))
    wanted = Interpreter(module, store, dtype).run({"tokens": tokens})["logits"]
    monkeypatch.setattr(streaming, "LARGE", 0)
    monkeypatch.setattr(streaming, "_ALONE", 24 * 7 * 5)
    monkeypatch.setattr(blocks, "BLOCK", 24 * 4)
    monkeypatch.setattr(streaming, "BLOCK", 24 * 4)
    found = Interpreter(module, store, dtype, cache_bytes=0).run({"tokens": tokens})["logits"]
    np.testing.assert_allclose(found, wanted, rtol=3e-5 if dtype == "f4" else 1e-12, atol=2e-5)


def test_a_token_beyond_the_table_is_refused_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LARGE", 0)
    module = _module()
    with pytest.raises(Exception, match="embedding"):
        Interpreter(module, WeightStore.random(module, 3), cache_bytes=0).run({"tokens": np.array([[400]])})


@pytest.mark.parametrize(
    "type", ["i4<g8>", "i4<g8, s4>", "i8<row, asym>", "nf4<g8, f32>", "i8<head>", "i4<g8, axis-2>"]
)
def test_quantised_weights_do_not_depend_on_how_they_are_cut(type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mb = ModuleBuilder("m", dims={})
    mb.weight(
        "w",
        parse_type(f"{type}[40, 24]"),
        Recipe(
            "quantise",
            {"type": parse_type(f"{type}[1]").element},
            (Recipe("normal", {"std": 0.5, "name": "w", "shape": (40, 24)}),),
        ),
    )
    store = WeightStore.random(mb.build(), 5)
    wanted = store.parts("w")
    monkeypatch.setattr(blocks, "BLOCK", 24 * 3)
    monkeypatch.setattr(blocks, "_FEW", 2)
    for suffix, part in store.parts("w").items():
        np.testing.assert_array_equal(part, wanted[suffix])


def test_filled_joins_blocks_in_order() -> None:
    def make(start: int, stop: int) -> dict[str, Any]:
        return {"a": np.arange(start, stop), "b": np.full((stop - start, 2), start)}

    found = blocks.filled((5, 105), blocks.BLOCK // 4, make)
    np.testing.assert_array_equal(found["a"], np.arange(5, 105))
    assert found["b"].shape == (100, 2)
