"""Numeric classes, and the judgement whether a program's logits agree with the reference.

Errors are relative to the rms of the reference's logits.  A position is *AMBIGUOUS* when the reference
itself is nearly undecided there: its top-1 margin, or the margin of a router between what it chose and
what it did not, is below four times the error of the class, so that rounding may decide.  Such a
position is excused from the choice of the top token; where a router is nearly undecided the program
runs again with the reference's routing forced and must then match.  A check with more than 2 % of its
positions excused fails.

Attention near a tie between keys amplifies rounding without any choice being involved: on the trained
``tiny`` the reference itself, run in f32, leaves the f32 bound at 0.06 % of the positions of real text, and
every engine at about 0.1 %.  So at most 1 % of the positions may lie beyond ``bound`` and within ``tail``,
with the same top token; they count as ambiguous.

A model can be worse conditioned than that: rope re-scaled far beyond the trained length sharpens attention, and the
reference run in f32 leaves the bound at 3 % of the positions, though its angles are computed in f64.  A program of the
class f32 that misses the bound where the reference's own f32 run misses it too is held against that run
(:func:`held_to_f32`).

In 16 bits a sum whose last bit differs may round to the neighbour, 5e-4 of a number, and a model amplifies that: on
``tiny``, in fp16 throughout, the reference's own run in f32 is 7e-3 to 1.4e-2 of the logits' rms from its run in f64.
So where arithmetic is in 16 bits the module says every rounding, a checker sums exactly on both sides, and the class
f16 is held to its bound as it is: there is no run in f32 to hide behind.

Codes are worse still: a sum whose last bit differs may round to another code, and states keep that code.  On ``tiny``
with int4 weights, 8-bit activations and 8-bit keys and values the reference run in f32 is 1.2e-3 nats from its run in
f64, ONNX Runtime 1.1e-3.  A program of the class int8 that misses it is held against the f32 run in the same way: half
of that run's positions err by more than its median error, so a top token is nearly undecided within four times that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from omnic.errors import InputError, nearest
from omnic.ir.graph import Module
from omnic.ir.op import Array
from omnic.ir.ops.moe import group_scores
from omnic.ir.types import Storage

__all__ = ["AMBIGUOUS_FACTOR", "AMBIGUOUS_SHARE", "TAIL_SHARE",
           "CLASSES", "Case", "ClassName", "NumericClass", "class_of", "compare", "find_class", "held_to_f32",
           "kl_divergence", "logit_rms", "near_ties", "router_margin", "router_ties", "router_undecided",
           "top_margin"]

AMBIGUOUS_FACTOR = 4.0
AMBIGUOUS_SHARE = 0.02
TAIL_SHARE = 0.01


#: the classes a module can be in; f64 and tolerant are of programs
ClassName = Literal["f64", "f32", "f16", "int8", "tolerant"]


@dataclass(frozen=True)
class NumericClass:
    """How far a program may be from the reference.

    Attributes:
        name: such as ``f32``.
        error: expected size of its errors, relative to the rms of the logits; it defines near-ties.
        bound: largest allowed max abs error over logit rms; None where only the choice and the
            distribution count.
        kl: largest allowed mean KL divergence in nats; None where ``bound`` says it all.
        tail: largest allowed error of the few positions where attention amplifies rounding.
        reason: why these numbers.
    """

    name: str
    error: float
    bound: float | None
    kl: float | None
    tail: float
    reason: str


CLASSES: Mapping[str, NumericClass] = {
    c.name: c for c in (
        NumericClass("f64", 1e-9, 1e-9, None, 1e-7,
                     "f64 sums in another order; 1e-16 each, some thousands of terms, deep"),
        NumericClass("f32", 2e-5, 2e-5, None, 1e-3, "f32 sums in another order and other exp and tanh"),
        NumericClass("f16", 2e-3, 2e-3, None, 5e-2, "states or weights rounded to 16 bits, sums in f32"),
        NumericClass("int8", 2e-2, None, 1e-3, 0.0,
                     "activations rounded to 8 bits or to bf16: rounding decides ties, not meaning"),
    )
}


def find_class(name: str) -> NumericClass:
    """Return the numeric class called ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in CLASSES:
        near = nearest(name, list(CLASSES))
        hint = f"did you mean '{near}'?" if near else f"known: {', '.join(CLASSES)}"
        raise InputError(f"unknown numeric class '{name}'", hint)
    return CLASSES[name]


def class_of(module: Module) -> ClassName:
    """Return the name of the class that an f32 program of ``module`` is in: what it rounds on the way decides.

    Rounding of states to codes, and of activations, turns the last bit of a sum into a step of a code now and then:
    ``int8``.  States of 16 bits: ``f16``.  Weights of any type are the same numbers on both sides.
    """
    elements = [s.type.element for s in module.states.values()]
    nodes = (n for f in module.functions.values() for n in f.nodes)
    if any(isinstance(e, Storage) for e in elements) or any(n.attrs.get("act", "none") != "none" for n in nodes):
        return "int8"
    return "f16" if any(e.bits < 32 for e in elements) else "f32"


def logit_rms(logits: Array) -> float:
    """Return the root mean square of all logits: the scale that errors are relative to."""
    wide: Array = np.asarray(logits, np.float64)
    return float(np.sqrt(np.mean(wide * wide))) if wide.size else 0.0


def top_margin(logits: Array) -> Array:
    """Return the distance between the largest and the second largest logit of each position."""
    if logits.shape[-1] < 2:
        return np.full(logits.shape[:-1], np.inf)
    two = np.partition(np.asarray(logits, np.float64), (-2, -1), axis=-1)[..., -2:]
    return two[..., 1] - two[..., 0]


def near_ties(logits: Array, kind: NumericClass) -> Array:
    """Return at which positions the reference's top token is undecided within the class (bool)."""
    return top_margin(logits) < AMBIGUOUS_FACTOR * kind.error * logit_rms(logits)


def router_margin(
    logits: Array,
    top_k: int,
    groups: tuple[int, ...] | None = None,
    top_groups: int = 1,
    score: str = "softmax",
    bias: Array | None = None,
    group_logits: Array | None = None,
    group_score: str = "max",
) -> Array:
    """Return by how much each position's routing is decided, in units of router logits.

    The margin between the last expert chosen and the first left out among the groups chosen, and with groups
    the margin between them; a group gate's own margin is in other units and not in it.  A margin between
    sigmoids is divided by their steepest slope, 1/4: two logits must move by at least that much for the scores
    to meet.

    Args:
        logits: [..., E].
        top_k: experts chosen.
        groups: sizes of contiguous groups, or None.
        top_groups: groups chosen.
        score: ``softmax`` (selection by logits) or ``sigmoid``.
        bias: [E], added for selection.
        group_logits: [..., G] of a group gate; ``group_score`` of the experts' scores when None.
        group_score: ``max``, or ``top2_sum``, whose margin two experts' scores share.
    """
    wide = np.asarray(logits, np.float64)
    slope = 0.25 if score == "sigmoid" else 1.0
    scores = 0.5 * (1 + np.tanh(0.5 * wide)) if score == "sigmoid" else wide
    scores = scores if bias is None else scores + np.asarray(bias, np.float64)
    margin = np.full(wide.shape[:-1], np.inf)
    if groups is not None and len(groups) > 1:
        own = group_logits is not None
        of_group = np.asarray(group_logits, np.float64) if own else group_scores(scores, groups, group_score)
        ranked = np.argsort(-of_group, axis=-1, kind="stable")
        if not own:
            margin = _gap(of_group, top_groups) / slope / (1 if group_score == "max" else 2)
        chosen = np.zeros(of_group.shape, bool)
        np.put_along_axis(chosen, ranked[..., :top_groups], True, axis=-1)
        scores = np.where(np.repeat(chosen, groups, axis=-1), scores, -np.inf)
    return np.minimum(margin, _gap(scores, top_k) / slope)


def _gap(scores: Array, k: int) -> Array:
    """Return the distance between the k-th and the next largest; infinite when there is no next."""
    if k >= scores.shape[-1]:
        return np.full(scores.shape[:-1], np.inf)
    ordered = np.partition(scores, (-k - 1, -k), axis=-1)
    left = ordered[..., -k - 1]
    return np.where(np.isneginf(left), np.inf, ordered[..., -k] - np.where(np.isneginf(left), 0.0, left))


def router_ties(margin: Array, logits: Array, kind: NumericClass) -> Array:
    """Return at which positions a router is undecided within the class (bool, the shape of ``margin``)."""
    rms = float(np.sqrt(np.mean(np.square(np.asarray(logits, np.float64))))) if logits.size else 0.0
    return margin < AMBIGUOUS_FACTOR * kind.error * rms


def router_undecided(
    logits: Array,
    kind: NumericClass,
    top_k: int,
    groups: tuple[int, ...] | None = None,
    top_groups: int = 1,
    score: str = "softmax",
    bias: Array | None = None,
    group_logits: Array | None = None,
    group_score: str = "max",
) -> Array:
    """Return at which positions a router is undecided within the class: between experts, or between groups.

    A group gate is judged by the size of its own logits.  Arguments as of :func:`router_margin`.
    """
    margin = router_margin(logits, top_k, groups, top_groups, score, bias, group_logits, group_score)
    ties = router_ties(margin, logits, kind)
    if group_logits is None:
        return ties
    return ties | router_ties(_gap(np.asarray(group_logits, np.float64), top_groups), group_logits, kind)


def kl_divergence(reference: Array, found: Array) -> Array:
    """Return KL(reference || found) in nats of the softmax of each position's logits."""
    a, b = _log_softmax(reference), _log_softmax(found)
    return np.asarray(np.sum(np.exp(a) * (a - b), axis=-1))


def _log_softmax(logits: Array) -> Array:
    wide = np.asarray(logits, np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


@dataclass(frozen=True)
class Case:
    """The judgement of one comparison (an entry of ``parity.json``).

    Attributes:
        name: what was compared.
        max_abs: largest absolute error outside the tail, with forced routing where that was needed.
        logit_rms: rms of the reference's logits.
        ratio: ``max_abs / logit_rms``.
        ambiguous: positions that were excused: another top token at a near-tie, beyond the bound before
            the routing was forced, or in the tail.
        positions: positions compared.
        kl: mean KL divergence in nats.
        bound: of ``ratio``, None in a class without one.
        ok: whether the program is right.
        problem: what is wrong, empty when ok.
    """

    name: str
    max_abs: float
    logit_rms: float
    ratio: float
    ambiguous: int
    positions: int
    kl: float
    bound: float | None
    ok: bool
    problem: str = ""


def compare(
    name: str,
    found: Array,
    reference: Array,
    kind: NumericClass,
    undecided_routing: Array | None = None,
    replay: Callable[[], Array] | None = None,
) -> Case:
    """Judge logits against the reference's.

    Args:
        name: what is compared.
        found: [..., V] logits of the program.
        reference: [..., V] logits of the reference.
        kind: numeric class of the program.
        undecided_routing: [...], where a router was undecided (:func:`router_ties`) at this position or at one it
            attends to.
        replay: runs the program again with the reference's routing forced and returns its logits.

    Raises:
        InputError: the shapes differ.
    """
    if found.shape != reference.shape:
        raise InputError(f"{name}: logits are {list(found.shape)}, the reference's {list(reference.shape)}")
    positions = int(np.prod(reference.shape[:-1], dtype=np.int64))
    rms = logit_rms(reference)
    wide = np.asarray(reference, np.float64).reshape(positions, -1)
    got = np.asarray(found, np.float64).reshape(positions, -1)
    if not np.isfinite(got).all():
        return Case(name, np.inf, rms, np.inf, 0, positions, np.inf, kind.bound, False, "logits are NaN or infinite")
    excused = np.zeros(positions, bool)
    if undecided_routing is not None and undecided_routing.any() and _beyond(got, wide, rms, kind).any():
        excused |= _beyond(got, wide, rms, kind) & undecided_routing.reshape(positions)
        if replay is not None:
            got = np.asarray(replay(), np.float64).reshape(positions, -1)
    flipped = got.argmax(-1) != wide.argmax(-1)
    ties = near_ties(wide, kind)
    excused |= flipped & ties
    return _verdict(name, got, wide, rms, kind, excused, flipped & ~ties)


def held_to_f32(case: Case, found: Array, reference: Array, own: Array, kind: NumericClass) -> Case:
    """Judge logits that miss the class f32 or int8 against the reference's own run in f32.

    Of f32 they pass where that run misses the bound too, and their errors are like its own: beyond the bound at no more
    than twice as many positions, the largest at most 4 times its largest and within the tail of the class, and every
    top token the reference's outside near-ties.

    Of int8 they pass where rounding decides codes so often that half of that run's positions err by more than the class
    expects, and the program is like it: a mean KL within the class or twice that run's, half of the positions erring by
    no more than twice as much, and no other top token where the margin is above 4 times that run's median error.

    Args:
        case: what :func:`compare` found.
        found: [..., V] logits of the program.
        reference: [..., V] logits of the reference in f64.
        own: [..., V] logits of the reference in f32.
        kind: the class.
    """
    if case.ok or kind.name not in ("f32", "int8") or not np.isfinite(found).all():
        return case
    wide = np.asarray(reference, np.float64).reshape(case.positions, -1)
    got, single = (np.asarray(x, np.float64).reshape(wide.shape) for x in (found, own))
    if kind.bound is None:
        return _held_to_codes(case, got, wide, single, kind)
    errors, its = (np.abs(x - wide).max(-1) / case.logit_rms for x in (got, single))
    beyond, its_beyond = int((errors > kind.bound).sum()), int((its > kind.bound).sum())
    flipped = (got.argmax(-1) != wide.argmax(-1)) & ~near_ties(wide, kind)
    few = its_beyond > TAIL_SHARE * case.positions and beyond <= 2 * its_beyond
    if not few or flipped.any() or errors.max() > min(kind.tail, AMBIGUOUS_FACTOR * its.max()):
        return case
    told = f"{case.name} (f32 itself errs by {its.max():.1e})"
    return replace(case, name=told, ambiguous=beyond, ok=True, problem="")


def _held_to_codes(case: Case, got: Array, wide: Array, single: Array, kind: NumericClass) -> Case:
    """Judge a program of the class int8 against the reference's run in f32; all [positions, V]."""
    error, its = (float(np.median(np.abs(x - wide).max(-1))) / case.logit_rms for x in (got, single))
    allowed = max(kind.kl or 0.0, 2 * float(kl_divergence(wide, single).mean()))
    loose = replace(kind, error=its)
    other = got.argmax(-1) != wide.argmax(-1)
    if its <= kind.error or error > 2 * its or case.kl > allowed or (other & ~near_ties(wide, loose)).any():
        return case
    told = f"{case.name} (f32 itself errs by {its:.1e})"
    return replace(case, name=told, ambiguous=int(other.sum()), ok=True, problem="")


def _beyond(got: Array, wide: Array, rms: float, kind: NumericClass) -> Array:
    """Return the positions outside the class."""
    if kind.bound is None:
        return got.argmax(-1) != wide.argmax(-1)
    return np.abs(got - wide).max(-1) > kind.bound * rms


def _tail(errors: Array, rms: float, kind: NumericClass, flipped: Array) -> Array:
    """Return the positions beyond the bound that are few and mild enough to be excused."""
    none = np.zeros(errors.shape, bool)
    if kind.bound is None:
        return none
    tail = (errors > kind.bound * rms) & (errors <= kind.tail * rms) & ~flipped
    return tail if tail.sum() <= TAIL_SHARE * errors.size else none


def _verdict(name: str, got: Array, wide: Array, rms: float, kind: NumericClass, excused: Array,
             flipped: Array) -> Case:
    positions = len(wide)
    errors = np.abs(got - wide).max(-1) if wide.size else np.zeros(positions)
    tail = _tail(errors, rms, kind, flipped)
    excused |= tail
    worst = float(errors[~tail].max(initial=0.0))
    ratio = worst / rms if rms > 0 else (0.0 if worst == 0 else np.inf)
    kl = float(kl_divergence(wide, got).mean()) if positions else 0.0
    problems: list[str] = []
    if kind.bound is not None and ratio > kind.bound:
        problems.append(f"max abs error over logit rms is {ratio:.2e}, the bound of {kind.name} is {kind.bound:.0e}")
    if kind.bound is None and flipped.any():
        problems.append(f"{int(flipped.sum())} of {positions} positions choose another token outside near-ties")
    if kind.kl is not None and kl > kind.kl:
        problems.append(f"mean KL is {kl:.2e}, the bound of {kind.name} is {kind.kl:.0e}")
    count = int(excused.sum())
    if kind.bound is not None and count > AMBIGUOUS_SHARE * positions:
        problems.append(f"{count} of {positions} positions are ambiguous, more than {AMBIGUOUS_SHARE:.0%}")
    return Case(name, worst, rms, ratio, count, positions, kl, kind.bound, not problems, "; ".join(problems))
