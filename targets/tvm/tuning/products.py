"""What a program multiplies: its distinct calls of product kernels, and the numbers of rows they are called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omnic.runtime.kernels.packing import PanelType

__all__ = ["ROWS", "Product", "RowClass", "panels_text", "read_panels", "row_class", "row_classes"]


@dataclass(frozen=True)
class RowClass:
    """Numbers of rows that share a tuning.

    Attributes:
        name: such as ``17-128``.
        low: the fewest rows.
        high: the most; 0 for no bound.
        measured: how many rows are timed for all of them, where a program has as many.
    """

    name: str
    low: int
    high: int
    measured: int


#: a single token; a few rows or a draft to verify; a short prompt; a long one
ROWS = (RowClass("1", 1, 1, 1), RowClass("2-16", 2, 16, 16), RowClass("17-128", 17, 128, 128),
        RowClass(">128", 129, 0, 512))


def row_class(name: str) -> RowClass | None:
    """Return the class of that name, None where there is none."""
    return next((c for c in ROWS if c.name == name), None)


def row_classes(low: int, high: int) -> tuple[RowClass, ...]:
    """Return the classes that hold a number of rows from ``low`` to ``high``."""
    return tuple(c for c in ROWS if c.low <= high and (c.high >= low or not c.high))


@dataclass(frozen=True, order=True)
class Product:
    """One call of a product kernel, whichever weights it reads.

    Attributes:
        op: the kernel: ``linear``, ``linear_many`` or ``moe``.
        n: outputs of each weight; of ``moe`` the hidden width.
        k: inputs.
        weights: how each lies in panels, as :func:`panels_text` writes it; of ``moe`` gate (or none), up, down.
        act: how the rows are rounded, as the IR writes it.
        experts: of ``moe``, else 0.
        top: experts of a row, of ``moe``, else 0.
    """

    op: str
    n: tuple[int, ...]
    k: int
    weights: tuple[str, ...]
    act: str
    experts: int = 0
    top: int = 0

    def __str__(self) -> str:
        outputs = "+".join(map(str, self.n))
        kinds = ", ".join(dict.fromkeys(self.weights))
        chosen = f", {self.top} of {self.experts} experts" if self.experts else ""
        return f"{self.op} {outputs} x {self.k} {kinds}, act {self.act}{chosen}"


def panels_text(type: PanelType) -> str:
    """Return panels as text: ``f16``, ``i8<row, f32>``, ``i4<g32, s4>``, ``i4<g32, f16, asym>``."""
    if type.scale is None:
        return type.code
    group = f"g{type.group}" if type.group else "row"
    return f"{type.code}<{group}, {type.scale}{', asym' if type.asym else ''}>"


def read_panels(text: str) -> PanelType:
    """Return the panels that :func:`panels_text` wrote.

    Raises:
        ValueError: it did not.
    """
    code, _, rest = text.partition("<")
    words: Sequence[str] = [w.strip() for w in rest.rstrip(">").split(",")] if rest else []
    group = int(words[0][1:]) if words and words[0] != "row" else 0
    scale = words[1] if len(words) > 1 else None
    found = PanelType(code, scale, group, "asym" in words[2:])  # type: ignore[arg-type]
    if panels_text(found) != text or code not in ("f32", "f16", "bf16", "i8", "i4", "i2"):
        raise ValueError(f"'{text}' is no form of panels")
    if scale not in (None, "f32", "f16", "bf16", "s4"):
        raise ValueError(f"'{text}' has scales that panels have not")
    return found
