"""Decoders that other tools exported reach the fused form of our own spec of them, and compute the same numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.ir.graph import Module
from omnic.ir.op import find_op
from omnic.ir.reference import Interpreter
from omnic.ir.verify import verify
from omnic.models import build
from omnic.models.onnx import import_onnx
from omnic.passes.context import PassContext
from omnic.passes.fusion import AttentionFusion
from omnic.spec import parse_spec
from tests.models.onnx.exports import EXPORTERS, exported

HEAD = "omnic: 1\nmodel: m\nvocab: {size: 97}\ncontext: 64\nchunk: 16\n"
GQA = "kind: gqa, heads: 4, kv_heads: 2, head_dim: 12"
MHA = "kind: mha, heads: 4"
MLA = "kind: mla, heads: 4, latent: 12, nope_dim: 8, rope_dim: 4, v_dim: 8"
DEEPSEEK = "kind: mla, heads: 4, latent: 16, nope_dim: 12, rope_dim: 8, v_dim: 12"
YARN = "rope: {base: 150000, scaling: {kind: yarn, factor: 4, original_context: 32, truncate: false}}"
LLAMA3 = "rope: {base: 500000, scaling: {kind: llama3, factor: 8, original_context: 32}}"
SWIGLU = "kind: dense, hidden: 80, activation: swiglu"


def own(attention: str, ffn: str, extra: str = "", width: int = 48) -> str:
    return f"{HEAD}{extra}blocks:\n  - {{repeat: 2, width: {width}, attention: {{{attention}}}, ffn: {{{ffn}}}}}\n"


def dense(activation: str, hidden: int = 80) -> str:
    return f"kind: dense, hidden: {hidden}, activation: {activation}"


def moe(experts: int, hidden: int) -> str:
    return f"kind: moe, hidden: {hidden}, experts: {experts}, top_k: 2, activation: swiglu"


LAYER = "bias: true\nnorm: {kind: layer}\n"
NOPE = f"{MHA}, rope: null"
SPECS = {
    "llama": own(GQA, SWIGLU),
    "llama_tied": own(GQA, SWIGLU, "tie: true\n"),
    "llama3_rope": own(f"{GQA}, {LLAMA3}", SWIGLU),
    "qwen2": own(GQA, SWIGLU),
    "qwen3": own("kind: gqa, heads: 4, kv_heads: 2, head_dim: 16", SWIGLU, "qk_norm: true\n"),
    "gemma2": own(f"{GQA}, window: 4, pattern: [local, global]", dense("geglu"),
                  "norm: {place: both}\nsoftcap: {attention: 50.0, logits: 30.0}\n"),
    "gpt2": own(MHA, dense("gelu_tanh", 192), LAYER),
    "gpt_neox": own(f"{MHA}, rope: {{dims: 4}}", dense("gelu"), LAYER),
    "mistral": own(f"{GQA}, window: 4", SWIGLU),
    "mixtral": own(GQA, moe(4, 80)),
    "qwen3_moe": own("kind: gqa, heads: 4, kv_heads: 2, head_dim: 16", moe(6, 32), "qk_norm: true\n"),
    "nanogpt": own(MHA, dense("gelu"), LAYER),
    "cached": own("kind: mqa, heads: 4", dense("relu2", 64), width=32),
    "gpt_oss": own(f"kind: gqa, heads: 4, kv_heads: 2, head_dim: 16, window: 4, pattern: [local, global], {YARN}",
                   f"{moe(4, 80)}, router_bias: true, activation_alpha: 1.702, activation_beta: 1, activation_limit: 7",
                   "bias: true\nsinks: true\n"),
    "deepseek": own(f"{DEEPSEEK}, q_latent: 24", SWIGLU),
    "deepseek_moe": own(f"{DEEPSEEK}, q_latent: 24", SWIGLU).replace("repeat: 2, ", "") + "  - {width: 48, attention: "
    f"{{{DEEPSEEK}, q_latent: 24}}, ffn: {{{moe(4, 32)}, shared: 1, groups: [2, 2], group_score: top2_sum, "
    "score: sigmoid, select_bias: true, gate_scale: 2.5}}\n",
    "mla_naive": own(MLA, dense("swiglu", 64), width=32),
    "mla_absorbed": own(MLA, dense("swiglu", 64), width=32),
}
# Positions are a second embedding there, which a spec of ours does not have: it turns its queries and keys instead.
LEARNED = ("gpt2", "nanogpt")
# Kept in every run; the others are for the long suite, as each is exported anew where the cache is empty.
QUICK = ("llama", "mixtral", "mla_absorbed", "gemma2", "gpt_oss", "deepseek_moe")


def composites(module: Module) -> Counter[str]:
    return Counter(n.op for n in module.function().nodes if find_op(n.op).composite)


def wanted(name: str) -> Counter[str]:
    counts = composites(build(parse_spec(SPECS[name], "own.yaml")))
    if name in LEARNED:
        del counts["rope"]
        counts["embedding"] += 1
    return counts


def attributes(module: Module, op: str, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(n.attrs.get(k) for k in names) for n in module.function().nodes if n.op == op]


def cases() -> list[Any]:
    out: list[Any] = []
    for name in SPECS:
        for exporter in EXPORTERS:
            quick = name in QUICK and exporter == "trace"
            out.append(pytest.param(name, exporter, marks=() if quick else pytest.mark.slow))
    return out


@pytest.fixture(scope="session")
def exports(request: pytest.FixtureRequest) -> Path:
    cache = request.config.cache
    assert cache is not None
    return Path(cache.mkdir("onnx_exports"))


def run(module: Module, store: Any, vocab: int = 97) -> dict[str, Any]:
    """Logits of a prefill and of a later chunk, with the states in between."""
    interpreter = Interpreter(module, store.with_module(module))
    names = {p.value.name for p in module.function().params if p.state is None}
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {}
    states = None
    for start, count in ((0, 9), (9, 5)):
        if start and "start" not in names:
            break
        step = np.tile(np.arange(count), (2, 1))
        inputs = {"tokens": rng.integers(0, vocab, (2, count)), "positions": start + step, "rows": step,
                  "start": np.full(2, start), "length": np.full(2, count)}
        found = interpreter.run({k: v for k, v in inputs.items() if k in names}, states=states)
        states = {k: v for k, v in found.items() if k in module.states}
        out[f"logits at {start}"] = found["logits"]
    return out


@pytest.mark.parametrize(("name", "exporter"), cases())
def test_a_foreign_decoder_reaches_our_form(name: str, exporter: str, exports: Path) -> None:
    module, store = import_onnx(exported(name, exporter, exports), capacity=64, chunk=16)
    result = AttentionFusion().run(module, PassContext(weights=store))
    verify(result.module)
    refused = "\n".join(str(r) for r in result.remarks if not r.message.startswith("applied"))
    assert composites(result.module) == wanted(name), refused
    assert not {n.op for n in result.module.function().nodes} & {"softmax", "matmul", "topk", "cos", "rsqrt", "tanh"}
    one, two = run(module, store), run(result.module, store)
    for key, logits in one.items():
        # The class f32: exporters rounded frequencies and the constants of gelu to f32, composites have the formulas.
        assert np.abs(two[key] - logits).max() <= 2e-5 * np.sqrt(np.mean(np.square(logits))), key


@pytest.mark.parametrize(("name", "spec"), [
    ("genai_llama", own(GQA, SWIGLU)),
    ("genai_gemma2", own(f"{GQA}, window: 4, pattern: [local, global]", dense("geglu_tanh"), "norm: {place: both}\n")),
])
def test_the_fused_graph_of_the_genai_builder_is_completed(name: str, spec: str) -> None:
    """It comes in with attention, rope and norms; packed q, k and v, and gates, are what is left to do."""
    file = Path(__file__).parents[2] / "models" / "onnx" / "data" / f"{name}.onnx"
    module, store = import_onnx(file, capacity=64, chunk=16)
    result = AttentionFusion().run(module, PassContext(weights=store))
    verify(result.module)
    assert composites(result.module) == composites(build(parse_spec(spec, "own.yaml")))
    assert not [r for r in result.remarks if not r.message.startswith("applied")]
    one, two = run(module, store, 61), run(result.module, store, 61)
    for key, logits in one.items():
        assert np.abs(two[key] - logits).max() <= 1e-6 * np.sqrt(np.mean(np.square(logits))), key


def test_what_a_foreign_decoder_says_is_in_the_attributes(exports: Path) -> None:
    module, store = import_onnx(exported("gemma2", "trace", exports), capacity=64, chunk=16)
    fused = AttentionFusion().run(module, PassContext(weights=store)).module
    assert attributes(fused, "attention", "window", "softcap") == [(4, 50.0), (None, 50.0)]
    assert attributes(fused, "lm_head", "softcap") == [(30.0,)]
    assert attributes(fused, "gated_act", "kind") == [("gelu_tanh",)] * 2
    module, store = import_onnx(exported("gpt_oss", "trace", exports), capacity=64, chunk=16)
    fused = AttentionFusion().run(module, PassContext(weights=store)).module
    assert attributes(fused, "moe", "kind", "alpha", "beta", "limit") == [("silu", 1.702, 1.0, 7.0)] * 2
    names = ("scaling", "factor", "original_context", "truncate")
    assert attributes(fused, "rope", *names) == [("yarn", 4.0, 32, False)] * 4
    assert all(n.operands[4] is not None for n in fused.function().nodes if n.op == "router")
    module, store = import_onnx(exported("deepseek_moe", "trace", exports), capacity=64, chunk=16)
    fused = AttentionFusion().run(module, PassContext(weights=store)).module
    assert attributes(fused, "router", "groups", "group_score", "score", "scale") == [
        ((2, 2), "top2_sum", "sigmoid", 2.5)]
    module, store = import_onnx(exported("mixtral", "trace", exports), capacity=64, chunk=16)
    fused = AttentionFusion().run(module, PassContext(weights=store)).module
    assert attributes(fused, "router", "top_k", "score", "renormalise") == [(2, None, None)] * 2
    assert attributes(fused, "rope", "base", "dims") == [(1000000.0, 12)] * 4


def test_exact_leaves_what_an_exporter_rounded(exports: Path) -> None:
    module, store = import_onnx(exported("llama", "trace", exports), capacity=64, chunk=16)
    result = AttentionFusion(exact=True).run(module, PassContext(weights=store))
    counts = composites(result.module)
    assert counts["rope"] == 0 and counts["attention"] == 2
    assert "rope: the frequencies of the table are those of no scaling of rope" in str(result.remarks[-1]) or any(
        "frequencies" in r.message for r in result.remarks)
    one, two = run(module, store), run(result.module, store)
    for key, logits in one.items():
        assert np.abs(two[key] - logits).max() <= 1e-9 * np.sqrt(np.mean(np.square(logits))), key
