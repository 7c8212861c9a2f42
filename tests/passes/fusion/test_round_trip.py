"""Our own models, decomposed to core ops, come back as the composites they were, and compute the same numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from omnic.ir.decompose import decompose
from omnic.ir.graph import Module
from omnic.ir.op import find_op
from omnic.ir.reference import Interpreter
from omnic.ir.verify import verify
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.passes.fusion import AttentionFusion
from omnic.passes.specialise import specialise_train
from omnic.spec import Spec, load_spec, parse_spec, preset_names, scale

F64 = 1e-9

HEAD = """omnic: 1
model: m
vocab: {size: 97}
context: 64
chunk: 16
"""
MHA, GQA = "kind: mha, heads: 4", "kind: gqa, heads: 4, kv_heads: 2"
MLA = "kind: mla, heads: 4, latent: 12, nope_dim: 8, rope_dim: 4, v_dim: 6"
SWIGLU = "kind: dense, hidden: 64, activation: swiglu"
MOE = "kind: moe, hidden: 32, experts: 6, top_k: 2"


def dense(activation: str) -> str:
    return f"kind: dense, hidden: 64, activation: {activation}"


def model(attention: str, ffn: str, extra: str = "", repeat: int = 1, width: int = 32) -> str:
    block = f"repeat: {repeat}, width: {width}, attention: {{{attention}}}, ffn: {{{ffn}}}"
    return f"{HEAD}{extra}blocks:\n  - {{{block}}}\n"


def roped(scaling: str) -> str:
    return f"{MHA}, rope: {{base: 10000, scaling: {{{scaling}}}}}"


VARIANTS = {
    "mqa": model("kind: mqa, heads: 6, head_dim: 8", dense("geglu"), width=48),
    "layer norm, biases": model(MHA, dense("gelu"), "bias: true\nnorm: {kind: layer}\n"),
    "post norm": model(MHA, dense("relu"), "norm: {place: post}\n", repeat=2),
    "both norms": model(MHA, dense("gelu_tanh"), "norm: {place: both}\n"),
    "sinks, softcap, qk_norm": model(
        f"{GQA}, window: 9", dense("relu2"), "qk_norm: true\nsinks: true\nsoftcap: {attention: 8.0, logits: 12.0}\n"
    ),
    "pattern": model(f"{GQA}, window: 5, pattern: [local, local, global]", SWIGLU, repeat=4),
    "interleaved": model(f"{MHA}, rope: {{base: 500000, interleaved: true, dims: 4}}", dense("silu")),
    "linear rope": model(roped("kind: linear, factor: 4"), SWIGLU),
    "yarn": model(roped("kind: yarn, factor: 4"), SWIGLU, "budget: {context: 256}\n"),
    "q latent": model(f"{MLA}, q_latent: 20, window: 7", SWIGLU),
    "groups, split, bias": model(
        MHA, f"{MOE}, shared: 1, groups: [2, 4], split: 2, select_bias: true, activation: swiglu"
    ),
    "two groups of three": model(MHA, f"{MOE}, groups: [2, 2, 2], top_groups: 2, gate_scale: 2.5, activation: swiglu"),
    "two best of a group": model(
        MHA, f"{MOE}, groups: [3, 3], group_score: top2_sum, score: sigmoid, select_bias: true, activation: swiglu"
    ),
    "router bias, clamped": model(
        MHA, f"{MOE}, router_bias: true, activation: swiglu, activation_alpha: 1.702, activation_beta: 1, "
        "activation_limit: 7"
    ),
    "group gate": model(MHA, f"{MOE}, groups: [3, 3], group_gate: true, score: sigmoid, activation: gelu"),
    "not renormalised": model(MHA, f"{MOE}, renormalise: false, activation: relu2, bias: true"),
    "several kinds": model(MHA, SWIGLU, repeat=2)
    + f"  - {{width: 32, attention: {{{MLA}}},"
    + " ffn: {kind: moe, hidden: 32, experts: 4, top_k: 2, activation: gelu}}\n"
    + "heads: {mtp: {kind: linear, depth: 2}, verifier: true}\n",
}


def spec_of(name: str) -> Spec:
    return parse_spec(VARIANTS[name], "variant.yaml") if name in VARIANTS else scale(load_spec(name))


def composites(module: Module) -> dict[str, Counter[str]]:
    return {name: Counter(n.op for n in f.nodes if find_op(n.op).composite) for name, f in module.functions.items()}


def numbers(module: Module, store: WeightStore, function: str) -> dict[str, Any]:
    """Two calls, so that the second reads a cache; ragged in the second row."""
    weights = {n: store.with_module(module).array(n) for n in module.weights}
    rng = np.random.default_rng(7)
    for name in sorted(weights):
        if name.endswith(("bias", "sinks")):
            weights[name] = rng.standard_normal(weights[name].shape)
    run = Interpreter(module, weights).run
    wanted = {p.value.name for p in module.function(function).params if p.state is None}
    out: dict[str, Any] = {}
    states = None
    vocab = int(str(module.meta["vocab"]))
    for start, count in ((0, 11), (11, 5)):
        step = np.arange(count)
        width = next((w.type.shape[1] for n, w in module.weights.items() if n == "embed"), 1)
        inputs = {
            "tokens": rng.integers(0, vocab, (2, count)), "next_tokens": rng.integers(0, vocab, (2, count)),
            "hidden": rng.standard_normal((2, count, width)), "positions": np.tile(start + step, (2, 1)),
            "start": np.full(2, start), "length": np.array([count, count]), "rows": np.tile(step, (2, 1)),
            "parents": np.tile(step // 2 - 1, (2, 1)),
        }
        found = run({k: v for k, v in inputs.items() if k in wanted}, function, states)
        states = {k: v for k, v in found.items() if k in module.states}
        out |= {f"{start}.{k}": v for k, v in found.items()}
    return out


def agree(before: Module, after: Module, store: WeightStore, function: str = "forward") -> None:
    one, two = numbers(before, store, function), numbers(after, store, function)
    assert one.keys() == two.keys()
    for name, wanted in one.items():
        size = max(float(np.sqrt(np.mean(np.square(wanted)))), 1e-12)
        assert np.abs(two[name] - wanted).max() <= F64 * size, name


def refused(result: Any) -> str:
    return "\n".join(str(r) for r in result.remarks if not r.message.startswith("applied"))


FAST = ("tiny", "tiny_moe", "mobile_2gb_moe16")


def cases() -> list[Any]:
    slow = [pytest.param(n, marks=pytest.mark.slow) for n in preset_names() if n not in FAST]
    return [*FAST, *slow, *VARIANTS]


@pytest.mark.parametrize("name", cases())
def test_a_decomposed_model_comes_back(name: str) -> None:
    module = build(spec_of(name))
    plain = decompose(module)
    assert all(not c for c in composites(plain).values())
    result = AttentionFusion().run(plain)
    verify(result.module)
    assert composites(result.module) == composites(module), refused(result)
    store = WeightStore.random(module, seed=3)
    for function in module.functions:
        agree(plain, result.module, store, function)


@pytest.mark.parametrize("name", ["tiny", "sinks, softcap, qk_norm"])
def test_a_token_tree_comes_back(name: str) -> None:
    module = build(spec_of(name), tree=True)
    result = AttentionFusion().run(decompose(module))
    assert composites(result.module) == composites(module), refused(result)
    assert all(n.operands[6] is not None for n in result.module.function().nodes if n.op == "attention")
    agree(module, result.module, WeightStore.random(module, seed=3))


def test_a_module_for_training_comes_back() -> None:
    module = specialise_train(build(spec_of("pattern")))
    result = AttentionFusion().run(decompose(module))
    assert composites(result.module) == composites(module), refused(result)
    assert [n.attrs.get("window", 0) for n in result.module.function().nodes if n.op == "attention"] == [5, 5, 0, 5]


def test_attributes_come_back() -> None:
    names = {"yarn": "rope", "linear rope": "rope", "interleaved": "rope", "two groups of three": "router",
             "group gate": "router", "sinks, softcap, qk_norm": "attention", "tiny_moe": "mla"}
    for name, op in names.items():
        module = build(spec_of(name))
        fused = AttentionFusion().run(decompose(module)).module

        def attrs(m: Module, op: str = op) -> list[dict[str, Any]]:
            found = [dict(n.attrs) for n in m.function().nodes if n.op == op]
            # Only yarn reads the context it was trained with.
            return [{k: v for k, v in a.items() if k != "original_context" or a["scaling"] == "yarn"} for a in found]

        assert attrs(fused) == attrs(module), name


def test_fusing_twice_changes_nothing() -> None:
    module = AttentionFusion().run(decompose(build(spec_of("q latent")))).module
    again = AttentionFusion().run(module)
    assert not again.changed
    assert again.module is module
    assert composites(replace(again.module)) == composites(module)
