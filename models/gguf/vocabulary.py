"""The vocabulary in a file's metadata as ``tokenizer.json`` and what lies beside it.

``tokenizer.ggml.model`` says of which kind it is.  ``gpt2`` is a byte-level BPE with its merges; how text is cut first
is named by ``tokenizer.ggml.pre``.  ``llama`` is a BPE of SentencePiece (arXiv:1808.06226) without merges: of two
neighbours the pair whose joined piece has the highest score is merged first, and characters the vocabulary lacks are
bytes.  A tokenizer.json has merges in their order, so they are made of the scores: every cut of a piece into two
pieces, best score first, as ``transformers`` makes them of a SentencePiece file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnic.errors import BundleError, InputError
from omnic.models.gguf.splits import SPLITS, pre_tokenizer

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "UNUSED", "USER", "merges_of", "tokenizer_files",
           "used_tokens"]

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
PREFIX = "tokenizer.ggml."
SPACE = "\u2581"
_NAMED = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
          "pad_token": "padding_token_id"}  # fmt: skip
_OTHER_STOPS = ("eot_token_id", "eom_token_id")
_WITHOUT = "import the model without it: --without-tokenizer"


def tokenizer_files(metadata: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the text of each file that says what the vocabulary does, by its name; none when there is none.

    Raises:
        InputError: a kind of vocabulary, or a way to cut text, that omnic does not know.
        BundleError: the vocabulary is damaged.
    """
    model = metadata.get(PREFIX + "model")
    if model in (None, "none", "no_vocab"):
        return {}
    if model not in ("gpt2", "llama"):
        raise InputError(f"{path}: omnic does not read a vocabulary of the kind '{model}'", _WITHOUT)
    tokens = _list(metadata, "tokens", str, path)
    types = _list(metadata, "token_type", int, path, len(tokens), [NORMAL] * len(tokens))
    used = used_tokens(metadata)
    tokens, types = tokens[:used], types[:used]
    named = _named(metadata, tokens, path)
    types = [_type(kind, i, named) for i, kind in enumerate(types)]
    if len(set(tokens)) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if tokens.index(token) < i)
        raise BundleError(f"{path}: the token {twice!r} occurs twice in {PREFIX}tokens", "convert the model again")
    make = _byte_level if model == "gpt2" else _pieces
    fields, bos = make(metadata, tokens, types, path)
    contents = {key: tokens[i] for key, i in named.items() if key in _NAMED}
    fields |= {"added_tokens": _added(tokens, types), "post_processor": _frame(metadata, named, tokens, bos)}
    order = ("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
             "decoder", "model")
    text = json.dumps({"version": "1.0"} | {key: fields.get(key) for key in order[1:]}, ensure_ascii=False)
    found = {"tokenizer.json": text + "\n",
             "tokenizer_config.json": _json({"tokenizer_class": "PreTrainedTokenizerFast", **contents})}
    stops = sorted({named[key] for key in ("eos_token", *_OTHER_STOPS) if key in named})
    ids = {"bos_token_id": named.get("bos_token"), "eos_token_id": stops}
    found["generation_config.json"] = _json({key: value for key, value in ids.items() if value not in (None, [])})
    return found | _templates(metadata)


def used_tokens(metadata: Mapping[str, Any]) -> int:
    """Return the number of tokens without the fillers at the end (``[PADn]``, unused); 0 for none."""
    tokens, types = metadata.get(PREFIX + "tokens"), metadata.get(PREFIX + "token_type")
    if not isinstance(tokens, list):
        return 0
    count = len(tokens)
    if isinstance(types, list) and len(types) == count:
        while count and types[count - 1] == UNUSED and tokens[count - 1] == f"[PAD{count - 1}]":
            count -= 1
    return count


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in metadata.items():
        room, _, name = key.partition("tokenizer.chat_template")
        if room == "" and key.startswith("tokenizer.chat_template") and isinstance(value, str):
            name = name.lstrip(".")
            found[f"additional_chat_templates/{name}.jinja" if name else "chat_template.jinja"] = value
    return found


# -- parts of the metadata ------------------------------------------------------------------------------


def _list(metadata: Mapping[str, Any], name: str, kind: type, path: Path, size: int | None = None,
          default: list[Any] | None = None) -> list[Any]:
    found = metadata.get(PREFIX + name, default)
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise BundleError(f"{path}: {PREFIX}{name} is no list of {kind.__name__}", "convert the model again")
    if size is not None and len(found) != size:
        raise BundleError(f"{path}: {PREFIX}{name} has {len(found)} entries for {size} tokens",
                          "convert the model again")
    return found


def _named(metadata: Mapping[str, Any], tokens: Sequence[str], path: Path) -> dict[str, int]:
    """Return the ids of tokens with a role: under the role's name and, for those that end a text, under the key."""
    found: dict[str, int] = {}
    for name, key in (*_NAMED.items(), *((key, key) for key in _OTHER_STOPS)):
        identity = metadata.get(PREFIX + key)
        if identity is None or identity == 0xFFFFFFFF:
            continue
        if not isinstance(identity, int) or not 0 <= identity < len(tokens):
            raise BundleError(f"{path}: {PREFIX}{key} is {identity!r}, there are {len(tokens)} tokens",
                              "convert the model again")
        found[name] = identity
    return found


def _type(kind: int, identity: int, named: Mapping[str, int]) -> int:
    """Return a token's type; one with a role is special whatever the list says."""
    return CONTROL if kind == NORMAL and identity in named.values() else kind


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [{"id": i, "content": token, **flags, "special": types[i] != USER}
            for i, token in enumerate(tokens) if types[i] in (UNKNOWN, CONTROL, USER) and token]


def _frame(metadata: Mapping[str, Any], named: Mapping[str, int], tokens: Sequence[str], bos: bool) -> Any:
    """Return the tokens around a text as a post_processor."""
    ends = {"bos_token": metadata.get(PREFIX + "add_bos_token", bos),
            "eos_token": metadata.get(PREFIX + "add_eos_token", False)}
    used = {key: tokens[named[key]] for key, wanted in ends.items() if wanted and key in named}
    if not used:
        return None

    def token(key: str, of: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": used[key], "type_id": of}}] if key in used else []

    def text(which: str, of: int) -> list[dict[str, Any]]:
        return [*token("bos_token", of), {"Sequence": {"id": which, "type_id": of}}, *token("eos_token", of)]

    special = {content: {"id": content, "ids": [named[key]], "tokens": [content]} for key, content in used.items()}
    return {"type": "TemplateProcessing", "single": text("A", 0), "pair": text("A", 0) + text("B", 1),
            "special_tokens": special}


# -- kinds ------------------------------------------------------------------------------------------------


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int],
                path: Path) -> tuple[dict[str, Any], bool]:
    merges = [tuple(merge.split(" ")) for merge in _list(metadata, "merges", str, path)]
    bad = next((merge for merge in merges if len(merge) != 2), None)
    if bad is not None:
        raise BundleError(f"{path}: {PREFIX}merges has the entry {' '.join(bad)!r}, which is no pair",
                          "convert the model again")
    name = metadata.get(PREFIX + "pre", "default")
    if name not in SPLITS:
        raise InputError(f"{path}: omnic does not know how {PREFIX}pre '{name}' cuts text; it knows "
                         f"{', '.join(SPLITS)}", _WITHOUT)
    rule = SPLITS[name]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = _model(tokens, merges) | {"ignore_merges": rule.whole}
    return {"pre_tokenizer": pre_tokenizer(rule), "decoder": level, "model": model}, rule.bos


def _pieces(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int],
            path: Path) -> tuple[dict[str, Any], bool]:
    scores = _list(metadata, "scores", float, path)
    if len(scores) < len(tokens):
        raise BundleError(f"{path}: {PREFIX}scores has {len(scores)} entries for {len(tokens)} tokens",
                          "convert the model again")
    joined = {token: scores[i] for i, token in enumerate(tokens) if types[i] not in (BYTE, CONTROL, UNKNOWN)}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
             {"type": "Fuse"}]
    if metadata.get(PREFIX + "add_space_prefix", True):
        replace = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((token for i, token in enumerate(tokens) if types[i] == UNKNOWN), None)
    model = _model(tokens, merges_of(joined, {token: i for i, token in enumerate(tokens)}))
    model |= {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    return {"normalizer": replace, "decoder": {"type": "Sequence", "decoders": steps}, "model": model}, True


def _model(tokens: Sequence[str], merges: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [list(merge) for merge in merges],
    }  # fmt: skip


def merges_of(scores: Mapping[str, float], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the merges that scores of pieces stand for: every cut of a piece into two pieces, best score first.

    Args:
        scores: of the pieces that merging may make.
        ids: of all pieces.  Of the cuts of one piece that with the longest first part comes first.
    """
    found: list[tuple[float, int, int, int, str, str]] = []
    for piece, score in scores.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in ids and right in ids:
                found.append((-score, -len(left), -len(right), len(found), left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
