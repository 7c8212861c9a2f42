"""Routed experts of mobile_4gb, one token at a time: our kernel against QMoE of ONNX Runtime, the same numbers in both.

12 layers of 16 experts, 2 of them chosen, 1024 to 2816 and back, GELU, 4 bits in groups of 32: 0.57 GB of experts,
distinct in every layer, of which a token reads 71 MB elsewhere each time.  Ours has 4-bit steps times one f32 a row for
scales (``s4``), QMoE the same scales as f32, accuracy level 4 (8-bit activations, as ours).  Both choose from given
router logits, softmax over the chosen.  Each engine is a process of its own; they take turns.

    python bench/native_moe.py [--threads 1] [--rounds 21] [--json]
    python bench/native_moe.py --whole

``--whole`` decodes the whole preset (random numbers) by targets tvm and onnx instead: compiling both takes 8 GB of
memory, 3 GB on disk and some minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from ctypes import POINTER, pointer
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from common import ratio, record, row, show
from native_peers import level_of

from omnic.api import compile as compile_model
from omnic.bench.measure import REST, Plan, measure
from omnic.bench.reading import mapped
from omnic.bench.runners import Contestant, bundle_contestant
from omnic.bench.traffic import Traffic
from omnic.bench.worker import Worker
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage, parse_element
from omnic.runtime.kernels.abi import Activation, Kind, Weight
from omnic.runtime.kernels.calls import softmax, topk
from omnic.runtime.kernels.library import address, kernels
from omnic.runtime.kernels.packing import pack, weight_of
from omnic.runtime.machine import machine
from omnic.spec import load_spec, parse_spec
from omnic.spec.export import to_yaml
from omnic.spec.load import with_values
from omnic.targets.onnx.blocks import Blocks, blocks_of, parts_of

Array = np.ndarray[Any, Any]
LAYERS, EXPERTS, TOP, WIDTH, HIDDEN, GROUP = 12, 16, 2, 1024, 2816, 32
TOKENS, TURN, BAR = 64, 8, 1.3
FOLDER = Path("build/bench")


def experts(layer: int) -> list[tuple[QTensor, QTensor]]:
    """Return (up [HIDDEN, WIDTH], down [WIDTH, HIDDEN]) of every expert of a layer, random codes and steps."""
    rng, kind = np.random.default_rng(layer), parse_element(f"i4<g{GROUP}, s4>")
    assert isinstance(kind, Storage)

    def matrix(n: int, k: int) -> QTensor:
        codes = rng.integers(-7, 8, (n, k), np.int8)
        steps = rng.integers(8, 16, (n, k // GROUP)).astype(np.uint8)
        return QTensor(codes, steps, None, kind, np.full(n, 0.02 / 60, np.float32))

    return [(matrix(HIDDEN, WIDTH), matrix(WIDTH, HIDDEN)) for _ in range(EXPERTS)]


def inputs() -> tuple[Array, Array]:
    """Return x f32 [TOKENS, WIDTH] and router logits f32 [LAYERS, TOKENS, EXPERTS]."""
    rng = np.random.default_rng(1000)
    return (rng.standard_normal((TOKENS, WIDTH)).astype(np.float32),
            2 * rng.standard_normal((LAYERS, TOKENS, EXPERTS)).astype(np.float32))


class Ours:
    """Our kernel over a mapped file of panels, as programs of target tvm hold them."""

    def __init__(self, threads: int, file: str) -> None:
        self.kernel = kernels(threads=threads)
        self.x, self.logits = inputs()
        self.y = np.empty((LAYERS, 1, WIDTH), np.float32)
        self.layers, self.at, self.kept = self._written(Path(file)), 0, mapped(Path(file))
        base = self.kept.ctypes.data
        for table in (t for pair in self.layers for t in pair):
            for weight in table:
                for part in ("codes", "scales", "row"):
                    setattr(weight.contents, part, (getattr(weight.contents, part) or 0) + base)
        up, down = self.layers[0]
        self.scratch = self.kernel.library.c.omnic_scratch_moe(
            up[0], down[0], 1, TOP, EXPERTS, int(Activation.I8_GROUP), GROUP, threads)

    @staticmethod
    def _written(file: Path) -> list[tuple[Any, Any]]:
        """Write every expert, and return tables of weights whose addresses count from the file's begin."""
        layers: list[tuple[Any, Any]] = []
        with file.open("wb") as out:
            for layer in range(LAYERS):
                tables = [(POINTER(Weight) * EXPERTS)() for _ in range(2)]
                for e, pair in enumerate(experts(layer)):
                    for table, q in zip(tables, pair, strict=True):
                        packed = pack(q)
                        places: dict[str, int] = {}
                        for part in ("codes", "scales", "row"):
                            out.write(bytes(-out.tell() % 4096))
                            places[part] = out.tell()
                            out.write(getattr(packed, part).tobytes())
                        weight = weight_of(packed)
                        for part, place in places.items():
                            setattr(weight, part, place)
                        table[e] = pointer(weight)
                layers.append((tables[0], tables[1]))
        return layers

    def token(self) -> Array:
        """Return the results of every layer for the next token, f32 [LAYERS, WIDTH]."""
        at = self.at % TOKENS
        self.at += 1
        x = self.x[at : at + 1]
        for layer, (up, down) in enumerate(self.layers):
            values, indices = topk(self.kernel, self.logits[layer, at : at + 1], TOP)
            gates = softmax(self.kernel, values)
            self.kernel.run("moe", None, up, down, EXPERTS, address(x), 1, WIDTH, address(indices), address(gates), TOP,
                            int(Kind.GELU), 1.0, 0.0, 0.0, int(Activation.I8_GROUP), GROUP, None, None, None,
                            address(self.y[layer]), WIDTH, scratch=self.scratch)
        return self.y[:, 0]


class Theirs:
    """One QMoE node a layer, all in one graph."""

    def __init__(self, threads: int, file: str) -> None:
        self.x, self.logits, self.at = *inputs(), 0
        self._write(Path(file))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    @staticmethod
    def _write(file: Path) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "com.microsoft": 1}, name="experts")
        x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, WIDTH]))
        graph.inputs.append(x)
        for layer in range(LAYERS):
            pairs = experts(layer)
            held: list[ir.Value] = []
            for side, width in enumerate((WIDTH, HIDDEN)):
                form = blocks_of(pairs[0][side].type, width)
                assert isinstance(form, Blocks)
                parts = [parts_of(form, pair[side]) for pair in pairs]
                for part in ("codes", "scale"):
                    tensor = ir.tensor(np.stack([p[part] for p in parts]), name=f"{part}.{layer}.{side}")
                    value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype),
                                     shape=tensor.shape)
                    graph.register_initializer(value)
                    held.append(value)
            logits = ir.Value(name=f"logits.{layer}", type=ir.TensorType(ir.DataType.FLOAT),
                              shape=ir.Shape([1, EXPERTS]))
            graph.inputs.append(logits)
            about = {"k": TOP, "activation_type": "gelu", "normalize_routing_weights": 1, "expert_weight_bits": 4,
                     "block_size": GROUP, "accuracy_level": 4}
            node = ir.node("QMoE", [x, logits, held[0], held[1], None, held[2], held[3]], about,
                           domain="com.microsoft")
            y = node.outputs[0]
            y.name, y.type, y.shape = f"y.{layer}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, WIDTH])
            graph.append(node)
            graph.outputs.append(y)
        data = Path(f"{file}.data")
        data.unlink(missing_ok=True)
        ir.save(ir.Model(graph, ir_version=10), file, external_data=data.name)

    def token(self) -> Array:
        """Return the results of every layer for the next token, f32 [LAYERS, WIDTH]."""
        at = self.at % TOKENS
        self.at += 1
        given = {"x": self.x[at : at + 1]} | {f"logits.{i}": self.logits[i, at : at + 1] for i in range(LAYERS)}
        return np.stack([y[0] for y in self.session.run(None, given)])


class Stepped:
    """One of the two as a runner: a step is a token; ``about`` gives the first one's results."""

    def __init__(self, of: Ours | Theirs) -> None:
        self.of = of

    def prompt(self, ids: object) -> int:
        """Begin anew."""
        self.of.at = 0
        return 0

    def step(self, token: int) -> int:
        """Run one token through all layers."""
        self.of.token()
        return token

    def about(self) -> dict[str, Any]:
        """Return the results of the first token."""
        self.of.at = 0
        return {"first": self.of.token().copy()}


def open_ours(threads: int, file: str) -> Stepped:
    """Open our kernels."""
    return Stepped(Ours(threads, file))


def open_theirs(threads: int, file: str) -> Stepped:
    """Open QMoE."""
    return Stepped(Theirs(threads, file))


def kernel_rows(threads: int, rounds: int) -> list[dict[str, Any]]:
    """Return how near the results are, and how fast both run."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    files = {"ours": str(FOLDER / "moe-experts.bin"), "theirs": str(FOLDER / "moe-experts.onnx")}
    workers = {name: Worker(Contestant(name, f"native_moe:open_{name}", {"threads": threads, "file": file}))
               for name, file in files.items()}
    try:
        first = {name: worker.about()["first"].astype(np.float64).ravel() for name, worker in workers.items()}
        times: dict[str, list[float]] = {name: [] for name in workers}
        for worker in workers.values():
            worker.prompt(np.zeros(1, np.int64))
            worker.decode(TURN)
        for turn in range(rounds):
            for name in list(workers)[:: 1 if turn % 2 else -1]:
                time.sleep(REST)
                times[name].append(float(np.median(workers[name].decode(TURN))))
    finally:
        for worker in workers.values():
            worker.close()
    apart = float(np.linalg.norm(first["ours"] - first["theirs"]) / np.linalg.norm(first["theirs"]))
    gain = ratio(times["theirs"], times["ours"])
    ms = {name: 1e3 * float(np.median(each)) for name, each in times.items()}
    read = LAYERS * TOP * 2 * WIDTH * HIDDEN * (4 + 4 / GROUP) / 8
    text = f"{gain} ({ms['ours']:.2f} against {ms['theirs']:.2f} ms)"
    return [
        row("results apart, relative", f"{apart:.1e}", "<= 2e-2", apart <= 2e-2, relative=apart),
        row(f"a token through {LAYERS} layers: QMoE's time / ours", text, f">= {BAR}x", gain.reaches(BAR), ratio=gain,
            milliseconds=ms),
        row("ours reads", f"{read / ms['ours'] / 1e6:.1f} GB/s"),
    ]


def whole_rows(threads: int, rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return how fast targets tvm and onnx decode the whole preset."""
    words = to_yaml(load_spec("mobile_4gb"))
    spec = with_values(parse_spec(words, "mobile_4gb.yaml"), {
        "heads": {"mtp": None, "verifier": False}, "draft": None,
        "passes": [{"int4-packing": {"group": GROUP, "scale": "s4", "embedding": f"i4<g{GROUP}>",
                                     "head": f"i4<g{GROUP}, s4>"}}]}, "native_moe")
    bundles = {target: compile_model(spec, target, FOLDER / f"mobile_4gb-moe-{target}", seed=1, parity="off",
                                     force=True) for target in ("tvm", "onnx")}  # fmt: skip
    plan = Plan((), (128,), 16, rounds, 2, threads)
    found = measure(spec.model, [bundle_contestant(b.path, t, spec.model, threads) for t, b in bundles.items()], plan,
                    spec.vocab.size, Traffic.of(bundles["tvm"].module), machine(),
                    lambda what, share: print(f"  {what}", file=sys.stderr))
    ours, theirs = found.figures
    assert theirs.speedup is not None
    gain = theirs.speedup
    text = (f"{gain.median:.2f} [{gain.low:.2f}, {gain.high:.2f}] ({1e3 * ours.p50:.2f} against"
            f" {1e3 * theirs.p50:.2f} ms)")
    rows = [row("mobile_4gb, decode 128: target onnx's time / target tvm's", text, f">= {BAR}x", gain.median >= BAR)]
    return rows, {"level": level_of(bundles["tvm"])}


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--whole", action="store_true", help="the whole preset by both targets")
    parser.add_argument("--json", action="store_true", help="print the recorded entry as JSON")
    args = parser.parse_args()
    about: dict[str, str]
    if args.whole:
        rows, about = whole_rows(args.threads, args.rounds)
    else:
        rows, about = kernel_rows(args.threads, args.rounds), {"level": kernels().level.name.lower()}
    conditions = {"threads": args.threads, "rounds": args.rounds, "weights": f"int4 g{GROUP}",
                  "onnxruntime": ort.__version__, **about}
    name = "native_moe" + ("_whole" if args.whole else "") + (f"_{args.threads}" if args.threads > 1 else "")
    entry = record(name, conditions, rows)
    print(json.dumps(entry)) if args.json else show(entry)
    return 0 if all(r["met"] is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
