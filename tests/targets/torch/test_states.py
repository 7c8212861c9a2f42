"""States in codes: bitwise the reference's rounding, exact bytes, and sessions that keep their promises over them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.numeric import compare, find_class
from omnic.ir.op import find_op
from omnic.ir.reference import ReferenceSession
from omnic.ir.types import Storage, parse_element
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.passes.base import parse_pass
from omnic.runtime.session import SessionOptions
from omnic.spec import load_spec, parse_spec, scale
from omnic.targets.torch.session import TorchSession
from omnic.targets.torch.states import Rows, cache_close, new_rows
from tests.passes.rings import FORMS, RINGS

RANDOM = np.random.default_rng(5)
TOKEN_TYPES = ("i8<g4, asym>", "i8<row>", "i4<g4, asym>", "i4<row, asym, f32>", "i2<g8, asym>", "i2<row>", "nf4<g4>",
               "i4<row, one>", "nf4<row, one>", "i8<row, one>")


def storage(text: str) -> Storage:
    element = parse_element(text)
    assert isinstance(element, Storage)
    return element


@pytest.mark.parametrize("heads", [(), (2,)])
@pytest.mark.parametrize("kind", TOKEN_TYPES)
def test_a_write_rounds_as_the_reference_does(kind: str, heads: tuple[int, ...]) -> None:
    element, shape = storage(kind), (2, *heads, 9, 12)
    x = (RANDOM.standard_normal((2, *heads, 9, 12)) * 3).astype(np.float32)
    x[0, ..., 3, :4] = 0
    state = new_rows(element, shape)
    assert state.nbytes == element.bytes(shape)
    assert np.array_equal(state.every().numpy(), packing.decode(packing.zeros(element, shape)))
    state.fill(torch.from_numpy(x))
    assert np.array_equal(state.every().numpy(), packing.decode(packing.quantise(x, element)))
    part = state.live(1, 5).movedim(0, -2).numpy()
    assert np.array_equal(part, state.every()[1, ..., :5, :].numpy())
    state.move(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([8, 0]))
    assert np.array_equal(state.every()[0, ..., 8, :].numpy(), state.every()[0, ..., 1, :].numpy())


@pytest.mark.parametrize("kind", ["i4<g16, asym, axis-2>", "i8<g16, axis-2>", "i2<g32, asym, axis-2>"])
def test_blocks_close_as_in_the_reference(kind: str) -> None:
    element, shape = storage(kind), (2, 3, 70, 5)
    start, length = np.array([30, 3]), np.array([38, 14])
    index = np.stack([np.concatenate([np.arange(s + n), np.full(70 - s - n, -1)])
                      for s, n in zip(start, length, strict=True)])
    x = RANDOM.standard_normal((2, 3, 70, 5)).astype(np.float32)
    state = new_rows(element, shape)
    assert state.nbytes == element.bytes(shape)
    wanted = find_op("cache_close").reference(packing.zeros(element, shape), x, index, start, length, ring=False)
    given = (torch.from_numpy(a) for a in (x, index, start, length))
    assert cache_close(state, *given) is state
    assert np.array_equal(state.every().numpy(), packing.decode(wanted))
    assert np.array_equal(state.live(0, 33).numpy(), packing.decode(wanted)[0, :, :33].transpose(1, 0, 2))


def test_blocks_of_a_ring_close_modulo_its_slots() -> None:
    element, shape = storage("i4<g16, asym, axis-2>"), (2, 3, 64, 5)
    start, length = np.array([100, 7]), np.array([40, 30])
    index = np.stack([np.arange(s - 30, s + 40) for s in start])
    x = RANDOM.standard_normal((2, 3, 70, 5)).astype(np.float32)
    wanted = find_op("cache_close").reference(packing.zeros(element, shape), x, index, start, length, ring=True)
    given = [torch.from_numpy(a) for a in (x, index, start, length)]
    state = cache_close(new_rows(element, shape), *given, ring=True)
    assert np.array_equal(state.every().numpy(), packing.decode(wanted))
    # Row 0 has closed its blocks 6, 7: slots 32 to 63.
    plain = packing.decode(wanted)
    assert not plain[0, :, :32].any()
    close = packing.decode(packing.quantise(x[:1, :, 96 - 70 : 128 - 70], element))
    assert np.array_equal(plain[:1, :, 32:], close)


def test_a_block_without_its_tokens_and_numbers_without_end_are_refused() -> None:
    state = new_rows(storage("i4<g16, asym, axis-2>"), (1, 1, 32, 4))
    with pytest.raises(InputError, match="a block ends, and not all its tokens are recent"):
        cache_close(state, torch.zeros(1, 1, 8, 4), torch.arange(8)[None], torch.tensor([8]), torch.tensor([8]))
    rows = new_rows(storage("i8<row>"), (1, 2, 4))
    with pytest.raises(InputError, match="cannot quantise a state with NaN or infinite numbers"):
        rows.fill(torch.full((1, 2, 4), float("nan")))
    with pytest.raises(InputError, match="the scale of a state is beyond f16"):
        rows.fill(torch.full((1, 2, 4), 1e9))


@pytest.mark.parametrize(("preset", "text"), [
    ("tiny", "kv-quant{bits=4}"),
    ("tiny", "kv-quant{bits=4, keys=channel, block=16, keep=16, recent=48}"),
    ("tiny_moe", "kv-quant"),
    *(("rings", text) for text in FORMS.values()),
])
def test_any_chunking_and_batch_is_bitwise_one_answer(preset: str, text: str) -> None:
    spec = parse_spec(RINGS) if preset == "rings" else scale(load_spec(preset))
    module = parse_pass(text).run(build(spec)).module
    weights = WeightStore.random(module, 3)
    session = TorchSession.of(module, weights, SessionOptions(threads=1))
    assert session.info.numeric_class == "int8"
    assert any(isinstance(s, Rows) for s in session._states.values())
    tokens = np.random.default_rng(0).integers(0, 500, (2, 40))

    def run(*cuts: int, rows: slice = slice(0, 1)) -> np.ndarray:
        session.reset(len(tokens[rows]))
        ends = pairwise([0, *cuts, 40])
        return np.concatenate([np.array(session.forward(tokens[rows, a:b]).logits) for a, b in ends], 1)

    singles = run(*range(1, 40))
    assert np.array_equal(run(3, 4, 18, 34), singles)
    assert np.array_equal(run(16, 32, rows=slice(0, 2))[:1], singles)
    wanted = ReferenceSession(module, weights).forward(tokens[:1]).logits
    kind = find_class("int8")
    for found in (singles, run()):
        assert compare(text, found, wanted, kind).ok
        assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()
    if preset == "rings":
        # Far beyond the slots of its rings.
        more = np.random.default_rng(2).integers(0, 500, (1, 140))
        session.forward(more[:, :64])
        held = session.fork()
        chunks = [np.array(session.forward(more[:, a : a + 16]).logits) for a in range(64, 140, 16)]
        single = [np.array(held.forward(more[:, a : a + 1]).logits) for a in range(64, 140)]
        assert np.array_equal(np.concatenate(single, 1), np.concatenate(chunks, 1))
        session = TorchSession.of(module, weights, SessionOptions(threads=1))

    # Drafts that are dropped leave no bit behind, nor does a fork.
    session.reset(1)
    session.forward(tokens[:1, :20])
    other = session.fork()
    session.forward(tokens[1:, 20:34])
    session.rollback([20])
    again = np.array(session.forward(tokens[:1, 20:36]).logits)
    assert np.array_equal(np.array(other.forward(tokens[:1, 20:36]).logits), again)
    assert other.state_bytes() == session.state_bytes()
    if "channel" in text and preset == "tiny":
        session.forward(tokens[:1, 36:40])
        session.forward(tokens[1:, :24])
        with pytest.raises(InputError) as caught:
            session.rollback([46])
        told = "rollback of row 0 from 64 to 46 tokens; its ring of recent tokens reaches back 17"
        assert caught.value.message == told


def test_keys_in_blocks_over_several_kernel_blocks() -> None:
    """300 tokens of the real head size: what a query reads in f16 may cross from one kernel block to the next."""
    module = parse_pass("kv-quant{bits=4, keys=channel}").run(build(scale(load_spec("tiny")))).module
    weights = WeightStore.random(module, 3)
    session = TorchSession.of(module, weights, SessionOptions(threads=1))
    tokens = np.random.default_rng(1).integers(0, 500, (1, 290))
    for at in range(0, 256, 64):
        session.forward(tokens[:, at : at + 64], rows=np.zeros((1, 1), np.int64))
    other = session.fork()
    found = np.array(session.forward(tokens[:, 256:270]).logits)
    single = [np.array(other.forward(tokens[:, at : at + 1]).logits) for at in range(256, 270)]
    assert np.array_equal(np.concatenate(single, 1), found)
    reference = ReferenceSession(module, weights)
    for at in range(0, 256, 64):
        reference.forward(tokens[:, at : at + 64], rows=np.zeros((1, 1), np.int64))
    wanted = reference.forward(tokens[:, 256:270]).logits
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()
