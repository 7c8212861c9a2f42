"""Run an exported decoder in onnxruntime and its import in the reference, call by call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from omnic.ir.dims import evaluate
from omnic.ir.graph import Module
from omnic.ir.reference import Interpreter, ReferenceSession
from omnic.ir.weights import WeightStore

CALLS = (7, 1, 1, 5)


def calls_of(module: Module, batch: int, lengths: tuple[int, ...] = CALLS, seed: int = 0) -> list[Any]:
    """Return random tokens i64[batch, n] for each call: a prefill, two decoded tokens, and a later chunk."""
    vocab = int(str(module.function().results[0].value.type.shape[-1]))
    draw = np.random.default_rng(seed)
    return [draw.integers(0, vocab, (batch, n)) for n in lengths]


def original(path: Path, module: Module, calls: list[Any]) -> list[Any]:
    """Return the logits of each call as onnxruntime computes them, presents fed back as pasts."""
    import onnxruntime as ort

    session = ort.InferenceSession(_growing(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    kept: dict[str, Any] = {}
    done, out = 0, []
    for tokens in calls:
        batch, count = tokens.shape
        feeds: dict[str, Any] = {}
        for value in session.get_inputs():
            name = value.name
            if name in ("input_ids", "tokens", "idx"):
                feeds[name] = tokens
            elif "mask" in name:
                feeds[name] = np.ones((batch, done + count), np.int64)
            elif name.startswith("position"):
                feeds[name] = np.arange(done, done + count)[None].repeat(batch, 0)
            else:
                feeds[name] = kept.get(name, empty_past(value, module, batch))
        results = dict(zip(names, session.run(None, feeds), strict=True))
        out.append(results["logits"])
        presents = [results[n] for n in names if n != "logits"]
        pasts = [v.name for v in session.get_inputs() if v.name.startswith("past")]
        by_name = {n.replace("present", "past"): a for n, a in results.items()}
        for name, array in zip(pasts, presents, strict=True):
            kept[name] = by_name.get(name.replace("past_key_values", "past"), array)
        done += count
    return out


def _growing(path: Path) -> bytes:
    """Return the model with caches that grow: a windowed cache of the builder wants a buffer kept by its engine."""
    import onnx

    model = onnx.load(str(path))
    for node in model.graph.node:
        kept = [a for a in node.attribute if a.name != "sliding_window_cache"]
        del node.attribute[:]
        node.attribute.extend(kept)
    return model.SerializeToString()


def empty_past(value: Any, module: Module, batch: int) -> Any:
    """Return a past of no tokens, its fixed dims read off the input or, where it leaves them open, the states."""
    widths = [s.type.shape[-1] for s in module.states.values()]
    shape = [d if isinstance(d, int) else 0 for d in value.shape]
    shape[0] = batch
    if not isinstance(value.shape[-1], int):
        shape[-1] = evaluate(widths[0], {})
    return np.zeros(shape, np.float32)


def imported(module: Module, weights: WeightStore, calls: list[Any]) -> list[Any]:
    """Return the logits of each call in the reference (f64)."""
    if module.states:
        session = ReferenceSession(module, weights, batch=len(calls[0]))
        return [session.forward(tokens).logits for tokens in calls]
    interpreter = Interpreter(module, weights)
    out = []
    for tokens in calls:
        steps = np.arange(tokens.shape[1])[None].repeat(len(tokens), 0)
        every = {"tokens": tokens, "rows": steps, "positions": steps}
        takes = {p.value.name for p in module.function().params}
        out.append(interpreter.run({k: v for k, v in every.items() if k in takes})["logits"])
    return out


def error(ours: Any, theirs: Any) -> float:
    """Return the largest difference over the rms of the logits."""
    return float(np.abs(ours - theirs).max() / np.sqrt(np.mean(np.square(theirs))))
