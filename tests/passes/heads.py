"""A small decoder whose head lies in few directions, and what a pass needs to find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omnic.ir.graph import Module
from omnic.ir.reference import ReferenceExecutor
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.passes.base import PassContext
from omnic.passes.context import Calibration
from omnic.spec import parse_spec

SPEC = """
omnic: 1
model: small
vocab: {{size: 600}}
context: 64
chunk: 32
tie: {tie}
blocks:
  - repeat: 1
    width: 64
    attention: {{kind: gqa, heads: 2, kv_heads: 1, head_dim: 32, rope: {{base: 10000}}}}
    ffn: {{kind: dense, hidden: 64, activation: swiglu}}
"""
TOKENS = np.random.default_rng(0).integers(0, 600, (4, 32))


def small(tie: bool = True) -> Module:
    return build(parse_spec(SPEC.format(tie=str(tie).lower()), "small.yaml"))


def low(module: Module) -> dict[str, np.ndarray]:
    """Weights whose head lies in 24 of its 64 directions, so that a shortlist pays."""
    store = WeightStore.random(module, 3)
    arrays = {name: store.array(name) for name in module.weights}
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(64, 24)))[0].T
    arrays["embed"] = (0.3 * rng.normal(size=(600, 24)) @ basis).astype(np.float32)
    return arrays


def context(module: Module, folder: Path, arrays: dict[str, np.ndarray] | None = None) -> PassContext:
    results = ResultStore(folder)
    store = WeightStore.of(module, low(module) if arrays is None else arrays, results=results)
    return PassContext(weights=store, weights_key="drawn", executor=ReferenceExecutor, results=results,
                       calibration=lambda: Calibration(TOKENS, "drawn"))
