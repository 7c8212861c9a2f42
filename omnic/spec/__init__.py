"""The spec language: what a model is, what it must fit in, and where it goes.

    >>> from omnic.spec import load_spec
    >>> spec = load_spec("tiny")
    >>> [layer.attention.kind for layer in spec.layers()]
    ['gqa', 'gqa', 'gqa']

Names are loaded on first use: importing this package loads neither pydantic, PyYAML nor lark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnic.spec.export import to_dsl, to_json, to_yaml
    from omnic.spec.kinds import known_kinds, register_kind
    from omnic.spec.layers import Attention, Dense, Ffn, Layer, MoE, Norm, Rope, RopeScaling
    from omnic.spec.load import load_spec, parse_spec, spec_of, with_values
    from omnic.spec.presets import preset_names, preset_text
    from omnic.spec.scaling import scale
    from omnic.spec.schema import Spec

_HOMES = {
    "Attention": "layers",
    "Dense": "layers",
    "Ffn": "layers",
    "Layer": "layers",
    "MoE": "layers",
    "Norm": "layers",
    "Rope": "layers",
    "RopeScaling": "layers",
    "Spec": "schema",
    "known_kinds": "kinds",
    "load_spec": "load",
    "parse_spec": "load",
    "preset_names": "presets",
    "preset_text": "presets",
    "register_kind": "kinds",
    "scale": "scaling",
    "spec_of": "load",
    "to_dsl": "export",
    "to_json": "export",
    "to_yaml": "export",
    "with_values": "load",
}

__all__ = [
    "Attention",
    "Dense",
    "Ffn",
    "Layer",
    "MoE",
    "Norm",
    "Rope",
    "RopeScaling",
    "Spec",
    "known_kinds",
    "load_spec",
    "parse_spec",
    "preset_names",
    "preset_text",
    "register_kind",
    "scale",
    "spec_of",
    "to_dsl",
    "to_json",
    "to_yaml",
    "with_values",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'omnic.spec' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"omnic.spec.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
