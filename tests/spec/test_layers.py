"""From the written blocks to layers: repeats, patterns, defaults."""

from __future__ import annotations

from omnic.spec import Dense, MoE, Rope, RopeScaling, Spec, parse_spec

HEAD = "model: m\nvocab: {size: 64}\ncontext: 1k\n"


def spec(blocks: str, more: str = "") -> Spec:
    return parse_spec(f"{HEAD}{more}blocks:\n{blocks}", "m.yaml")


PATTERN = """
  - repeat: 6
    width: 64
    attention:
      kind: gqa
      heads: 4
      kv_heads: 2
      window: 128
      rope: {base: 10000, dims: 8}
      pattern: [local, local, global]
      global: {rope: {base: 1000000, scaling: {kind: linear, factor: 8}}, softcap: none}
      local: {bias: true}
    ffn: {kind: dense, hidden: 32, activation: geglu}
"""


def test_a_pattern_over_a_repeat() -> None:
    layers = spec(PATTERN, "softcap: {attention: 50}\n").layers()
    assert [layer.pattern for layer in layers] == ["local", "local", "global"] * 2
    assert [layer.index for layer in layers] == list(range(6))
    local, overall = layers[0].attention, layers[2].attention
    assert (local.window, overall.window) == (128, None)
    assert (local.bias, overall.bias) == (True, False)
    assert (local.softcap, overall.softcap) == (50, None)
    assert local.rope == Rope(10000, 8)
    assert overall.rope == Rope(1000000, 8, False, RopeScaling("linear", 8, 1024))
    assert layers[0].attention is layers[1].attention


def test_a_pattern_repeats_cyclically_and_may_end_early() -> None:
    layers = spec(PATTERN.replace("repeat: 6", "repeat: 4")).layers()
    assert [layer.pattern for layer in layers] == ["local", "local", "global", "local"]


def test_a_pattern_means_its_layers() -> None:
    patterned = spec(
        "  - {repeat: 3, width: 64, attention: {kind: mha, heads: 4, window: 9, pattern: [local, global, local]},"
        " ffn: {kind: dense, hidden: 8}}\n"
    )
    block = "  - {{width: 64, attention: {{kind: mha, heads: 4{}}}, ffn: {{kind: dense, hidden: 8}}}}\n"
    written = spec(block.format(", window: 9") + block.format("") + block.format(", window: 9"))
    assert patterned == written
    assert patterned.digest == written.digest
    assert patterned != spec(block.format(", window: 9") * 3)


def test_defaults_come_from_the_top() -> None:
    blocks = """
  - width: 64
    attention: {kind: gqa, heads: 4}
    ffn: {kind: dense, hidden: 8}
  - width: 64
    attention:
      {kind: gqa, heads: 4, head_dim: 8, kv_heads: 4, qk_norm: false, bias: false, softcap: none,
       sinks: false, rope: none}
    ffn: {kind: dense, hidden: 8, bias: false}
"""
    top = "head_dim: 32\nkv_heads: 2\nqk_norm: true\nbias: true\nsinks: true\nsoftcap: {attention: 20}\n"
    first, second = spec(blocks, top).layers()
    a, b = first.attention, second.attention
    assert (a.head_dim, a.kv_heads, a.qk_norm, a.bias, a.sinks, a.softcap) == (32, 2, True, True, True, 20)
    assert (b.head_dim, b.kv_heads, b.qk_norm, b.bias, b.sinks, b.softcap) == (8, 4, False, False, False, None)
    assert a.rope == Rope(10000, 32)
    assert b.rope is None
    assert first.ffn == Dense(8, "swiglu", True)
    assert second.ffn == Dense(8, "swiglu", False)


def test_kinds() -> None:
    blocks = """
  - {width: 64, attention: {kind: mha, heads: 4}, ffn: {kind: dense, hidden: 8, activation: relu2}}
  - {width: 64, attention: {kind: mqa, heads: 4}, ffn: {kind: dense, hidden: 8, activation: geglu}}
  - width: 64
    attention: {kind: mla, heads: 4, latent: 20, nope_dim: 6, rope_dim: 2, v_dim: 10, q_latent: 30}
    ffn: {kind: moe, hidden: 12, experts: 4, top_k: 1, groups: [1, 3], split: 3, shared: 2, activation: gelu}
"""
    mha, mqa, mla = (layer.attention for layer in spec(blocks).layers())
    assert (mha.kv_heads, mha.head_dim, mha.value_dim) == (4, 16, 16)
    assert (mqa.kv_heads, mqa.head_dim) == (1, 16)
    assert (mla.kv_heads, mla.head_dim, mla.value_dim, mla.q_latent) == (4, 8, 10, 30)
    assert mla.rope == Rope(10000, 2)
    plain, gated, moe = (layer.ffn for layer in spec(blocks).layers())
    assert (plain.gated, gated.gated) == (False, True)
    assert isinstance(moe, MoE)
    assert (moe.routed_experts, moe.routed_top_k, moe.routed_hidden) == (12, 3, 4)
    assert moe.routed_groups == (3, 9)
    assert moe.shared_hidden == 12


def test_capacity_and_chunk() -> None:
    block = "  - {width: 64, attention: {kind: mha, heads: 4}, ffn: {kind: dense, hidden: 8}}\n"
    assert spec(block).capacity == 1024
    assert (spec(block).chunk, spec(block).chunk_verify) == (512, 16)
    assert spec(block, "budget: {context: 600}\n").capacity == 600
    small = parse_spec(f"model: m\nvocab: {{size: 64}}\ncontext: 12\nblocks:\n{block}")
    assert (small.chunk, small.chunk_verify) == (12, 12)


def test_places() -> None:
    made = spec(PATTERN, "heads: {mtp: {kind: block, depth: 2}}\n")
    assert made.layers()[3].place == ("m.yaml", 7, 5)
    assert made.place("heads.mtp.depth") == ("m.yaml", 4, 35)
    assert made.place(("blocks", 0, "attention", "heads")) == ("m.yaml", 11, 14)
    assert made.place("blocks[0].ffn") == ("m.yaml", 18, 5)
    assert made.place("norm.eps") == ("m.yaml", 1, 1)
    layer = made.mtp_layer()
    assert layer is not None
    assert (layer.place, layer.index, layer.pattern) == (("m.yaml", 4, 9), 6, "global")
