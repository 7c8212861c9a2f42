"""Where the weights lie in a program's bytes, and reading them back from there.

ExecuTorch and its delegates put the numbers of a weight into the file as they are, at a place of their own choosing.
The table holds the places, found by the numbers themselves; what is read back is what the runtime reads.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import BundleError, InternalError

__all__ = ["Held", "ProgramSource", "find_weights"]

_WORD = 4
_PIECE = 16 << 20
Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Held:
    """A part of a weight as a program is expected to hold it.

    Attributes:
        array: its numbers there.
        form: how the canonical part is made of it (:func:`find_weights`).
        shape: of the canonical part.
        dtype: of the canonical part.
    """

    array: NDArray[Any]
    form: str
    shape: tuple[int, ...]
    dtype: str


def find_weights(
    program: Path, weights: Mapping[str, Held], beside: Path | None = None, *, all_of_them: bool = True
) -> dict[str, dict[str, Any]]:
    """Return part of a weight -> where and how it lies in which file, its shape and dtype in the canonical packing.

    ``form`` is ``as it is``, ``number`` (another float type), ``bf16`` (the upper half of an f32)
    or ``turned`` (the last two dims exchanged).

    Args:
        program: the program.
        weights: what it is expected to hold.
        beside: a second file of weights.
        all_of_them: raise where one is in neither; else it is left out.

    Raises:
        InternalError: one is in neither file.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in (program,) if beside is None else (program, beside):
        rest = {n: w for n, w in weights.items() if n not in found}
        found |= {n: {"file": path.name, **entry} for n, entry in _found_in(path, rest).items()}
    lost = [name for name in weights if name not in found]
    if lost and all_of_them:
        raise InternalError(f"the program does not hold {', '.join(lost[:4])} as the IR has it")
    return found


def _found_in(path: Path, weights: Mapping[str, Held]) -> dict[str, dict[str, Any]]:
    """Return the entries of those weights that are in one file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        places = _places(data, {name: np.ascontiguousarray(w.array) for name, w in weights.items()})
        missing = {name: w for name, w in weights.items() if name not in places}
        forms = {n: "turned" if n in missing else w.form for n, w in weights.items()}
        turned = {n: np.ascontiguousarray(np.swapaxes(w.array, -1, -2)) for n, w in missing.items() if w.array.ndim > 1}
        places |= _places(data, turned)
    return {
        name: {
            "at": places[name],
            "form": forms[name],
            "held": [*w.array.shape],
            "dtype": str(w.array.dtype),
            "shape": [*w.shape],
            "wanted": w.dtype,
        }
        for name, w in weights.items()
        if name in places
    }


def _places(data: mmap.mmap, arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Return where the bytes of each array stand in ``data``, for those that do."""
    found: dict[str, int] = {}
    heads: dict[int, list[str]] = {}
    for name, array in arrays.items():
        if array.nbytes % _WORD or not array.nbytes:
            at = data.find(array.tobytes())
            if at >= 0:
                found[name] = at
            continue
        words = array.reshape(-1).view(np.uint8)[: 1 << 12].view(np.uint32)
        # A word that is rare in the array tells its place better than the first, which may be 0 or 1.0.
        heads.setdefault(int(words[0]), []).append(name)
    keys = np.array(sorted(heads), np.uint32)
    usable = len(data) // _WORD * _WORD
    for begin in range(0, usable, _PIECE):
        part = np.frombuffer(data, np.uint32, (min(begin + _PIECE, usable) - begin) // _WORD, begin)
        for index in np.flatnonzero(np.isin(part, keys)).tolist():
            at = begin + index * _WORD
            for name in heads.get(int(part[index]), ()):
                if name not in found and _stands_at(data, at, arrays[name]):
                    found[name] = at
        del part
    return found


def _stands_at(data: mmap.mmap, at: int, array: NDArray[Any]) -> bool:
    flat = array.reshape(-1).view(np.uint8)
    head = min(len(flat), 256)
    return data[at : at + head] == flat[:head].tobytes() and data[at : at + len(flat)] == flat.tobytes()


class ProgramSource:
    """The weights of a program, read from its own bytes.

    Args:
        program: the file.
        table: what :func:`find_weights` found.
    """

    def __init__(self, program: Path, table: Path) -> None:
        _there(program)
        _there(table)
        self._program = program
        self._table: dict[str, dict[str, Any]] = json.loads(table.read_text(encoding="utf-8"))
        self._files = {name: program.parent / name for name in {str(e["file"]) for e in self._table.values()}}
        for path in self._files.values():
            _there(path)

    @property
    def description(self) -> str:
        """What to call the source in an error."""
        return str(self._program)

    def names(self) -> tuple[str, ...]:
        """Return the names of the weights."""
        return tuple(self._table)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a part."""
        return tuple(self._table[name]["shape"])

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """Return what of a part is inside ``box``."""
        entry = self._table[name]
        held, form = list(entry["held"]), entry["form"]
        if form == "turned":
            held[-2:] = held[:-3:-1]
        # Byte by byte, since a place in the file need not be aligned.
        count = int(np.prod(held, dtype=np.int64)) * np.dtype(entry["dtype"]).itemsize
        raw = np.memmap(self._files[entry["file"]], np.uint8, "r", entry["at"], (count,))
        whole = raw.view(entry["dtype"]).reshape(held)
        if form == "turned":
            whole = np.swapaxes(whole, -1, -2)
        part = np.array(whole.reshape(entry["shape"])[tuple(slice(a, b) for a, b in box)])
        if form == "bf16":
            part = (part.astype(np.uint32) << 16).view(np.float32)
        return part.astype(entry["wanted"], copy=False)


def _there(path: Path) -> None:
    """Raise when a file of the bundle is not there."""
    if not path.is_file():
        raise BundleError(
            f"{path.parent}: the bundle has no file '{path.name}'", "copy the bundle again, or compile it again"
        )
