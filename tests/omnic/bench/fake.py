"""A runner whose times are known: a prompt sleeps a little, a token less, and it may end or complain on the way."""

from __future__ import annotations

import os
import time

import numpy as np

from omnic.bench.runners import Contestant
from omnic.errors import InputError


class Fake:
    """Counts what it is asked for."""

    def __init__(self, seconds: float, dies: bool, bytes: int) -> None:
        self.seconds, self.dies = seconds, dies
        self.held = np.ones(bytes, np.uint8)

    def prompt(self, ids: np.ndarray) -> int:
        time.sleep(4 * self.seconds)
        return int(ids[-1])

    def step(self, token: int) -> int:
        if self.dies:
            os._exit(9)
        time.sleep(self.seconds)
        return token + 1


def open_fake(seconds: float = 0.001, dies: bool = False, refuses: str = "", bytes: int = 1,
              says: str = "") -> Fake:
    """Open one, or refuse."""
    os.write(2, says.encode())
    if refuses:
        raise InputError(refuses)
    return Fake(seconds, dies, bytes)


def fake(name: str, **arguments: object) -> Contestant:
    """Return it as a contestant."""
    return Contestant(name, "tests.omnic.bench.fake:open_fake", dict(arguments), {"version": "1"})
