"""Experts with a slope, an offset and a limit of the gate: one kernel, the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omnic.ir.reference import Interpreter
from omnic.ir.text import parse_module, print_module
from omnic.ir.weights import WeightStore
from omnic.spec import parse_spec
from tests.targets.tvm.helpers import emitted, session_of, small_module

SPEC = """
omnic: 1
model: clamped
vocab: {size: 96}
context: 64
chunk: 32
tie: true
blocks:
  - repeat: 1
    width: 32
    attention: {kind: gqa, heads: 2, kv_heads: 1, head_dim: 16}
    ffn: {kind: moe, hidden: 32, activation: swiglu, experts: 4, top_k: 2}
"""


def test_clamped_experts_are_one_kernel_and_the_reference(tmp_path: Path) -> None:
    text = print_module(small_module(parse_spec(SPEC, "clamped.yaml")))
    plain = '.experts.gate) {kind = "silu"}'
    assert plain in text
    extras = '{kind = "silu", alpha = 1.702, beta = 1.0, limit = 0.02}'
    module = parse_module(text.replace(plain, f".experts.gate) {extras}"))
    emitted(module, tmp_path / "out")
    program = (tmp_path / "out" / "program.c").read_text()
    assert "K->moe(" in program
    assert "1.702" in program
    ids = np.random.default_rng(5).integers(0, 96, 24)
    steps = np.arange(24)[None]
    inputs = {"tokens": ids[None], "positions": steps, "start": np.zeros(1, np.int64), "length": np.full(1, 24),
              "rows": steps}
    wanted = np.asarray(Interpreter(module, WeightStore.random(module, 3)).run(inputs)["logits"][0])
    session = session_of(tmp_path / "out")
    session.reset(1)
    found = np.array(session.forward(ids[None]).logits[0])
    assert np.abs(found - wanted).max() <= 2e-5 * np.sqrt((wanted**2).mean())
