"""What most families share: keys that mean the same everywhere, and the tensor names of the Llama layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnic.errors import InputError
from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.family import Tensors
from omnic.models.checkpoints.tensors import load, rows, stack
from omnic.spec import Layer, MoE, Spec

__all__ = [
    "GATED",
    "PLAIN",
    "attention_keys",
    "base_keys",
    "block_groups",
    "decoder_table",
    "equal_blocks",
    "gated_ffn",
    "layer_names",
    "llama_attention",
    "llama_block",
    "llama_experts",
    "llama_mlp",
    "llama_table",
    "shortest",
    "window_of",
    "windowed",
]

#: hidden_act -> activation of a gated network
GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
}
#: hidden_act -> activation of a network of two matrices
PLAIN = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
}


def base_keys(config: Config, *, eps: float | None = 1e-6, tie: bool = False) -> dict[str, Any]:
    """Return what the top of the spec says: vocabulary, trained length, norm and tying.

    Args:
        config: read.
        eps: the family's default of ``rms_norm_eps``; None where the family reads its norm itself.
        tie: the family's default of ``tie_word_embeddings``.
    """
    found: dict[str, Any] = {
        "vocab": {"size": config.whole("vocab_size", "vocab.size")},
        "context": config.whole("max_position_embeddings", "context"),
        "tie": config.flag("tie_word_embeddings", "tie", tie),
    }
    return (
        found
        if eps is None
        else found | {"norm": {"kind": "rms", "eps": config.number("rms_norm_eps", "norm.eps", eps)}}
    )


def attention_keys(config: Config, *, head_dim: int | None = None) -> dict[str, Any]:
    """Return heads, key and value heads and head_dim of a grouped-query attention.

    Args:
        config: read.
        head_dim: the family's default; None where it is the width over the heads.
    """
    width, heads = (
        config.whole("hidden_size", "blocks.width", least=1),
        config.whole("num_attention_heads", "blocks.attention.heads", least=1),
    )
    return {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": config.whole("num_key_value_heads", "blocks.attention.kv_heads", heads),
        "head_dim": config.whole("head_dim", "blocks.attention.head_dim", head_dim or width // heads),
    }


def windowed(
    config: Config,
    attention: dict[str, Any],
    layers: int,
    *,
    key: str = "sliding_window",
    default: int | None = None,
    names: list[str] | None = None,
) -> dict[str, Any]:
    """Return an attention with the window of ``layer_types``, or the one window of all layers.

    A checkpoint says ``sliding_attention`` or ``full_attention`` of each layer in ``layer_types``; without it the
    window, where there is one, holds for every layer.  A window of the trained length and more is none.

    Args:
        config: read.
        attention: of all layers.
        layers: how many there are.
        key: of the window.
        default: the window where the key is missing (not null).
        names: ``local`` or ``global`` of each layer where ``layer_types`` is missing; all local when None.

    Raises:
        InputError: a layer is of another kind, or slides without a window.
    """
    names = layer_names(config, layers, names)
    size = window_of(config, names, key, default)
    if size is None or "local" not in names:
        return attention
    if "global" not in names:
        return attention | {"window": size}
    return attention | {"window": size, "pattern": shortest(names)}


def layer_names(config: Config, layers: int, default: list[str] | None = None) -> list[str]:
    """Return ``local`` or ``global`` of each layer, by ``layer_types``.

    Args:
        config: read.
        layers: how many there are.
        default: where the key is missing; all local when None.

    Raises:
        InputError: there are fewer than layers, or one is of another kind.
    """
    kinds = config.words("layer_types", "blocks.attention.pattern", None)
    if kinds is None:
        return ["local"] * layers if default is None else default
    names = {"sliding_attention": "local", "full_attention": "global"}
    strange = next((k for k in kinds if k not in names), None)
    if strange is not None:
        raise InputError(
            f"{config.origin}: omnic cannot express a layer of the kind '{strange}' in layer_types",
            f"it knows {', '.join(names)}",
        )
    if len(kinds) < layers:
        raise InputError(f"{config.origin}: layer_types names {len(kinds)} layers of {layers}")
    return [names[k] for k in kinds[:layers]]


def window_of(config: Config, names: list[str], key: str = "sliding_window", default: int | None = None) -> int | None:
    """Return the window of the local layers, None where it is not below the trained length.

    Raises:
        InputError: ``layer_types`` has layers that slide, and there is no window.
    """
    effect = "blocks.attention.window, where it is below the trained length"
    size = config.whole(key, effect, default if not config.given(key) else None)
    if size is None and config.has("layer_types") and "local" in names:
        raise InputError(f"{config.origin}: layer_types has sliding_attention, and there is no {key}")
    context = config.whole("max_position_embeddings", "context")
    return None if size is None or size >= context else size


def gated_ffn(
    config: Config, *, bias: bool = False, key: str = "hidden_act", default: str = "silu"
) -> dict[str, Any]:
    """Return a network of gate, up and down."""
    return {
        "kind": "dense",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": config.choice(key, "blocks.ffn.activation", GATED, default),
        "bias": bias,
    }


def equal_blocks(config: Config, attention: dict[str, Any], ffn: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the one entry of ``blocks`` of a model of equal layers."""
    return [
        {
            "repeat": config.whole("num_hidden_layers", "blocks.repeat"),
            "width": config.whole("hidden_size", "blocks.width", least=1),
            "attention": attention,
            "ffn": ffn,
        }
    ]


def shortest(names: list[str]) -> list[str]:
    """Return the shortest list whose cyclic repetition gives ``names``."""
    for length in range(1, len(names) + 1):
        if all(name == names[i % length] for i, name in enumerate(names)):
            return names[:length]
    return names


def block_groups(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return equal neighbouring blocks as one with ``repeat``."""
    found: list[dict[str, Any]] = []
    for block in blocks:
        if found and {k: v for k, v in found[-1].items() if k != "repeat"} == block:
            found[-1]["repeat"] += 1
        else:
            found.append({"repeat": 1, **block})
    return found


# -- tensors ------------------------------------------------------------------------------------------------
def decoder_table(spec: Spec, prefix: str = "model.") -> dict[str, Recipe]:
    """Return embedding, final norm and head of the Llama layout."""
    table = {"embed": load(f"{prefix}embed_tokens.weight"), "final_norm": load(f"{prefix}norm.weight")}
    return table if spec.tie else table | {"head": load("lm_head.weight")}


def llama_block(layer: Layer, ours: str, theirs: str) -> dict[str, Recipe]:
    """Return the table of one pre-norm layer of the Llama layout: attention, norms and network."""
    table = {
        f"{ours}.attn_norm": load(f"{theirs}.input_layernorm.weight"),
        f"{ours}.ffn_norm": load(f"{theirs}.post_attention_layernorm.weight"),
    }
    return (
        table | llama_attention(layer, f"{ours}.attn", f"{theirs}.self_attn") | llama_mlp(layer, ours, f"{theirs}.mlp")
    )


def llama_table(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    """Return the whole table of a dense model in the Llama layout."""
    table = decoder_table(spec)
    for layer in spec.layers():
        table |= llama_block(layer, f"blocks.{layer.index}", f"model.layers.{layer.index}")
    return table


def llama_attention(layer: Layer, ours: str, theirs: str) -> dict[str, Recipe]:
    """Return q, k, v and o with the biases and head norms the layer has."""
    attention = layer.attention
    table: dict[str, Recipe] = {}
    for name in "qkvo":
        table[f"{ours}.{name}"] = load(f"{theirs}.{name}_proj.weight")
        if attention.bias is True or (attention.bias == "qkv" and name != "o"):
            table[f"{ours}.{name}_bias"] = load(f"{theirs}.{name}_proj.bias")
    if attention.qk_norm and layer.norm.weight:
        table |= {f"{ours}.{name}_norm": load(f"{theirs}.{name}_norm.weight") for name in "qk"}
    if attention.sinks:
        table[f"{ours}.sinks"] = load(f"{theirs}.sinks")
    return table


def llama_mlp(layer: Layer, ours: str, theirs: str, part: str = "ffn") -> dict[str, Recipe]:
    """Return gate, up and down, with biases where the layer has them."""
    table: dict[str, Recipe] = {}
    for name in ("gate", "up", "down"):
        table[f"{ours}.{part}.{name}"] = load(f"{theirs}.{name}_proj.weight")
        if layer.ffn.bias:
            table[f"{ours}.{part}.{name}_bias"] = load(f"{theirs}.{name}_proj.bias")
    return table


def llama_experts(
    layer: Layer, ours: str, theirs: str, tensors: Tensors, names: Mapping[str, str]
) -> dict[str, Recipe]:
    """Return the experts of a layer: one tensor each, or the stacked form (gate and up of all experts in one).

    Args:
        layer: with a mixture.
        ours: prefix of the mixture, as ``blocks.3.ffn``.
        theirs: prefix of the experts, as ``model.layers.3.mlp.experts``.
        tensors: what the checkpoint has.
        names: of gate, up and down within one expert.
    """
    ffn = layer.ffn
    assert isinstance(ffn, MoE)
    count, hidden = ffn.routed_experts, ffn.routed_hidden
    if f"{theirs}.gate_up_proj" in tensors:
        both = load(f"{theirs}.gate_up_proj")
        return {
            f"{ours}.experts.gate": rows(both, 0, hidden, axis=1),
            f"{ours}.experts.up": rows(both, hidden, 2 * hidden, axis=1),
            f"{ours}.experts.down": load(f"{theirs}.down_proj"),
        }
    return {
        f"{ours}.experts.{name}": stack(*(load(f"{theirs}.{e}.{names[name]}.weight") for e in range(count)))
        for name in ("gate", "up", "down")
    }
