"""Every kind of attention a spec can name, as a program in both profiles, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.ir.numeric import find_class
from omnic.ir.reference import ReferenceSession
from tests.targets.onnx.helpers import GQA, MLA, emitted, model, session_of, spec_text

WINDOW = GQA.replace("}}", "}, window: 9}")
HEADS = "{kind: mha, heads: 6, head_dim: 16, rope: {base: 10000%s}}"
YARN = ", scaling: {kind: yarn, factor: 4, original_context: 32}"

#: name -> (spec, whether the fused operator computes it)
CASES = {
    "gqa": (spec_text(), True),
    "mqa with yarn": (spec_text(HEADS.replace("mha", "mqa") % YARN), True),
    "interleaved pairs": (spec_text(HEADS % ", interleaved: true"), True),
    "8 of 16 dims rotated": (spec_text(HEADS % ", dims: 8"), True),
    "no position": (spec_text("{kind: gqa, heads: 6, kv_heads: 2, head_dim: 16, rope: null}"), True),
    "qk norm": (spec_text(extra="qk_norm: true\n"), True),
    "biases": (spec_text(extra="bias: true\n"), True),
    "sinks and softcap": (spec_text(extra="sinks: true\nsoftcap: {attention: 3.0, logits: 5.0}\n"), True),
    "window in a linear state": (spec_text(GQA.replace("}}", "}, window: 55}")), True),
    "head size 20": (spec_text("{kind: gqa, heads: 3, kv_heads: 1, head_dim: 20, rope: {base: 10000}}"), False),
    "ring with sinks and softcap": (spec_text(WINDOW, extra="sinks: true\nsoftcap: {attention: 3.0}\n"), False),
    "latent ring": (spec_text(MLA), False),
    "latent with query latent": (spec_text(MLA.replace(", window: 9", ", q_latent: 14"), extra="bias: true\n"), False),
}
#: lengths of three rows in consecutive calls: full, ragged, decode, idle rows, up to a full state
CALLS = ((16, 16, 16), (16, 16, 16), (7, 16, 1), (1, 0, 5), (1, 1, 1), (4, 3, 0), (16, 12, 1), (0, 0, 1))


def tokens_of(calls: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(0, 96, (len(lengths), max(lengths))) for lengths in calls]


@pytest.mark.parametrize("profile", ["fused", "plain"])
@pytest.mark.parametrize("name", CASES)
def test_rows_of_any_length_are_the_reference(name: str, profile: str, tmp_path: Path) -> None:
    text, fused = CASES[name]
    module, weights = model(text)
    made = emitted(module, weights, tmp_path, profile)
    operators = {node.rsplit("/", 1)[-1].split(".")[0] for node in made.nodes}
    assert ("GroupQueryAttention" in operators) == (fused and profile == "fused")
    assert "Attention" in operators
    session, reference = session_of(module, tmp_path), ReferenceSession(module, weights, batch=3)
    session.reset(3)
    for lengths, ids in zip(CALLS, tokens_of(CALLS), strict=True):
        wanted, found = reference.forward(ids, length=lengths), session.forward(ids, length=np.array(lengths))
        valid = np.arange(ids.shape[1])[None] < np.array(lengths)[:, None]
        rms = np.sqrt(np.mean(np.square(wanted.logits[valid])))
        assert np.abs(np.asarray(found.logits) - wanted.logits)[valid].max() <= find_class("f32").error * rms
        for state, numbers in reference.states.items():
            assert np.abs(session.states[state] - numbers).max() <= 1e-4, state


@pytest.mark.parametrize("profile", ["fused", "plain"])
def test_one_row_in_chunks_and_single_tokens_is_the_reference(profile: str, tmp_path: Path) -> None:
    module, weights = model(spec_text())
    emitted(module, weights, tmp_path, profile)
    session, reference = session_of(module, tmp_path), ReferenceSession(module, weights)
    ids = np.random.default_rng(0).integers(0, 96, (1, 64))
    at = 0
    for step in (16, 16, 1, 1, 3, 16, 1, 10):
        wanted = reference.forward(ids[:, at : at + step]).logits
        found = np.asarray(session.forward(ids[:, at : at + step]).logits)
        assert np.abs(found - wanted).max() <= 2e-5 * np.sqrt(np.mean(wanted**2))
        at += step


@pytest.mark.parametrize("start", [0, 4])
def test_positions_of_the_caller_reach_the_rotation(start: int, tmp_path: Path) -> None:
    """The fused operator reads only the first position of a first prompt unless it is kept off that form."""
    module, weights = model(spec_text())
    emitted(module, weights, tmp_path, "fused")
    session, reference = session_of(module, tmp_path), ReferenceSession(module, weights)
    ids = np.random.default_rng(0).integers(0, 96, (1, 12))
    for one in (session, reference):
        if start:
            one.forward(ids[:, :start])
    where = np.array([[5, 5, 9, 2, 30, 31, 63, 0]])
    wanted = reference.forward(ids[:, start : start + 8], positions=where).logits
    found = np.asarray(session.forward(ids[:, start : start + 8], positions=where).logits)
    assert np.abs(found - wanted).max() <= 2e-5 * np.sqrt(np.mean(wanted**2))


def test_positions_count_where_one_call_fills_the_state(tmp_path: Path) -> None:
    module, weights = model(spec_text().replace("context: 64", "context: 16"))
    emitted(module, weights, tmp_path, "fused")
    session, reference = session_of(module, tmp_path), ReferenceSession(module, weights)
    ids, where = np.random.default_rng(0).integers(0, 96, (1, 16)), np.random.default_rng(1).permutation(16)[None]
    wanted = reference.forward(ids, positions=where).logits
    found = np.asarray(session.forward(ids, positions=where).logits)
    assert np.abs(found - wanted).max() <= 2e-5 * np.sqrt(np.mean(wanted**2))


@pytest.mark.parametrize("attention", [GQA, MLA])
def test_a_tree_of_drafts_is_the_reference(attention: str, tmp_path: Path) -> None:
    from omnic.ir.weights import WeightStore
    from omnic.models import build
    from omnic.spec import parse_spec

    module = build(parse_spec(spec_text(attention), "small.yaml"), tree=True)
    weights = WeightStore.random(module, 4)
    made = emitted(module, weights, tmp_path, "fused")
    assert not any("GroupQueryAttention" in node for node in made.nodes)
    session, reference = session_of(module, tmp_path), ReferenceSession(module, weights)
    ids = np.random.default_rng(0).integers(0, 96, (1, 12))
    chain = np.arange(-1, 5)[None]
    session.forward(ids[:, :6])
    reference.forward(ids[:, :6], parents=chain)
    parents, where = np.array([[-1, 0, 0, 1, -1, 4]]), np.array([[6, 7, 7, 8, 6, 7]])
    wanted = reference.forward(ids[:, 6:], parents=parents, positions=where).logits
    found = np.asarray(session.forward(ids[:, 6:], parents=parents, positions=where).logits)
    assert np.abs(found - wanted).max() <= 2e-5 * np.sqrt(np.mean(wanted**2))


def test_causality_a_later_token_changes_no_earlier_logit(tmp_path: Path) -> None:
    module, weights = model(spec_text())
    emitted(module, weights, tmp_path, "fused")
    session = session_of(module, tmp_path)
    ids = np.random.default_rng(0).integers(0, 96, (1, 16))
    before = np.array(session.forward(ids).logits)
    other = ids.copy()
    other[0, 9] = (other[0, 9] + 1) % 96
    session.reset()
    after = np.array(session.forward(other).logits)
    rms = np.sqrt(np.mean(before**2))
    assert np.abs(after - before)[:, :9].max() <= 1e-5 * rms
    assert np.abs(after - before)[:, 9:].max() > 1e-3 * rms


def test_states_in_f16_stay_in_their_class(tmp_path: Path) -> None:
    module, weights = model(spec_text(extra="kv_dtype: f16\n"))
    emitted(module, weights, tmp_path, "fused")
    session, reference = session_of(module, tmp_path), ReferenceSession(module, weights)
    assert session.info.numeric_class == "f16"
    assert all(array.dtype == np.float16 for array in session.states.values())
    ids = np.random.default_rng(0).integers(0, 96, (1, 16))
    wanted = reference.forward(ids).logits
    found = np.asarray(session.forward(ids).logits)
    assert np.abs(found - wanted).max() <= find_class("f16").error * np.sqrt(np.mean(wanted**2))
