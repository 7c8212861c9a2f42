"""What the engine costs over the bare session, per token, on a 125M-class model (and on ``tiny``, in microseconds).

python bench/engine.py [--target onnx] [--threads 1] [--rounds 21]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import interleaved, ratio, record, row, show

from omnic.api import compile as compile_model
from omnic.api import load
from omnic.runtime.model import Model
from omnic.spec import parse_spec

SPEC = """omnic: 1
model: class_125m
vocab: {size: 32000}
context: 1024
blocks:
  - repeat: 12
    width: 768
    attention: {kind: gqa, heads: 12, kv_heads: 4, head_dim: 64}
    ffn: {kind: dense, hidden: 2048, activation: swiglu}
"""
PROMPT, NEW = 64, 24
GREEDY_BAR, SAMPLED_BAR = 1.05, 1.10


def bare(model: Model, prompt: list[int], new: int) -> Callable[[], float]:
    """Return a run of prefill and ``new`` decode calls with argmax only; it returns seconds a decoded token."""

    def run() -> float:
        session = model.session
        session.reset(1)
        logits = session.forward(np.asarray([prompt]), rows=np.array([[len(prompt) - 1]])).logits
        token = int(np.asarray(logits)[0, 0].argmax())
        began = time.perf_counter()
        for _ in range(new):
            logits = session.forward(np.array([[token]])).logits
            token = int(np.asarray(logits)[0, 0].argmax())
        return (time.perf_counter() - began) / new

    return run


def engine(model: Model, prompt: list[int], new: int, **options: object) -> Callable[[], float]:
    """Return a run of the engine over the same tokens; it returns seconds a decoded token."""

    def run() -> float:
        answer = model.generate(prompt, max_new=new + 1, end_ids=[], **options)
        assert not isinstance(answer, list)
        return answer.stats.decode_s / new

    return run


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="onnx")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    folder = Path("build/bench")
    spec = parse_spec(SPEC, "class_125m.yaml")
    large = load(
        compile_model(spec, args.target, folder / f"class_125m-{args.target}", seed=1, parity="off"),
        threads=args.threads,
    )
    small = load(compile_model("tiny", args.target, folder / f"tiny-{args.target}"), threads=args.threads)
    rows = []
    for name, model in (("125M class", large), ("tiny", small)):
        prompt = np.random.default_rng(0).integers(0, model.session.info.vocab, PROMPT).tolist()
        times = interleaved(
            {
                "bare": bare(model, prompt, NEW),
                "greedy": engine(model, prompt, NEW, greedy=True),
                "top-p": engine(model, prompt, NEW, temperature=0.8, top_p=0.9),
            },
            args.rounds,
        )
        for mode, bar in (("greedy", GREEDY_BAR), ("top-p", SAMPLED_BAR)):
            found = ratio(times[mode], times["bare"])
            extra = 1e6 * (np.median(times[mode]) - np.median(times["bare"]))
            large_model = name != "tiny"
            rows.append(
                row(
                    f"{name}, {mode}: engine / bare session",
                    f"{found} ({extra:+.0f} us a token over {1e3 * np.median(times['bare']):.2f} ms)",
                    f"<= {bar}x" if large_model else "",
                    found.stays_under(bar) if large_model else None,
                    ratio=found,
                )
            )
    entry = record(
        "engine", {"target": args.target, "threads": args.threads, "context": PROMPT, "new tokens": NEW}, rows
    )
    show(entry)
    return 0 if all(r["met"] is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
