"""Fidelity: what the lossy passes cost, measured between two modules under the reference.

The front module and the module after the lossy passes read the same tokens; the figures are the
Kullback-Leibler divergence of the two next-token distributions and bits per token (per byte where the
tokens are text).  A compile without lossy passes runs the same code and must come out at 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.compiler.sample import sample_tokens, whole_model
from omnic.ir.graph import Module
from omnic.ir.reference import Interpreter
from omnic.ir.weights import WeightStore
from omnic.runtime.tokenizer import Tokenizer

__all__ = ["compare_logits", "measure_fidelity"]

TOKENS = 128
TOKENS_LARGE = 8


def measure_fidelity(front: Module, lossy: Module, weights: WeightStore, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the fidelity record of the manifest.

    Args:
        front: the module the spec means.
        lossy: the module after the lossy passes.
        weights: a store that knows the sources of both.
        tokenizer: of the model, or None.

    Returns:
        ``kl`` (nats a token), ``bits`` and ``bits_front`` (a token, or a byte with a tokenizer: ``unit``),
        ``delta_percent`` of the two, ``top1`` (share of equal argmax), ``tokens``, ``text``: of ``@forward``.  Where
        the module has a function for prompts, ``prefill`` holds the same figures of a text that is a prompt, the tokens
        from which on a call is one (``from``), and ``kl_after``: of the second half behind a prompt of the first.
    """
    vocab = _vocab(front)
    count = min(TOKENS if whole_model(front) else TOKENS_LARGE, front.dims["T"].high)
    ids, text = sample_tokens(vocab, count + 1, tokenizer)
    before = _logits(front, weights.with_module(front), ids[:-1])
    store = weights.with_module(lossy)
    after = _logits(lossy, store, ids[:-1])
    unit_bytes = None
    if tokenizer is not None:
        unit_bytes = len(tokenizer.decode([int(i) for i in ids[1:]], special=True).encode())
    record = {**compare_logits(before, after, ids[1:], unit_bytes), "tokens": len(ids) - 1, "text": text}
    if lossy.prefill_from is not None:
        record["prefill"] = _of_prompts(lossy, store, ids, before, unit_bytes)
    return record


def _of_prompts(
    lossy: Module, store: WeightStore, ids: NDArray[np.int64], before: NDArray[np.float64], unit_bytes: int | None
) -> dict[str, Any]:
    """Return what the function for prompts costs, in a prompt and behind one."""
    figures = compare_logits(before, _logits(lossy, store, ids[:-1], ("prefill",)), ids[1:], unit_bytes)
    half = len(before) // 2
    behind = _logits(lossy, store, ids[:-1], ("prefill", "forward"))[half:]
    after = compare_logits(before[half:], behind, ids[1 + half :], None)["kl"]
    return {"from": lossy.prefill_from, **figures, "kl_after": after}


def compare_logits(
    before: NDArray[np.float64], after: NDArray[np.float64], targets: NDArray[np.int64], unit_bytes: int | None
) -> dict[str, Any]:
    """Compare two sets of logits [N, V] that predict ``targets`` [N], whose text has ``unit_bytes`` bytes."""
    p, q = _log_softmax(before), _log_softmax(after)
    steps = np.arange(len(targets))
    bits = [float(-x[steps, targets].sum() / np.log(2) / (unit_bytes or len(targets))) for x in (p, q)]
    return {
        "kl": max(0.0, float((np.exp(p) * (p - q)).sum(-1).mean())),
        "bits_front": bits[0],
        "bits": bits[1],
        "unit": "byte" if unit_bytes else "token",
        "delta_percent": 100 * (bits[1] / bits[0] - 1) if bits[0] else 0.0,
        "top1": float((p.argmax(-1) == q.argmax(-1)).mean()),
    }


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _vocab(module: Module) -> int:
    logits = next(r for r in module.function("forward").results if r.name == "logits")
    size = logits.value.type.shape[-1]
    assert isinstance(size, int)
    return size


def _logits(
    module: Module, weights: WeightStore, ids: NDArray[np.int64], functions: tuple[str, ...] = ("forward",)
) -> NDArray[np.float64]:
    """Logits [T, V] of one row from empty states, in as many calls of equal length as there are functions.

    Weights are decoded once, layer by layer.
    """
    interpreter = Interpreter(module, weights, np.float64 if whole_model(module) else np.float32, cache_bytes=0)
    ends = [len(ids) * (n + 1) // len(functions) for n in range(len(functions))]
    states: dict[str, Any] = {}
    found: list[NDArray[Any]] = []
    for name, start, end in zip(functions, (0, *ends), ends, strict=False):
        steps = np.arange(end - start)[None]
        inputs = {
            "tokens": ids[None, start:end],
            "positions": start + steps,
            "start": np.full(1, start),
            "length": np.full(1, end - start),
            "rows": steps,
        }
        results = interpreter.run(inputs, name, states or None)
        states = {p.state: results[p.state] for p in module.function(name).params if p.state}
        found.append(np.asarray(results["logits"][0], np.float64))
    return np.concatenate(found)
