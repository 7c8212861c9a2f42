"""What is generated from the schema is up to date, and says what the loader does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from pydantic import BaseModel

from omnic.spec import preset_names, preset_text
from omnic.spec.keys import models_of
from omnic.spec.load import read_tree
from omnic.spec.reference import END, json_schema, key_tables, with_tables
from omnic.spec.schema import Spec
from tests.spec.strategies import spec_data


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    body = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(body)
    return jsonschema.Draft202012Validator(body)


def test_the_committed_schema_is_the_code(repository: Path) -> None:
    made = (repository / "specs" / "schema.json").read_text(encoding="utf-8")
    assert made == json_schema(), "run: python -m omnic.spec.reference"


def test_the_page_has_the_tables_of_the_code(repository: Path) -> None:
    page = (repository / "docs" / "spec.md").read_text(encoding="utf-8")
    assert page == with_tables(page), "run: python -m omnic.spec.reference"
    assert page.index("| `model` |") < page.index(END)


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid(name: str, validator: jsonschema.Draft202012Validator) -> None:
    data: Any = read_tree(preset_text(name)).plain()
    assert list(validator.iter_errors(data)) == []


@given(spec_data())
def test_the_schema_takes_what_the_loader_takes(data: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors(data)) == []


VALIDATOR = jsonschema.Draft202012Validator(json.loads(json_schema()))


@pytest.mark.parametrize(
    "change",
    [
        {"contxt": 3},
        {"context": "8q"},
        {"dtype": "fp8"},
        {"blocks": []},
        {"blocks": {"0": {"repeat": 2}}},
        {"heads": {"mtp": {"kind": "tree"}}},
        {
            "blocks": [
                {
                    "width": 3,
                    "attention": {"kind": "mha", "heads": 1, "latent": 4},
                    "ffn": {"kind": "dense", "hidden": 1},
                }
            ]
        },
        {"passes": [{"a": 1}]},
    ],
)
def test_the_schema_refuses(change: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    data = read_tree(preset_text("tiny")).plain()
    assert isinstance(data, dict)
    assert list(validator.iter_errors({**data, **change}))


def test_a_spec_that_extends_may_be_short(validator: jsonschema.Draft202012Validator) -> None:
    assert not list(validator.iter_errors({"model": "a", "extends": "tiny", "blocks": {"0": {"repeat": 2}}}))
    assert list(validator.iter_errors({"model": "a"}))


def every_model(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            for inner in models_of(field):
                every_model(inner, seen)
    return seen


def test_every_key_is_documented() -> None:
    page = key_tables()
    for model in every_model(Spec, set()):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            assert f"| `{field.alias or name}` |" in page
