"""Mixtures of experts: the contrib operator where its activation is exact, a product per expert elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as onnx
import onnxruntime as ort
import pytest

from omnic.ir.ops.composite import activate
from omnic.ir.reference import ReferenceSession
from tests.targets.onnx.helpers import emitted, model, session_of, spec_text

PLAIN = "{kind: moe, hidden: 24, experts: 5, top_k: 2, activation: %s}"
CLAMPED = "activation_alpha: 1.702, activation_beta: 1, activation_limit: 0.3"
#: name -> (feed-forward, other keys, whether the contrib operator computes it)
CASES = {
    "swiglu with a shared expert": (PLAIN.replace("top_k: 2", "top_k: 2, shared: 1") % "swiglu", "", True),
    "swiglu with biases": (PLAIN % "swiglu", "bias: true\n", False),
    "geglu": (PLAIN % "geglu", "", False),
    "silu": (PLAIN % "silu", "", True),
    "gelu": (PLAIN % "gelu", "", False),
    "gelu_tanh, split": (PLAIN.replace("top_k: 2", "top_k: 2, split: 2") % "gelu_tanh", "", True),
    "relu, gates of any sum": (
        PLAIN.replace("top_k: 2", "top_k: 3, renormalise: false") % "relu",
        "bias: true\n",
        True,
    ),
    "relu2": (PLAIN % "relu2", "", False),
    "groups, sigmoid, bias, scale": (
        "{kind: moe, hidden: 24, experts: 6, top_k: 2, groups: [2, 4], top_groups: 2, group_gate: true, "
        "score: sigmoid, select_bias: true, gate_scale: 2.5, activation: silu}",
        "",
        True,
    ),
    "clamped swiglu": (f"{PLAIN % 'swiglu'}".replace("}", f", {CLAMPED}}}"), "", True),
    "clamped swiglu with biases, router bias": (
        f"{PLAIN % 'swiglu'}".replace("}", f", router_bias: true, {CLAMPED}}}"),
        "bias: true\n",
        False,
    ),
    "clamped geglu": (f"{PLAIN % 'geglu'}".replace("}", ", activation_limit: 0.5}"), "", False),
    "two best of a group": (
        "{kind: moe, hidden: 24, experts: 6, top_k: 2, groups: [2, 2, 2], top_groups: 2, group_score: top2_sum, "
        "score: sigmoid, select_bias: true, activation: silu}",
        "",
        True,
    ),
}


@pytest.mark.parametrize("profile", ["fused", "plain"])
@pytest.mark.parametrize("name", CASES)
def test_experts_are_the_reference(name: str, profile: str, tmp_path: Path) -> None:
    ffn, extra, contrib = CASES[name]
    module, weights = model(spec_text(ffn=ffn, extra=extra, repeat=1))
    made = emitted(module, weights, tmp_path, profile)
    assert any("/MoE." in node for node in made.nodes) == (contrib and profile == "fused")
    session, reference = session_of(module, tmp_path), ReferenceSession(module, weights)
    ids = np.random.default_rng(0).integers(0, 96, (1, 17))
    for part in (ids[:, :16], ids[:, 16:]):
        wanted = reference.forward(part).logits
        found = np.asarray(session.forward(part).logits)
        assert np.abs(found - wanted).max() <= 2e-5 * np.sqrt(np.mean(wanted**2))


def run_moe(kind: str, x: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """One MoE node of one expert."""
    graph = onnx.Graph([], [], nodes=[], opset_imports={"": 24, "com.microsoft": 1}, name="moe")
    values = []
    for name, array in (("x", x), ("probs", np.zeros((len(x), 1), np.float32)), ("up", up), ("down", down)):
        values.append(onnx.Value(name=name, type=onnx.TensorType(onnx.DataType.FLOAT), shape=onnx.Shape(array.shape)))
    graph.inputs.extend(values)
    node = onnx.node(
        "MoE",
        [values[0], values[1], values[2], None, values[3]],
        domain="com.microsoft",
        attributes={"k": 1, "activation_type": kind},
        name="moe",
    )
    graph.append(node)
    node.outputs[0].name, node.outputs[0].type = "y", onnx.TensorType(onnx.DataType.FLOAT)
    node.outputs[0].shape = onnx.Shape(x.shape)
    graph.outputs.append(node.outputs[0])
    session = ort.InferenceSession(onnx.to_proto(onnx.Model(graph, ir_version=11)).SerializeToString())
    return np.asarray(
        session.run(None, {"x": x, "probs": np.zeros((len(x), 1), np.float32), "up": up, "down": down})[0]
    )


@pytest.mark.parametrize(
    ("kind", "ours", "exact"),
    [("relu", "relu", True), ("silu", "silu", True), ("gelu", "gelu_tanh", True), ("gelu", "gelu", False)],
)
def test_what_the_contrib_operator_calls_its_activations(kind: str, ours: str, exact: bool) -> None:
    """The table of exact activations rests on this: ``gelu`` is the tanh approximation on the CPU."""
    random = np.random.default_rng(0)
    x = random.standard_normal((7, 8)).astype(np.float32)
    up, down = (random.standard_normal(s).astype(np.float32) for s in ((1, 16, 8), (1, 8, 16)))
    wanted = activate(x.astype(np.float64) @ up[0].T, ours) @ down[0].T
    off = np.abs(run_moe(kind, x, up, down) - wanted).max() / np.abs(wanted).max()
    assert (off < 1e-6) == exact
