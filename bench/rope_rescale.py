"""What a longer context keeps: the shipped tiny beyond the 256 tokens of the windows it was trained on.

Each token is scored twice: with all the text before it in a long context, and with at most 256 tokens of it, as in
training.  The ratio of the two says whether the long context helps (below 1) or breaks the model (far above 1),
whatever the text at that place is like.

python bench/rope_rescale.py [--factor 4] [--windows 8]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from common import record, row, show

from omnic.compiler.executor import TorchExecutor, torch_executor
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.passes.base import run_pass
from omnic.passes.rope_rescale import RopeRescale
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import load_spec, with_values
from omnic.training.heldout import heldout

MODEL, TRAINED, STRIDE = "tiny", 256, 128
#: bits per byte in any range of the long context over those of the trained length: what "stable" means here
BAR = 1.05


def spent(executor: TorchExecutor, tokens: np.ndarray) -> np.ndarray:
    """Return the bits of every token of windows [N, T]; the first of each window is not predicted and is 0."""
    found = np.zeros(tokens.shape)
    for index, window in enumerate(tokens):
        logits = np.asarray(executor.forward(window[None]).logits[0, :-1], np.float64)
        logits -= logits.max(-1, keepdims=True)
        wanted = logits[np.arange(len(window) - 1), window[1:]] - np.log(np.exp(logits).sum(-1))
        found[index, 1:] = -wanted / np.log(2)
    return found


def sliding(executor: TorchExecutor, tokens: np.ndarray) -> np.ndarray:
    """Return the bits of every token of windows [N, T] with at most the trained length before it."""
    found = np.zeros(tokens.shape)
    for start in range(0, tokens.shape[1] - TRAINED + 1, STRIDE):
        part = spent(executor, tokens[:, start : start + TRAINED])
        fresh = 0 if start == 0 else TRAINED - STRIDE
        found[:, start + fresh : start + TRAINED] = part[:, fresh:]
    return found


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--factor", type=int, default=4, help="times the trained length")
    parser.add_argument("--windows", type=int, default=8, help="windows of the longer context")
    args = parser.parse_args()
    spec, context = load_spec(MODEL), TRAINED * args.factor
    weights, tokenizer = spec.resolve("weights"), spec.resolve("tokenizer")
    assert weights is not None and tokenizer is not None
    reader = Tokenizer.load(tokenizer)
    ids = np.asarray(reader.encode(heldout().text))
    starts = np.linspace(0, len(ids) - context, args.windows).astype(int)
    tokens = ids[starts[:, None] + np.arange(context)]
    front = build(with_values(spec, {"context": context}, "bench"))
    store = WeightStore.load(front, weights)
    modules = {"none": front}
    for kind in ("linear", "ntk", "yarn"):
        longer = RopeRescale(context, kind, original=TRAINED)
        modules[kind] = run_pass(front, longer).module
    short = sliding(torch_executor(front, store), tokens)
    ranges = [slice(max(1, p * TRAINED), (p + 1) * TRAINED) for p in range(args.factor)]
    rows: list[dict[str, Any]] = []
    for kind, module in modules.items():
        long = spent(torch_executor(module, store.with_module(module)), tokens)
        ratios = [float(long[:, r].sum() / short[:, r].sum()) for r in ranges]
        barred = kind == "yarn"
        rows.append(
            row(
                f"{kind}: bits in the long context / at the trained length, by range of {TRAINED} positions",
                ", ".join(f"{ratio:.3f}" for ratio in ratios),
                f"<= {BAR} everywhere" if barred else "",
                max(ratios) <= BAR if barred else None,
                ratios=ratios,
            )
        )
    conditions = {
        "model": f"{MODEL}, trained in windows of {TRAINED} tokens",
        "text": f"{args.windows} windows of {context} held-out tokens",
        "program": "torch executor, f32",
    }
    show(record("rope_rescale", conditions, rows))
    return 0 if all(r["met"] is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
