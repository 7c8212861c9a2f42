"""A GGUF file in llama.cpp."""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

import numpy as np

from omnic.bench.runners import Ids, Runner
from omnic.errors import InputError

__all__ = ["open_llama_cpp"]


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
