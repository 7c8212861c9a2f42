"""The text that calibrating passes look at: windows of the training corpus, or of a file the user gives.

Nothing of the held-out modules is ever in it, whatever the source: their files are left out and blocks of lines
shared with them are cut (:mod:`omnic.training.heldout`), so that fidelity is measured on text no pass has seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from omnic.errors import InputError
from omnic.passes.context import Calibration
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec

if TYPE_CHECKING:
    from omnic.compiler.imported import Imported

__all__ = ["LENGTH", "WINDOWS", "calibration_windows", "load_calibration", "save_calibration"]

#: windows, and tokens of each: what GPTQ's authors calibrate on (128 segments), shorter as our models' contexts are
WINDOWS, LENGTH = 128, 256

# The windows are spread over this many times their own number of tokens.
_SPREAD = 4
_SAVED = ".safetensors"


def calibration_windows(
    spec: Spec | Imported,
    tokenizer: Tokenizer | None,
    source: Path | None = None,
    windows: int = WINDOWS,
    length: int = LENGTH,
) -> Calibration:
    """Return calibration text for the model of ``spec``.

    Args:
        spec: the model.
        tokenizer: its tokenizer; only saved windows need none.
        source: a text file, a folder of text, or windows that :func:`save_calibration` wrote; the training corpus
            (the standard library of this Python, without the held-out modules) when None.
        windows: how many at most.
        length: tokens of each; at most the tokens the model's states hold.

    Raises:
        InputError: no tokenizer, a file that is missing, too short, or of another tokenizer or vocabulary.
    """
    if windows < 1 or length < 2:
        raise InputError(f"calibration wants 1 window or more of 2 tokens or more, not {windows} of {length}")
    length = min(length, spec.capacity)
    if source is not None and source.suffix == _SAVED:
        return load_calibration(source, spec, tokenizer)
    if tokenizer is None:
        raise InputError(
            f"{spec.model} has no tokenizer to read calibration text with",
            f"set tokenizer: in the spec, or give --calibration FILE{_SAVED} of token windows",
        )
    texts, about = _texts(source)
    ids = _ids(texts, tokenizer, _SPREAD * windows * length)
    count = min(windows, len(ids) // length)
    if count == 0:
        raise InputError(
            f"the calibration text ({about}) has {len(ids)} tokens, one window has {length}", "give more text"
        )
    # Evenly over the text, so that many documents are in it, starts and middles alike.
    starts = np.linspace(0, len(ids) - length, count).astype(np.int64)
    return Calibration(ids[starts[:, None] + np.arange(length)], f"{count} windows of {length} tokens of {about}")


def _texts(source: Path | None) -> tuple[Iterable[str], str]:
    """Return the documents of ``source`` in a fixed shuffled order, and what they are."""
    from omnic.training.corpus import load_corpus
    from omnic.training.heldout import heldout

    if source is not None and source.is_file():
        try:
            text = source.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{source} is not UTF-8 text (byte {error.start})", f"give text, a folder of it, or a {_SAVED} file"
            ) from None
        return heldout().without_shared_blocks(text.replace("\r\n", "\n")), source.name
    if source is not None and not source.is_dir():
        raise InputError(f"calibration file {source} does not exist", "give --calibration FILE, or leave it out")
    corpus = load_corpus("stdlib" if source is None else str(source))
    order = np.random.default_rng(0).permutation(len(corpus.documents))
    name = "the training corpus (stdlib)" if source is None else source.name
    return (corpus.documents[i].text for i in order), f"{name}, sha256 {corpus.sha256[:12]}"


def _ids(texts: Iterable[str], tokenizer: Tokenizer, wanted: int) -> npt.NDArray[np.int64]:
    """Return the first ``wanted`` ids of ``texts``, each behind the token that starts a text, as in training."""

    def documents() -> Iterator[int]:
        for text in texts:
            if tokenizer.bos is not None:
                yield tokenizer.bos
            yield from tokenizer.encode(text)

    return np.fromiter(itertools.islice(documents(), wanted), np.int64)


def save_calibration(calibration: Calibration, path: Path | str, tokenizer: Tokenizer | None, vocab: int) -> None:
    """Write token windows with what they are and whose they are."""
    about = {
        "omnic": "calibration",
        "text": calibration.text,
        "tokenizer": tokenizer.sha256 if tokenizer else "",
        "vocab": str(vocab),
    }
    save_file({"tokens": np.ascontiguousarray(calibration.tokens, np.int64)}, str(path), metadata=about)


def load_calibration(path: Path, spec: Spec | Imported, tokenizer: Tokenizer | None) -> Calibration:
    """Read windows that :func:`save_calibration` wrote.

    Raises:
        InputError: the file is missing or something else, or was made with another tokenizer or for another
            vocabulary.
    """
    if not path.is_file():
        raise InputError(f"calibration file {path} does not exist", "give --calibration FILE, or leave it out")
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = file.metadata() or {}
            names = list(file.keys())
            tokens = file.get_tensor("tokens") if "tokens" in names else None
    except SafetensorError as error:
        raise InputError(f"{path} is not a calibration file: {error}", "write it again, or give text") from error
    if about.get("omnic") != "calibration" or tokens is None or tokens.ndim != 2 or tokens.dtype != np.int64:
        raise InputError(f"{path} is not a calibration file", "it holds i64 windows called 'tokens'; or give text")
    made = about.get("tokenizer", "")
    ours = tokenizer.sha256 if tokenizer else ""
    if made != ours:
        raise InputError(
            f"{path} was tokenised with {_named(made)}, {spec.model} has {_named(ours)}",
            "calibrate on text of this model's own tokenizer: give the text itself",
        )
    top = int(tokens.max(initial=0))
    if about.get("vocab") != str(spec.vocab.size) or top >= spec.vocab.size or tokens.min(initial=0) < 0:
        raise InputError(
            f"{path} is of a model with a vocabulary of {about.get('vocab')} (ids up to {top}), {spec.model} has "
            f"{spec.vocab.size}",
            "calibrate on text for this model",
        )
    if tokens.shape[0] == 0 or not 2 <= tokens.shape[1] <= spec.capacity:
        shape = " x ".join(map(str, tokens.shape))
        raise InputError(f"{path} holds {shape} tokens, {spec.model} takes windows of 2..{spec.capacity}")
    return Calibration(tokens, about.get("text", path.name))


def _named(sha256: str) -> str:
    return f"the tokenizer {sha256[:12]}" if sha256 else "no tokenizer"
