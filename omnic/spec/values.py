"""The value types of the schema: numbers with limits, sizes, names, and how a pass is written."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from omnic.spec.units import BYTE_UNITS, TOKEN_UNITS, parse_bytes, parse_tokens

__all__ = [
    "Bytes",
    "Count",
    "Dim",
    "FileName",
    "Flag",
    "ModelName",
    "Number",
    "Options",
    "Passes",
    "Positive",
    "Record",
    "Share",
    "Strength",
    "Tokens",
]

MAX_DIM = 1 << 24
MAX_TOKENS = 1 << 31
MAX_OPTION_DEPTH = 8

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z", re.ASCII)


class Record(BaseModel):
    """Base of every mapping of a spec: frozen, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_alias=True,
        validate_by_name=False,
        serialize_by_alias=True,
        protected_namespaces=(),
    )


def _sized(parse: Any) -> Any:
    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except ValueError as error:
            raise PydanticCustomError("bad_size", "{said}", {"said": str(error)}) from None

    return read


def _size_schema(units: dict[str, int], description: str) -> dict[str, Any]:
    pattern = rf"^[0-9]+(\.[0-9]+)? ?({'|'.join(units)})$"
    return {
        "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": pattern}],
        "description": description,
    }


def _option(value: Any, depth: int = 0) -> Any:
    """Check a free option value: scalars, lists and mappings of them."""
    if depth > MAX_OPTION_DEPTH:
        raise PydanticCustomError("bad_value", "{said}", {"said": "is nested too deep"})
    if isinstance(value, dict):
        for key in value:
            if not _KEY.match(key):
                raise PydanticCustomError(
                    "bad_value", "{said}", {"said": f"has the key {key[:40]!r}, which is no word"}
                )
        return {key: _option(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_option(item, depth + 1) for item in value)
    return value


def _passes(value: Any) -> Any:
    """Return ``auto`` or the list of passes, each as {name: options}."""
    if value == "auto":
        return value
    if not isinstance(value, list | tuple):
        raise PydanticCustomError("passes", "passes")
    result: list[str | dict[str, Any]] = []
    for entry in value:
        if isinstance(entry, str) and _KEY.match(entry):
            result.append(entry)
        elif isinstance(entry, dict) and len(entry) == 1:
            ((name, options),) = entry.items()
            if not isinstance(options, dict) or not _KEY.match(name):
                raise PydanticCustomError("passes", "passes")
            result.append({name: _option(options)})
        else:
            raise PydanticCustomError("passes", "passes")
    return tuple(result)


Dim = Annotated[int, Strict(), Field(ge=1, le=MAX_DIM)]
Count = Annotated[int, Strict(), Field(ge=0, le=MAX_DIM)]
Flag = Annotated[bool, Strict()]
Number = Annotated[float, Strict()]
Positive = Annotated[float, Strict(), Field(gt=0)]
Strength = Annotated[float, Strict(), Field(ge=0)]
Share = Annotated[float, Strict(), Field(ge=0, lt=1)]
ModelName = Annotated[str, Strict(), StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
FileName = Annotated[str, Strict(), StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,1024}$")]
Tokens = Annotated[
    int,
    Strict(),
    Field(ge=1, le=MAX_TOKENS),
    BeforeValidator(_sized(parse_tokens)),
    WithJsonSchema(_size_schema(TOKEN_UNITS, "a number of tokens; k = 1024")),
]
Bytes = Annotated[
    int,
    Strict(),
    Field(ge=1, le=1 << 50),
    BeforeValidator(_sized(parse_bytes)),
    WithJsonSchema(_size_schema(BYTE_UNITS, "a number of bytes; GB = 1e9, GiB = 2^30")),
]
Options = Annotated[dict[str, Any], BeforeValidator(lambda v: _option(v) if isinstance(v, dict) else v)]
Passes = Annotated[
    Any,
    BeforeValidator(_passes),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "auto"},
                {
                    "type": "array",
                    "items": {
                        "anyOf": [
                            {"type": "string"},
                            {
                                "type": "object",
                                "minProperties": 1,
                                "maxProperties": 1,
                                "additionalProperties": {"type": "object"},
                            },
                        ]
                    },
                },
            ]
        }
    ),
]
