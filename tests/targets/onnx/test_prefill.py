"""prefill-int8 on the ONNX target: exact products, the choice by call, weights read back, and with other options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as onnx
import pytest

from omnic.ir.graph import Module
from omnic.ir.packing import QTensor
from omnic.ir.reference import ReferenceSession
from omnic.ir.weights import WeightStore, saved
from omnic.passes.base import parse_pass, run_passes
from omnic.runtime.session import SessionOptions
from omnic.targets.onnx import columns
from omnic.targets.onnx.emit import TABLE_FILE
from omnic.targets.onnx.session import OnnxSession, Programs
from omnic.targets.onnx.tensors import ProgramSource
from tests.targets.onnx.helpers import emitted, model, spec_text

PASSES = ("int4-packing{group=16}", "prefill-int8{from_tokens=4}")
BIASED = "{kind: gqa, heads: 4, kv_heads: 2, head_dim: 8, rope: {base: 10000}, bias: true}"


def made(tmp_path: Path, profile: str = "fused", text: str = "", **options: Any) -> tuple[Module, WeightStore, Path]:
    module, store = model(text or spec_text())
    after = run_passes(module, [parse_pass(p) for p in PASSES]).module
    result = emitted(after, store.with_module(after), tmp_path / "out", profile, **options)
    return result.module, store.with_module(result.module), tmp_path / "out"


def session_of(folder: Path, module: Module) -> OnnxSession:
    return OnnxSession(Programs(folder, module, SessionOptions(threads=1)))


def off(found: Any, wanted: Any) -> float:
    """Return the rms of the error over that of the logits."""
    return float(np.sqrt(((np.asarray(found) - wanted) ** 2).mean() / (np.asarray(wanted) ** 2).mean()))


@pytest.mark.parametrize(("profile", "text"), [("fused", ""), ("plain", ""), ("fused", spec_text(BIASED))])
def test_each_call_runs_its_own_program(tmp_path: Path, profile: str, text: str) -> None:
    module, store, folder = made(tmp_path, profile, text, **({"accuracy_level": 0} if profile == "fused" else {}))
    session, reference = session_of(folder, module), ReferenceSession(module, store)
    tokens = np.random.default_rng(0).integers(0, 96, (1, 30))
    at = 0
    for size in (5, 1, 3, 16, 1, 4):
        part = tokens[:, at : at + size]
        found, wanted = session.forward(part).logits.copy(), reference.forward(part).logits
        assert off(found, wanted) < 2e-2, size
        at += size
    other = OnnxSession(session.programs)
    ids = tokens[:, :5]
    far = off(other._call("forward", {"tokens": ids, "positions": np.arange(5)[None], "start": np.zeros(1, np.int64),
                                      "length": np.full(1, 5), "rows": np.arange(5)[None]})["logits"],
              ReferenceSession(module, store).forward(ids).logits)
    assert far > 5e-2, "the program of short calls gives the same numbers"


def test_a_ragged_batch_goes_by_the_call(tmp_path: Path) -> None:
    module, store, folder = made(tmp_path)
    session, reference = session_of(folder, module), ReferenceSession(module, store, batch=3)
    session.reset(3)
    tokens, length = np.random.default_rng(0).integers(0, 96, (3, 6)), [6, 3, 2]
    found, wanted = session.forward(tokens, length=length).logits, reference.forward(tokens, length=length).logits
    valid = np.arange(6)[None] < np.asarray(length)[:, None]
    assert off(found[valid], wanted[valid]) < 4e-2
    # No row is as long as the rule says, and the call is.
    short = [2, 2, 1]
    found, wanted = session.forward(tokens, length=short).logits, reference.forward(tokens, length=short).logits
    valid = np.arange(6)[None] < np.asarray(short)[:, None]
    assert off(found[valid], wanted[valid]) < 4e-2


@pytest.mark.parametrize("count", [300, 257])
def test_the_pieces_of_a_long_call_are_all_of_its_program(tmp_path: Path, count: int) -> None:
    text = spec_text(repeat=1).replace("context: 64", "context: 320").replace("chunk: 16", "chunk: 300")
    module, store, folder = made(tmp_path, text=text)
    tokens = np.random.default_rng(0).integers(0, 96, (1, count))
    found = session_of(folder, module).forward(tokens).logits
    assert off(found, ReferenceSession(module, store).forward(tokens).logits) < 4e-2


def test_products_are_exact_integers(tmp_path: Path) -> None:
    _, _, folder = made(tmp_path)
    for name in ("prefill", "prefill.row"):
        kinds = [n.op_type for n in onnx.load(folder / f"{name}.onnx").graph.all_nodes()]
        # Queries, keys and values are one product; what several products read is quantised once.
        assert kinds.count("MatMulIntegerToFloat") == 2 * 5
        assert kinds.count("QuantizeLinear") == 2 * 4
        assert kinds.count("DynamicQuantizeMatMul") == 0
    assert "MatMulIntegerToFloat" not in {n.op_type for n in onnx.load(folder / "forward.onnx").graph.all_nodes()}


def test_the_copies_come_back_bit_by_bit(tmp_path: Path) -> None:
    module, store, folder = made(tmp_path)
    source = ProgramSource(folder, json.loads((folder / TABLE_FILE).read_text()))
    copies = [name for name in module.weights if name.endswith(".prefill")]
    assert len(copies) == 2 * 7
    for name in copies:
        wanted, rows = store.quantised(name), module.weights[name].type.shape[0]
        assert isinstance(rows, int)
        for span in ((0, rows), (3, 7)):
            found = source.quantised(name, span)
            part = wanted.pick(slice(*span))
            np.testing.assert_array_equal(found.codes, part.codes)
            np.testing.assert_array_equal(found.scale, part.scale)
            assert found.scale.dtype == part.scale.dtype
    back = WeightStore(saved(module), source)
    np.testing.assert_array_equal(back.array(copies[0]), store.array(copies[0]))


def test_codes_are_turned_and_moved_to_unsigned() -> None:
    codes = np.array([[-128, 0, 127], [1, -1, 2]], np.int8)
    q = QTensor(codes, np.array([[0.5], [2.0]], np.float16), None, columns_type())
    parts = columns.parts_of(q)
    assert parts[columns.CODES].tolist() == [[0, 128, 255], [129, 127, 130]]
    assert parts[columns.SCALE].tolist() == [0.5, 2.0]
    again = columns.back(q.type, parts)
    assert again.codes.tolist() == codes.tolist()
    assert again.scale.tolist() == [[0.5], [2.0]]


def columns_type() -> Any:
    from omnic.passes.prefill_int8 import CODES

    return CODES


def test_prepacked_programs_give_the_same(tmp_path: Path) -> None:
    module, store, folder = made(tmp_path, prepacked=True)
    assert (folder / "prefill.row.packed.onnx").is_file()
    tokens = np.random.default_rng(0).integers(0, 96, (1, 9))
    found = session_of(folder, module).forward(tokens).logits
    assert off(found, ReferenceSession(module, store).forward(tokens).logits) < 4e-2
