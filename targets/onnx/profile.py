"""Seconds of each scope of the saved program, from ONNX Runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from omnic.runtime.bundle import Bundle
from omnic.runtime.session import SessionOptions
from omnic.targets.base import Phase, Ran
from omnic.targets.onnx.program import runtime_options
from omnic.targets.onnx.session import OnnxSession, Programs

__all__ = ["profile", "ran"]


def profile(bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Phase]:
    """Time a prefill of ``tokens`` [T] and ``steps`` single tokens after it, once each after a warm-up."""
    events = _events(bundle, tokens, steps, threads)
    long, short = bundle.module.called(len(tokens)), bundle.module.called(1)
    after = _runs(events[short])
    last = after[-(1 + steps)] if long == short else _runs(events[long])[-1]
    decode: dict[str, float] = {}
    for run in after[len(after) - steps :]:
        for scope, seconds in run.items():
            decode[scope] = decode.get(scope, 0.0) + seconds
    return [Phase("prefill", len(tokens), last), Phase("decode", steps, decode)]


def ran(bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int) -> list[Ran]:
    """Return the operators of a decoded token by execution provider; seconds are the mean of ``steps`` tokens."""
    events = _events(bundle, tokens, steps, threads)[bundle.module.called(1)]
    began = sorted(e["ts"] for e in events if e.get("name") == "model_run")[-steps]
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= began:
            args = event["args"]
            if args["op_name"] != "If":
                found.setdefault((args["op_name"], args["provider"]), []).append(event["dur"] / 1e6)
    rows = [Ran(op, provider, round(len(spent) / steps), sum(spent) / steps) for (op, provider), spent in found.items()]
    return sorted(rows, key=lambda row: -(row.seconds or 0.0))


def _events(
    bundle: Bundle, tokens: NDArray[np.int64], steps: int, threads: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the profiler's events by function: a warm-up, then a prefill and ``steps`` single tokens."""
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(bundle.path, bundle.module, SessionOptions(threads=threads))
        opened: dict[str, ort.InferenceSession] = {}
        for function in {bundle.module.called(n) for n in (len(tokens), 1)}:
            options = runtime_options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / function)
            file = programs.file(function, row=True)
            path = str(bundle.path / file)
            opened[function] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            programs.use(file, opened[function])
        session = OnnxSession(programs)
        for _ in range(2):
            session.reset(1)
            session.forward(tokens[None], rows=np.array([[len(tokens) - 1]]))
            session.forward(tokens[None, -1:])
        session.reset(1)
        session.forward(tokens[None], rows=np.array([[len(tokens) - 1]]))
        for _ in range(steps):
            session.forward(tokens[None, -1:])
        return {n: json.loads(Path(p.end_profiling()).read_text(encoding="utf-8")) for n, p in opened.items()}


def _runs(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return seconds by scope of every run; a branch's own nodes are counted, not the If around them."""
    whole = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: e["ts"])
    runs: list[dict[str, float]] = [{} for _ in whole]
    for event in events:
        kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if not kernel or event["args"].get("op_name") == "If":
            continue
        at = next((i for i, run in enumerate(whole) if run["ts"] <= event["ts"] <= run["ts"] + run["dur"]), None)
        if at is not None:
            scope = event["name"].split("/", 1)[0]
            runs[at][scope] = runs[at].get(scope, 0.0) + event["dur"] / 1e6
    return runs
