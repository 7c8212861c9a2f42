"""Chat templates: from messages to token ids.

A template is Jinja in the form Hugging Face tokenizers carry (``chat_template.jinja``, or ``chat_template`` in
``tokenizer_config.json``), run in Jinja's immutable sandbox.  A model without one gets a default that
fits its tokenizer.

Special tokens that a *message* spells out stay plain text: a mark is put inside each before the template
runs, and the rendered text is encoded in the pieces between the marks.  So a user cannot end the turn, nor
speak as the system, by typing a special token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from omnic.errors import BundleError, InputError
from omnic.runtime.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Message", "chat_template", "encode_plain", "prompt_template"]

Message = Mapping[str, str]
ROLES = ("system", "user", "assistant")
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
        return _compile(self.source, self.origin)

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer | None = None, answer: bool = True) -> str:
        """Return the text of a conversation.

        Args:
            messages: each with ``role`` (system, user or assistant) and ``content``.
            tokenizer: gives the template ``bos_token`` and ``eos_token``.
            answer: end with what makes the model answer.

        Raises:
            InputError: a message without role or content, or the template refuses the conversation.
        """
        checked = [_checked(message) for message in messages]
        return _rendered(
            self._compiled,
            self.origin,
            messages=checked,
            add_generation_prompt=answer,
            bos_token=_spelled(tokenizer, tokenizer.bos if tokenizer else None),
            eos_token=_spelled(tokenizer, tokenizer.eos if tokenizer else None),
            tools=None,
        )

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer, answer: bool = True) -> list[int]:
        """Return the ids of a conversation; special tokens in a message's content are plain text."""
        mark = _free_mark(str(message.get("content", "")) for message in messages)
        cut = [{**m, "content": _cut(str(m.get("content", "")), tokenizer, mark)} for m in messages]
        text = self.render(cut, tokenizer, answer)
        return _encode_pieces(text, tokenizer, mark)

    def end_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the ids that end an answer."""
        found = {tokenizer.special_ids[name] for name in self.end_tokens if name in tokenizer.special_ids}
        return frozenset(found | ({tokenizer.eos} if tokenizer.eos is not None else set()))


def chat_template(folder: Path | None, tokenizer: Tokenizer) -> ChatTemplate:
    """Return the template that lies beside a tokenizer, or the default that fits it.

    Raises:
        BundleError: ``tokenizer_config.json`` cannot be read.
        InputError: the template is not valid Jinja.
    """
    found = _template_in(folder) if folder else None
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
    return _rendered(_compile(source, str(path), strict=True), str(path), **values)


def encode_plain(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of ``text`` with special tokens it spells out taken as plain text."""
    mark = _free_mark([text])
    return _encode_pieces(_cut(text, tokenizer, mark), tokenizer, mark)


def _template_in(folder: Path) -> tuple[str, str] | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), str(file)
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    try:
        source = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise BundleError(f"{config}: not a tokenizer configuration: {error}") from error
    if isinstance(source, list):  # several named templates; "default" is the one for conversations
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    return (source, f"{config}: chat_template") if isinstance(source, str) else None


def _compile(source: str, origin: str, strict: bool = False) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not strict,
        extensions=[loopcontrols],
        undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse  # pyright: ignore[reportArgumentType]
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{origin}:{error.lineno}: the template is not valid Jinja: {error.message}") from error


def _rendered(template: jinja2.Template, origin: str, **values: Any) -> str:
    try:
        return template.render(**values)
    except jinja2.TemplateError as error:
        raise InputError(f"{origin}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
        # What a template's own expressions raise, such as None + "x".
        raise InputError(f"{origin}: the template failed: {type(error).__name__}: {error}") from error


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _checked(message: Message) -> dict[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InputError(f"a message has the role {role!r}", f"roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise InputError(f"the content of a {role} message is not text")
    return {**message}


def _spelled(tokenizer: Tokenizer | None, identity: int | None) -> str:
    return tokenizer.token(identity) if tokenizer is not None and identity is not None else ""


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
    return [token for piece in text.split(mark) if piece for token in tokenizer.encode(piece)]
