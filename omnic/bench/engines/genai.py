"""A model of onnxruntime-genai's builder."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import numpy as np

from omnic.bench.runners import Ids, Runner

__all__ = ["open_genai"]


class _Genai:
    """onnxruntime-genai: a generator a prompt.

    It takes a prompt whole or in pieces (its ``chunk_size``).  The first two prompts of a length, which are warm-up,
    try both, and those after them go the faster way.
    """

    def __init__(self, folder: str, length: int, pieces: int) -> None:
        self.og: Any = import_module("onnxruntime_genai")
        self.model = self.og.Model(folder)
        self.ways = [self._params(length), self._params(length, chunk_size=pieces)]
        self.tried: dict[int, list[float]] = {}
        self.generator: Any = None

    def _params(self, length: int, **more: int) -> Any:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=length, do_sample=False, min_length=length, **more)
        return params

    def prompt(self, ids: Ids) -> int:
        tried = self.tried.setdefault(len(ids), [])
        way = len(tried) if len(tried) < len(self.ways) else int(np.argmin(tried))
        self.generator = self.og.Generator(self.model, self.ways[way])
        began = time.perf_counter()
        self.generator.append_tokens(ids.astype(np.int32))
        token = int(np.asarray(self.generator.get_logits())[0, -1].argmax())
        if len(tried) < len(self.ways):
            tried.append(time.perf_counter() - began)
        return token

    def step(self, token: int) -> int:
        self.generator.generate_next_token()
        return token


def open_genai(folder: str, length: int, pieces: int = 128) -> Runner:
    """Open a folder of genai's builder; ``pieces`` is the ``chunk_size`` that is tried for prompts."""
    return _Genai(folder, length, pieces)
