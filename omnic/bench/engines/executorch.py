"""A program of ExecuTorch's own export of Llama: one method, ``forward(tokens [1, T], input_pos [1])``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from omnic.bench.runners import Ids, Runner

__all__ = ["Llama", "open_executorch"]


class Llama:
    """The opened program and how many tokens its caches hold."""

    def __init__(self, file: Path, threads: int) -> None:
        from omnic.targets.executorch.program import open_program

        self.method: Any = open_program(file, threads).load_method("forward")
        self.at = 0

    def forward(self, ids: Ids, at: int) -> np.ndarray[Any, Any]:
        """Return the logits after ``ids``, the first of which stands at ``at``."""
        import torch

        with torch.inference_mode():
            found = self.method.execute((torch.from_numpy(ids[None].astype(np.int64)), torch.tensor([at])))[0]
        return found.numpy().reshape(-1)

    def prompt(self, ids: Ids) -> int:
        """Take the prompt [T] from the first slot on."""
        token = int(self.forward(ids, 0).argmax())
        self.at = len(ids)
        return token

    def step(self, token: int) -> int:
        """Append a token."""
        found = int(self.forward(np.array([token]), self.at).argmax())
        self.at += 1
        return found


def open_executorch(file: str, threads: int) -> Runner:
    """Open a program."""
    return Llama(Path(file), threads)
