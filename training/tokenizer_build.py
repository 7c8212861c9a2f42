r"""Byte-level BPE by ``tokenizers``: the same corpus and size always give the same file.

The pre-tokenizer is written for source code: a line break takes the next line's indentation with
it, so that ``\n`` and eight spaces can be one token; words take the one character before them;
numbers go in pairs of digits.
"""

from __future__ import annotations

from pathlib import Path

from omnic.errors import InputError
from omnic.runtime.tokenizer import Tokenizer
from omnic.training.corpus import Corpus

__all__ = ["SPECIAL_TOKENS", "SPLIT", "build_tokenizer"]

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|mask|>")
"""Ids 0 to 7 of every tokenizer omnic builds, whatever its size."""

SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\n+[ ]*|[ ]+|\s+"


def build_tokenizer(corpus: Corpus, size: int, out: Path) -> Tokenizer:
    """Train a byte-level BPE and write ``tokenizer.json``.

    Args:
        corpus: what to learn the merges from (held-out text is not in it).
        size: entries in all: the special tokens, the 256 bytes and the merges.
        out: the file to write; its folder must exist.

    Raises:
        InputError: ``size`` has no room for the bytes and the special tokens, or the corpus is too
            small for so many merges.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    smallest = 256 + len(SPECIAL_TOKENS)
    if size < smallest:
        raise InputError(
            f"{size} entries have no room for the 256 bytes and {len(SPECIAL_TOKENS)} special tokens",
            f"use at least {smallest}",
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((d.text for d in corpus.documents), trainer=trainer)
    if backend.get_vocab_size() != size:
        raise InputError(
            f"corpus {corpus.source!r} ({corpus.size} bytes) gives only {backend.get_vocab_size()} of {size} tokens",
            "use more text or a smaller vocabulary",
        )
    partial = out.with_name(out.name + ".partial")
    partial.write_text(backend.to_str(pretty=True) + "\n", "utf-8")
    partial.replace(out)
    return Tokenizer.load(out)
