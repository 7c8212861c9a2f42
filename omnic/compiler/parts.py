"""Parity of a model larger than memory: the reference streams through it, the program runs part by part.

A part is one block, or one head.  The reference evaluates the whole function once on a few tokens with
weights made and dropped layer by layer, and keeps what crosses the borders of the parts that are
checked: the first and the last layer of each kind, and every head.  Then each of these parts of the saved
program runs on the captured inputs.  All of it happens in a child process, so that the compiler's own
memory is not counted twice, and within a time box.

A state of codes is judged by what attention makes of it: a code on the other side of a rounding is no error, so codes
are not compared one by one.  There are tokens enough that attention reads some from the codes and not from a ring of
recent ones.  Where a class counts only choices, what attention gives must be near the reference's too: of a part's
result it is a small share.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.compiler.adapters import with_recorded
from omnic.compiler.progress import Progress
from omnic.compiler.sample import sample_tokens
from omnic.compiler.weight_files import weight_source
from omnic.errors import BundleError, InputError, OmnicError
from omnic.ir.graph import Function, Module, Node, Value
from omnic.ir.numeric import Case, NumericClass, compare, find_class
from omnic.ir.packing import QTensor
from omnic.ir.reference import Interpreter
from omnic.ir.types import Storage
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.runtime.bundle import Bundle, open_bundle
from omnic.spec import parse_spec
from omnic.targets import get_target

__all__ = ["Part", "chosen_parts", "parity_of_parts", "parts_of"]

TOKENS = 8
TIME_BOX = 1200.0


@dataclass(frozen=True)
class Part:
    """A run of nodes with one scope: what goes in, what comes out, and what kind it is.

    ``inputs`` and ``outputs`` are values; weights are not among them.  Two parts of the same ``kind`` have
    the same ops, attributes and types.
    """

    name: str
    kind: str
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def parts_of(function: Function) -> tuple[Part, ...]:
    """Cut ``function`` into blocks and heads, in order."""
    runs: dict[str, list[Node]] = {}
    for node in function.nodes:
        steps = node.scope.split(".")
        name = ".".join(steps[:2]) if steps[0] == "blocks" else steps[0]
        runs.setdefault(name, []).append(node)
    returned = {r.value for r in function.results}
    parts: list[Part] = []
    for name, nodes in runs.items():
        made = {r for n in nodes for r in n.results}
        needed = dict.fromkeys(v for n in nodes for v in n.inputs() if v not in made and not v.weight)
        read_later = {v for other, rest in runs.items() if other != name for n in rest for v in n.inputs()}
        given = tuple(v for n in nodes for v in n.results if v in read_later or v in returned)
        kind = "; ".join(
            f"{n.op} {sorted(n.attrs.items(), key=str)} {[str(v.type) for v in n.inputs()]}" for n in nodes
        )
        parts.append(Part(name, kind, tuple(nodes), tuple(needed), given))
    return tuple(parts)


def chosen_parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Return the first and the last part of each kind (so every head, and two layers of each kind)."""
    kinds: dict[str, list[Part]] = {}
    for part in parts:
        kinds.setdefault(part.kind, []).append(part)
    wanted = {p.name for same in kinds.values() for p in (same[0], same[-1])}
    return tuple(p for p in parts if p.name in wanted and p.name != "index")


def parity_of_parts(
    bundle: Bundle, origin: Mapping[str, Any], results: Path | None, progress: Progress
) -> tuple[Case, ...]:
    """Check an unfinished bundle in a child process.

    Args:
        bundle: opened with ``unfinished``.
        origin: ``path`` or ``seed`` of its weights.
        results: folder of what calibrating passes found.
        progress: told of each part.

    Raises:
        OmnicError: what the child raised.
        InputError: the child was killed or outran its time box.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, str(bundle.path), dict(origin), results), daemon=True)
    child.start()
    theirs.close()
    try:
        while True:
            if not ours.poll(TIME_BOX):
                raise InputError(
                    f"checking parity took more than {TIME_BOX:.0f} s for one part", "compile with --parity off"
                )
            kind, value = ours.recv()
            if kind == "progress":
                progress(*value)
            elif kind == "error":
                raise value
            else:
                return value
    except EOFError:
        child.join()
        raise InputError(
            f"the parity check was killed (exit {child.exitcode})",
            "it needs about 2.5 GB of memory: free some, or compile with --parity off",
        ) from None
    finally:
        child.kill()
        child.join()
        ours.close()


def _child(pipe: Any, folder: str, origin: dict[str, Any], results: Path | None) -> None:
    try:
        cases = check_parts(
            open_bundle(folder, unfinished=True),
            origin,
            results,
            lambda what, share: pipe.send(("progress", (what, share))),
        )
    except OmnicError as error:
        pipe.send(("error", error))
    else:
        pipe.send(("cases", cases))
    finally:
        pipe.close()


def check_parts(
    bundle: Bundle, origin: Mapping[str, Any], results: Path | None, progress: Progress
) -> tuple[Case, ...]:
    module, target = bundle.module, get_target(bundle.manifest.target)
    kept = None if results is None else ResultStore(results)
    if "path" in origin:
        # The compile has checked the file; here it may hold what passes have merged or left out.
        source = weight_source(Path(origin["path"]))
        if origin.get("lora"):
            spec = parse_spec(bundle.manifest.spec.text, bundle.manifest.spec.file)
            source = with_recorded(spec, build(spec), source, origin)
        store = WeightStore(module, source, results=kept)
    else:
        store = WeightStore(module, seed=int(origin["seed"]), results=kept)
    kind = find_class(bundle.manifest.numeric_class)
    cases: list[Case] = []
    for name in (n for n in ("forward", "prefill", "mtp") if n in module.functions):
        function = module.function(name)
        chosen = chosen_parts(parts_of(function))
        inputs = _inputs(module, function)
        shown = set(target.preserved(bundle.path, name))
        attended = {part: attended_values(part, shown) for part in chosen}
        more = {v for values in attended.values() for v in values}
        crossing = _stream(module, store, function, inputs, chosen, more, progress)
        for done, part in enumerate(chosen):
            progress(f"parity: {name} {part.name}", done / len(chosen))
            given = {v.name: crossing[v] for v in part.inputs if v in crossing}
            codes = {v for n in part.nodes for v in n.results if _is_state(n) and isinstance(v.type.element, Storage)}
            names = [v.name for v in part.outputs if v.name in shown and v.type.is_float and v not in codes]
            names += [v.name for v in attended[part] if v.name not in names]
            found = target.capture_part(bundle.path, given, names, name)
            cases.extend(_cases(name, part, found, crossing, kind))
            cases.extend(_near(name, part, v, found, crossing, kind) for v in attended[part] if kind.bound is None)
    return tuple(cases)


def attended_values(part: Part, shown: Container[str]) -> tuple[Value, ...]:
    """Return what the attentions of a part give, as far as the program shows it: as it is, transposed or reshaped."""
    found: list[Value] = []
    for node in part.nodes:
        if node.op not in ("attention", "block_attention", "mla"):
            continue
        value: Value | None = node.result
        while value is not None and value.name not in shown:
            users = [n for n in part.nodes if any(v is value for v in n.inputs())]
            moved = len(users) == 1 and users[0].op in ("transpose", "reshape")
            value = users[0].result if moved else None
        found += [] if value is None else [value]
    return tuple(found)


def _is_state(node: Node) -> bool:
    return node.op in ("cache_write", "cache_move", "cache_close")


def tokens_of(module: Module) -> int:
    """Return how many tokens are looked at: some beyond those that a query reads from a ring of recent ones."""
    recent = max((s.window for s in module.states.values() if s.role == "recent"), default=0)
    return min(TOKENS + recent, module.dims["T"].high)


def _inputs(module: Module, function: Function) -> dict[str, NDArray[Any]]:
    """A few tokens from empty states; hidden states (of an MTP block) are drawn from seed 0."""
    count = tokens_of(module)
    steps = np.arange(count)[None]
    vocab = int(str(module.meta["vocab"]))
    ids, _ = sample_tokens(vocab, count + 1, None)
    known: dict[str, NDArray[Any]] = {
        "tokens": ids[None, :-1],
        "next_tokens": ids[None, 1:],
        "positions": steps,
        "start": np.zeros(1, np.int64),
        "length": np.full(1, count),
        "rows": steps,
    }
    hidden = function.param("hidden")
    if hidden is not None:
        width = hidden.type.shape[-1]
        assert isinstance(width, int)
        known["hidden"] = np.random.default_rng(0).standard_normal((1, count, width))
    return {p.value.name: known[p.value.name] for p in function.params if p.state is None}


def _stream(
    module: Module,
    store: WeightStore,
    function: Function,
    inputs: Mapping[str, NDArray[Any]],
    parts: Sequence[Part],
    more: Collection[Value],
    progress: Progress,
) -> dict[Value, NDArray[Any]]:
    """Evaluate ``function`` and keep the values that cross the borders of ``parts``, and ``more``."""
    interpreter = Interpreter(module, store, cache_bytes=0)
    wanted = {*more, *(v for part in parts for v in (*part.inputs, *part.outputs))}
    kept: dict[Value, NDArray[Any]] = {}
    at = {node.name: index for index, node in enumerate(function.nodes)}

    def keep(node: Node, results: tuple[Any, ...]) -> None:
        progress(f"parity: reference of {function.name}", at[node.name] / len(at))
        for value, result in zip(node.results, results, strict=True):
            if value in wanted and not isinstance(result, QTensor):
                kept[value] = np.asarray(result)

    interpreter.run(inputs, function.name, trace=keep)
    empty = empty_states_of(module, function)
    for param in function.params:
        if param.state is None:
            kept[param.value] = np.asarray(inputs[param.value.name])
        elif param.state in empty:
            kept[param.value] = empty[param.state]
    return kept


def empty_states_of(module: Module, function: Function) -> dict[str, NDArray[Any]]:
    """Return the states of one row before the first token, by name; a program makes those of codes itself."""
    from omnic.ir.reference import empty_states

    states = empty_states(module, 1, np.float64, function.name)
    return {name: numbers for name, numbers in states.items() if isinstance(numbers, np.ndarray)}


def _cases(
    function: str,
    part: Part,
    found: Mapping[str, NDArray[Any]],
    wanted: Mapping[Value, NDArray[Any]],
    kind: NumericClass,
) -> list[Case]:
    if not found:
        raise BundleError(f"the program shows no value of {part.name}", "compile it again")
    return [
        compare(f"{function} {part.name}: {value.name}", *_filled(found[value.name], wanted[value]), kind)
        for value in part.outputs
        if value.name in found
    ]


def _near(
    function: str,
    part: Part,
    value: Value,
    found: Mapping[str, NDArray[Any]],
    wanted: Mapping[Value, NDArray[Any]],
    kind: NumericClass,
) -> Case:
    """Judge what attention gives by the rms of its error over the rms of the reference's."""
    one, other = (np.asarray(x, np.float64) for x in (found[value.name], wanted[value]))
    rms, worst = float(np.sqrt((other**2).mean())), float(np.abs(one - other).max())
    off = float(np.sqrt(((one - other) ** 2).mean()))
    ratio = off / rms if rms > 0 else (0.0 if off == 0 else np.inf)
    ok = bool(np.isfinite(one).all()) and ratio <= kind.error
    problem = "" if ok else f"rms of the error over rms is {ratio:.1e}, that of {kind.name} is {kind.error:.0e}"
    name = f"{function} {part.name}: {value.name}, of attention"
    return Case(name, worst, rms, ratio, 0, int(np.prod(one.shape[:-1])), 0.0, kind.error, ok, problem)


def _filled(found: NDArray[Any], wanted: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rows that hold something on either side: empty slots of a state would only dilute its rms."""
    one, other = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    rows = (one != 0).any(-1) | (other != 0).any(-1)
    return one[rows], other[rows]
