"""Attention of the kernel library against the same sums composed of MatMul, Softmax, MatMul in ONNX Runtime.

Decoding one token over a full cache, one thread, both in one process in turning order; figures are CPU seconds, since
both run on the calling thread.  Prints ratios (ONNX Runtime's time over ours), the error of each against f64, and
appends to bench/history/kernels_attention.jsonl.

    python bench/kernels_attention.py [--quick] [--level avx2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from ctypes import byref
from typing import Any

import numpy as np
import onnxruntime as ort
from common import ROUNDS, interleaved, ratio, record, row, show
from onnx import TensorProto, helper

from omnic.ir.packing import quantise
from omnic.ir.types import Storage
from omnic.runtime.kernels.abi import Mask
from omnic.runtime.kernels.caches import hold
from omnic.runtime.kernels.calls import view
from omnic.runtime.kernels.library import Kernels, address, kernels

Array = np.ndarray[Any, Any]
#: latent + rotated numbers, heads, context
MLA = ((160, 8, 4096), (160, 16, 4096), (576, 16, 4096), (160, 8, 32768), (576, 16, 32768))
#: heads, heads of keys, numbers of a head, context
ATTENTION = ((32, 8, 64, 2048), (32, 8, 64, 32768), (12, 12, 64, 2048))
BAR = 3.0
ROPE = 64
ELEMENTS: dict[str, Callable[[Array], Any]] = {
    "f32": lambda x: x,
    "f16": lambda x: x.astype(np.float16),
    "i8": lambda x: quantise(x, Storage("i8", 32)),
}


def session(nodes: list[Any], inputs: dict[str, list[int]], constants: dict[str, Array], y: list[int]) -> Any:
    """Return a session of a graph with one result y."""
    graph = helper.make_graph(
        nodes, "composed", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [helper.make_tensor(n, TensorProto.INT64, c.shape, c) for n, c in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def composed_mla(width: int, heads: int, context: int) -> Any:
    """softmax(q C^T) C[:, :L] of q [H, L + R] (scaled) and C [S, L + R]."""
    nodes = [
        helper.make_node("Gemm", ["q", "c"], ["scores"], transB=1),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("Slice", ["c", "first", "last", "axis"], ["v"]),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    constants = {"first": np.array([0]), "last": np.array([width - ROPE]), "axis": np.array([1])}
    return session(nodes, {"q": [heads, width], "c": [context, width]}, constants, [heads, width - ROPE])


def composed_attention(heads: int, groups: int, d: int, context: int) -> Any:
    """softmax(q K^T) V of q [G, H/G, D] (scaled), K and V [G, S, D]."""
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    per = heads // groups
    inputs = {"q": [groups, per, d], "k": [groups, context, d], "v": [groups, context, d]}
    return session(nodes, inputs, {}, [groups, per, d])


def last_token(context: int) -> tuple[Mask, Any]:
    """Return the mask of one token behind context - 1 others, and what it points into."""
    kept = (np.array([context - 1]), np.array([1]))
    return Mask(1, 1, address(kept[0]), address(kept[1]), None, None, 1.0, 0.0, 0), kept


def prepared(kern: Kernels, name: str, scratch: int, arguments: tuple[Any, ...], y: Array, *kept: Any) -> Any:
    """Return a run of one kernel that fills y, as a program calls it: every structure is made beforehand."""
    call, function = kern.call(scratch), getattr(kern.table, name)

    def run(_: Any = kept) -> Array:
        function(byref(call), *arguments)
        return y

    return run


def repeated(run: Callable[[], Array], least: float) -> Callable[[], float]:
    """Return CPU seconds of one run, of as many as take ``least`` seconds."""
    began = time.process_time()
    run()
    count = max(1, int(least / max(time.process_time() - began, 1e-6)))

    def timed() -> float:
        began = time.process_time()
        for _ in range(count):
            run()
        return (time.process_time() - began) / count

    return timed


def exact(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T) v in f64 over the last two dims."""
    scores = q.astype(np.float64) @ np.swapaxes(k.astype(np.float64), -1, -2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v.astype(np.float64)


def compare(
    what: str, theirs: Callable[[], Array], ours: dict[str, Callable[[], Array]], want: Array, rounds: int, least: float
) -> list[dict[str, Any]]:
    """Return one row for each type of our cache."""
    runs = {"onnxruntime": theirs, **ours}
    found = interleaved({name: repeated(run, least) for name, run in runs.items()}, rounds)
    size = float(np.sqrt(np.mean(want**2)))
    rows: list[dict[str, Any]] = []
    for name, run in ours.items():
        times = ratio(found["onnxruntime"], found[name])
        error = float(np.max(np.abs(run().reshape(want.shape) - want))) / size
        mine, other = (1e3 * float(np.median(found[n])) for n in (name, "onnxruntime"))
        rows.append(row(f"{what}, {name} cache: ORT's time / ours", f"{times} ({other:.3f} against {mine:.3f} ms)",
                        f">= {BAR}x" if what.startswith("mla") else "", times.reaches(BAR), ratio=times.median,
                        error_over_rms=error))
    return rows


def mla_rows(k: Kernels, width: int, heads: int, context: int, rounds: int, least: float) -> list[dict[str, Any]]:
    """Time one shape of absorbed MLA."""
    rng = np.random.default_rng(width + context)
    cache = rng.standard_normal((context, width)).astype(np.float32)
    q = (rng.standard_normal((heads, width)) / width**0.5).astype(np.float32)
    composed = composed_mla(width, heads, context)
    split = width - ROPE
    latents, turned = q[None, :, None, :split], q[None, :, None, split:]
    mask, tokens = last_token(context)
    scratch = k.scratch_attention(heads, 1, width, split, context)

    def ours(element: str) -> Callable[[], Array]:
        latent = hold(ELEMENTS[element](np.ascontiguousarray(cache[None, :, :split])))
        rope_k = hold(ELEMENTS[element](np.ascontiguousarray(cache[None, :, split:])))
        y = np.empty((1, heads, 1, split), np.float32)
        arguments = (byref(mask), heads, view(latents), view(turned), byref(latent.struct()), byref(rope_k.struct()),
                     view(y))
        return prepared(k, "mla", scratch, arguments, y, latent, rope_k, q, tokens)

    what = f"mla, {split} + {ROPE}, {heads} heads, context {context}"
    return compare(what, lambda: composed.run(None, {"q": q, "c": cache})[0], {e: ours(e) for e in ELEMENTS},
                   exact(q, cache, cache[:, :split]), rounds, least)


def attention_rows(
    kern: Kernels, heads: int, groups: int, d: int, context: int, rounds: int, least: float
) -> list[dict[str, Any]]:
    """Time one shape of grouped attention."""
    rng = np.random.default_rng(heads + context)
    k, v = (rng.standard_normal((groups, context, d)).astype(np.float32) for _ in range(2))
    q = (rng.standard_normal((groups, heads // groups, d)) / d**0.5).astype(np.float32)
    composed = composed_attention(heads, groups, d, context)
    flat = q.reshape(1, heads, 1, d)
    mask, tokens = last_token(context)
    scratch = kern.scratch_attention(heads, 1, d, d, context)

    def ours(element: str) -> Callable[[], Array]:
        keys, values = hold(ELEMENTS[element](k[None])), hold(ELEMENTS[element](v[None]))
        y = np.empty((1, heads, 1, d), np.float32)
        arguments = (byref(mask), heads, groups, view(flat), byref(keys.struct()), byref(values.struct()), view(y))
        return prepared(kern, "attention", scratch, arguments, y, keys, values, flat, tokens)

    what = f"attention, {heads} heads of {d}, {groups} of keys, context {context}"
    return compare(what, lambda: composed.run(None, {"q": q, "k": k, "v": v})[0], {e: ours(e) for e in ELEMENTS},
                   exact(q, k, v), rounds, least)


def main() -> None:
    """Run every shape and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 rounds, nothing recorded")
    parser.add_argument("--level", help="a kernel level (default: the best)")
    arguments = parser.parse_args()
    kern = kernels(arguments.level)
    rounds, least = (5, 0.01) if arguments.quick else (ROUNDS, 0.02)
    rows: list[dict[str, Any]] = []
    for shape in MLA:
        rows += mla_rows(kern, *shape, rounds, least)
    for shape in ATTENTION:
        rows += attention_rows(kern, *shape, rounds, least)
    conditions = {"threads": 1, "rounds": rounds, "level": kern.level.name.lower(), "onnxruntime": ort.__version__,
                  "time": "CPU seconds"}
    if arguments.quick:
        show({"at": "", "processor": "", "conditions": conditions, "rows": rows})
    else:
        show(record("kernels_attention", conditions, rows))


if __name__ == "__main__":
    main()
