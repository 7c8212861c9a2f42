"""Small modules emitted for the target tvm, sessions and executables over them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from omnic.ir.graph import Module
from omnic.ir.text import print_module
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import Spec, load_spec, parse_spec
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.tvm.program import Program
from omnic.targets.tvm.session import NativeSession
from omnic.targets.tvm.target import TARGET

PROMPT = [5, 17, 80, 3, 41]
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


def greedy(out: Path, count: int) -> list[int]:
    """The most likely tokens of a session."""
    session = NativeSession(Program(out))
    logits = session.forward(np.array([PROMPT])).logits[0, -1]
    found: list[int] = []
    while len(found) < count:
        found.append(int(np.argmax(logits)))
        logits = session.forward(np.array([[found[-1]]])).logits[0, -1]
    return found


def said(*words: object) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def ids_of(output: str) -> list[int]:
    """The tokens that an executable printed."""
    first = output.splitlines()[0].split()
    assert first[0] == "ids"
    return [int(word) for word in first[1:]]
