"""Rotary positions in a file's metadata, and the way back."""

from __future__ import annotations

import math
from typing import Any

from omnic.errors import InputError
from omnic.ir.rope import rope_frequencies
from omnic.models.checkpoints.config import Config
from omnic.spec import Rope

__all__ = ["rope_keys", "rope_of"]

_PLACE = "blocks.attention.rope"


def rope_of(config: Config, arch: str, dims: int, context: int, factors: list[float] | None) -> dict[str, Any]:
    """Return the ``rope`` of an attention.

    Args:
        config: the metadata.
        arch: prefix of its keys.
        dims: rotated dims of a head.
        context: trained length.
        factors: what divides each frequency, where the file holds a tensor of them.

    Raises:
        InputError: a kind of scaling that omnic cannot express.
    """
    key = f"{arch}.rope."
    found: dict[str, Any] = {"base": config.number(key + "freq_base", f"{_PLACE}.base", 10000.0), "dims": dims}
    kinds = {kind: kind for kind in ("none", "linear", "yarn")}
    kind = config.choice(key + "scaling.type", f"{_PLACE}.scaling.kind", kinds, "none")
    factor = config.number(key + "scaling.factor", f"{_PLACE}.scaling.factor", None) or 1.0
    older = config.number(key + "scale_linear", f"{_PLACE}.scaling.factor", None)
    if older not in (None, 0.0, 1.0):
        kind, factor = "linear", older
    original = config.whole(key + "scaling.original_context_length", f"{_PLACE}.scaling.original_context", context)
    attention = config.number(key + "scaling.attn_factor", f"{_PLACE}.scaling.attention_factor", 1.0)
    if factors is not None:
        if kind != "none":
            raise InputError(f"{config.origin}: omnic cannot express rope_freqs.weight together with "
                             f"{key}scaling.type = {kind}")
        return found | {"scaling": {"kind": "longrope", "factor": 1.0, "original_context": context,
                                    "factors": factors, "attention_factor": attention}}
    if kind == "yarn":
        return found | {"scaling": _yarn(config, key + "scaling.", factor, original, attention)}
    if attention != 1.0:
        raise InputError(f"{config.origin}: omnic cannot express {key}scaling.attn_factor without yarn")
    if kind == "linear" and factor != 1.0:
        return found | {"scaling": {"kind": "linear", "factor": factor, "original_context": original}}
    return found


def _yarn(config: Config, key: str, factor: float, original: int, attention: float) -> dict[str, Any]:
    place = f"{_PLACE}.scaling"
    config.only(key + "yarn_ext_factor", 1.0, "the ramp between the frequencies is whole", -1.0)
    attention *= config.number(key + "yarn_attn_factor", f"{place}.attention_factor", 1.0)
    config.only(key + "yarn_log_multiplier", 0.1, "the magnitude is 0.1 ln(factor) + 1", 0.0)
    return {
        "kind": "yarn",
        "factor": factor,
        "original_context": original,
        "beta_fast": config.number(key + "yarn_beta_fast", f"{place}.beta_fast", 32.0),
        "beta_slow": config.number(key + "yarn_beta_slow", f"{place}.beta_slow", 1.0),
        "attention_factor": attention * _magnitude(factor),
    }


def _magnitude(factor: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0


def rope_keys(arch: str, rope: Rope) -> tuple[dict[str, Any], list[float] | None]:
    """Return the metadata of a rope, and the factors of its frequencies where it needs a tensor of them.

    llama.cpp reads the bounds of yarn's ramp in few architectures, so a yarn with others than 32 and 1 goes as factors.
    """
    key, scaling = f"{arch}.rope.", rope.scaling
    found: dict[str, Any] = {key + "dimension_count": rope.dims, key + "freq_base": rope.base}
    if scaling is None:
        return found, None
    if scaling.kind == "linear":
        return found | {key + "scaling.type": "linear", key + "scaling.factor": scaling.factor,
                        key + "scaling.original_context_length": scaling.original_context}, None
    if scaling.kind == "yarn" and scaling.truncate and (scaling.beta_fast, scaling.beta_slow) == (32.0, 1.0):
        given = scaling.attention_factor
        attention = 1.0 if given is None else given / _magnitude(scaling.factor)
        found |= {key + "scaling.type": "yarn", key + "scaling.factor": scaling.factor,
                  key + "scaling.original_context_length": scaling.original_context}
        return found if abs(attention - 1.0) < 1e-9 else found | {key + "scaling.attn_factor": attention}, None
    frequencies, magnitude = rope_frequencies(
        rope.base, rope.dims, scaling.kind, scaling.factor, scaling.original_context, scaling.beta_fast,
        scaling.beta_slow, scaling.attention_factor, scaling.truncate, scaling.factors,
    )
    if magnitude != 1.0:
        found[key + "scaling.attn_factor"] = magnitude
    plain, _ = rope_frequencies(rope.base, rope.dims)
    return found, [ours / theirs for ours, theirs in zip(plain, frequencies, strict=True)]
