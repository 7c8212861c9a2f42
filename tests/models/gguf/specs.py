"""A small random model of each architecture of llama.cpp that omnic writes, with awkward dims, the same in every run.

    python -m tests.models.gguf.specs      # what llama.cpp generates with them, into data/llama_cpp.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from omnic.ir.graph import Module
from omnic.ir.reference import ReferenceSession
from omnic.ir.weights import WeightStore
from omnic.ir.weights.sources import normal_rows
from omnic.models import build
from omnic.models.gguf.exporter import KEEP, Written, write_gguf
from omnic.models.gguf.publish import publish_gguf
from omnic.spec import Spec, parse_spec

VOCAB, CONTEXT, PROMPT, STEPS = 99, 160, 9, 64
GREEDY = Path(__file__).parent / "data" / "llama_cpp.json"
NONE = {"tokenizer.ggml.model": "none"}


def spec_of(
    attention: dict[str, Any] | None = None, ffn: dict[str, Any] | None = None, width: int = 64, **top: Any
) -> Spec:
    block = {
        "repeat": 2,
        "width": width,
        "attention": {"kind": "gqa", "heads": 6, "kv_heads": 2, "head_dim": 32, **(attention or {})},
        "ffn": ffn or {"kind": "dense", "hidden": 96},
    }
    data = {"model": "small", "vocab": {"size": VOCAB}, "context": CONTEXT, "init": {"std": 0.3}, **top}
    return parse_spec(json.dumps(data | {"blocks": [block]}), "small.yaml", syntax="yaml")


def rope(**scaling: Any) -> dict[str, Any]:
    return {"rope": {"base": 500000, "scaling": scaling}}


MIXTURE = {"kind": "moe", "hidden": 96, "experts": 5, "top_k": 2}
SHARED = {"shared": 1, "shared_hidden": 64, "shared_gate": True, "renormalise": False}
SQUARE = {"bias": "qkv", "heads": 4, "head_dim": 16}
#: name -> (the architecture it is written in, the spec)
SPECS: dict[str, tuple[str, Spec]] = {
    "llama": ("llama", spec_of()),
    "tied": ("llama", spec_of(tie=True, norm={"eps": 1e-5})),
    "llama3": ("llama", spec_of(rope(kind="llama3", factor=8, original_context=16), tie=True)),
    "linear": ("llama", spec_of(rope(kind="linear", factor=4))),
    "yarn": ("llama", spec_of(rope(kind="yarn", factor=4, original_context=32))),
    "yarn hot": ("llama", spec_of(rope(kind="yarn", factor=8, original_context=16, attention_factor=1.1))),
    "yarn slow": ("llama", spec_of(rope(kind="yarn", factor=8, original_context=16, beta_slow=2, truncate=False))),
    "longrope": ("llama", spec_of(rope(kind="longrope", factor=5, original_context=32, factors=[1.0 + i / 4 for i in
                                                                                              range(16)]))),
    "ntk": ("llama", spec_of(rope(kind="ntk", factor=4))),
    "pairs": ("llama", spec_of({"rope": {"interleaved": True}})),
    "biases": ("llama", spec_of({"bias": True})),
    "wide qkv": ("llama", spec_of({"bias": "qkv"})),
    "mixtral": ("llama", spec_of(ffn=MIXTURE)),
    "qwen2": ("qwen2", spec_of(SQUARE)),
    "qwen2moe": ("qwen2moe", spec_of(SQUARE, MIXTURE | SHARED)),
    "qwen3": ("qwen3", spec_of({"qk_norm": True})),
    "qwen3moe": ("qwen3moe", spec_of({"qk_norm": True}, MIXTURE)),
}


def model_of(spec: Spec, seed: int = 5) -> tuple[Module, WeightStore]:
    """Return a spec's module and random weights; those of norms and biases are random too."""
    module = build(spec)
    random = WeightStore.random(module, seed)
    arrays = {name: random.array(name) for name in module.weights}
    for name, array in arrays.items():
        if array.ndim == 1:
            arrays[name] = array + normal_rows(seed, f"{name} beside", array.shape, 0.2, (0, len(array)))
    return module, WeightStore.of(module, arrays)


def write(path: Path, spec: Spec, store: WeightStore, type: str = KEEP, **extra: Any) -> Written:
    with path.open("wb") as file:
        return write_gguf(file, publish_gguf(spec), store, NONE | extra, type)


def logits_of(store: WeightStore, ids: list[int], dtype: Any = np.float64) -> np.ndarray:
    """Return the reference's logits after each id."""
    session = ReferenceSession(store.module, store, dtype)
    count = len(ids)
    return session.forward(np.asarray([ids]), np.asarray([count]), np.arange(count)[None]).logits[0]


def prompt() -> list[int]:
    return [int(i) for i in np.random.default_rng(7).integers(0, VOCAB, PROMPT)]


class LlamaCpp:
    """llama.cpp through its Python binding: one thread, states in f32."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(str(path), n_ctx=CONTEXT, logits_all=True, verbose=False, n_threads=1, type_k=0,
                                     type_v=0)

    def logits(self, ids: list[int]) -> np.ndarray:
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.scores[: len(ids)])

    def greedy(self, ids: list[int], steps: int = STEPS) -> list[int]:
        self.model.reset()
        self.model.eval(ids)
        found: list[int] = []
        for _ in range(steps):
            found.append(int(np.argmax(self.model.scores[self.model.n_tokens - 1])))
            self.model.eval(found[-1:])
        return found


def main() -> None:
    found: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, spec) in SPECS.items():
            path = Path(folder) / "model.gguf"
            write(path, spec, model_of(spec)[1])
            found[name] = LlamaCpp(path).greedy(prompt())
    GREEDY.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(ids)}" for name, ids in found.items())
    GREEDY.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
