"""The lines a compile ends with."""

from __future__ import annotations

from typing import Any

import pytest

from omnic.compiler.summary import print_summary

BASE: dict[str, Any] = {
    "bundle": "build/a-onnx", "model": "a", "target": "onnx", "profile": "fused", "bytes": 3_600_000, "parity": 0.05,
    "parity_ok": True, "parity_cases": [], "fidelity": None, "prefill": None, "fallbacks": [], "needs": "",
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


def test_a_program_that_cannot_run_here_has_no_parity(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary({**BASE, "class": "f32", "parity": None, "parity_ok": None, "parity_bound": None,
                   "needs": "a device with Vulkan"})
    told = " ".join(capsys.readouterr().out.split())
    assert "parity not measured here: needs a device with Vulkan" in told and "ok" not in told


def test_second_weights_are_named_with_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    second = {"from_tokens": 16, "weights": 7, "bytes": 100_500_000}
    cost = {"kl": 2.5e-3, "delta_percent": 0.1, "unit": "byte", "tokens": 128, "text": "text",
            "prefill": {"kl": 2.6e-5, "kl_after": 9.7e-4}}
    print_summary({**BASE, "class": "int8", "parity_bound": 0.0, "prefill": second, "fidelity": cost})
    told = " ".join(capsys.readouterr().out.split())
    assert ("prefill calls of 16 tokens and more: int8, 100.5 MB of second weights; KL 2.6e-05, of tokens behind a "
            "prompt 9.7e-04") in told
