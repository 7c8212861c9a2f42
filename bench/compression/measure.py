"""Measuring rows: the changed model of each, its bytes, and its score (kept by content)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.compression.bars import Measured
from bench.compression.candidates import Candidate, body, in_llama_cpp, through_passes, trained
from bench.compression.kept import kept_score, key_of, recall, remember
from bench.compression.rows import Row
from bench.compression.scoring import FOLDER, Logits, Score, Subject, reference_logits, torch_logits
from omnic.compiler.lowering import pass_context
from omnic.ir.dims import evaluate
from omnic.ir.graph import Module
from omnic.passes.base import PassContext

__all__ = ["Bench", "state_bytes_per_token"]


class Bench:
    """Measures rows on one model.

    Args:
        subject: the model.
        ggml: llama.cpp's library; the one of llama-cpp-python when None.
        reference: evaluate weights with the reference too, not with torch.
    """

    def __init__(self, subject: Subject, ggml: Path | None = None, reference: bool = False) -> None:
        self.subject, self.ggml, self.reference = subject, ggml, reference
        self.context: PassContext = pass_context(
            subject.spec, subject.store, subject.sha256, subject.tokenizer, subject.results
        )
        self._bases: dict[str, Logits] = {}

    def candidate(self, row: Row, short: bool = False) -> Candidate:
        """Return the changed model of a row; ``short`` has states of a window's tokens."""
        front, store = self.subject.front, self.subject.store
        if short:
            front = self.subject.short
        if row.form:
            forms = {**dict.fromkeys(body(front), row.form), "embed": row.embedding}
            return in_llama_cpp(front, store, forms, FOLDER, self.ggml)
        if row.train:
            return trained(
                front, self.subject.spec, self.subject.path, row.passes, self.context, row.train, FOLDER
            )  # fmt: skip
        return through_passes(front, store, row.passes, self.context)

    def score(self, candidate: Candidate, evaluator: str, sample: int | None = None) -> Score:
        """Return the score of a changed model by ``torch`` or by the ``reference``."""
        make: Callable[..., Logits] = torch_logits if evaluator == "torch" else reference_logits
        if evaluator not in self._bases:
            front = self.subject.front if evaluator == "torch" else self.subject.short
            self._bases[evaluator] = make(front, self.subject.store)
        return self.subject.score(self._bases[evaluator], make(candidate.module, candidate), evaluator, sample)

    def measure(self, row: Row) -> tuple[Measured, bool, float]:
        """Return a row's figures, whether they were kept, and the processor seconds this took."""
        began = time.process_time()
        candidate = self.candidate(row)
        # States exist in the reference only; weights cost a third of the time in torch.
        evaluator = "torch" if row.weights and not self.reference else "reference"
        run = candidate if row.weights else self.candidate(row, short=True)
        key = key_of(self.subject, run, evaluator)
        score, kept = kept_score(key, lambda: self.score(run, evaluator))
        per_token = state_bytes_per_token(candidate.module, self.subject.spec.capacity)
        size, bits = candidate.weight_bytes, candidate.bits_per_weight
        remember(self.subject, row.name, key, weight_bytes=size, bits=bits, kv_bytes=per_token)
        return Measured(row, size, bits, per_token, score), kept, time.process_time() - began

    def last(self, row: Row) -> Measured | None:
        """Return what was last measured of a row on this checkpoint, or None."""
        found = recall(self.subject, row.name)
        if found is None:
            return None
        score, figures = found
        return Measured(row, int(figures["weight_bytes"]), figures["bits"], figures["kv_bytes"], score)

    def check(self, rows: Iterable[Row], windows: int = 16) -> list[tuple[str, float, float]]:
        """Return the KL of rows by torch and by the reference on the same windows."""
        found: list[tuple[str, float, float]] = []
        for row in rows:
            candidate = self.candidate(row)
            both = [self.score(candidate, by, windows).mean_kl for by in ("torch", "reference")]
            found.append((row.name, both[0], both[1]))
        return found


def state_bytes_per_token(module: Module, capacity: int) -> float:
    """Return the bytes of the states of ``forward`` for one row, over the tokens they hold."""
    dims = {name: r.high for name, r in module.dims.items()} | {"B": 1}
    names = {p.state for p in module.function("forward").params if p.state}
    types = [module.states[name].type for name in names]
    total = sum(t.with_shape(*(evaluate(d, dims) for d in t.shape)).bytes() for t in types)
    longest = max((evaluate(module.states[n].type.shape[-2], dims) for n in names), default=capacity)
    return total / longest
