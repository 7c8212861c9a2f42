"""A loaded model: session, tokenizer and spec behind one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError, nearest
from omnic.runtime.bundle import Bundle, open_bundle
from omnic.runtime.engine import Engine, Run
from omnic.runtime.generation import Generation, Piece, Request
from omnic.runtime.sampling import Sampling
from omnic.runtime.session import Session, SessionOptions, open_session
from omnic.runtime.templates import ChatTemplate, Message, chat_template
from omnic.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from omnic.spec import Spec

__all__ = ["Model", "Prompt", "Stream", "load_model"]

Prompt = str | Sequence[int]
NEVER: Callable[[], bool] = lambda: False  # noqa: E731


class Stream:
    """A generation under way: iterate over its pieces, then ask for the result.

    For one prompt, ``for piece in stream: print(piece.text, end="")``.
    """

    def __init__(self, run: Run, single: bool) -> None:
        self._run, self._single = run, single

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._run)

    def close(self) -> None:
        """End it now; ``result()`` has what there was."""
        self._run.close()

    def result(self) -> Generation:
        """Finish and return the answer to the only prompt.

        Raises:
            InputError: there are several; use ``results()``.
        """
        if not self._single:
            raise InputError("this stream answers a batch of prompts", "use results()")
        return self._run.results()[0]

    def results(self) -> list[Generation]:
        """Finish and return the answer to every prompt."""
        return self._run.results()


class Model:
    """A model that generates.

    Args:
        session: what computes.
        tokenizer: None for a model of ids alone.
        bundle: what it was loaded from.
        template: its chat template; the one of the bundle or a default when None.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer | None = None,
        bundle: Bundle | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        self.session, self.tokenizer, self.bundle = session, tokenizer, bundle
        self._template = template
        self.engine = Engine(session, tokenizer.stream if tokenizer else None)

    @property
    def spec(self) -> Spec:
        """The spec it was compiled from.

        Raises:
            InputError: the model was not loaded from a bundle.
        """
        if self.bundle is None:
            raise InputError("this model was not loaded from a bundle, so it has no spec")
        return self.bundle.spec

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template.

        Raises:
            InputError: the model has no tokenizer.
        """
        if self._template is not None:
            return self._template
        folder = None
        if self.bundle is not None and self.bundle.manifest.tokenizer is not None:
            folder = self.bundle.file(self.bundle.manifest.tokenizer.files[0]).parent
        return chat_template(folder, self.needed_tokenizer)

    @property
    def needed_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            InputError: the model has none.
        """
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer", "give token ids (--ids), or name a tokenizer in the spec")
        return self.tokenizer

    def encode(self, prompt: Prompt, bos: bool | None = None) -> list[int]:
        """Return the ids of a prompt; ids stay as they are.

        Args:
            prompt: text or ids.
            bos: begin with the token that starts a text; None = with what the tokenizer says goes before one
                (what goes behind one is left out, since the text is to go on).
        """
        if not isinstance(prompt, str):
            return [int(token) for token in prompt]
        tokenizer = self.needed_tokenizer
        if bos is None:
            return [*tokenizer.frame[0], *tokenizer.encode(prompt)]
        return tokenizer.encode(prompt, bos=bos)

    @overload
    def generate(
        self, prompt: Prompt, max_new: int = ..., *, stream: Literal[False] = ..., **options: Any
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[Prompt], max_new: int = ..., *, stream: Literal[False] = ..., **options: Any
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompt: Prompt | Sequence[Prompt], max_new: int = ..., *, stream: Literal[True], **options: Any
    ) -> Stream: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        max_new: int = 256,
        *,
        greedy: bool = False,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        end_ids: Sequence[int] | None = None,
        bos: bool | None = None,
        stream: bool = False,
        keep: bool = False,
        cancelled: Callable[[], bool] = NEVER,
        **options: Any,
    ) -> Generation | list[Generation] | Stream:
        """Continue a prompt, or each prompt of a batch.

        Args:
            prompt: text, ids, or a sequence of either (a batch; lengths may differ).
            max_new: the most new tokens.
            greedy: always the most probable token.
            sampling: how tokens are chosen; instead of it, its fields as options (``temperature=0.7``).
            stop: strings that end the text.
            end_ids: ids that end it; when None those of the model: its end of text and its list of others.
            bos: see :meth:`encode`.
            stream: return a :class:`Stream` at once.
            keep: reuse the states of what this prompt has in common with the last one.
            cancelled: asked before every call of the program.
            options: fields of :class:`~omnic.runtime.sampling.Sampling`.

        Raises:
            InputError: a prompt or option that cannot run.
        """
        prompts, single = _as_batch(prompt)
        if end_ids is None:
            end_ids = self.tokenizer.stops if self.tokenizer else ()
        request = Request(
            max_new=max_new,
            sampling=self._speakable(_sampling(sampling, greedy, options)),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            end_ids=frozenset(end_ids),
            keep=keep,
        )
        run = self.engine.generate([self.encode(p, bos) for p in prompts], request, cancelled)
        result = Stream(run, single)
        if stream:
            return result
        return result.result() if single else result.results()

    def _speakable(self, sampling: Sampling) -> Sampling:
        """Leave out the ids beyond the tokenizer's: a vocabulary padded to a round size has some that mean nothing."""
        size = self.tokenizer.size if self.tokenizer is not None else self.session.info.vocab
        if size >= self.session.info.vocab:
            return sampling
        first, last = sampling.allow or (0, size)
        return replace(sampling, allow=(first, min(last, size)))

    def chat(self, messages: Sequence[Message], max_new: int = 512, **options: Any) -> Any:
        """Answer a conversation.

        Args:
            messages: each with ``role`` (system, user, assistant) and ``content``.
            max_new: the most new tokens.
            options: as of :meth:`generate`.

        Returns:
            What :meth:`generate` returns for one prompt.
        """
        tokenizer, template = self.needed_tokenizer, self.template
        options.setdefault("end_ids", sorted(template.end_ids(tokenizer)))
        stop = options.pop("stop", ())
        stops = (*template.stop, *((stop,) if isinstance(stop, str) else stop))
        return self.generate(template.encode(messages, tokenizer), max_new, stop=stops, **options)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits after each of ``ids``, f32[T, V], from empty states."""
        return self.engine.logits(ids)


def load_model(
    source: str | Path | Bundle, threads: int | None = None, memory: int | None = None, verify: bool = False
) -> Model:
    """Open a bundle and return its model.

    Args:
        source: the folder of a bundle, or an opened one.
        threads: threads of one operator; None = the cores this process really has.
        memory: bytes it may hold.
        verify: check every file's hash first, however large.

    Raises:
        BundleError: damaged, of a newer version, or of an unknown kind.
        MissingExtraError: its backend is not installed.
    """
    bundle = source if isinstance(source, Bundle) else open_bundle(source, verify)
    session = open_session(bundle, SessionOptions(threads, memory))
    entry = bundle.manifest.tokenizer
    return Model(session, Tokenizer.load(bundle.file(entry.files[0])) if entry else None, bundle)


def _as_batch(prompt: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    if isinstance(prompt, str):
        return [prompt], True
    if isinstance(prompt, np.ndarray) and prompt.ndim == 1 and prompt.dtype.kind in "iu":
        return [prompt.tolist()], True
    items: list[Any] = list(prompt)
    if items and all(isinstance(item, int | np.integer) for item in items):
        return [items], True
    if all(isinstance(item, Sequence | np.ndarray) for item in items):
        return items, False
    raise InputError("a prompt is text or a sequence of token ids; a batch is a sequence of prompts")


def _sampling(sampling: Sampling | None, greedy: bool, options: Mapping[str, Any]) -> Sampling:
    known = [field.name for field in fields(Sampling)]
    for name in options:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean '{near}'?" if near else f"options: {', '.join(known)}"
            raise InputError(f"generate has no option '{name}'", hint)
    if sampling is not None and (options or greedy):
        raise InputError("give either sampling or single options, not both")
    if sampling is not None:
        return sampling
    if greedy and options.get("temperature"):
        raise InputError("greedy and a temperature exclude each other")
    return Sampling.greedy(**options) if greedy else Sampling(**options)
