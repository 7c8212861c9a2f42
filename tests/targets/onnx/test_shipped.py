"""The shipped models in 4 bits, with keys and values as floats and in 8 bits: parity of what a user compiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omnic.api import compile as compile_model

INT4 = {"int4-packing": {"group": 32, "embedding": "i4<g32>", "head": "i4<g32>"}}
CASES = [
    ("tiny", [INT4]),
    ("tiny_moe", [INT4]),
    ("tiny_moe", [INT4, {"kv-quant": {"bits": 8}}]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "passes"), CASES, ids=["tiny", "tiny_moe", "tiny_moe, states"])
def test_a_shipped_model_in_4_bits(model: str, passes: list[Any], tmp_path: Path) -> None:
    written = [f"{name}{{{', '.join(f'{k}={v}' for k, v in o.items())}}}" for p in passes for name, o in p.items()]
    bundle = compile_model(model, "onnx", tmp_path / "bundle", passes=written, threads=1)
    assert bundle.manifest.numeric_class == "int8"
    assert bundle.parity is not None
    assert bundle.parity["ok"], [case["problem"] for case in bundle.parity["cases"]]
