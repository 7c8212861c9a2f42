"""kv-quant under the reference: any cutting, ragged rows, rollback, fork, bytes to the byte, budgets, sidecars."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.numeric import class_of
from omnic.ir.reference import ReferenceExecutor, ReferenceSession
from omnic.ir.text import parse_module, print_module
from omnic.ir.types import Storage, parse_element
from omnic.ir.verify import verify
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.passes.base import parse_pass
from omnic.passes.context import Calibration, PassContext
from omnic.passes.kv.calibrate import scales_of
from omnic.passes.kv.forms import Form, group_for, state_bytes
from omnic.passes.kv_quant import KvQuant
from omnic.spec import load_spec, parse_spec, preset_names, scale
from omnic.targets.torch.inference import new_states
from omnic.targets.torch.inference import state_bytes as torch_bytes
from tests.passes.rings import FORMS as RING_FORMS
from tests.passes.rings import RINGS

TOKENS = np.random.default_rng(0).integers(0, 500, (3, 100))
FORMS = {
    "u8": "kv-quant",
    "i4": "kv-quant{bits=4}",
    "i4 sym": "kv-quant{bits=4, symmetric=true, rope=keep}",
    "nf4": "kv-quant{bits=4, kind=nf4}",
    "i2": "kv-quant{bits=2, group=0, rope=i8}",
    "K8 V4": "kv-quant{key_bits=8, value_bits=4}",
    "static": "kv-quant{scales=static}",
    "static i4 head": "kv-quant{bits=4, scales=static, per=head, symmetric=true}",
    "static nf4": "kv-quant{bits=4, kind=nf4, scales=static}",
    "blocks": "kv-quant{bits=4, keys=channel}",
    "i4, newest in f16": "kv-quant{bits=4, keep=64, recent=96}",
    "i4 without": "kv-quant{bits=4, recent=0}",
    "small blocks": "kv-quant{bits=2, keys=channel, block=16, keep=0, recent=32}",
}


@cache
def front(preset: str) -> Module:
    return build(parse_spec(RINGS)) if preset == "rings" else build(scale(load_spec(preset)))


@pytest.fixture
def context(tmp_path: Path) -> Callable[[str], PassContext]:
    def make(preset: str) -> PassContext:
        results = ResultStore(tmp_path / "results")
        weights = WeightStore(front(preset), seed=3, results=results)
        text = Calibration(np.random.default_rng(1).integers(0, 500, (4, 40)), "random tokens")
        return PassContext(weights=weights, weights_key=preset, calibration=lambda: text, executor=ReferenceExecutor,
                           results=results)

    return make


def quantised(preset: str, text: str, context: PassContext) -> tuple[Module, WeightStore]:
    module = parse_pass(text).run(front(preset), context).module
    verify(module)
    assert context.weights is not None
    return module, context.weights.with_module(module)


def run(session: ReferenceSession, tokens: Any, *cuts: int) -> Any:
    """Logits of tokens [B, T] given in calls that end at ``cuts``."""
    ends = [*cuts, tokens.shape[1]]
    return np.concatenate(
        [session.forward(tokens[:, a:b]).logits for a, b in zip([0, *ends[:-1]], ends, strict=True)], 1
    )


@pytest.mark.parametrize(("preset", "form"), [
    *((p, f) for p in ("tiny", "tiny_moe") for f in FORMS.values()), *(("rings", f) for f in RING_FORMS.values())])
def test_every_form_gives_one_answer_however_it_is_called(preset: str, form: str, context: Any) -> None:
    module, weights = quantised(preset, form, context(preset))
    text = print_module(module)
    assert print_module(parse_module(text)) == text
    assert class_of(module) == "int8"
    session = ReferenceSession(module, weights, batch=3)
    assert session.state_bytes() == state_bytes(module, 3) == torch_bytes(new_states(module, 3))
    whole = run(session, TOKENS, 64)
    near = {"rtol": 0, "atol": 1e-9 * float(np.abs(whole).max())}
    assert not np.allclose(whole, run(ReferenceSession(front(preset), weights, batch=3), TOKENS, 64), **near)
    session.reset(3)
    np.testing.assert_allclose(run(session, TOKENS, 1, 8, 24, 57, 96, 97, 98, 99), whole, **near)

    # Ragged rows: each is what it would be alone.
    session.reset(3)
    length = np.array([40, 33, 1])
    first = session.forward(TOKENS[:, :40], length=length).logits
    for row, count in enumerate(length):
        np.testing.assert_allclose(first[row, :count], whole[row, :count], **near)
    rest = session.forward(np.stack([TOKENS[b, n : n + 20] for b, n in enumerate(length)])).logits
    for row, count in enumerate(length):
        np.testing.assert_allclose(rest[row], whole[row, count : count + 20], **near)

    # A fork goes its own way; what was drafted and dropped leaves no trace.
    other = session.fork()
    other.forward(TOKENS[::-1, :16])
    session.forward(TOKENS[::-1, 16:32])
    session.rollback(length + 20)
    again = session.forward(np.stack([TOKENS[b, n + 20 : n + 30] for b, n in enumerate(length)])).logits
    for row, count in enumerate(length):
        np.testing.assert_allclose(again[row], whole[row, count + 20 : count + 30], **near)


def test_a_rollback_into_a_closed_block_closes_it_again_to_the_same_codes(context: Any) -> None:
    module, weights = quantised("tiny", FORMS["blocks"], context("tiny"))
    assert module.states["kv.0.k"].type.element == parse_element("i4<g32, asym, axis-2>")
    assert {n: s.type.shape[2] for n, s in module.states.items() if s.role == "recent"} == dict.fromkeys(
        ("kv.0.k.recent", "kv.0.v.recent", "kv.1.k.recent", "kv.1.v.recent"), 96)
    session = ReferenceSession(module, weights)
    whole = run(session, TOKENS[:1], 64)
    before = session.states["kv.0.k"]
    session.rollback([67])  # 33 tokens: blocks 64..95 is open again
    np.testing.assert_allclose(run(session, TOKENS[:1, 67:], 3, 20), whole[:, 67:], rtol=0, atol=1e-9)
    after = session.states["kv.0.k"]
    for one, two in zip(before.parts().values(), after.parts().values(), strict=True):  # type: ignore[union-attr]
        assert np.array_equal(one, two)
    with pytest.raises(InputError) as caught:
        session.rollback([66])
    assert caught.value.message == ("rollback of row 0 from 100 to 66 tokens; the ring kv.0.k.recent reaches back 33")


def test_another_token_after_a_rollback_closes_the_block_with_it(context: Any) -> None:
    module, weights = quantised("tiny", FORMS["blocks"], context("tiny"))
    session = ReferenceSession(module, weights)
    run(session, TOKENS[:1], 64)
    session.rollback([70])
    mixed = np.concatenate([TOKENS[:1, :70], TOKENS[1:2, 70:]], 1)
    wanted = run(ReferenceSession(module, weights), mixed, 64)
    np.testing.assert_allclose(session.forward(mixed[:, 70:]).logits, wanted[:, 70:], rtol=0, atol=1e-9)


def test_rings_hold_whole_blocks_and_latents_their_newest_tokens() -> None:
    module = parse_pass(RING_FORMS["blocks"]).run(front("rings")).module
    types = {n: (str(s.type), s.ring, s.window) for n, s in module.states.items()}
    # 40 + 64 - 1 slots become 7 blocks of 16, in what lies beside them too.
    assert types["kv.0.k"] == ("i4<g16, asym, axis-2>[B, 2, 112, 8]", True, 40)
    assert types["kv.0.v"] == ("i4<row, asym>[B, 2, 112, 8]", True, 40)
    assert types["kv.0.k.recent"] == ("f16[B, 2, 36, 8]", True, 20)
    assert types["kv.1.latent"] == ("i4<g16, asym, axis-2>[B, 112, 32]", True, 40)
    assert types["kv.1.rope_k"] == ("f16[B, 112, 4]", True, 40)
    assert types["kv.1.latent.recent"] == ("f16[B, 36, 32]", True, 20)
    assert types["kv.2.latent"] == ("i4<g16, asym, axis-2>[B, 256, 32]", False, 0)
    one_by_one = parse_pass(RING_FORMS["newest in f16"]).run(front("rings")).module.states
    assert str(one_by_one["kv.1.latent"].type) == "i4<row, asym>[B, 103, 32]"
    assert (str(one_by_one["kv.1.latent.recent"].type), one_by_one["kv.1.latent.recent"].window) == (
        "f16[B, 24, 32]", 9)


def test_trees_and_short_windows_have_no_recent_tokens_and_say_why() -> None:
    tree = build(scale(load_spec("tiny")), tree=True)
    result = KvQuant(bits=4, keys="channel").run(tree)
    assert all(s.type.element == parse_element("i4<row, asym>") for s in result.module.states.values())
    missed = [r.message for r in result.remarks if r.missed]
    assert "kv.0.k keeps its tokens one by one: a token tree drops tokens from the middle of a block" in missed
    windowed = build(scale(load_spec("mobile_4gb")))
    result = KvQuant(bits=4, keys="channel").run(windowed)
    assert {s.role: str(s.type.element) for s in result.module.states.values()} == {
        "latent": "i4<row, asym>", "rope_k": "f16"}
    assert all(s.ring for s in result.module.states.values())
    assert ("kv.0.latent keeps its tokens one by one: its window of 20 tokens is not longer than the ring of 96, "
            "which would hold them all") in [r.message for r in result.remarks if r.missed]
    result = KvQuant(bits=4).run(windowed)
    assert ("kv.0.latent has no ring of recent tokens: its window of 20 tokens is not longer than the ring of 48, "
            "which would hold them all") in [r.message for r in result.remarks if r.missed]


@pytest.mark.parametrize("preset", sorted(preset_names()))
def test_predicted_bytes_are_measured_bytes_on_every_preset(preset: str) -> None:
    for options in (KvQuant(), KvQuant(bits=4), KvQuant(bits=4, keys="channel")):
        result = options.run(front(preset))
        for batch in (1, 3):
            assert torch_bytes(new_states(result.module, batch)) == state_bytes(result.module, batch)
        told = f"the states of a row take {state_bytes(result.module):,} bytes"
        assert result.remarks[-1].message.startswith(told)


def test_a_budget_is_kept_and_spent(context: Any) -> None:
    lent = context("tiny")
    least = state_bytes(KvQuant(bits=4, recent=0).run(front("tiny")).module)
    wide: list[int] = []
    for budget in (least, least + 3000, least + 6000, 10 * least):
        module, weights = quantised("tiny", f"kv-quant{{budget={budget}}}", lent)
        assert state_bytes(module) <= budget
        heads = {n: s.type for n, s in module.states.items() if isinstance(s.type.element, Storage)}
        wide.append(sum(int(t.shape[1]) for t in heads.values() if t.element.bits == 8))  # type: ignore[call-overload]
        session = ReferenceSession(module, weights)
        whole = run(session, TOKENS[:1, :40])
        session.reset(1)
        np.testing.assert_allclose(run(session, TOKENS[:1, :40], 1, 7, 30), whole, rtol=0, atol=1e-9)
        assert session.state_bytes() == state_bytes(module) == torch_bytes(new_states(module, 1))
    # The heads of the MTP block are not in what calibration runs, and stay at 4 bits.
    assert wide == [0, 1, 2, 4]
    with pytest.raises(InputError) as caught:
        quantised("tiny", f"kv-quant{{budget={least - 1}}}", lent)
    assert caught.value.message == (
        f"the states take {least:,} bytes a row at the fewest bits; the budget is {least - 1:,}")


def test_static_scales_cover_what_was_seen() -> None:
    low, high = np.array([[-1.0, 0.5]], np.float32), np.array([[3.0, 2.0]], np.float32)
    one = parse_element("i4<row, one>")
    scale_, offset = scales_of(low, high, Form(one, static="channel", offset=True))
    assert offset is not None
    np.testing.assert_allclose(-8 * scale_ + offset, low, atol=1e-6)
    np.testing.assert_allclose(7 * scale_ + offset, high, atol=1e-6)
    scale_, offset = scales_of(low, high, Form(one, static="head"))
    assert offset is None
    np.testing.assert_allclose(7 * scale_, [[3.0]])


def test_a_sidecar_is_written_read_and_refused(context: Any, tmp_path: Path) -> None:
    lent, path = context("tiny"), tmp_path / "kv.safetensors"
    text = f"kv-quant{{scales=static, sidecar={path}}}"
    first, _ = quantised("tiny", text, lent)
    blind = PassContext(weights=lent.weights, weights_key="tiny", results=lent.results)
    second = parse_pass(text).run(front("tiny"), blind).module
    assert print_module(first) == print_module(second)
    with pytest.raises(InputError) as caught:
        parse_pass(text).run(front("tiny"), PassContext(weights_key="other", results=lent.results))
    assert caught.value.message == f"{path} was calibrated on another model or other weights"
    with pytest.raises(InputError) as caught:
        parse_pass(text.replace("}", ", per=head}")).run(front("tiny"), blind)
    assert caught.value.message.startswith(f"{path} holds scales of the scheme")
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(InputError, match="is not a sidecar of kv-quant"):
        parse_pass(text).run(front("tiny"), blind)
    with pytest.raises(InputError, match="needs text to calibrate on, and there is none"):
        KvQuant(scales="static").run(front("tiny"), PassContext(weights=lent.weights, results=lent.results))


@pytest.mark.parametrize(("options", "message"), [
    ("kind=nf4", "kv-quant: nf4 has 4 bits, not 8"),
    ("bits=4, kind=nf4, keys=channel", "kv-quant: keys=channel has zero points, and nf4 has none"),
    ("scales=static, keys=channel", "kv-quant: keys=channel finds the scales of each block, so they are not static"),
    ("budget=9999, keys=channel", "kv-quant: a budget mixes bits by head, keys=channel has one type for a state"),
    ("budget=9999, scales=static", "kv-quant: a budget chooses bits by head, and static scales are for one width"),
    ("budget=9999, kind=nf4, bits=4", "kv-quant: a budget mixes 8 and 4 bits, and nf4 has 4"),
    ("sidecar=x", "kv-quant: a sidecar keeps static scales"),
    ("recent=96, scales=static", "kv-quant: recent tokens stand beside dynamic scales of one type"),
    ("keys=channel, recent=60",
     "kv-quant: a ring of 60 recent tokens cannot hold a block of 32 and 32 before it"),
    ("bits=4, recent=32", "kv-quant: a ring of 32 recent tokens cannot hold the 32 that are read and one more"),
    ("keys=channel, recent=0", "kv-quant: keys=channel reads the open block from a ring, so recent is not 0"),
])
def test_options_that_exclude_each_other(options: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_pass(f"kv-quant{{{options}}}").run(front("tiny"))
    assert caught.value.message == message


def test_a_quantised_module_is_left_alone() -> None:
    once = KvQuant().run(front("tiny")).module
    again = KvQuant().run(once)
    assert not again.changed
    assert again.module is once
    assert "kv.0.k is i8<row, asym> already" in [r.message for r in again.remarks if r.missed]


@pytest.mark.parametrize(("size", "wanted", "group"), [
    (64, 64, 0), (128, 64, 64), (160, 64, 32), (160, 128, 32), (96, 64, 32), (20, 64, 0), (256, 0, 0), (100, 64, 0)])
def test_groups_divide_the_head(size: int, wanted: int, group: int) -> None:
    assert group_for(size, wanted) == group
