"""What is measured: programs that take a prompt and then one token after the other, each in a process of its own.

A runner is opened in a child process by :mod:`omnic.bench.worker`, so that its memory and its threads are its own.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from omnic.errors import InputError

__all__ = ["Contestant", "Runner", "bundle_contestant", "find_opener", "open_bundle_runner", "open_genai",
           "open_llama_cpp"]

Ids = NDArray[np.int64]


class Runner(Protocol):
    """One engine with one model and the states of one row."""

    def prompt(self, ids: Ids) -> int:
        """Forget everything, take the prompt [T] and return the most likely next token."""
        ...

    def step(self, token: int) -> int:
        """Append a token and return the most likely next one."""
        ...


@dataclass(frozen=True)
class Contestant:
    """What is measured under one name.

    Attributes:
        name: in tables.
        opener: ``module:function`` that returns the runner; called in the child with ``arguments``.
        arguments: plain values.
        about: versions and settings, to be shown.
        provider: what computes, as thresholds name it: ``CPU``, ``DML``, ``CoreML``, ``NNAPI``.
    """

    name: str
    opener: str
    arguments: dict[str, Any]
    about: dict[str, str] = field(default_factory=dict[str, str])
    provider: str = "CPU"


class _Session:
    """A bundle through its session, as the engine calls it."""

    def __init__(self, bundle: str, threads: int) -> None:
        from omnic.runtime.bundle import open_bundle
        from omnic.runtime.session import SessionOptions, open_session

        self.session = open_session(open_bundle(bundle), SessionOptions(threads=threads))

    def prompt(self, ids: Ids) -> int:
        self.session.reset(1)
        chunk, token = self.session.info.chunk, 0
        for at in range(0, len(ids), chunk):
            part = ids[None, at : at + chunk]
            logits = self.session.forward(part, rows=np.array([[part.shape[1] - 1]])).logits
            token = int(np.asarray(logits)[0, 0].argmax())
        return token

    def step(self, token: int) -> int:
        logits = self.session.forward(np.array([[token]])).logits
        return int(np.asarray(logits)[0, 0].argmax())


def open_bundle_runner(bundle: str, threads: int) -> Runner:
    """Open a bundle of ours."""
    return _Session(bundle, threads)


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


class _LlamaCpp:
    """llama.cpp through its Python binding's low-level calls."""

    def __init__(self, file: str, length: int, threads: int) -> None:
        llama_cpp: Any = import_module("llama_cpp")
        self.api = llama_cpp
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_load_model_from_file(file.encode(), params)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = length, 512, 512
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_new_context_with_model(self.model, options)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def prompt(self, ids: Ids) -> int:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        token = 0
        for at in range(0, len(ids), 512):
            token = self._decode([int(i) for i in ids[at : at + 512]])
        return token

    def step(self, token: int) -> int:
        return self._decode([token])

    def _decode(self, ids: list[int]) -> int:
        tokens = (self.api.llama_token * len(ids))(*ids)
        status = self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise InputError(f"llama.cpp could not decode {len(ids)} tokens (llama_decode gave {status})")
        logits = self.api.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())


def open_llama_cpp(file: str, length: int, threads: int) -> Runner:
    """Open a GGUF file with llama.cpp."""
    return _LlamaCpp(file, length, threads)


def find_opener(name: str) -> Any:
    """Return the function that ``module:function`` names."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def bundle_contestant(path: Path, target: str, model: str, threads: int) -> Contestant:
    """Return a bundle of ours as a contestant."""
    return Contestant(
        f"omnic {target}", "omnic.bench.runners:open_bundle_runner",
        {"bundle": str(path.absolute()), "threads": threads}, {"model": model, "bundle": path.name},
    )  # fmt: skip
