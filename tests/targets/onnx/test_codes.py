"""States that are stored as codes, made by the pass kv-quant: the reference's numbers, and its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.dims import evaluate
from omnic.ir.graph import Module
from omnic.ir.numeric import CLASSES, class_of, compare
from omnic.ir.reference import Interpreter, ReferenceExecutor, ReferenceSession
from omnic.ir.weights import ResultStore, WeightStore
from omnic.passes.base import PassContext
from omnic.passes.context import Calibration
from omnic.passes.kv.forms import state_bytes
from omnic.passes.kv_quant import KvQuant
from omnic.targets.onnx.target import TARGET
from tests.passes.rings import RINGS
from tests.targets.onnx.helpers import MLA, emitted, model, session_of, spec_text

GQA = "{kind: gqa, heads: 4, kv_heads: 2, head_dim: 40, rope: {base: 10000}}"
RING = "{kind: gqa, heads: 4, kv_heads: 2, head_dim: 16, rope: {base: 10000}, window: 9}"
TOKENS = 16


def quantised(text: str, folder: Path, **options: Any) -> tuple[Module, WeightStore]:
    module, weights = model(text, 3.0)
    results = ResultStore(folder / "results")
    ids = np.random.default_rng(3).integers(0, 96, (4, TOKENS))
    context = PassContext(
        weights=weights,
        weights_key="key",
        calibration=lambda: Calibration(ids, "random tokens"),
        executor=ReferenceExecutor,
        results=results,
    )
    found = KvQuant(**options).run(module, context).module
    return found, WeightStore(found, weights.source, results=results)


def agrees(module: Module, weights: WeightStore, out: Path) -> None:
    """In one call, in pieces, and beside a shorter row."""
    kind = CLASSES[class_of(module)]
    assert kind.name == "int8"
    ids, steps = np.random.default_rng(0).integers(0, 96, (1, TOKENS)), np.arange(TOKENS)[None]
    inputs = {
        "tokens": ids,
        "positions": steps,
        "start": np.zeros(1, int),
        "length": np.full(1, TOKENS),
        "rows": steps,
    }
    wanted = Interpreter(module, weights).run(inputs)["logits"][0]
    session = session_of(module, out)
    cuts = [(0, 5), *((i, i + 1) for i in range(5, TOKENS))]
    whole = np.array(session.forward(ids).logits[0])
    session.reset(1)
    pieces = np.concatenate([np.array(session.forward(ids[:, a:b]).logits[0]) for a, b in cuts])
    session.reset(2)
    ragged = np.array(session.forward(np.repeat(ids, 2, 0), length=[TOKENS, 9]).logits)
    for found, want in ((whole, wanted), (pieces, wanted), (ragged[0], wanted), (ragged[1, :9], wanted[:9])):
        case = compare("logits", found, want, kind)
        assert case.ok, case.problem
    session.reset(1)
    types = [s.type for s in module.states.values()]
    sizes = [t.with_shape(*(evaluate(d, {"B": 1}) for d in t.shape)).bytes() for t in types]
    assert session.state_bytes() == sum(sizes)


@pytest.mark.parametrize("profile", ["fused", "plain"])
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 8},
        {"bits": 8, "symmetric": True},
        {"bits": 4, "group": 32},
        {"bits": 4, "symmetric": True, "group": 0},
        {"bits": 2, "group": 32},
        {"bits": 4, "kind": "nf4"},
    ],
    ids=str,
)
def test_scales_of_every_token(options: dict[str, Any], profile: str, tmp_path: Path) -> None:
    module, weights = quantised(spec_text(GQA), tmp_path, **options)
    emitted(module, weights, tmp_path, profile)
    agrees(module, weights, tmp_path)


@pytest.mark.parametrize("text", [MLA, RING], ids=["latents", "rings"])
@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 8, "scales": "static"}], ids=str)
def test_latents_and_rings(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    module, weights = quantised(spec_text(text), tmp_path, **options)
    emitted(module, weights, tmp_path, "fused")
    agrees(module, weights, tmp_path)


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({"bits": 8, "symmetric": True}, True),
        ({"bits": 4, "symmetric": True}, True),
        ({"bits": 8, "symmetric": True, "per": "head"}, True),
        ({"bits": 8}, False),
        ({"bits": 8, "symmetric": True, "value_bits": 4}, False),
        ({"bits": 4, "kind": "nf4"}, False),
    ],
    ids=str,
)
def test_static_scales(options: dict[str, Any], fused: bool, tmp_path: Path) -> None:
    """GroupQueryAttention reads and writes the codes where they are symmetric and alike."""
    module, weights = quantised(spec_text(GQA), tmp_path, scales="static", **options)
    made = emitted(module, weights, tmp_path, "fused")
    assert any("GroupQueryAttention" in n for n in made.nodes) == fused
    assert any("rule 1" in r for r in made.remarks) != fused
    agrees(module, weights, tmp_path)


def test_heads_of_other_bits_and_a_fork(tmp_path: Path) -> None:
    module, weights = quantised(spec_text(GQA), tmp_path, bits=4, budget=32_000)
    emitted(module, weights, tmp_path, "fused")
    agrees(module, weights, tmp_path)
    session = session_of(module, tmp_path)
    ids = np.random.default_rng(0).integers(0, 96, (1, 8))
    session.forward(ids)
    other = session.fork()
    session.rollback([5])
    session.forward(ids[:, 5:6])
    assert np.array_equal(np.array(session.forward(ids[:, 6:7]).logits), np.array(_again(other, ids)))


def _again(session: Any, ids: np.ndarray) -> np.ndarray:
    session.rollback([6])
    return session.forward(ids[:, 6:7]).logits


def test_capture_sees_through_states_of_codes(tmp_path: Path) -> None:
    module, weights = quantised(spec_text(GQA), tmp_path, bits=4)
    emitted(module, weights, tmp_path, "fused")
    steps = np.arange(6)[None]
    inputs = {"tokens": steps + 3, "positions": steps, "start": np.zeros(1, int), "length": np.full(1, 6)}
    inputs["rows"] = steps
    found = TARGET.capture(tmp_path, inputs, ["logits"])["logits"]
    wanted = Interpreter(module, weights).run(inputs)["logits"]
    assert compare("logits", found, wanted, CLASSES["int8"]).ok


@pytest.mark.parametrize("profile", ["fused", "plain"])
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "keep": 8},
        {"bits": 4, "keys": "channel", "block": 16, "keep": 4, "recent": 36},
        {"bits": 8, "keys": "channel", "block": 16, "keep": 0, "recent": 32, "symmetric": True},
        {"bits": 2, "group": 32, "keep": 1, "recent": 39},
    ],
    ids=str,
)
def test_recent_tokens_and_blocks_of_linear_states_rings_and_latents(
    options: dict[str, Any], profile: str, tmp_path: Path
) -> None:
    """Far beyond the slots of the rings, in calls longer and shorter than a block and than a ring of recent tokens."""
    module, weights = quantised(RINGS, tmp_path, **options)
    assert any(s.role == "recent" for s in module.states.values())
    emitted(module, weights, tmp_path, profile)
    session, reference = session_of(module, tmp_path), ReferenceSession(module, weights, batch=3)
    session.reset(3)
    assert session.state_bytes() == state_bytes(module, 3)
    random, kind = np.random.default_rng(0), CLASSES["int8"]
    ids = random.integers(0, 512, (3, 250))
    at = np.zeros(3, int)
    for count in (64, 1, 1, 14, 64, 16, 1, 33):
        length = np.array([count, max(count - 13, 0), count])
        tokens = np.stack([ids[b, s : s + count] for b, s in enumerate(at)])
        found = np.array(session.forward(tokens, length=length).logits)
        wanted = reference.forward(tokens, length=length).logits
        for row, n in enumerate(length):
            if n:
                case = compare(f"{count} tokens", found[row, :n], wanted[row, :n], kind)
                assert case.ok, case.problem
                assert np.abs(found[row, :n] - wanted[row, :n]).max() < 0.02 * np.sqrt((wanted**2).mean())
        at += length
    back = at - np.minimum(at, 3)
    for one in (session, reference):
        one.rollback(back)
    tokens = np.stack([ids[b, s : s + 20] for b, s in enumerate(back)])
    assert compare("after a rollback", np.array(session.forward(tokens).logits).reshape(60, -1),
                   np.asarray(reference.forward(tokens).logits).reshape(60, -1), kind).ok


def test_a_block_that_does_not_divide_the_context_is_refused(tmp_path: Path) -> None:
    text = spec_text(GQA).replace("context: 64", "context: 72")
    module, weights = quantised(text, tmp_path, bits=4, keys="channel", block=16)
    said = "onnx cannot keep state kv.0.k of @forward .* in blocks of 16 tokens: they do not fill its 72 slots"
    with pytest.raises(InputError, match=said) as error:
        emitted(module, weights, tmp_path, "fused")
    assert error.value.hint == "choose a context that the block divides, or keys=token"
