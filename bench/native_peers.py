"""The native target against the engines people would use: the 125M class in int4, prompts and decoding.

``omnic bench`` does the measuring: every engine in a process of its own, in turns, the same numbers in all of them, 4
bits in groups of 32, distinct in every layer.  Ours has 4-bit steps times one f32 a row for scales (``s4``),
onnxruntime-genai f32 scales, llama.cpp (Q4_0) f16 scales.  transformers has the same model in bf16.

    python bench/native_peers.py [--threads 1] [--rounds 21] [--peers onnxruntime-genai,llama.cpp] [--json]

Needs ``pip install omnic[bench]`` and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import record, row, show

from omnic.api import compile as compile_model
from omnic.bench.measure import Measurement, Plan, measure
from omnic.bench.peers import PeerRequest, peer_names, precision_of, prepared
from omnic.bench.runners import bundle_contestant
from omnic.bench.traffic import Traffic
from omnic.runtime.bundle import Bundle
from omnic.runtime.machine import machine
from omnic.spec import parse_spec

SPEC = """omnic: 1
model: class_125m_native
vocab: {size: 32000}
context: 4096
blocks:
  - repeat: 12
    width: 768
    attention: {kind: gqa, heads: 12, kv_heads: 4, head_dim: 64}
    ffn: {kind: dense, hidden: 2048, activation: swiglu}
passes:
  - int4-packing: {group: 32, scale: s4, embedding: 'i4<g32>', head: 'i4<g32, s4>'}
"""
SEED, PROMPTS, CONTEXTS, NEW = 1, (128, 512), (128, 2048), 16
#: least speed over the best peer in int4: of decoding, of prompts without AMX and with it; and over torch in bf16
DECODE, PREFILL, PREFILL_AMX, TORCH = 1.3, 1.5, 3.0, 1.0
#: the peer in bf16, and its rounds
BF16, FEW = "transformers", 5
FOLDER = Path("build/bench")


def level_of(bundle: Bundle) -> str:
    """Return the level of the kernels that a session of the bundle runs."""
    from omnic.targets.tvm.program import Program

    return Program(bundle.path).level.name.lower()


def prefill_bar(level: str) -> float:
    """Return the bar of prompts for a level."""
    return PREFILL_AMX if level == "amx" else PREFILL


def measured(threads: int, rounds: int, wanted: Sequence[str]) -> tuple[Measurement, Measurement, str]:
    """Compile, build the peers, measure; return the measurement beside engines in int4, the one of prompts beside torch
    in bf16 (few rounds: it is slow without units for bf16), and the level of the kernels.
    """
    spec = parse_spec(SPEC, "class_125m_native.yaml")
    bundle = compile_model(spec, "tvm", FOLDER / "class_125m-native", seed=SEED, parity="off", force=True)
    plan = Plan(PROMPTS, CONTEXTS, NEW, rounds, 2, threads)
    request = PeerRequest(spec, None, SEED, precision_of(bundle.module), spec.context, threads, FOLDER / "peers")
    peers, absent = prepared(wanted, request)
    torch = [peer for peer in peers if peer.name == BF16]
    ours = bundle_contestant(bundle.path, "tvm", spec.model, threads)
    traffic, where = Traffic.of(bundle.module), machine()

    def tell(what: str, share: float) -> None:
        print(f"  {what}", file=sys.stderr)

    found = measure(spec.model, [ours, *(p for p in peers if p not in torch)], plan, spec.vocab.size, traffic, where,
                    tell, absent)
    few = Plan(PROMPTS, (), NEW, min(rounds, FEW), 1, threads)
    prompts = measure(spec.model, [ours, *torch], few, spec.vocab.size, traffic, where, tell)
    return found, prompts, level_of(bundle)


def rows_of(found: Measurement, bars: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return a row a phase: ours against each peer, the best one in int4 and the one in bf16 against their bars.

    Args:
        found: the measurement.
        bars: phase -> least speed over the best peer in int4.
    """
    rows: list[dict[str, Any]] = []
    for figure in (f for f in found.figures if f.contestant == found.contestants[0].name):
        others = [f for f in found.figures if (f.phase, f.tokens) == (figure.phase, figure.tokens) and f.speedup]
        share = figure.share.median if figure.share else 0.0
        limit = f"{share:.0%} of the {'read limit' if figure.phase == 'decode' else 'f32 products'}"
        rows.append(row(f"{figure.phase} {figure.tokens}, omnic", f"{1e3 * figure.p50:.2f} ms, {limit}"))
        gains = [(f.contestant, f.p50, f.speedup) for f in others if f.speedup is not None]
        best = min((gain.median for name, _, gain in gains if name != BF16), default=None)
        for name, p50, gain in gains:
            text = f"{gain.median:.2f} [{gain.low:.2f}, {gain.high:.2f}] ({1e3 * p50:.2f} ms)"
            bf16 = name == BF16
            bar = TORCH if bf16 else bars[figure.phase]
            counts = figure.phase == "prefill" if bf16 else gain.median == best
            whose = "torch bf16" if bf16 else name
            rows.append(row(f"{figure.phase} {figure.tokens}: {whose}'s time / ours", text,
                            f">= {bar}x" if counts else "", gain.median >= bar if counts else None))
    for name, peak in found.peaks.items():
        rows.append(row(f"peak memory, {name}", f"{peak / 1e6:.0f} MB"))
    return rows


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--peers", default=",".join(peer_names()), help="which engines (default: all)")
    parser.add_argument("--json", action="store_true", help="print the recorded entry as JSON")
    args = parser.parse_args()
    found, prompts, level = measured(args.threads, args.rounds, args.peers.split(","))
    bars = {"decode": DECODE, "prefill": prefill_bar(level)}
    conditions = {"threads": args.threads, "rounds": args.rounds, "weights": "int4 g32, head and embedding included",
                  "level": level, "read limit": found.limits.how,
                  **{c.name: ", ".join(f"{k} {v}" for k, v in c.about.items())
                     for c in (*found.contestants, *prompts.contestants[1:])},
                  **{f"{name} not measured": why for name, why in found.absent.items()}}
    entry = record("native_peers" if args.threads == 1 else f"native_peers_{args.threads}", conditions,
                   rows_of(found, bars) + [r for r in rows_of(prompts, bars) if "torch" in r["what"]])
    print(json.dumps(entry)) if args.json else show(entry)
    return 0 if all(r["met"] is not False for r in entry["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
