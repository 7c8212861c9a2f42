"""Every rounding of an fp16 program is in the module of its bundle: program and reference are the same numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Module, Recipe
from omnic.ir.text import parse_module, print_module
from omnic.ir.types import DType, TensorType, parse_type
from omnic.ir.verify import verify
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import parse_spec, preset_names
from omnic.targets.coreml.evaluator import Program
from tests.targets.coreml.helpers import emitted, held_against_reference, scaled, session_of

IDS = np.random.default_rng(7).integers(0, 512, (1, 34))
#: prefill and a padded verification, single tokens, a verification; rings go round
CALLS = [9, 1, 16, 1, 7]
EXACT = 1e-6

#: what presets have none of: sinks, softcaps, biases, clamped gates, layer norms, norms of queries, interleaved and
#: scaled rotations, part of a head rotated, groups of experts by their two best, shared experts, sigmoid scores
FEATURES = {
    "sinks": """
blocks:
  - width: 96
    attention: {kind: gqa, heads: 6, kv_heads: 2, head_dim: 16, window: 20, sinks: true, bias: true,
                rope: {base: 10000, scaling: {kind: yarn, factor: 4.0, original_context: 80}}}
    ffn: {kind: dense, hidden: 80, activation: swiglu, bias: true}
norm: {kind: layer}
""",
    "softcap": """
blocks:
  - width: 96
    attention: {kind: gqa, heads: 6, kv_heads: 3, head_dim: 16, softcap: 30.0, qk_norm: true, scale: 0.3,
                rope: {base: 10000, dims: 8, interleaved: true}}
    ffn: {kind: dense, hidden: 80, activation: gelu_tanh}
softcap: {logits: 20.0}
tie: true
""",
    "groups": """
blocks:
  - width: 96
    attention: {kind: mha, heads: 4, head_dim: 16}
    ffn: {kind: moe, hidden: 48, activation: swiglu, experts: 8, top_k: 2, shared: 1, groups: [4, 4], top_groups: 1,
          score: sigmoid, select_bias: true, gate_scale: 1.7}
  - width: 96
    attention: {kind: mla, heads: 4, latent: 40, nope_dim: 16, rope_dim: 8, v_dim: 16}
    ffn: {kind: dense, hidden: 64, activation: relu2}
""",
}


def featured(name: str) -> Module:
    text = f"omnic: 1\nmodel: {name}\nvocab: {{size: 512}}\ncontext: 320\nchunk: 64\n{FEATURES[name]}"
    return build(parse_spec(text, f"{name}.yaml"))


def error_of(module: Module, folder: Path, **options: Any) -> float:
    weights = WeightStore.random(module, 2)
    made = emitted(module, weights, folder, **options)
    return held_against_reference(session_of(made, folder), made, weights, IDS, CALLS)


@pytest.mark.parametrize("compute", ["gpu", "ane"])
@pytest.mark.parametrize("name", FEATURES)
def test_what_presets_do_not_have(name: str, compute: str, tmp_path: Path) -> None:
    assert error_of(featured(name), tmp_path, compute=compute) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["gpu", "ane"])
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset(preset: str, compute: str, tmp_path: Path) -> None:
    assert error_of(scaled(preset), tmp_path, compute=compute) <= EXACT


@pytest.mark.parametrize(("kind", "table", "compute"), [
    ("i4<g32>", "i8<row>", "ane"), ("nf4<g16>", "i6<g16>", "gpu"), ("i4<g16, asym>", "f16", "gpu"),
])
def test_codes_are_decoded_in_fp16(kind: str, table: str, compute: str, tmp_path: Path) -> None:
    module = scaled("mobile_4gb")
    body = {n: parse_type(f"{table if n in ('embed', 'head') else kind}{_dims(w)}") for n, w in module.weights.items()
            if len(w.type.shape) >= 2 and not any(s in n for s in ("router", "w_k", "w_v"))
            and w.type.shape[-1] % 16 == 0}
    assert len(body) > 5
    weights = {n: dataclasses.replace(w, value=dataclasses.replace(w.value, type=body.get(n, w.type)))
               for n, w in module.weights.items()}
    text = print_module(module)
    for name, weight in module.weights.items():
        text = text.replace(f"weight @{name} : {weight.type}", f"weight @{name} : {weights[name].type}")
    typed = parse_module(text)
    assert error_of(typed, tmp_path, compute=compute) <= EXACT


def _dims(weight: Any) -> str:
    return f"[{', '.join(str(d) for d in weight.type.shape)}]"


def test_the_module_is_a_module_and_says_where_it_rounds(tmp_path: Path) -> None:
    module = scaled("tiny_moe")
    made = emitted(module, WeightStore.random(module, 2), tmp_path, compute="ane", verify="none")
    verify(parse_module(print_module(made.module)))
    assert made.module.decoded == DType.F16
    forward = made.module.function("forward")
    halves = [n for n in forward.nodes if n.op == "cast" and n.attrs["to"] == DType.F16]
    assert len(halves) > 40
    # What rounds nothing is not followed by a rounding.
    makers = {v: n.op for n in forward.nodes for v in n.results}
    assert not {makers.get(next(n.inputs())) for n in halves} & {"reshape", "transpose", "relu", "cache_read"}


@pytest.mark.parametrize("size", [1e-3, 1.0, 3e4])
def test_norms_of_the_neural_engine_are_norms(size: float, tmp_path: Path) -> None:
    """Squares of 3e4 do not fit fp16, and of 1e-3 are as small as eps: a norm is right within fp16's own error."""
    b = ModuleBuilder("norm", {"B": DimRange(1, 4), "T": DimRange(1, 4)})
    f = b.function("forward")
    x = f.param("hidden", TensorType(DType.F32, (symbol("B"), symbol("T"), 96)))
    with f.scope("head"):
        weight = b.weight("w", parse_type("f32[96]"), Recipe("ones"))
        f.result("hidden", f.op("rms_norm", x, weight, eps=1e-6))
    module = b.build()
    emitted(module, WeightStore.random(module, 1), tmp_path, compute="ane", verify="none")
    given = np.clip(np.random.default_rng(1).standard_normal((1, 4, 96)) * size, -6e4, 6e4)
    function = Program.open(tmp_path / "model.mlpackage").function("prefill")
    found = np.asarray(function.run({"hidden": given}, rounding="exact")[next(iter(function.outputs))], np.float64)
    wanted = given / np.sqrt((given**2).mean(-1, keepdims=True) + 1e-6)
    assert np.abs(found.reshape(wanted.shape) - wanted).max() <= 3e-3 * np.abs(wanted).max()


def test_a_rounding_that_the_module_lacks_shows(tmp_path: Path) -> None:
    """The comparison can fail: without the rounding of one product the logits part by more than last bits."""
    module = scaled("tiny")
    weights = WeightStore.random(module, 2)
    made = emitted(module, weights, tmp_path, compute="gpu", verify="16")
    forward = made.module.function("forward")
    at = next(i for i, n in enumerate(forward.nodes) if n.op == "linear")
    there = forward.nodes[at + 1]
    assert there.op == "cast" and there.attrs["to"] == DType.F16
    kept = dataclasses.replace(there, attrs={"to": DType.F32}, results=(
        dataclasses.replace(there.result, type=there.result.type.with_element(DType.F32)),))
    back = dataclasses.replace(forward.nodes[at + 2], operands=kept.results)
    nodes = (*forward.nodes[: at + 1], kept, back, *forward.nodes[at + 3 :])
    other = dataclasses.replace(made, module=made.module.with_function(dataclasses.replace(forward, nodes=nodes)))
    assert held_against_reference(session_of(made, tmp_path), other, weights, IDS, CALLS) > 1e-4


def test_fp32_programs_are_left_as_they_are(tmp_path: Path) -> None:
    module = scaled("tiny")
    made = emitted(module, WeightStore.random(module, 2), tmp_path, verify="none")
    assert print_module(made.module) == print_module(module)
    assert made.module.decoded is None
