"""Sessions of the torch target: a row is bitwise the same for T in 1..16 and any batch; states and their limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.numeric import logit_rms
from omnic.ir.reference import ReferenceSession
from omnic.ir.weights import WeightStore
from omnic.runtime.session import SessionOptions
from omnic.targets.torch import kernels as K
from omnic.targets.torch.session import TorchSession
from omnic.targets.torch.states import Rows
from tests.models.variants import VARIANTS, variant

NAMES = (*VARIANTS, "tiny_moe", "mobile_4gb")
RANDOM = np.random.default_rng(2)


def session_of(name: str, tree: bool = False, **options: Any) -> tuple[TorchSession, Module, WeightStore]:
    module = variant(name, tree)
    store = WeightStore.random(module, 3)
    return TorchSession.of(module, store, SessionOptions(threads=1, **options)), module, store


def ids(session: TorchSession, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, session.info.vocab, shape)


def run(session: TorchSession, tokens: np.ndarray, cuts: list[int]) -> np.ndarray:
    session.reset(len(tokens))
    return np.concatenate(
        [np.array(session.forward(tokens[:, a:b]).logits) for a, b in pairwise([0, *cuts, tokens.shape[1]])], 1
    )


@pytest.mark.parametrize("name", NAMES)
def test_any_chunking_up_to_16_is_bitwise_one_answer_and_the_reference_agrees(name: str) -> None:
    session, module, store = session_of(name)
    tokens = ids(session, 1, 40)
    singles = run(session, tokens, list(range(1, 40)))
    assert np.array_equal(run(session, tokens, [16, 32]), singles)
    assert np.array_equal(run(session, tokens, [3, 4, 11, 20, 36]), singles)
    chunk = session.info.chunk
    longer = run(session, tokens, [chunk] if chunk < 40 else [])
    wanted = run(ReferenceSession(module, store), tokens, [chunk] if chunk < 40 else [])  # type: ignore[arg-type]
    bound = (2e-3 if name == "f16 cache" else 2e-5) * logit_rms(wanted)
    assert np.abs(singles - wanted).max() <= bound
    assert np.abs(longer - wanted).max() <= bound


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_any_batch_is_bitwise_the_row_alone(name: str) -> None:
    session, _, _ = session_of(name)
    tokens = ids(session, 5, 21)
    lengths = np.array([16, 1, 7, 16, 0])
    session.reset(5)
    first = np.array(session.forward(tokens[:, :16], length=lengths).logits)
    second = np.array(session.forward(tokens[:, 16:18]).logits)
    assert np.isfinite(first).all()
    for row, length in enumerate(lengths):
        session.reset(1)
        if length:
            alone = np.array(session.forward(tokens[row : row + 1, :length]).logits)
            assert np.array_equal(alone[0], first[row, :length])
        assert np.array_equal(np.array(session.forward(tokens[row : row + 1, 16:18]).logits)[0], second[row])


@pytest.mark.parametrize("name", ["tiny_moe", "mobile_4gb", "sinks, softcap, qk_norm", "pattern of windows"])
@pytest.mark.parametrize("tokens", [16, 20])
def test_a_later_token_changes_no_earlier_logit_at_all(name: str, tokens: int) -> None:
    session, _, _ = session_of(name)
    text = ids(session, 1, tokens)
    changed = text.copy()
    changed[:, 13] = (changed[:, 13] + 1) % session.info.vocab
    one, two = run(session, text, []), run(session, changed, [])
    assert np.array_equal(one[:, :13], two[:, :13])
    assert not np.array_equal(one[:, 13], two[:, 13])


def test_wanted_rows_are_the_rows_of_all() -> None:
    session, _, _ = session_of("tiny_moe")
    tokens = ids(session, 2, 12)
    every = np.array(run(session, tokens, []))
    session.reset(2)
    some = np.array(session.forward(tokens, rows=np.array([[11, 0], [3, 3]])).logits)
    assert np.array_equal(some, np.stack([every[0, [11, 0]], every[1, [3, 3]]]))


def test_fork_and_rollback() -> None:
    session, _, _ = session_of("mobile_4gb")
    tokens = ids(session, 2, 30)
    straight = run(session, tokens, [16])
    session.reset(2)
    session.forward(tokens[:, :16])
    other = session.fork()
    session.forward(ids(session, 2, 9, seed=8))
    session.rollback([16, 12])
    assert session.start.tolist() == [16, 12]
    session.forward(tokens[1:, 12:16].repeat(2, 0), length=[0, 4])
    assert np.array_equal(np.array(session.forward(tokens[:, 16:]).logits), straight[:, 16:])
    assert np.array_equal(np.array(other.forward(tokens[:, 16:]).logits), straight[:, 16:])
    assert other.state_bytes() == session.state_bytes() > 0


def test_a_ring_rolls_back_as_far_as_its_chunk() -> None:
    session, _, _ = session_of("mobile_4gb")
    ring, chunk = session.info.ring, session.info.chunk
    assert ring is not None
    tokens = ids(session, 1, ring + 2 * chunk)
    whole = run(session, tokens, list(range(16, tokens.shape[1], 16)))
    held = tokens.shape[1]
    session.rollback([held - chunk])
    again = np.concatenate(
        [np.array(session.forward(tokens[:, a : a + 16]).logits) for a in range(held - chunk, held, 16)], 1
    )
    assert np.array_equal(again, whole[:, held - chunk :])
    with pytest.raises(InputError) as caught:
        session.rollback([held - chunk - 1])
    assert f"its sliding-window cache reaches back {chunk}" in caught.value.message
    session.rollback([0])


def test_more_tokens_than_the_capacity_are_refused() -> None:
    session, _, _ = session_of("mqa, geglu")
    run(session, ids(session, 1, 60), [20, 40])
    with pytest.raises(InputError) as caught:
        session.forward(ids(session, 1, 5))
    assert caught.value.message == "row 0 would hold 65 tokens; this program holds at most 64"
    assert session.start.tolist() == [60]


def test_less_memory_than_the_weights_take_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        session_of("tiny", memory=1000)
    assert caught.value.message.endswith("bytes in f32; the limit is 1,000")


@pytest.mark.parametrize("name", ["mobile_4gb", "tiny"])
def test_a_branch_of_a_tree_is_the_branch_alone(name: str) -> None:
    session, _, _ = session_of(name, tree=True)
    tokens = ids(session, 1, 12)
    prefix, branches = tokens[:, :5], tokens[:, 5:]
    # 0 - 1 - 3
    #   \ 2 - 4 - 5      6 is another child of the prefix
    parents = np.array([[-1, 0, 0, 1, 2, 4, -1]])
    depth = np.array([[0, 1, 1, 2, 2, 3, 0]])
    session.reset(1)
    session.forward(prefix)
    together = np.array(session.forward(branches, positions=5 + depth, parents=parents).logits)
    for path in ([0, 1, 3], [0, 2, 4, 5], [6]):
        session.reset(1)
        session.forward(prefix)
        alone = np.array(session.forward(branches[:, path]).logits)
        assert np.abs(alone[0] - together[0, path]).max() <= 2e-5 * logit_rms(alone)
    # The accepted path is moved together, and decoding goes on as if it had been decoded.
    session.reset(1)
    session.forward(prefix)
    session.forward(branches, positions=5 + depth, parents=parents)
    session.move([[5 + 2, 5 + 4, 5 + 5]], [[5 + 1, 5 + 2, 5 + 3]])
    session.rollback([9])
    following = np.array(session.forward(tokens[:, :1]).logits)
    session.reset(1)
    session.forward(prefix)
    session.forward(branches[:, [0, 2, 4, 5]])
    wanted = np.array(session.forward(tokens[:, :1]).logits)
    assert np.abs(following - wanted).max() <= 2e-5 * logit_rms(wanted)


def test_a_move_of_tokens_that_are_not_there_is_refused() -> None:
    session, _, _ = session_of("tiny")
    session.forward(ids(session, 1, 4))
    with pytest.raises(InputError) as caught:
        session.move([[4]], [[0]])
    assert caught.value.message == "source and target must be -1 or indices of tokens that the row holds"


def test_the_mtp_block_runs_and_rolls_back_with_the_rest() -> None:
    session, module, store = session_of("tiny_moe")
    reference = ReferenceSession(module, store)
    tokens = ids(session, 1, 20)
    hidden = session.forward(tokens).hidden
    assert hidden is not None
    logits, state = session.mtp_forward(hidden[:, :16], tokens[:, 1:17])
    wanted = reference.mtp_forward(hidden[:, :16], tokens[:, 1:17])
    assert np.abs(logits - wanted.logits).max() <= 2e-5 * logit_rms(wanted.logits)
    assert wanted.hidden is not None and np.allclose(state, wanted.hidden, atol=1e-4)
    session.rollback([9])
    assert session.mtp_start.tolist() == [9]
    again = [session.mtp_forward(hidden[:, i : i + 1], tokens[:, i + 1 : i + 2])[0] for i in range(9, 16)]
    assert np.array_equal(np.concatenate(again, 1), logits[:, 9:])
    with pytest.raises(InputError) as caught:
        session.mtp_forward(hidden[0], tokens)
    assert caught.value.message.startswith("hidden must be [1, T, D] and next_tokens [1, T], not ")


def test_each_of_several_mtp_blocks_counts_its_own_tokens() -> None:
    session, module, store = session_of("two mtp blocks with experts")
    reference = ReferenceSession(module, store)
    tokens = ids(session, 2, 9)
    session.reset(2)
    reference.reset(2)
    hidden = session.forward(tokens).hidden
    assert hidden is not None
    for depth in (0, 1, 5):
        logits, _ = session.mtp_forward(hidden[:, :4], tokens[:, 1:5], depth=depth)
        wanted = reference.mtp_forward(hidden[:, :4], tokens[:, 1:5], depth=depth).logits
        assert np.abs(logits - wanted).max() <= 2e-5 * logit_rms(wanted)
    session.mtp_rollback([2, 3])
    assert session.mtp_start.tolist() == [2, 3] and session.start.tolist() == [9, 9]
    with pytest.raises(InputError) as caught:
        session_of("yarn")[0].mtp_forward(hidden, tokens)
    assert caught.value.message == "this program has no MTP block"


def test_states_are_updated_in_place_and_weights_held_once() -> None:
    session, module, _ = session_of("tiny")
    def places() -> dict[str, list[int]]:
        parts = {n: list(s.parts.values()) if isinstance(s, Rows) else [s] for n, s in session._states.items()}
        return {n: [p.data_ptr() for p in of] for n, of in parts.items()}

    before = places()
    session.forward(ids(session, 1, 4))
    assert places() == before
    assert sum(w.numel() for w in session.program.weights.values()) == module.parameters()


@pytest.mark.parametrize("count", [1, 2, 7, 31, 32, 33, 100, 40_000])
@pytest.mark.parametrize(
    "function", [torch.exp, torch.nn.functional.silu, torch.nn.functional.gelu, torch.sigmoid, torch.tanh]
)
def test_a_pointwise_function_rounds_every_element_alike(count: int, function: Any) -> None:
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(K.pointwise(function, x[:count]), K.pointwise(function, x)[:count])
    assert torch.equal(K.pointwise(function, x[-count:]), K.pointwise(function, x)[-count:])


@pytest.mark.parametrize(("inner", "outer"), [(64, 64), (50, 33), (97, 300), (36, 7), (768, 128)])
def test_a_row_of_a_product_is_its_own(inner: int, outer: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(70, inner, generator=generator), torch.randn(outer, inner, generator=generator)
    every = K.product(x, weight)
    blocks = K.product_in_blocks(x, weight)
    for at, count in ((0, 1), (3, 5), (11, 32), (64, 6), (69, 1)):
        assert torch.equal(K.product(x[at : at + count], weight), every[at : at + count])
        assert torch.equal(K.product_in_blocks(x[at : at + count], weight), blocks[at : at + count])
