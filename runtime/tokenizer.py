"""Tokenizers: ids from text, text from ids, and text that can be shown while ids still arrive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from omnic.errors import BundleError, InputError
from omnic.runtime.tokenizer_files import TokenizerFiles, backend_of, read_tokenizer_files, size_of_fields

__all__ = ["Stream", "Tokenizer"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4
"""Bytes of a UTF-8 character, so the most tokens that one spans."""
_LONGEST_WAIT = 32
"""Ids without a certain end after which a stream tries to drop the first of them."""


class Tokenizer:
    """A ``tokenizer.json`` (the format of Hugging Face ``tokenizers``) and what lies beside it.

    Attributes:
        size: the highest id plus one, special tokens included.
        sha256: hash of the file's text.
        files: it and its companions, as read.
        special_ids: id of each special token by its text.
        byte_level: whether every id stands for bytes alone, whatever its neighbours.
    """

    def __init__(self, text: str, origin: str = "tokenizer.json", files: TokenizerFiles | None = None) -> None:
        """Read a tokenizer from the text of its file.

        Raises:
            BundleError: the text is not a tokenizer.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise BundleError(
                f"{origin} is not a tokenizer file: {error}", "write it again: omnic tokenizer build"
            ) from error
        if not isinstance(fields, dict) or not isinstance(fields.get("model"), dict):
            raise BundleError(f"{origin} is not a tokenizer file: it has no 'model'", "give a tokenizer.json")
        self._text = text
        self.files = files or TokenizerFiles(text)
        self.byte_level: bool = (fields.get("decoder") or {}).get("type") == "ByteLevel"
        self._backend = backend_of(text, origin)
        self._backend.encode_special_tokens = self.files.whole_words
        self.size: int = size_of_fields(fields)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.special_ids: dict[str, int] = {
            token.content: identity
            for identity, token in sorted(self._backend.get_added_tokens_decoder().items())
            if token.special
        }

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read ``path``, a ``tokenizer.json`` or a folder that holds one, and the files beside it.

        Raises:
            BundleError: no such file, or not a tokenizer.
        """
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        files = read_tokenizer_files(file)
        return cls(files.text, str(file), files)

    def save(self, path: str | Path) -> None:
        """Write the text of ``tokenizer.json``."""
        Path(path).write_text(self._text, "utf-8")

    @property
    def bos(self) -> int | None:
        """Id that starts a text, or None when the tokenizer has none."""
        if self.files.known:
            return self.files.bos
        return self._first("<|bos|>", "<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>")

    @property
    def eos(self) -> int | None:
        """Id that ends a text, or None when the tokenizer has none."""
        if self.files.known:
            return self.files.eos
        return self._first("<|eos|>", "</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>")

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end a generation: the model's own list, and ``eos``."""
        return self.files.stops or (() if self.eos is None else (self.eos,))

    @cached_property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer puts before and behind a text (``add_special_tokens`` of transformers).

        A lone tokenizer.json that adds none has its bos before a text, unless that token also ends one.
        """
        encoded = self._backend.encode("a", add_special_tokens=True)
        inside = [place for place, added in enumerate(encoded.special_tokens_mask) if not added]
        first, last = (inside[0], inside[-1] + 1) if inside else (len(encoded.ids), len(encoded.ids))
        found = tuple(encoded.ids[:first]), tuple(encoded.ids[last:])
        if self.files.known or found != ((), ()) or self.bos is None or self.bos == self.eos:
            return found
        return (self.bos,), ()

    def _first(self, *names: str) -> int | None:
        return next((self.special_ids[name] for name in names if name in self.special_ids), None)

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """Return the ids of ``text``; special tokens written in it count as such.

        Args:
            text: any text.
            bos: put the id that starts a text first.

        Raises:
            InputError: ``bos`` is wanted and the tokenizer has no such token.
        """
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if not bos:
            return ids
        if self.bos is None:
            raise InputError("this tokenizer has no token that starts a text")
        return [self.bos, *ids]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text (in parallel, without special tokens added)."""
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Return the text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            special: keep special tokens in the text.

        Raises:
            InputError: an id the tokenizer does not have.
        """
        known = list(ids)
        for identity in known:
            if not 0 <= identity < self.size:
                raise InputError(f"token id {identity} is not in this tokenizer (0 to {self.size - 1})")
        return self._backend.decode(known, skip_special_tokens=not special)

    def token(self, identity: int) -> str:
        """Return how the tokenizer's file spells an id.

        Raises:
            InputError: an id the tokenizer does not have.
        """
        found = self._backend.id_to_token(identity) if identity >= 0 else None
        if found is None:
            raise InputError(f"token id {identity} is not in this tokenizer (0 to {self.size - 1})")
        return found

    @cached_property
    def byte_lengths(self) -> tuple[int, ...]:
        """UTF-8 bytes each id stands for in a byte-level vocabulary; 0 for special tokens."""
        special = set(self.special_ids.values())
        return tuple(0 if i in special else len(self._backend.id_to_token(i) or "") for i in range(self.size))

    def stream(self) -> Stream:
        """Return a decoder that takes ids one at a time."""
        return Stream(self)


class Stream:
    """Text from ids as they arrive: never half a character, and in all exactly ``decode``'s text.

    A token may end inside a character; the text of it then waits for the next ids.  Other decoders than byte-level
    ones look at the token before (the first token of a text loses its space, a word piece joins the one before), so
    the ids of the last text that was shown stay as context; no more is decoded again, however long the text grows.
    Bytes of a byte fallback that turn out not to be UTF-8 after the characters before them were shown do not take
    those back, as ``decode`` does with the whole run of bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._skipped = frozenset(tokenizer.special_ids.values())
        self._start()

    def _start(self) -> None:
        self._ids: list[int] = []
        self._context = 0  # ids at the front whose text was shown
        self._shown = 0  # characters of the text of _ids that were shown

    def push(self, identity: int) -> str:
        """Take one id and return the text that is now certain (may be empty)."""
        if identity in self._skipped:
            return ""
        self._ids.append(identity)
        text = self._tokenizer.decode(self._ids)
        # Trailing U+FFFD may be the head of a character whose other bytes are still to come.  A UTF-8 character has
        # at most four bytes, so at most three such marks can still change; a byte fallback makes marks of the
        # whole run of bytes as long as its end is missing.
        change = _LONGEST_CHARACTER - 1 if self._tokenizer.byte_level else len(text)
        certain = len(text)
        while certain > self._shown and certain > len(text) - change and text[certain - 1] == _REPLACEMENT:
            certain -= 1
        new = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        if certain == len(text) and self._tokenizer.byte_level:
            # A byte-level decoder has no context beyond an unfinished character.
            self._start()
        elif certain == len(text) and new:
            self._keep(self._context)
        elif len(self._ids) > _LONGEST_WAIT:
            new += self._cut(text)
        return new

    def _keep(self, start: int) -> None:
        """Drop the ids before ``start``; the rest is context, all of it shown."""
        self._ids = self._ids[start:]
        self._context, self._shown = len(self._ids), len(self._tokenizer.decode(self._ids))

    def _cut(self, text: str) -> str:
        """Drop the first ids of a long run of bytes that are no text, and return what of them was not shown.

        The last ids can hold the head of a character.
        """
        head = self._tokenizer.decode(self._ids[:-_LONGEST_CHARACTER])
        if head + self._tokenizer.decode(self._ids[-_LONGEST_CHARACTER:]) != text:
            return ""
        new = head[self._shown :]
        self._ids = self._ids[-_LONGEST_CHARACTER:]
        self._context, self._shown = 0, max(self._shown - len(head), 0)
        return new

    def finish(self) -> str:
        """Return what was held back, as it is, and start afresh."""
        text = self._tokenizer.decode(self._ids)[self._shown :]
        self._start()
        return text
