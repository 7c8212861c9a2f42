"""Composites against their formulas written as loops."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.op import find_op
from omnic.ir.ops.attention import ancestors

RANDOM = np.random.default_rng(11)


def floats(*shape: int) -> Any:
    return RANDOM.standard_normal(shape)


def apply(op: str, *arrays: Any, **attrs: Any) -> Any:
    definition = find_op(op)
    given = [*arrays, *[None] * (len(definition.inputs) - len(arrays))]
    return definition.reference(*given, **definition.bind(attrs))


# -- attention --------------------------------------------------------------------------------------------
def loop_attention(q: Any, k: Any, v: Any, q_index: Any, k_index: Any, sinks: Any = None, parents: Any = None,
                   start: Any = None, scale: float = 1.0, window: int = 0, softcap: float = 0.0) -> Any:
    batch, heads, tokens, _ = q.shape
    out = np.zeros((batch, heads, tokens, v.shape[-1]))
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // k.shape[1])
            for t in range(tokens):
                line = set()
                token = t
                while parents is not None and token >= 0:
                    line.add(token)
                    token = parents[b, token]
                logits, values = [], []
                for s in range(k.shape[2]):
                    index = k_index[b, s]
                    seen = 0 <= index <= q_index[b, t] and (window == 0 or index > q_index[b, t] - window)
                    if seen and parents is not None and index >= start[b]:
                        seen = index - start[b] in line
                    if seen:
                        logit = scale * float(q[b, h, t] @ k[b, g, s])
                        logits.append(softcap * math.tanh(logit / softcap) if softcap else logit)
                        values.append(v[b, g, s])
                total = sum(math.exp(x) for x in logits) + (math.exp(sinks[h]) if sinks is not None else 0.0)
                for x, value in zip(logits, values, strict=True):
                    out[b, h, t] += math.exp(x) / total * value
    return out


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_attention_is_the_loop(groups: int, window: int, softcap: float) -> None:
    start = np.array([4, 0])
    q, k, v = floats(2, 4, 5, 6), floats(2, groups, 12, 6), floats(2, groups, 12, 3)
    q_index = start[:, None] + np.arange(5)
    k_index = np.stack([RANDOM.permutation(np.r_[np.arange(9), [-1] * 3]), np.r_[np.arange(5), [-1] * 7]])
    parents = np.array([[-1, 0, 0, 1, -1], [-1, -1, 1, 2, 0]])
    for sinks in (None, floats(4)):
        for tree in ((None, None), (parents, start)):
            operands = (q, k, v, q_index, k_index, sinks, *tree)
            attrs = {"scale": 0.4, "window": window, "softcap": softcap}
            want = loop_attention(*operands, **attrs)
            np.testing.assert_allclose(apply("attention", *operands, **attrs), want, atol=1e-12)


def test_a_query_without_keys_gives_zero() -> None:
    y = apply("attention", floats(1, 2, 1, 4), floats(1, 1, 3, 4), floats(1, 1, 3, 4), np.array([[2]]),
              np.array([[-1, 5, -1]]), scale=1.0)
    assert not y.any()


def test_a_later_key_changes_nothing_at_all() -> None:
    q, k, v = floats(1, 4, 8, 16), floats(1, 2, 8, 16), floats(1, 2, 8, 16)
    index = np.arange(8)[None]
    before = apply("attention", q, k, v, index, index, scale=0.25)
    k[:, :, 6], v[:, :, 6] = 50.0, -3e4
    after = apply("attention", q, k, v, index, index, scale=0.25)
    assert np.array_equal(before[:, :, :6], after[:, :, :6])
    assert not np.array_equal(before[:, :, 6:], after[:, :, 6:])


def test_ancestors_of_a_long_chain() -> None:
    chain = np.arange(-1, 36)[None]
    assert np.array_equal(ancestors(chain)[0], np.tril(np.ones((37, 37), bool)))


def test_mla_forms_are_equal_and_are_attention() -> None:
    q_nope, q_rope, latent, rope_k = floats(2, 4, 5, 6), floats(2, 4, 5, 2), floats(2, 9, 7), floats(2, 9, 2)
    w_k, w_v = floats(4, 6, 7), floats(4, 3, 7)
    q_index, k_index = np.tile(np.arange(4, 9), (2, 1)), np.tile(np.arange(9), (2, 1))
    operands = (q_nope, q_rope, latent, rope_k, w_k, w_v, q_index, k_index)
    attrs = {"scale": 1 / math.sqrt(8), "window": 4, "softcap": 5.0}
    naive, absorbed = (apply("mla", *operands, form=f, **attrs) for f in ("naive", "absorbed"))
    np.testing.assert_allclose(naive, absorbed, atol=1e-12)
    k = np.stack([np.concatenate([latent @ w_k[h].T, rope_k], -1) for h in range(4)], 1)
    v = np.stack([latent @ w_v[h].T for h in range(4)], 1)
    q = np.concatenate([q_nope, q_rope], -1)
    np.testing.assert_allclose(naive, loop_attention(q, k, v, q_index, k_index, **attrs), atol=1e-12)


# -- mixture of experts -----------------------------------------------------------------------------------
def router(logits: Any, **attrs: Any) -> Any:
    """Route tokens whose logits are given: the gate is the identity."""
    logits = np.asarray(logits, float)
    given = [attrs.pop(name, None) for name in ("group_gate", "bias", "gate_bias")]
    return apply("router", logits[None], np.eye(logits.shape[-1]), *given, **attrs)


def test_ties_go_to_the_lower_expert() -> None:
    indices, gates, logits = router([[1.0, 2.0, 2.0, 2.0]], top_k=2)
    assert indices.tolist() == [[[1, 2]]]
    assert gates.tolist() == [[[0.5, 0.5]]]
    assert logits.tolist() == [[[1.0, 2.0, 2.0, 2.0]]]


def test_gates_of_each_score() -> None:
    x = [[0.0, 1.0, 3.0, 2.0]]
    e = np.exp([3.0, 2.0])
    np.testing.assert_allclose(router(x, top_k=2)[1][0, 0], e / e.sum())
    np.testing.assert_allclose(router(x, top_k=2, scale=2.5)[1][0, 0], 2.5 * e / e.sum())
    np.testing.assert_allclose(router(x, top_k=2, renormalise=False)[1][0, 0], e / np.exp(x).sum())
    s = 1 / (1 + np.exp([-3.0, -2.0]))
    np.testing.assert_allclose(router(x, top_k=2, score="sigmoid")[1][0, 0], s / s.sum())
    np.testing.assert_allclose(router(x, top_k=2, score="sigmoid", renormalise=False)[1][0, 0], s)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_bias_moves_the_choice_and_not_the_gates(score: str) -> None:
    x = [[0.0, 1.0, 3.0, 2.0]]
    indices, gates, logits = router(x, top_k=2, score=score, renormalise=False, bias=np.array([9.0, 0, 0, 0]))
    assert indices.tolist() == [[[0, 2]]]
    assert logits.tolist() == [x]
    _, every, _ = router(x, top_k=4, score=score, renormalise=False)
    assert gates[0, 0, 1] == every[0, 0, 0]
    assert gates[0, 0, 0] == every[0, 0, 3]


def test_groups_limit_the_choice() -> None:
    x = [[5.0, 0.0, 4.0, 4.5, 4.6, 1.0]]
    assert router(x, top_k=2)[0].tolist() == [[[0, 4]]]
    assert router(x, top_k=2, groups=(2, 4))[0].tolist() == [[[0, 1]]]
    assert router(x, top_k=2, groups=(2, 2, 2), top_groups=2)[0].tolist() == [[[0, 4]]]
    # Equal group scores: the lower group.
    assert router([[1.0, 0.0, 1.0, 0.5]], top_k=2, groups=(2, 2))[0].tolist() == [[[0, 1]]]


def test_a_group_is_scored_by_its_two_best_experts() -> None:
    x = [[5.0, 0.0, 0.0, 3.0, 2.5, 0.0]]
    assert router(x, top_k=2, groups=(3, 3))[0].tolist() == [[[0, 1]]]
    assert router(x, top_k=2, groups=(3, 3), group_score="top2_sum")[0].tolist() == [[[3, 4]]]
    # The selection bias counts, as in DeepSeek-V3.
    biased = router(x, top_k=2, groups=(3, 3), group_score="top2_sum", bias=np.array([0, 0.6, 0, 0, 0, 0]))
    assert biased[0].tolist() == [[[0, 1]]]


def test_a_gate_bias_is_part_of_the_logits() -> None:
    x, bias = [[0.0, 1.0, 3.0, 2.0]], np.array([4.0, 0, 0, 0])
    indices, gates, logits = router(x, top_k=2, gate_bias=bias)
    assert logits.tolist() == [[[4.0, 1.0, 3.0, 2.0]]]
    assert indices.tolist() == [[[0, 2]]]
    np.testing.assert_allclose(gates[0, 0], np.exp([4.0, 3.0]) / np.exp([4.0, 3.0]).sum())


def test_a_group_gate_chooses_groups_and_weighs_gates() -> None:
    x = [[5.0, 0.0, 4.0, 4.5]]
    group_gate = np.array([[0.0, 0, 0, 0], [0, 0, 1.0, 0]])
    probability = np.exp([0.0, 4.0]) / np.exp([0.0, 4.0]).sum()
    indices, gates, _ = router(x, top_k=2, groups=(2, 2), group_gate=group_gate)
    assert indices.tolist() == [[[3, 2]]]
    e = np.exp([4.5, 4.0])
    np.testing.assert_allclose(gates[0, 0], e / e.sum() * probability[1])
    indices, gates, _ = router(x, top_k=2, groups=(2, 2), top_groups=2, group_gate=group_gate)
    assert indices.tolist() == [[[0, 3]]]
    e = np.exp([5.0, 4.5])
    np.testing.assert_allclose(gates[0, 0], e / e.sum() * probability)


@pytest.mark.parametrize("gated", [False, True])
def test_moe_is_the_loop(gated: bool) -> None:
    x, indices, gates = floats(2, 3, 8), RANDOM.integers(0, 4, (2, 3, 2)), floats(2, 3, 2)
    up, down, gate = floats(4, 5, 8), floats(4, 8, 5), floats(4, 5, 8) if gated else None
    up_bias, down_bias, gate_bias = floats(4, 5), floats(4, 8), floats(4, 5) if gated else None
    y = apply("moe", x, indices, gates, up, down, gate, up_bias, down_bias, gate_bias, kind="silu")
    silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731
    for b in range(2):
        for t in range(3):
            want = np.zeros(8)
            for j in range(2):
                e = indices[b, t, j]
                inner = up[e] @ x[b, t] + up_bias[e]
                hidden = silu(gate[e] @ x[b, t] + gate_bias[e]) * inner if gate is not None else silu(inner)
                want += gates[b, t, j] * (down[e] @ hidden + down_bias[e])
            np.testing.assert_allclose(y[b, t], want, atol=1e-12)


def test_another_tokens_routing_changes_nothing_at_all() -> None:
    x, gates, up, down = floats(1, 40, 64), floats(1, 40, 2), floats(4, 96, 64), floats(4, 64, 96)
    indices = RANDOM.integers(0, 4, (1, 40, 2))
    other = indices.copy()
    other[0, 20:] = (other[0, 20:] + 1) % 4
    before, after = (apply("moe", x, i, gates, up, down, kind="gelu") for i in (indices, other))
    assert np.array_equal(before[:, :20], after[:, :20])
    assert not np.array_equal(before, after)


# -- recurrences ------------------------------------------------------------------------------------------
def test_short_conv_keeps_its_past() -> None:
    x, w, past = floats(2, 6, 3), floats(3, 4), floats(2, 3, 3)
    z = np.concatenate([past, x], axis=1)
    y, last, steps = apply("short_conv", x, w, None, past, np.array([6, 2]), snapshots=True)
    for t in range(6):
        np.testing.assert_allclose(y[:, t], sum(w[:, j] * z[:, t + j] for j in range(4)), atol=1e-12)
        assert np.array_equal(steps[:, t], z[:, t + 1 : t + 4])
    assert np.array_equal(last[0], steps[0, 5])
    assert np.array_equal(last[1], steps[1, 1])
    halves = apply("short_conv", x[:, :2], w, None, past)
    rest = apply("short_conv", x[:, 2:], w, None, halves[1])
    np.testing.assert_allclose(np.concatenate([halves[0], rest[0]], axis=1), y, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_chunked_recurrence_is_the_step_repeated(channels: int, chunk: int) -> None:
    q, k, v = floats(2, 2, 9, 3), floats(2, 2, 9, 3), floats(2, 2, 9, 5)
    decay, state = -np.abs(floats(2, 2, 9, channels)) * 20, floats(2, 2, 3, 5)
    length = np.array([9, 4])
    y, last, steps = apply("linear_recurrence", q, k, v, decay, state, length, chunk=chunk, snapshots=True)
    now = state
    for t in range(9):
        part = slice(t, t + 1)
        valid = (t < length).astype(np.int64)
        inputs = (x[:, :, part] for x in (q, k, v, decay))
        step, now = apply("linear_recurrence", *inputs, now, valid, form="step")
        np.testing.assert_allclose(y[:, :, t], step[:, :, 0], atol=1e-12)
        np.testing.assert_allclose(steps[:, t], now, atol=1e-12)
    np.testing.assert_allclose(last, now, atol=1e-12)


def test_recurrence_step_is_its_formula() -> None:
    q, k, v, state = floats(1, 1, 1, 3), floats(1, 1, 1, 3), floats(1, 1, 1, 5), floats(1, 1, 3, 5)
    decay = -np.abs(floats(1, 1, 1, 3))
    y, last = apply("linear_recurrence", q, k, v, decay, state, form="step")
    want = np.exp(decay[0, 0, 0])[:, None] * state[0, 0] + np.outer(k[0, 0, 0], v[0, 0, 0])
    np.testing.assert_allclose(last[0, 0], want, atol=1e-12)
    np.testing.assert_allclose(y[0, 0, 0], want.T @ q[0, 0, 0], atol=1e-12)


def test_blocks_are_pooled_and_a_tail_is_left_out() -> None:
    x = floats(1, 2, 7, 3)
    assert np.array_equal(apply("pool_blocks", x, page=3), np.stack([x[:, :, :3].mean(2), x[:, :, 3:6].mean(2)], 2))
    query = floats(2, 3)
    weights = np.exp(np.einsum("gsd,gd->gs", x[0, :, :3], query))
    want = np.einsum("gs,gsd->gd", weights / weights.sum(1, keepdims=True), x[0, :, :3])
    np.testing.assert_allclose(apply("pool_blocks", x, query, page=3)[0, :, 0], want, atol=1e-12)


# -- products, norms, heads -------------------------------------------------------------------------------
def test_activation_quantisation_is_meaning() -> None:
    x = np.array([[127.0, 63.4, -0.6, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert apply("linear", x, np.eye(4), act="i8<per_token>").tolist() == [[127.0, 63.0, -1.0, 0.0], [0.0] * 4]
    # 1 + 2^-8 and 1 + 3 2^-8 lie between two numbers of bf16: half goes to the even one.
    halves = np.array([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9, 3.0]])
    assert apply("linear", halves, np.eye(4), act="bf16").tolist() == [[1.0, 1 + 2**-6, -1.0, 3.0]]
    y = apply("linear", np.array([[127.0, 63.4, 0.6, 0.3]]), np.eye(4), act="i8<g2>")
    np.testing.assert_allclose(y, [[127.0, 63.0, 0.6, 64 * 0.6 / 127]], atol=1e-12)


@pytest.mark.parametrize(("kind", "value"), [
    ("gelu", 0.5 * 1.5 * (1 + math.erf(1.5 / math.sqrt(2)))),
    ("gelu_tanh", 0.5 * 1.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1.5 + 0.044715 * 1.5**3)))),
    ("relu", 1.5), ("relu2", 2.25), ("silu", 1.5 / (1 + math.exp(-1.5))),
])
def test_activations(kind: str, value: float) -> None:
    np.testing.assert_allclose(apply("act", np.array([1.5]), kind=kind), [value], rtol=1e-12)
    gated = apply("gated_act", np.array([1.5]), np.array([-2.0]), kind=kind)
    np.testing.assert_allclose(gated, [-2 * value], rtol=1e-12)


def test_the_clamped_swiglu_is_that_of_gpt_oss() -> None:
    gate, up = np.array([-9.0, 1.5, 9.0, 9.0]), np.array([0.5, -9.0, 9.0, 0.25])
    g, u = np.array([-9.0, 1.5, 7.0, 7.0]), np.array([0.5, -7.0, 7.0, 0.25])
    want = (u + 1) * (g / (1 + np.exp(-1.702 * g)))
    found = apply("gated_act", gate, up, kind="silu", alpha=1.702, beta=1.0, limit=7.0)
    np.testing.assert_allclose(found, want, rtol=1e-9)
    one = np.ones((1, 1, 1))
    attrs = {"kind": "silu", "alpha": 1.702, "beta": 1.0, "limit": 7.0}
    y = apply("moe", one, np.zeros((1, 1, 1), np.int64), one, -9 * one, one, gate[1] * one, **attrs)
    np.testing.assert_allclose(y, want[1] * one, rtol=1e-12)


def test_norms() -> None:
    x = np.array([[3.0, 4.0]])
    np.testing.assert_allclose(apply("rms_norm", x, np.array([1.0, 2.0]), eps=0.0), x * [1, 2] / math.sqrt(12.5))
    np.testing.assert_allclose(apply("layer_norm", x, None, np.array([1.0, 1.0]), eps=0.0), [[0.0, 2.0]])


def test_lm_head_multiplies_the_wanted_rows() -> None:
    x, w = floats(2, 4, 3), floats(5, 3)
    rows = np.array([[3], [0]])
    y = apply("lm_head", x, w, rows, softcap=2.0)
    np.testing.assert_allclose(y[:, 0], 2 * np.tanh(np.stack([w @ x[0, 3], w @ x[1, 0]]) / 2), atol=1e-12)


def test_lm_argmax_gives_the_lowest_of_equal_ids() -> None:
    x, w = np.round(8 * floats(2, 4, 3)), np.round(8 * floats(5, 3))  # whole numbers: sums in any order are equal
    w[4] = w[1]
    token, logit = apply("lm_argmax", x, w, np.array([[3], [0]]))
    wanted = np.stack([w @ x[0, 3], w @ x[1, 0]])
    assert token[:, 0].tolist() == [int(np.flatnonzero(row == row.max())[0]) for row in wanted]
    np.testing.assert_array_equal(logit[:, 0], wanted.max(1))


@pytest.mark.parametrize(("op", "arrays", "attrs", "message"), [
    ("embedding", (np.zeros((4, 2)), np.array([4])), {}, "embedding: index 4 is not in 0..3"),
    ("lm_head", (np.zeros((1, 2, 3)), np.zeros((4, 3)), np.array([[2]])), {}, "lm_head: index 2 is not in 0..1"),
    ("moe", (np.zeros((1, 1, 2)), np.array([[[3]]]), np.ones((1, 1, 1)), np.zeros((3, 4, 2)), np.zeros((3, 2, 4))),
     {"kind": "relu"}, "moe: index 3 is not in 0..2"),
])
def test_indices_out_of_range_are_refused(op: str, arrays: tuple[Any, ...], attrs: dict[str, Any], message: str):
    with pytest.raises(InputError) as caught:
        apply(op, *arrays, **attrs)
    assert caught.value.message == message


def test_attention_over_512_tokens_is_fast() -> None:
    q, k, v = floats(1, 4, 512, 64), floats(1, 2, 1024, 64), floats(1, 2, 1024, 64)
    q_index, k_index = np.arange(512)[None] + 512, np.arange(1024)[None]
    apply("attention", q, k, v, q_index, k_index, scale=0.1)
    begin = time.process_time()
    apply("attention", q, k, v, q_index, k_index, scale=0.1)
    assert time.process_time() - begin < 0.4
