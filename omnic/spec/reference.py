"""What is generated from the schema: ``specs/schema.json`` and the key tables of ``docs/spec.md``.

python -m omnic.spec.reference            # write both, from the root of a checkout
python -m omnic.spec.reference --check    # exit 1 and name what is stale
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema
from pydantic_core import PydanticUndefined

from omnic.spec import blocks, schema
from omnic.spec.keys import kind_first, models_of
from omnic.spec.kinds import KIND_MARK, builtin_kinds
from omnic.spec.values import Bytes, Passes, Tokens

__all__ = ["BEGIN", "END", "json_schema", "key_tables", "with_tables"]

SCHEMA, PAGE = Path("specs/schema.json"), Path("docs/spec.md")
BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"

# The mappings of a spec in the order the page shows them: title, model, what it is.
TABLES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The spec", schema.Spec),
    ("`vocab`", schema.VocabModel),
    ("`norm`", schema.NormModel),
    ("`softcap`", schema.SoftcapModel),
    ("`multipliers`", schema.MultipliersModel),
    ("`init`", schema.InitModel),
    ("An entry of `blocks`", blocks.BlockModel),
    ("`attention`, every kind", blocks.AttentionModel),
    ("`attention` of the kinds `mha`, `gqa`, `mqa`", blocks.HeadsAttentionModel),
    ("`attention` of kind `mha`", blocks.MhaModel),
    ("`attention` of kind `gqa`", blocks.GqaModel),
    ("`attention` of kind `mqa`", blocks.MqaModel),
    ("`attention` of kind `mla`", blocks.MlaModel),
    ("`rope`", blocks.RopeModel),
    ("`scaling` of `rope`", blocks.RopeScalingModel),
    ("`ffn`, every kind", blocks.FfnModel),
    ("`ffn` of kind `dense`", blocks.DenseModel),
    ("`ffn` of kind `moe`", blocks.MoeModel),
    ("`router` of `ffn` of kind `moe`", blocks.RouterModel),
    ("`heads`", schema.HeadsModel),
    ("`mtp` of `heads`", schema.MtpModel),
    ("`budget`", schema.BudgetModel),
)


def json_schema() -> str:
    """Return the JSON Schema of a YAML spec, as committed in ``specs/schema.json``.

    A spec with ``extends`` may leave out what the other one states, and its ``blocks`` may be a
    mapping of numbers to overridden keys.
    """
    kinds = {family: tuple(builtin_kinds(family).values()) for family in ("attention", "ffn")}
    wanted = [(model, "validation") for model in (schema.Spec, *kinds["attention"], *kinds["ffn"])]
    _, generated = models_json_schema(wanted, by_alias=True)  # pyright: ignore[reportArgumentType]
    refs = {
        family: {"oneOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in models]}
        for family, models in kinds.items()
    }
    definitions = _with_kinds(generated["$defs"], refs)
    body = definitions.pop("Spec") | {"$defs": definitions}
    required = [key for key in body.pop("required") if key != "model"]
    blocks_list = body["properties"]["blocks"]
    description = blocks_list.pop("description")
    override = {"type": "object", "patternProperties": {"^[0-9]+$": {"type": "object"}}, "additionalProperties": False}
    body["properties"]["blocks"] = {"description": description, "anyOf": [blocks_list, override]}
    body["required"] = ["model"]
    body["if"] = {"not": {"required": ["extends"]}}
    body["then"] = {"required": required, "properties": {"blocks": {"type": "array"}}}
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "omnic spec",
        "description": "A model: what it is, what it must fit in, where it goes.",
    }
    return json.dumps(head | {key: value for key, value in body.items() if key not in head}, indent=1) + "\n"


def _with_kinds(value: Any, refs: dict[str, Any]) -> Any:
    """Return a JSON Schema without titles, each mark of a family replaced by the choice of its kinds."""
    if isinstance(value, list):
        return [_with_kinds(item, refs) for item in value]
    if not isinstance(value, dict):
        return value
    noise = {KIND_MARK}
    if isinstance(value.get("title"), str):  # pydantic's, made from the key
        noise.add("title")
    result = {key: _with_kinds(item, refs) for key, item in value.items() if key not in noise}
    return result | refs[value[KIND_MARK]] if KIND_MARK in value else result


def key_tables() -> str:
    """Return the Markdown tables of all keys: type, default, meaning."""
    return "\n".join(line for title, model in TABLES for line in _table(title, model)).rstrip() + "\n"


def with_tables(page: str) -> str:
    """Return a page with the text between its markers replaced by :func:`key_tables`."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{key_tables()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write what is generated, or with ``--check`` name what is stale; return the exit code."""
    made: dict[Path, str] = {SCHEMA: json_schema()}
    if PAGE.exists():
        made[PAGE] = with_tables(PAGE.read_text(encoding="utf-8"))
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path} is not what the schema says; run: python -m omnic.spec.reference")
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path], encoding="utf-8", newline="\n")
        print(f"{path}: written")
    return 0


def _table(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"### {title}"
    yield ""
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in kind_first(model):
        if name not in model.__annotations__:  # a key of the table above
            continue
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{field.alias or name}` | {_type(field)} | {_default(field)} | {meaning} |"
    yield ""


def _type(field: FieldInfo) -> str:
    for known, word in ((Tokens, "tokens"), (Bytes, "bytes")):
        if get_args(known)[-1] in field.metadata:
            return word
    return _words(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation, field)


def _words(annotation: Any, field: FieldInfo) -> str:
    """Return a type in the words of the page."""
    for known, word in ((Tokens, "tokens"), (Bytes, "bytes"), (Passes, "`auto` or list")):
        if annotation == known:
            return word
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        models = models_of(field)
        return "mapping" if models and parts[0] in (BaseModel, *models) else _words(parts[0], field)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        inner = _words(parts[0], field)
        return "list of mappings" if inner == "mapping" else f"list of {inner}"
    if origin is dict:
        return "mapping of mappings"
    if origin is not None:
        return " or ".join(_words(part, field) for part in parts if part is not type(None)) + " or none"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default()
    if field.default is PydanticUndefined or value is None:
        return "unset"
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
