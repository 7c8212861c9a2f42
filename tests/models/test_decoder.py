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


HEAD = """omnic: 1
model: m
vocab: {size: 97}
context: 64
chunk: 16
"""

MHA, GQA = "kind: mha, heads: 4", "kind: gqa, heads: 4, kv_heads: 2"
MLA = "kind: mla, heads: 4, latent: 12, nope_dim: 8, rope_dim: 4, v_dim: 6"
SWIGLU = "kind: dense, hidden: 64, activation: swiglu"
MOE = "kind: moe, hidden: 32, experts: 6, top_k: 2"


def dense(activation: str) -> str:
    return f"kind: dense, hidden: 64, activation: {activation}"


def model(attention: str, ffn: str, extra: str = "", repeat: int = 1, width: int = 32) -> str:
    block = f"repeat: {repeat}, width: {width}, attention: {{{attention}}}, ffn: {{{ffn}}}"
    return f"{HEAD}{extra}blocks:\n  - {{{block}}}\n"


VARIANTS = {
    "mqa": model("kind: mqa, heads: 6, head_dim: 8", dense("geglu"), width=48),
    "layer norm, biases": model(MHA, dense("gelu"), "bias: true\nnorm: {kind: layer}\n"),
    "post norm": model(MHA, dense("relu"), "norm: {place: post}\n", repeat=2),
    "both norms": model(MHA, dense("silu"), "norm: {place: both}\n"),
    "sinks, softcap, qk_norm": model(
        f"{GQA}, window: 9", dense("relu2"), "qk_norm: true\nsinks: true\nsoftcap: {attention: 8.0, logits: 12.0}\n"
    ),
    "pattern": model(f"{GQA}, window: 5, pattern: [local, local, global]", SWIGLU, repeat=4),
    "yarn": model(
        f"{MHA}, rope: {{base: 10000, scaling: {{kind: yarn, factor: 4}}}}", SWIGLU, "budget: {context: 256}\n"
    ),
    "q latent": model(f"{MLA}, q_latent: 20, window: 7", SWIGLU),
    "groups, split, bias": model(
        MHA, f"{MOE}, shared: 1, groups: [2, 4], split: 2, select_bias: true, activation: swiglu"
    ),
    "group gate": model(MHA, f"{MOE}, groups: [3, 3], group_gate: true, score: sigmoid, activation: gelu"),
    "several kinds": model(MHA, SWIGLU, repeat=2)
    + f"  - {{width: 32, attention: {{{MLA}}},"
    + " ffn: {kind: moe, hidden: 32, experts: 4, top_k: 2, activation: gelu}}\n"
    + "heads: {mtp: {kind: linear, depth: 2}, verifier: true}\n",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_decodes_as_it_prefills(name: str) -> None:
    runner = Runner(parse_spec(VARIANTS[name], "variant.yaml"))
    tokens = runner.tokens(2, 44)
    whole = runner.chunked(tokens, [16, 16, 12])
    close(runner.chunked(tokens, [1] * 20 + [11, 3, 10]), whole)


def test_linear_heads_and_the_verifier_come_out_per_row() -> None:
    runner = Runner(parse_spec(VARIANTS["several kinds"], "variant.yaml"))
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
    assert ring.ring and ring.type.shape[-2] == 6 + 16 - 1


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
