"""Sessions of every kind of layer against the reference, over the modules that are exported: nothing is lowered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.numeric import find_class, logit_rms
from omnic.ir.reference import ReferenceSession
from omnic.ir.text import parse_module, print_module
from omnic.ir.weights import WeightStore
from omnic.spec import preset_names
from omnic.targets.executorch import attend
from omnic.targets.executorch.session import ExecutorchSession
from tests.models.variants import VARIANTS, variant
from tests.targets.executorch.eager import eager_session

BOUND = find_class("f32").bound or 0.0
#: the presets whose scaled copies have every distinct kind of layer between them
KINDS = ("tiny", "tiny_moe", "mobile_4gb", "nano_125m", "draft_30m")
EXPLICIT = ("tiny_moe", "sinks, softcap, qk_norm", "pattern of windows", "f16 cache", "several kinds, linear heads")
WAYS = [*((m, "buffers") for m in (*VARIANTS, *KINDS)), *((m, "explicit") for m in EXPLICIT),
        *(pytest.param(n, "buffers", marks=pytest.mark.slow) for n in preset_names() if n not in KINDS)]
TREES = ("tiny", "mobile_4gb", "f16 cache")
#: a window counts tokens in the order they were written, those of other branches too
TREES_IN_WINDOWS = ("sinks, softcap, qk_norm", "pattern of windows", "mla, q latent")
#: 0 - 1 - 3
#:   └ 2 - 4 - 5      6 is another child of the prefix
PARENTS, DEPTH = np.array([[-1, 0, 0, 1, 2, 4, -1]]), np.array([[0, 1, 1, 2, 2, 3, 0]])


def opened(name: str, tree: bool = False, **options: object) -> tuple[ExecutorchSession, ReferenceSession]:
    module = variant(name, tree)
    weights = WeightStore.random(module, 3)
    session = eager_session(module, weights, **options)
    return session, ReferenceSession(session.module, weights.with_module(session.module))


def ids(module: Module, batch: int, count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, int(str(module.meta["vocab"])), (batch, count))


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= BOUND * logit_rms(wanted)


@pytest.mark.parametrize(("name", "state"), WAYS)
def test_calls_of_any_length_until_the_states_are_full_are_the_reference(name: str, state: str) -> None:
    session, reference = opened(name, state=state)
    chunk = session.info.chunk
    count = min(session.info.capacity, 3 * chunk)
    tokens = ids(session.module, 1, count)
    at = 0
    for size in (min(7, chunk), 1, chunk, 1, 1, chunk, count):
        size = min(size, chunk, count - at)
        if size:
            wanted = reference.forward(tokens[:, at : at + size])
            found = session.forward(tokens[:, at : at + size])
            close(found.logits, np.asarray(wanted.logits))
            for head in ("hidden", "mtp", "verifier"):
                if getattr(wanted, head) is not None:
                    close(getattr(found, head), np.asarray(getattr(wanted, head)))
        at += size


def test_queries_in_order_need_no_mask_over_linear_states(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*given: object) -> None:
        raise AssertionError("a mask was made")

    monkeypatch.setattr(attend, "_bias", none)
    session, _ = opened("tiny")
    session.forward(ids(session.module, 1, 5))


def test_queries_in_another_order_are_masked_by_their_indices() -> None:
    module = variant("tiny")
    text = print_module(module)
    (index,) = {n.operands[3] for n in module.function().nodes if n.op == "attention" and n.operands[3] is not None}
    made = next(n for n in module.function().nodes if index in n.results)
    line = next(row for row in text.splitlines() if f"%{index.name} " in row and f" {made.op}(" in row)
    # The same numbers, as nothing that is known to count from the start.
    other = parse_module(text.replace(line, line.replace(f"{made.op}(", "maximum("), 1))
    weights = WeightStore.random(other, 3)
    session, reference = eager_session(other, weights), ReferenceSession(other, weights)
    tokens = ids(other, 1, 9)
    close(session.forward(tokens).logits, np.asarray(reference.forward(tokens).logits))


@pytest.mark.parametrize("name", [n for n in (*VARIANTS, *KINDS) if "mtp" in variant(n).functions])
def test_the_mtp_block_is_the_reference(name: str) -> None:
    session, reference = opened(name)
    width = int(str(session.module.function("mtp").params[0].value.type.shape[-1]))
    hidden = np.random.default_rng(1).standard_normal((1, 9, width)).astype(np.float32)
    tokens = ids(session.module, 1, 9)
    for part in (slice(0, 6), slice(6, 7), slice(7, 9)):
        wanted = reference.mtp_forward(hidden[:, part], tokens[:, part])
        logits, after = session.mtp_forward(hidden[:, part], tokens[:, part])
        close(logits, np.asarray(wanted.logits))
        close(after, np.asarray(wanted.hidden))


@pytest.mark.parametrize("state", ["buffers", "explicit"])
@pytest.mark.parametrize("name", ["tiny_moe", "draft_30m", "f16 cache"])
def test_ragged_rows_forks_and_rollbacks_do_not_touch_each_other(name: str, state: str) -> None:
    session, reference = opened(name, state=state)
    tokens = ids(session.module, 3, 30)
    session.reset(3)
    reference.reset(3)
    lengths = np.array([14, 0, 5])
    found, wanted = (s.forward(tokens[:, :14], length=lengths) for s in (session, reference))
    close(np.asarray(found.logits)[0], np.asarray(wanted.logits)[0])
    close(np.asarray(found.logits)[2, :5], np.asarray(wanted.logits)[2, :5])
    other = session.fork()
    other.forward(tokens[:, 20:28])
    session.rollback([9, 0, 5])
    reference.rollback([9, 0, 5])
    close(np.asarray(session.forward(tokens[:, 9:10]).logits), np.asarray(reference.forward(tokens[:, 9:10]).logits))
    # The fork still holds all fourteen.
    reference.reset(3)
    reference.forward(tokens[:, :14], length=lengths)
    reference.forward(tokens[:, 20:28])
    close(np.asarray(other.forward(tokens[:, 28:29]).logits), np.asarray(reference.forward(tokens[:, 28:29]).logits))


def test_a_move_copies_tokens_of_each_row_before_it_writes_any() -> None:
    session, _ = opened("tiny")
    tokens = ids(session.module, 2, 10)
    session.reset(2)
    session.forward(tokens)
    before = [session.program.tensors(row)[0].clone() for row in session._rows]
    session.move([[8, -1], [9, 8]], [[6, 7], [8, 9]])
    after = [session.program.tensors(row)[0] for row in session._rows]
    # A state is [1, S, G, D].
    assert torch.equal(after[0][:, 6], before[0][:, 8]) and torch.equal(after[0][:, 7], before[0][:, 7])
    assert torch.equal(after[1][:, 8], before[1][:, 9]) and torch.equal(after[1][:, 9], before[1][:, 8])
    with pytest.raises(InputError, match="source and target must be -1 or indices of tokens that the row holds"):
        session.move([[10], [0]], [[0], [0]])


def test_a_move_finds_the_slots_of_a_ring() -> None:
    session, _ = opened("draft_30m")
    slots = session.program.about["states"]["kv.0.k"]
    assert slots["ring"]
    (row,) = session._rows
    size = next(iter(session.module.states.values())).type.shape[-2]
    assert isinstance(size, int)
    count = size + 10
    tokens = ids(session.module, 1, count)
    for at in range(0, count, 10):
        session.forward(tokens[:, at : at + 10])
    before = session.program.tensors(row)[0].clone()
    session.move([[count - 1]], [[count - 4]])
    after = session.program.tensors(row)[0]
    assert torch.equal(after[:, (count - 4) % size], before[:, (count - 1) % size])
    assert int((after != before).any(-1).any(-1).sum()) == 1


@pytest.mark.parametrize("state", ["buffers", "explicit"])
@pytest.mark.parametrize("name", TREES)
def test_a_branch_of_a_tree_is_the_branch_alone(name: str, state: str) -> None:
    session, _ = opened(name, tree=True, state=state)
    tokens = ids(session.module, 1, 12)
    prefix, branches = tokens[:, :5], tokens[:, 5:]
    session.forward(prefix)
    together = np.array(session.forward(branches, positions=5 + DEPTH, parents=PARENTS).logits)
    for path in ([0, 1, 3], [0, 2, 4, 5], [6]):
        session.reset(1)
        session.forward(prefix)
        close(together[:, path], np.array(session.forward(branches[:, path]).logits))
    # The accepted path is moved together, and decoding goes on as if it had been decoded.
    session.reset(1)
    session.forward(prefix)
    session.forward(branches, positions=5 + DEPTH, parents=PARENTS)
    session.move([[5 + 2, 5 + 4, 5 + 5]], [[5 + 1, 5 + 2, 5 + 3]])
    session.rollback([9])
    following = np.array(session.forward(tokens[:, :1]).logits)
    session.reset(1)
    session.forward(prefix)
    session.forward(branches[:, [0, 2, 4, 5]])
    close(following, np.array(session.forward(tokens[:, :1]).logits))


@pytest.mark.parametrize("name", TREES_IN_WINDOWS)
def test_a_tree_in_windows_is_the_reference(name: str) -> None:
    session, reference = opened(name, tree=True)
    tokens = ids(session.module, 1, 12)
    for each in (session, reference):
        each.forward(tokens[:, :5], parents=np.arange(5)[None] - 1)
    found, wanted = (s.forward(tokens[:, 5:], positions=5 + DEPTH, parents=PARENTS) for s in (session, reference))
    close(np.asarray(found.logits), np.asarray(wanted.logits))
