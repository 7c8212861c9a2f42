"""Which model class reads which mapping of a spec."""

from __future__ import annotations

import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from omnic.spec.kinds import KindOf, kind_model, known_kinds
from omnic.spec.tree import Node, Path

__all__ = ["field_of", "kind_first", "model_at", "models_of"]


def field_of(model: type[BaseModel], key: str) -> FieldInfo | None:
    """Return the field that a spec's key fills, None when there is none."""
    for name, field in model.model_fields.items():
        if (field.alias or name) == key:
            return field
    return None


def kind_first(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """Return the fields of a model in the order people write them: ``kind`` before the others."""
    return sorted(model.model_fields.items(), key=lambda item: item[0] != "kind")


def models_of(field: FieldInfo) -> tuple[type[BaseModel], ...]:
    """Return the model classes a field's mapping may have (all known kinds for a kind field)."""
    return tuple(_models(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation))


def _models(annotation: Any) -> list[type[BaseModel]]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for extra in parts[1:]:
            if isinstance(extra, KindOf):
                return [kind_model(extra.family, name) for name in known_kinds(extra.family)]
        return _models(parts[0])
    if origin in (Union, types.UnionType, tuple):
        return [model for part in parts for model in _models(part)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return []


def model_at(root: type[BaseModel], tree: Node, path: Path) -> type[BaseModel]:
    """Return the model class of the mapping at ``path``; kinds are read from the tree."""
    model = root
    node: Node | None = tree
    for step in path:
        node = node.child(step) if node is not None else None
        if isinstance(step, int):
            continue
        field = field_of(model, step)
        if field is None:
            return model
        choices = models_of(field)
        if not choices:
            return model
        model = _chosen(choices, node)
    return model


def _chosen(choices: tuple[type[BaseModel], ...], node: Node | None) -> type[BaseModel]:
    if len(choices) == 1 or node is None:
        return choices[0]
    kind = node.child("kind")
    for model in choices:
        if kind is not None and kind.value in get_args(model.model_fields["kind"].annotation):
            return model
    return choices[0]
