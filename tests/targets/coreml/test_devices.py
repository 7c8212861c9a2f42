"""The device matrix: whole, every fact with a source that is listed, and what a compile says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnic.ir.weights import WeightStore
from omnic.targets.coreml.matrix import matrix
from tests.targets.coreml.helpers import emitted, scaled


def _facts(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        return [node] if "value" in node else [f for v in node.values() for f in _facts(v)]
    return []


def test_every_fact_has_a_source_or_is_unknown() -> None:
    known = matrix()
    assert set(known["systems"]) == {"iOS 17", "iOS 18", "iOS 26"}
    assert set(known["chips"]) == {"A15", "A16", "A17 Pro", "A18", "M1", "M2", "M3", "M4"}
    for fact in _facts({"systems": known["systems"], "chips": known["chips"]}):
        assert fact["value"] == "unknown" or fact.get("source") in known["sources"], fact
    for report in known["reports"]:
        assert report["source"] == "unknown" or report["source"] in known["sources"], report


def test_a_compile_says_what_may_fall_back_and_why(tmp_path: Path) -> None:
    module = scaled("tiny_moe")
    made = emitted(module, WeightStore.random(module, 1), tmp_path, compute="ane", state="stateful", verify="none",
                   device="A17 Pro")
    told = "\n".join(made.remarks)
    assert "programs with states have been refused by the neural engine and run elsewhere" in told
    assert "caches are padded to multiples of 32: kv.0.latent f16[B, 83, 40] to f16[B, 96, 64]" in told
    assert "issues/2631" in told
    assert "it does not load on iOS 17" in told
    assert "A17 Pro: int8 products on its neural engine: yes" in told
