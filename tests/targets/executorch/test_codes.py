"""States of codes, made by the pass kv-quant: the codes of the IR to the bit, and the reference's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.graph import Module
from omnic.ir.numeric import CLASSES, class_of, compare
from omnic.ir.packing import QTensor
from omnic.ir.reference import ReferenceExecutor, ReferenceSession
from omnic.ir.types import Storage, parse_element
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.passes.base import PassContext
from omnic.passes.context import Calibration
from omnic.passes.kv.forms import Form, Part, state_bytes
from omnic.passes.kv.rewrite import apply_plan
from omnic.passes.kv_quant import KvQuant
from omnic.spec import parse_spec
from omnic.targets.executorch import attend
from omnic.targets.executorch.codes import decode, empty, encode
from omnic.targets.executorch.emit import legalised
from omnic.targets.executorch.target import TARGET
from tests.passes.rings import RINGS
from tests.targets.executorch.eager import eager_session
from tests.targets.executorch.helpers import emitted, session_of

KIND = CLASSES["int8"]
GQA = """omnic: 1
model: codes
vocab: {size: 96}
context: 64
chunk: 16
blocks:
  - repeat: 2
    width: 32
    attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 40}
    ffn: {kind: dense, hidden: 48}
"""
TYPES = ("i8<row>", "i8<g32, asym>", "i4<row>", "i4<g32, asym>", "i4<g16, asym, f32>", "i2<g16, asym>", "nf4<row>",
         "i8<row, one>", "i4<row, one>", "nf4<row, one>")  # fmt: skip


@pytest.mark.parametrize("width", [64, 40, 7])
@pytest.mark.parametrize("type", TYPES)
def test_codes_are_those_of_the_ir_to_the_bit(type: str, width: int) -> None:
    element = parse_element(type)
    assert isinstance(element, Storage)
    x = 3.0 * np.random.default_rng(0).standard_normal((5, 3, width)).astype(np.float32)
    # Zeros, one sign alone, ties between two codes, and scales below the least f16.
    x[0, 0], x[1], x[2], x[3] = 0.0, np.abs(x[1]) + 1, np.round(x[2]), x[3] * 1e-9
    wanted = packing.quantise(x, element)
    found = encode(torch.from_numpy(x), element)
    parts = packing.packed_parts(wanted)
    assert set(found) == set(parts)
    for suffix, part in parts.items():
        made = found[suffix].numpy()
        assert np.array_equal(made.view(np.uint8) if made.dtype == np.int8 else made, part), suffix
    assert np.array_equal(decode(found, element, width).numpy(), packing.decode(wanted))
    new = empty(element, (2, 3), width)
    assert {s: (p.dtype, p.shape[1:]) for s, p in new.items()} == {s: (p.dtype, p.shape[1:]) for s, p in found.items()}
    assert not decode(new, element, width).any()


def quantised(text: str, folder: Path, **options: Any) -> tuple[Module, WeightStore]:
    module = build(parse_spec(text, "model.yaml"))
    weights, results = WeightStore(module, seed=3), ResultStore(folder / "results")
    ids = np.random.default_rng(3).integers(0, 96, (4, 16))
    context = PassContext(
        weights=weights,
        weights_key="key",
        calibration=lambda: Calibration(ids, "random tokens"),
        executor=ReferenceExecutor,
        results=results,
    )
    made = KvQuant(**options).run(module, context).module
    return made, WeightStore(made, seed=3, results=results)


def agrees(module: Module, weights: WeightStore, **options: Any) -> None:
    """In calls longer and shorter than a ring, ragged, forked and rolled back."""
    assert class_of(module) == KIND.name
    session = eager_session(module, weights, **options)
    reference = ReferenceSession(session.module, weights.with_module(session.module), batch=2)
    session.reset(2)
    assert session.state_bytes() == state_bytes(module, 2)
    chunk, at = session.info.chunk, np.zeros(2, int)
    ids = np.random.default_rng(0).integers(0, session.info.vocab, (2, session.info.capacity))

    def step(length: np.ndarray) -> None:
        nonlocal at
        tokens = np.stack([ids[b, s : s + length.max()] for b, s in enumerate(at)])
        found = np.asarray(session.forward(tokens, length=length).logits)
        wanted = np.asarray(reference.forward(tokens, length=length).logits)
        for row, n in enumerate(length):
            if n:
                case = compare(f"{n} tokens at {at[row]}", found[row, :n], wanted[row, :n], KIND)
                assert case.ok, case.problem
                assert np.abs(found[row, :n] - wanted[row, :n]).max() < 0.02 * np.sqrt((wanted**2).mean())
        at = at + length

    for count in (chunk, 1, chunk - 3, 1):
        step(np.array([count, max(count - 5, 0)]))
    other = session.fork()
    other.forward(ids[:, :2])
    at = at - np.minimum(at, 3)
    for one in (session, reference):
        one.rollback(at)
    step(np.array([5, 2]))


@pytest.mark.parametrize("state", ["buffers", "explicit"])
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 8},
        {"bits": 8, "symmetric": True},
        {"bits": 4, "group": 32, "recent": 0},
        {"bits": 4, "symmetric": True, "recent": 0},
        {"key_bits": 8, "value_bits": 4, "recent": 0},
        {"bits": 2, "recent": 0},
        {"bits": 4, "kind": "nf4", "recent": 0},
        {"bits": 8, "scales": "static"},
        {"bits": 4, "scales": "static", "symmetric": True},
        {"bits": 4, "keep": 4, "recent": 8},
        {"bits": 4, "symmetric": True, "keep": 8},
    ],
    ids=str,
)
def test_scales_of_every_token_and_of_calibration(options: dict[str, Any], state: str, tmp_path: Path) -> None:
    agrees(*quantised(GQA, tmp_path, **options), state=state)


@pytest.mark.parametrize("options", [{"bits": 8}, {"bits": 4, "keep": 8}], ids=str)
def test_rings_and_latents(options: dict[str, Any], tmp_path: Path) -> None:
    agrees(*quantised(RINGS, tmp_path, **options))


def test_states_hold_the_codes_of_the_reference(tmp_path: Path) -> None:
    module, weights = quantised(GQA, tmp_path, bits=4, recent=0)
    session = eager_session(module, weights)
    reference = ReferenceSession(session.module, weights.with_module(session.module))
    ids = np.random.default_rng(0).integers(0, 96, (1, 9))
    for one in (session, reference):
        one.forward(ids)
    names, tensors = list(session.program.about["states"]), session.program.tensors(session._rows[0])
    held = dict(zip(names, tensors, strict=True))
    state = reference.states["kv.0.v"]
    assert isinstance(state, QTensor)
    for suffix, part in packing.packed_parts(state).items():
        wanted = np.moveaxis(part, 2, 1)[:, :9]
        share = np.mean(held[f"kv.0.v{suffix}"].numpy()[:, :9] == wanted)
        # An f32 sum in another order now and then rounds to the next code or scale.
        assert share > 0.97, suffix


def test_only_live_slots_are_decoded_over_linear_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[Any] = []
    slots = attend.StateRef.slots

    def counted(self: Any, count: Any = None) -> torch.Tensor:
        counts.append(count)
        return slots(self, count)

    monkeypatch.setattr(attend.StateRef, "slots", counted)
    module, weights = quantised(GQA, tmp_path, bits=8)
    session = eager_session(module, weights)
    session.forward(np.arange(7)[None])
    session.forward(np.arange(1)[None])
    assert counts == [7] * 4 + [8] * 4


def test_a_move_copies_codes_scales_and_zero_points(tmp_path: Path) -> None:
    module, weights = quantised(GQA, tmp_path, bits=4, recent=0)
    session = eager_session(module, weights)
    session.forward(np.arange(10)[None])
    before = [t.clone() for t in session.program.tensors(session._rows[0])]
    assert len(before) == 2 * 2 * 3
    session.move([[8]], [[6]])
    for old, new in zip(before, session.program.tensors(session._rows[0]), strict=True):
        assert torch.equal(new[:, 6], old[:, 8]) and torch.equal(new[:, 7:], old[:, 7:])


def test_keys_in_blocks_of_tokens_are_refused_word_for_word(tmp_path: Path) -> None:
    module, _ = quantised(GQA, tmp_path, bits=4, keys="channel", block=16)
    with pytest.raises(InputError) as error:
        legalised(module)
    assert error.value.message == (
        "executorch cannot take cache_close of blocks.0.attn (model.yaml:7:5): which blocks of tokens close in a call"
        " is known only while the program runs; kv-quant with keys=token finds the scales of every token"
    )
    assert error.value.hint == "targets that take it: onnx, torch"


def test_a_type_without_buffers_is_refused_word_for_word() -> None:
    module = apply_plan(build(parse_spec(GQA, "model.yaml")), {"kv.0.k": (Part(None, Form(Storage("i5", 0))),)})
    with pytest.raises(InputError) as error:
        legalised(module)
    assert error.value.message == "executorch cannot keep state kv.0.k as i5<row>: executorch stores no states as i5"
    assert error.value.hint == "choose other options of kv-quant, or leave it out"


@pytest.mark.parametrize("delegate", ["coreml", "vulkan"])
def test_delegates_of_other_devices_are_refused_word_for_word(delegate: str, tmp_path: Path) -> None:
    module, weights = quantised(GQA, tmp_path, bits=8)
    with pytest.raises(InputError) as error:
        emitted(module, weights, tmp_path, delegate=delegate)
    assert error.value.message == (
        f"executorch cannot keep state kv.0.k as i8<row, asym> with delegate={delegate}: its programs keep states in"
        " f32, f16 or bf16"
    )
    assert error.value.hint == "leave out kv-quant, or choose delegate=xnnpack"


@pytest.mark.slow
def test_a_saved_program_keeps_codes(tmp_path: Path) -> None:
    """One layer of codes beside each other, and one with its newest tokens in f16."""
    module = build(parse_spec(GQA, "model.yaml"))
    forms = {
        "kv.0.k": Form(Storage("i8", 0)),
        "kv.0.v": Form(Storage("i4", 0, asym=True)),
        "kv.1.k": Form(Storage("i4", 0, asym=True), block=1, keep=4, recent=8),
        "kv.1.v": Form(Storage("i8", 0, asym=True), block=1, keep=4, recent=8),
    }
    module = apply_plan(module, {name: (Part(None, form),) for name, form in forms.items()})
    weights = WeightStore.random(module, 3)
    made = emitted(module, weights, tmp_path, runner=False, verify="none").module
    session, reference = session_of(made, tmp_path), ReferenceSession(made, weights.with_module(made))
    ids = np.random.default_rng(0).integers(0, 96, (1, 40))
    at = 0
    for count in (11, 1, 16, 1, 1):
        found, wanted = (np.asarray(s.forward(ids[:, at : at + count]).logits[0]) for s in (session, reference))
        case = compare(f"{count} tokens at {at}", found, wanted, KIND)
        assert case.ok, case.problem
        at += count
    # Another row takes the buffers, and the codes come back as they were.
    other = session.fork()
    other.forward(ids[:, :1])
    for one in (session, reference):
        one.rollback([at - 3])
    found, wanted = (np.asarray(s.forward(ids[:, at - 3 : at + 2]).logits[0]) for s in (session, reference))
    assert compare("after a rollback", found, wanted, KIND).ok
    steps = np.arange(6)[None]
    given = {"tokens": steps, "positions": steps, "start": np.zeros(1, int), "length": np.array([6]), "rows": steps}
    fresh = ReferenceSession(made, weights.with_module(made)).forward(steps)
    assert compare("captured", TARGET.capture(tmp_path, given, ["logits"])["logits"][0], fresh.logits[0], KIND).ok
