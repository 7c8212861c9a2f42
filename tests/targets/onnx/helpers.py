"""Programs of small modules, made and run in memory or in a folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as onnx
import onnxruntime as ort

from omnic.ir.graph import Module, Recipe
from omnic.ir.rewrite import retype_weights
from omnic.ir.types import TensorType, parse_element
from omnic.ir.weights import WeightStore, pinned
from omnic.models import build
from omnic.runtime.session import SessionOptions
from omnic.spec import parse_spec
from omnic.targets.base import EmitRequest, Emitted
from omnic.targets.onnx.emit import write_function
from omnic.targets.onnx.session import OnnxSession, Programs
from omnic.targets.onnx.target import TARGET
from omnic.targets.onnx.tensors import DATA_FILE, TensorTable

GQA = "{kind: gqa, heads: 6, kv_heads: 2, head_dim: 16, rope: {base: 10000}}"
MLA = "{kind: mla, heads: 3, latent: 20, nope_dim: 12, rope_dim: 8, v_dim: 10, rope: {base: 10000}, window: 9}"
DENSE = "{kind: dense, hidden: 48, activation: swiglu}"


def spec_text(attention: str = GQA, ffn: str = DENSE, extra: str = "", repeat: int = 2) -> str:
    """Return a spec of awkward small dims: capacity 64, chunks of 16."""
    return (
        f"omnic: 1\nmodel: small\nvocab: {{size: 96}}\ncontext: 64\nchunk: 16\n{extra}"
        f"blocks:\n  - repeat: {repeat}\n    width: 32\n    attention: {attention}\n    ffn: {ffn}\n"
    )


def model(text: str, spread: float = 8.0) -> tuple[Module, WeightStore]:
    """Return a module and weights large enough that every part of it matters; vectors are moved off 0 and 1."""
    module = build(parse_spec(text, "small.yaml"))
    store = WeightStore.random(module, 1)
    random = np.random.default_rng(5)
    arrays = {}
    for name, weight in module.weights.items():
        numbers = store.array(name)
        moved = 0.3 * random.standard_normal(numbers.shape) if numbers.ndim == 1 else (spread - 1) * numbers
        numbers = numbers + moved
        arrays[name] = numbers.astype(weight.type.element.numpy).astype(np.float32)  # type: ignore[union-attr]
    return module, WeightStore.of(module, arrays)


def emitted(module: Module, weights: WeightStore, out: Path, profile: str, **options: Any) -> Emitted:
    """Emit into a new folder."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = TARGET.options({"profile": profile, **options})
    return TARGET.emit(EmitRequest(module, weights, out, chosen, lambda what, share: None))


def stored(module: Module, weights: WeightStore, type: str, latent: str = "i8<head>") -> tuple[Module, WeightStore]:
    """Return the module with its matrices rounded to a storage type (those of latent attention to ``latent``)."""
    changes: dict[str, tuple[TensorType, Recipe]] = {}
    for name, weight in module.weights.items():
        if weight.type.rank < 2 or name.endswith("router"):
            continue
        kind = parse_element(latent if name.endswith((".w_k", ".w_v")) else type)
        changes[name] = weight.type.with_element(kind), Recipe("quantise", {"type": kind}, (pinned(weight),))
    rounded = retype_weights(module, changes)
    return rounded, weights.with_module(rounded)


def session_of(module: Module, out: Path) -> OnnxSession:
    """Open what :func:`emitted` wrote."""
    return OnnxSession(Programs(out, module, SessionOptions(threads=1)))


def run_function(module: Module, inputs: dict[str, Any], profile: str) -> dict[str, Any]:
    """Lower @forward of a module without weights and run it once in ONNX Runtime."""
    tensors = TensorTable()
    program = write_function(module, module.function(), tensors, profile)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        tensors.write(path / DATA_FILE, WeightStore(module, seed=0), lambda what, share: None)
        onnx.save(program.model, path / "forward.onnx")
        session = ort.InferenceSession(str(path / "forward.onnx"), options)
        kinds = {
            "tensor(float)": np.float32,
            "tensor(int64)": np.int64,
            "tensor(bool)": np.bool_,
            "tensor(int32)": np.int32,
            "tensor(int8)": np.int8,
            "tensor(uint8)": np.uint8,
        }
        feeds = {i.name: np.asarray(inputs[i.name], kinds[i.type]) for i in session.get_inputs()}
        found = session.run(None, feeds)
    return {r.name: np.asarray(array) for r, array in zip(module.function().results, found, strict=True)}
