"""AWQ (arXiv:2306.00978): channels that matter are scaled up before rounding, and outliers are clipped where it pays.

The scale of a channel is divided out of the norm before it, so it must go into every matrix that reads the norm,
routers and shared experts among them; where that cannot be, nothing is scaled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omnic.ir.graph import Module, Node, Uses
from omnic.ir.packing import QTensor
from omnic.ir.types import DType, Storage
from omnic.passes.quantise.calibrate import Inputs
from omnic.passes.quantise.gptq import output_error
from omnic.passes.quantise.grid import Floats, by_groups, fit_range, padded, search

__all__ = ["Fold", "channel_scales", "clipped", "folds", "taken_out"]

#: exponents that are tried; 0 scales nothing
EXPONENTS = tuple(i / 20 for i in range(21))

# The operands by which each op multiplies its input 0.
_CONSUMERS = {"linear": (1,), "router": (1, 2), "moe": (3, 5)}


@dataclass(frozen=True)
class Fold:
    """A norm whose weight can take the channels' scales out again.

    Attributes:
        norm: the node.
        vectors: its weight (and bias), which are divided by the scales.
        matrices: all that multiply its result, which are multiplied by them along their last dim.
    """

    norm: Node
    vectors: tuple[str, ...]
    matrices: tuple[str, ...]


def folds(module: Module, quantised: Collection[str]) -> tuple[list[Fold], list[tuple[str, str]]]:
    """Return the norms of ``forward`` that scales can be folded into, and (node, reason) of those that cannot.

    Only norms that some weight in ``quantised`` reads are looked at.
    """
    function = module.function()
    uses = Uses(function)
    readers: dict[str, set[str]] = {}
    for f in module.functions.values():
        for node in f.nodes:
            for value in node.inputs():
                if value.weight:
                    readers.setdefault(value.name, set()).add(f"{f.name}:{node.name}")
    found: list[Fold] = []
    refused: list[tuple[str, str]] = []
    for node in function.nodes:
        if node.op not in ("rms_norm", "layer_norm"):
            continue
        users = uses.users.get(node.result, [])
        matrices: list[str] = []
        reason: str | None = None
        for user, place in users:
            if user.op not in _CONSUMERS or place != 0:
                reason = f"{user.name} reads it too"
                continue
            for at in _CONSUMERS[user.op]:
                value = user.operands[at] if at < len(user.operands) else None
                if value is not None:
                    matrices.append(value.name)
                    if not value.weight or len(readers[value.name]) > 1:
                        reason = f"{value} is read elsewhere as well"
        if not set(matrices) & set(quantised):
            continue
        vectors = [v for v in node.operands[1:] if v is not None]
        if node.result in uses.returned:
            reason = "it is a result of the function"
        elif not vectors:
            reason = "it has no weight"
        elif any(not v.weight or len(readers[v.name]) > 1 for v in vectors):
            reason = "its weight is read elsewhere as well"
        if reason:
            refused.append((node.name, f"channels of {node.name} are not scaled: {reason}"))
        else:
            found.append(Fold(node, tuple(v.name for v in vectors), tuple(dict.fromkeys(matrices))))
    return found, refused


def channel_scales(matrices: Sequence[tuple[Floats, Storage, Inputs]]) -> Floats:
    """Return the scales [K] that make the outputs of all ``matrices`` (weight, type, inputs) change least.

    ``s = size^a / sqrt(max min)``, size = mean |x| of each channel, a from a grid that holds 0, errors of round to
    nearest: what is returned is never worse than no scales.
    """
    size = np.mean([np.maximum(i.size, 1e-8) for _, _, i in matrices], axis=0).astype(np.float32)
    best, least = np.ones_like(size), np.inf
    for exponent in EXPONENTS:
        scale = size ** np.float32(exponent)
        scale = (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)
        cost = 0.0
        for w, type, inputs in matrices:
            groups = by_groups(padded(w * scale, type), type)
            rounded = fit_range(groups, type).rounded(groups).reshape(len(w), -1)[:, : w.shape[1]] / scale
            cost += output_error(w, rounded, inputs.gram)
        if cost < least:
            best, least = scale, cost
    return best


def taken_out(norm: Floats, scale: Floats, element: DType) -> Floats:
    """Return scales near ``scale`` [K] that the norm's weight [K] can be divided by without leaving its own type.

    The weight is divided and rounded to its type first, and the scale is then what that really divided by: the matrices
    hold any scale, so nothing is lost and no byte is added.  A weight of 0 keeps its scale.
    """
    divided = (norm / scale).astype(element.numpy).astype(np.float32)
    held = np.isfinite(divided) & (divided != 0)
    return np.where(held, norm / np.where(held, divided, np.float32(1)), scale).astype(np.float32)


def clipped(w: Floats, type: Storage, gram: Floats) -> QTensor:
    """Return w [N, K] in ``type``, each group's range clipped so that its own part of the outputs changes least."""
    wide = padded(w, type)
    groups = by_groups(wide, type)
    size = groups.shape[-1]
    full = np.pad(gram, ((0, wide.shape[1] - len(gram)),) * 2)
    blocks = np.stack([full[i : i + size, i : i + size] for i in range(0, len(full), size)])

    def metric(error: Floats) -> Floats:
        across = error.transpose(1, 0, 2)
        return ((across @ blocks) * across).sum(-1).T

    grid = search(groups, type, metric)
    return grid.tensor(grid.codes(groups).reshape(len(w), -1), w.shape[1])


def scaled_inputs(inputs: Inputs, scale: Floats) -> Inputs:
    """Return the inputs as they are once ``scale`` is divided out of them."""
    return Inputs(inputs.gram / scale[:, None] / scale[None], inputs.size / scale, inputs.rows)


def names_of(found: Sequence[Fold]) -> Mapping[str, Fold]:
    """Return the fold of each matrix."""
    return {name: fold for fold in found for name in fold.matrices}
