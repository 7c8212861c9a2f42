"""From a spec to the module that is trained, and from its parameters to weight files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from omnic.errors import BundleError
from omnic.ir.graph import Module
from omnic.ir.weights import WeightStore
from omnic.spec import Spec
from omnic.targets.torch.training import load_training_module
from omnic.training.files import replace_file

__all__ = ["build_module", "export_weights", "load_weights", "parameter_counts", "stored_weights"]

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def parameter_counts(front: Module) -> tuple[int, int]:
    """Return (parameters in matrices that Muon updates, the others), without making any."""
    from omnic.training.optim import is_matrix

    matrices = rest = 0
    for name, weight in front.weights.items():
        shape = tuple(d for d in weight.type.shape if isinstance(d, int))
        count = math.prod(shape)
        if is_matrix(name, shape):
            matrices += count
        else:
            rest += count
    return matrices, rest


def build_module(front: Module, seed: int, choices: bool = False) -> nn.Module:
    """Return the training module of a front module with the initial weights of ``seed``, in f32.

    Args:
        front: the front module of a spec.
        seed: of the weights.
        choices: the model also returns what its routers chose.
    """
    return load_training_module(front, WeightStore.random(front, seed), choices)


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the model's parameters and buffers by front name.

    Raises:
        BundleError: a name or a shape is not the model's.
    """
    own: dict[str, Tensor] = dict(model.named_parameters())
    own |= {name: b for name, b in model.named_buffers() if name in weights}
    for name in sorted(own.keys() ^ weights.keys()):
        raise BundleError(f"weight {name!r} is in only one of checkpoint and model", "they are of different specs")
    for name, value in weights.items():
        if own[name].shape != value.shape:
            raise BundleError(f"weight {name!r} is {tuple(value.shape)}, the model wants {tuple(own[name].shape)}")
        own[name].copy_(value)


def stored_weights(model: nn.Module, spec: Spec) -> dict[str, Tensor]:
    """Return the weights by front name in the spec's dtype, as a file stores them."""
    dtype = _DTYPES[spec.dtype]
    stored = {name: p.detach().to(dtype).contiguous() for name, p in model.named_parameters()}
    for name, buffer in model.named_buffers():
        if name.endswith("select_bias"):
            stored[name] = buffer.detach().to(dtype).contiguous()
    return stored


def export_weights(model: nn.Module, spec: Spec, path: Path) -> dict[str, Tensor]:
    """Write ``path`` (safetensors) with front names in the spec's dtype; return what was written.

    Raises:
        InputError: the file cannot be written.
    """
    stored = stored_weights(model, spec)
    replace_file(path, save_tensors(stored, metadata={"format": "pt", "model": spec.model}))
    return stored
