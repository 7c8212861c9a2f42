"""Kinds that a package registers beside the built-in ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import Field

from omnic.errors import DiagnosticError, InputError
from omnic.spec import kinds as module
from omnic.spec import known_kinds, parse_spec, register_kind, scale, to_dsl
from omnic.spec.values import Dim, Record


@dataclass(frozen=True)
class Mixer:
    """What the layer holds."""

    taps: int
    rope: None = None
    window: None = None


class ConvModel(Record):
    """A short convolution as token mixer."""

    kind: Literal["conv"] = Field(description="a short convolution")
    taps: Dim = Field(default=4, description="tokens it sees")

    def resolve(self, spec: Any, block: Any) -> Mixer:
        return Mixer(self.taps)

    def scaled(self, width: int) -> dict[str, Any]:
        return {"kind": "conv", "taps": 3}


TEXT = """model: m
vocab: {size: 64}
context: 64
blocks:
  - {width: 64, attention: {kind: conv, taps: 5}, ffn: {kind: dense, hidden: 8}}
"""


@pytest.fixture
def conv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kinds", {family: dict(kinds) for family, kinds in module._kinds.items()})
    register_kind("attention", "conv", ConvModel)


@pytest.mark.usefixtures("conv")
def test_a_registered_kind() -> None:
    spec = parse_spec(TEXT)
    assert known_kinds("attention") == ("mha", "gqa", "mqa", "mla", "conv")
    assert spec.layers()[0].attention == Mixer(5)
    assert parse_spec(to_dsl(spec), syntax="dsl") == spec
    assert parse_spec(TEXT.replace("5", "6")) != spec
    assert scale(spec).layers()[0].attention == Mixer(3)
    with pytest.raises(DiagnosticError) as caught:
        parse_spec(TEXT.replace("taps", "tabs"))
    assert caught.value.diagnostics[0].message == "unknown key 'tabs' in blocks[0].attention"
    assert caught.value.diagnostics[0].hint == "did you mean 'taps'?"
    with pytest.raises(InputError, match="the attention kind 'conv' is registered twice"):
        register_kind("attention", "conv", Record)


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(DiagnosticError) as caught:
        parse_spec(TEXT)
    assert caught.value.diagnostics[0].message == "'conv' is not a kind of attention"
    assert caught.value.diagnostics[0].hint == "kinds of attention: mha, gqa, mqa, mla"


class Entry:
    """An entry point of another package."""

    name, value = "attention.conv", "their_package:builder"

    def __init__(self, spec: object) -> None:
        self.builder = type("Builder", (), {"spec": spec})

    def load(self) -> object:
        return self.builder


def test_a_package_declares_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kinds", {family: dict(kinds) for family, kinds in module._kinds.items()})
    monkeypatch.setattr(module, "entry_points", lambda group: [Entry(ConvModel)])
    assert "conv" in known_kinds("attention")
    assert "conv" not in known_kinds("ffn")
    assert parse_spec(TEXT).layers()[0].attention == Mixer(5)


def test_a_package_that_declares_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "entry_points", lambda group: [Entry(None)])
    with pytest.raises(InputError) as caught:
        parse_spec(TEXT)
    assert caught.value.message == "the attention kind 'conv' declares no keys"
    assert caught.value.hint == "its builder their_package:builder needs an attribute 'spec', a pydantic model"
