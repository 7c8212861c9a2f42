"""Rotary positions of a configuration: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling`` beside it."""

from __future__ import annotations

import math
from typing import Any

from omnic.errors import InputError
from omnic.models.checkpoints.config import Config

__all__ = ["attention_scale", "rope_of"]

_PLACE = "blocks.attention.rope"


def rope_of(
    config: Config,
    head_dim: int,
    context: int,
    *,
    base: float = 10000.0,
    layer_type: str | None = None,
    theta: str = "rope_theta",
    interleaved: bool = False,
    partial: float = 1.0,
) -> dict[str, Any]:
    """Return the ``rope`` of an attention.

    Args:
        config: of the model.
        head_dim: dims of a head that may rotate.
        context: ``max_position_embeddings``.
        base: the family's default base.
        layer_type: key of ``rope_parameters`` where it has one mapping for each kind of layer.
        theta: the key of the base beside that mapping.
        interleaved: pairs are neighbours.
        partial: the family's default share of rotated dims.

    Raises:
        InputError: a kind of scaling that omnic cannot express, or an odd number of rotated dims.
    """
    section = config.section("rope_parameters") or config.section("rope_scaling")
    if section is not None and layer_type is not None and section.has(layer_type):
        section = section.section(layer_type)
    share = config.number("partial_rotary_factor", f"{_PLACE}.dims", None)
    found_base = config.number(theta, f"{_PLACE}.base", None)
    if section is not None:
        found_base = section.number("rope_theta", f"{_PLACE}.base", found_base)
        share = section.number("partial_rotary_factor", f"{_PLACE}.dims", share)
    dims = int(head_dim * (partial if share is None else share))
    if dims % 2:
        raise InputError(
            f"{config.origin}: omnic cannot rotate {dims} of the {head_dim} dims of a head",
            "rope turns pairs of dims: head_dim times partial_rotary_factor has to be even",
        )
    used = base if found_base is None else found_base
    found: dict[str, Any] = {"base": used, "dims": dims, "interleaved": interleaved}
    scaling = _scaling(config, section, context, dims) if section is not None else None
    return found | ({"scaling": scaling} if scaling else {})


def _scaling(config: Config, section: Config, context: int, dims: int) -> dict[str, Any] | None:
    place = f"{_PLACE}.scaling"
    named = "rope_type" if section.has("rope_type") or not section.has("type") else "type"
    if named == "rope_type":
        section.ignore("rope_type says the same", "type")
    kinds = {k: k for k in ("default", "linear", "dynamic", "yarn", "llama3", "longrope")} | {"su": "longrope"}
    kind = section.choice(named, f"{place}.kind", kinds, "default")
    if kind == "default":
        section.ignore("of a scaling, and there is none", "factor", "original_max_position_embeddings")
        return None
    if kind == "dynamic":
        # Frequencies change once a text is longer than the trained length; up to there they are the plain ones.
        section.number("factor", "no effect: states hold the trained length at most, which is not scaled")
        section.ignore("as factor", "original_max_position_embeddings", "alpha")
        return None
    original = section.whole("original_max_position_embeddings", f"{place}.original_context", None)
    # Beside the mapping it counts more: transformers writes it over what the mapping has.
    original = config.whole("original_max_position_embeddings", f"{place}.original_context", original)
    if kind == "linear":
        return {
            "kind": "linear",
            "factor": section.number("factor", f"{place}.factor"),
            "original_context": original or context,
        }
    if kind == "longrope":
        return _longrope(config, section, context, original or context)
    found: dict[str, Any] = {"kind": kind, "original_context": original or context}
    if kind == "llama3":
        return found | {
            "factor": section.number("factor", f"{place}.factor"),
            "beta_slow": section.number("low_freq_factor", f"{place}.beta_slow"),
            "beta_fast": section.number("high_freq_factor", f"{place}.beta_fast"),
        }
    factor = section.number("factor", f"{place}.factor", None) or context / (original or context)
    attention = section.number("attention_factor", f"{place}.attention_factor", None)
    mscale = section.number("mscale", f"{place}.attention_factor", None)
    all_dim = section.number("mscale_all_dim", f"{place}.attention_factor", None)
    if attention is None:
        attention = magnitude(factor, mscale) / magnitude(factor, all_dim) if mscale and all_dim else magnitude(factor)
    return found | {
        "factor": factor,
        "beta_fast": section.number("beta_fast", f"{place}.beta_fast", 32.0),
        "beta_slow": section.number("beta_slow", f"{place}.beta_slow", 1.0),
        "truncate": section.flag("truncate", f"{place}.truncate", True),
        "attention_factor": attention,
    }


def magnitude(factor: float, mscale: float | None = 1.0) -> float:
    """Return YaRN's temperature 0.1 m ln(s) + 1 (arXiv:2309.00071, as DeepSeek-V2's code generalises it)."""
    return 1.0 if factor <= 1 or mscale is None else 0.1 * mscale * math.log(factor) + 1.0


def attention_scale(config: Config, size: int) -> float | None:
    """Return the scale of scores of heads of ``size`` dims, None where ``mscale_all_dim`` (DeepSeek) keeps it plain.

    A temperature m of YaRN multiplies queries and keys, so their product by m squared; ``mscale_all_dim`` does so for
    the dims that do not rotate too.
    """
    section = config.section("rope_parameters") or config.section("rope_scaling")
    if section is None:
        return None
    named = next((key for key in ("rope_type", "type") if section.has(key)), None)
    if named is None or section.raw(named, f"{_PLACE}.scaling.kind") == "default":
        section.ignore("of a scaling, and there is none", "mscale", "mscale_all_dim")
        return None
    share = section.number("mscale_all_dim", "blocks.attention.scale", None)
    if not share:
        return None
    factor = section.number("factor", f"{_PLACE}.scaling.factor")
    return magnitude(factor, share) ** 2 / math.sqrt(size)


def _longrope(config: Config, section: Config, context: int, original: int) -> dict[str, Any]:
    """Return the factors for the length that was asked for: the short ones up to the original context."""
    place = f"{_PLACE}.scaling"
    wanted = min(config.capacity or original, context)
    long = wanted > original
    factor = section.number("factor", f"{place}.factor", None) or context / original
    used, other = ("long_factor", "short_factor") if long else ("short_factor", "long_factor")
    factors = section.numbers(used, f"{place}.factors")
    section.ignore(f"the states hold {wanted} tokens, and {original} is the length trained without scaling", other)
    attention = section.number("attention_factor", f"{place}.attention_factor", None)
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "kind": "longrope",
        "factor": max(factor, 1.0),
        "original_context": original,
        "factors": factors,
        "attention_factor": attention,
    }
