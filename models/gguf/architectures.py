"""Architectures of llama.cpp: their metadata as a spec, the names of their tensors, and the way back.

What the keys mean: ggml's ``docs/gguf.md`` and llama.cpp's ``llama-arch.cpp`` (names), ``llama-model.cpp`` (graphs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omnic.errors import InputError
from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.family import Tensors
from omnic.models.checkpoints.tensors import concat, load, rows, stack
from omnic.models.gguf.rope import rope_of
from omnic.spec import Layer, MoE, Spec

__all__ = ["ARCHITECTURES", "ROPE_FACTORS", "Architecture", "Place", "architecture_of", "describe", "places"]

ROPE_FACTORS = "rope_freqs.weight"
IGNORED = {
    ROPE_FACTORS: "it went into blocks.attention.rope.scaling",
    "blk.*.attn_rot_embd.weight": "rope frequencies, which follow from the metadata",
    "blk.*.rope_freqs.weight": "rope frequencies, which follow from the metadata",
}


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp's graph of an architecture has of its own.

    Attributes:
        name: ``general.architecture``.
        title: the models it is for.
        pairs: rope turns neighbouring dims, so that rows of q and k lie in another order than omnic's.
        qk_norm: heads of q and k are normed.
        biases: q, k and v have biases (None: the file says).
        experts: a mixture (None: the file says).
        renormalise: gates of the chosen experts sum to one.
        shared: an expert that every token takes, scaled by the sigmoid of a product.
        factors: the file may hold a factor for each rope frequency.
        square: the heads of q together are as wide as the model.
    """

    name: str
    title: str
    pairs: bool = False
    qk_norm: bool = False
    biases: bool | None = False
    experts: bool | None = False
    renormalise: bool = True
    shared: bool = False
    factors: bool = False
    square: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {a.name: a for a in (
    Architecture("qwen2", "Qwen2, Qwen2.5", biases=True, square=True),
    Architecture("qwen2moe", "Qwen2-MoE", biases=True, experts=True, renormalise=False, shared=True, square=True),
    Architecture("qwen3", "Qwen3", qk_norm=True),
    Architecture("qwen3moe", "Qwen3-MoE", qk_norm=True, experts=True),
    Architecture("llama", "Llama 2 and 3, Mistral, Mixtral", pairs=True, biases=None, experts=None, factors=True),
)}  # fmt: skip


def architecture_of(config: Config) -> Architecture:
    """Return the architecture of a file.

    Raises:
        InputError: it names none, or one that omnic does not read.
    """
    name = config.raw("general.architecture", "the architecture", None)
    if name not in ARCHITECTURES:
        raise InputError(f"{config.origin}: omnic does not read the architecture '{name}'",
                         f"it reads {', '.join(ARCHITECTURES)}; or import the checkpoint the file was converted from")
    return ARCHITECTURES[name]


# -- metadata to spec -------------------------------------------------------------------------------------


def describe(config: Config, arch: Architecture, tensors: Tensors, factors: list[float] | None) -> dict[str, Any]:
    """Return the spec as plain data.

    Args:
        config: the metadata.
        arch: the architecture.
        tensors: of the file; which biases there are, and whether the head is the embedding, is not in the metadata.
        factors: of the rope frequencies, where the file holds them.

    Raises:
        InputError: a key is missing, or says what omnic cannot express.
    """
    key = f"{arch.name}."
    width = config.whole(key + "embedding_length", "blocks.width")
    context = config.whole(key + "context_length", "context")
    eps = config.number(key + "attention.layer_norm_rms_epsilon", "norm.eps")
    attention = _attention(config, arch, tensors, width, context, factors)
    for idle in ("tensor_data_layout", "rope.scaling.finetuned", "attention.causal", "vocab_size"):
        config.ignore("it says what is so of every file of the architecture", key + idle)
    config.ignore("llama.cpp attends to all tokens in this architecture", key + "attention.sliding_window")
    layers = config.whole(key + "block_count", "blocks.repeat")
    return {
        "vocab": {"size": tensors.shapes.get("token_embd.weight", (0,))[0]},
        "context": context,
        "tie": "output.weight" not in tensors,
        "norm": {"kind": "rms", "eps": eps},
        "blocks": [{"repeat": layers, "width": width, "attention": attention, "ffn": _ffn(config, arch, tensors)}],
    }


def _attention(config: Config, arch: Architecture, tensors: Tensors, width: int, context: int,
               factors: list[float] | None) -> dict[str, Any]:
    key = f"{arch.name}."
    heads = _same(config, key + "attention.head_count", "blocks.attention.heads")
    kv_heads = _same(config, key + "attention.head_count_kv", "blocks.attention.kv_heads", heads)
    size = config.whole(key + "attention.key_length", "blocks.attention.head_dim", width // heads)
    config.only(key + "attention.value_length", size, "as long as a key head")
    biases: bool | str = arch.biases is True or "blk.0.attn_q.bias" in tensors
    if biases and "blk.0.attn_output.bias" not in tensors:
        biases = "qkv"
    dims = config.whole(key + "rope.dimension_count", "blocks.attention.rope.dims", size)
    if arch.pairs and dims != size:
        raise InputError(f"{config.origin}: omnic cannot express {key}rope.dimension_count = {dims}",
                         f"in the architecture {arch.name} it reads heads whose {size} dims are all rotated")
    return {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": size,
        "bias": biases,
        "qk_norm": arch.qk_norm,
        "rope": rope_of(config, arch.name, dims, context, factors),
    }


def _ffn(config: Config, arch: Architecture, tensors: Tensors) -> dict[str, Any]:
    key = f"{arch.name}."
    hidden = _same(config, key + "feed_forward_length", "blocks.ffn.hidden", None)
    experts = config.whole(key + "expert_count", "blocks.ffn.experts", 0) if arch.experts is not False else 0
    if not experts:
        if hidden is None:
            raise InputError(f"{config.origin} has no '{key}feed_forward_length'", "the file is damaged")
        config.ignore("there are no experts", key + "expert_used_count")
        bias = "blk.0.ffn_up.bias" in tensors
        return {"kind": "dense", "hidden": hidden, "activation": "swiglu", "bias": bias}
    top_k = config.whole(key + "expert_used_count", "blocks.ffn.top_k")
    inner = hidden if arch.name == "llama" else None if hidden is None else hidden // top_k
    found: dict[str, Any] = {
        "kind": "moe",
        "hidden": config.whole(key + "expert_feed_forward_length", "blocks.ffn.hidden", inner),
        "activation": "swiglu",
        "experts": experts,
        "top_k": top_k,
        "renormalise": arch.renormalise,
        "bias": False,
    }
    config.only(key + "expert_gating_func", 1, "gates are a softmax in this architecture", 0)
    config.only(key + "expert_weights_norm", arch.renormalise, "llama.cpp's graph of the architecture has it so")
    config.only(key + "expert_weights_scale", 1.0, "llama.cpp's graph of the architecture has no factor", 0.0)
    if arch.shared:
        shared = config.whole(key + "expert_shared_feed_forward_length", "blocks.ffn.shared_hidden", hidden)
        config.ignore("the architecture has one", key + "expert_shared_count")
        found |= {"shared": 1, "shared_hidden": shared, "shared_gate": True}
    return found


def _same(config: Config, key: str, effect: str, *default: Any) -> Any:
    """Return a whole number, or the one that all layers of a list have."""
    value = config.raw(key, effect, *default)
    values = set(value) if isinstance(value, list) else {value}
    if len(values) != 1:
        raise InputError(f"{config.origin}: omnic cannot express {key} of {len(values)} sizes",
                         "it reads files whose layers are alike")
    (only,) = values
    if only is not None and (isinstance(only, bool) or not isinstance(only, int)):
        raise InputError(f"{config.origin}: {key} is {only!r}, not a whole number", "the file is damaged")
    return only


# -- names of tensors ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a weight lies in a file.

    Attributes:
        name: of the tensor.
        heads: rows of each of so many heads lie in pairs (i, i + half); 0 = in omnic's order.
    """

    name: str
    heads: int = 0


def places(spec: Spec, arch: Architecture) -> dict[str, Place]:
    """Return the place of every weight of a spec's model."""
    found = {"embed": Place("token_embd.weight"), "final_norm": Place("output_norm.weight")}
    if not spec.tie:
        found["head"] = Place("output.weight")
    for layer in spec.layers():
        found |= _layer_places(layer, arch, f"blocks.{layer.index}", f"blk.{layer.index}")
    return found


def _layer_places(layer: Layer, arch: Architecture, ours: str, theirs: str) -> dict[str, Place]:
    attention = layer.attention
    pairs = arch.pairs and attention.rope is not None and not attention.rope.interleaved
    heads = {"q": attention.heads if pairs else 0, "k": attention.kv_heads if pairs else 0}
    found = {f"{ours}.attn_norm": Place(f"{theirs}.attn_norm.weight"),
             f"{ours}.ffn_norm": Place(f"{theirs}.ffn_norm.weight")}
    for name, their in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
        found[f"{ours}.attn.{name}"] = Place(f"{theirs}.{their}.weight", heads.get(name, 0))
        if attention.bias is True or (attention.bias == "qkv" and name != "o"):
            found[f"{ours}.attn.{name}_bias"] = Place(f"{theirs}.{their}.bias", heads.get(name, 0))
    if attention.qk_norm:
        found |= {f"{ours}.attn.{name}_norm": Place(f"{theirs}.attn_{name}_norm.weight") for name in "qk"}
    ffn = layer.ffn
    for name in ("gate", "up", "down"):
        if not isinstance(ffn, MoE):
            found[f"{ours}.ffn.{name}"] = Place(f"{theirs}.ffn_{name}.weight")
            if ffn.bias:
                found[f"{ours}.ffn.{name}_bias"] = Place(f"{theirs}.ffn_{name}.bias")
            continue
        found[f"{ours}.ffn.experts.{name}"] = Place(f"{theirs}.ffn_{name}_exps.weight")
        if ffn.shared:
            found[f"{ours}.ffn.shared.{name}"] = Place(f"{theirs}.ffn_{name}_shexp.weight")
    if isinstance(ffn, MoE):
        found[f"{ours}.ffn.router"] = Place(f"{theirs}.ffn_gate_inp.weight")
        if ffn.shared_gate:
            found[f"{ours}.ffn.shared_gate"] = Place(f"{theirs}.ffn_gate_inp_shexp.weight")
    return found


def table(spec: Spec, arch: Architecture, tensors: Tensors) -> dict[str, Recipe]:
    """Return the recipe of every weight over a file's tensors."""
    found: dict[str, Recipe] = {}
    for name, place in places(spec, arch).items():
        shape = tensors.shapes.get(place.name, ())
        if place.name not in tensors and (apart := _apart(place.name, tensors)):
            found[name] = stack(*(load(part) for part in apart))
        elif name.endswith(".shared_gate") and len(shape) == 1:
            found[name] = Recipe("reshape", {"shape": (1, *shape)}, (load(place.name),))
        else:
            found[name] = _unpaired(load(place.name), place.heads, shape)
    return found


def _apart(name: str, tensors: Tensors) -> list[str]:
    """Return the tensors of single experts, as older files of Mixtral have them."""
    stem, marked, _ = name.partition("_exps.weight")
    parts: list[str] = []
    while marked and f"{stem}.{len(parts)}.weight" in tensors:
        parts.append(f"{stem}.{len(parts)}.weight")
    return parts


def _unpaired(tensor: Recipe, heads: int, shape: tuple[int, ...]) -> Recipe:
    """Return rows of heads in omnic's order: first the first of every pair, then the second."""
    if not heads or not shape or shape[0] % (2 * heads):
        return tensor
    size = shape[0] // heads
    return concat(*(rows(tensor, head * size + half, (head + 1) * size, step=2)
                    for head in range(heads) for half in (0, 1)))
