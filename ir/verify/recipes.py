"""The rule about recipes: what each kind takes."""

from __future__ import annotations

from collections.abc import Iterator

from omnic.errors import nearest
from omnic.ir.graph import AttrValue, Module, Recipe
from omnic.ir.types import Storage
from omnic.ir.verify.problem import Place, Problem

__all__ = ["recipes"]

# Of each kind: how many recipes it takes inside, and the arguments it needs.
_KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "normal": ("none", {"std": "a number"}),
    "zeros": ("none", {}),
    "ones": ("none", {}),
    "full": ("none", {"value": "a number"}),
    "load": ("none", {}),
    "stored": ("none", {"hash": "a string"}),
    "concat": ("any", {"axis": "the number of a dim"}),
    "stack": ("any", {}),
    "slice": ("one", {"axis": "the number of a dim", "start": "an index", "stop": "an index"}),
    "transpose": ("one", {"perm": "a list of dims' numbers"}),
    "reshape": ("one", {"shape": "a list of sizes"}),
    "scale": ("one", {"value": "a number"}),
    "shift": ("one", {"value": "a number"}),
    "quantise": ("one", {"type": "a storage type"}),
}
# Arguments that a kind may have beside those it needs.
_OPTIONAL = {"name": "a string", "shape": "a list of sizes", "step": "a number of rows, 1 or more"}


def recipes(module: Module) -> Iterator[Problem]:
    """A recipe is of a known kind, with as many inputs as that kind takes and the arguments it needs."""
    for weight in module.weights.values():
        written = weight.recipe.args.get("type") if weight.recipe.kind == "quantise" else None
        if isinstance(written, Storage) and written != weight.type.element:
            yield Problem(f"weight @{weight.name} is {weight.type.element}, its recipe quantises to {written}",
                          Place("weight", weight.name))
        for message, hint in _recipe(weight.recipe):
            yield Problem(f"weight @{weight.name}: {message}", Place("weight", weight.name), hint)


def _recipe(recipe: Recipe) -> Iterator[tuple[str, str | None]]:
    if recipe.kind not in _KINDS:
        near = nearest(recipe.kind, list(_KINDS))
        hint = f"did you mean '{near}'?" if near else f"known: {', '.join(_KINDS)}"
        yield f"unknown recipe '{recipe.kind}'", hint
        return
    count, needed = _KINDS[recipe.kind]
    if count == "none" and recipe.inputs:
        yield f"recipe {recipe.kind} takes no recipe inside", None
    elif count == "one" and len(recipe.inputs) != 1:
        yield f"recipe {recipe.kind} takes one recipe, got {len(recipe.inputs)}", None
    elif count == "any" and not recipe.inputs:
        yield f"recipe {recipe.kind} takes at least one recipe", None
    for name, kind in needed.items():
        if name not in recipe.args:
            yield f"recipe {recipe.kind} needs {name}, {kind}", None
    for name, value in recipe.args.items():
        kind = needed.get(name) or _OPTIONAL.get(name)
        if kind and not _is(kind, value):
            yield f"recipe {recipe.kind}: {name} must be {kind}", None
    for inner in recipe.inputs:
        yield from _recipe(inner)


def _is(kind: str, value: AttrValue) -> bool:
    if kind == "a string":
        return isinstance(value, str)
    if kind == "a storage type":
        return isinstance(value, Storage)
    if kind == "a number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind in ("the number of a dim", "an index"):
        return _is_index(value)
    if kind == "a number of rows, 1 or more":
        return _is_index(value) and value != 0
    return isinstance(value, tuple) and all(_is_index(v) for v in value)


def _is_index(value: AttrValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
