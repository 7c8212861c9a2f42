"""The lines a compile ends with."""

from __future__ import annotations

from typing import Any

import pytest

from omnic.compiler.summary import print_summary

BASE: dict[str, Any] = {
    "bundle": "build/a-onnx", "model": "a", "target": "onnx", "profile": "fused", "bytes": 3_600_000, "parity": 0.05,
    "parity_ok": True, "parity_cases": [], "fidelity": None, "fallbacks": [],
}


@pytest.mark.parametrize(("kind", "bound", "words"), [
    ("f32", 2e-5, "parity    5.0e-02 of the logit rms, bound 2e-05 (f32): ok"),
    ("int8", 0.0,
     "parity    5.0e-02 of the logit rms, class int8: equal choices outside near-ties and KL <= 1e-03 nats: ok"),
])
def test_a_parity_says_what_it_was_held_against(
    kind: str, bound: float, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary({**BASE, "class": kind, "parity_bound": bound})
    assert words in " ".join(capsys.readouterr().out.split()).replace("parity ", "parity    ")
