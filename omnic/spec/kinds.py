"""Which kinds of attention and ffn a spec may name, and the model class of each.

The built-in kinds are registered by :mod:`omnic.spec.blocks`.  A package adds its own through the
entry-point group ``omnic.models``: an entry's name is ``attention.KIND`` or ``ffn.KIND``, its value
the builder, whose attribute ``spec`` is the pydantic model of the keys.  That model has a field
``kind`` and the methods ``resolve(spec, block)``, what the layer holds for the builder, and
``scaled(width)``, the plain mapping of a small copy for tests.  A package is imported when a spec
names its kind, not before.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import PydanticCustomError, core_schema

from omnic.errors import InputError

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

__all__ = [
    "ENTRY_POINT_GROUP",
    "KIND_MARK",
    "Family",
    "KindOf",
    "builtin_kinds",
    "kind_model",
    "known_kinds",
    "register_kind",
]

ENTRY_POINT_GROUP = "omnic.models"
Family = Literal["attention", "ffn"]

KIND_MARK = "kindOf"
"""What stands in pydantic's JSON Schema where the schemas of a family's kinds belong."""

_kinds: dict[Family, dict[str, type[BaseModel]]] = {"attention": {}, "ffn": {}}
_builtin: dict[Family, dict[str, type[BaseModel]]] = {"attention": {}, "ffn": {}}


def register_kind(family: Family, name: str, model: type[BaseModel], *, builtin: bool = False) -> None:
    """Make ``kind: name`` a value of ``attention`` or ``ffn``.

    Args:
        family: the key of a block the kind belongs to.
        name: what the spec writes.
        model: the pydantic model of its keys.
        builtin: part of omnic's own schema (and so of ``specs/schema.json``).

    Raises:
        InputError: the name is taken by another model.
    """
    taken = _kinds[family].get(name)
    if taken is not None and taken is not model:
        raise InputError(f"the {family} kind '{name}' is registered twice", f"first by {taken.__module__}")
    _kinds[family][name] = model
    if builtin:
        _builtin[family][name] = model


def builtin_kinds(family: Family) -> dict[str, type[BaseModel]]:
    """Return the kinds of omnic itself."""
    return dict(_builtin[family])


def known_kinds(family: Family) -> tuple[str, ...]:
    """Return the names a spec may write, those of installed packages included."""
    return tuple(dict.fromkeys([*_kinds[family], *_installed(family)]))


def kind_model(family: Family, name: str) -> type[BaseModel]:
    """Return the model of a known kind.

    Raises:
        InputError: the package that declares it gives no model.
    """
    if name not in _kinds[family]:
        entry = _installed(family)[name]
        model = getattr(entry.load(), "spec", None)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            hint = f"its builder {entry.value} needs an attribute 'spec', a pydantic model"
            raise InputError(f"the {family} kind '{name}' declares no keys", hint)
        register_kind(family, name, model)
    return _kinds[family][name]


def _installed(family: Family) -> dict[str, EntryPoint]:
    found = entry_points(group=ENTRY_POINT_GROUP)
    return {entry.name.removeprefix(f"{family}."): entry for entry in found if entry.name.startswith(f"{family}.")}


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
            raise PydanticCustomError("kind_unknown", "unknown kind", {"family": self.family, "known": known})
        try:
            return kind_model(self.family, kind).model_validate(value)
        except ValidationError as error:
            raise PydanticCustomError("nested", "nested", {"errors": error.errors(include_url=False)}) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True)
        return core_schema.no_info_plain_validator_function(self.validate, serialization=dump)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {KIND_MARK: self.family}


def _dump(value: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
    return value.model_dump(
        mode=info.mode,
        by_alias=bool(info.by_alias),
        exclude_unset=info.exclude_unset,
        exclude_defaults=info.exclude_defaults,
    )
