"""SmolLM3: the Llama layout, some layers without positions."""

from __future__ import annotations

from typing import Any

from omnic.errors import InputError
from omnic.ir.graph import Recipe
from omnic.models.checkpoints.config import Config
from omnic.models.checkpoints.families.common import (
    attention_keys,
    base_keys,
    block_groups,
    decoder_table,
    gated_ffn,
    layer_names,
    llama_block,
    shortest,
    window_of,
)
from omnic.models.checkpoints.families.publishing import publish_base, publish_ffn, publish_rope, publish_windows
from omnic.models.checkpoints.family import Family, Tensors
from omnic.models.checkpoints.rope import rope_of
from omnic.spec import Spec


def _describe(config: Config) -> dict[str, Any]:
    config.assume(num_key_value_heads=4)
    base, attention = base_keys(config, tie=True), attention_keys(config)
    layers, width = config.whole("num_hidden_layers", "blocks.repeat"), config.whole("hidden_size", "blocks.width")
    attention |= {
        "bias": config.flag("attention_bias", "blocks.attention.bias", False),
        "rope": rope_of(config, attention["head_dim"], base["context"], base=2_000_000.0),
    }
    ffn = gated_ffn(config, bias=config.flag("mlp_bias", "blocks.ffn.bias", False))
    config.ignore("of Qwen2; layer_types says it here", "max_window_layers")
    config.ignore("how a product was cut in training; the same numbers", "pretraining_tp")
    turned = _turned(config, layers)
    window, windowed = _windows(config, layers, turned)
    kinds = list(zip(turned, windowed, strict=True))
    if len(set(kinds)) == 2 and not all(windowed):
        return base | {
            "blocks": [
                {
                    "repeat": layers,
                    "width": width,
                    "ffn": ffn,
                    "attention": attention | _pattern(kinds, window, attention["rope"]),
                }
            ]
        }
    blocks = [{"width": width, "attention": attention | _own(kind, window), "ffn": ffn} for kind in kinds]
    return base | {"blocks": block_groups(blocks)}


#: whether a layer has positions, and whether it has the window
_Kind = tuple[bool, bool]


def _turned(config: Config, layers: int) -> list[bool]:
    """Return which layers have positions; each fourth has none where the file does not list them."""
    every = config.whole("no_rope_layer_interval", "blocks.attention.rope of some layers", 4, least=1)
    listed = config.numbers("no_rope_layers", "blocks.attention.rope of some layers", None)
    if listed is None:
        return [(i + 1) % every != 0 for i in range(layers)]
    if len(listed) < layers:
        raise InputError(f"{config.origin}: no_rope_layers names {len(listed)} layers of {layers}")
    return [bool(v) for v in listed[:layers]]


def _windows(config: Config, layers: int, turned: list[bool]) -> tuple[int | None, list[bool]]:
    """Return the window and which layers have it: where no layer is named, those without positions."""
    on = config.flag("use_sliding_window", "blocks.attention.window", False) and config.has("sliding_window")
    names = layer_names(config, layers, ["local" if on and not t else "global" for t in turned])
    window = window_of(config, names)
    return window, [window is not None and name == "local" for name in names]


def _own(kind: _Kind, window: int | None) -> dict[str, Any]:
    """Return the keys in which a layer of a kind differs from a plain one."""
    return ({} if kind[0] else {"rope": None}) | ({"window": window} if kind[1] else {})


def _pattern(kinds: list[_Kind], window: int | None, rope: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of an attention whose layers are of two kinds, at most one of them with a window."""
    local = next((k for k in kinds if k[1]), (True, False))
    other = next(k for k in kinds if k != local)
    found = _own(local, window) | {"pattern": shortest(["local" if k == local else "global" for k in kinds])}
    return found if local[0] == other[0] else found | {"global": {"rope": rope if other[0] else None}}


def _weights(spec: Spec, tensors: Tensors) -> dict[str, Recipe]:
    table = decoder_table(spec)
    for layer in spec.layers():
        table |= llama_block(layer, f"blocks.{layer.index}", f"model.layers.{layer.index}")
    return table


def _publish(spec: Spec) -> dict[str, Any]:
    layers = spec.layers()
    first = next((layer.attention.rope for layer in layers if layer.attention.rope), None)
    windows = publish_windows(spec)
    return (
        publish_base(spec, "smollm3", "SmolLM3ForCausalLM")
        | publish_ffn(layers[0])
        | windows
        | {
            "attention_bias": bool(layers[0].attention.bias),
            "mlp_bias": layers[0].ffn.bias,
            "no_rope_layers": [int(layer.attention.rope is not None) for layer in layers],
            "use_sliding_window": windows["sliding_window"] is not None,
            "pad_token_id": None,
        }
        | ({} if first is None else {"rope_parameters": publish_rope(first, spec)})
    )


FAMILY = Family(
    model_types=("smollm3",),
    title="SmolLM3",
    describe=_describe,
    weights=_weights,
    publish=_publish,
    source="transformers, models/smollm3; NoPE: arXiv:2501.18795",
)
