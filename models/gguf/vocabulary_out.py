"""A ``tokenizer.json`` as the vocabulary of a GGUF file: only where llama.cpp gives the same ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from omnic.errors import InputError
from omnic.models.gguf.splits import name_of
from omnic.models.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    PREFIX,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER,
    merges_of,
)
from omnic.models.gguf.writer import Typed

__all__ = ["vocabulary_keys"]

_WITHOUT = "write the model alone, for callers that give it token ids: --without-tokenizer"


def vocabulary_keys(
    text: str, named: Mapping[str, str], stops: Sequence[int], templates: Mapping[str, str], size: int
) -> dict[str, Any]:
    """Return the metadata of a tokenizer.

    Args:
        text: of ``tokenizer.json``.
        named: special tokens by their role (``bos_token``, ...).
        stops: ids that end a generation.
        templates: chat templates by name.
        size: rows of the embedding; ids without a token get one that is marked unused.

    Raises:
        InputError: llama.cpp has no such tokenizer.
    """
    fields = json.loads(text)
    model, added = fields["model"], fields.get("added_tokens") or []
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise InputError(f"omnic writes no vocabulary of the kind {model.get('type')} into GGUF", _WITHOUT)
    ids = model["vocab"] | {token["content"]: token["id"] for token in added}
    tokens, types = _tokens(ids, added, size, model.get("unk_token"))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    found: dict[str, Any] = {}
    if model.get("byte_fallback"):
        found |= _pieces(fields, tokens, types, merges, ids)
    else:
        found |= _byte_level(fields, model, merges)
    found |= {PREFIX + "tokens": tokens, PREFIX + "token_type": Typed("i", types)}
    roles = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
             "pad_token": "padding_token_id"}  # fmt: skip
    found |= {PREFIX + key: ids[named[role]] for role, key in roles.items() if named.get(role) in ids}
    others = [stop for stop in stops if stop != found.get(PREFIX + "eos_token_id")]
    found |= {PREFIX + key: stop for key, stop in zip(("eot_token_id", "eom_token_id"), others, strict=False)}
    if len(others) > 2:
        raise InputError(f"{len(others) + 1} tokens end a generation; GGUF names three", _WITHOUT)
    found |= _frame(fields.get("post_processor"), named)
    for name, source in templates.items():
        found["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = source
    return found


def _tokens(ids: Mapping[str, int], added: Sequence[Mapping[str, Any]], size: int,
            unknown: str | None) -> tuple[list[str], list[int]]:
    if max(ids.values(), default=-1) >= size:
        raise InputError(f"the tokenizer has ids up to {max(ids.values())}, the embedding {size} rows")
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, i in ids.items():
        tokens[i], types[i] = token, NORMAL
    for token in added:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            what = f"the added token {token['content']!r} takes the spaces beside it, or is a word of its own"
            raise InputError(f"{what}: llama.cpp has none of that kind", _WITHOUT)
        types[token["id"]] = CONTROL if token.get("special") else USER
    if unknown is not None and unknown in ids:
        types[ids[unknown]] = UNKNOWN
    return tokens, types


def _byte_level(
    fields: Mapping[str, Any], model: Mapping[str, Any], merges: Sequence[tuple[str, ...]]
) -> dict[str, Any]:
    normalizer = fields.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}) or (fields.get("decoder") or {}).get("type") != "ByteLevel":
        what = "the tokenizer changes text before it cuts it, or is not byte-level"
        raise InputError(f"{what}: llama.cpp has none of that kind", _WITHOUT)
    name = name_of(fields.get("pre_tokenizer"), model.get("ignore_merges") is True)
    if name is None:
        raise InputError("the tokenizer cuts text in a way that llama.cpp has no name for", _WITHOUT)
    return {PREFIX + "model": "gpt2", PREFIX + "pre": name, PREFIX + "merges": [" ".join(merge) for merge in merges]}


def _pieces(fields: Mapping[str, Any], tokens: Sequence[str], types: list[int], merges: Sequence[tuple[str, ...]],
            ids: Mapping[str, int]) -> dict[str, Any]:
    """Return a vocabulary of SentencePiece: scores whose merges are the tokenizer's own."""
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    missing = next((token for token in bytes_of if token not in ids), None)
    if missing is not None:
        raise InputError(f"the tokenizer has no token {missing} for a byte", _WITHOUT)
    for token in bytes_of:
        types[ids[token]] = BYTE
    first: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        first.setdefault("".join(merge), rank)
    scores = [float(-first.get(token, len(merges))) for token in tokens]
    joined = {token: scores[i] for i, token in enumerate(tokens) if types[i] not in (BYTE, CONTROL, UNKNOWN)}
    made = merges_of(joined, ids)
    order = [first["".join(merge)] for merge in merges]
    if set(made) != set(merges) or order != sorted(order):
        raise InputError("the tokenizer's merges are not those of a SentencePiece vocabulary: llama.cpp would join "
                         "other pieces", _WITHOUT)
    return {PREFIX + "model": "llama", PREFIX + "pre": "default", PREFIX + "scores": Typed("f", scores),
            PREFIX + "add_space_prefix": _space(fields)}


def _space(fields: Mapping[str, Any]) -> bool:
    """Return whether a text gets a space before it.

    Raises:
        InputError: spaces are treated in another way than llama.cpp's two.
    """
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
    words = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    normalizer, cut = fields.get("normalizer"), fields.get("pre_tokenizer")
    if normalizer == prepend and cut is None:
        return True
    if normalizer == replace and cut in (None, words):
        return False
    raise InputError("the tokenizer treats spaces in a way that llama.cpp does not", _WITHOUT)


def _frame(post: Mapping[str, Any] | None, named: Mapping[str, str]) -> dict[str, Any]:
    """Return whether the first and the last token stand around a text."""
    parts = (post or {}).get("processors", [post] if post else [])
    templates = [part for part in parts if part["type"] == "TemplateProcessing"]
    steps = templates[0]["single"] if templates else [{"Sequence": {"id": "A"}}]
    around = [step["SpecialToken"]["id"] if "SpecialToken" in step else None for step in steps]
    at = around.index(None)
    before, behind = around[:at], around[at + 1 :]
    others = [part["type"] for part in parts if part["type"] not in ("TemplateProcessing", "ByteLevel")]
    if others or before not in ([], [named.get("bos_token")]) or behind not in ([], [named.get("eos_token")]):
        raise InputError("the tokenizer puts other tokens around a text than its first and its last", _WITHOUT)
    return {PREFIX + "add_bos_token": bool(before), PREFIX + "add_eos_token": bool(behind)}
