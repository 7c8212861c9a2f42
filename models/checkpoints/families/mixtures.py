"""What the families with mixtures of experts share: layers of several kinds, routers, blocks for further tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnic.errors import InputError
from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    GATED,
    block_groups,
    decoder_table,
    llama_attention,
    llama_experts,
    llama_mlp,
    shortest,
)
from omnic.models.checkpoints.family import Tensors
from omnic.models.checkpoints.tensors import concat, load, rows
from omnic.spec import Layer, MoE, Spec

__all__ = [
    "NAMES",
    "activation_of",
    "copies_of_the_main_model",
    "further_blocks",
    "further_table",
    "group_keys",
    "layered",
    "left_out_blocks",
    "llama_norms",
    "mixture_layer",
    "mixture_table",
    "mixtures_table",
    "scored_experts",
    "sparse_layers",
]

#: of the three matrices of an expert, in the Llama layout
NAMES = {name: f"{name}_proj" for name in ("gate", "up", "down")}


# -- configurations -----------------------------------------------------------------------------------------
def activation_of(config: Config) -> str:
    """Return the activation of all networks."""
    return config.choice("hidden_act", "blocks.ffn.activation", GATED, "silu")


def layered(
    config: Config,
    attention: dict[str, Any],
    ffns: list[dict[str, Any]],
    names: list[str] | None = None,
    window: int | None = None,
) -> list[dict[str, Any]]:
    """Return ``blocks``: neighbours of equal networks are one entry, whose layers a pattern tells apart.

    Args:
        config: read.
        attention: of all layers, without a window.
        ffns: of each layer.
        names: ``local`` or ``global`` of each layer.
        window: of the local ones; None where all attend to all.
    """
    width, count = config.whole("hidden_size", "blocks.width"), len(ffns)
    kinds = ["global"] * count if window is None or names is None else names
    blocks: list[dict[str, Any]] = []
    first = 0
    for entry in block_groups([{"ffn": ffn} for ffn in ffns]):
        last = first + entry["repeat"]
        pattern = kinds[first:last]
        own = attention if "local" not in pattern else attention | {"window": window}
        own = own if len(set(pattern)) == 1 else own | {"pattern": shortest(pattern)}
        blocks.append({"repeat": last - first, "width": width, "attention": own, "ffn": entry["ffn"]})
        first = last
    return blocks


def sparse_layers(config: Config, experts: dict[str, Any], dense: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the network of each layer of a Qwen mixture: every ``decoder_sparse_step``-th, but for some layers."""
    layers = config.whole("num_hidden_layers", "blocks.repeat")
    step = config.whole("decoder_sparse_step", "blocks: which layers have experts", 1)
    plain = config.numbers("mlp_only_layers", "blocks: layers without experts", [])
    if step < 1:
        raise InputError(f"{config.origin}: decoder_sparse_step is {step}, not 1 or more")
    return [
        experts if i not in plain and experts["experts"] > 0 and (i + 1) % step == 0 else dense for i in range(layers)
    ]


def group_keys(config: Config, experts: int) -> dict[str, Any]:
    """Return the groups that a token's experts are limited to; nothing where it may take them of all groups."""
    count = config.whole("n_group", "blocks.ffn.groups", 1)
    kept = config.whole("topk_group", "blocks.ffn.top_groups", 1)
    if count < 1 or experts % count:
        raise InputError(
            f"{config.origin}: omnic cannot express n_group = {count} of {experts} experts",
            "groups are of equal size in this family",
        )
    if not 1 <= kept <= count:
        raise InputError(f"{config.origin}: topk_group = {kept} is not 1 to the {count} of n_group")
    return {} if kept == count else {"groups": [experts // count] * count, "top_groups": kept}


def scored_experts(config: Config, *, scale: float = 1.0, shared: int = 1) -> dict[str, Any]:
    """Return a mixture of DeepSeek-V3 (arXiv:2412.19437): sigmoid scores, a bias that only chooses, limited groups.

    Args:
        config: read.
        scale: the family's default of ``routed_scaling_factor``.
        shared: the family's default of ``n_shared_experts``.
    """
    config.only("scoring_func", "sigmoid", "the scores of this family")
    config.only("topk_method", "noaux_tc", "the router of this family")
    experts = config.whole("n_routed_experts", "blocks.ffn.experts")
    groups = group_keys(config, experts)
    return (
        {
            "kind": "moe",
            "hidden": config.whole("moe_intermediate_size", "blocks.ffn.hidden"),
            "activation": activation_of(config),
            "experts": experts,
            "top_k": config.whole("num_experts_per_tok", "blocks.ffn.top_k", 8),
            "shared": config.whole("n_shared_experts", "blocks.ffn.shared", shared),
            "score": "sigmoid",
            "renormalise": config.flag("norm_topk_prob", "blocks.ffn.renormalise", True),
            "select_bias": True,
            "gate_scale": config.number("routed_scaling_factor", "blocks.ffn.gate_scale", scale),
        }
        | groups
        | ({"group_score": "top2_sum"} if groups else {})
    )


def mixture_layer(config: Config, experts: dict[str, Any], *, dense: int) -> list[dict[str, Any]]:
    """Return the network of each layer: the first ones dense, then experts in every ``moe_layer_freq``-th.

    Args:
        config: read.
        experts: of a layer that has them.
        dense: the family's default of ``first_k_dense_replace``.
    """
    layers = config.whole("num_hidden_layers", "blocks.repeat")
    first = config.whole("first_k_dense_replace", "blocks: the first layers without experts", dense)
    step = config.whole("moe_layer_freq", "blocks: which of the others have experts", 1)
    if step < 1:
        raise InputError(f"{config.origin}: moe_layer_freq is {step}, not 1 or more")
    hidden = config.whole("intermediate_size", "blocks.ffn.hidden")
    plain = {"kind": "dense", "hidden": hidden, "activation": activation_of(config)}
    return [experts if i >= first and i % step == 0 else plain for i in range(layers)]


def further_blocks(config: Config, experts: dict[str, Any], last: dict[str, Any], default: int) -> dict[str, Any]:
    """Return the blocks that predict further tokens, where the checkpoint holds them.

    Args:
        config: read.
        experts: the mixture, which these blocks always have.
        last: the network of the last layer.
        default: the family's default of how many there are.
    """
    layers, names = config.whole("num_hidden_layers", "blocks.repeat"), config.tensors
    key = "num_nextn_predict_layers" if config.given("num_nextn_predict_layers") else "num_mtp_layers"
    if names is not None and f"model.layers.{layers}.eh_proj.weight" not in names:
        config.ignore(f"the files hold no block of layer {layers}", "num_nextn_predict_layers", "num_mtp_layers")
        return {}
    count = config.whole(key, "heads.mtp.depth", default)
    if not count:
        return {}
    mtp = {"kind": "block", "depth": count, "normed": True}
    return {"heads": {"mtp": mtp if last == experts else mtp | {"ffn": experts}}}


# -- tensors ------------------------------------------------------------------------------------------------
def llama_norms(ours: str, theirs: str) -> dict[str, Recipe]:
    """Return the two norms of a pre-norm layer."""
    return {
        f"{ours}.attn_norm": load(f"{theirs}.input_layernorm.weight"),
        f"{ours}.ffn_norm": load(f"{theirs}.post_attention_layernorm.weight"),
    }


def mixture_table(
    layer: Layer, ours: str, theirs: str, tensors: Tensors, names: Mapping[str, str] = NAMES
) -> dict[str, Recipe]:
    """Return the network of a layer, with experts or without.

    Args:
        layer: resolved.
        ours: prefix of the layer, as ``blocks.3``.
        theirs: prefix of the network, as ``model.layers.3.mlp``.
        tensors: what the checkpoint has.
        names: of an expert's gate, up and down.
    """
    ffn = layer.ffn
    if not isinstance(ffn, MoE):
        return llama_mlp(layer, ours, theirs)
    table = {f"{ours}.ffn.router": load(f"{theirs}.gate.weight")}
    if ffn.select_bias:
        table[f"{ours}.ffn.select_bias"] = load(f"{theirs}.gate.e_score_correction_bias")
    table |= llama_experts(layer, f"{ours}.ffn", f"{theirs}.experts", tensors, names)
    if ffn.shared_gate:
        table[f"{ours}.ffn.shared_gate"] = load(f"{theirs}.shared_expert_gate.weight")
        return table | llama_mlp(layer, ours, f"{theirs}.shared_expert", "ffn.shared")
    return table | (llama_mlp(layer, ours, f"{theirs}.shared_experts", "ffn.shared") if ffn.shared else {})


def mixtures_table(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    """Return the whole table of a model in the Llama layout whose layers may have experts."""
    table = decoder_table(spec)
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        table |= llama_norms(ours, theirs) | llama_attention(layer, f"{ours}.attn", f"{theirs}.self_attn")
        table |= mixture_table(layer, ours, f"{theirs}.mlp", tensors)
    return table


def further_table(spec: Spec, tensors: Tensors, attention: Any = llama_attention) -> dict[str, Recipe]:
    """Return the blocks for further tokens, which lie behind the last layer (arXiv:2412.19437, section 2.2).

    ``eh_proj`` reads [embedding; hidden], ours [hidden; embedding].

    Args:
        spec: of the model.
        tensors: what the checkpoint has.
        attention: the table of an attention: layer, ours, theirs.
    """
    mtp, layer, width = spec.heads.mtp, spec.mtp_layer(), spec.width
    if mtp is None or layer is None:
        return {}
    table: dict[str, Recipe] = {}
    for depth in range(mtp.depth):
        ours = "mtp" if mtp.depth == 1 else f"mtp.{depth}"
        theirs = f"model.layers.{layer.index + depth}"
        both = load(f"{theirs}.eh_proj.weight")
        table |= {
            f"{ours}.hidden_norm": load(f"{theirs}.hnorm.weight"),
            f"{ours}.embed_norm": load(f"{theirs}.enorm.weight"),
            f"{ours}.proj": concat(rows(both, width, 2 * width, axis=1), rows(both, 0, width, axis=1), axis=1),
            f"{ours}.final_norm": load(f"{theirs}.shared_head.norm.weight"),
        }
        block = f"{ours}.block"
        table |= llama_norms(block, theirs) | attention(layer, f"{block}.attn", f"{theirs}.self_attn")
        table |= mixture_table(layer, block, f"{theirs}.mlp", tensors)
    return table


def copies_of_the_main_model(spec: Spec, tensors: Tensors) -> dict[str, str]:
    """Return the embeddings and heads that blocks for further tokens bring along, and whose copies they are."""
    mtp, layer = spec.heads.mtp, spec.mtp_layer()
    if mtp is None or layer is None:
        return {}
    found: dict[str, str] = {}
    for depth in range(mtp.depth):
        theirs = f"model.layers.{layer.index + depth}"
        found[f"{theirs}.embed_tokens.weight"] = "model.embed_tokens.weight"
        found[f"{theirs}.shared_head.head.weight"] = "model.embed_tokens.weight" if spec.tie else "lm_head.weight"
    return {copy: main for copy, main in found.items() if copy in tensors}


def left_out_blocks(spec: Spec, tensors: Tensors) -> dict[str, str]:
    """Return the tensors behind the last layer where the configuration wants no block for further tokens."""
    layers = len(spec.layers())
    if spec.heads.mtp is not None or f"model.layers.{layers}.eh_proj.weight" not in tensors:
        return {}
    return {f"model.layers.{layers}.*": "a block for further tokens, of which the configuration has none"}
