"""Parity: the device program, from its own saved bytes, against the IR it was made from.

A model below :data:`~omnic.compiler.sample.WHOLE_MODEL` parameters is run whole: one call, chunks, single
tokens, a ragged batch, and the MTP block.  A larger one is checked part by part in a child process
(:mod:`omnic.compiler.parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.compiler.progress import Progress
from omnic.compiler.routing import RouterWatch
from omnic.compiler.sample import sample_tokens, whole_model
from omnic.ir.graph import Module
from omnic.ir.numeric import AMBIGUOUS_SHARE, Case, NumericClass, compare, find_class, held_to_f32
from omnic.ir.reference import Interpreter
from omnic.ir.weights import WeightStore
from omnic.runtime import manifest as records
from omnic.runtime.bundle import Bundle
from omnic.runtime.session import Session, SessionOptions, open_session
from omnic.runtime.tokenizer import Tokenizer
from omnic.targets.base import Target

__all__ = ["measure_parity", "record", "whole_model_cases"]

CHUNKS = (1, 7, 16, 33)
STEPS = 8
TOKENS, TOKENS_LARGE = 300, 48
SMALL = 30_000_000


def measure_parity(
    bundle: Bundle,
    target: Target,
    module: Module,
    weights: WeightStore,
    tokenizer: Tokenizer | None,
    *,
    origin: dict[str, Any],
    full: bool,
    threads: int | None,
    progress: Progress,
) -> records.Parity:
    """Measure the parity of an unfinished bundle.

    Args:
        bundle: opened with ``unfinished``.
        target: what made it.
        module: the IR that its program computes.
        weights: its numbers, from the source and not from the bundle.
        tokenizer: of the model, or None.
        origin: how a child process finds the same weights (``path`` or ``seed``).
        full: run the whole model whatever its size.
        threads: of the session; None = all cores.
        progress: told what is going on.
    """
    kind = find_class(bundle.manifest.numeric_class)
    if full or whole_model(module):
        cases = tuple(whole_model_cases(bundle, target, module, weights, tokenizer, kind, threads, progress))
        reference = "f64, the whole model"
    else:
        from omnic.compiler.parts import parity_of_parts

        folder = None if weights.results is None else weights.results.folder
        cases = parity_of_parts(bundle, origin, folder, progress)
        reference = "f64, the first and last layer of each kind and the heads, on captured inputs"
    return record(target.name, kind, reference, bundle.manifest.model_sha256, cases)


def record(target: str, kind: NumericClass, reference: str, model: str, cases: tuple[Case, ...]) -> records.Parity:
    """Return the contents of ``parity.json``."""
    listed = [
        {
            "name": c.name,
            "max_abs": c.max_abs,
            "logit_rms": c.logit_rms,
            "ratio": c.ratio,
            "ambiguous": c.ambiguous,
            "positions": c.positions,
            "ok": c.ok,
            "problem": c.problem,
        }
        for c in cases
    ]
    return records.Parity.model_validate(
        {
            "target": target,
            "class": kind.name,
            "reference": reference,
            "model_sha256": model,
            "cases": listed,
            "max_abs": max(c.max_abs for c in cases),
            "ratio": max(c.ratio for c in cases),
            "bound": kind.bound or 0.0,
            "ok": all(c.ok for c in cases),
        }
    )


class _Reference:
    """Logits of the IR for a batch of rows from empty states, and where its routers are undecided.

    Calls of any lengths give the same numbers, so that one call stands for all of them; but where the module has a
    function for prompts of its own, a session chooses by the length of each call, and so the reference makes the
    session's own calls.
    """

    def __init__(self, module: Module, weights: WeightStore, kind: NumericClass) -> None:
        self.interpreter = Interpreter(module, weights)
        self.watch = RouterWatch(module, kind)
        self.chunk = module.dims["T"].high
        self.by_call = module.prefill_from is not None
        self.undecided: NDArray[np.bool_] = np.zeros((1, 1), bool)
        self._module = module
        self._given = module, weights
        self._single: dict[tuple[bytes, tuple[int, ...]], NDArray[Any]] = {}

    def block(self, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the logits of the MTP block's run in f32."""
        return np.asarray(Interpreter(*self._given, np.float32).run(inputs, "mtp")["logits"][0])

    def single(self, tokens: NDArray[np.int64], length: NDArray[np.int64], sizes: Sequence[int] = ()) -> NDArray[Any]:
        """Return the logits of the same run in f32."""
        key = tokens.tobytes() + length.tobytes(), tuple(self._sizes(tokens, sizes))
        if key not in self._single:
            interpreter = Interpreter(*self._given, np.float32)
            self._single[key] = np.asarray(self._run(interpreter, tokens, length, key[1], None, None)["logits"])
        return self._single[key]

    def __call__(
        self, tokens: NDArray[np.int64], length: NDArray[np.int64], routing: Any = None, sizes: Sequence[int] = ()
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """Return the results for tokens [B, T] and [B, T] of where a router was undecided.

        ``sizes`` are the lengths of the session's calls, one call when empty.
        """
        found = self._run(self.interpreter, tokens, length, self._sizes(tokens, sizes), self.watch, routing)
        return found, self.undecided

    def _sizes(self, tokens: NDArray[np.int64], sizes: Sequence[int]) -> Sequence[int]:
        return tuple(sizes) if self.by_call and sizes else (tokens.shape[1],)

    def _run(
        self,
        interpreter: Interpreter,
        tokens: NDArray[np.int64],
        length: NDArray[np.int64],
        sizes: Sequence[int],
        watch: RouterWatch | None,
        routing: Any,
    ) -> dict[str, NDArray[Any]]:
        batch = len(tokens)
        states: dict[str, Any] = {}
        found: list[dict[str, Any]] = []
        unsure: list[NDArray[np.bool_]] = []
        at = 0
        for size in sizes:
            steps = np.arange(size)[None].repeat(batch, 0)
            inputs = {"tokens": tokens[:, at : at + size], "positions": at + steps, "start": np.full(batch, at),
                      "length": np.clip(length - at, 0, size), "rows": steps}
            if watch is not None:
                watch.begin(batch, size)
            name = self._module.called(size)
            result = interpreter.run(inputs, name, states or None, observe=watch, routing=routing)
            states = {p.state: result[p.state] for p in self._module.function(name).params if p.state}
            found.append({k: v for k, v in result.items() if k not in states})
            at += size
            if watch is not None:
                unsure.append(watch.undecided())
        if watch is not None:
            self.undecided = np.logical_or.accumulate(np.concatenate(unsure, axis=1), axis=1)
        return {k: np.concatenate([np.asarray(f[k]) for f in found], axis=1) for k in found[0]}


def whole_model_cases(
    bundle: Bundle,
    target: Target,
    module: Module,
    weights: WeightStore,
    tokenizer: Tokenizer | None,
    kind: NumericClass,
    threads: int | None,
    progress: Progress,
) -> Iterator[Case]:
    """Run the whole model in every way a session is used and yield one case each."""
    session = open_session(bundle, SessionOptions(threads=threads))
    count = TOKENS if module.parameters() < SMALL else TOKENS_LARGE
    count = min(count, module.dims["T"].high, session.info.capacity)
    texts = sample_tokens(session.info.vocab, 3 * count, tokenizer)[0]
    count = len(texts) // 3
    ids = texts[:count]
    reference = _Reference(module, weights, kind)
    progress("parity: reference", 0.0)
    wanted, undecided = reference(ids[None], np.full(1, count))
    logits, length = np.asarray(wanted["logits"][0]), np.full(1, count)

    def forced() -> NDArray[Any]:
        """The reference's logits with the program's own routing."""
        routing = reference.watch.captured(target, bundle.path, ids, module.called(count))
        return np.asarray(reference(ids[None], length, routing)[0]["logits"][0])

    for name, run, sizes in _runs(session, ids):
        progress(f"parity: {name}", 0.0)
        found, at = run()
        want, unsure = logits, undecided[0]
        several = reference.by_call and len(sizes) > 1
        if several:
            results, where = reference(ids[None], length, None, sizes)
            want, unsure = np.asarray(results["logits"][0]), where[0]
        # The routing of several calls cannot be captured: undecided positions are then only left out.
        again = (lambda at=at, want=want: want[at]) if several else (lambda at=at: forced()[at])
        case = _judge(name, found, want[at], unsure[at], kind, again)
        if not case.ok and kind.name in ("f32", "int8"):
            case = held_to_f32(case, found, want[at], reference.single(ids[None], length, sizes)[0][at], kind)
        yield case
    progress("parity: ragged batch of 3", 0.0)
    yield _ragged(session, reference, texts[: 3 * count].reshape(3, count), kind)
    yield from _other_heads(session, ids, wanted, undecided[0], kind)
    if "mtp" in module.functions:
        progress("parity: mtp", 0.0)
        yield _mtp(bundle, target, module, reference, ids, wanted["hidden"], undecided, kind)


def _judge(
    name: str,
    found: NDArray[Any],
    wanted: NDArray[Any],
    undecided: NDArray[np.bool_],
    kind: NumericClass,
    forced: Callable[[], NDArray[Any]],
) -> Case:
    """Compare; where a router was undecided and the result differs, compare again under the program's routing."""
    case = compare(name, found, wanted, kind, undecided)
    if case.ok or not undecided.any():
        return case
    again = compare(name, found, forced(), kind)
    excused = max(case.ambiguous, again.ambiguous)
    ok = again.ok and excused <= AMBIGUOUS_SHARE * case.positions
    problem = again.problem if not again.ok else "" if ok else f"{excused} of {case.positions} positions are ambiguous"
    return replace(again, ambiguous=excused, ok=ok, problem=problem)


Run = Callable[[], tuple[NDArray[Any], NDArray[np.int64]]]


def _runs(session: Session, ids: NDArray[np.int64]) -> Iterator[tuple[str, Run, list[int]]]:
    """Ways to run one row: each returns logits and the positions they belong to; and how long its calls are."""
    count, first = len(ids), max(len(ids) - STEPS, 1)
    turns: list[int] = []
    while sum(turns) < count:
        turns.append(min(CHUNKS[len(turns) % len(CHUNKS)], count - sum(turns)))

    def one_call() -> tuple[NDArray[Any], NDArray[np.int64]]:
        session.reset(1)
        return np.array(session.forward(ids[None]).logits[0]), np.arange(count)

    def chunks() -> tuple[NDArray[Any], NDArray[np.int64]]:
        session.reset(1)
        parts: list[NDArray[Any]] = []
        at = 0
        for step in turns:
            parts.append(np.array(session.forward(ids[None, at : at + step]).logits[0]))
            at += step
        return np.concatenate(parts), np.arange(count)

    def single_tokens() -> tuple[NDArray[Any], NDArray[np.int64]]:
        session.reset(1)
        session.forward(ids[None, :first], rows=np.array([[first - 1]]))
        steps = [np.array(session.forward(ids[None, at : at + 1]).logits[0]) for at in range(first, count)]
        return np.concatenate(steps), np.arange(first, count)

    yield f"prefill of {count} tokens", one_call, [count]
    yield f"chunks of {', '.join(str(c) for c in CHUNKS)}", chunks, turns
    if count > 1:
        yield f"{STEPS} single tokens", single_tokens, [first] + [1] * (count - first)


def _ragged(session: Session, reference: _Reference, tokens: NDArray[np.int64], kind: NumericClass) -> Case:
    """Three rows of different lengths in one call; tokens is [3, T]."""
    count = tokens.shape[1]
    length = np.array([count, max(count // 2, 1), max(count // 3, 1)])
    wanted, undecided = reference(tokens, length)
    session.reset(3)
    found = session.forward(tokens, length=length).logits
    valid = np.arange(count)[None] < length[:, None]
    got, logits = np.asarray(found)[valid], np.asarray(wanted["logits"])[valid]
    case = compare("ragged batch of 3", got, logits, kind, undecided[valid])
    session.reset(1)
    if not case.ok and kind.name in ("f32", "int8"):
        return held_to_f32(case, got, logits, reference.single(tokens, length)[valid], kind)
    return case


def _other_heads(
    session: Session,
    ids: NDArray[np.int64],
    wanted: dict[str, NDArray[Any]],
    undecided: NDArray[np.bool_],
    kind: NumericClass,
) -> Iterator[Case]:
    heads = [name for name in ("mtp", "verifier") if name in wanted]
    if not heads:
        return
    session.reset(1)
    outputs = session.forward(ids[None])
    for name in heads:
        found = getattr(outputs, name)
        shape = wanted[name][0].shape
        unsure = undecided.reshape(-1, *[1] * (len(shape) - 2)) & np.ones(shape[:-1], bool)
        yield compare(f"{name} head", np.asarray(found[0]), wanted[name][0], kind, unsure)


def _mtp(
    bundle: Bundle,
    target: Target,
    module: Module,
    reference: _Reference,
    ids: NDArray[np.int64],
    hidden: NDArray[Any],
    undecided: NDArray[np.bool_],
    kind: NumericClass,
) -> Case:
    """The block over the shifted tokens, on the reference's hidden states."""
    count = len(ids) - 1
    steps = np.arange(count)[None]
    inputs = {
        "hidden": np.asarray(hidden[:, :count], np.float32),
        "next_tokens": ids[None, 1:],
        "positions": steps,
        "start": np.zeros(1, np.int64),
        "length": np.full(1, count),
        "rows": steps,
    }
    reference.watch.begin(1, count)
    wanted = reference.interpreter.run(inputs, "mtp", observe=reference.watch)["logits"][0]
    unsure = undecided[0, :count] | reference.watch.undecided()[0]
    value = next(r.value.name for r in module.function("mtp").results if r.name == "logits")
    found = target.capture(bundle.path, inputs, [value], "mtp")[value][0]
    case = compare("mtp block", found, wanted, kind, unsure)
    if not case.ok and kind.name in ("f32", "int8"):
        return held_to_f32(case, found, wanted, reference.block(inputs), kind)
    return case
