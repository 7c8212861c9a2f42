"""Which kinds of attention and ffn a spec may name, and the model class of each.

The built-in kinds are registered by :mod:`omnic.spec.schema`.  A package adds its own through the
entry-point group ``omnic.models``: an entry's object is called with no argument before the first
spec is read and calls :func:`register_kind`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import PydanticCustomError, core_schema

from omnic.errors import InputError

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

__all__ = ["ENTRY_POINT_GROUP", "Family", "KindOf", "known_kinds", "register_kind"]

ENTRY_POINT_GROUP = "omnic.models"
Family = Literal["attention", "ffn"]

_kinds: dict[Family, dict[str, type[BaseModel]]] = {"attention": {}, "ffn": {}}
_builtin: dict[Family, list[str]] = {"attention": [], "ffn": []}
_loaded = False


def register_kind(family: Family, name: str, model: type[BaseModel], *, builtin: bool = False) -> None:
    """Make ``kind: name`` a value of ``attention`` or ``ffn``.

    Args:
        family: the key of a block the kind belongs to.
        name: what the spec writes.
        model: the pydantic model of its keys; it has a field ``kind``.
        builtin: part of omnic's own schema (and so of ``specs/schema.json``).

    Raises:
        InputError: the name is taken by another model.
    """
    taken = _kinds[family].get(name)
    if taken is not None and taken is not model:
        raise InputError(f"the {family} kind '{name}' is registered twice", f"first by {taken.__module__}")
    _kinds[family][name] = model
    if builtin:
        _builtin[family].append(name)


def known_kinds(family: Family) -> dict[str, type[BaseModel]]:
    """Return the kinds a spec may name, those of installed packages included."""
    global _loaded
    if not _loaded:
        _loaded = True
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            entry.load()()
    return _kinds[family]


class KindOf:
    """Annotation of a field whose model class is chosen by its ``kind`` key."""

    def __init__(self, family: Family) -> None:
        self.family: Family = family

    def validate(self, value: Any) -> BaseModel:
        """Return the model of ``value``; its errors keep their places below this field."""
        if isinstance(value, BaseModel):
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("not_a_mapping", "not a mapping")
        if "kind" not in value:
            raise PydanticCustomError("kind_missing", "no kind", {"family": self.family})
        known = known_kinds(self.family)
        kind = value["kind"]
        if not isinstance(kind, str) or kind not in known:
            raise PydanticCustomError("kind_unknown", "unknown kind", {"family": self.family, "known": tuple(known)})
        try:
            return known[kind].model_validate(value)
        except ValidationError as error:
            raise PydanticCustomError("nested", "nested", {"errors": error.errors(include_url=False)}) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True)
        return core_schema.no_info_plain_validator_function(self.validate, serialization=dump)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        members = [handler(_kinds[self.family][name].__pydantic_core_schema__) for name in _builtin[self.family]]
        return {"oneOf": members}


def _dump(value: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
    return value.model_dump(
        mode=info.mode,
        by_alias=bool(info.by_alias),
        exclude_unset=info.exclude_unset,
        exclude_defaults=info.exclude_defaults,
    )
