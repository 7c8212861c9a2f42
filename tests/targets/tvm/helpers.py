"""Small modules emitted for the target tvm, and sessions over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnic.ir.graph import Module
from omnic.ir.text import print_module
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import Spec, load_spec, parse_spec
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.tvm.program import Program
from omnic.targets.tvm.session import NativeSession
from omnic.targets.tvm.target import TARGET

SPEC = """
omnic: 1
model: small
vocab: {size: 96}
context: 64
chunk: 32
dtype: bf16
tie: true
blocks:
  - repeat: 2
    width: 64
    attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 16, rope: {base: 10000}}
    ffn: {kind: dense, hidden: 96, activation: swiglu}
"""


def small_spec() -> Spec:
    """A decoder of 2 layers with kernels for all that it does."""
    return parse_spec(SPEC, "small.yaml")


def small_module(spec: Spec | str | None = None) -> Module:
    """The module of a spec or a preset; the small one by default."""
    return build(load_spec(spec) if isinstance(spec, str) else spec or small_spec())


def emitted(module: Module, out: Path, seed: int = 3, weights: WeightStore | None = None, **options: Any) -> Emitted:
    """Emit into a new folder; the module is written beside the program, as a bundle has it."""
    out.mkdir(parents=True, exist_ok=True)
    store = weights or WeightStore.random(module, seed)
    made = TARGET.emit(EmitRequest(module, store, out, TARGET.options(options), lambda what, share: None))
    (out / "module.ir").write_text(print_module(made.module), encoding="utf-8")
    return made


def session_of(out: Path, threads: int = 1) -> NativeSession:
    """Open what :func:`emitted` wrote."""
    return NativeSession(Program(out, threads))
