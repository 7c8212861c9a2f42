"""Random checkpoints as transformers writes and reads them, and its own logits in f64."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

__all__ = ["Example", "Original", "older_form", "write_checkpoint"]

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass(frozen=True)
class Example:
    """A configuration to make a random checkpoint of.

    Attributes:
        family: its ``model_type``.
        name: what is special about it.
        keys: of the configuration.
        whole: proved on every backend in the fast suite; else there in the reference alone.
        context: tokens of the states that are asked for at import.
        older: ``config.json`` is written as transformers 4 did.
        drop: keys to take out of the written ``config.json``.
        add: keys to put into it.
        tokens: of the prompts; more than the windows.
        seed: of the weights and the prompts.
    """

    family: str
    name: str
    keys: Mapping[str, Any]
    whole: bool = False
    context: int | None = None
    older: bool = False
    drop: tuple[str, ...] = ()
    add: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokens: int = 40
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.family}-{self.name}".replace(" ", "_").replace(",", "")


def write_checkpoint(example: Example, folder: Path) -> Path:
    """Write config.json and safetensors of random weights; no weight is what it would be without training."""
    torch.manual_seed(example.seed)
    config = AutoConfig.for_model(example.family, **example.keys)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fill(model, np.random.default_rng(example.seed))
    model.save_pretrained(folder)
    path = folder / "config.json"
    keys: dict[str, Any] = json.loads(path.read_text())
    keys = older_form(keys) if example.older else keys
    keys = {k: v for k, v in keys.items() if k not in example.drop} | dict(example.add)
    path.write_text(json.dumps(keys, indent=2))
    return folder


def fill(model: torch.nn.Module, random: np.random.Generator) -> None:
    """Draw every parameter; vectors (norms, biases, sinks) around the value they start with."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            if len(shape) == 1:
                # In steps that leave Gemma's 1 + weight exact in f32.
                drawn = parameter.numpy() + np.round(0.3 * random.standard_normal(shape) * 4096) / 4096
            elif name.endswith("bias") or name.endswith("bias_"):
                drawn = 0.3 * random.standard_normal(shape)
            else:
                drawn = random.standard_normal(shape) / np.sqrt(shape[-1]) * 1.2
            parameter.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.from_numpy(np.float32(0.1 * random.standard_normal(tuple(buffer.shape)))))


def older_form(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as transformers 4 wrote it: rope_theta and rope_scaling, torch_dtype."""
    old = {k: v for k, v in keys.items() if k not in ("rope_parameters", "dtype")}
    if "dtype" in keys:
        old["torch_dtype"] = keys["dtype"]
    rope: dict[str, Any] | None = keys.get("rope_parameters")
    if rope is not None:
        rope = dict(rope)
        if "rope_theta" in rope:
            old["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        kind = rope.pop("rope_type", "default")
        old["rope_scaling"] = None if kind == "default" else {**rope, "type": kind}
        if kind in ("llama3", "longrope", "yarn"):
            old["rope_scaling"]["rope_type"] = kind
    return old


class Widened(TorchFunctionMode):
    """Turns every f32 that transformers asks for into f64.

    Norms, softmax, routers and rope frequencies are computed in f32 there whatever the model's type; in f64 its
    logits are the meaning of its code to 1e-12, and ours can be held against them as tightly.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


class Original:
    """transformers' own model of a folder, computing in f64 with eager attention and no cache."""

    def __init__(self, folder: Path) -> None:
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float64)
            with Widened():
                self.model = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
                ).eval()
        finally:
            torch.set_default_dtype(before)

    @property
    def vocab(self) -> int:
        """Rows of the embedding."""
        return self.model.get_input_embeddings().weight.shape[0]

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the logits [T, V] of one row of tokens [T]."""
        with torch.no_grad(), Widened():
            found = self.model(torch.from_numpy(tokens[None]), use_cache=False).logits[0]
        return found.double().numpy()
