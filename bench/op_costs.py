"""What it costs a target to do without an op: nodes of its program, and the time of what the op decomposes into.

    python bench/op_costs.py            # measure and record bench/history/op_costs.jsonl
    python bench/op_costs.py --no-record

Each composite runs by itself at the sizes of a layer 512 wide over 64 tokens, as it is and decomposed, in turns.
Programs of Core ML are counted and not timed: that needs a Mac.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import interleaved, ratio, record, row, show
from omnic.ir.builder import ModuleBuilder
from omnic.ir.decompose import decompose
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Module, Recipe
from omnic.ir.types import DType, TensorType
from omnic.ir.weights import WeightStore
from omnic.targets import get_target
from omnic.targets.base import EmitRequest
from omnic.targets.onnx.program import runtime_options
from omnic.targets.torch.inference import InferenceModule, legalised, load_weights

TOKENS, WIDTH, HIDDEN, HEADS, SLOTS = 64, 512, 1024, 8, 128
EXPERTS, VOCAB = 8, 4096
SECONDS = 0.004  # of one timing, so that the clock is exact enough

Shape = tuple[int, ...]


def weight(*shape: int) -> tuple[str, Shape]:
    return "weight", shape


def whole(high: int, *shape: int) -> tuple[int, Shape]:
    return high, shape


X: Shape = (1, TOKENS, WIDTH)
HEAD = WIDTH // HEADS
QUERY, KEY = (1, HEADS, TOKENS, HEAD), (1, 2, SLOTS, HEAD)
INDEX = (whole(SLOTS, 1, TOKENS), whole(TOKENS, 1, SLOTS))
LATENT = 64
#: op -> operands (a shape of floats, a weight, or whole numbers below a bound; None = absent) and attributes
OPS: Mapping[str, tuple[Sequence[Any], Mapping[str, Any]]] = {
    "linear": ((X, weight(HIDDEN, WIDTH)), {}),
    "embedding": ((weight(VOCAB, WIDTH), whole(VOCAB, 1, TOKENS)), {}),
    "act": ((X,), {"kind": "gelu"}),
    "gated_act": ((X, X), {"kind": "silu"}),
    "rms_norm": ((X, weight(WIDTH)), {}),
    "layer_norm": ((X, weight(WIDTH), weight(WIDTH)), {}),
    "rope": ((QUERY, whole(SLOTS, 1, TOKENS)), {"dims": HEAD}),
    "lm_head": ((X, weight(VOCAB, WIDTH), whole(TOKENS, 1, 1)), {}),
    "attention": ((QUERY, KEY, KEY, *INDEX), {"scale": HEAD**-0.5}),
    "mla": (
        ((1, HEADS, TOKENS, HEAD), (1, HEADS, TOKENS, 32), (1, SLOTS, LATENT), (1, SLOTS, 32),
         weight(HEADS, HEAD, LATENT), weight(HEADS, HEAD, LATENT), *INDEX), {"scale": 0.1},
    ),
    "router": ((X, weight(EXPERTS, WIDTH)), {"top_k": 2}),
    "moe": (
        (X, whole(EXPERTS, 1, TOKENS, 2), (1, TOKENS, 2), weight(EXPERTS, 256, WIDTH), weight(EXPERTS, WIDTH, 256),
         weight(EXPERTS, 256, WIDTH)), {"kind": "silu"},
    ),
    "short_conv": ((X, weight(WIDTH, 4), None, (1, 3, WIDTH)), {}),
    "linear_recurrence": (
        ((1, HEADS, TOKENS, HEAD), (1, HEADS, TOKENS, HEAD), (1, HEADS, TOKENS, HEAD), (1, HEADS, TOKENS, 1),
         (1, HEADS, HEAD, HEAD)), {},
    ),
    "pool_blocks": (((1, HEADS, SLOTS, HEAD),), {"page": 16}),
    "fake_quant": ((X,), {"to": DType.F16}),
    "host.fetch": ((whole(EXPERTS, 1, TOKENS),), {"kind": "expert", "layer": 0}),
}


def module_of(op: str) -> tuple[Module, dict[str, Any]]:
    """Return a module of one op and inputs for it."""
    random, (operands, attrs) = np.random.default_rng(0), OPS[op]
    one = {name: DimRange(1, 1) for name in ("B", "T", "R")}
    builder = ModuleBuilder("one", one, {"capacity": SLOTS})
    f = builder.function("forward")
    tokens = f.param("tokens", TensorType(DType.I64, (symbol("B"), symbol("T"))))
    inputs: dict[str, Any] = {"tokens": np.zeros((1, 1), np.int64)}
    values: list[Any] = []
    for at, operand in enumerate(operands):
        name = f"p{at}"
        if operand is None:
            values.append(None)
        elif operand[0] == "weight":
            values.append(builder.weight(name, TensorType(DType.F32, operand[1]), Recipe("normal", {"std": 0.05})))
        elif isinstance(operand[1], tuple):
            inputs[name] = random.integers(0, operand[0], operand[1])
            values.append(f.param(name, TensorType(DType.I64, operand[1])))
        else:
            # Decays are negative; nothing else here minds.
            inputs[name] = -np.abs(random.standard_normal(operand)).astype(np.float32)
            values.append(f.param(name, TensorType(DType.F32, operand)))
    for index, value in enumerate(f.emit(op, *values, **attrs)):
        # What an op that is its operand becomes is a value of its own this way.
        zero = f.constant(0, value.type.dtype)
        f.result(f"y{index}", f.op("add", value, zero))
    f.result("shown", f.op("add", tokens, f.constant(0, DType.I64)))
    return builder.build(), inputs


def core_nodes(module: Module) -> list[str]:
    """Return the ops of a module but for those that :func:`module_of` adds."""
    found = [n.op for n in module.function().nodes]
    extra = 2 * len(module.function().results)
    return found[: len(found) - extra]


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """Return a call that repeats ``call`` until the clock is exact enough, and gives seconds of one."""
    call()
    began = time.perf_counter()
    call()
    count = max(1, int(SECONDS / max(time.perf_counter() - began, 1e-7)))

    def run() -> float:
        began = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - began) / count

    return run


def torch_call(module: Module, inputs: Mapping[str, Any]) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(1)
    ready = legalised(module)
    store = WeightStore.random(ready, 0)
    program = InferenceModule(ready, load_weights(ready, store))
    given = {name: torch.as_tensor(array) for name, array in inputs.items()}
    return lambda: program.run("forward", {}, given)


def onnx_call(module: Module, inputs: Mapping[str, Any], profile: str, out: Path) -> tuple[Callable[[], Any], int]:
    target = get_target("onnx")
    out.mkdir()
    options = target.options({"profile": profile})
    target.emit(EmitRequest(module, WeightStore.random(module, 0), out, options, lambda what, share: None))
    session = ort.InferenceSession(str(out / "forward.onnx"), runtime_options(1), providers=["CPUExecutionProvider"])
    given = {i.name: np.asarray(inputs[i.name]) for i in session.get_inputs()}
    import onnx_ir

    return lambda: session.run(None, given), len(list(onnx_ir.load(out / "forward.onnx").graph))


def coreml_count(module: Module, out: Path) -> int:
    """Return the operations of the package of a module."""
    target = get_target("coreml")
    out.mkdir()
    request = EmitRequest(module, WeightStore.random(module, 0), out, target.options({"verify": "none"}),
                          lambda what, share: None)
    return sum(len(ops) for ops in target.emit(request).nodes.values())


def measure(op: str, folder: Path) -> dict[str, Any]:
    """Return one row: what the op decomposes into, nodes of programs and ratios of times."""
    module, inputs = module_of(op)
    split = decompose(module, lambda node: False)
    into = core_nodes(split)
    numbers: dict[str, Any] = {"op": op, "into": into, "nodes": {}, "ratios": {}, "microseconds": {}}
    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
    if get_target("torch").caps.reason(op, OPS[op][1]) is None:
        calls["torch"] = torch_call(module, inputs), torch_call(split, inputs)
    for profile in ("plain", "fused"):
        mine, count = onnx_call(module, inputs, profile, folder / f"{op}-{profile}")
        other, parts = onnx_call(split, inputs, profile, folder / f"{op}-{profile}-split")
        calls[f"onnx ({profile})"] = mine, other
        numbers["nodes"][f"onnx ({profile})"] = count, parts
    numbers["nodes"]["coreml"] = (
        coreml_count(module, folder / f"{op}-coreml"), coreml_count(split, folder / f"{op}-coreml-split"))
    for name, (native, decomposed) in calls.items():
        seconds = interleaved({"native": timed(native), "decomposed": timed(decomposed)})
        numbers["ratios"][name] = ratio(seconds["decomposed"], seconds["native"]).median
        numbers["microseconds"][name] = [1e6 * float(np.median(seconds[k])) for k in ("native", "decomposed")]
    said = ", ".join(f"{name} {r:.2f}" for name, r in numbers["ratios"].items())
    return row(op, f"{len(into)} core nodes; time decomposed / as it is: {said}", **numbers)


def main() -> int:
    """Measure every composite; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-record", action="store_true", help="print only")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(op, Path(folder)) for op in OPS]
    conditions = {"threads": 1, "tokens": TOKENS, "width": WIDTH, "torch": version("torch"),
                  "onnxruntime": version("onnxruntime"), "coremltools": version("coremltools")}
    entry = {"rows": rows} if given.no_record else record("op_costs", conditions, rows)
    show(entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
