"""The held-out text: what it is, how it was chosen, and how it stays out of every corpus.

The modules were chosen by the sha1 of their path (:func:`choose`) from one CPython's library and
their text is committed (``specs/data/heldout/``), so a figure means the same on every machine.
Other Python versions carry the same modules, a little changed: a corpus therefore drops them by
path and also loses every run of whole lines of at least :data:`BLOCK` bytes that the held-out text
has too.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

from omnic.errors import BundleError

__all__ = ["BLOCK", "Heldout", "Module", "choose", "heldout", "line_blocks"]

BLOCK = 200
"""Shared runs of whole lines are removed from this many UTF-8 bytes on."""

_FOLDERS_NOT_CHOSEN = frozenset({"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages"})


@dataclass(frozen=True)
class Module:
    """One held-out module: its path in the library, its bytes, its sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Heldout:
    """The held-out modules and their text.

    Attributes:
        modules: in the order in which their texts follow each other.
        text: all modules joined without separators; the file that bits per byte are measured on.
    """

    modules: tuple[Module, ...]
    text: str
    _blocks: frozenset[bytes] = field(repr=False, default=frozenset())

    @property
    def size(self) -> int:
        """UTF-8 bytes of the text: the denominator of bits per byte."""
        return len(self.text.encode())

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def texts(self) -> tuple[str, ...]:
        """Return the modules' texts, one by one."""
        data, parts, at = self.text.encode(), [], 0
        for module in self.modules:
            parts.append(data[at : at + module.size].decode())
            at += module.size
        return tuple(parts)

    def owns(self, path: str) -> bool:
        """Tell whether ``path`` (inside a library, or ending like one) is a held-out module."""
        return any(path == m.path or path.endswith("/" + m.path) for m in self.modules)

    def without_shared_blocks(self, text: str) -> tuple[str, ...]:
        """Return ``text`` without the line blocks it shares, split where one was cut out."""
        lines = text.splitlines(keepends=True)
        drop = [False] * len(lines)
        for first, last, digest in line_blocks(lines):
            if digest in self._blocks:
                drop[first:last] = [True] * (last - first)
        if not any(drop):
            return (text,)
        pieces, piece = [], []
        for line, dropped in zip(lines, drop, strict=True):
            if not dropped:
                piece.append(line)
            elif piece:
                pieces.append("".join(piece))
                piece = []
        if piece:
            pieces.append("".join(piece))
        return tuple(pieces)


def line_blocks(lines: Sequence[str]) -> list[tuple[int, int, bytes]]:
    """Return the shortest block of at least :data:`BLOCK` bytes from each line on.

    Two texts share a run of whole lines of at least that size exactly when they share one of these
    blocks: the block is a function of the run's first lines alone.

    Returns:
        ``(first, last, digest)`` with ``lines[first:last]`` the block.
    """
    data = [line.encode() for line in lines]
    found: list[tuple[int, int, bytes]] = []
    last = size = 0
    for first, line in enumerate(data):
        while size < BLOCK and last < len(data):
            size += len(data[last])
            last += 1
        if size < BLOCK:
            break
        found.append((first, last, hashlib.blake2b(b"".join(data[first:last]), digest_size=16).digest()))
        size -= len(line)
    return found


def choose(sizes: dict[str, int], budget: int) -> tuple[str, ...]:
    """Choose held-out modules: lowest sha1 of the path first, while they fit.

    Args:
        sizes: bytes by module path, ``/`` separated, relative to the library's root.
        budget: bytes in all; a module that no longer fits is passed over, and the choice ends when
            97 % of the budget is used.  Modules under 1 kB or over a sixteenth of the budget are not
            candidates: the first say little, and no single module should make the measure.
    """
    chosen, used = [], 0
    for path in sorted(sizes, key=lambda p: hashlib.sha1(p.encode()).hexdigest()):
        parts = path.split("/")
        if _FOLDERS_NOT_CHOSEN.intersection(parts) or path.startswith("_sysconfigdata"):
            continue
        if not 1024 <= sizes[path] <= budget // 16 or used + sizes[path] > budget:
            continue
        chosen.append(path)
        used += sizes[path]
        if used >= 0.97 * budget:
            break
    return tuple(chosen)


@functools.cache
def heldout() -> Heldout:
    """Return the committed held-out text.

    Raises:
        BundleError: the text is not the one its list describes (a damaged installation).
    """
    folder = resources.files("omnic.specs.data") / "heldout"
    modules = []
    for line in (folder / "modules.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            sha256, size, path = line.split()
            modules.append(Module(path, int(size), sha256))
    data = (folder / "python.txt").read_bytes()
    blocks, at = set(), 0
    for module in modules:
        part = data[at : at + module.size]
        if hashlib.sha256(part).hexdigest() != module.sha256:
            raise BundleError(
                f"held-out module {module.path} in {folder}/python.txt is not the text that modules.txt lists",
                "the installation is damaged: install omnic again",
            )
        blocks.update(digest for _, _, digest in line_blocks(part.decode().splitlines(keepends=True)))
        at += module.size
    if at != len(data):
        raise BundleError(f"{folder}/python.txt has {len(data) - at} bytes that modules.txt does not list")
    return Heldout(tuple(modules), data.decode(), frozenset(blocks))
