r"""How llama.cpp cuts text before it merges bytes, by the name in ``tokenizer.ggml.pre``.

Each is a list of steps applied one after the other: a pattern whose matches become pieces of their own, ``digits``
(every digit alone) or ``gpt2`` (the pattern of GPT-2, which ``tokenizers`` has built in).  The patterns are those of
the models' published ``tokenizer.json``; llama.cpp's own spell the same out for an engine without inline flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SPLITS", "SplitRule", "name_of", "pre_tokenizer"]

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA3 = rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}"
QWEN2 = rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_SIGNS}"
TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_PATHS}"
GPT4O = rf"{_CASED[0]}{_ENDINGS}?|{_CASED[1]}{_ENDINGS}?|\p{{N}}{{1,3}}|{_PATHS}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class SplitRule:
    """One way to cut.

    Attributes:
        steps: in their order.
        whole: a piece that is an entry of the vocabulary is that token, whatever the merges (``ignore_merges``).
        bos: a text begins with the first token unless the file says otherwise.
    """

    steps: tuple[str, ...]
    whole: bool = False
    bos: bool = False


_GPT2, _DIGITS = SplitRule(("gpt2",)), SplitRule(("digits", "gpt2"))
SPLITS: Mapping[str, SplitRule] = {
    "gpt-2": _GPT2,
    **dict.fromkeys(("mpt", "olmo", "jais", "phi-2"), _GPT2),
    "starcoder": _DIGITS,
    **dict.fromkeys(("smollm", "refact", "command-r", "codeshell", "exaone"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), SplitRule((LLAMA3,), whole=True, bos=True)),
    **dict.fromkeys(("smaug-bpe", "dbrx"), SplitRule((LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), SplitRule((QWEN2,))),
    "tekken": SplitRule((TEKKEN,), whole=True, bos=True),
    "gpt-4o": SplitRule((GPT4O,)),
    "default": SplitRule((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}
"""What omnic knows, by name; of several names for one the first is written."""


def pre_tokenizer(rule: SplitRule) -> dict[str, Any]:
    """Return the steps as ``pre_tokenizer`` of a tokenizer.json."""
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": rule.steps[-1] == "gpt2"}
    parts = [_step(step) for step in rule.steps if step != "gpt2"]
    return {"type": "Sequence", "pretokenizers": [*parts, last]} if parts else last


def _step(step: str) -> dict[str, Any]:
    if step == "digits":
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}


def name_of(fields: Mapping[str, Any] | None, whole: bool) -> str | None:
    """Return the name of the rule that a ``pre_tokenizer`` is, None for one that llama.cpp does not have.

    Args:
        fields: the pre_tokenizer of a tokenizer.json.
        whole: its model's ``ignore_merges``.
    """
    steps = _steps(fields or {})
    return next((name for name, rule in SPLITS.items() if rule.steps == steps and rule.whole == whole), None)


def _steps(fields: Mapping[str, Any]) -> tuple[str, ...] | None:
    parts = fields.get("pretokenizers", [fields])
    found: list[str] = []
    for part in parts:
        pattern = part.get("pattern") or {}
        match part.get("type"):
            case "Split" if part.get("behavior") == "Isolated" and not part.get("invert") and "Regex" in pattern:
                found.append(str(pattern["Regex"]))
            case "Digits" if part.get("individual_digits"):
                found.append("digits")
            case "ByteLevel" if not part.get("add_prefix_space"):
                found += ["gpt2"] if part.get("use_regex", True) else []
            case _:
                return None
    return tuple(found)
