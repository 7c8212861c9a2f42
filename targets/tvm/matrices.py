"""The weights of a program: which matrices and vectors it reads, how each is stored, and where it lies in the file.

A weight of the IR becomes one packed matrix, or one for each head or expert; two ops that read it in the same form
share it.  Vectors (norms, biases, sinks) and what only generated loops read lie as plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from omnic.errors import InputError
from omnic.ir.graph import Module, Value
from omnic.ir.types import DType, Storage, TensorType
from omnic.ir.weights.store import fixed_shape
from omnic.runtime.kernels.packing import PanelType, panel_type, part_bytes
from omnic.targets.tvm.tail.loops import Apply, Expression, Leaf, Loop
from omnic.targets.tvm.text import ident
from omnic.targets.tvm.tuning.lookup import Tunings
from omnic.targets.tvm.tuning.products import Product
from omnic.targets.tvm.views import View

__all__ = ["ALIGNMENT", "HEADER", "PAGE", "Layout", "Matrices", "Matrix", "Place", "Vector", "panels_of"]

ALIGNMENT, PAGE = 64, 4096
#: bytes before the first weight: a magic word, the length of the file and the hash of what follows
HEADER = 4096
_VECTOR_BYTES: Mapping[str, int] = {"f32": 4, "i64": 8, "i32": 4}


@dataclass(frozen=True)
class Place:
    """Where the parts of one packed matrix lie, in bytes from the start of the file; -1 what it has not."""

    codes: int
    scales: int = -1
    zeros: int = -1
    row: int = -1


@dataclass(frozen=True)
class Matrix:
    """One weight as ``count`` packed matrices of [n, k].

    Attributes:
        weight: name in the IR.
        turned: whether the last two dims of the IR are exchanged.
        count: heads or experts; 1 for a weight of two dims.
        n: outputs.
        k: inputs.
        panels: how it lies.
        index: of the first of them in the table of matrices.
    """

    weight: str
    turned: bool
    count: int
    n: int
    k: int
    panels: PanelType
    index: int

    @property
    def name(self) -> str:
        """Its constant in C."""
        return f"W_{ident(self.weight)}" + ("_turned" if self.turned else "")

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each part of one of the matrices."""
        return part_bytes(self.panels, self.n, self.k)


@dataclass(frozen=True)
class Vector:
    """A weight as plain numbers in row-major order: f32, or the integer type it has."""

    weight: str
    dtype: str
    count: int

    @property
    def name(self) -> str:
        """Its constant in C."""
        return f"V_{ident(self.weight)}"


def panels_of(type: TensorType, turned: bool = False) -> PanelType:
    """Return how the matrices of a weight lie; what panels have no codes for is decoded to f32."""
    element = type.element
    if isinstance(element, Storage) and (turned or (type.rank == 3 and element.group == -1)):
        return PanelType("f32")
    if isinstance(element, DType) and not element.is_float:
        raise InputError(f"target tvm: a product with a weight of {element}")
    return panel_type(element)


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a file of weights.

    Attributes:
        vectors: weight -> bytes from the start of the file.
        matrices: (weight, turned) -> the places of each of its matrices.
        bytes: of the file.
    """

    vectors: Mapping[str, int]
    matrices: Mapping[tuple[str, bool], tuple[Place, ...]]
    bytes: int


class Matrices:
    """The weights that a program reads, in the order in which they were asked for.

    Args:
        module: the program's.
        layout: of a file that there is already; None lays one out.
        tunings: records of how products are cut; several where one program is compiled for several platforms.
    """

    def __init__(self, module: Module, layout: Layout | None = None, tunings: Sequence[Tunings] = ()) -> None:
        self.module, self._layout = module, layout
        self.tunings = tuple(tunings)
        #: every product call: the fewest and the most rows of each
        self.products: dict[Product, list[tuple[int, int]]] = {}
        self.tuned: dict[Product, str] = {}
        self.matrices: dict[tuple[str, bool], Matrix] = {}
        self.vectors: dict[str, Vector] = {}
        self.tables: dict[str, tuple[str, int]] = {}
        self.arrays: dict[tuple[DType, tuple[float, ...]], str] = {}
        self.loops: dict[str, Loop] = {}
        self._count = 0

    def table(self, name: str, numbers: str, count: int) -> str:
        """Return the name of a constant table of f64 numbers, written as C; equal ones are one."""
        for known, (text, _) in self.tables.items():
            if text == numbers:
                return known
        made = f"{name.upper()}_{len(self.tables)}"
        self.tables[made] = numbers, count
        return made

    def numbers(self, values: Sequence[float], dtype: DType) -> str:
        """Return the name of a constant array; equal ones are one."""
        key = dtype, tuple(values)
        return self.arrays.setdefault(key, f"NUMBERS_{len(self.arrays)}")

    def loop(self, root: Apply, inputs: Sequence[View], output: View) -> str:
        """Return the name of the function of a loop; loops that differ only in where their values lie are one."""
        places = {view: at for at, view in enumerate(inputs)}
        key = f"{_described(root, places)} -> {output.dtype} {output.shape}"
        if key not in self.loops:
            self.loops[key] = Loop(f"omnic_loop_{len(self.loops)}", root, tuple(inputs), output)
        return self.loops[key].name

    def tuning(self, product: Product, low: int, high: int) -> str:
        """Return the name of the table of tunings of a product that is called with ``low`` to ``high`` rows, "" where
        no record is of it.
        """
        self.products.setdefault(product, []).append((low, high))
        if product not in self.tuned and any(t.of(product) for t in self.tunings):
            self.tuned[product] = f"TUNED_{len(self.tuned)}"
        return self.tuned.get(product, "")

    def matrix(self, value: Value, turned: bool = False) -> Matrix:
        """Return the packed form of a weight of two dims, or of three: one matrix for each index of the first."""
        key = value.name, turned
        if key not in self.matrices:
            shape = fixed_shape(value.type)
            if not 2 <= len(shape) <= 3:
                raise InputError(f"target tvm: weight '{value.name}' ({value.type}) is no matrix")
            panels = panels_of(value.type, turned)
            n, k = reversed(shape[-2:]) if turned else shape[-2:]
            count = shape[0] if len(shape) == 3 else 1
            self.matrices[key] = Matrix(value.name, turned, count, n, k, panels, self._count)
            self._count += count
        return self.matrices[key]

    def vector(self, value: Value) -> str:
        """Return the C expression of the address of a weight as plain numbers."""
        if value.name not in self.vectors:
            dtype = "f32" if value.type.is_float else value.type.dtype.value
            size = 1
            for d in fixed_shape(value.type):
                size *= d
            self.vectors[value.name] = Vector(value.name, dtype, size)
        return f"VECTOR({self.vectors[value.name].name})"

    @property
    def count(self) -> int:
        """Entries of the table of matrices."""
        return self._count

    def layout(self) -> Layout:
        """Return where everything lies: vectors first, then every matrix from a page of its own."""
        if self._layout is not None:
            return self._layout
        at = HEADER
        vectors: dict[str, int] = {}
        for vector in self.vectors.values():
            vectors[vector.weight] = at
            at = _up(at + vector.count * _VECTOR_BYTES.get(vector.dtype, 1), ALIGNMENT)
        places: dict[tuple[str, bool], tuple[Place, ...]] = {}
        for key, matrix in self.matrices.items():
            at = _up(at, PAGE)
            sizes = {part: _up(size, ALIGNMENT) for part, size in matrix.sizes().items()}
            begins: dict[str, int] = {}
            for part, size in sizes.items():
                begins[part] = at
                at += size * matrix.count
            places[key] = tuple(
                Place(**{part: begin + i * sizes[part] for part, begin in begins.items()})
                for i in range(matrix.count)
            )
        return Layout(vectors, places, _up(at, PAGE))

    def entries(self) -> Iterator[tuple[Matrix, Place]]:
        """Yield the table of matrices in order."""
        places = self.layout().matrices
        for key, matrix in self.matrices.items():
            for place in places[key]:
                yield matrix, place


def _described(root: Expression, places: Mapping[View, int]) -> str:
    """Return a text that is the same for loops that compute the same from views of the same strides."""
    if isinstance(root, Leaf):
        return f"a{places[root.view]}:{root.dtype}{root.shape}{root.view.strides}"
    args = ", ".join(_described(a, places) for a in root.args)
    return f"{root.op}({args}){sorted(root.attrs.items())}{root.dtype}{root.shape}"


def _up(size: int, to: int) -> int:
    return -(-size // to) * to
