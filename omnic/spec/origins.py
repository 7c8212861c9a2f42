"""Every value of a spec and where it came from: a place in a file, a preset, a default, the planner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from omnic.spec.keys import field_of, kind_first, model_at
from omnic.spec.tree import Node, Path, path_text

if TYPE_CHECKING:
    from omnic.spec.layers import Place
    from omnic.spec.schema import Spec

__all__ = ["Origin", "Source", "origins"]

Source = Literal["file", "preset", "default", "derived", "planner"]

# Keys of a block that a key at the top of the spec answers for.
_FROM_TOP = {
    "head_dim": ("head_dim",),
    "kv_heads": ("kv_heads",),
    "qk_norm": ("qk_norm",),
    "sinks": ("sinks",),
    "softcap": ("softcap", "attention"),
    "bias": ("bias",),
}
_RULES = {
    "head_dim": "width / heads",
    "kv_heads": "heads",
    "shared_hidden": "hidden",
    "dims": "all dims",
    "original_context": "context",
    "scale": "1 / sqrt(head_dim)",
}


@dataclass(frozen=True)
class Origin:
    """One value and where it came from.

    Attributes:
        path: keys and indices of the value in the spec.
        value: what it is, as plain data.
        source: ``file`` (the spec itself or a file it extends), ``preset``, ``default`` (of the
            schema), ``derived`` (from other values), ``planner`` (chosen at compile time).
        detail: the preset's name, or what a value is derived from.
        place: (file, line, column) of a written value.
        meaning: what the schema says the key is.
    """

    path: Path
    value: Any
    source: Source
    detail: str = ""
    place: Place | None = None
    meaning: str = ""

    @property
    def key(self) -> str:
        """The path as text."""
        return path_text(self.path)

    @property
    def text(self) -> str:
        """Where it came from, in words."""
        where = f"{self.place[0]}:{self.place[1]}" if self.place else ""
        if self.source == "file":
            return where
        if self.source == "preset":
            return f"preset {self.detail} ({where})"
        return f"{self.source}: {self.detail}" if self.detail else self.source


def origins(spec: Spec) -> tuple[Origin, ...]:
    """Return every value of ``spec`` in the schema's order, defaults filled in and blocks resolved."""
    return tuple(replace(item, meaning=_meaning(spec, item.path)) for item in _mapping(spec, spec, ()))


def _meaning(spec: Spec, path: Path) -> str:
    """Return the description of the field at ``path`` (of ``targets`` for a target's options)."""
    steps = path[:1] if path[0] == "targets" else path
    field = field_of(model_at(type(spec), spec.tree, steps[:-1]), str(steps[-1]))
    return (field.description or "") if field is not None else ""


def _mapping(spec: Spec, model: BaseModel, path: Path) -> Iterator[Origin]:
    for name, field in kind_first(type(model)):
        key = field.alias or name
        yield from _value(spec, getattr(model, name), (*path, key))


def _value(spec: Spec, value: Any, path: Path) -> Iterator[Origin]:
    if path == ("extends",) and value is None:
        return
    if len(path) == 3 and path[0] == "blocks" and path[2] in ("attention", "ffn") and isinstance(value, BaseModel):
        yield from _part(spec, value, path)
    elif isinstance(value, BaseModel):
        yield from _mapping(spec, value, path)
    elif isinstance(value, tuple) and value and all(isinstance(item, BaseModel) for item in value):
        for index, item in enumerate(value):
            yield from _mapping(spec, item, (*path, index))
    elif path == ("targets",) and spec.targets:
        for name, options in spec.targets.items():
            yield _origin(spec, (*path, name), options)
    else:
        yield _origin(spec, path, value)


def _origin(spec: Spec, path: Path, value: Any) -> Origin:
    node = spec.tree.find(path)
    if node is not None:
        return _written(node, path, value)
    if path == ("passes",):
        return Origin(path, value, "planner", "chosen at compile time")
    if path == ("budget", "context"):
        return Origin(path, spec.capacity, "derived", "context")
    if path in (("chunk",), ("chunk_verify",)):
        of = "the state capacity" if path == ("chunk",) else "the chunk"
        usual = {"chunk": 512, "chunk_verify": 16}[str(path[0])]
        return Origin(path, value, "default") if value == usual else Origin(path, value, "derived", of)
    return Origin(path, value, "default")


def _written(node: Node, path: Path, value: Any) -> Origin:
    preset = node.text.preset if node.text is not None else None
    place = (node.place.file, node.place.line, node.place.column)
    return Origin(path, value, "preset", preset, place) if preset else Origin(path, value, "file", "", place)


def _part(spec: Spec, model: BaseModel, path: Path) -> Iterator[Origin]:
    """Yield the values of an attention or ffn; unset ones as the block's layers resolve them."""
    number, key = path[1], str(path[2])
    layer = next(layer for layer in spec.layers() if layer.block == number)
    part = getattr(layer, key)
    for name, field in kind_first(type(model)):
        inner = (*path, field.alias or name)
        value = getattr(model, name)
        if name in ("pattern", "local", "global_"):
            yield from _pattern(spec, value, inner)
        elif isinstance(value, BaseModel):
            yield from _nested(spec, value, getattr(part, name, None), inner)
        elif name == "kind" or spec.tree.find(inner) is not None or not is_dataclass(part):
            yield _origin(spec, inner, value)
        else:
            yield _unset(spec, inner, name, value, getattr(part, name, value))


def _pattern(spec: Spec, value: Any, path: Path) -> Iterator[Origin]:
    """Yield the pattern, or the keys that the mapping of one of its names overrides."""
    if isinstance(value, BaseModel):
        yield from _mapping_given(spec, value, path)
    elif value is not None:
        yield _origin(spec, path, value)


def _mapping_given(spec: Spec, model: BaseModel, path: Path) -> Iterator[Origin]:
    for name in type(model).model_fields:
        if name not in model.model_fields_set:
            continue
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _mapping_given(spec, value, (*path, name))
        else:
            yield _origin(spec, (*path, name), value)


def _nested(spec: Spec, model: BaseModel, resolved: Any, path: Path) -> Iterator[Origin]:
    """Yield the keys of rope and its scaling, unset ones as resolved."""
    for name in type(model).model_fields:
        value, inner = getattr(model, name), (*path, name)
        if isinstance(value, BaseModel):
            yield from _nested(spec, value, getattr(resolved, name, None), inner)
        elif spec.tree.find(inner) is not None:
            yield _origin(spec, inner, value)
        else:
            yield _unset(spec, inner, name, value, getattr(resolved, name, value))


def _unset(spec: Spec, path: Path, name: str, written: Any, resolved: Any) -> Origin:
    top = _FROM_TOP.get(name) if len(path) == 4 else None
    if top is not None:
        node = spec.tree.find(top)
        if node is not None:
            place = (node.place.file, node.place.line, node.place.column)
            return Origin(path, resolved, "derived", f"{path_text(top)} ({place[0]}:{place[1]})", place)
    if written is None and resolved is not None and name in _RULES:
        return Origin(path, resolved, "derived", _RULES[name])
    return Origin(path, resolved, "default")
