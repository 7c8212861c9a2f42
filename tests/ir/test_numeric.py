"""Numeric classes and the AMBIGUOUS rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.numeric import (
    CLASSES,
    compare,
    find_class,
    held_to_f32,
    kl_divergence,
    logit_rms,
    near_ties,
    router_margin,
    router_ties,
    router_undecided,
    top_margin,
)

RANDOM = np.random.default_rng(11)
F32 = CLASSES["f32"]


def logits(positions: int = 100, vocab: int = 50) -> Any:
    """Logits of rms about 1 whose top token leads by at least 0.5."""
    x = RANDOM.standard_normal((1, positions, vocab))
    top = x.argmax(-1)[..., None]
    np.put_along_axis(x, top, x.max(-1, keepdims=True) + 0.5, axis=-1)
    return x


def tie(x: Any, positions: slice, gap: float) -> Any:
    """Give the runner-up of some positions the top logit less ``gap``."""
    y = x.copy()
    order = np.argsort(y, axis=-1)
    for t in range(*positions.indices(y.shape[1])):
        y[0, t, order[0, t, -2]] = y[0, t, order[0, t, -1]] - gap
    return y


def test_the_classes_of_the_design() -> None:
    assert {name: c.bound for name, c in CLASSES.items()} == {"f64": 1e-9, "f32": 2e-5, "f16": 2e-3, "int8": None}
    assert CLASSES["int8"].kl == 1e-3
    with pytest.raises(InputError) as caught:
        find_class("fp16")
    assert caught.value.message == "unknown numeric class 'fp16'" and caught.value.hint == "did you mean 'f16'?"


def test_rms_is_of_all_logits() -> None:
    assert logit_rms(np.array([[3.0, -4.0], [0.0, 0.0]])) == pytest.approx(2.5)


def test_within_the_bound_is_ok_and_beyond_is_not() -> None:
    x = logits()
    rms = logit_rms(x)
    good = compare("forward", x + 1e-5 * rms, x, F32)
    assert good.ok and good.positions == 100 and good.ambiguous == 0 and good.ratio == pytest.approx(1e-5)
    bad = x.copy()
    bad[0, 3:5, 7] -= 3e-5 * rms
    found = compare("forward", bad, x, F32)
    assert not found.ok and found.ratio == pytest.approx(3e-5)
    assert found.problem == "max abs error over logit rms is 3.00e-05, the bound of f32 is 2e-05"


def test_exact_logits_have_no_error() -> None:
    x = logits()
    case = compare("same", x, x, CLASSES["f64"])
    assert case.ok and case.max_abs == case.ratio == case.kl == 0


def test_not_a_number_fails() -> None:
    x = logits()
    bad = x.copy()
    bad[0, 0, 0] = np.nan
    assert compare("nan", bad, x, F32).problem == "logits are NaN or infinite"


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match=r"forward: logits are \[1, 3, 4\], the reference's \[1, 2, 4\]"):
        compare("forward", np.zeros((1, 3, 4)), np.zeros((1, 2, 4)), F32)


def test_a_flip_at_a_near_tie_is_ambiguous_up_to_two_percent() -> None:
    rms = logit_rms(logits())
    for count, ok in ((0, True), (2, True), (3, False)):
        x = tie(logits(), slice(count), 1e-5 * rms)
        found = x.copy()
        order = np.argsort(x, axis=-1)
        for t in range(count):
            found[0, t, order[0, t, -2]] += 1.5e-5 * rms
        case = compare("ties", found, x, F32)
        assert (case.ok, case.ambiguous) == (ok, count)
        assert near_ties(x, F32).sum() == count
    assert case.problem == "3 of 100 positions are ambiguous, more than 2%"


def test_int8_counts_choices_outside_near_ties_and_divergence() -> None:
    x, kind = logits(), CLASSES["int8"]
    assert compare("noise", x + 1e-2 * RANDOM.standard_normal(x.shape), x, kind).ok
    flipped = x.copy()
    flipped[0, 0] = np.roll(x[0, 0], 1)
    case = compare("flip", flipped, x, kind)
    assert not case.ok and case.problem.startswith(
        "1 of 100 positions choose another token outside near-ties; mean KL is"
    )


def test_undecided_routing_is_replayed_with_the_routing_forced() -> None:
    x = logits()
    other, undecided = x.copy(), np.zeros((1, 100), bool)
    other[0, 5] += 0.3 * RANDOM.standard_normal(50)
    assert not compare("routed", other, x, F32).ok
    undecided[0, 5] = True
    replayed = compare("routed", other, x, F32, undecided, lambda: x + 1e-6)
    assert replayed.ok and replayed.ambiguous == 1
    wrong = compare("routed", other, x, F32, undecided, lambda: other)
    assert not wrong.ok
    never = compare("routed", x, x, F32, undecided, lambda: pytest.fail("there was nothing to replay"))
    assert never.ok and never.ambiguous == 0


def test_top_margin() -> None:
    assert np.allclose(top_margin(np.array([[1.0, 5.0, 4.5], [2.0, 2.0, 0.0]])), [0.5, 0])
    assert top_margin(np.zeros((2, 1))).tolist() == [np.inf, np.inf]


def test_router_margin_of_top_k() -> None:
    scores = np.array([[3.0, 1.0, 2.5, 2.4]])
    assert router_margin(scores, 1) == pytest.approx([0.5])
    assert router_margin(scores, 2) == pytest.approx([0.1])
    assert router_margin(scores, 4).tolist() == [np.inf]


def test_router_margin_with_groups_looks_at_groups_and_at_the_experts_inside() -> None:
    scores = np.array([[3.0, 1.0, 2.9, 2.7]])
    # The first group wins by 0.1; inside it the chosen expert leads by 2.
    assert router_margin(scores, 1, groups=(2, 2)) == pytest.approx([0.1])
    assert router_margin(scores, 3, groups=(2, 2), top_groups=2) == pytest.approx([1.7])
    assert router_margin(scores, 2, groups=(2, 2)) == pytest.approx([0.1])
    gate = np.array([[0.0, 5.0]])
    assert router_margin(scores, 1, groups=(2, 2), group_logits=gate) == pytest.approx([0.2])


def test_a_group_gate_near_a_tie_leaves_the_router_undecided_by_the_size_of_its_own_logits() -> None:
    experts = np.array([[900.0, 100.0, 500.0, 300.0]] * 3)
    gate = np.array([[2.0, 1.0, -1.0], [1.0, 1.0 + 1e-5, -1.0], [1.5, 0.0, 1e-5]])
    options = {"top_k": 1, "groups": (2, 1, 1)}
    assert router_undecided(experts, F32, **options, group_logits=gate).tolist() == [False, True, False]
    assert router_undecided(experts, F32, **options, top_groups=2, group_logits=gate).tolist() == [False, False, True]
    assert not router_undecided(experts, F32, **options, top_groups=3, group_logits=gate).any()
    assert not router_undecided(experts, F32, **options).any()


def test_router_margin_of_sigmoid_scores_includes_the_bias() -> None:
    scores, bias = np.array([[0.0, 0.0, -9.0]]), np.array([0.01, 0.0, 0.0])
    assert router_margin(scores, 1, score="sigmoid", bias=bias) == pytest.approx([0.04])
    assert router_ties(np.array([1e-5, 1.0]), np.ones((2, 4)), F32).tolist() == [True, False]


def test_kl_divergence_is_zero_for_shifted_logits() -> None:
    x = logits(4)
    assert np.allclose(kl_divergence(x, x + 3), 0)
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    assert kl_divergence(np.log(p), np.log(q)) == pytest.approx(np.sum(p * np.log(p / q)))


def test_a_few_positions_may_lie_in_the_tail() -> None:
    x = np.random.default_rng(3).standard_normal((300, 50))
    rms = logit_rms(x)
    bad = x.copy()
    bad[[5, 90, 200], 7] += 1e-4 * rms
    case = compare("forward", bad, x, F32)
    assert case.ok and case.ambiguous == 3 and case.ratio <= 2e-5
    bad[250, 7] += 1e-4 * rms
    assert not compare("forward", bad, x, F32).ok
    far = x.copy()
    far[5, 7] += 2e-3 * rms
    assert not compare("forward", far, x, F32).ok


def test_where_f32_itself_misses_the_bound_a_program_is_held_against_it() -> None:
    random = np.random.default_rng(4)
    x = random.standard_normal((300, 50))
    rms, noise = logit_rms(x), np.zeros_like(x)
    noise[:9, 3] = 1.0
    own = x + 1.2e-4 * rms * noise
    as_good, worse, fine = x + 2e-4 * rms * noise[::-1], x + 6e-4 * rms * noise, x.copy()
    case = compare("prefill", as_good, x, F32)
    held = held_to_f32(case, as_good, x, own, F32)
    assert not case.ok and held.ok and held.ambiguous == 9
    assert held.name == "prefill (f32 itself errs by 1.2e-04)" and held.ratio == case.ratio
    # The reference's f32 run is fine, or the program's errors are larger, more, or change the choice: still wrong.
    assert not held_to_f32(case, as_good, x, fine, F32).ok
    assert not held_to_f32(compare("p", worse, x, F32), worse, x, own, F32).ok
    many = x + 1.2e-4 * rms * (noise + noise[::-1] + np.roll(noise, 20, axis=0))
    assert not held_to_f32(compare("p", many, x, F32), many, x, own, F32).ok
    assert held_to_f32(compare("p", x, x, F32), x, x, own, F32).name == "p"


def test_where_rounding_decides_codes_a_program_is_held_against_the_f32_run() -> None:
    random = np.random.default_rng(4)
    x = 3 * random.standard_normal((300, 50))
    kind, rms = CLASSES["int8"], logit_rms(x)
    own, as_good, worse = (x + size * rms * random.standard_normal(x.shape) for size in (0.02, 0.022, 0.08))
    case = compare("prefill", as_good, x, kind)
    assert not case.ok and "mean KL is" in case.problem
    held = held_to_f32(case, as_good, x, own, kind)
    assert held.ok and held.name.startswith("prefill (f32 itself errs by ") and held.kl == case.kl
    # The f32 run is within the class, the program errs more, or it chooses another token where nothing is near a tie.
    assert not held_to_f32(case, as_good, x, x + 1e-3 * (own - x), kind).ok
    assert not held_to_f32(compare("p", worse, x, kind), worse, x, own, kind).ok
    sure = int(np.argmax(np.sort(x, -1)[:, -1] - np.sort(x, -1)[:, -2]))
    other = as_good.copy()
    other[sure, other[sure].argmin()] = other[sure].max() + 1
    assert not held_to_f32(compare("p", other, x, kind), other, x, own, kind).ok
