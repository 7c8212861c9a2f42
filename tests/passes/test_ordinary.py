"""The ordinary passes: golden text, numbers before and after under the reference on every preset, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.graph import Module, Recipe
from omnic.ir.op import find_op
from omnic.ir.reference import Interpreter, ReferenceExecutor
from omnic.ir.rewrite import retype_weights
from omnic.ir.text import parse_module, print_module
from omnic.ir.types import parse_element
from omnic.ir.verify import verify
from omnic.ir.weights import ResultStore, WeightStore, pinned
from omnic.models import build
from omnic.passes.base import PassContext, PassResult, parse_pass, run_pass
from omnic.passes.pipelines import PIPELINES
from omnic.spec import load_spec, preset_names, scale

GIVEN = Path(__file__).parent / "given"
LOSSLESS = ("dead-code", "cse", "constant-folding", "layout-cleaning", "qkv-merge", "gate-up-merge", "norm-residual")
# The tables of rope-tables are f32; scaled copies hold positions below 512.
BOUND = {"rope-tables": 2e-6}


@cache
def model(name: str) -> Module:
    return build(scale(load_spec(name)))


def run(module: Module, call: str, results: Path | None = None) -> PassResult:
    return run_pass(module, parse_pass(call), PassContext(results=ResultStore(results) if results else None))


def outputs(module: Module, store: WeightStore, tokens: int = 6) -> dict[str, Any]:
    """Results of @forward and @mtp, states included, on a ragged batch of two rows."""
    random = np.random.default_rng(1)
    interpreter = Interpreter(module, store.with_module(module))
    found: dict[str, Any] = {}
    for name, function in module.functions.items():
        if function.param("start") is None:
            continue
        inputs: dict[str, Any] = {}
        for param in function.params:
            value, label = param.value, param.value.name
            if param.state:
                continue
            if label in ("tokens", "next_tokens"):
                inputs[label] = random.integers(0, 300, (2, tokens))
            elif label in ("positions", "rows"):
                inputs[label] = np.tile(np.arange(tokens), (2, 1))
            elif label == "start":
                inputs[label] = np.zeros(2, np.int64)
            elif label == "length":
                inputs[label] = np.asarray([tokens, tokens - 2])
            elif label == "hidden":
                inputs[label] = random.standard_normal((2, tokens, value.type.shape[-1]))
        found |= {f"{name} {key}": np.asarray(v) for key, v in interpreter.run(inputs, function=name).items()
                  if not hasattr(v, "codes")}
    return found


def same(before: dict[str, Any], after: dict[str, Any], bound: float) -> None:
    assert before.keys() == after.keys()
    for name, want in before.items():
        if want.dtype.kind == "f":
            # Rows beyond length may hold anything: compare the whole first row of the batch.
            size = float(np.sqrt((want[0] ** 2).mean())) or 1.0
            assert np.abs(after[name][0] - want[0]).max() <= bound * max(size, 1e-30), name


@pytest.mark.parametrize("path", sorted(GIVEN.glob("*.ir")), ids=lambda p: p.stem)
def test_golden(path: Path, golden: Any, tmp_path: Path) -> None:
    """The first line of a file is the pass; the golden file holds the result and the remarks."""
    call, _, text = path.read_text("utf-8").partition("\n")
    module = parse_module(text, str(path.name))
    verify(module)
    result = run(module, call.removeprefix("# "), tmp_path)
    remarks = "".join(f"# {'missed ' if r.missed else ''}{r}\n" for r in result.remarks)
    golden(f"passes/{path.stem}.ir", print_module(result.module) + remarks)
    again = run(result.module, call.removeprefix("# "), tmp_path) if "rope-rescale" not in call else None
    assert again is None or not again.changed, "a second run finds something to do"


@pytest.mark.parametrize("name", sorted(preset_names()))
def test_numbers_stay_on_every_preset(name: str, tmp_path: Path) -> None:
    module = model(name)
    results = ResultStore(tmp_path)
    store = WeightStore(module, seed=3, results=results)
    before = outputs(module, store)
    for each in (*LOSSLESS, *BOUND):
        result = run(module, each, tmp_path)
        if result.changed:
            same(before, outputs(result.module, store), BOUND.get(each, 1e-12))
    merged = module
    for step in PIPELINES["merge"].steps:
        merged = run(merged, step.name).module
    same(before, outputs(merged, store), 1e-12)


@pytest.mark.parametrize("name", sorted(preset_names()))
def test_the_builders_modules_are_clean_already(name: str) -> None:
    """So a spec without a list of passes runs none."""
    for step in PIPELINES["clean-up"].steps:
        assert not run(model(name), step.name).changed, step.name


@pytest.mark.parametrize("storage", ["i4<g32>", "i8<row>", "i4<g32, s4>"])
def test_merged_codes_are_the_codes(storage: str) -> None:
    """Rows of quantised weights are joined as they are: the same codes, so the same numbers, not rounded twice."""
    module, element = model("tiny"), parse_element(storage)
    changes = {
        w.name: (w.type.with_element(element), Recipe("quantise", {"type": element}, (pinned(w),)))
        for w in module.weights.values()
        if w.type.rank == 2 and w.name.startswith("blocks.")
    }
    module = retype_weights(module, changes)
    store = WeightStore(module, seed=3)
    merged = run(run(module, "qkv-merge").module, "gate-up-merge").module
    assert str(merged.weights["blocks.0.attn.qkv"].type) == f"{element}[128, 96]"
    joined = store.with_module(merged).quantised("blocks.0.attn.qkv").codes
    parts = [store.quantised(f"blocks.0.attn.{p}").codes for p in "qkv"]
    assert np.array_equal(joined, np.concatenate(parts))
    same(outputs(module, store), outputs(merged, store), 1e-12)


def test_mixed_types_are_not_merged() -> None:
    module, element = model("tiny"), parse_element("i8<row>")
    weight = module.weights["blocks.0.attn.v"]
    recipe = Recipe("quantise", {"type": element}, (pinned(weight),))
    module = retype_weights(module, {weight.name: (weight.type.with_element(element), recipe)})
    missed = [r for r in run(module, "qkv-merge").remarks if r.missed]
    assert [(r.message, r.node) for r in missed] == [
        ("@blocks.0.attn.v is i8<row>, @blocks.0.attn.q is bf16", "blocks.0.attn/attention.0")
    ]


def test_a_weight_read_elsewhere_is_not_merged_twice() -> None:
    """A clone of @forward shares the weights: both are changed; a function that is not alike refuses the merge."""
    module = run(model("tiny"), "specialise-phase{phase=decode, tokens=1}").module
    merged = run(module, "gate-up-merge").module
    assert "blocks.0.ffn.gate_up" in merged.weights and "blocks.0.ffn.gate" not in merged.weights
    function = module.functions["decode"]
    up = next(n for n in function.nodes if "blocks.0.ffn.up" in [v.name for v in n.inputs()])
    nodes = tuple(replace(n, attrs={"act": "i8<per_token>"}) if n is up else n for n in function.nodes)
    result = run(module.with_function(replace(function, nodes=nodes)), "gate-up-merge")
    missed = [str(r) for r in result.remarks if r.missed and "forward" not in str(r)]
    assert any("quantises its activations otherwise" in m for m in missed)
    assert any("joined they would lie in the bundle twice" in m for m in missed)
    assert "blocks.0.ffn.gate" in result.module.weights


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_a_rescaled_program_holds_and_rotates_the_longer_context(kind: str) -> None:
    module = model("tiny")
    context = 8 * int(str(module.meta["context"]))
    result = run(module, f"rope-rescale{{context={context}, kind={kind}}}")
    after = result.module
    assert after.meta["capacity"] == after.meta["context"] == context
    assert {s.type.shape[-2] for s in after.states.values()} == {context}
    ropes = [n for f in after.functions.values() for n in f.nodes if n.op == "rope"]
    assert {(n.attrs["scaling"], n.attrs["factor"]) for n in ropes} == {(kind, 8.0)}
    ids = np.random.default_rng(0).integers(0, 300, (1, 40))
    store = WeightStore.random(after, 0)
    logits = ReferenceExecutor(after, store).forward(ids).logits
    assert np.isfinite(logits).all()
    if kind == "linear":
        # A rotation by 8 positions of the scaled program is one by 1 of the trained one.
        x = np.random.default_rng(1).standard_normal((1, 1, 3, 16))
        rope = find_op("rope")
        plain = rope.reference(x, np.asarray([[0, 1, 2]]), **rope.bind({"dims": 16}))
        scaled = rope.reference(x, np.asarray([[0, 8, 16]]), **rope.bind(ropes[0].attrs))
        assert np.allclose(plain, scaled, rtol=0, atol=1e-12)


def test_a_scaled_rope_keeps_its_scaling() -> None:
    module = run(model("tiny"), "rope-rescale{context=640}").module
    result = run(module, "rope-rescale{context=1280}")
    assert {r.message for r in result.remarks if r.missed} == {"it is scaled already: yarn by 2.0"}


@pytest.mark.parametrize(("call", "message"), [
    ("rope-rescale{context=100}", "option 'context' of pass 'rope-rescale' must be at least 320, the context the model"
     " was trained for, got 100"),
    ("rope-rescale{context=1}", "option 'context' of pass 'rope-rescale' must be 2..16777216, got 1"),
    ("rope-rescale{context=640, kind=yam}",
     "option 'kind' of pass 'rope-rescale' must be one of linear, ntk, yarn, got yam"),
    ("rope-tables", "pass 'rope-tables' stores what it finds, and no result store was given"),
    ("constant-folding{limit=0}", "option 'limit' of pass 'constant-folding' must be 1..16777216, got 0"),
])
def test_what_is_refused(call: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        run(model("tiny"), call)
    assert caught.value.message == message


def test_a_position_beyond_the_tables_is_an_error(tmp_path: Path) -> None:
    module = run(model("tiny"), "rope-tables{positions=4}", tmp_path).module
    store = WeightStore(module, seed=0, results=ResultStore(tmp_path))
    with pytest.raises((InputError, IndexError)):
        outputs(module, store, tokens=6)
