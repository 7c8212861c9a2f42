"""Small models that between them have every block kind of a decoder."""

from __future__ import annotations

from omnic.ir.graph import Module
from omnic.models import build
from omnic.spec import load_spec, parse_spec, scale

HEAD = """omnic: 1
model: m
vocab: {size: 97}
context: 64
chunk: 24
"""

MHA, GQA = "kind: mha, heads: 4", "kind: gqa, heads: 4, kv_heads: 2"
MLA = "kind: mla, heads: 4, latent: 12, nope_dim: 8, rope_dim: 4, v_dim: 6"
SWIGLU = "kind: dense, hidden: 50, activation: swiglu"
CLAMPED = "activation_alpha: 1.702, activation_beta: 1, activation_limit: 0.7"
MOE = "kind: moe, hidden: 22, experts: 6, top_k: 2"


def dense(activation: str) -> str:
    return f"kind: dense, hidden: 50, activation: {activation}"


def model(attention: str, ffn: str, extra: str = "", repeat: int = 1, width: int = 32) -> str:
    block = f"repeat: {repeat}, width: {width}, attention: {{{attention}}}, ffn: {{{ffn}}}"
    return f"{HEAD}{extra}blocks:\n  - {{{block}}}\n"


VARIANTS = {
    "mqa, geglu": model("kind: mqa, heads: 6, head_dim: 6", dense("geglu"), width=36),
    "layer norm, biases": model(MHA, dense("gelu"), "bias: true\nnorm: {kind: layer}\n"),
    "post norm": model(MHA, dense("relu"), "norm: {place: post}\n", repeat=2),
    "both norms": model(MHA, dense("silu"), "norm: {place: both}\n"),
    "sinks, softcap, qk_norm": model(
        f"{GQA}, window: 9", dense("relu2"), "qk_norm: true\nsinks: true\nsoftcap: {attention: 8.0, logits: 12.0}\n"
    ),
    "pattern of windows": model(f"{GQA}, window: 5, pattern: [local, local, global]", SWIGLU, repeat=6),
    "yarn": model(
        f"{MHA}, rope: {{base: 10000, scaling: {{kind: yarn, factor: 4}}}}", SWIGLU, "budget: {context: 256}\n"
    ),
    "mla, q latent": model(f"{MLA}, q_latent: 20, window: 7", SWIGLU),
    "groups, split, bias": model(
        MHA, f"{MOE}, shared: 1, groups: [2, 4], split: 2, select_bias: true, activation: swiglu"
    ),
    "group gate, sigmoid": model(MHA, f"{MOE}, groups: [3, 3], group_gate: true, score: sigmoid, activation: gelu"),
    "two best of a group": model(
        MHA, f"{MOE}, groups: [2, 2, 2], top_groups: 2, group_score: top2_sum, score: sigmoid, select_bias: true, "
        "shared: 1, gate_scale: 2.5, activation: swiglu"
    ),
    "clamped swiglu, llama3": model(
        f"{MHA}, rope: {{base: 10000, scaling: {{kind: llama3, factor: 4}}}}",
        f"{SWIGLU}, {CLAMPED}", "budget: {context: 256}\n"
    ),
    "clamped experts, router bias": model(
        f"{GQA}, rope: {{base: 10000, scaling: {{kind: yarn, factor: 4, original_context: 16, truncate: false}}}}",
        f"{MOE}, router_bias: true, shared: 1, activation: swiglu, {CLAMPED}", "bias: true\nsinks: true\n"
    ),
    "several kinds, linear heads": model(MHA, SWIGLU, repeat=2)
    + f"  - {{width: 32, attention: {{{MLA}}},"
    + " ffn: {kind: moe, hidden: 22, experts: 4, top_k: 2, activation: gelu}}\n"
    + "heads: {mtp: {kind: linear, depth: 2}, verifier: true}\n",
    "two mtp blocks with experts": model(MHA, f"{MOE}, activation: gelu") + "heads: {mtp: {kind: block, depth: 2}}\n",
    "mtp blocks that read normed states": model(MHA, f"{MOE}, activation: gelu")
    + "heads: {mtp: {kind: block, depth: 2, normed: true}}\n",
    "parallel norms with biases, learned positions": model(
        f"{MHA}, rope: none, bias: qkv", dense("gelu_tanh") + ", bias: true",
        "norm: {place: parallel, kind: layer, bias: true}\nposition_table: 64\n", repeat=2
    ),
    "norms without weights, multipliers": model(
        GQA, dense("geglu_tanh"),
        "norm: {weight: false, embedding: true}\nqk_norm: full\n"
        "multipliers: {embedding: 5, residual: 0.4, logits: 0.3}\n", repeat=2
    ),
    "longrope of some dims": model(
        f"{MHA}, rope: {{dims: 4, scaling: {{kind: longrope, factor: 4, original_context: 16, factors: [1.5, 3]}}}}",
        SWIGLU
    ),
    "f16 cache": model(GQA, SWIGLU, "kv_dtype: f16\n"),
}


def variant(name: str, tree: bool = False) -> Module:
    """Return the front module of a variant, or of a preset's scaled copy."""
    spec = parse_spec(VARIANTS[name], "variant.yaml") if name in VARIANTS else scale(load_spec(name))
    return build(spec, tree=tree)
