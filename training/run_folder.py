"""The folder of a run: what it was started with, its log, its checkpoints, its results."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from omnic.errors import BundleError, InputError
from omnic.training.files import replace_file, write_json

__all__ = ["RunFolder"]


@dataclass
class RunFolder:
    """A run's files.

    ``run.json`` says what the run is; the same command finds it again and goes on.  ``log.jsonl``
    has one object a step.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.path / "tokenizer.json"

    @property
    def log(self) -> Path:
        """One JSON object a step: phase, step, losses, scale of the rates, tokens, seconds."""
        return self.path / "log.jsonl"

    def open(self, identity: dict[str, Any], force: bool, defaults: dict[str, dict[str, Any]] | None = None) -> bool:
        """Create the folder, or find the same run in it.

        Args:
            identity: everything that decides the result; two runs of one identity are the same run.
            force: remove a run of another identity.
            defaults: by key of ``identity``, the values that keys have which an earlier omnic did not know; a
                key of any mapping that is None counts as absent.

        Returns:
            True when the run was started before.

        Raises:
            InputError: the folder has another run, or other content, and ``force`` is not given.
        """
        about = self.path / "run.json"
        if about.exists():
            known = self._known(about)
            for key, values in (defaults or {}).items():
                known[key] = {**values, **known[key]} if isinstance(known.get(key), dict) else known.get(key)
            then, now = _without_none(known), _without_none(identity)
            if then == now:
                return True
            if not force:
                differing = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
                raise InputError(
                    f"{self.path} holds a run with another {', '.join(differing)}",
                    "choose another folder with -o, or --force to replace it",
                )
            shutil.rmtree(self.path)
        elif self.path.exists() and any(self.path.iterdir()) and not force:
            raise InputError(
                f"{self.path} exists and is no training run",
                "choose another folder with -o, or --force to write into it",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path} cannot be created: {error.strerror}") from error
        write_json(about, identity)
        return False

    def _known(self, about: Path) -> dict[str, Any]:
        try:
            known = json.loads(about.read_text("utf-8"))
        except ValueError as error:
            raise BundleError(f"{about} is damaged", "--force starts anew") from error
        if not isinstance(known, dict):
            raise BundleError(f"{about} is damaged", "--force starts anew")
        return known

    def rewind_log(self, steps: int) -> None:
        """Drop log lines of steps that no checkpoint has, and an unfinished last line."""
        if not self.log.exists():
            return
        kept = []
        for line in self.log.read_text("utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if entry["global_step"] >= steps:
                break
            kept.append(line + "\n")
        replace_file(self.log, "".join(kept).encode())

    def append_log(self) -> TextIO:
        """Open the log to write further lines, flushed one by one."""
        return self.log.open("a", encoding="utf-8", buffering=1)

    def curve(self) -> list[dict[str, Any]]:
        """Return the log's entries."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()] if self.log.exists() else []


def _without_none(value: Any) -> Any:
    """Return JSON values without the keys whose value is None: what is unset is as good as absent."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
