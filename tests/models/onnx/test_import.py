"""Imported decoders compute what the exported files compute, and have the shape of our own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.ir.graph import Module
from omnic.ir.reference import ReferenceSession
from omnic.ir.text import parse_module, print_module
from omnic.ir.verify import verify
from omnic.models.onnx import import_onnx
from tests.models.onnx.exports import NAMES, exported
from tests.models.onnx.running import calls_of, error, imported, original

DATA = Path(__file__).parent / "data"
#: one of each kind of attention, FFN and mask; their relatives are in the slow suite
TRACED = ("llama", "llama_tied", "gemma2", "gpt2", "gpt_neox", "qwen3_moe", "gpt_oss", "deepseek_moe", "nanogpt",
          "cached", "mla_naive", "mla_absorbed")  # fmt: skip
#: dynamo takes ten seconds and more a model: these few stand for its forms in the fast suite
DYNAMO = ("llama", "mla_absorbed", "nanogpt")
F32 = 2e-5


def check(path: Path, batch: int = 2) -> Module:
    module, weights = import_onnx(path, 64 if "gpt2" not in path.name and "nanogpt" not in path.name else None)
    verify(module)
    calls = calls_of(module, batch)
    for ours, theirs in zip(imported(module, weights, calls), original(path, module, calls), strict=True):
        assert error(ours, theirs) < F32
    assert print_module(parse_module(print_module(module))) == print_module(module)
    return module


@pytest.mark.parametrize("name", TRACED)
def test_traced_decoders_compute_the_same(name: str, exports_folder: Path) -> None:
    check(exported(name, "trace", exports_folder))


@pytest.mark.parametrize("name", DYNAMO)
def test_dynamo_decoders_compute_the_same(name: str, exports_folder: Path) -> None:
    check(exported(name, "dynamo", exports_folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n not in TRACED])
def test_the_other_traced_decoders_compute_the_same(name: str, exports_folder: Path) -> None:
    check(exported(name, "trace", exports_folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n not in DYNAMO])
def test_every_dynamo_decoder_computes_the_same(name: str, exports_folder: Path) -> None:
    check(exported(name, "dynamo", exports_folder))


@pytest.mark.parametrize("name", ["genai_llama", "genai_gemma2"])
def test_the_fused_graphs_of_the_genai_builder_come_in_as_composites(name: str) -> None:
    module = check(DATA / f"{name}.onnx", batch=1)
    ops = [n.op for n in module.function().nodes]
    assert ops.count("attention") == 2 and ops.count("rope") == 4 and ops.count("lm_head") == 1
    assert ops.count("rms_norm") == (5 if name == "genai_llama" else 9)
    attention = [n for n in module.function().nodes if n.op == "attention"]
    if name == "genai_gemma2":
        assert [n.attrs.get("window", 0) for n in attention] == [4, 0]
        assert all(n.attrs["softcap"] == 50.0 for n in attention)


def test_the_signature_is_that_of_the_one_forward(exports_folder: Path) -> None:
    module, _ = import_onnx(exported("llama", "trace", exports_folder), 32, chunk=16, batch=4)
    function = module.function()
    names = [p.value.name for p in function.params]
    assert names == ["tokens", "positions", "start", "length", "rows", "kv.0.k", "kv.0.v", "kv.1.k", "kv.1.v"]
    assert [r.name for r in function.results] == ["logits", "kv.0.k", "kv.0.v", "kv.1.k", "kv.1.v"]
    assert str(function.results[0].value.type) == "f32[B, R, 97]"
    assert str(module.states["kv.0.k"].type) == "f32[B, 2, 32, 12]"
    assert {s.role for s in module.states.values()} == {"k", "v"}
    assert {name: str(r) for name, r in module.dims.items()} == {"B": "1..4", "T": "1..16", "R": "1..16"}


def test_weights_have_the_names_of_our_own_models_and_a_tied_head_is_one_weight(exports_folder: Path) -> None:
    module, weights = import_onnx(exported("llama_tied", "trace", exports_folder))
    assert "head" not in module.weights
    assert {"embed", "blocks.0.attn.q", "blocks.1.ffn.down", "blocks.0.attn_norm", "final_norm"} <= set(module.weights)
    assert weights.array("blocks.0.attn.k").shape == (24, 48)
    head = next(n for n in module.function().nodes if n.op == "lm_head").operands[1]
    assert head is not None and head.name == "embed"


def test_shape_sub_graphs_leave_no_node(exports_folder: Path) -> None:
    module, _ = import_onnx(exported("llama", "trace", exports_folder))
    ops = {n.op for n in module.function().nodes}
    assert not ops & {"floordiv", "index_select", "gather", "eq", "mod"}
    assert sum(n.op == "le" for n in module.function().nodes) == 1
    assert sum(n.op == "linear" for n in module.function().nodes) == 14


def test_rows_roll_back_and_start_where_they_stand(exports_folder: Path) -> None:
    """Rows of different lengths, a rollback, and wanted rows: what the exported file has no inputs for."""
    module, weights = import_onnx(exported("gemma2", "trace", exports_folder), 32)
    tokens = calls_of(module, 2, (9,))[0]
    whole = ReferenceSession(module, weights, batch=2)
    expected = whole.forward(tokens).logits
    ragged = ReferenceSession(module, weights, batch=2)
    ragged.forward(tokens[:, :5], length=[5, 3])
    second = np.stack([tokens[0, 5:9], np.append(tokens[1, 3:6], 0)])
    got = ragged.forward(second, length=[4, 3]).logits
    assert np.abs(got[0] - expected[0, 5:9]).max() < 1e-9
    assert np.abs(got[1, :3] - expected[1, 3:6]).max() < 1e-9
    ragged.rollback([6, 6])
    again = ragged.forward(tokens[:, 6:9], rows=[[2], [0]]).logits
    assert np.abs(again[0, 0] - expected[0, 8]).max() < 1e-9
    assert np.abs(again[1, 0] - expected[1, 6]).max() < 1e-9


def test_positions_reach_rope_where_the_graph_counts_them_itself(exports_folder: Path) -> None:
    """The hand-written decoder has no input of positions; shifted ones must leave it alike, for rope is relative."""
    module, weights = import_onnx(exported("cached", "trace", exports_folder), 32)
    tokens = calls_of(module, 1, (6,))[0]
    plain = ReferenceSession(module, weights).forward(tokens).logits
    moved = ReferenceSession(module, weights).forward(tokens, positions=np.arange(6)[None] + 9).logits
    spread = ReferenceSession(module, weights).forward(tokens, positions=2 * np.arange(6)[None]).logits
    assert np.abs(plain - moved).max() < 1e-6
    assert np.abs(plain - spread).max() > 1e-3


def test_a_table_of_positions_bounds_the_capacity(exports_folder: Path) -> None:
    from omnic.errors import InputError

    path = exported("gpt2", "trace", exports_folder)
    module, _ = import_onnx(path)
    assert module.meta["capacity"] == 64
    with pytest.raises(InputError, match="has tables of 64 positions, the capacity is 65"):
        import_onnx(path, 65)


@pytest.mark.parametrize("profile", ["fused", "plain"])
def test_an_imported_decoder_goes_through_the_onnx_target(profile: str, exports_folder: Path, tmp_path: Path) -> None:
    """Back to ONNX, with its states in place and one program for prefill and decode."""
    from tests.targets.onnx.helpers import emitted, session_of

    module, weights = import_onnx(exported("llama", "trace", exports_folder), 32, batch=1)
    calls = calls_of(module, 1)
    program = session_of(emitted(module, weights, tmp_path, profile).module, tmp_path)
    for tokens, wanted in zip(calls, imported(module, weights, calls), strict=True):
        assert error(program.forward(tokens).logits, wanted) < F32
