"""What a second copy of the weights in per-channel int8 would give prefill: the 125M class in int4, ONNX Runtime.

One product, and the program of one row with each MatMulNBits a product of 8-bit integers: its weights the same numbers
rounded once more to 8 bits, one scale a row, its activations to 8 bits, one scale a token.  Two forms:

* exact: unsigned weights (offset 128), which every processor multiplies exactly;
* ``DynamicQuantizeMatMul``: signed weights.  On processors with neither VNNI nor AMX its kernel adds pairs of products
  in 16 bits and saturates, so that its error is larger than rounding explains.

    python bench/onnx_prefill8.py [--threads 1] [--rounds 11] [--json]

Needs ``pip install omnic[bench]``.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as onnx
from common import interleaved, ratio, record, row, show
from onnx_int4 import closeness, compiled, int4_spec
from onnxruntime import InferenceSession

from omnic.runtime.session import Session, SessionOptions, open_session
from omnic.targets.onnx.program import row_program, runtime_options
from omnic.targets.onnx.session import OnnxSession
from omnic.targets.onnx.writer import IR_VERSION, MICROSOFT

GROUP, LENGTHS, WIDTH, COUNT = 32, (16, 32, 128, 512), 768, 2048


class Products:
    """Writes products of 8-bit integers into a graph."""

    def __init__(self, graph: onnx.Graph, before: onnx.Node | None = None) -> None:
        self.graph, self.before, self.made, self.bytes = graph, before, 0, 0

    def const(self, numbers: Any) -> onnx.Value:
        """Return an initializer."""
        array, self.made = np.asarray(numbers), self.made + 1
        name = f"eight.{id(self.before)}.{self.made}"
        value = onnx.Value(name=name, const_value=onnx.tensor(array, name=name))
        value.type, value.shape = onnx.TensorType(value.const_value.dtype), value.const_value.shape
        self.graph.register_initializer(value)
        self.bytes += array.nbytes
        return value

    def op(self, kind: str, *inputs: onnx.Value | None, domain: str = "", **attrs: Any) -> onnx.Value:
        """Append a node."""
        node = onnx.node(kind, list(inputs), attributes=attrs, domain=domain)
        self.made += 1
        node.outputs[0].name = f"eight.{id(self.before)}.{self.made}"
        self.graph.append(node) if self.before is None else self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def exact(self, x: onnx.Value, weight: np.ndarray) -> onnx.Value:
        """Return x times ``weight`` [K, N]: ``linear`` with act = i8<per_token> and weights i8<row>."""
        scale = np.abs(weight).max(0) / 127
        codes = (np.rint(weight / np.maximum(scale, 1e-30)) + 128).astype(np.uint8)
        of_token = self.op("ReduceMax", self.op("Abs", x), self.const(np.array([-1])), keepdims=1)
        of_token = self.op("Max", self.op("Div", of_token, self.const(np.float32(127))), self.const(np.float32(1e-30)))
        units = self.op("QuantizeLinear", self.op("Div", x, of_token), self.const(np.float32(1)), self.zero)
        product = self.op(
            "MatMulIntegerToFloat",
            units,
            self.const(codes),
            self.const(np.float32(1)),
            self.const(scale.astype(np.float32)),
            self.zero,
            self.zero,
            domain=MICROSOFT,
        )
        return self.op("Mul", product, of_token)

    @property
    def zero(self) -> onnx.Value:
        """The code of 0."""
        return self.const(np.uint8(128))

    def signed(self, x: onnx.Value, weight: np.ndarray) -> onnx.Value:
        """Return x times ``weight`` by DynamicQuantizeMatMul."""
        scale = np.abs(weight).max(0) / 127
        codes = np.rint(weight / np.maximum(scale, 1e-30)).astype(np.int8)
        scales = self.const(scale.astype(np.float32))
        return self.op("DynamicQuantizeMatMul", x, self.const(codes), scales, domain=MICROSOFT)


def decoded(node: onnx.Node) -> np.ndarray:
    """Return the weight [K, N] of a MatMulNBits of 4 bits."""
    codes, scale = (v.const_value.numpy() for v in node.inputs[1:3])  # type: ignore[union-attr]
    block = node.attributes["block_size"].as_int()
    units = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], block).astype(np.float32) - 8
    wide = units * scale.reshape(*codes.shape[:2], 1)
    return np.ascontiguousarray(wide.reshape(codes.shape[0], -1)[:, : node.attributes["K"].as_int()].T)


def rewritten(program: Path) -> tuple[Path, int]:
    """Write the program with products of 8-bit integers beside it; return its path and the bytes of its weights."""
    model = onnx.load(program)
    onnx.external_data.load_to_model(model)
    total = 0
    for node in [n for n in model.graph if n.op_type == "MatMulNBits"]:
        products = Products(model.graph, node)
        made = products.exact(node.inputs[0], decoded(node))
        result, name = node.outputs[0], node.outputs[0].name
        made.type, made.shape = result.type, result.shape
        onnx.convenience.replace_all_uses_with(result, made, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        made.name = name
        total += products.bytes
    path = program.with_name("prefill8.onnx")
    path.with_suffix(".bin").unlink(missing_ok=True)
    onnx.save(model, path, external_data=path.with_suffix(".bin").name)
    return path, total


def product(form: str, threads: int) -> InferenceSession:
    """Return one product of :data:`WIDTH` x :data:`COUNT` for any number of tokens."""
    rng = np.random.default_rng(0)
    graph = onnx.Graph([], [], nodes=[], opset_imports={"": 24, MICROSOFT: 1}, name=form)
    given = onnx.Value(name="x", type=onnx.TensorType(onnx.DataType.FLOAT), shape=onnx.Shape(["T", WIDTH]))
    graph.inputs.append(given)
    products, weight = Products(graph), rng.standard_normal((WIDTH, COUNT)).astype(np.float32)
    if form == "four":
        codes = products.const(rng.integers(0, 256, (COUNT, WIDTH // GROUP, GROUP // 2)).astype(np.uint8))
        scale = products.const(np.full(COUNT * WIDTH // GROUP, 0.01, np.float32))
        attrs = {"K": WIDTH, "N": COUNT, "bits": 4, "block_size": GROUP, "accuracy_level": 4}
        made = products.op("MatMulNBits", given, codes, scale, domain=MICROSOFT, **attrs)
    else:
        made = getattr(products, form)(given, weight)
    made.type = onnx.TensorType(onnx.DataType.FLOAT)
    graph.outputs.append(made)
    data = onnx.to_proto(onnx.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    return InferenceSession(data, runtime_options(threads), providers=["CPUExecutionProvider"])


def errors() -> dict[str, float]:
    """Return the relative error of one product of normal numbers by form."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((WIDTH, COUNT)).astype(np.float32)
    x = rng.standard_normal((LENGTHS[-1], WIDTH)).astype(np.float32)
    wanted = x @ weight
    found = {form: product(form, 1).run(None, {"x": x})[0] for form in ("exact", "signed")}
    return {form: float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted)) for form, y in found.items()}


def prefill(session: Session, ids: np.ndarray) -> np.ndarray:
    """Return the logits after the prompt."""
    session.reset(1)
    return np.array(session.forward(ids[None], rows=np.array([[len(ids) - 1]])).logits[0, 0])


def multiply(session: InferenceSession, x: np.ndarray) -> None:
    """Run one product."""
    session.run(None, {"x": x})


def timed(session: Session, ids: np.ndarray) -> None:
    """Run a prompt."""
    prefill(session, ids)


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", action="store_true", help="print the recorded entry as JSON")
    args = parser.parse_args()
    import onnxruntime

    rows: list[dict[str, Any]] = []
    off = errors()
    what = f"error of one product of {WIDTH} x {COUNT}, 8-bit weights and activations: exact, DynamicQuantizeMatMul"
    rows.append(row(what, f"{off['exact']:.4f}, {off['signed']:.4f}", **off))
    products = {form: product(form, args.threads) for form in ("four", "exact", "signed")}
    for count in LENGTHS:
        x = np.random.default_rng(1).standard_normal((count, WIDTH)).astype(np.float32)
        times = interleaved({f: partial(multiply, s, x) for f, s in products.items()}, args.rounds)
        for form in ("exact", "signed"):
            gain = ratio(times["four"], times[form])
            what = f"one product, {count} tokens: time in 4 bits (level 4) / {form} int8"
            rows.append(row(what, str(gain), ratio=gain))
    bundle = compiled(int4_spec(GROUP), f"class_125m-g{GROUP}-onnx")
    options = SessionOptions(threads=args.threads)
    sessions: dict[str, Session] = {"four": open_session(bundle, options)}
    path, size = rewritten(bundle.path / row_program("forward"))
    session = open_session(bundle, options)
    assert isinstance(session, OnnxSession)
    opened = InferenceSession(str(path), runtime_options(args.threads), providers=["CPUExecutionProvider"])
    session.programs.use(row_program("forward"), opened)
    sessions["exact"] = session
    rng = np.random.default_rng(0)
    prompts = {n: rng.integers(3, 32000, n) for n in LENGTHS}
    logits = {form: prefill(s, prompts[128]).astype(np.float64) for form, s in sessions.items()}
    near = closeness(logits["exact"], logits["four"])
    rows.append(row("whole model, cosine of the logits in exact int8 with those in 4 bits", f"{near:.4f}", cosine=near))
    own = (bundle.path / "weights.bin").stat().st_size
    rows.append(row("bytes of the second copy, beside", f"{size / 1e6:.1f} MB, {own / 1e6:.1f} MB", bytes=size))
    for count, ids in prompts.items():
        times = interleaved({f: partial(timed, s, ids) for f, s in sessions.items()}, args.rounds)
        gain = ratio(times["four"], times["exact"])
        rows.append(row(f"whole model, prefill {count}: time in 4 bits / exact int8", str(gain), ratio=gain))
    for suffix in (".onnx", ".bin"):
        (bundle.path / f"prefill8{suffix}").unlink()
    conditions = {"threads": args.threads, "rounds": args.rounds, "onnxruntime": onnxruntime.__version__}
    entry = record("onnx_prefill8", conditions, rows)
    print(json.dumps(entry)) if args.json else show(entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
