"""What a program says it runs for a token."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omnic.api import compile as compile_model
from omnic.spec import parse_spec
from omnic.targets.tvm.target import TARGET

SPEC = """omnic: 1
model: small
vocab: {size: 64}
context: 64
blocks:
  - repeat: 2
    width: 64
    attention: {kind: gqa, heads: 2, kv_heads: 1, head_dim: 32}
    ffn: {kind: dense, hidden: 64, activation: swiglu}
"""


def test_kernels_of_a_token_are_counted_with_their_level(tmp_path: Path) -> None:
    bundle = compile_model(parse_spec(SPEC, "small.yaml"), "tvm", tmp_path / "small", seed=1, parity="off",
                           options={"level": "generic"})
    found = {(r.op, r.provider): r.count for r in TARGET.ran(bundle, np.arange(3, 8), 4, 1)}
    assert found["attention", "generic"] == 2 and found["cache_write", "generic"] == 4
    assert found["embed", "generic"] == 1 and found["rms_norm", "generic"] == 5
    assert not any(op in ("MARK", "if", "for") for op, _ in found)
