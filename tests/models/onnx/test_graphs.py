"""Single forms of graphs, written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from omnic.models.onnx import import_onnx
from tests.models.onnx.running import calls_of, error, imported, original


def ints(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def save(folder: Path, nodes: list[Any], inputs: dict[str, tuple[int, list[Any]]], outputs: list[str],
         weights: list[Any], opset: int = 20) -> Path:  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path = folder / "m.onnx"
    onnx.save(model, str(path))
    return path


def random(name: str, *shape: int) -> Any:
    seed = sum(name.encode())
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), name)


PAST: dict[str, tuple[int, list[Any]]] = {"past.k": (TensorProto.FLOAT, ["b", "p", 8]),
                                          "past.v": (TensorProto.FLOAT, ["b", "p", 8])}  # fmt: skip


@pytest.mark.parametrize("tokens", [1, "t"])
def test_queries_that_see_every_key_never_see_an_empty_slot(tokens: int | str, tmp_path: Path) -> None:
    """A decode-only export has no mask at all: past slots that hold nothing must not count."""
    nodes = [
        helper.make_node("Gather", ["embed", "tokens"], ["x"]),
        helper.make_node("MatMul", ["x", "wk"], ["k"]),
        helper.make_node("Concat", ["past.k", "k"], ["present.k"], axis=1),
        helper.make_node("Concat", ["past.v", "x"], ["present.v"], axis=1),
        helper.make_node("Transpose", ["present.k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "present.v"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "head"], ["logits"]),
    ]
    path = save(tmp_path, nodes, {"tokens": (TensorProto.INT64, ["b", tokens]), **PAST},
                ["logits", "present.k", "present.v"],
                [random("embed", 11, 8), random("wk", 8, 8), random("head", 8, 11)])
    module, weights = import_onnx(path, 16)
    calls = calls_of(module, 2, (1, 1, 1) if tokens == 1 else (4, 1, 3))
    for ours, theirs in zip(imported(module, weights, calls), original(path, module, calls), strict=True):
        assert error(ours, theirs) < 2e-5


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([helper.make_node("Einsum", ["x", "w"], ["y"], equation="btd,de->bte")], [random("w", 8, 8)]),
        ([helper.make_node("Gemm", ["f", "w", "c"], ["g"], alpha=0.5, beta=2.0, transB=1)],
         [random("w", 8, 8), random("c", 8)]),
        ([helper.make_node("LayerNormalization", ["x", "c", "d"], ["y"], epsilon=1e-3)],
         [random("c", 8), random("d", 8)]),
        ([helper.make_node("RMSNormalization", ["x", "c"], ["y"], epsilon=1e-3)], [random("c", 8)]),
        ([helper.make_node("Gelu", ["x"], ["y"], approximate="tanh")], []),
        ([helper.make_node("Softplus", ["x"], ["y"])], []),
        ([helper.make_node("Clip", ["x", "lo"], ["y"])], [numpy_helper.from_array(np.float32(-0.3), "lo")]),
        ([helper.make_node("Slice", ["x", "i0", "big", "i2", "i2"], ["h"]),
          helper.make_node("Concat", ["h", "h"], ["y"], axis=-1)],
         [ints("i0", 0), ints("big", 2**62), ints("i2", 2)]),
        ([helper.make_node("Split", ["x"], ["a", "b"], axis=-1, num_outputs=2),
          helper.make_node("Concat", ["b", "a"], ["y"], axis=-1)], []),
        ([helper.make_node("Pad", ["x", "pads"], ["h"]),
          helper.make_node("Slice", ["h", "i2", "big", "i2"], ["y"])],
         [ints("pads", 0, 0, 2, 0, 0, 0), ints("i2", 2), ints("big", 2**62)]),
        ([helper.make_node("TopK", ["x", "i8"], ["v", "at"]), helper.make_node("GatherElements", ["x", "at"], ["y"],
                                                                               axis=2)], [ints("i8", 8)]),
        ([helper.make_node("ReduceL2", ["x", "last"], ["n"]), helper.make_node("Div", ["x", "n"], ["y"])],
         [ints("last", -1)]),
        ([helper.make_node("Floor", ["x"], ["h"]), helper.make_node("Sub", ["x", "h"], ["y"])], []),
        ([helper.make_node("Tile", ["x", "reps"], ["h"]), helper.make_node("Slice", ["h", "i8", "big", "i2"], ["y"])],
         [ints("reps", 1, 1, 2), ints("i8", 8), ints("big", 2**62), ints("i2", 2)]),
    ],
    ids=lambda value: "-".join(n.op_type for n in value) if value and hasattr(value[0], "op_type") else "",
)  # fmt: skip
def test_ops_compute_what_onnxruntime_computes(nodes: list[Any], weights: list[Any], tmp_path: Path) -> None:
    flat: list[Any] = []
    if nodes[0].op_type == "Gemm":
        flat = [helper.make_node("Reshape", ["x", "two"], ["f"])]
        nodes = [*nodes, helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Reshape", ["g", "s"], ["y"])]
        weights = [*weights, ints("two", -1, 8)]
    body = [helper.make_node("Gather", ["embed", "tokens"], ["x"]), *flat, *nodes,
            helper.make_node("MatMul", ["y", "head"], ["logits"])]
    opset = 23 if any(n.op_type == "RMSNormalization" for n in nodes) else 20
    path = save(tmp_path, body, {"tokens": (TensorProto.INT64, ["b", "t"])}, ["logits"],
                [random("embed", 11, 8), random("head", 8, 11), *weights], opset)
    module, store = import_onnx(path)
    calls = calls_of(module, 2, (5, 1))
    for ours, theirs in zip(imported(module, store, calls), original(path, module, calls), strict=True):
        assert error(ours, theirs) < 2e-5


def test_a_graph_of_the_last_token_alone_gives_every_wanted_row(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["embed", "tokens"], ["x"]),
        helper.make_node("Slice", ["x", "last", "big", "one"], ["h"]),
        helper.make_node("MatMul", ["h", "head"], ["logits"]),
    ]
    path = save(tmp_path, nodes, {"tokens": (TensorProto.INT64, ["b", "t"])}, ["logits"],
                [random("embed", 11, 8), random("head", 8, 11), ints("last", -1), ints("big", 2**62), ints("one", 1)])
    module, store = import_onnx(path)
    calls = calls_of(module, 2, (5,))
    ours, theirs = imported(module, store, calls)[0], original(path, module, calls)[0]
    assert ours.shape == (2, 5, 11) and theirs.shape == (2, 1, 11)
    assert error(ours[:, -1:], theirs) < 2e-5
