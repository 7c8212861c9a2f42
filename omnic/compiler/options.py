"""What the command line changes in a spec: the budget, the passes, options of a target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omnic.errors import InputError
from omnic.models import build
from omnic.models.summary import summarise
from omnic.runtime.files import human_bytes
from omnic.spec import Spec, with_values

__all__ = ["key_values", "with_budget", "with_passes"]

_PASS = re.compile(r"\s*([\w-]+)\s*(?:\{(.*)\})?\s*$", re.S)


def key_values(items: Sequence[str]) -> dict[str, Any]:
    """Return ``KEY=VALUE`` texts as a mapping; values are read as YAML scalars.

    Raises:
        InputError: an item without ``=``.
    """
    import yaml

    found: dict[str, Any] = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or not key.strip():
            raise InputError(f"'{item}' is not KEY=VALUE", "write it as --option profile=plain")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(
                f"'{item}': the value cannot be read", "quote it, or use a plain word or number"
            ) from error
    return found


def with_budget(spec: Spec, budget: str | None) -> Spec:
    """Return ``spec`` with ``budget.memory`` replaced.

    Raises:
        InputError: no size, or the model's weights and states take more.
    """
    if budget is None:
        return spec
    spec = with_values(spec, {"budget": {"memory": budget}}, "--budget")
    summary = summarise(build(spec))
    need, allowed = summary.weight_bytes + summary.state_bytes, spec.budget.memory
    if allowed is not None and need > allowed:
        raise InputError(
            f"{spec.model} takes {human_bytes(summary.weight_bytes)} of weights and {human_bytes(summary.state_bytes)} "
            f"of states for {spec.capacity:,} tokens, more than the --budget of {human_bytes(allowed)}",
            "allow more, set a smaller budget.context or dtype in the spec, or take a smaller model",
        )
    return spec


def with_passes(spec: Spec, passes: Sequence[str]) -> Spec:
    """Return ``spec`` with its list of passes replaced by ``NAME`` or ``NAME{opt=val, ...}`` texts.

    Raises:
        InputError: a text of another form.
    """
    if not passes:
        return spec
    wanted: list[Any] = []
    for text in passes:
        match = _PASS.match(text)
        if not match:
            raise InputError(f"--pass '{text}' is not NAME or NAME{{opt=val}}", "write it as --pass 'name{group=64}'")
        name, options = match.group(1), match.group(2)
        pairs = [p for p in (options or "").split(",") if p.strip()]
        wanted.append({name: key_values(pairs)} if pairs else name)
    return with_values(spec, {"passes": wanted}, "--pass")
