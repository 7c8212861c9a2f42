"""The files a spec names, as far as checking it needs them."""

from __future__ import annotations

import json
from pathlib import Path

from omnic.errors import InputError

__all__ = ["tokenizer_size"]


def tokenizer_size(path: Path) -> int:
    """Return the number of tokens of a ``tokenizer.json``: its highest id plus one.

    Raises:
        InputError: the file is no tokenizer of that format.
    """
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"the tokenizer {path.name} cannot be read: {error}") from None
    ids = _ids(data)
    if not ids:
        hint = "omnic reads the tokenizer.json of the tokenizers library"
        raise InputError(f"the tokenizer {path.name} has no vocabulary", hint)
    return max(ids) + 1


def _ids(data: object) -> list[int]:
    if not isinstance(data, dict):
        return []
    model, added = data.get("model"), data.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    if isinstance(vocab, list):  # unigram: pairs of token and score, ids by position
        ids = list(range(len(vocab)))
    if isinstance(added, list):
        ids += [entry.get("id") for entry in added if isinstance(entry, dict)]
    return [number for number in ids if isinstance(number, int) and number >= 0]
