"""Any text gives a spec or a DiagnosticError whose places lie in the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnic.errors import DiagnosticError
from omnic.spec import Spec, parse_spec, preset_names, preset_text, scale, to_dsl, to_yaml
from omnic.spec.load import Syntax
from tests.spec.strategies import near_misses, spec_data

DEEP = settings(settings.get_profile("deep"), max_examples=10_000)
FAST = settings(max_examples=80)

YAML_TEXTS = st.sampled_from([preset_text(name).text for name in preset_names()])
DSL_TEXTS = st.sampled_from(
    [to_dsl(parse_spec(preset_text(name).text)) for name in ("tiny_moe", "mobile_4gb", "nano_125m")]
)
YAML = st.one_of(st.text(), near_misses(YAML_TEXTS, "{}[]:,-#&*!|>'\"%@`\n\t "))
DSL = st.one_of(st.text(), near_misses(DSL_TEXTS, '{}[](),=#"\n\t x'))


def read(text: str, syntax: Any) -> None:
    try:
        spec = parse_spec(text, "fuzz", syntax)
    except DiagnosticError as error:
        assert error.diagnostics
        lines = len(text.splitlines()) + 1
        for item in error.diagnostics:
            if item.span is not None and item.span.file == "fuzz":
                assert 1 <= item.span.line <= lines + 1
                assert item.span.column >= 1
            item.render().encode("utf-8")
        return
    assert isinstance(spec, Spec)
    spec.layers()


@FAST
@given(YAML)
def test_any_yaml(text: str) -> None:
    read(text, "yaml")


@FAST
@given(DSL)
def test_any_dsl(text: str) -> None:
    read(text, "dsl")


def parsed(data: dict[str, Any]) -> Spec:
    import json

    return parse_spec(json.dumps(data, ensure_ascii=False), "data", "yaml")


def round_trip(data: dict[str, Any]) -> None:
    spec = parsed(data)
    forms: list[tuple[str, Syntax]] = [(to_yaml(spec), "yaml"), (to_dsl(spec), "dsl")]
    for text, syntax in forms:
        back = parse_spec(text, "back", syntax)
        assert back == spec, text
        assert written(back) == written(spec), text


def written(spec: Spec) -> dict[str, Any]:
    """The written values; an empty mapping of the top says no more than none, and 'omnic' is YAML's."""
    return {key: value for key, value in spec.given().items() if key != "omnic" and value != {}}


@given(spec_data())
def test_export_and_back_is_the_identity(data: dict[str, Any]) -> None:
    round_trip(data)


@given(spec_data())
def test_any_valid_spec_scales(data: dict[str, Any]) -> None:
    spec = parsed(data)
    check_small(scale(spec), spec)


def check_small(small: Spec, spec: Spec) -> None:
    assert small.width == 96
    assert small.vocab.size <= 512
    assert small.chunk <= 64
    for layer in small.layers():
        assert getattr(layer.ffn, "routed_experts", 1) <= 4
    kinds = {(layer.attention.kind, type(layer.ffn).__name__) for layer in spec.layers()}
    assert {(layer.attention.kind, type(layer.ffn).__name__) for layer in small.layers()} == kinds
    assert scale(small).layers() is not None


@pytest.mark.slow
@DEEP
@given(YAML)
def test_any_yaml_deeply(text: str) -> None:
    read(text, "yaml")


@pytest.mark.slow
@DEEP
@given(DSL)
def test_any_dsl_deeply(text: str) -> None:
    read(text, "dsl")


@pytest.mark.slow
@DEEP
@given(spec_data())
def test_identity_deeply(data: dict[str, Any]) -> None:
    round_trip(data)
    spec = parsed(data)
    check_small(scale(spec), spec)
