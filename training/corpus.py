"""Text to train on: the Python standard library of the running interpreter, or a folder of text.

Every machine that runs omnic has the standard library (PSF licence), so a training needs no
download.  Whatever the source, no text of the held-out modules reaches a corpus: files are dropped
by path and shared blocks of lines are cut out (:mod:`omnic.training.heldout`).
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from omnic.errors import InputError
from omnic.training.heldout import Heldout, heldout

__all__ = ["Corpus", "Document", "load_corpus"]

# Folders whose text is no prose and no code a model learns from: byte tables, generated help.
_TABLES = frozenset({"encodings", "pydoc_data"})
_TESTS = frozenset({"test", "tests", "idle_test"})
_FOREIGN = frozenset({"site-packages", "dist-packages", "__pycache__", ".git", ".venv"})
_TEXT_SUFFIXES = frozenset({".py", ".txt", ".md", ".rst", ".c", ".h", ".rs", ".js", ".ts", ".toml", ".yaml"})


@dataclass(frozen=True)
class Document:
    """One text and the path it has inside its corpus (``/`` separated)."""

    path: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order.

    Attributes:
        source: what the user asked for (``stdlib``, ``stdlib+tests`` or a folder).
        documents: sorted by path; a file cut at a held-out block is several documents.
        sha256: over every path and text, so two runs can be told to have seen the same text.
        size: UTF-8 bytes of all documents.
        dropped: files left out because their path or their encoding says so.
        cut: bytes removed because the held-out text has the same block of lines.
    """

    source: str
    documents: tuple[Document, ...]
    sha256: str
    size: int
    dropped: int
    cut: int


def load_corpus(source: str = "stdlib") -> Corpus:
    """Read a corpus.

    Args:
        source: ``stdlib`` (the running interpreter's library without its tests), ``stdlib+tests``,
            or the path of a folder of text files.

    Raises:
        InputError: the folder does not exist or holds no text.
    """
    if source in ("stdlib", "stdlib+tests"):
        root = Path(sysconfig.get_paths()["stdlib"])
        skip = _FOREIGN | _TABLES | (frozenset() if source.endswith("+tests") else _TESTS)
        suffixes = frozenset({".py"})
    else:
        root = Path(source)
        if not root.is_dir():
            raise InputError(
                f"corpus {source!r} is not a folder", "give a folder of text files, or 'stdlib' or 'stdlib+tests'"
            )
        skip, suffixes = _FOREIGN, _TEXT_SUFFIXES
    return _read(source, root, skip, suffixes, heldout())


def _read(source: str, root: Path, skip: frozenset[str], suffixes: frozenset[str], held: Heldout) -> Corpus:
    documents: list[Document] = []
    dropped = cut = 0
    for path in _files(root, skip, suffixes):
        name = path.relative_to(root).as_posix()
        # The build's own settings differ from machine to machine and would change the hash.
        if name.startswith("_sysconfigdata") or held.owns(name):
            dropped += 1
            continue
        text = _decode(path.read_bytes())
        if text is None:
            dropped += 1
            continue
        pieces = held.without_shared_blocks(text)
        cut += len(text.encode()) - sum(len(p.encode()) for p in pieces)
        documents.extend(Document(name, piece) for piece in pieces if piece.strip())
    if not documents:
        raise InputError(f"corpus {source!r} holds no text", f"looked for {', '.join(sorted(suffixes))} under {root}")
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.path.encode(), document.text.encode()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    size = sum(len(d.text.encode()) for d in documents)
    return Corpus(source, tuple(documents), digest.hexdigest(), size, dropped, cut)


def _files(root: Path, skip: frozenset[str], suffixes: frozenset[str]) -> list[Path]:
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in skip]
        found += [Path(folder, f) for f in files if Path(f).suffix in suffixes]
    return sorted(found, key=lambda p: p.relative_to(root).as_posix())


def _decode(data: bytes) -> str | None:
    """Return the text, or None for a file that is not UTF-8 (the library's tests have some)."""
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None
