"""The files of a tokenizer: ``tokenizer.json`` and what lies beside it in a model folder.

``tokenizer.json`` alone does not say everything.  As ``transformers`` does, this module reads

* ``tokenizer_config.json`` (and the older ``special_tokens_map.json``): the named special tokens, tokens added to
  those of ``tokenizer.json``, chat templates (which tokens stand around a text is in ``tokenizer.json`` alone);
* ``generation_config.json``, else ``config.json``: the ids that end a generation, which may be several;
* ``chat_template.jinja`` and ``additional_chat_templates/*.jinja``.

What they say of ids is put into the text of ``tokenizer.json`` itself, so that the few files :func:`copy_tokenizer`
writes give the same ids with any reader.  Only a file of the name ``tokenizer.json`` has such companions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnic.errors import BundleError, InputError
from omnic.runtime.files import write_atomic

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

__all__ = ["TokenizerFacts", "TokenizerFiles", "backend_of", "copy_tokenizer", "read_templates",
           "read_tokenizer_files", "write_tokenizer"]

TOKENIZER = "tokenizer.json"
CONFIG, GENERATION, TEMPLATE = "tokenizer_config.json", "generation_config.json", "chat_template.jinja"
TEMPLATES = "additional_chat_templates"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Vocabularies in forms that only other programs read.
OTHERS = ("tokenizer.model", "tekken.json", "vocab.json", "spiece.model", "vocab.txt")


@dataclass(frozen=True)
class TokenizerFacts:
    """What an importer needs to know of a tokenizer.

    Attributes:
        size: the highest id plus one.
        bos: id that starts a text, or None.
        stops: every id that ends a generation, ascending.
        templates: names of the chat templates; the one for conversations is ``default``.
        files: names of the written files.
        notes: what was changed on the way, for a report.
    """

    size: int
    bos: int | None
    stops: tuple[int, ...]
    templates: tuple[str, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer and its companions, as read.

    Attributes:
        text: of ``tokenizer.json``, completed by what the companions add to it.
        named: text of each special token that has a role (``bos_token``, ``eos_token``, ...).
        bos, eos: their ids.
        stops: ids that end a generation, ``eos`` among them.
        known: whether any companion says which tokens start and end a text; if not, they are found by their names.
        templates: text and origin of each chat template by its name.
        whole_words: special tokens written in a text are plain text (``split_special_tokens``).
        notes: what was changed on the way.
    """

    text: str
    named: Mapping[str, str] = field(default_factory=dict[str, str])
    bos: int | None = None
    eos: int | None = None
    stops: tuple[int, ...] = ()
    known: bool = False
    templates: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    whole_words: bool = False
    notes: tuple[str, ...] = ()

    def contents(self) -> dict[str, str]:
        """Return the text of each file that says the same, by its name, ``tokenizer.json`` first."""
        found = {TOKENIZER: self.text}
        if self.known:
            config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self.named}
            if self.whole_words:
                config["split_special_tokens"] = True
            found[CONFIG] = _json(config)
        if self.stops or (self.known and self.bos is not None):
            ids = {"bos_token_id": self.bos, "eos_token_id": list(self.stops)}
            found[GENERATION] = _json({key: value for key, value in ids.items() if value not in (None, [])})
        for name, (source, _) in self.templates.items():
            found[TEMPLATE if name == "default" else f"{TEMPLATES}/{name}.jinja"] = source
        return found


def read_tokenizer_files(path: str | Path, vocab: int | None = None) -> TokenizerFiles:
    """Read a ``tokenizer.json`` and, if that is its name, what lies beside it.

    Args:
        path: the file, or the folder that holds it.
        vocab: rows of the model's embedding; added tokens beyond them, which it cannot take, are left out.

    Raises:
        BundleError: no such file, or one of them is damaged.
    """
    file = Path(path)
    if file.is_dir():
        file = file / TOKENIZER
    text = _text(file)
    if file.name != TOKENIZER:
        return TokenizerFiles(text)
    return _completed(text, file, vocab)


def copy_tokenizer(folder: Path, out: Path, vocab: int | None = None) -> TokenizerFacts | None:
    """Write the tokenizer of a model folder into ``out``: the files omnic reads, and in them no more than it reads.

    Args:
        folder: of a checkpoint.
        out: an existing folder.
        vocab: rows of the model's embedding; see :func:`read_tokenizer_files`.

    Returns:
        What was written; None if the folder holds no tokenizer of any kind.

    Raises:
        InputError: it holds a tokenizer in another form than ``tokenizer.json``.
        BundleError: a file is damaged.
    """
    if not (folder / TOKENIZER).is_file():
        other = next((name for name in OTHERS if (folder / name).is_file()), None)
        if other is None:
            return None
        command = ("python -c \"from transformers import AutoTokenizer as A; "
                   f"A.from_pretrained('{folder}').save_pretrained('{folder}')\"")
        raise InputError(f"{folder} has its tokenizer as {other}; omnic reads {TOKENIZER}",
                         f"make one beside it (needs transformers, sentencepiece and protobuf): {command}")
    files = read_tokenizer_files(folder, vocab)
    return write_tokenizer(files.contents(), out, files.notes)


def write_tokenizer(contents: Mapping[str, str], out: Path, notes: tuple[str, ...] = ()) -> TokenizerFacts:
    """Write the files of a tokenizer into the existing folder ``out`` and return what they say.

    Raises:
        BundleError: they are no tokenizer.
    """
    for name, text in contents.items():
        (out / name).parent.mkdir(exist_ok=True)
        write_atomic(out / name, text.encode())
    files = read_tokenizer_files(out)
    if not files.known:
        backend_of(files.text, str(out / TOKENIZER))  # nothing else has read it yet
    return TokenizerFacts(size_of(files.text), files.bos, files.stops, tuple(files.templates), tuple(contents), notes)


def backend_of(text: str, origin: str) -> Backend:
    """Return the tokenizer of a file's text, which neither cuts nor fills what it encodes.

    Raises:
        BundleError: the text is not a tokenizer.
    """
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:  # pragma: no cover - a declared dependency
        raise BundleError("the package 'tokenizers' is not installed", "pip install omnic") from error
    try:
        backend = Backend.from_str(text)
    # The binding raises plain Exception for every malformed file; there is no narrower type.
    except Exception as error:
        raise BundleError(f"{origin} is not a tokenizer file: {error}", "give a tokenizer.json") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def size_of(text: str) -> int:
    """Return the highest id of a ``tokenizer.json`` plus one; ids between may be unused."""
    return size_of_fields(json.loads(text))


def size_of_fields(fields: Mapping[str, Any]) -> int:
    """Return what :func:`size_of` does of a file that is parsed already."""
    vocab = fields["model"].get("vocab", ())
    ids = [len(vocab) - 1] if isinstance(vocab, list) else list(vocab.values())
    return 1 + max([*ids, *(token["id"] for token in fields.get("added_tokens") or ())], default=-1)


def read_templates(folder: Path) -> dict[str, tuple[str, str]]:
    """Return text and origin of the chat templates of a folder by name.

    Raises:
        BundleError: ``tokenizer_config.json`` cannot be read.
    """
    return dict(_templates(folder, _object(folder / CONFIG, "a tokenizer configuration") or {}))


# -- reading ------------------------------------------------------------------------------------------


def _completed(text: str, file: Path, vocab: int | None) -> TokenizerFiles:
    folder = file.parent
    config = _object(folder / CONFIG, "a tokenizer configuration")
    generation = _object(folder / GENERATION, "a generation configuration")
    model = _object(folder / "config.json", "a model configuration")
    templates = dict(_templates(folder, config or {}))
    found = {**_ids(model or {}), **_ids(generation or {})}
    if config is None and not found:
        return TokenizerFiles(text, templates=templates)
    settings = dict(config or {})
    if config is not None and "added_tokens_decoder" not in settings:
        settings |= _object(folder / "special_tokens_map.json", "a map of special tokens") or {}
    text, notes = _without_unusable(text, str(file), vocab)
    if settings.get("clean_up_tokenization_spaces") is True and _parsed(text, str(file))["model"].get("type") != "BPE":
        notes = (*notes, f"{CONFIG}: clean_up_tokenization_spaces is not used; spaces before punctuation stay")
    text, backend = _with_additions(text, str(file), settings, vocab)
    contents = {identity: token.content for identity, token in backend.get_added_tokens_decoder().items()}
    ids = {"bos_token_id": None, "eos_token_id": None, **found}
    notes = (*notes, *_unused_flags(backend, settings))
    named = {key: content for key in NAMED if (content := _content(settings.get(key))) is not None
             and backend.token_to_id(content) is not None}
    if config is None:  # nothing names the tokens, so their ids do
        for key in ("bos_token", "eos_token"):
            first = next(iter(_listed(ids[key + "_id"])), None)
            if first is not None and (known := contents.get(first) or backend.id_to_token(first)):
                named[key] = known
    bos, eos = (backend.token_to_id(named[key]) if key in named else None for key in ("bos_token", "eos_token"))
    stops = sorted({*_listed(ids["eos_token_id"]), *(() if eos is None else (eos,))})
    return TokenizerFiles(text, named, bos, eos, tuple(stops), True, templates,
                          settings.get("split_special_tokens") is True, notes)


def _without_unusable(text: str, origin: str, vocab: int | None) -> tuple[str, tuple[str, ...]]:
    """Leave out added tokens whose id the model has no row for."""
    if vocab is None:
        return text, ()
    fields = _parsed(text, origin)
    added = fields.get("added_tokens") or []
    beyond = [token["content"] for token in added if token["id"] >= vocab]
    if not beyond:
        return text, ()
    fields["added_tokens"] = [token for token in added if token["id"] < vocab]
    shown = ", ".join(beyond[:4]) + (f" and {len(beyond) - 4} more" if len(beyond) > 4 else "")
    return json.dumps(fields, ensure_ascii=False), (f"left out, beyond the {vocab} rows of the embedding: {shown}",)


def _with_additions(
    text: str, origin: str, config: Mapping[str, Any], vocab: int | None
) -> tuple[str, Backend]:
    """Return a tokenizer, and its text, with the tokens that its configuration adds."""
    backend = backend_of(text, origin)
    tokens = _additions(backend, config)
    if vocab is not None:  # what would get an id without a row is not added
        room = vocab - backend.get_vocab_size(with_added_tokens=True)
        fresh = [token for token in tokens if backend.token_to_id(token.content) is None]
        tokens = [token for token in tokens if token not in fresh[max(room, 0):]]
    if not tokens:
        return text, backend
    backend.add_tokens(tokens)
    return backend.to_str(), backend


def _additions(backend: Backend, config: Mapping[str, Any]) -> list[AddedToken]:
    """Return the tokens a configuration adds, in the order in which they get their ids."""
    from tokenizers import AddedToken

    have = backend.get_added_tokens_decoder()
    same = {repr(token) for token in have.values()}
    listed = config.get("added_tokens_decoder")
    entries = sorted(listed.items(), key=lambda item: int(item[0])) if isinstance(listed, dict) else []
    wanted = [_added(entry) for _, entry in entries]
    tokens = [token for token in wanted if repr(token) not in same]
    texts = {token.content for token in (*have.values(), *tokens)}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    for value in (*(config.get(key) for key in NAMED), *(extra if isinstance(extra, list) else ())):
        content = _content(value)
        if content is not None and content not in texts:
            tokens.append(_added({**value, "special": True}) if isinstance(value, dict)
                          else AddedToken(content, special=True))
            texts.add(content)
    return tokens


def _added(entry: Mapping[str, Any]) -> AddedToken:
    from tokenizers import AddedToken

    flags = {key: bool(entry[key]) for key in ("single_word", "lstrip", "rstrip", "normalized", "special")
             if key in entry}
    return AddedToken(str(entry["content"]), **flags)


def _unused_flags(backend: Backend, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note for every flag that says something else of the tokens around a text than ``tokenizer.json``.

    ``transformers`` 5 does not read the flags where there is a ``tokenizer.json``.
    """
    with_them, without = (set(backend.encode("a", add_special_tokens=added).ids) for added in (True, False))
    around = with_them - without
    for name in ("bos", "eos"):
        flag, content = config.get(f"add_{name}_token"), _content(config.get(f"{name}_token"))
        if isinstance(flag, bool) and content is not None and flag != (backend.token_to_id(content) in around):
            what = "does not put it there" if flag else "puts it there"
            yield f"{CONFIG}: add_{name}_token is {str(flag).lower()}, {TOKENIZER} {what} and is followed"


def _ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ids of the first and the last token that a configuration gives; a text model may lie inside it."""
    inner = config.get("text_config")
    merged = {**(inner if isinstance(inner, dict) else {}), **config}
    return {key: merged[key] for key in ("bos_token_id", "eos_token_id") if merged.get(key) is not None}


def _listed(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]


def _content(value: Any) -> str | None:
    """Return the text of a token that is written as a text or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _templates(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the chat templates of a folder; of two with one name the later counts."""
    given, origin = config.get("chat_template"), f"{folder / CONFIG}: chat_template"
    if isinstance(given, str):
        yield "default", (given, origin)
    if isinstance(given, dict):
        yield from ((name, (source, origin)) for name, source in given.items() if isinstance(source, str))
    if isinstance(given, list):
        yield from ((entry["name"], (entry["template"], origin)) for entry in given
                    if isinstance(entry, dict) and {"name", "template"} <= set(entry))
    for file in [folder / TEMPLATE, *sorted((folder / TEMPLATES).glob("*.jinja"))]:
        if file.is_file():
            yield "default" if file.name == TEMPLATE else file.stem, (_text(file), str(file))


def _object(file: Path, what: str) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: not {what}: {error}", "copy the file again") from error
    if not isinstance(found, dict):
        raise BundleError(f"{file}: not {what}: it is no JSON object", "copy the file again")
    return found


def _parsed(text: str, origin: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{origin} is not a tokenizer file: {error}", "give a tokenizer.json") from error
    if not isinstance(fields, dict):
        raise BundleError(f"{origin} is not a tokenizer file: it is no JSON object", "give a tokenizer.json")
    return fields


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except FileNotFoundError as error:
        raise BundleError(f"there is no tokenizer at {file}") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not a tokenizer file: it is not UTF-8 text") from error
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from error


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
