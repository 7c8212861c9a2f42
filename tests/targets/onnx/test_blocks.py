"""Weights of every storage type on ONNX Runtime: the reference's numbers, and the canonical codes read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omnic.errors import BundleError, InputError
from omnic.ir.graph import Module, Recipe
from omnic.ir.numeric import CLASSES, class_of, compare
from omnic.ir.packing import QTensor, quantise
from omnic.ir.reference import Interpreter
from omnic.ir.rewrite import retype_weights
from omnic.ir.types import Storage, parse_element
from omnic.ir.weights import WeightStore, saved
from omnic.targets.onnx.blocks import Blocks, blocks_of, parts_of, rows_back
from omnic.targets.onnx.target import TARGET
from omnic.targets.onnx.tensors import ALIGNMENT
from tests.targets.onnx.helpers import MLA, emitted, model, session_of, spec_text, stored

DENSE = "{kind: dense, hidden: 64, activation: swiglu}"
TIED = spec_text(ffn=DENSE, extra="tie: true\nbias: true\n")
#: every kind, groups that fit, are split, fill a row, or have no block; rows whose last group is short
TYPES = (
    "i8<g32>", "i8<row>", "i6<row>", "i5<g32, asym>", "i4<g16>", "i4<g32, asym>", "i4<g32, f32>", "i4<g16, s4>",
    "i4<g48>", "i4<g24>", "i4<g8, asym>", "i3<g16, asym>", "i2<g32>", "i2<g16, asym>", "t2<g32>", "fp4<g16>",
    "nf4<g16>",
)  # fmt: skip
IN_BLOCKS = tuple(t for t in TYPES if not isinstance(blocks_of(parse_element(t), 64), str))  # type: ignore[arg-type]


def moe(activation: str) -> str:
    return spec_text(MLA, f"{{kind: moe, hidden: 64, experts: 5, top_k: 2, shared: 1, activation: {activation}}}")


def logits(module: Module, weights: WeightStore, out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the reference's, the program's in one call, the program's in pieces) of 12 tokens."""
    ids, steps = np.random.default_rng(0).integers(0, 96, (1, 12)), np.arange(12)[None]
    inputs = {"tokens": ids, "positions": steps, "start": np.zeros(1, int), "length": np.full(1, 12), "rows": steps}
    wanted = Interpreter(module, weights).run(inputs)["logits"]
    session = session_of(module, out)
    whole = np.array(session.forward(ids).logits)
    session.reset(1)
    pieces = [np.array(session.forward(ids[:, a:b]).logits) for a, b in ((0, 5), *((i, i + 1) for i in range(5, 12)))]
    return wanted, whole, np.concatenate(pieces, axis=1)


def agrees(module: Module, weights: WeightStore, out: Path) -> None:
    kind = CLASSES[class_of(module)]
    wanted, *found = logits(module, weights, out)
    for numbers in found:
        case = compare("logits", numbers, wanted, kind)
        assert case.ok, case.problem


def codes_come_back(module: Module, weights: WeightStore, out: Path) -> None:
    back = WeightStore(saved(module), TARGET.weights(out))
    for name, weight in module.weights.items():
        if isinstance(weight.type.element, Storage):
            want, found = weights.quantised(name).parts(), back.quantised(name).parts()
            assert want.keys() == found.keys()
            assert all(np.array_equal(want[k], found[k]) and want[k].dtype == found[k].dtype for k in want), name
        else:
            assert np.array_equal(weights.array(name), back.array(name)), name


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("type", TYPES)
def test_a_dense_model_of_every_type(type: str, level: int, tmp_path: Path) -> None:
    module, weights = stored(*model(TIED, 3.0), type)
    made = emitted(module, weights, tmp_path, "fused", accuracy_level=level)
    assert class_of(made.module) == ("int8" if level and type in IN_BLOCKS and type != "i2<g16, asym>" else "f32")
    agrees(made.module, weights, tmp_path)
    codes_come_back(made.module, weights, tmp_path)


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize(
    ("type", "activation"),
    [
        *((t, "swiglu") for t in ("i8<g32>", "i4<g32>", "i4<g32, asym>", "i2<g16>", "i2<g32>", "nf4<g32>")),
        *((t, a) for t in ("i8<g32>", "i4<g32>") for a in ("relu", "gelu", "geglu")),
    ],
)
def test_experts(type: str, activation: str, level: int, tmp_path: Path) -> None:
    module, weights = stored(*model(moe(activation), 3.0), type)
    made = emitted(module, weights, tmp_path, "fused", accuracy_level=level)
    agrees(made.module, weights, tmp_path)
    codes_come_back(made.module, weights, tmp_path)
    fused = any("QMoE" in n for n in made.nodes)
    fits = activation in ("swiglu", "relu") and (type.startswith("i4") or (type.startswith("i8") and level == 4))
    assert fused == fits
    assert not any("lies" in r and "times" in r for r in made.remarks)


@pytest.mark.parametrize("text", [TIED, moe("swiglu")], ids=["dense", "experts"])
def test_the_plain_profile_decodes(text: str, tmp_path: Path) -> None:
    module, weights = stored(*model(text, 3.0), "i4<g32>")
    made = emitted(module, weights, tmp_path, "plain")
    agrees(made.module, weights, tmp_path)
    codes_come_back(made.module, weights, tmp_path)
    assert any(
        r == "weight embed (i4<g32>) is decoded to f32 when the program is loaded:"
        " the standard set has no product with stored codes"
        for r in made.remarks
    )


@pytest.mark.parametrize("type", ["i4<g32, asym>", "nf4<g16>", "i8<g64, axis-2>"])
def test_products_that_no_operator_computes(type: str, tmp_path: Path) -> None:
    """Activations quantised a whole token at a time, and groups along another dim."""
    module, weights = stored(*model(spec_text(ffn=DENSE), 3.0), "i4<g16>")
    kind = parse_element(type)
    name = "blocks.0.attn.q"
    changed = module.weights[name].type.with_element(kind)
    recipe = Recipe("quantise", {"type": kind}, module.weights[name].recipe.inputs)
    module = retype_weights(module, {name: (changed, recipe)})
    function = module.function()
    nodes = tuple(
        replace(n, attrs={"act": "i8<per_token>"}) if any(v.name == name for v in n.inputs()) else n
        for n in function.nodes
    )
    module = module.with_function(replace(function, nodes=nodes))
    weights = weights.with_module(module)
    made = emitted(module, weights, tmp_path, "fused", accuracy_level=0)
    agrees(made.module, weights, tmp_path)
    codes_come_back(made.module, weights, tmp_path)


def test_remarks_name_what_is_not_read_as_it_lies(tmp_path: Path) -> None:
    for type, remark in (
        ("nf4<g16>", "is decoded to f32 when the program is loaded: the levels of nf4 are not evenly spaced"),
        ("i4<g8>", "is decoded to f32 when the program is loaded: no block of 16 or more divides groups of 8"),
        ("i3<g16>", "lies in the file as 4-bit codes"),
    ):
        module, weights = stored(*model(TIED, 3.0), type)
        made = emitted(module, weights, tmp_path / type, "fused")
        assert f"weight embed ({type}) {remark}" in made.remarks


def test_a_tied_table_lies_once(tmp_path: Path) -> None:
    module, weights = stored(*model(TIED, 3.0), "i4<g32>")
    made = emitted(module, weights, tmp_path, "fused")
    assert not [r for r in made.remarks if "lies" in r]
    parts = sum(2 if isinstance(w.type.element, Storage) else 1 for w in module.weights.values())
    tables = 2  # cosines and sines
    assert (tmp_path / "weights.bin").stat().st_size <= (parts + tables) * ALIGNMENT


@pytest.mark.parametrize("type", IN_BLOCKS)
@pytest.mark.parametrize("width", [64, 72, 200, 300])
def test_blocks_unpack_to_the_same_codes(type: str, width: int) -> None:
    kind = parse_element(type)
    assert isinstance(kind, Storage)
    form = blocks_of(kind, width)
    if isinstance(form, str):
        pytest.skip(form)
    numbers = np.random.default_rng(width).standard_normal((5, width)).astype(np.float32)
    numbers[2, :16] = 0
    q = quantise(numbers, kind)
    made = parts_of(form, q)
    assert set(made) == set(form.parts)
    assert all(made[p].shape[-1] == form.last(p) for p in made)
    same(rows_back(form, made), q)


def same(found: QTensor, wanted: QTensor) -> None:
    assert found.parts().keys() == wanted.parts().keys()
    for name, part in wanted.parts().items():
        assert np.array_equal(found.parts()[name], part), name
        assert found.parts()[name].dtype == part.dtype, name


@pytest.mark.parametrize(
    ("type", "width", "bits", "block", "activation"),
    [
        ("i4<g64>", 768, 4, 64, "i8<g64>"),
        ("i4<g48>", 768, 4, 16, "i8<g16>"),
        ("i4<g512>", 1024, 4, 256, "i8<g256>"),
        ("i4<g64>", 72, 4, 64, None),
        ("i8<row>", 768, 8, 256, "i8<g256>"),
        ("i8<row>", 100, 8, 32, None),
        ("i2<g16>", 768, 2, 16, None),
        ("i2<g128>", 768, 2, 128, "i8<g128>"),
        ("i2<g256>", 768, 2, 256, None),
        ("fp4<g32>", 768, 8, 32, "i8<g32>"),
    ],
)
def test_the_choice_of_blocks(type: str, width: int, bits: int, block: int, activation: str | None) -> None:
    form = blocks_of(parse_element(type), width)  # type: ignore[arg-type]
    assert isinstance(form, Blocks)
    assert (form.bits, form.block, form.activation) == (bits, block, activation)


@pytest.mark.parametrize("text", [TIED, spec_text(ffn=DENSE)], ids=["tied", "untied"])
def test_prepacked_programs_compute_the_same(text: str, tmp_path: Path) -> None:
    module, weights = stored(*model(text, 3.0), "i4<g32>")
    made = emitted(module, weights, tmp_path, "fused", prepacked=True)
    assert (tmp_path / "forward.row.packed.onnx").is_file()
    size = (tmp_path / "forward.row.packed.bin").stat().st_size
    assert made.interface["copies"] == {"forward.row.packed.bin": size}
    assert f"prepacked: {size:,} bytes more on disk, of which a session maps what it uses" in made.remarks
    agrees(made.module, weights, tmp_path)
    codes_come_back(made.module, weights, tmp_path)


def test_prepacked_experts_are_refused(tmp_path: Path) -> None:
    module, weights = stored(*model(moe("swiglu"), 3.0), "i4<g32>")
    with pytest.raises(InputError, match=r"onnx cannot prepack blocks.0.ffn: ONNX Runtime crashes") as error:
        emitted(module, weights, tmp_path, "fused", prepacked=True)
    assert error.value.hint == "leave out prepacked: true"


def test_a_packing_of_another_machine_is_refused(tmp_path: Path) -> None:
    module, weights = stored(*model(TIED, 3.0), "i4<g32>")
    made = emitted(module, weights, tmp_path, "fused", prepacked=True)
    about = json.loads((tmp_path / "packed.json").read_text())
    (tmp_path / "packed.json").write_text(json.dumps({**about, "onnxruntime": "1.0.0"}))
    with pytest.raises(BundleError, match=r"the weights were packed for onnxruntime 1.0.0 and not \d") as error:
        session_of(made.module, tmp_path).forward(np.zeros((1, 1), np.int64))
    assert error.value.hint == "compile here with prepacked: true, or anywhere with prepacked: false"
