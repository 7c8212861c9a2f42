"""Gemma 3, its text: five layers with a window and positions of their own to one that attends to all, normed heads."""

from __future__ import annotations

from typing import Any

from omnic.errors import InputError
from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import equal_blocks, layer_names, shortest, window_of
from omnic.models.checkpoints.families.gemma2 import (
    gemma_attention,
    gemma_base,
    gemma_ffn,
    gemma_published,
    gemma_weights,
)
from omnic.models.checkpoints.families.publishing import publish_rope
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.spec import Rope, Spec

#: what the class of the text's configuration has where a file is silent; those of the pictures' models leave much out
_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}


def _describe(config: Config) -> dict[str, Any]:
    if config.raw("model_type", "the family") == "gemma3":
        text = config.section("text_config")
        config.ignore("the part that reads pictures", "vision_config", "mm_tokens_per_image")
        pictures = ("boi_token_index", "eoi_token_index", "image_token_index")
        config.ignore("tokens that stand for pictures", *pictures, *(p.replace("index", "id") for p in pictures))
        if text is not None:
            if not text.has("tie_word_embeddings"):
                text.assume(tie_word_embeddings=config.flag("tie_word_embeddings", "tie", True))
            config.ignore("that of text_config counts", "tie_word_embeddings")
            text.capacity = config.capacity
            config = text
    config.assume(**_DEFAULTS)
    base, attention = gemma_base(config), gemma_attention(config)
    config.ignore("transformers' code of Gemma 3 does not apply it", "attn_logit_softcapping")
    layers = config.whole("num_hidden_layers", "blocks.repeat")
    every = config.whole("sliding_window_pattern", "blocks.attention.pattern", 6, least=1)
    config.ignore("sliding_window_pattern says the same", "_sliding_window_pattern")
    names = layer_names(config, layers, ["local" if (i + 1) % every else "global" for i in range(layers)])
    window = window_of(config, names)
    window = window if "local" in names else None
    attention |= {"qk_norm": True} | ({} if window is None else {"window": window})
    attention |= _positions(config, attention["head_dim"], base["context"], names)
    return base | {"blocks": equal_blocks(config, attention, gemma_ffn(config))}


def _positions(config: Config, size: int, context: int, names: list[str]) -> dict[str, Any]:
    """Return the rope of the local layers and that of the global ones; scaling is of the latter where not said."""
    full = rope_of(config, size, context, base=1_000_000.0, layer_type="full_attention")
    if config.has("rope_parameters"):
        local = rope_of(config, size, context, layer_type="sliding_attention", theta="rope_local_base_freq")
    else:
        base = config.number("rope_local_base_freq", "blocks.attention.rope.base", 10000.0)
        local = {"base": base, "dims": size, "interleaved": False}
    if len(set(names)) == 1:
        return {"rope": local if names[0] == "local" else full}
    # An override is merged into the attention's own keys: what is not scaled has to say so.
    other = full if "scaling" in full else full | {"scaling": None}
    return {"pattern": shortest(names), "rope": local, "global": {"rope": other}}


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    prefix = tensors.first("model.embed_tokens.weight", "model.language_model.embed_tokens.weight",
                           "language_model.model.embed_tokens.weight").removesuffix("embed_tokens.weight")
    return gemma_weights(spec, prefix, tensors.first("lm_head.weight", "language_model.lm_head.weight"))


def _publish(spec: Spec) -> dict[str, Any]:
    ropes: dict[str, Rope | None] = {"local": None, "global": None}
    for layer in spec.layers():
        ropes["local" if layer.attention.window else "global"] = layer.attention.rope
    kinds = (("sliding_attention", "local"), ("full_attention", "global"))
    known = ropes["local"] or ropes["global"]
    if known is None:
        raise InputError("no rotary positions")
    parameters = {theirs: publish_rope(ropes[ours] or known, spec) for theirs, ours in kinds}
    return gemma_published(spec, "gemma3_text", "Gemma3ForCausalLM") | {"rope_parameters": parameters}


FAMILY = Family(
    model_types=("gemma3_text", "gemma3"),
    title="Gemma 3 (text)",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    ignored={
        "*vision_tower.*": "of the part that reads pictures",
        "*multi_modal_projector.*": "of the part that reads pictures",
    },
    source="arXiv:2503.19786",
)
