"""Products of the kernel library against reading alone, and MatMulNBits of ONNX Runtime (accuracy 4, blocks of 32).

Decoding reads a set of distinct matrices that no cache holds, from a mapped file as a program reads its weights; the
read limit is one pass over the same bytes by read.c of `omnic bench`, each thread its share.  Prefill multiplies by
one matrix.  All in one process in turning order; figures of one thread are CPU seconds, of more threads the wall's.
Appends to bench/history/kernels_products.jsonl.

    python bench/kernels_products.py [--quick] [--level avx2] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import byref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from common import ROUNDS, interleaved, ratio, record, row, show
from onnx import TensorProto, helper

from omnic.bench.reading import Bytes, mapped, reader
from omnic.runtime.kernels.abi import Activation, Weight
from omnic.runtime.kernels.library import Kernels, address, kernels
from omnic.runtime.kernels.packing import Packed, PanelType, part_bytes, weight_of

Array = np.ndarray[Any, Any]
GROUP = 32
TYPES = {"i4<g32, s4>": PanelType("i4", "s4", GROUP), "i4<g32>": PanelType("i4", "f16", GROUP)}
#: share of the read limit, times ONNX Runtime's speed
DECODE_BAR, PREFILL_BAR = 0.85, 1.5


@contextmanager
def matrices(type: PanelType, size: int, count: int, rng: np.random.Generator) -> Iterator[tuple[list[Packed], Bytes]]:
    """Give square matrices of random codes and like scales in a mapped file, and all its bytes."""
    sizes = part_bytes(type, size, size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.bin"
        with path.open("wb") as file:
            for _ in range(count):
                for name, bytes in sizes.items():
                    parts = {"codes": rng.integers(0, 256, bytes, np.uint8), "row": np.full(size, 0.002, np.float32)}
                    scales = np.full(bytes, 0x77, np.uint8) if type.scale == "s4" else np.full(bytes // 2, 0.01, "f2")
                    file.write(parts.get(name, scales).tobytes())
        all = mapped(path)
        whole, at, panels = all.view(), 0, []
        for _ in range(count):
            found: dict[str, Array] = {}
            for name, bytes in sizes.items():
                found[name], at = whole[at : at + bytes], at + bytes
            row = found["row"].view(np.float32) if "row" in found else None
            panels.append(Packed(type, size, size, found["codes"], found["scales"], None, row))
        yield panels, all


def clock(threads: int) -> Callable[[], float]:
    """Return what times a run: CPU seconds of one thread, or the wall's."""
    return time.thread_time if threads == 1 else time.perf_counter


def ours(kernel: Kernels, panels: list[Packed], x: Array) -> Callable[[], float]:
    """Return a run over all matrices that gives its seconds."""
    now = clock(kernel.threads)
    weights: list[Weight] = [weight_of(p) for p in panels]
    m, k = x.shape
    y = np.empty((m, panels[0].n), np.float32)
    scratch = kernel.scratch_linear(weights[0], m, int(Activation.I8_GROUP), GROUP)

    def run() -> float:
        began = now()
        for weight in weights:
            kernel.run("linear", byref(weight), address(x), m, k, int(Activation.I8_GROUP), GROUP, None, None, 0,
                       address(y), panels[0].n, scratch=scratch)
        return now() - began

    return run


def theirs(count: int, size: int, x: Array, rng: np.random.Generator, threads: int) -> Callable[[], float]:
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
    options.intra_op_num_threads = threads
    # Else its threads wait in a loop for some time after a run, on the cores of whoever is next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    now = clock(threads)

    def run() -> float:
        began = now()
        session.run(None, {"x": x})
        return now() - began

    return run


def reading(bytes: Bytes, threads: int, pool: ThreadPoolExecutor) -> Callable[[], float]:
    """Return a run in which each thread reads its share of the bytes once, and that gives its seconds."""
    _, read = reader()
    shares, now = np.array_split(bytes, threads), clock(threads)

    def run() -> float:
        began = now()
        others = [pool.submit(read, share) for share in shares[1:]]
        read(shares[0])
        for other in others:
            other.result()
        return now() - began

    return run


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds and small sets, nothing recorded")
    parser.add_argument("--level", help="a kernel level (default: the best one)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="how many threads, one after another")
    args = parser.parse_args()
    rounds, count, rows = (7 if args.quick else ROUNDS), (6 if args.quick else 16), []
    for threads in args.threads:
        kernel, rng = kernels(args.level, threads), np.random.default_rng(0)
        on = f"{threads} thread{'s' if threads > 1 else ''}"
        for name, type in TYPES.items():
            size = 4096
            x = rng.standard_normal((1, size)).astype(np.float32)
            with matrices(type, size, count, rng) as (panels, all), ThreadPoolExecutor(threads) as pool:
                found = interleaved({"read": reading(all, threads, pool), "ours": ours(kernel, panels, x),
                                     "theirs": theirs(count, size, x, rng, threads)}, rounds)
                share, faster = ratio(found["read"], found["ours"]), ratio(found["theirs"], found["ours"])
                speed = all.nbytes / float(np.median(found["ours"])) / 1e9
            what = f"decode {name}, {count} x {size}^2, {on}"
            rows.append(row(f"{what}, share of the read limit", f"{share} ({speed:.1f} GB/s)", f">= {DECODE_BAR}",
                            share.reaches(DECODE_BAR), ratio=share))
            rows.append(row(f"{what}, times MatMulNBits", str(faster), ratio=faster))
            for m in (16, 128, 512):
                size = 2048
                x = rng.standard_normal((m, size)).astype(np.float32)
                with matrices(type, size, 1, rng) as (panels, _):
                    found = interleaved({"ours": ours(kernel, panels, x), "theirs": theirs(1, size, x, rng, threads)},
                                        rounds)
                faster = ratio(found["theirs"], found["ours"])
                speed = 2 * m * size * size / float(np.median(found["ours"])) / 1e9
                rows.append(row(f"prefill {name}, {m} x {size}^2, {on}, times MatMulNBits",
                                f"{faster} ({speed:.0f} GFLOP/s)", f">= {PREFILL_BAR}", faster.reaches(PREFILL_BAR),
                                ratio=faster))
    conditions = {"level": kernels(args.level).level.name.lower(), "threads": args.threads,
                  "onnxruntime": ort.__version__}
    if args.quick:
        show({"rows": rows})
    else:
        show(record("kernels_products", conditions, rows))


if __name__ == "__main__":
    main()
