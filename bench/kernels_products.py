"""Products of the kernel library against reading alone, and MatMulNBits of ONNX Runtime (accuracy 4, blocks of 32).

Decoding reads a set of distinct matrices that no cache holds; prefill multiplies by one matrix.  One thread, all in one
process in turning order; figures are CPU seconds, since each runs on the calling thread.  The read limit is one
pass over as many bytes by read.c of `omnic bench`.  Appends to bench/history/kernels_products.jsonl.

    python bench/kernels_products.py [--quick] [--level avx2]
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable
from ctypes import byref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from common import ROUNDS, interleaved, ratio, record, row, show
from onnx import TensorProto, helper

from omnic.runtime.kernels.abi import Activation, Weight
from omnic.runtime.kernels.library import Kernels, address, kernels
from omnic.runtime.kernels.packing import Packed, PanelType, part_bytes, weight_of
from omnic.runtime.kernels.toolchain import find_compiler, host_triple

Array = np.ndarray[Any, Any]
READ = Path(__file__).resolve().parents[1] / "omnic" / "bench" / "support" / "read.c"
GROUP = 32
TYPES = {"i4<g32, s4>": PanelType("i4", "s4", GROUP), "i4<g32>": PanelType("i4", "f16", GROUP)}
#: share of the read limit, times ONNX Runtime's speed
DECODE_BAR, PREFILL_BAR = 0.85, 1.5


def random_panels(type: PanelType, size: int, rng: np.random.Generator) -> Packed:
    """Return a square matrix of random codes and like scales."""
    bytes = part_bytes(type, size, size)
    scales = np.full(bytes["scales"], 0x77, np.uint8) if type.scale == "s4" else np.full(
        bytes["scales"] // 2, 0.01, np.float16).view(np.uint8)
    row = np.full(size, 0.002, np.float32) if type.scale == "s4" else None
    return Packed(type, size, size, rng.integers(0, 256, bytes["codes"], np.uint8), scales, None, row)


def ours(kernel: Kernels, panels: list[Packed], x: Array) -> Callable[[], float]:
    """Return a run over all matrices that gives its CPU seconds."""
    weights: list[Weight] = [weight_of(p) for p in panels]
    m, k = x.shape
    y = np.empty((m, panels[0].n), np.float32)
    scratch = kernel.scratch_linear(weights[0], m, int(Activation.I8_GROUP), GROUP)

    def run() -> float:
        began = time.thread_time()
        for weight in weights:
            kernel.run("linear", byref(weight), address(x), m, k, int(Activation.I8_GROUP), GROUP, None, None, 0,
                       address(y), panels[0].n, scratch=scratch)
        return time.thread_time() - began

    return run


def theirs(count: int, size: int, x: Array, rng: np.random.Generator) -> Callable[[], float]:
    """Return a run of ``count`` MatMulNBits nodes on the same input, each with numbers of its own."""
    nodes, constants = [], []
    for i in range(count):
        codes = rng.integers(0, 256, (size, size // GROUP, GROUP // 2), np.uint8)
        scales = (rng.random(size * size // GROUP) * 0.01 + 0.01).astype(np.float32)
        constants += [helper.make_tensor(f"w{i}", TensorProto.UINT8, codes.shape, codes.tobytes(), raw=True),
                      helper.make_tensor(f"s{i}", TensorProto.FLOAT, scales.shape, scales.tobytes(), raw=True)]
        nodes.append(helper.make_node("MatMulNBits", ["x", f"w{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft",
                                      K=size, N=size, bits=4, block_size=GROUP, accuracy_level=4))
    results = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [len(x), size]) for i in range(count)]
    graph = helper.make_graph(
        nodes, "products", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))], results, constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run() -> float:
        began = time.thread_time()
        session.run(None, {"x": x})
        return time.thread_time() - began

    return run


def reading(size: int, level: str) -> Callable[[], float]:
    """Return a run that reads ``size`` bytes once (read.c, compiled for the level) and gives its CPU seconds."""
    triple = host_triple()
    compiler = find_compiler(triple, "release")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "read.so"
        flags = compiler.flags(triple, level, "release")
        compiler.run([*flags, "-fvisibility=default", "-shared", READ, "-o", library])
        read = ctypes.CDLL(str(library)).read_bytes
    read.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    memory = np.ones(size, np.uint8)

    def run() -> float:
        began = time.thread_time()
        read(address(memory), size)
        return time.thread_time() - began

    return run


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds and small sets, nothing recorded")
    parser.add_argument("--level", help="a kernel level (default: the best one)")
    args = parser.parse_args()
    kernel, rng = kernels(args.level), np.random.default_rng(0)
    rounds, count, rows = (7 if args.quick else ROUNDS), (6 if args.quick else 16), []
    for name, type in TYPES.items():
        size = 4096
        panels = [random_panels(type, size, rng) for _ in range(count)]
        x = rng.standard_normal((1, size)).astype(np.float32)
        bytes = sum(p.nbytes for p in panels)
        found = interleaved({"read": reading(bytes, kernel.level.name.lower()), "ours": ours(kernel, panels, x),
                             "theirs": theirs(count, size, x, rng)}, rounds)
        share, faster = ratio(found["read"], found["ours"]), ratio(found["theirs"], found["ours"])
        speed = bytes / float(np.median(found["ours"])) / 1e9
        rows.append(row(f"decode {name}, {count} x {size}^2, share of the read limit", f"{share} ({speed:.1f} GB/s)",
                        f">= {DECODE_BAR}", share.reaches(DECODE_BAR), ratio=share))
        rows.append(row(f"decode {name}, {count} x {size}^2, times MatMulNBits", str(faster), ratio=faster))
        for m in (16, 128, 512):
            size = 2048
            panels = [random_panels(type, size, rng)]
            x = rng.standard_normal((m, size)).astype(np.float32)
            found = interleaved({"ours": ours(kernel, panels, x), "theirs": theirs(1, size, x, rng)}, rounds)
            faster = ratio(found["theirs"], found["ours"])
            speed = 2 * m * size * size / float(np.median(found["ours"])) / 1e9
            rows.append(row(f"prefill {name}, {m} x {size}^2, times MatMulNBits", f"{faster} ({speed:.0f} GFLOP/s)",
                            f">= {PREFILL_BAR}", faster.reaches(PREFILL_BAR), ratio=faster))
    conditions = {"level": kernel.level.name.lower(), "threads": 1, "onnxruntime": ort.__version__}
    if args.quick:
        show({"rows": rows})
    else:
        show(record("kernels_products", conditions, rows))


if __name__ == "__main__":
    main()
