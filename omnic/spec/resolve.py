"""From the written blocks to layers: repeats, patterns and defaults expanded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from omnic.spec.blocks import (
    AttentionModel,
    BlockModel,
    DenseModel,
    GqaModel,
    HeadsAttentionModel,
    MlaModel,
    MoeModel,
    MqaModel,
    RopeModel,
    RouterModel,
)
from omnic.spec.layers import Attention, Dense, Ffn, Layer, MoE, Norm, Rope, RopeScaling, RouterNoise

if TYPE_CHECKING:
    from omnic.spec.schema import Spec

__all__ = ["layer_names", "merge", "resolve_attention", "resolve_ffn", "resolve_layers", "resolve_mtp", "variant"]

PATTERN_KEYS = ("pattern", "local", "global")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over``; mappings merge, unless ``over`` names another kind."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def variant(attention: AttentionModel, name: str | None) -> dict[str, Any]:
    """Return the written keys of the attention for the layers called ``name`` in its pattern.

    A ``global`` layer loses the window; then the mapping of that name overrides single keys.
    """
    written = attention.model_dump(by_alias=True, exclude_unset=True)
    own = {key: value for key, value in written.items() if key not in PATTERN_KEYS}
    if name == "global":
        own["window"] = None
    if name is not None:
        own = merge(own, written.get(name) or {})
    return own


def layer_names(block: BlockModel) -> tuple[str | None, ...]:
    """Return the pattern's name of each of the block's layers (None without a pattern)."""
    attention = block.attention
    pattern = attention.pattern if isinstance(attention, AttentionModel) else None
    if pattern is None:
        return (None,) * block.repeat
    return tuple(pattern[i % len(pattern)] for i in range(block.repeat))


def resolve_layers(spec: Spec) -> tuple[Layer, ...]:
    """Return all layers of ``spec``; equal layers share their parts."""
    norm = Norm(**spec.norm.model_dump(exclude={"embedding", "bias"}), bias=_norm_bias(spec))
    layers: list[Layer] = []
    for number, block in enumerate(spec.blocks):
        place = spec.place(("blocks", number))
        ffn = resolve_ffn(spec, block.ffn)
        parts = {name: resolve_attention(spec, block, name) for name in dict.fromkeys(layer_names(block))}
        for name in layer_names(block):
            layers.append(Layer(len(layers), block.width, parts[name], ffn, norm, place, number, name))
    return tuple(layers)


def resolve_mtp(spec: Spec) -> Layer | None:
    """Return the layer of a block MTP head: index = number of main layers."""
    mtp = spec.heads.mtp
    if mtp is None or mtp.kind != "block":
        return None
    last = spec.layers()[-1]
    ffn = last.ffn if mtp.ffn is None else resolve_ffn(spec, mtp.ffn)
    place = spec.place(("heads", "mtp"))
    return Layer(last.index + 1, last.width, last.attention, ffn, last.norm, place, last.block, last.pattern)


def resolve_attention(spec: Spec, block: BlockModel, name: str | None = None) -> Attention:
    """Return the attention of the block's layers called ``name`` in its pattern."""
    written = block.attention
    if not isinstance(written, AttentionModel):
        return _foreign(written, spec, block)
    model = type(written).model_validate(variant(written, name)) if written.pattern is not None else written
    shared: dict[str, Any] = {
        "kind": model.kind,  # pyright: ignore[reportAttributeAccessIssue]  every concrete kind has it
        "heads": model.heads,
        "window": model.window,
        "softcap": model.softcap if "softcap" in model.model_fields_set else spec.softcap.attention,
        "bias": spec.bias if model.bias is None else model.bias,
        "scale": model.scale,
    }
    if isinstance(model, MlaModel):
        return Attention(
            **shared,
            kv_heads=model.heads,
            head_dim=model.nope_dim + model.rope_dim,
            latent=model.latent,
            nope_dim=model.nope_dim,
            rope_dim=model.rope_dim,
            v_dim=model.v_dim,
            q_latent=model.q_latent,
            norm_eps=model.norm_eps,
            rope=_rope(spec, model.rope, model.rope_dim),
        )
    assert isinstance(model, HeadsAttentionModel)
    head_dim = model.head_dim or spec.head_dim or block.width // model.heads
    return Attention(
        **shared,
        kv_heads=_kv_heads(spec, model),
        head_dim=head_dim,
        sinks=spec.sinks if model.sinks is None else model.sinks,
        qk_norm=spec.qk_norm if model.qk_norm is None else model.qk_norm,
        rope=_rope(spec, model.rope, head_dim),
    )


def _norm_bias(spec: Spec) -> bool:
    """Whether norms have biases: a LayerNorm of a spec that says so, there or for all projections."""
    return spec.norm.kind == "layer" and (spec.bias if spec.norm.bias is None else spec.norm.bias)


def _kv_heads(spec: Spec, model: HeadsAttentionModel) -> int:
    if isinstance(model, MqaModel):
        return 1
    if isinstance(model, GqaModel):
        return model.kv_heads or spec.kv_heads or model.heads
    return model.heads


def _rope(spec: Spec, rope: RopeModel | None, dims: int) -> Rope | None:
    if rope is None:
        return None
    scaling = rope.scaling
    if scaling is None:
        return Rope(rope.base, rope.dims or dims, rope.interleaved)
    resolved = RopeScaling(
        scaling.kind,
        scaling.factor,
        scaling.original_context or spec.context,
        scaling.beta_fast,
        scaling.beta_slow,
        scaling.attention_factor,
        scaling.truncate,
        scaling.factors or (),
    )
    return Rope(rope.base, rope.dims or dims, rope.interleaved, resolved)


def resolve_ffn(spec: Spec, ffn: BaseModel) -> Ffn:
    """Return the ffn with the spec's defaults filled in."""
    if isinstance(ffn, DenseModel):
        return Dense(ffn.hidden, ffn.activation, spec.bias if ffn.bias is None else ffn.bias, **_clamped(ffn))
    if not isinstance(ffn, MoeModel):
        return _foreign(ffn, spec, None)
    return MoE(
        hidden=ffn.hidden,
        activation=ffn.activation,
        experts=ffn.experts,
        top_k=ffn.top_k,
        shared=ffn.shared,
        shared_hidden=ffn.shared_hidden or ffn.hidden,
        shared_gate=ffn.shared_gate,
        groups=ffn.groups,
        top_groups=ffn.top_groups,
        group_gate=ffn.group_gate,
        group_score=ffn.group_score,
        split=ffn.split,
        score=ffn.score,
        renormalise=ffn.renormalise,
        select_bias=ffn.select_bias,
        router_bias=ffn.router_bias,
        gate_scale=ffn.gate_scale,
        bias=spec.bias if ffn.bias is None else ffn.bias,
        router=_noise(ffn.router),
        **_clamped(ffn),
    )


def _clamped(ffn: DenseModel | MoeModel) -> dict[str, Any]:
    """Return the numbers of a gated activation."""
    return {key: getattr(ffn, key) for key in ("activation_alpha", "activation_beta", "activation_limit")}


def _noise(router: RouterModel | None) -> RouterNoise | None:
    """Return what is on, None when nothing is: a default that is written equals one that is not."""
    noise = RouterNoise() if router is None else RouterNoise(**router.model_dump())
    return None if noise == RouterNoise() else noise


def _foreign(model: BaseModel, spec: Spec, block: BlockModel | None) -> Any:
    """Return what a registered kind's own ``resolve(spec, block)`` makes of it."""
    return model.resolve(spec, block)  # type: ignore[attr-defined]
