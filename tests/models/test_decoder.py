"""Every preset's scaled copy under the reference: prefill = decode, ragged rows, causality, windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnic.ir.graph import Module
from omnic.ir.reference import Interpreter
from omnic.ir.verify import verify
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.spec import Spec, load_spec, parse_spec, preset_names, scale
from tests.models.variants import MHA, SWIGLU, VARIANTS, model

TOKENS = 40
F64 = 1e-9


class Runner:
    """A module and its weights, called with states held by the caller."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.module = spec, build(spec)
        verify(self.module)
        rng = np.random.default_rng(7)
        store = WeightStore.random(self.module, seed=3)
        weights = {
            name: store.array(name) + 0.05 * rng.standard_normal(store.array(name).shape)
            for name in self.module.weights
        }
        self.run = Interpreter(self.module, weights).run

    def tokens(self, batch: int = 1, count: int = TOKENS) -> np.ndarray:
        return np.random.default_rng(1).integers(0, self.spec.vocab.size, (batch, count))

    def call(
        self,
        tokens: np.ndarray,
        start: list[int],
        states: dict[str, Any] | None = None,
        length: list[int] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        batch, count = tokens.shape
        begin = np.asarray(start)
        inputs = {
            "tokens": tokens,
            "positions": begin[:, None] + np.arange(count),
            "start": begin,
            "length": np.full(batch, count) if length is None else np.asarray(length),
            "rows": np.tile(np.arange(count), (batch, 1)),
            **more,
        }
        return self.run(inputs, states=states)

    def states(self, out: dict[str, Any]) -> dict[str, Any]:
        return {name: out[name] for name in self.module.states if name in out}

    def chunked(self, tokens: np.ndarray, chunks: list[int]) -> np.ndarray:
        states, parts, at = None, [], 0
        for chunk in chunks:
            out = self.call(tokens[:, at : at + chunk], [at] * len(tokens), states)
            states, at = self.states(out), at + chunk
            parts.append(out["logits"])
        return np.concatenate(parts, 1)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    rms = np.sqrt(np.mean(np.square(wanted - wanted.mean(-1, keepdims=True))))
    assert np.abs(found - wanted).max() <= F64 * rms


@pytest.fixture(scope="module", params=preset_names())
def runner(request: pytest.FixtureRequest) -> Runner:
    return Runner(scale(load_spec(request.param)))


def test_prefill_equals_decode_in_any_chunking(runner: Runner) -> None:
    tokens = runner.tokens()
    whole = runner.call(tokens, [0])["logits"]
    for chunks in ([1] * TOKENS, [7, 1, 16, 3, 13], [39, 1]):
        close(runner.chunked(tokens, chunks), whole)


def test_a_row_of_a_ragged_batch_is_the_row_alone(runner: Runner) -> None:
    tokens = runner.tokens(3)
    lengths = [TOKENS, 17, 1]
    out = runner.call(tokens, [0, 0, 0], length=lengths)
    follow = runner.tokens(3, 5)[:, ::-1]
    again = runner.call(follow, lengths, runner.states(out), length=[5, 0, 4])
    for row, length in enumerate(lengths):
        alone = runner.call(tokens[row : row + 1, :length], [0])
        close(out["logits"][row, :length], alone["logits"][0])
        steps = [5, 0, 4][row]
        if steps:
            then = runner.call(follow[row : row + 1, :steps], [length], runner.states(alone))
            close(again["logits"][row, :steps], then["logits"][0])


def test_an_idle_row_keeps_its_states(runner: Runner) -> None:
    tokens = runner.tokens(2)
    states = runner.states(runner.call(tokens, [0, 0]))
    after = runner.states(runner.call(tokens[:, :3], [TOKENS, TOKENS], states, length=[3, 0]))
    for name, before in states.items():
        assert np.array_equal(after[name][1], before[1])
        assert not np.array_equal(after[name][0], before[0])


def test_later_tokens_change_no_earlier_logit(runner: Runner) -> None:
    tokens = runner.tokens()
    changed = tokens.copy()
    changed[0, 23] = (changed[0, 23] + 1) % runner.spec.vocab.size
    one, two = runner.call(tokens, [0]), runner.call(changed, [0])
    assert np.array_equal(one["logits"][0, :23], two["logits"][0, :23])
    assert not np.array_equal(one["logits"][0, 23], two["logits"][0, 23])


def test_the_mtp_block_over_chunks_is_the_mtp_block_at_once() -> None:
    runner = Runner(scale(load_spec("tiny_moe")))
    tokens, hidden = runner.tokens(), np.random.default_rng(2).standard_normal((1, TOKENS, runner.spec.width))

    def call(at: int, count: int, states: dict[str, Any] | None) -> dict[str, Any]:
        steps = np.arange(count)[None]
        return runner.run(
            {
                "hidden": hidden[:, at : at + count],
                "next_tokens": tokens[:, at : at + count],
                "positions": at + steps,
                "start": np.array([at]),
                "length": np.array([count]),
                "rows": steps,
            },
            "mtp",
            states,
        )

    whole = call(0, TOKENS, None)
    first = call(0, 29, None)
    second = call(29, 11, runner.states(first))
    close(np.concatenate([first["logits"], second["logits"]], 1), whole["logits"])


# A cache of 16 bits rounds, so that f64 sums in another order need not end in the same number.
EXACT = [name for name in VARIANTS if name != "f16 cache"]


@pytest.mark.parametrize("name", EXACT)
def test_every_variant_decodes_as_it_prefills(name: str) -> None:
    runner = Runner(parse_spec(VARIANTS[name], "variant.yaml"))
    tokens = runner.tokens(2, 44)
    whole = runner.chunked(tokens, [16, 16, 12])
    close(runner.chunked(tokens, [1] * 20 + [11, 3, 10]), whole)


def test_linear_heads_and_the_verifier_come_out_per_row() -> None:
    runner = Runner(parse_spec(VARIANTS["several kinds, linear heads"], "variant.yaml"))
    out = runner.call(runner.tokens(2, 9), [0, 0], rows=np.array([[8], [3]]))
    assert (
        out["logits"].shape == (2, 1, 97) and out["mtp"].shape == (2, 1, 2, 97) and out["verifier"].shape == (2, 1, 97)
    )


def test_a_window_forgets_what_lies_before_it() -> None:
    runner = Runner(parse_spec(model(f"{MHA}, window: 6", SWIGLU), "window.yaml"))
    tokens = runner.tokens(1, 40)
    changed = tokens.copy()
    changed[0, 10] = (changed[0, 10] + 1) % 97
    one, two = (runner.chunked(t, [16, 16, 8])[0] for t in (tokens, changed))
    differs = np.abs(one - two).max(-1) > 0
    assert differs[10:16].all() and not differs[:10].any() and not differs[16:].any()
    ring = runner.module.states["kv.0.k"]
    assert ring.ring and ring.type.shape[-2] == 6 + 24 - 1


def _names(module: Module) -> set[str]:
    return set(module.weights)


def test_weight_names_are_the_training_names() -> None:
    assert _names(build(load_spec("tiny"))) == {
        "embed",
        "final_norm",
        "mtp.hidden_norm",
        "mtp.embed_norm",
        "mtp.proj",
        "mtp.final_norm",
        *(
            f"{prefix}.{part}"
            for prefix in ("blocks.0", "blocks.1", "blocks.2", "mtp.block")
            for part in (
                "attn_norm",
                "attn.q",
                "attn.k",
                "attn.v",
                "attn.o",
                "ffn_norm",
                "ffn.gate",
                "ffn.up",
                "ffn.down",
            )
        ),
    }
