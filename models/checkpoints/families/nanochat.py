"""nanochat: norms without weights, one on the embedding, heads normed after their rotation, relu squared.

Its rope turns the other way: a pair (a, b) becomes (a cos + b sin, b cos - a sin).  With a and b swapped that is the
usual rotation of (b, a), so the halves of every query and key head are swapped in the weights.  A norm without weights
gives the same before and after a rotation, which changes no length.
"""

from __future__ import annotations

from typing import Any

from omnic.errors import InputError
from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import PLAIN, attention_keys, base_keys, equal_blocks
from omnic.models.checkpoints.families.publishing import publish_base, publish_plain_ffn
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.models.checkpoints.tensors import concat, load, rows
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    base, attention = base_keys(config), attention_keys(config)
    rope = rope_of(config, attention["head_dim"], base["context"])
    if rope.get("scaling", {}).get("attention_factor", 1.0) != 1.0:
        kind = rope["scaling"]["kind"]
        raise InputError(
            f"{config.origin}: omnic cannot express {kind} rope for nanochat",
            "its heads are normed after the rotation, which undoes the factor that this scaling puts on them",
        )
    attention |= {
        "bias": config.flag("attention_bias", "blocks.attention.bias", False),
        "qk_norm": True,
        "rope": rope,
    }
    ffn = {
        "kind": "dense",
        "hidden": config.whole("intermediate_size", "blocks.ffn.hidden"),
        "activation": config.choice("hidden_act", "blocks.ffn.activation", PLAIN, "relu2"),
    }
    if not config.given("final_logit_softcapping"):
        config.assume(final_logit_softcapping=15.0)
    cap = config.number("final_logit_softcapping", "softcap.logits", None)
    return base | {
        "norm": base["norm"] | {"weight": False, "embedding": True},
        "softcap": {} if cap is None else {"logits": cap},
        "blocks": equal_blocks(config, attention, ffn),
    }


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = {"embed": load("model.embed_tokens.weight")}
    if not spec.tie:
        table["head"] = load("lm_head.weight")
    for layer in spec.layers():
        ours, theirs = f"blocks.{layer.index}", f"model.layers.{layer.index}"
        attention = layer.attention
        for name, heads in (("q", attention.heads), ("k", attention.kv_heads), ("v", 0), ("o", 0)):
            for ending, suffix in (("", "weight"), ("_bias", "bias"))[: 2 if attention.bias else 1]:
                tensor = load(f"{theirs}.self_attn.{name}_proj.{suffix}")
                table[f"{ours}.attn.{name}{ending}"] = _swapped(tensor, heads, attention.head_dim)
        table[f"{ours}.ffn.up"] = load(f"{theirs}.mlp.fc1.weight")
        table[f"{ours}.ffn.down"] = load(f"{theirs}.mlp.fc2.weight")
    return table


def _swapped(of: Recipe, heads: int, size: int) -> Recipe:
    """Swap the halves of each of the heads."""
    halves = [
        (h * size + start, h * size + stop) for h in range(heads) for start, stop in ((size // 2, size), (0, size // 2))
    ]
    return concat(*(rows(of, *half) for half in halves)) if halves else of


def _publish(spec: Spec) -> dict[str, Any]:
    layer = spec.layers()[0]
    found = publish_base(spec, "nanochat", "NanoChatForCausalLM") | publish_plain_ffn(layer)
    return found | {
        "attention_bias": bool(layer.attention.bias),
        "final_logit_softcapping": spec.softcap.logits,
    }


FAMILY = Family(
    model_types=("nanochat",),
    title="nanochat",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    source="github.com/karpathy/nanochat; transformers, models/nanochat",
)
