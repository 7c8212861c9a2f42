"""Chat templates: from messages to token ids.

A template is Jinja in the form Hugging Face tokenizers carry (``chat_template.jinja``, or ``chat_template`` in
``tokenizer_config.json``), run in Jinja's immutable sandbox with what ``transformers`` lends to it
(:mod:`omnic.runtime.jinja`).  A model without one gets a default that fits its tokenizer.

Special tokens that a *message* spells out stay plain text: a mark is put inside each before the template
runs, and the rendered text is encoded in the pieces between the marks.  So a user cannot end the turn, nor
speak as the system, by typing a special token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from omnic.errors import InputError
from omnic.runtime.jinja import compile_template, rendered
from omnic.runtime.tokenizer import Tokenizer
from omnic.runtime.tokenizer_files import read_templates

if TYPE_CHECKING:
    import jinja2

__all__ = ["ChatTemplate", "Message", "chat_template", "encode_plain", "prompt_template"]

Message = Mapping[str, str]
ROLES = ("system", "user", "assistant")
# What a model thought before its answer; a template reads the first or the second, so it gets both.
REASONING = ("reasoning_content", "thinking", "reasoning")
# Private-use characters; the first that no message contains marks where a special token was cut.
MARKS = range(0xF0000, 0xF0100)

# For tokenizers with the special tokens omnic's own builder gives them.
MARKED = """\
{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
# For any other tokenizer: plain words, and a stop string where the other side would speak.
PLAIN = """\
{{ bos_token }}{% for message in messages %}\
{{ {"system": "", "user": "User: ", "assistant": "Assistant: "}[message.role] }}{{ message.content }}

{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and what ends an answer under it.

    Attributes:
        source: the Jinja text.
        origin: where it is from, for messages.
        stop: strings that end an answer.
        end_tokens: special tokens that end an answer, beside the tokenizer's own end of text.
    """

    source: str
    origin: str
    stop: tuple[str, ...] = ()
    end_tokens: tuple[str, ...] = ()

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return compile_template(self.source, self.origin)

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer | None = None, answer: bool = True) -> str:
        """Return the text of a conversation.

        Args:
            messages: each with ``role`` (system, user or assistant) and ``content``.
            tokenizer: gives the template ``bos_token``, ``eos_token`` and the other named tokens it has.
            answer: end with what makes the model answer.

        Raises:
            InputError: a message without role or content, or the template refuses the conversation.
        """
        checked = [_checked(message) for message in messages]
        return rendered(
            self._compiled,
            self.origin,
            messages=checked,
            add_generation_prompt=answer,
            tools=None,
            documents=None,
            **_named(tokenizer),
        )

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer, answer: bool = True) -> list[int]:
        """Return the ids of a conversation; special tokens in a message's content are plain text."""
        mark = _free_mark(str(message.get("content", "")) for message in messages)
        cut = [{**m, "content": _cut(str(m.get("content", "")), tokenizer, mark)} for m in messages]
        text = self.render(cut, tokenizer, answer)
        return _encode_pieces(text, tokenizer, mark)

    def end_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the ids that end an answer: the model's own list of several, else also tokens known to end a turn."""
        if len(tokenizer.stops) > 1:
            return frozenset(tokenizer.stops)
        found = {tokenizer.special_ids[name] for name in self.end_tokens if name in tokenizer.special_ids}
        return frozenset(found | set(tokenizer.stops))


def chat_template(folder: Path | None, tokenizer: Tokenizer) -> ChatTemplate:
    """Return the template that lies beside a tokenizer, or the default that fits it.

    Raises:
        BundleError: ``tokenizer_config.json`` cannot be read.
        InputError: there are several templates, and none for conversations.
    """
    templates = read_templates(folder) if folder else {}
    found = templates.get("default")
    if templates and found is None:
        raise InputError(f"{next(iter(templates.values()))[1]}: the templates are {', '.join(templates)}; "
                         "none has the name default", "name the one for conversations default")
    turn_ends = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>", "<|user|>", "<|system|>")
    if found is not None:
        template = ChatTemplate(*found, end_tokens=turn_ends)
    elif all(f"<|{role}|>" in tokenizer.special_ids for role in ROLES) and "<|end|>" in tokenizer.special_ids:
        template = ChatTemplate(MARKED, "the default chat template", end_tokens=(*turn_ends, "<|assistant|>"))
    else:
        template = ChatTemplate(PLAIN, "the default chat template", stop=("\nUser:",))
    return template


def prompt_template(path: str | Path, **values: str) -> str:
    """Return the text of a prompt template file: Jinja with ``{{ prompt }}`` and ``{{ system }}``.

    Raises:
        InputError: no such file, not valid Jinja, or a name the template wants is not there.
    """
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the prompt template cannot be read: {error}") from error
    return rendered(compile_template(source, str(path), strict=True), str(path), **values)


def encode_plain(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of ``text`` with special tokens it spells out taken as plain text."""
    mark = _free_mark([text])
    return _encode_pieces(_cut(text, tokenizer, mark), tokenizer, mark)


def _checked(message: Message) -> dict[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InputError(f"a message has the role {role!r}", f"roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise InputError(f"the content of a {role} message is not text")
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return {**message}
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _named(tokenizer: Tokenizer | None) -> dict[str, str]:
    """Return the named special tokens, as ``transformers`` gives them to a template: the ones there are."""
    if tokenizer is None:
        return {}
    if tokenizer.files.known:
        return dict(tokenizer.files.named)
    found = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    return {name: tokenizer.token(identity) for name, identity in found.items() if identity is not None}


def _free_mark(texts: Iterable[str]) -> str:
    used = set().union(*(set(text) for text in texts))
    free = next((chr(code) for code in MARKS if chr(code) not in used), None)
    if free is None:
        raise InputError(f"a text uses every character from U+{MARKS[0]:X} to U+{MARKS[-1]:X}; one must be free")
    return free


def _cut(text: str, tokenizer: Tokenizer, mark: str) -> str:
    """Put ``mark`` after the first character of every special token in ``text``."""
    for name in sorted(tokenizer.special_ids, key=len, reverse=True):
        if len(name) > 1:
            text = text.replace(name, name[0] + mark + name[1:])
    return text


def _encode_pieces(text: str, tokenizer: Tokenizer, mark: str) -> list[int]:
    first, *others = text.split(mark)
    ids = tokenizer.encode(first) if first else []
    return ids + [token for piece in others if piece for token in _encode_inside(piece, tokenizer)]


def _encode_inside(piece: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a piece of text that does not begin it.

    A SentencePiece-style tokenizer puts a space before what it is given, so the piece is encoded behind a line break,
    whose ids are taken off again.
    """
    head, both = tokenizer.encode("\n"), tokenizer.encode("\n" + piece)
    return both[len(head):] if both[: len(head)] == head else tokenizer.encode(piece)
