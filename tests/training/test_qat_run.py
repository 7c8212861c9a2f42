"""Runs that train in few bits: cut off and gone on with, their card, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omnic.compiler.few_bits import begin, packing_of
from omnic.errors import CheckFailed, InputError
from omnic.ir.types import Storage
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec, load_spec
from omnic.training import phase, qat_run
from omnic.training.corpus import load_corpus
from omnic.training.heldout import heldout
from omnic.training.module import build_module, export_weights
from omnic.training.progress import Progress
from omnic.training.qat import QatConfig, starting_codes
from omnic.training.qat_run import QatRequest, card_text, train_in_few_bits
from omnic.training.tokenizer_build import build_tokenizer

SPEC = """omnic: 1
model: small
vocab: {size: 320}
tokenizer: small.tokenizer.json
weights: small.safetensors
context: 256
tie: true
blocks:
  - repeat: 1
    width: 64
    attention: {kind: gqa, heads: 2, kv_heads: 1, head_dim: 32, rope: {base: 10000}}
    ffn: {kind: dense, hidden: 96, activation: swiglu}
passes: [int4-packing: {kind: i4, group: 32, asym: true}]
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spec:
    """A small model with weights, a tokenizer and a corpus of its own text; little held-out text."""
    held = heldout()
    monkeypatch.setattr(qat_run, "heldout", lambda: replace(held, text=held.text[:600]))
    file = tmp_path / "small.yaml"
    file.write_text(SPEC)
    (tmp_path / "corpus").mkdir()
    for i in range(3):
        text = "".join(f"def f{j}(x):\n    return x * {j + i} + {i}\n\n\n" for j in range(120))
        (tmp_path / "corpus" / f"{i}.py").write_text(text)
    build_tokenizer(load_corpus(str(tmp_path / "corpus")), 320, tmp_path / "small.tokenizer.json")
    spec = load_spec(file)
    export_weights(build_module(build(spec), 1), spec, tmp_path / "small.safetensors")
    return spec


def request(spec: Spec, folder: Path, out: str = "run", **options: object) -> QatRequest:
    packing = packing_of(spec, str(options.pop("what", "t2<g32>")))
    config = QatConfig(corpus=str(folder / "corpus"), sequence=32, rate=0.05, warmup=1)

    def rounded() -> tuple[dict[str, Storage], dict[str, object]]:
        packed = packing.run(build(spec)).module
        return {n: w.type.element for n, w in packed.weights.items() if isinstance(w.type.element, Storage)}, {}

    given = {"steps": 6, "threads": 1, "config": config, **options}
    return QatRequest(spec=spec, out=folder / out, what="t2<g32>", start=rounded, **given)  # type: ignore[arg-type]


def test_a_run_that_was_cut_off_goes_on_to_the_same_codes(spec: Spec, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_in_few_bits(request(spec, tmp_path, "whole"), Progress(quiet=True))
    one = phase.Phase._one

    def stopping(self: phase.Phase, clock: phase.Clock) -> dict[str, object]:
        if self.state.step == 3:
            self.save(cut, clock)
            raise CheckFailed("stopped")
        return one(self, clock)

    from omnic.training.run_folder import RunFolder

    cut = RunFolder(tmp_path / "cut")
    monkeypatch.setattr(phase.Phase, "_one", stopping)
    with pytest.raises(CheckFailed):
        train_in_few_bits(request(spec, tmp_path, "cut"), Progress(quiet=True))
    monkeypatch.setattr(phase.Phase, "_one", one)

    def never() -> tuple[dict[str, Storage], dict[str, object]]:
        raise AssertionError("a run that goes on does not calibrate again")

    again = request(spec, tmp_path, "cut")
    resumed = train_in_few_bits(QatRequest(**{**vars(again), "start": never}), Progress(quiet=True))
    # The metadata of a file comes in any order.
    a, b = (load_file(r.out / "small.safetensors") for r in (whole, resumed))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert train_in_few_bits(again, Progress(quiet=True)).facts == json.loads(
        (tmp_path / "cut" / "result.json").read_text())
    card = (whole.out / "card.md").read_text()
    assert card == card_text(whole.facts, [json.loads(line) for line in (whole.out / "log.jsonl").open()])
    assert "# small, trained in few bits" in card and "7 in t2<g32>" in card
    assert "omnic train small --qat 't2<g32>' --steps 6 --seed 0 --threads 1" in card


def test_a_budget_is_held(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hours leave time for 0 steps of"):
        train_in_few_bits(request(spec, tmp_path, steps=None, hours=1e-6), Progress(quiet=True))


def test_the_start_is_gptqs_in_the_types_of_the_passes(spec: Spec, tmp_path: Path) -> None:
    packing = packing_of(spec, "")
    assert (packing.kind, packing.group, packing.asym) == ("i4", 32, True)
    elements, codes = begin(spec, packing, ResultStore(tmp_path / "results"), lambda what, share: None)
    assert {str(q.type) for q in codes.values()} == {"i4<g32, asym>"} and len(codes) == 7
    store = WeightStore.load(build(spec), tmp_path / "small.safetensors")
    begun = starting_codes(build(spec), store, elements, codes)
    assert all(begun[n] is codes[n] for n in begun)
    rounded = starting_codes(build(spec), store, elements)
    assert any(not np.array_equal(rounded[n].codes, codes[n].codes) for n in begun)


@pytest.mark.parametrize(("text", "message"), [
    ("q4", "--qat q4: unknown element type 'q4'"),
    ("f16", "--qat f16: that is no storage type"),
    ("i4<g32, s4>", "--qat i4<g32, s4>: such scales cannot be trained"),
    ("i8<head>", "--qat i8<head>: groups run along a row here"),
    ("t2<g64, asym>", "t2<g64, asym>: t2 has no zero point"),
    ("t2<g48>", "option 'group' of pass 'int4-packing' must be one of 0, 16, 32, 64, 128, 256, got 48"),
])
def test_a_wrong_type_is_one_error(spec: Spec, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        packing_of(spec, text)
    assert caught.value.message == message


def test_what_cannot_be_trained_is_one_error(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        packing_of(load_spec("tiny"), "")
    assert caught.value.message == "tiny lists no int4-packing whose types could be trained"
    bare = spec.model_copy(update={"weights": None})
    with pytest.raises(InputError) as caught:
        request(bare, tmp_path)
    assert caught.value.message == "small has no weights to train in few bits"
    for options, message in (({"steps": 0}, "a training needs at least one step, not 0"),
                             ({"steps": None}, "a training needs a budget or a number of steps"),
                             ({"hours": 1.0}, "a training needs a budget or a number of steps, not both")):
        with pytest.raises(InputError) as caught:
            request(spec, tmp_path, **options)
        assert caught.value.message == message
    assert Tokenizer.load(tmp_path / "small.tokenizer.json").size == 320
