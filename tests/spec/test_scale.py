"""``scale``: the small copy keeps what makes a model awkward."""

from __future__ import annotations

import pytest

from omnic.spec import MoE, load_spec, parse_spec, preset_names, scale
from omnic.spec.sizes import count_parameters


@pytest.mark.parametrize("name", preset_names())
def test_every_preset(name: str) -> None:
    spec, small = load_spec(name), scale(load_spec(name))
    assert small.model == f"{name}_small"
    assert (small.width, small.vocab.size, small.context, small.chunk) == (96, 512, 320, 64)
    assert small.weights is small.tokenizer is small.draft is None
    assert small.heads.model_dump(exclude={"mtp": {"ffn"}}) == spec.heads.model_dump(exclude={"mtp": {"ffn"}})
    assert (small.tie, small.norm, small.dtype, small.qk_norm) == (spec.tie, spec.norm, spec.dtype, spec.qk_norm)
    assert len(small.layers()) == 1
    big, layer = spec.layers()[0], small.layers()[0]
    assert layer.attention.kind == big.attention.kind
    assert type(layer.ffn) is type(big.ffn)
    assert layer.ffn.activation == big.ffn.activation
    assert (layer.attention.window is None) == (big.attention.window is None)
    if layer.attention.window is not None:
        assert layer.attention.window + small.chunk - 1 < small.capacity, "the ring must wrap"
    assert count_parameters(small).total < 1_000_000
    assert layer.place == big.place


def test_awkward_ratios_stay() -> None:
    gqa = scale(load_spec("draft_150m")).layers()[0].attention
    assert (gqa.heads, gqa.kv_heads) == (6, 2)
    mla = scale(load_spec("mobile_4gb")).layers()[0].attention
    assert mla.latent is not None
    assert mla.latent % 32
    assert (mla.nope_dim, mla.rope_dim, mla.v_dim) == (24, 8, 32)
    moe = scale(load_spec("mobile_4gb_moe16")).layers()[0].ffn
    assert isinstance(moe, MoE)
    assert (moe.experts, moe.groups, moe.top_k, moe.shared) == (4, (2, 2), 2, 2)
    block = scale(load_spec("tiny_moe")).mtp_layer()
    assert block is not None
    assert (block.ffn.activation, block.ffn.hidden) == ("swiglu", 96)


def test_one_layer_of_each_kind() -> None:
    spec = parse_spec(
        """
model: mixed
vocab: {size: 100}
context: 4k
budget: {context: 16k}
blocks:
  - repeat: 12
    width: 512
    attention:
      kind: gqa
      heads: 16
      kv_heads: 2
      window: 512
      pattern: [local, local, global]
      global: {rope: {base: 1000000, scaling: {kind: yarn, factor: 4}}}
    ffn: {kind: moe, hidden: 512, experts: 9, top_k: 3, groups: [2, 3, 4], top_groups: 2, split: 2, select_bias: true}
  - repeat: 3
    width: 512
    attention:
      {kind: mla, heads: 8, latent: 64, nope_dim: 32, rope_dim: 32, v_dim: 64, q_latent: 9, window: 64, scale: 0.5}
    ffn: {kind: dense, hidden: 4096}
""",
        "mixed.yaml",
    )
    small = scale(spec)
    assert [(layer.attention.kind, layer.attention.window) for layer in small.layers()] == [
        ("gqa", 28),
        ("gqa", None),
        ("mla", 20),
    ]
    assert (small.vocab.size, small.capacity) == (100, 640)
    local, overall, last = small.layers()
    assert local.attention.rope is not None
    assert overall.attention.rope is not None
    assert local.attention.rope.scaling is None
    assert overall.attention.rope.scaling is not None
    assert overall.attention.rope.scaling.original_context == 320
    assert (local.attention.heads, local.attention.kv_heads) == (8, 2)
    assert isinstance(local.ffn, MoE)
    assert (local.ffn.routed_experts, local.ffn.groups, local.ffn.top_groups, local.ffn.select_bias) == (
        4,
        (1, 1),
        1,
        True,
    )
    assert last.attention.q_latent
    assert last.attention.scale == pytest.approx(0.5 * (64 / 16) ** 0.5)
