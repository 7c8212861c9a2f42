"""What the command line changes in a spec: the budget, the passes, options of a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnic.compiler.lowering import listed_passes
from omnic.errors import InputError
from omnic.models import build
from omnic.models.summary import summarise
from omnic.passes.options import split_call
from omnic.passes.prefill_int8 import PrefillInt8, prefill_bytes
from omnic.runtime.files import human_bytes
from omnic.spec import Spec, with_values
from omnic.spec.tree import Node, Text, read_scalar

__all__ = ["key_values", "pass_node", "with_budget", "with_passes"]


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
    module = build(spec)
    for listed in listed_passes(spec):
        if isinstance(listed.made, PrefillInt8):
            module = listed.made.run(module).module
    summary = summarise(module)
    need, allowed = summary.weight_bytes + summary.state_bytes, spec.budget.memory
    if allowed is not None and need > allowed:
        second = prefill_bytes(module)
        told = f" ({human_bytes(second)} of them for prefill)" if second else ""
        raise InputError(
            f"{spec.model} takes {human_bytes(summary.weight_bytes)} of weights{told} and "
            f"{human_bytes(summary.state_bytes)} "
            f"of states for {spec.capacity:,} tokens, more than the --budget of {human_bytes(allowed)}",
            "allow more, set a smaller budget.context or dtype in the spec, or take a smaller model",
        )
    return spec


def with_passes(spec: Spec, passes: Sequence[str], replace: bool = False) -> Spec:
    """Return ``spec`` with ``NAME`` or ``NAME{opt=val, ...}`` texts behind its own list of passes.

    Args:
        spec: stays as it is; its list keeps its places in messages.
        passes: texts in the order to run.
        replace: leave the spec's own list out.

    Raises:
        InputError: a text of another form.
    """
    if not passes and not replace:
        return spec
    written = None if replace else spec.tree.find(("passes",))
    own = written.value if written is not None and isinstance(written.value, list) else []
    return with_values(spec, {"passes": [*own, *(pass_node(text, spec.folder) for text in passes)]}, "--pass")


def pass_node(text: str, folder: Path | None = None) -> Node:
    """Return the entry of a spec's list that ``text`` stands for, placed in the text itself."""
    name, options = split_call(text)
    source = Text("--pass", text, folder=folder)
    key = source.at(text.index(name), len(name))
    if not options:
        return Node(name, key, None, source)
    values: dict[str, Node] = {}
    at = text.index("{")
    for option, value in options.items():
        at = text.index(option, at)
        span = source.at(at, len(text[at:].partition(value)[0]) + len(value))
        at += span.width
        values[option] = Node(read_scalar(value), span, span, source)
    inner: Node = Node(values, key, key, source)
    return Node({name: inner}, key, None, source)
