"""A Hugging Face folder in torch, bf16."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from omnic.bench.runners import Ids, Runner

__all__ = ["open_transformers"]


class _Torch:
    """A causal model of transformers and its cache."""

    def __init__(self, folder: str, threads: int) -> None:
        self.torch: Any = import_module("torch")
        self.torch.set_num_threads(threads)
        transformers: Any = import_module("transformers")
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.cache: Any = transformers.DynamicCache
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=self.torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        self.past: Any = None

    def prompt(self, ids: Ids) -> int:
        self.past = self.cache()
        return self._forward(self.torch.from_numpy(ids)[None])

    def step(self, token: int) -> int:
        return self._forward(self.torch.tensor([[token]]))

    def _forward(self, ids: Any) -> int:
        with self.torch.inference_mode():
            found = self.model(input_ids=ids, past_key_values=self.past, use_cache=True, logits_to_keep=1)
            return int(found.logits[0, -1].argmax())


def open_transformers(folder: str, threads: int) -> Runner:
    """Open a Hugging Face folder."""
    return _Torch(folder, threads)
