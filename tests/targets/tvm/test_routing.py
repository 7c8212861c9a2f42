"""The choice of experts on several threads: the bits of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.spec import parse_spec
from omnic.targets.tvm.session import NativeSession
from tests.targets.tvm.helpers import emitted, session_of, small_module

SPEC = """
omnic: 1
model: routed
vocab: {{size: 96}}
context: 128
chunk: 128
tie: true
blocks:
  - repeat: 1
    width: 32
    attention: {{kind: gqa, heads: 2, kv_heads: 1, head_dim: 16}}
    ffn: {{kind: moe, hidden: 32, activation: silu, experts: 64, top_k: 3, groups: [16, 16, 32], top_groups: 2, {how}}}
"""
HOWS = {
    "sigmoids": "score: sigmoid, select_bias: true, gate_scale: 2.5",
    "a gate of groups": "group_gate: true, renormalise: false",
}


def rows(session: NativeSession, ids: np.ndarray) -> np.ndarray:
    session.reset(1)
    return np.array(session.forward(ids[None]).logits[0])


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_rows_that_threads_share_have_the_same_bits(tmp_path: Path, how: str) -> None:
    module = small_module(parse_spec(SPEC.format(how=how), "routed.yaml"))
    emitted(module, tmp_path / "out")
    assert "omnic_route(" in (tmp_path / "out" / "program.c").read_text()
    ids = np.random.default_rng(2).integers(0, 96, 128)  # 128 rows of 64 logits are worth threads; 40 are not
    one = session_of(tmp_path / "out")
    want = rows(one, ids)
    for threads in (2, 3):
        assert np.array_equal(rows(session_of(tmp_path / "out", threads), ids), want)
    assert np.array_equal(rows(one, ids[:40]), want[:40])
