"""From a spec to an architecture of llama.cpp: its metadata and tensors, proven by reading them again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from omnic.errors import InputError, OmnicError
from omnic.ir.rope import rope_frequencies
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.family import Tensors
from omnic.models.gguf.architectures import ARCHITECTURES, Architecture, Place, describe, places
from omnic.models.gguf.rope import rope_keys
from omnic.spec import Layer, MoE, Rope, Spec, parse_spec

__all__ = ["GgufModel", "publish_gguf"]

# Parts of a layer's meaning under the name of their key in a spec, where it is another.
_WHERE = {"layers": "blocks"}


@dataclass(frozen=True)
class GgufModel:
    """How a spec is written in an architecture.

    Attributes:
        arch: the architecture.
        metadata: value by key, the tokenizer's not among them.
        places: where every weight goes.
        factors: of the rope frequencies, written as a tensor; None = none.
    """

    arch: Architecture
    metadata: Mapping[str, Any]
    places: Mapping[str, Place]
    factors: list[float] | None


def publish_gguf(spec: Spec, name: str | None = None) -> GgufModel:
    """Return the spec in the architecture ``name``, or in the first that can express it.

    Raises:
        InputError: none can, with what the nearest one lacks and where the spec says it; or an unknown name.
    """
    if name is not None and name not in ARCHITECTURES:
        raise InputError(f"omnic does not write the architecture '{name}'", f"it writes {', '.join(ARCHITECTURES)}")
    misses: dict[str, list[str]] = {}
    impossible: set[str] = set()
    for arch in ARCHITECTURES.values():
        if name not in (None, arch.name):
            continue
        try:
            model, differing = _tried(spec, arch)
        except OmnicError as error:
            misses[arch.name] = [error.message]
            impossible.add(arch.name)
            continue
        if not differing:
            return model
        misses[arch.name] = differing
    nearest = min(misses, key=lambda m: (m in impossible, len(misses[m])))
    raise InputError(
        f"no architecture of llama.cpp that omnic writes can express {spec.model}: {nearest} lacks "
        f"{'; '.join(misses[nearest][:4])}",
        "heads beside the main one can be left out: --without-heads"
        if any(line.startswith("heads.") for line in misses[nearest])
        else f"architectures: {', '.join(ARCHITECTURES)}; --family NAME tells what another one lacks",
    )


def _tried(spec: Spec, arch: Architecture) -> tuple[GgufModel, list[str]]:
    """Return the spec in an architecture, and what reading it again gives another value."""
    metadata, factors = _metadata(spec, arch)
    where = places(spec, arch)
    shapes: dict[str, tuple[int, ...]] = {place.name: () for place in where.values()}
    shapes["token_embd.weight"] = (spec.vocab.size, spec.width)
    described = describe(Config(metadata, "the metadata"), arch, Tensors(shapes), factors)
    again = parse_spec(json.dumps({"model": spec.model, **described}), "the metadata", syntax="yaml")
    differing = list(_differences(_meaning(spec, arch), _meaning(again, arch), "", spec))
    attention = spec.layers()[0].attention
    if arch.square and attention.heads * attention.head_dim != spec.width:
        differing.append(f"blocks.attention.head_dim {attention.head_dim} (it would be width / heads, "
                         f"{spec.width} / {attention.heads})")
    return GgufModel(arch, metadata, where, factors), differing


def _metadata(spec: Spec, arch: Architecture) -> tuple[dict[str, Any], list[float] | None]:
    layer, key = spec.layers()[0], f"{arch.name}."
    attention, ffn = layer.attention, layer.ffn
    found: dict[str, Any] = {
        "general.architecture": arch.name,
        "general.name": spec.model,
        key + "context_length": spec.context,
        key + "embedding_length": spec.width,
        key + "block_count": len(spec.layers()),
        key + "feed_forward_length": ffn.hidden,
        key + "attention.head_count": attention.heads,
        key + "attention.head_count_kv": attention.kv_heads,
        key + "attention.key_length": attention.head_dim,
        key + "attention.value_length": attention.head_dim,
        key + "attention.layer_norm_rms_epsilon": layer.norm.eps,
        key + "vocab_size": spec.vocab.size,
    }
    if isinstance(ffn, MoE):
        found |= {key + "expert_count": ffn.routed_experts, key + "expert_used_count": ffn.routed_top_k}
        found[key + "feed_forward_length"] = ffn.routed_hidden
        if arch.name != "llama":
            found[key + "expert_feed_forward_length"] = ffn.routed_hidden
        if arch.shared:
            found[key + "expert_shared_feed_forward_length"] = ffn.shared * ffn.shared_hidden
    if attention.rope is None:
        return found, None
    rope, factors = rope_keys(arch.name, attention.rope)
    if factors is not None and not arch.factors:
        raise InputError(f"rope.scaling.kind {attention.rope.scaling.kind}" if attention.rope.scaling else "rope")
    return found | rope, factors


def _meaning(spec: Spec, arch: Architecture) -> dict[str, Any]:
    """Return what a spec computes, in one form for whatever means the same."""
    return {
        "vocab": {"size": spec.vocab.size},
        "context": spec.context,
        "tie": spec.tie,
        "softcap": {"logits": spec.softcap.logits},
        "multipliers": spec.multipliers.model_dump(),
        "position_table": spec.position_table,
        "heads": {"mtp": spec.heads.mtp is not None, "verifier": spec.heads.verifier},
        "norm": {"kind": spec.norm.kind, "embedding": spec.norm.embedding},
        "layers": [_layer(layer, spec, arch) for layer in spec.layers()],
    }


def _layer(layer: Layer, spec: Spec, arch: Architecture) -> dict[str, Any]:
    attention = {k: v for k, v in asdict(layer.attention).items() if v is not None or k in ("rope", "window")}
    attention["kind"] = "mla" if layer.attention.kind == "mla" else "heads"
    window, scale = layer.attention.window, layer.attention.scale
    attention["window"] = None if window is None or window >= spec.capacity else window
    attention["scale"] = layer.attention.head_dim**-0.5 if scale is None else scale
    attention["rope"] = None if layer.attention.rope is None else _rope(layer.attention.rope, arch)
    ffn = asdict(layer.ffn)
    if isinstance(layer.ffn, MoE):
        moe = layer.ffn
        ffn |= {"hidden": moe.routed_hidden, "experts": moe.routed_experts, "top_k": moe.routed_top_k, "split": 1}
        ffn |= {"shared": bool(moe.shared), "shared_hidden": moe.shared * moe.shared_hidden, "router": None}
    return {"width": layer.width, "norm": asdict(layer.norm) | {"bias": layer.norm.bias}, "attention": attention,
            "ffn": ffn}


def _rope(rope: Rope, arch: Architecture) -> dict[str, Any]:
    """Return what a rope does: its frequencies to the precision of f32, and its magnitude."""
    scaling = rope.scaling
    found = {"dims": rope.dims, "interleaved": False if arch.pairs else rope.interleaved}
    if scaling is None:
        frequencies, magnitude = rope_frequencies(rope.base, rope.dims)
    else:
        frequencies, magnitude = rope_frequencies(
            rope.base, rope.dims, scaling.kind, scaling.factor, scaling.original_context, scaling.beta_fast,
            scaling.beta_slow, scaling.attention_factor, scaling.truncate, scaling.factors,
        )
    return found | {"frequencies": [f"{f:.7g}" for f in frequencies], "magnitude": f"{magnitude:.7g}"}


def _differences(ours: Any, theirs: Any, path: str, spec: Spec) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys((*ours, *theirs)):
            word = _WHERE.get(str(key), str(key))
            inner = f"{path}.{word}" if path else word
            yield from _differences(ours.get(key), theirs.get(key), inner, spec)
    elif path == "blocks":
        if len(ours) != len(theirs):
            yield f"{len(ours)} layers"
        seen: set[str] = set()
        for layer, a, b in zip(spec.layers(), ours, theirs, strict=False):
            for line in _differences(a, b, "", spec):
                if line not in seen:  # equal layers differ alike
                    seen.add(line)
                    file, row, column = layer.place
                    yield f"blocks.{line} in the block at {file}:{row}:{column}"
    elif ours != theirs:
        yield f"{path} {json.dumps(ours)}" + ("" if isinstance(ours, list) else f" (it would be {json.dumps(theirs)})")
