"""``scale``: the small copy of a spec that tests run instead of the real size.

One layer of each distinct kind, width 96, at most 4 experts, a vocabulary of 512.  What makes a
model awkward is kept or put in: grouped heads keep their ratio, the latent (40) is no multiple of a
quantisation group, windows (20, 28, ...) are shorter than a chunk and rings wrap, no size that can
differ from another one equals it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from omnic.spec.blocks import AttentionModel, DenseModel, MoeModel
from omnic.spec.layers import Attention, Dense, Ffn, Layer, MoE, Rope

if TYPE_CHECKING:
    from omnic.spec.schema import Spec

__all__ = ["scale"]

WIDTH = 96
VOCAB = 512
CONTEXT = 320
CHUNK = 64
HEAD_DIM = 16
LATENT = 40
Q_LATENT = 56
ROPE_DIM = 8
EXPERTS = 4
WINDOW, WINDOW_STEP = 20, 8

_DROPPED = ("extends", "weights", "tokenizer", "draft", "head_dim", "kv_heads", "blocks", "omnic")


def scale(spec: Spec) -> Spec:
    """Return the small copy of ``spec``: same structure, heads and options, small sizes.

    Width 96, context 320, chunk 64; files (weights, tokenizer, draft) and byte budgets are left out.
    The result is validated like any spec; its places are those of ``spec``.
    """
    from omnic.spec.load import spec_of

    data = {key: value for key, value in spec.given().items() if key not in _DROPPED}
    context = min(spec.context, CONTEXT)
    chunk = min(spec.chunk, CHUNK, context)
    data["model"] = f"{spec.model[:57]}_small"
    data["vocab"] = {"size": min(spec.vocab.size, VOCAB)}
    if spec.position_table is not None:
        data["position_table"] = max(context, CONTEXT)
    data |= {"context": context, "chunk": chunk, "chunk_verify": min(spec.chunk_verify, chunk)}
    blocks: list[dict[str, Any]] = []
    for layer in spec.layers():
        block = _block(spec, layer, context)
        if block not in blocks:
            blocks.append(block)
    data["blocks"] = blocks
    if "heads" in data:
        data["heads"] = _heads(spec, data["heads"])
    data["budget"] = _budget(spec, context)
    return spec_of(data, spec)


def _block(spec: Spec, layer: Layer, context: int) -> dict[str, Any]:
    written = spec.blocks[layer.block]
    attention: Any = written.attention
    if isinstance(attention, AttentionModel):
        small = _attention(spec, layer.attention, context)
    else:
        small = attention.scaled(WIDTH)
    ffn: Any = written.ffn
    return {"width": WIDTH, "attention": small, "ffn": _ffn(spec, layer) if _ours(ffn) else ffn.scaled(WIDTH)}


def _ours(ffn: object) -> bool:
    return isinstance(ffn, DenseModel | MoeModel)


def _attention(spec: Spec, old: Attention, context: int) -> dict[str, Any]:
    new: dict[str, Any] = {"kind": old.kind, "softcap": old.softcap, "bias": old.bias}
    if old.kind == "mla":
        assert old.nope_dim and old.rope_dim and old.v_dim
        new["heads"] = min(old.heads, 4)
        new["latent"] = LATENT
        new["rope_dim"] = rotated = min(old.rope_dim, ROPE_DIM)
        new["nope_dim"] = _near(old.nope_dim * rotated / old.rope_dim, 4, 32)
        new["v_dim"] = _near(old.v_dim * rotated / old.rope_dim, 4, 32)
        new["q_latent"] = Q_LATENT if old.q_latent else None
        new["norm_eps"] = old.norm_eps
        head_dim = new["nope_dim"] + rotated
        rope_dims = rotated
    else:
        new["heads"], kv_heads = _head_counts(old)
        if old.kind == "gqa":
            new["kv_heads"] = kv_heads
        new["head_dim"] = head_dim = min(old.head_dim, HEAD_DIM)
        new |= {"qk_norm": old.qk_norm, "sinks": old.sinks}
        rope_dims = head_dim
    new["scale"] = None if old.scale is None else old.scale * (old.head_dim / head_dim) ** 0.5
    new["rope"] = None if old.rope is None else _rope(spec, old, old.rope, rope_dims, context)
    new["window"] = None if old.window is None else _window(spec, old.window, context)
    return new


def _head_counts(old: Attention) -> tuple[int, int]:
    """Return (heads, kv_heads): the ratio is kept up to 6 (beyond, 4); two KV heads where there were more than one."""
    if old.kind == "mha":
        return min(old.heads, 6), min(old.heads, 6)
    ratio = old.heads // old.kv_heads
    kv_heads = min(old.kv_heads, 2)
    return kv_heads * (ratio if ratio <= 6 else 4), kv_heads


def _rope(spec: Spec, attention: Attention, old: Rope, dims: int, context: int) -> dict[str, Any]:
    whole = attention.rope_dim if attention.kind == "mla" else attention.head_dim
    assert whole
    kept = dims if old.dims == whole else max(2, 2 * round(old.dims * dims / whole / 2))
    new: dict[str, Any] = {"base": old.base, "dims": min(kept, dims), "interleaved": old.interleaved}
    if old.scaling is not None:
        new["scaling"] = {
            "kind": old.scaling.kind,
            "factor": old.scaling.factor,
            "original_context": _original(spec, old.scaling.original_context, context),
            "beta_fast": old.scaling.beta_fast,
            "beta_slow": old.scaling.beta_slow,
            "attention_factor": old.scaling.attention_factor,
            "truncate": old.scaling.truncate,
        }
        if old.scaling.factors:
            # As many factors as the small head has frequencies, from the first to the last.
            half, many = new["dims"] // 2, len(old.scaling.factors)
            new["scaling"]["factors"] = [old.scaling.factors[i * (many - 1) // max(half - 1, 1)] for i in range(half)]
    return new


def _original(spec: Spec, original: int, context: int) -> int:
    return max(1, -(-original * context // spec.context))


def _window(spec: Spec, window: int, context: int) -> int:
    """Return the small window: the n-th smallest of the model's windows becomes 20 + 8n."""
    windows = sorted({layer.attention.window for layer in spec.layers() if layer.attention.window})
    return min(WINDOW + WINDOW_STEP * windows.index(window), window, context)


def _ffn(spec: Spec, layer: Layer) -> dict[str, Any]:
    return _small_ffn(layer.ffn, layer.width)


def _small_ffn(old: Ffn, width: int) -> dict[str, Any]:
    if isinstance(old, Dense):
        hidden = _near(old.hidden * WIDTH / width, 16, 288)
        return {"kind": "dense", "hidden": hidden, "activation": old.activation, "bias": old.bias} | _clamped(old)
    split = min(old.split, 2)
    experts = min(old.experts, EXPERTS // split)
    new: dict[str, Any] = {
        "kind": "moe",
        "hidden": _near(old.hidden * WIDTH / width, 16 * split, 288),
        "activation": old.activation,
        "bias": old.bias,
        "experts": experts,
        "shared": min(old.shared, 2),
        "shared_gate": old.shared_gate,
        "split": split,
        "score": old.score,
        "renormalise": old.renormalise,
        "select_bias": old.select_bias,
        "router_bias": old.router_bias,
        "gate_scale": old.gate_scale,
    } | _clamped(old)
    if old.router is not None:
        new["router"] = asdict(old.router)
    if old.shared_hidden != old.hidden:
        new["shared_hidden"] = _near(old.shared_hidden * WIDTH / width, 16, 288)
    chosen = experts
    if old.groups is not None:
        groups, top = _groups(old, experts)
        new |= {"groups": list(groups), "top_groups": top, "group_gate": old.group_gate}
        if old.group_score != "max" and min(groups) > 1:
            new["group_score"] = old.group_score
        chosen = sum(sorted(groups)[:top])
    new["top_k"] = min(old.top_k, chosen, 2)
    return new


def _clamped(old: Dense | MoE) -> dict[str, Any]:
    """Return the numbers of a gated activation that are not at their defaults."""
    numbers = {"activation_alpha": 1.0, "activation_beta": 0.0, "activation_limit": None}
    return {key: getattr(old, key) for key, default in numbers.items() if getattr(old, key) != default}


def _groups(old: MoE, experts: int) -> tuple[tuple[int, ...], int]:
    """Return (sizes, chosen groups): two groups where there were several, uneven ones if they were."""
    assert old.groups
    if len(old.groups) == 1 or experts == 1:
        return (experts,), 1
    first = experts - 1 if len(set(old.groups)) > 1 else -(-experts // 2)
    if old.group_score == "top2_sum" and experts > 3:
        first = min(first, experts - 2)
    return (first, experts - first), 1 if old.top_groups < len(old.groups) else 2


def _heads(spec: Spec, data: dict[str, Any]) -> dict[str, Any]:
    heads = dict(data)
    mtp = heads.get("mtp")
    if mtp is None:
        return heads
    heads["mtp"] = mtp = dict(mtp)
    mtp["depth"] = min(mtp.get("depth", 1), 2)
    last = spec.mtp_layer()
    if "ffn" in mtp and last is not None:
        mtp["ffn"] = _small_ffn(last.ffn, last.width) if _ours(spec.heads.mtp and spec.heads.mtp.ffn) else mtp["ffn"]
    return heads


def _budget(spec: Spec, context: int) -> dict[str, Any]:
    """Return the state capacity: the ratio to the context is kept, up to what rope scaling reaches and 640."""
    if spec.capacity == spec.context:
        return {}
    small = max(1, min(spec.capacity * context // spec.context, 2 * CONTEXT))
    for layer in spec.layers():
        rope = layer.attention.rope
        if rope is not None and rope.scaling is not None and spec.capacity > spec.context:
            small = min(small, int(_original(spec, rope.scaling.original_context, context) * rope.scaling.factor))
    return {"context": max(small, context) if spec.capacity > spec.context else small}


def _near(value: float, step: int, most: int) -> int:
    """Return the multiple of ``step`` nearest to ``value``, from ``step`` to ``most``."""
    return min(max(step, step * round(value / step)), most // step * step)
