"""Token shards and batches: which tokens a step sees is a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omnic.errors import BundleError, InputError
from omnic.runtime.tokenizer import Tokenizer
from omnic.training.corpus import Corpus
from omnic.training.files import write_json

__all__ = ["Tokens", "pack", "tokenize"]


@dataclass(frozen=True)
class Tokens:
    """A corpus as ids: every document starts with ``bos``, documents follow each other.

    Attributes:
        ids: ``[n]`` unsigned integers (16 bits up to 65536 entries).
        corpus: hash of the text the ids came from.
        tokenizer: hash of the tokenizer.
    """

    ids: np.ndarray
    corpus: str
    tokenizer: str

    def batch(self, seed: int, step: int, windows: int, length: int) -> Tensor:
        """Return the ``windows`` windows of ``length + 1`` tokens of a step, ``i64[windows, length + 1]``.

        Every epoch cuts the text at another offset and shuffles the windows; both come from
        ``(seed, epoch)`` alone, so a resumed run needs no state of the reader.

        Raises:
            InputError: the text is shorter than one batch.
        """
        # A window of every epoch is one offset of up to `length` tokens short of the whole text.
        per_epoch = (len(self.ids) - 1 - length) // length // windows * windows
        if per_epoch < 1:
            raise InputError(
                f"the corpus has {len(self.ids)} tokens, one batch needs {(windows + 1) * length + 1}",
                "use more text, a smaller batch or shorter windows",
            )
        epoch, first = divmod(step * windows, per_epoch)
        offset, order = _epoch_order(seed, epoch, per_epoch, length)
        starts = order[first : first + windows] * length + offset
        picked = self.ids[starts[:, None] + np.arange(length + 1)]
        return torch.from_numpy(picked.astype(np.int64))


_ORDERS: dict[tuple[int, int, int, int], tuple[int, np.ndarray]] = {}


def _epoch_order(seed: int, epoch: int, count: int, length: int) -> tuple[int, np.ndarray]:
    key = (seed, epoch, count, length)
    if key not in _ORDERS:
        _ORDERS.clear()
        random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        _ORDERS[key] = int(random.integers(length)), random.permutation(count)
    return _ORDERS[key]


def pack(documents: Sequence[Sequence[int]], bos: int, size: int) -> np.ndarray:
    """Join documents, each behind ``bos``, into one array of ids below ``size``."""
    total = sum(len(d) + 1 for d in documents)
    packed = np.empty(total, dtype=np.uint16 if size <= 1 << 16 else np.uint32)
    at = 0
    for document in documents:
        packed[at] = bos
        packed[at + 1 : at + 1 + len(document)] = document
        at += len(document) + 1
    return packed


def tokenize(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> Tokens:
    """Return the corpus as ids, from ``folder/tokens.npy`` when it is of this text and tokenizer.

    Raises:
        InputError: the tokenizer has no token that starts a text.
        BundleError: the file is of this text and tokenizer but damaged.
    """
    shard, about = folder / "tokens.npy", folder / "tokens.json"
    if about.exists() and shard.exists():
        known = json.loads(about.read_text("utf-8"))
        if known.get("corpus") == corpus.sha256 and known.get("tokenizer") == tokenizer.sha256:
            if hashlib.sha256(shard.read_bytes()).hexdigest() != known.get("sha256"):
                raise BundleError(f"{shard} is damaged", "delete it; it is made again")
            return Tokens(np.load(shard), corpus.sha256, tokenizer.sha256)
    if tokenizer.bos is None:
        raise InputError("the tokenizer has no token that starts a text", "training separates documents by it")
    ids = pack(tokenizer.encode_batch([d.text for d in corpus.documents]), tokenizer.bos, tokenizer.size)
    partial = folder / "tokens.partial.npy"
    np.save(partial, ids)
    os.replace(partial, shard)
    facts = {
        "corpus": corpus.sha256,
        "tokenizer": tokenizer.sha256,
        "tokens": len(ids),
        "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
    }
    write_json(about, facts)
    return Tokens(ids, corpus.sha256, tokenizer.sha256)
