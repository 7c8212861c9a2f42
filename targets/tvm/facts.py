"""What a session has to know of a program, written beside it, so that opening one reads no IR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omnic.errors import BundleError
from omnic.ir.graph import Module
from omnic.ir.numeric import class_of
from omnic.runtime.session import SessionInfo
from omnic.targets.tvm.states import StateForm, state_forms

__all__ = ["SessionFacts", "facts_of", "session_facts"]


@dataclass(frozen=True)
class SessionFacts:
    """What a session has to know.

    Attributes:
        info: what it can do.
        states: how each state lies in the block of a session.
        prefill_from: calls of at least so many tokens run ``prefill``; None where ``forward`` does all.
    """

    info: SessionInfo
    states: tuple[StateForm, ...]
    prefill_from: int | None

    def called(self, tokens: int) -> str:
        """Return the name of the function that a call of ``tokens`` tokens a row runs."""
        return "forward" if self.prefill_from is None or tokens < self.prefill_from else "prefill"


def session_facts(module: Module) -> dict[str, Any]:
    """Return the facts of a legalised module as JSON has them."""
    info = SessionInfo.of(module, "native", class_of(module), batch_invariant=True)
    facts = SessionFacts(info, state_forms(module)[0], module.prefill_from)
    return asdict(facts)


def facts_of(about: Mapping[str, Any], folder: Path) -> SessionFacts:
    """Return what :func:`session_facts` wrote.

    Raises:
        BundleError: another omnic wrote the program.
    """
    found = about.get("session")
    if found is None:
        raise BundleError(
            f"{folder}: the program does not say what a session has to know: another omnic wrote it",
            "compile it again",
        )
    try:
        states = tuple(StateForm(**{**s, "shape": tuple(s["shape"])}) for s in found["states"])
        return SessionFacts(SessionInfo(**found["info"]), states, found["prefill_from"])
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"{folder}: the program says other things than a session of this omnic has to know: {error}",
            "compile it again",
        ) from error
