"""Where a decoded int4 token spends its time: kernels of our program and of onnxruntime-genai's, both in ONNX Runtime.

Each program runs alone under ONNX Runtime's profiler, its states bound in place; a row is the median of a token in
microseconds and the number of kernels, ours and genai's.  The profiler itself costs a few microseconds a kernel, so the
sums are larger than a token without it.

    python bench/onnx_profile.py [--group 32] [--context 128] [--json]

Needs ``pip install omnic[bench]``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from common import record, row, show
from onnx_decode import SPEC
from onnx_int4 import compiled, genai_folder, int4_spec

from omnic.runtime.session import SessionOptions, open_session
from omnic.spec import parse_spec
from omnic.targets.onnx.program import row_program, runtime_options
from omnic.targets.onnx.session import OnnxSession

TOKENS, SLOTS, LEAST = 48, 1024, 30.0
Costs = dict[str, tuple[float, float]]


def costs(events: list[dict[str, Any]], tokens: int) -> Costs:
    """Return (microseconds, kernels) of a token by operator: the median of the last ``tokens`` runs."""
    began = np.sort([e["ts"] for e in events if e.get("name") == "model_run"])[-tokens:]
    found: defaultdict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in began])
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= began[0]:
            kind = event["args"]["op_name"]
            shapes = event["args"].get("output_type_shape", [])
            rows = f" of {next(iter(shapes[0].values()))[-1]} rows" if kind == "MatMulNBits" and shapes else ""
            found[kind + rows][int(np.searchsorted(began, event["ts"], "right")) - 1].append(event["dur"])
    return {
        kind: (float(np.median([sum(t) for t in runs])), sum(len(t) for t in runs) / tokens)
        for kind, runs in found.items()
    }


def profiled(path: Path, run: Callable[[ort.InferenceSession], None]) -> Costs:
    """Open a program under the profiler, run it and return its costs."""
    with tempfile.TemporaryDirectory() as folder:
        options = runtime_options(1)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "ort")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        run(session)
        return costs(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")), TOKENS)


def ours(group: int, ids: np.ndarray) -> Costs:
    """Decode with our session."""
    bundle = compiled(int4_spec(group), f"class_125m-g{group}-onnx")
    session = open_session(bundle, SessionOptions(threads=1))
    assert isinstance(session, OnnxSession)
    file = row_program("forward")

    def run(program: ort.InferenceSession) -> None:
        session.programs.use(file, program)
        session.forward(ids[None], rows=np.array([[len(ids) - 1]]))
        for token in range(TOKENS):
            session.forward(np.array([[token]]))

    return profiled(bundle.path / file, run)


def theirs(group: int, ids: np.ndarray) -> Costs:
    """Run genai's own program."""

    def run(program: ort.InferenceSession) -> None:
        binding = program.io_binding()
        held = {
            i.name: ort.OrtValue.ortvalue_from_numpy(np.zeros((1, i.shape[1], SLOTS, 64), np.float32))
            for i in program.get_inputs()
            if i.name.startswith("past")
        }
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        past = 0
        for tokens in (ids.astype(np.int64), *np.arange(TOKENS)[:, None]):
            given, mask = tokens[None], np.ones((1, past + len(tokens)), np.int64)
            binding.bind_cpu_input("input_ids", given)
            binding.bind_cpu_input("attention_mask", mask)
            binding.bind_output("logits")
            program.run_with_iobinding(binding)
            past += len(tokens)

    return profiled(genai_folder(parse_spec(SPEC, "class_125m.yaml"), group, 1) / "model.onnx", run)


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="print the recorded entry as JSON")
    args = parser.parse_args()
    ids = np.random.default_rng(0).integers(3, 32000, args.context)
    found = ours(args.group, ids), theirs(args.group, ids)
    rest = [[0.0, 0.0], [0.0, 0.0]]
    rows: list[dict[str, Any]] = []
    for kind in sorted({*found[0], *found[1]}, key=lambda k: -max(f.get(k, (0.0, 0.0))[0] for f in found)):
        pair = [f.get(kind, (0.0, 0.0)) for f in found]
        if max(p[0] for p in pair) < LEAST:
            rest = [[a + c for a, c in zip(have, more, strict=True)] for have, more in zip(rest, pair, strict=True)]
            continue
        rows.append(line(kind, pair))
    rows.append(line("all others", [(r[0], r[1]) for r in rest]))
    rows.append(line("together", [(sum(t for t, _ in f.values()), sum(n for _, n in f.values())) for f in found]))
    conditions = {"threads": 1, "group": args.group, "context": args.context, "onnxruntime": ort.__version__}
    entry = record("onnx_profile", conditions, rows)
    print(json.dumps(entry)) if args.json else show(entry)
    return 0


def line(kind: str, pair: list[tuple[float, float]]) -> dict[str, Any]:
    """Return one row: microseconds and kernels, ours and genai's."""
    (a, n), (b, m) = pair
    return row(f"{kind}: ours, genai's", f"{a:.0f} us in {n:.0f}, {b:.0f} us in {m:.0f}", ours=pair[0], genai=pair[1])


if __name__ == "__main__":
    sys.exit(main())
