"""What the lossy passes did to a bundle: types and bytes of weights and states, before and after."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from omnic.ir.dims import evaluate
from omnic.ir.graph import Module, Weight
from omnic.ir.text import parse_module
from omnic.ir.types import Storage, TensorType
from omnic.models import build
from omnic.report.precision import Cell, precision_picture
from omnic.runtime.bundle import Bundle
from omnic.runtime.files import human_bytes
from omnic.runtime.manifest import PassRecord

__all__ = ["Lossy", "Row", "lossy_facts", "lossy_section"]

#: (headings, rows, columns of numbers) -> HTML
Table = Callable[[Sequence[str], Sequence[Sequence[Any]], Sequence[int]], str]

_BLOCK = re.compile(r"^(mtp\.block|mtp|blocks\.\d+)\.(.+)$")


@dataclass(frozen=True)
class Row:
    """One weight or state.

    Attributes:
        name: its name in the module.
        before: its element type in the model of the spec; empty for what the passes added.
        after: its element type in the bundle; empty for what the passes took away.
        numbers: how many.
        bytes_before: bytes before, at capacity and for one row of a batch where it is a state.
        bytes_after: bytes after: codes, scales and zero points.
        how: where the numbers of a weight come from.
    """

    name: str
    before: str
    after: str
    numbers: int
    bytes_before: int
    bytes_after: int
    how: str = ""


@dataclass(frozen=True)
class Lossy:
    """What the lossy passes of a compile did.

    Attributes:
        passes: the lossy passes that ran.
        weights: every weight of the bundle.
        states: every state of the bundle.
        capacity: tokens that a linear state holds.
        predicted: bytes of all states, one row at capacity, from their types.
        measured: the same as the session holds them; None where no session was opened.
    """

    passes: tuple[PassRecord, ...]
    weights: tuple[Row, ...]
    states: tuple[Row, ...]
    capacity: int
    predicted: int
    measured: int | None

    def __bool__(self) -> bool:
        return bool(self.passes)


def lossy_facts(bundle: Bundle, profile: Mapping[str, Any] | None) -> Lossy:
    """Return what the lossy passes of ``bundle`` did; ``profile`` is its ``profile.json``."""
    passes = tuple(p for p in bundle.manifest.passes if p.stage == "lossy")
    module, front = bundle.module, front_of(bundle)
    weights = _rows(
        {n: w.type for n, w in front.weights.items()},
        {n: w.type for n, w in module.weights.items()},
        lambda n: _how(module.weights[n]),
    )
    states = _rows(
        {n: _one_row(s.type, front) for n, s in front.states.items()},
        {n: _one_row(s.type, module) for n, s in module.states.items()},
        lambda n: "",
    )
    predicted = sum(s.bytes_after for s in states)
    measured = (profile or {}).get("state_bytes")
    return Lossy(passes, weights, states, _capacity(bundle), predicted, measured)


def front_of(bundle: Bundle) -> Module:
    """Return the module that the bundle was compiled from: its spec's, or the imported one."""
    if bundle.from_spec:
        return build(bundle.spec)
    return parse_module(bundle.manifest.spec.text, bundle.manifest.spec.file)


def _capacity(bundle: Bundle) -> int:
    if bundle.from_spec:
        return bundle.spec.capacity
    known = bundle.module.meta.get("capacity", bundle.module.dims["T"].high)
    assert isinstance(known, int)
    return known


def _rows(
    before: Mapping[str, TensorType], after: Mapping[str, TensorType], how: Callable[[str], str]
) -> tuple[Row, ...]:
    rows: list[Row] = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        type = new or old
        assert type is not None
        rows.append(
            Row(
                name,
                str(old.element) if old else "",
                str(new.element) if new else "",
                _count(type),
                old.bytes() if old else 0,
                new.bytes() if new else 0,
                how(name) if new else "joined into another weight or dropped",
            )
        )
    return tuple(rows)


def _one_row(type: TensorType, module: Module) -> TensorType:
    dims = {name: r.high for name, r in module.dims.items()} | {"B": 1}
    return type.with_shape(*(evaluate(d, dims) for d in type.shape))


def _count(type: TensorType) -> int:
    total = 1
    for dim in type.shape:
        assert isinstance(dim, int)
        total *= dim
    return total


def _how(weight: Weight) -> str:
    """Return where the numbers of a weight of the bundle come from."""
    if not isinstance(weight.type.element, Storage):
        return ""
    kinds: list[str] = []
    queue = [weight.recipe]
    while queue:
        recipe = queue.pop()
        kinds.append(recipe.kind)
        queue += recipe.inputs
    if "stored" in kinds:
        return f"calibrated, result {str(weight.recipe.args.get('hash', ''))[:12]}".rstrip(" result,")
    return "rounded to nearest" if "quantise" in kinds else ""


# -- the page ---------------------------------------------------------------------------------------------
def lossy_section(lossy: Lossy, table: Table) -> str:
    """Return the section of the page; empty when no lossy pass ran."""
    if not lossy:
        return ""
    parts = ["<h2>What the lossy passes did</h2>", _lead(lossy), _passes(lossy, table)]
    changed = [w for w in lossy.weights if w.before != w.after]
    if changed:
        parts += [
            "<h3>Weights, bits a number</h3>",
            precision_picture(_cells(lossy.weights)),
            _types(lossy.weights, table),
            _every("weight", lossy.weights, table),
        ]
    if any(s.before != s.after for s in lossy.states):
        parts += ["<h3>States, one row at capacity</h3>", _state_lead(lossy), _every_state(lossy.states, table)]
    return "".join(parts)


def _lead(lossy: Lossy) -> str:
    before, after = sum(w.bytes_before for w in lossy.weights), sum(w.bytes_after for w in lossy.weights)
    numbers = sum(w.numbers for w in lossy.weights if w.after)
    words = [
        f"weights {human_bytes(before)} to {human_bytes(after)} ({after / before:.3f} of it, "
        f"{8 * after / numbers:.2f} bits a number on average)"
    ]
    calibrated = [w for w in lossy.weights if w.how.startswith("calibrated")]
    if calibrated:
        rounded = sum(w.how == "rounded to nearest" for w in lossy.weights)
        words.append(f"{len(calibrated)} weights calibrated, {rounded} rounded to nearest")
    cold, warm = sum(s.bytes_before for s in lossy.states), sum(s.bytes_after for s in lossy.states)
    if cold and warm != cold:
        words.append(f"states {human_bytes(cold)} to {human_bytes(warm)} ({warm / cold:.3f} of it)")
    text = "; ".join(words)
    return f"<p class=lead>{escape(text[:1].upper() + text[1:])}.</p>"


def _passes(lossy: Lossy, table: Table) -> str:
    rows = [
        (
            p.name,
            ", ".join(f"{k}={v}" for k, v in p.options.items()) or "defaults",
            f"{p.seconds:.1f} s" if p.seconds is not None else "",
            "; ".join(r.message for r in p.remarks if not r.node)
            or f"{len(p.remarks)} remark{'' if len(p.remarks) == 1 else 's'}",
        )
        for p in lossy.passes
    ]
    return table(("pass", "options", "time", "what it says of the whole model"), rows, (2,))


def _cells(weights: Sequence[Row]) -> list[Cell]:
    cells: list[Cell] = []
    for w in weights:
        if not w.after or "norm" in w.name.rsplit(".", 1)[-1]:
            continue
        match = _BLOCK.match(w.name)
        column, part = (match.group(1).removeprefix("blocks."), match.group(2)) if match else ("ends", w.name)
        title = f"{w.name}: {w.before or 'new'} to {w.after}, {human_bytes(w.bytes_after)}, {w.how}".rstrip(", ")
        cells.append(Cell(column.replace("mtp.block", "mtp"), part, 8 * w.bytes_after / w.numbers, w.after, title))
    return cells


def _types(weights: Sequence[Row], table: Table) -> str:
    rows: list[tuple[str, ...]] = []
    total = sum(w.bytes_after for w in weights)
    for element in sorted({w.after for w in weights if w.after}):
        of = [w for w in weights if w.after == element]
        numbers, size = sum(w.numbers for w in of), sum(w.bytes_after for w in of)
        share = f"{100 * size / total:.1f} %"
        rows.append((element, f"{len(of)}", f"{numbers:,}", f"{8 * size / numbers:.3f}", f"{size:,}", share))
    rows.sort(key=lambda r: -int(r[4].replace(",", "")))
    return table(("type", "weights", "numbers", "bits a number", "bytes", "share"), rows, (1, 2, 3, 4, 5))


def _every(what: str, rows: Sequence[Row], table: Table) -> str:
    shown = [
        (*(r.name, r.before, r.after), f"{r.bytes_before:,}", f"{r.bytes_after:,}", _bits(r), r.how) for r in rows
    ]
    body = table((what, "before", "after", "bytes before", "bytes after", "bits", "numbers from"), shown, (3, 4, 5))
    return f"<details><summary>every {what}</summary>{body}</details>"


def _bits(row: Row) -> str:
    return f"{8 * row.bytes_after / row.numbers:.3f}" if row.numbers else ""


def _state_lead(lossy: Lossy) -> str:
    per_token = lossy.predicted / lossy.capacity
    words = f"{lossy.predicted:,} bytes predicted from the types ({per_token:,.1f} a token of capacity)"
    if lossy.measured is not None:
        equal = "equal" if lossy.measured == lossy.predicted else f"{lossy.measured - lossy.predicted:+,}"
        words += f"; {lossy.measured:,} bytes measured in the session ({equal})"
    return f"<p class=lead>{escape(words)}.</p>"


def _every_state(states: Sequence[Row], table: Table) -> str:
    rows = [(s.name, s.before or "new", s.after or "gone", f"{s.bytes_before:,}", f"{s.bytes_after:,}") for s in states]
    return table(("state", "before", "after", "bytes before", "bytes after"), rows, (3, 4))
