"""A conversation: the messages so far, what of them still fits, and the states reused from turn to turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omnic.errors import InputError
from omnic.runtime.generation import Generation
from omnic.runtime.model import NEVER, Model, Stream

__all__ = ["Conversation"]


class Conversation:
    """A chat with one model.

    When the states would get full, the oldest question and answer are left out (the system prompt stays) until
    there is room for an answer; ``left_out`` counts the messages that the model no longer sees.

    Args:
        model: with a tokenizer.
        system: the system prompt, or empty.
        max_new: the most tokens of one answer.
        options: as of :meth:`Model.generate`.
    """

    def __init__(self, model: Model, system: str = "", max_new: int = 512, **options: Any) -> None:
        self.model, self.system, self.max_new, self.options = model, system, max_new, options
        self.messages: list[dict[str, str]] = []
        self.left_out = 0
        self._stream: Stream | None = None

    def ask(self, text: str, cancelled: Callable[[], bool] = NEVER) -> Stream:
        """Add a question and return the stream of its answer; call :meth:`done` afterwards.

        Raises:
            InputError: the question alone does not fit; it is not added then.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            stream: Stream = self.model.chat(
                self._fitting(), self.max_new, stream=True, keep=True, cancelled=cancelled, **self.options
            )
        except InputError:
            self.messages.pop()
            raise
        self._stream = stream
        return stream

    def done(self) -> Generation:
        """Finish the answer, add it to the messages, and return it."""
        if self._stream is None:
            raise InputError("there is no question to answer")
        answer, self._stream = self._stream.result(), None
        self.messages.append({"role": "assistant", "content": answer.text.strip()})
        return answer

    def undo(self) -> str | None:
        """Take the last question and its answer back and return the question; None when there is none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def clear(self) -> None:
        """Forget all messages; the system prompt stays."""
        self.messages.clear()
        self.left_out = 0

    def _fitting(self) -> list[dict[str, str]]:
        """Return the messages to send: the newest that leave room for an answer."""
        capacity = self.model.session.info.capacity
        room = capacity - min(self.max_new, capacity // 4)
        head = [{"role": "system", "content": self.system}] if self.system else []
        first = 0
        while True:
            chosen = [*head, *self.messages[first:]]
            size = len(self.model.template.encode(chosen, self.model.needed_tokenizer))
            if size <= room or first + 1 >= len(self.messages):
                break
            first += 2
        self.left_out = first
        return chosen
