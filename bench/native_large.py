"""The native target on a model beyond caches: the 1.3 B class in int4, prompts, decoding, start and memory.

28 layers of width 2048, 32 heads over 8 of 64, SwiGLU of 5632, 32,000 words, tied: 1.33 B numbers, distinct in every
layer, 4 bits in groups of 32.  ``omnic bench`` does the measuring, beside onnxruntime-genai and llama.cpp in int4 and
transformers in bf16 (prompts alone, parts of their own: two rounds, since it is slow without units for bf16).  The read
limit is a pass over the same mapped weights by as many threads, in turn.

    python bench/native_large.py [--only decode,start,memory] [--threads 1] [--rounds 5] [--keep] [--json]
    python bench/native_large.py --only prefill-128,prefill-512
    python bench/native_large.py --only torch-128,torch-512

Each part has a history of its own.  Start: a program takes one token, and for comparison 8, and gives the next one, its
file of weights in the page cache, as a process (linked for x86_64-linux-musl, where ziglang is there) and as a session
in Python.  Memory: of both, after a prompt of 2,048 tokens and 16 decoded ones.

The peers are built once, into build/bench/peers: 8 GB on disk, and 13 GB of memory for onnxruntime-genai's builder.
Needs ``pip install omnic[bench]`` and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from common import record, row, show
from native_peers import BF16, level_of, prefill_bar, rows_of

from omnic.api import compile as compile_model
from omnic.bench.measure import Plan, measure
from omnic.bench.peers import PeerRequest, precision_of, prepared
from omnic.bench.runners import Contestant, bundle_contestant
from omnic.bench.traffic import Traffic
from omnic.bench.worker import Worker
from omnic.errors import InputError
from omnic.runtime.bundle import Bundle, open_bundle
from omnic.runtime.kernels.toolchain import host_triple
from omnic.runtime.machine import machine
from omnic.spec import parse_spec

SPEC = """omnic: 1
model: class_1b3_native
vocab: {size: 32000}
context: 4096
tie: true
blocks:
  - repeat: 28
    width: 2048
    attention: {kind: gqa, heads: 32, kv_heads: 8, head_dim: 64}
    ffn: {kind: dense, hidden: 5632, activation: swiglu}
passes:
  - int4-packing: {group: 32, scale: s4, embedding: 'i4<g32, s4>'}
"""
SEED, NEW, CONTEXT = 1, 16, 128
#: tokens that a start takes; the first is held to the bar
PROMPTS = (1, 8)
LONG = 2048
FOLDER = Path("build/bench")
#: times the best peer; of the read limit; seconds; memory over weights and states
DECODE, SHARE, START, MEMORY = 1.1, 0.85, 0.3, 1.10
PARTS = ("decode", "start", "memory", "prefill-128", "prefill-512", "torch-128", "torch-512")
MUSL = "x86_64-linux-musl"


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    threads: int
    rounds: int


def executable_triple() -> str | None:
    """Return the platform of the executable; None where this machine cannot link or run it."""
    return MUSL if find_spec("ziglang") and host_triple().startswith("x86_64-linux") else None


def compiled() -> Bundle:
    """Return the bundle, compiled where it is not there yet or was made by other sources of ours."""
    folder, spec = FOLDER / "class_1b3-native", parse_spec(SPEC, "class_1b3_native.yaml")
    triple = executable_triple()
    return compile_model(spec, "tvm", folder, seed=SEED, parity="off", force=True,
                         options={"triple": triple} if triple else {})


def kept() -> Bundle:
    """Return the bundle as it lies there, or compile it."""
    folder = FOLDER / "class_1b3-native"
    return open_bundle(folder) if (folder / "manifest.json").is_file() else compiled()


def against_peers(bundle: Bundle, asked: Asked, plan: Plan, names: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """Measure beside the peers; return the measurement and its conditions."""
    spec = parse_spec(SPEC, "class_1b3_native.yaml")
    request = PeerRequest(spec, None, SEED, precision_of(bundle.module), spec.context, asked.threads, FOLDER / "peers")
    peers, absent = prepared(names, request)
    found = measure(spec.model, [contestant(bundle, asked), *peers], plan, spec.vocab.size, Traffic.of(bundle.module),
                    machine(), lambda what, share: print(f"  {what}", file=sys.stderr), absent)
    about = {c.name: ", ".join(f"{k} {v}" for k, v in c.about.items()) for c in found.contestants}
    return found, about | {f"{name} not measured": why for name, why in absent.items()}


def contestant(bundle: Bundle, asked: Asked) -> Contestant:
    """Return our session."""
    return bundle_contestant(bundle.path, "tvm", "class_1b3_native", asked.threads)


def decode(bundle: Bundle, asked: Asked) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Decode beside the peers, and beside reading the same file."""
    plan = Plan((), (CONTEXT,), NEW, asked.rounds, 2, asked.threads)
    found, about = against_peers(bundle, asked, plan, ("onnxruntime-genai", "llama.cpp"))
    share = found.figure("omnic tvm", "decode", CONTEXT).share
    text = f"{share.median:.3f} [{share.low:.3f}, {share.high:.3f}] of {found.limits.read / 1e9:.1f} GB/s"
    rows = [row(f"decode {CONTEXT}: share of the read limit", text, f">= {SHARE}", share.median >= SHARE)]
    return rows_of(found, {"decode": DECODE}) + rows, about | {"read limit": found.limits.how}


def prefill(bundle: Bundle, asked: Asked, tokens: int, torch: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Take prompts beside the peers in int4, or beside torch in bf16."""
    plan = Plan((tokens,), (), NEW, min(asked.rounds, 2) if torch else asked.rounds, 1 if torch else 2, asked.threads)
    names = (BF16,) if torch else ("onnxruntime-genai", "llama.cpp")
    found, about = against_peers(bundle, asked, plan, names)
    level = level_of(bundle)
    return rows_of(found, {"prefill": prefill_bar(level)}), about | {"level": level}


def executable(bundle: Bundle) -> Path | None:
    """Return the linked program, where there is one."""
    return next(iter(bundle.path.glob(f"*-{MUSL}")), None) if executable_triple() else None


def command(program: Path, bundle: Bundle, asked: Asked, count: int, ids: Iterable[int]) -> list[str]:
    """Return the words that let the program decode ``count`` tokens after ``ids``."""
    return [str(program.absolute()), "-n", str(count), "-t", str(asked.threads), str(bundle.path / "weights.bin"),
            *map(str, ids)]  # fmt: skip


def start(bundle: Bundle, asked: Asked) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Start programs and sessions in turn."""
    (bundle.path / "weights.bin").read_bytes()  # into the page cache
    program = executable(bundle)
    ids = np.random.default_rng(0).integers(3, 32000, max(PROMPTS))
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(max(asked.rounds, 5)):
        for count in PROMPTS:
            if program is not None:
                began = time.perf_counter()
                subprocess.run(command(program, bundle, asked, 1, ids[:count]), check=True, capture_output=True)
                times.setdefault(("process", count), []).append(time.perf_counter() - began)
            worker = Worker(contestant(bundle, asked))
            times.setdefault(("session", count), []).append(worker.load_seconds + worker.prompt(ids[:count]))
            worker.close()
    names = {"process": "a process of the executable, begin to end",
             "session": "a session in Python, its packages imported"}
    rows: list[dict[str, Any]] = []
    for (kind, count), each in sorted(times.items(), key=lambda item: item[0][1]):
        middle, barred = float(np.median(each)), count == PROMPTS[0]
        rows.append(row(f"start to first token, {count} of prompt: {names[kind]}",
                        f"{middle:.3f} s (most {max(each):.3f} s)", f"<= {START} s" if barred else "",
                        middle <= START if barred else None))
    return rows, {} if program else {"the executable": "not measured: ziglang is not installed"}


def memory(bundle: Bundle, asked: Asked) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Take a long prompt, decode, and look at the peak of the process."""
    ids = np.random.default_rng(0).integers(3, 32000, LONG)
    worker = Worker(contestant(bundle, asked))
    try:
        worker.prompt(ids)
        worker.decode(NEW)
        peaks = {f"a session, of it Python {worker.empty_bytes / 1e6:.0f} MB": worker.peak()}
    finally:
        worker.close()
    program = executable(bundle)
    if program is not None:
        peaks["a process of the executable"] = watched(command(program, bundle, asked, NEW, ids))
    weights, states = (bundle.path / "weights.bin").stat().st_size, Traffic.of(bundle.module).held(LONG + NEW)
    rows = [row(f"peak memory at {LONG:,} tokens: {name}",
                f"{peak / (weights + states):.3f} of weights and states: {peak / 1e6:.0f} MB, weights"
                f" {weights / 1e6:.0f}, keys and values {states / 1e6:.0f}",
                f"<= {MEMORY:.2f}", peak <= MEMORY * (weights + states)) for name, peak in peaks.items()]
    return rows, {} if program else {"the executable": "not measured: ziglang is not installed"}


def watched(words: list[str]) -> int:
    """Run a program and return the most memory that it held."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    status, most = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        line = next((at for at in status.read_text().splitlines() if at.startswith("VmHWM:")), None)
        most = max(most, 1024 * int(line.split()[1])) if line else most
        time.sleep(0.02)
    if process.returncode:
        raise InputError(f"{words[0]} ended with {process.returncode}")
    return most


def main() -> int:
    """Measure and record every part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="decode,start,memory", help=f"some of {', '.join(PARTS)}, or all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="take the bundle that lies there instead of compiling anew")
    parser.add_argument("--json", action="store_true", help="print the recorded entries as JSON")
    args = parser.parse_args()
    parts = PARTS if args.only == "all" else tuple(args.only.split(","))
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part '{sorted(unknown)[0]}'; parts: {', '.join(PARTS)}")
    bundle, asked, fine = kept() if args.keep else compiled(), Asked(args.threads, args.rounds), True
    for part in parts:
        if "-" in part:
            kind, _, tokens = part.partition("-")
            rows, about = prefill(bundle, asked, int(tokens), kind == "torch")
        else:
            rows, about = {"decode": decode, "start": start, "memory": memory}[part](bundle, asked)
        conditions = {"threads": args.threads, "rounds": args.rounds,
                      "weights": "int4 g32, head and embedding included", **about}
        name = f"native_large_{part.replace('-', '_')}" + (f"_{args.threads}" if args.threads > 1 else "")
        entry = record(name, conditions, rows)
        print(json.dumps(entry)) if args.json else show(entry)
        fine &= all(r["met"] is not False for r in rows)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
