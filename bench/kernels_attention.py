"""Attention of the kernel library against the same sums composed of MatMul, Softmax, MatMul in ONNX Runtime.

Decoding one token over a full cache, and the first 512 tokens of a prompt; one thread, both in one process in turning
order, and between them fused multiply-adds alone (multiply.c), the most that a core can do.  Figures are CPU seconds,
since all run on the calling thread.  Prints ratios (ONNX Runtime's time over ours), the share of the core's
multiply-adds that ours reach (those that the queries need, masked tokens not counted), the error of each against f64,
and appends to bench/history/kernels_attention.jsonl.

    python bench/kernels_attention.py [--quick] [--level avx2]
"""

from __future__ import annotations

import argparse
import ctypes
import functools
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

from omnic.ir.packing import quantise
from omnic.ir.types import Storage
from omnic.runtime.kernels.abi import Mask
from omnic.runtime.kernels.caches import hold
from omnic.runtime.kernels.calls import view
from omnic.runtime.kernels.library import Kernels, address, kernels
from omnic.runtime.kernels.toolchain import find_compiler, host_triple

Array = np.ndarray[Any, Any]
#: latent + rotated numbers, heads, context
MLA = ((160, 8, 4096), (160, 16, 4096), (576, 16, 4096), (160, 8, 32768), (576, 16, 32768))
#: heads, heads of keys, numbers of a head, context, tokens of the call
ATTENTION = ((32, 8, 64, 2048, 1), (32, 8, 64, 32768, 1), (12, 12, 64, 2048, 1), (32, 8, 64, 512, 512),
             (12, 12, 64, 512, 512))
BAR = 3.0
ROPE = 64
ELEMENTS: dict[str, Callable[[Array], Any]] = {
    "f32": lambda x: x,
    "f16": lambda x: x.astype(np.float16),
    "i8": lambda x: quantise(x, Storage("i8", 32)),
    "i4": lambda x: quantise(x, Storage("i4", 32)),
}
#: bytes of a register, and chains that hide the latency of its multiply-adds
REGISTERS = {"avx512": (64, 16), "amx": (64, 16), "neon": (16, 16), "dotprod": (16, 16), "i8mm": (16, 16)}
#: multiply-adds of one run of multiply.c
MULTIPLIED = 1 << 25


@functools.cache
def multiplier(level: str) -> Callable[[], Any]:
    """Return what does :data:`MULTIPLIED` fused multiply-adds in full registers of a level."""
    triple = host_triple()
    compiler, (width, chains) = find_compiler(triple), REGISTERS.get(level, (32, 12))
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "multiply.so"
        compiler.run([*compiler.flags(triple, "avx2" if level == "generic" else level, "release"), "-shared",
                      "-ffp-contract=fast", "-fvisibility=default", f"-DBYTES={width}", f"-DCHAINS={chains}",
                      Path(__file__).with_name("multiply.c"), "-o", library])
        function = ctypes.CDLL(str(library)).multiply
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_int64, ctypes.c_float]
    return lambda: function(MULTIPLIED // (width // 4 * chains), 1.0)


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


def composed_mla(width: int, heads: int, context: int, rope: int = ROPE) -> Any:
    """softmax(q C^T) C[:, :L] of q [H, L + R] (scaled) and C [S, L + R]."""
    nodes = [
        helper.make_node("Gemm", ["q", "c"], ["scores"], transB=1),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("Slice", ["c", "first", "last", "axis"], ["v"]),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    constants = {"first": np.array([0]), "last": np.array([width - rope]), "axis": np.array([1])}
    return session(nodes, {"q": [heads, width], "c": [context, width]}, constants, [heads, width - rope])


def composed_attention(heads: int, groups: int, d: int, context: int, tokens: int) -> Any:
    """softmax(q K^T + mask) V of q [G, H/G * T, D] (scaled), K and V [G, S, D]; one token needs no mask."""
    queries = heads // groups * tokens
    inputs = {"q": [groups, queries, d], "k": [groups, context, d], "v": [groups, context, d]}
    nodes = [helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
             helper.make_node("MatMul", ["q", "kt"], ["scores"])]
    if tokens > 1:
        inputs["mask"] = [queries, context]
        nodes.append(helper.make_node("Add", ["scores", "mask"], ["seen"]))
    nodes += [helper.make_node("Softmax", ["seen" if tokens > 1 else "scores"], ["p"], axis=-1),
              helper.make_node("MatMul", ["p", "v"], ["y"])]
    return session(nodes, inputs, {}, [groups, queries, d])


def last_tokens(context: int, tokens: int = 1) -> tuple[Mask, Any]:
    """Return the mask of the last tokens of a context, and what it points into."""
    kept = (np.array([context - tokens]), np.array([tokens]))
    return Mask(1, tokens, address(kept[0]), address(kept[1]), None, None, 1.0, 0.0, 0), kept


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


def exact(q: Array, k: Array, v: Array, mask: Array | float = 0.0) -> Array:
    """softmax(q k^T + mask) v in f64 over the last two dims."""
    scores = q.astype(np.float64) @ np.swapaxes(k.astype(np.float64), -1, -2) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v.astype(np.float64)


def compare(
    what: str, kern: Kernels, theirs: Callable[[], Array], ours: dict[str, Callable[[], Array]], want: Array,
    multiplied: int, rounds: int, least: float,
) -> list[dict[str, Any]]:
    """Return one row for each type of our cache; ``multiplied``: multiply-adds that the sums need."""
    runs = {"onnxruntime": theirs, "multiply": multiplier(kern.level.name.lower()), **ours}
    found = interleaved({name: repeated(run, least) for name, run in runs.items()}, rounds)
    size = float(np.sqrt(np.mean(want**2)))
    rows: list[dict[str, Any]] = []
    for name, run in ours.items():
        times = ratio(found["onnxruntime"], found[name])
        error = float(np.max(np.abs(run().reshape(want.shape) - want))) / size
        mine, other = (1e3 * float(np.median(found[n])) for n in (name, "onnxruntime"))
        share = ratio([t * multiplied / MULTIPLIED for t in found["multiply"]], found[name]).median
        rows.append(row(f"{what}, {name} cache: ORT's time / ours",
                        f"{times} ({other:.3f} against {mine:.3f} ms; {share:.0%} of the core's multiply-adds)",
                        f">= {BAR}x" if what.startswith("mla") else "", times.reaches(BAR), ratio=times.median,
                        share_of_multiply_adds=share, error_over_rms=error))
    return rows


def mla_rows(
    k: Kernels, width: int, heads: int, context: int, rounds: int, least: float, rope: int = ROPE
) -> list[dict[str, Any]]:
    """Time one shape of absorbed MLA; ``rope`` of the ``width`` numbers are rotated ones."""
    rng = np.random.default_rng(width + context)
    cache = rng.standard_normal((context, width)).astype(np.float32)
    q = (rng.standard_normal((heads, width)) / width**0.5).astype(np.float32)
    composed = composed_mla(width, heads, context, rope)
    split = width - rope
    latents, turned = q[None, :, None, :split], q[None, :, None, split:]
    mask, tokens = last_tokens(context)
    scratch = k.scratch_attention(heads, 1, width, split, context)

    def ours(element: str) -> Callable[[], Array]:
        latent = hold(ELEMENTS[element](np.ascontiguousarray(cache[None, :, :split])))
        rope_k = hold(ELEMENTS[element](np.ascontiguousarray(cache[None, :, split:])))
        y = np.empty((1, heads, 1, split), np.float32)
        arguments = (byref(mask), heads, view(latents), view(turned), byref(latent.struct()), byref(rope_k.struct()),
                     view(y))
        return prepared(k, "mla", scratch, arguments, y, latent, rope_k, q, tokens)

    what = f"mla, {split} + {rope}, {heads} heads, context {context}"
    return compare(what, k, lambda: composed.run(None, {"q": q, "c": cache})[0], {e: ours(e) for e in ELEMENTS},
                   exact(q, cache, cache[:, :split]), heads * context * (width + split), rounds, least)


def attention_rows(
    kern: Kernels, heads: int, groups: int, d: int, context: int, tokens: int, rounds: int, least: float
) -> list[dict[str, Any]]:
    """Time one shape of grouped attention."""
    rng = np.random.default_rng(heads + context)
    k, v = (rng.standard_normal((groups, context, d)).astype(np.float32) for _ in range(2))
    per = heads // groups
    q = (rng.standard_normal((groups, per * tokens, d)) / d**0.5).astype(np.float32)
    composed, inputs = composed_attention(heads, groups, d, context, tokens), {"q": q, "k": k, "v": v}
    later = np.arange(context) > np.arange(context - tokens, context)[:, None]
    hidden = np.tile(np.where(later, np.float32(-1e30), np.float32(0)), (per, 1))
    if tokens > 1:
        inputs["mask"] = hidden
    flat = q.reshape(1, heads, tokens, d)
    mask, kept = last_tokens(context, tokens)
    scratch = kern.scratch_attention(heads, tokens, d, d, context)

    def ours(element: str) -> Callable[[], Array]:
        keys, values = hold(ELEMENTS[element](k[None])), hold(ELEMENTS[element](v[None]))
        y = np.empty((1, heads, tokens, d), np.float32)
        arguments = (byref(mask), heads, groups, view(flat), byref(keys.struct()), byref(values.struct()), view(y))
        return prepared(kern, "attention", scratch, arguments, y, keys, values, flat, kept)

    call = f"context {context}" if tokens == 1 else f"{tokens} tokens of a prompt"
    return compare(f"attention, {heads} heads of {d}, {groups} of keys, {call}", kern,
                   lambda: composed.run(None, inputs)[0], {e: ours(e) for e in ELEMENTS}, exact(q, k, v, hidden),
                   2 * d * heads * int((~later).sum()), rounds, least)


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
