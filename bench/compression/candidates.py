"""Changed models: what a row of the table compares with the f32 model, and the bytes it takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.compression.llama_cpp import through_gguf
from omnic.ir.graph import Module
from omnic.ir.rewrite import retype_weights
from omnic.ir.types import DType, Storage
from omnic.ir.verify import verify
from omnic.ir.weights import WeightStore
from omnic.passes.base import PassContext, parse_pass, run_passes
from omnic.runtime.files import sha256_file
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec


@dataclass(frozen=True)
class Candidate:
    """A changed model.

    Attributes:
        module: its graph.
        store: the numbers of its weights.
        numbers: numbers that stand for those of the store.
        sizes: bytes that stand for those of the module's types.
    """

    module: Module
    store: WeightStore
    numbers: Mapping[str, NDArray[np.float32]] = field(default_factory=dict[str, NDArray[np.float32]])
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])

    def array(self, name: str) -> NDArray[np.float32]:
        """Return the decoded numbers of a weight."""
        return self.numbers[name] if name in self.numbers else self.store.array(name)

    def bytes(self, name: str) -> int:
        """Return the bytes of a weight in files."""
        return self.sizes[name] if name in self.sizes else self.module.weights[name].type.bytes()

    @property
    def weight_bytes(self) -> int:
        """Bytes of every weight that ``forward`` reads: codes, scales, zero points and what stays as it was."""
        return sum(self.bytes(name) for name in self.module.function("forward").weights())

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a number of the weights that ``forward`` reads."""
        names = self.module.function("forward").weights()
        numbers = sum(int(np.prod([int(str(d)) for d in self.module.weights[n].type.shape])) for n in names)
        return 8 * self.weight_bytes / numbers


def through_passes(front: Module, store: WeightStore, passes: Sequence[str], context: PassContext) -> Candidate:
    """Return the model after the passes, written as on the command line (``NAME{option=value, ...}``)."""
    result = run_passes(front, [parse_pass(text) for text in passes], context)
    verify(result.module)
    return Candidate(result.module, store.with_module(result.module))


def trained(
    front: Module, spec: Spec, weights: Path, passes: Sequence[str], context: PassContext, seconds: float, folder: Path
) -> Candidate:
    """Return the model after training in the types that ``passes`` give its weights; kept in ``folder``."""
    from omnic.training.corpus import load_corpus
    from omnic.training.data import tokenize
    from omnic.training.qat import QatConfig, train_quantised

    plain = WeightStore.load(front, weights, context.results)
    types = through_passes(front, plain, passes, context).module.weights
    elements = {n: w.type.element for n, w in types.items() if isinstance(w.type.element, Storage)}
    # The training goes on from GPTQ's codes, whose divergence is a fraction of that of rounding.
    first = [text.replace("method=rtn", "method=gptq, sweeps=3") for text in passes]
    config = QatConfig()
    what = {n: str(e) for n, e in elements.items()}
    facts = json.dumps([sha256_file(weights), seconds, first, what, config.to_dict(), _sources()])
    out = folder / f"trained-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.safetensors"
    if not out.is_file():
        tokenizer = spec.resolve("tokenizer")
        assert tokenizer is not None
        folder.mkdir(parents=True, exist_ok=True)
        tokens = tokenize(load_corpus(), Tokenizer.load(tokenizer), folder)
        begun = through_passes(front, plain, first, context)
        start = {n: begun.store.quantised(n) for n in elements if begun.module.weights[n].recipe.kind == "stored"}
        train_quantised(
            spec, elements, tokens, out, weights=weights, start=start, cpu_seconds=seconds, config=config
        )  # fmt: skip
    store = WeightStore.load(front, out, context.results)
    # The file says which weights are codes, and the passes leave those as they are.
    return through_passes(store.module, store, passes, replace(context, weights=store, weights_key=sha256_file(out)))


def _sources() -> str:
    """Return the hash of the code that trains: another loss or another rounding is another model."""
    from omnic.training import coded, qat, student

    digest = hashlib.sha256()
    for part in (coded, student, qat):
        assert part.__file__ is not None
        digest.update(Path(part.__file__).read_bytes())
    return digest.hexdigest()


def in_llama_cpp(
    front: Module, store: WeightStore, forms: Mapping[str, str], folder: Path, ggml: Path | None = None
) -> Candidate:
    """Return the model with the named weights in llama.cpp's formats, through a GGUF file in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    found = through_gguf({n: store.array(n) for n in forms}, forms, folder / f"{front.name}.gguf", ggml)
    # The graph holds the decoded numbers exactly: f32, whatever the front type of the weight.
    f32 = {n: (front.weights[n].type.with_element(DType.F32), front.weights[n].recipe) for n in forms}
    return Candidate(
        retype_weights(front, f32),
        store,
        {n: numbers for n, (numbers, _) in found.items()},
        {n: size for n, (_, size) in found.items()},
    )


def body(module: Module) -> tuple[str, ...]:
    """Return the weights of ``forward`` that are multiplied with activations, routers and the embedding left out.

    Routers are small, and an expert chosen wrongly costs more than they save; the embedding is given its own type.
    """
    names = module.function("forward").weights()
    return tuple(n for n in names if module.weights[n].type.rank > 1 and n != "embed" and not n.endswith("router"))
