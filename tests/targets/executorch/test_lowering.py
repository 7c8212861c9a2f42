"""What is lowered: any length can be exported, passes that are left out find nothing, models are right."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from omnic.api import compile as compile_model
from omnic.ir.numeric import find_class
from omnic.ir.weights import WeightStore
from omnic.spec import load_spec, scale
from omnic.targets.executorch import lowered, shortened
from omnic.targets.executorch.emit import legalised, load_weights
from omnic.targets.executorch.methods import Method, exported, methods_of, new_states
from omnic.targets.executorch.target import TARGET
from tests.models.checkpoints.dense import DENSE
from tests.models.checkpoints.proof import Proof
from tests.models.checkpoints.sparse import SPARSE
from tests.models.variants import VARIANTS, variant

#: softmax attention of grouped heads in every form that has no kernel of its own
GROUPED = ("sinks, softcap, qk_norm", "f16 cache")
FAMILIES = (
    ("qwen3_moe", "norm of heads"),
    ("gemma2", "softcaps, window"),
    ("deepseek_v3", "limited groups, yarn"),
    ("gpt_oss", "sinks and windows"),
)


def methods(name: str) -> tuple[Any, list[Method], dict[str, Any], dict[str, Any]]:
    module = legalised(variant(name))
    weights = load_weights(module, WeightStore.random(module, 0).with_module(module))
    options = {**TARGET.options({"runner": False}), "verify": ()}
    return module, methods_of(module, options), weights, options


@pytest.mark.parametrize("name", [n if n in GROUPED else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_a_call_of_any_length_can_be_exported(name: str) -> None:
    from executorch.extension.llm.custom_ops import custom_ops as _  # noqa: F401  (registers llama::*)

    module, found, weights, options = methods(name)
    states = new_states(module)
    for method in found:
        if method.kind == "phase" and not method.fixed:
            with torch.no_grad():
                program = exported(module, method, weights, states, options)
            ranges = {str(r) for r in program.range_constraints.values()}
            assert f"VR[1, {module.dims['T'].high}]" in ranges, method.name


def part(*names: str) -> Any:
    """A graph of calls of operators of these names, each with one input."""
    calls = [
        SimpleNamespace(op="call_function", target=SimpleNamespace(__name__=n), all_input_nodes=[1], args=([1] * 6,))
        for n in names
    ]
    return SimpleNamespace(nodes=[SimpleNamespace(op="placeholder"), *calls])


@pytest.mark.parametrize(
    ("name", "operator", "other"),
    [
        ("DimOrderOpsRevertPass", "dim_order_ops._clone_dim_order.default", "aten.clone.default"),
        ("ConvertToLinearPass", "aten.addmm.default", "aten.linear.default"),
        ("ConvertToLinearPass", "aten.mm.default", "aten.bmm.default"),
        ("FuseActivationPass", "aten.relu.default", "aten.sigmoid.default"),
        ("DecomposeConcatenate", "aten.cat.default", "aten.stack.default"),
        ("PropagateCustomMetaPass", "quantized_decomposed.quantize_per_tensor.default", "aten.mul.Tensor"),
        ("ChannelsLastTaggedReshapePass", "aten.convolution.default", "aten.mul.Tensor"),
        ("InsertPadQDQPass", "aten.constant_pad_nd.default", "aten.add.Tensor"),
    ],
)
def test_a_pass_runs_where_its_operators_are(name: str, operator: str, other: str) -> None:
    kind = type(name, (), {})
    assert shortened._finds(kind, part(other, operator))
    assert not shortened._finds(kind, part(other))


def test_every_pass_that_may_be_left_out_is_one_of_xnnpack() -> None:
    from executorch.backends.xnnpack._passes import XNNPACKPassManager

    manager = XNNPACKPassManager(None)  # type: ignore[arg-type]
    assert set(shortened.LOOKS_FOR) < {p.__name__ for p in manager.passes}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_moe", "clamped experts, router bias"])
def test_a_program_is_the_same_to_the_bit_with_the_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, found, weights, options = methods(name)

    def made() -> str:
        program = lowered.lower_methods(module, found, weights, options, {}, lambda what, share: None)
        return hashlib.sha256(bytes(program.buffer)).hexdigest()

    short = made()
    monkeypatch.setattr(shortened, "_finds", lambda kind, graph: True)
    assert made() == short


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), FAMILIES)
def test_an_imported_model_is_transformers(family: str, name: str, tmp_path: Path) -> None:
    (example,) = (e for e in (*DENSE, *SPARSE) if (e.family, e.name) == (family, name))
    proof = Proof(example, tmp_path)
    for finding in proof.findings("executorch"):
        assert finding.case.ok, (finding.case.name, finding.case.ratio, finding.case.problem)
    assert proof.greedy("executorch", 32).ok


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "mobile_4gb"])
def test_int4_weights_are_in_the_class_of_their_activations(name: str, tmp_path: Path) -> None:
    bundle = compile_model(
        scale(load_spec(name)), "executorch", tmp_path / "bundle", seed=5, options={"runner": False, "verify": "none"},
        threads=1, passes=["int4-packing{kind=i4, group=32, scale=f16}"],
    )
    assert bundle.manifest.numeric_class == "int8"
    parity = bundle.parity
    assert parity is not None and parity["ok"], parity
    assert parity["bound"] == find_class("int8").bound
