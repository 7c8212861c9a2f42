"""A model in several packages computes what it computes in one: sessions, the look inside, and weights read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.errors import BundleError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Module, Recipe, State
from omnic.ir.types import DType, TensorType
from omnic.ir.weights import WeightStore, saved
from omnic.models import build
from omnic.spec import parse_spec
from omnic.targets.coreml.chunks import pack, plan, stages_of
from omnic.targets.coreml.mil import coremltools
from omnic.targets.coreml.options import parse_options
from omnic.targets.coreml.phases import call_forms, clone
from omnic.targets.coreml.program import Package
from omnic.targets.coreml.stored import stored_bytes
from omnic.targets.coreml.target import TARGET
from tests.targets.coreml.helpers import emitted, scaled, session_of

SPEC = """omnic: 1
model: cut
vocab: {size: 256}
context: 96
chunk: 24
tie: true
blocks:
  - repeat: 4
    width: 64
    attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 16, rope: {base: 10000}}
    ffn: {kind: dense, hidden: 128, activation: swiglu}
"""
IDS = np.random.default_rng(5).integers(0, 256, (1, 45))
CALLS = (9, 16, 5, 1, 1, 13)


def model() -> Module:
    return build(parse_spec(SPEC, "cut.yaml"))


def logits(folder: Path, made: Any) -> list[Any]:
    session = session_of(made, folder)
    at, found = 0, []
    for length in CALLS:
        found.append(np.array(session.forward(IDS[:, at : at + length]).logits))
        at += length
    return found


def both(tmp_path: Path, module: Module, **options: Any) -> tuple[Any, Any]:
    """Write a model as one package and as several, and return what their sessions gave."""
    weights, found = WeightStore.random(module, 1), []
    for name, limit in (("whole", "none"), ("cut", options.pop("chunk_bytes"))):
        folder = tmp_path / name
        folder.mkdir()
        found.append(emitted(module, weights, folder, verify="16", chunk_bytes=limit, **options))
    return found[0], found[1]


@pytest.mark.parametrize("options", [
    {"compute": "ane", "chunk_bytes": "160kB"},
    {"compute": "gpu", "length": "ranged", "chunk_bytes": "160kB"},
    {"compute": "ane", "state": "stateful", "chunk_bytes": "200kB"},
])
def test_several_packages_give_the_numbers_of_one(options: dict[str, Any], tmp_path: Path) -> None:
    whole, cut = both(tmp_path, model(), **options)
    packages = sorted(p.name for p in (tmp_path / "cut").glob("*.mlpackage"))
    assert packages == [f"model_{i}.mlpackage" for i in range(1, len(packages) + 1)]
    assert len(packages) == (2 if options["chunk_bytes"] == "200kB" else 3)
    assert all(np.array_equal(a, b) for a, b in zip(
        logits(tmp_path / "whole", whole), logits(tmp_path / "cut", cut), strict=True))
    # The tied table lies in the first package, and in no other.
    assert {stage["package"] for stage in json.loads((tmp_path / "cut/coreml.json").read_text())[
        "functions"]["decode"]["stages"]} == set(packages)
    held = sum(f.stat().st_size for f in (tmp_path / "cut").rglob("weight.bin"))
    alone = (tmp_path / "whole/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert held <= alone + 40_000  # tables of cosines


def test_an_mtp_block_lies_with_the_table_it_shares(tmp_path: Path) -> None:
    module = scaled("tiny")
    whole, cut = both(tmp_path, module, compute="cpu", chunk_bytes="700kB")
    assert len(list((tmp_path / "cut").glob("*.mlpackage"))) == 2
    inputs = {"hidden": np.random.default_rng(1).standard_normal((1, 5, 96)), "next_tokens": IDS[:, :5],
              "positions": np.arange(5)[None], "start": np.zeros(1, np.int64), "length": np.array([5]),
              "rows": np.arange(5)[None]}
    name = next(r.value.name for r in module.function("mtp").results if r.name == "logits")
    one, other = (TARGET.capture(tmp_path / f, inputs, [name], "mtp")[name] for f in ("whole", "cut"))
    assert np.array_equal(one, other)
    assert whole.module.functions.keys() == cut.module.functions.keys()


def test_the_inside_of_several_packages_is_seen_and_read_back(tmp_path: Path) -> None:
    module = model()
    whole, _ = both(tmp_path, module, compute="cpu", chunk_bytes="320kB")
    shown = TARGET.preserved(tmp_path / "cut")
    assert set(TARGET.preserved(tmp_path / "whole")) == set(shown)
    steps = np.arange(14)[None]
    inputs = {"tokens": IDS[:, :14], "positions": steps, "start": np.zeros(1, np.int64), "length": np.array([14]),
              "rows": steps}
    names = ["x", "x.3", "x.8", "attn_out.2", "logits"]
    one, other = (TARGET.capture(tmp_path / f, inputs, names) for f in ("whole", "cut"))
    assert all(np.array_equal(one[n], other[n]) for n in names)
    part = TARGET.capture_part(tmp_path / "cut", {"x.3": one["x.3"], "rows": steps} | {
        n: inputs[n] for n in ("positions", "start", "length")}, ["x.8", "logits"])
    assert np.abs(part["x.8"] - one["x.8"]).max() <= 1e-5 * np.abs(one["x.8"]).max()
    assert np.abs(part["logits"] - one["logits"]).max() <= 1e-5 * np.abs(one["logits"]).max()
    weights, back = WeightStore.random(module, 1), WeightStore.loaded(saved(whole.module), TARGET.weights(
        tmp_path / "cut"))
    assert all(np.array_equal(weights.array(n), back.array(n)) for n in module.weights)


def test_each_package_says_its_place_and_what_runs_after_it(tmp_path: Path) -> None:
    _, made = both(tmp_path, model(), compute="ane", chunk_bytes="160kB")
    paths = sorted((tmp_path / "cut").glob("*.mlpackage"))
    told = [coremltools.models.MLModel(str(p), skip_model_load=True).get_spec().description for p in paths]
    assert [t.metadata.userDefined["omnic.package"] for t in told] == ["1 of 3", "2 of 3", "3 of 3"]
    order = json.loads(told[1].metadata.userDefined["omnic.order"])
    assert order["decode"][0] == {"package": "model_1.mlpackage", "function": "decode", "takes": [], "gives": ["x_2"]}
    assert [s["package"] for s in order["decode"]][-1] == "model_1.mlpackage"
    assert order == {n: f["order"] for n, f in made.interface["functions"].items()}
    middle = next(f for f in told[1].functions if f.name == "decode")
    crossing = next(f for f in middle.input if f.name == "x_2")
    assert (list(crossing.type.multiArrayType.shape), crossing.shortDescription) == (
        [1, 64, 1, 1], "what an earlier package gives")
    assert made.interface["packages"].keys() == {p.name for p in paths}


def test_packages_are_few_and_even() -> None:
    sizes = {name: 10 for name in "abcdefgh"} | {"big": 50}
    assert pack([{n} for n in "abcdefgh"], sizes, 50) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert pack([{"a"}, {"big"}, {"b"}, {"c"}], sizes, 40) == [0, 1, 2, 2]
    module = model()
    bytes_of = {n: stored_bytes(w, True, True) for n, w in module.weights.items()}
    assert set(plan(module, None, bytes_of).values()) == {0}
    places = plan(module, 160_000, bytes_of)
    assert places["embed"] == places["head"] == 0
    assert sorted(set(places.values())) == [0, 1, 2]


def test_no_border_cuts_a_cache_from_the_block_that_reads_it_too() -> None:
    b = ModuleBuilder("shared", {"B": DimRange(1, 4), "T": DimRange(1, 4)})
    f = b.function("forward")
    batch, tokens = symbol("B"), symbol("T")
    x = f.param("hidden", TensorType(DType.F32, (batch, tokens, 32)))
    start, length = (f.param(n, TensorType(DType.I64, (batch,))) for n in ("start", "length"))
    b.state(State("kv", TensorType(DType.F32, (batch, 32, 32)), "latent", 0))
    cache = f.param("kv", TensorType(DType.F32, (batch, 32, 32)), state="kv")
    for at in range(4):
        with f.scope(f"blocks.{at}"):
            x = f.op("linear", x, b.weight(f"w.{at}", TensorType(DType.F32, (32, 32)), Recipe("normal", {"std": 0.1})))
            if at == 1:
                cache = f.op("cache_write", cache, x, start, length)
            if at == 2:
                read, _ = f.emit("cache_read", cache, start, length)
                x = f.op("add", x, f.op("sum", read, axes=(1,), keepdims=True))
    f.result("hidden", x)
    f.result("kv", cache, state="kv")
    places = plan(b.build(), 5000, dict.fromkeys([f"w.{i}" for i in range(4)], 4096))
    assert places["blocks.1"] == places["blocks.2"]
    assert len({places[u] for u in ("blocks.0", "blocks.1", "blocks.3")}) == 3


def test_a_stage_that_runs_in_the_same_package_again_has_a_name_of_its_own() -> None:
    module = model()
    sizes = {n: stored_bytes(w, True, False) for n, w in module.weights.items()}
    form = call_forms(module, parse_options({"verify": "none"}))[0]
    stages = stages_of(clone(module, form), plan(module, 160_000, sizes))
    assert [s.name for s in stages] == ["decode", "decode", "decode", "decode_2"]
    assert [s.package for s in stages] == [0, 1, 2, 0]
    assert [v.name for v in stages[0].gives] == [v.name for v in stages[1].takes]


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    _, made = both(tmp_path, model(), compute="cpu", chunk_bytes="320kB")
    (tmp_path / "cut/model_2.mlpackage").rename(tmp_path / "away")
    with pytest.raises(BundleError, match=r"the bundle has no model_2\.mlpackage"):
        Package(tmp_path / "cut", made.module)
