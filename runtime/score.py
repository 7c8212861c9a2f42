"""Bits per byte of a text under a session: how well a compiled model predicts it."""

from __future__ import annotations

import lzma
from collections.abc import Callable

import numpy as np

from omnic.errors import InputError
from omnic.runtime.session import Session
from omnic.runtime.tokenizer import Tokenizer

__all__ = ["score_text", "windows", "xz_bits_per_byte"]


def windows(count: int, length: int = 256, stride: int = 128) -> list[tuple[int, int, int]]:
    """Cut ``count`` predictions into overlapping windows that score each exactly once.

    Returns:
        ``(start, end, first)``: inputs ``start..end-1`` predict ids ``start+1..end``, of which those
        predicted from input ``first`` on are scored.
    """
    cut, start, scored = list[tuple[int, int, int]](), 0, 0
    while scored < count:
        end = min(start + length, count)
        cut.append((start, end, scored))
        scored, start = end, start + stride
    return cut


def score_text(
    session: Session,
    tokenizer: Tokenizer,
    text: str,
    *,
    length: int = 256,
    stride: int = 128,
    batch: int = 8,
    progress: Callable[[float], None] | None = None,
) -> float:
    """Return bits per byte: the sum of -log2 p over all tokens / the UTF-8 bytes of ``text``.

    Windows of ``length`` tokens with ``stride``, each token scored once; one token that starts a text
    goes first and is not scored.  The session is reset.

    Raises:
        InputError: the text is empty, or a window is longer than the session takes in one call.
    """
    ids = np.asarray(tokenizer.encode(text, bos=True), np.int64)
    if len(ids) < 2:
        raise InputError("bits per byte of an empty text do not exist")
    if length > min(session.info.chunk, session.info.capacity):
        raise InputError(
            f"windows of {length} tokens; the session takes {min(session.info.chunk, session.info.capacity)} a call"
        )
    cut, nats, done = windows(len(ids) - 1, length, stride), 0.0, 0
    same = [w for w in cut if w[1] - w[0] == length]
    groups = [same[i : i + batch] for i in range(0, len(same), batch)] + [[w] for w in cut if w[1] - w[0] != length]
    for group in groups:
        session.reset(len(group))
        inputs = np.stack([ids[start:end] for start, end, _ in group])
        rows = min(first - start for start, _, first in group)
        wanted = np.arange(rows, inputs.shape[1])[None].repeat(len(group), 0)
        logits = np.asarray(session.forward(inputs, rows=wanted).logits, np.float32)
        for row, (start, end, first) in enumerate(group):
            nats -= _log_likelihood(logits[row, first - start - rows :], ids[first + 1 : end + 1])
        done += len(group)
        if progress is not None:
            progress(done / len(cut))
    return nats / np.log(2) / len(text.encode())


def _log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Sum of log p of ``targets`` [N] under ``logits`` [N, V], in f64."""
    top = logits.max(-1, keepdims=True)
    norm = np.log(np.exp(logits - top).sum(-1, dtype=np.float64)) + top[:, 0]
    return float((logits[np.arange(len(targets)), targets] - norm).sum())


def xz_bits_per_byte(text: str) -> float:
    """Return the bits per byte of ``xz -9e`` on ``text`` alone: a compressor's answer to the same question."""
    data = text.encode()
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)
