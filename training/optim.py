"""Muon for the matrices, fused AdamW for the rest, behind one step and one flat state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from omnic.errors import BundleError
from omnic.training.config import TrainConfig

__all__ = ["Optimizer", "is_matrix", "newton_schulz", "split_parameters", "state_bytes"]

# Quintic coefficients of Jordan et al., "Muon" (2024): they maximise the slope at zero, and leave
# singular values in about [0.7, 1.2] rather than at 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315

_BY_ROW = frozenset({"embed", "head", "verifier", "router", "group_router"})


def newton_schulz(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return the nearly orthogonal factor of each matrix.

    ``X <- a X + (b X X^T + c (X X^T)^2) X`` from ``X / |X|_F`` (Jordan et al. 2024).

    Args:
        matrices: ``[n, rows, columns]`` with ``rows <= columns`` (fewer products that way round).
        steps: iterations; five bring every singular value above about 0.01 of the norm to order one.
    """
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether Muon updates a parameter of this front name and shape.

    Embeddings, heads and routers are not: their rows are looked up or scored one by one, and an
    orthogonal update would mix them.  A stack ``[E, rows, columns]`` is E matrices.
    """
    last = name.rsplit(".", 1)[-1]
    by_row = last in _BY_ROW or name.startswith("mtp.heads.")
    return len(shape) in (2, 3) and min(shape[-2:]) > 1 and not by_row


def split_parameters(
    parameters: Iterable[tuple[str, nn.Parameter]],
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Split trainable parameters into (matrices for Muon, the rest for AdamW), by front name."""
    matrices: dict[str, nn.Parameter] = {}
    rest: dict[str, nn.Parameter] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        (matrices if is_matrix(name, tuple(parameter.shape)) else rest)[name] = parameter
    return matrices, rest


class Optimizer:
    """One update of a model: Muon on matrices, AdamW (torch's fused kernel) on everything else.

    Newton-Schulz runs on all matrices of a shape at once: a step of a small model is bound by the
    number of products, not by their size.

    Args:
        parameters: by front name; those that require a gradient are trained.
        config: momentum, betas and weight decay.
        muon_rate: peak rate of the matrices; the update's rms is that of AdamW at the same rate
            (``0.2 sqrt(max(rows, columns))``, Liu et al. 2025, arXiv 2502.16982).
        adam_rate: peak rate of the rest.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        config: TrainConfig,
        muon_rate: float,
        adam_rate: float,
    ) -> None:
        self.config = config
        self.muon_rate, self.adam_rate = muon_rate, adam_rate
        self.matrices, self.rest = split_parameters(parameters)
        self._groups: dict[tuple[int, int], list[str]] = {}
        for name, parameter in self.matrices.items():
            rows, columns = sorted(parameter.shape[-2:])
            self._groups.setdefault((rows, columns), []).append(name)
        self.momentum = {name: torch.zeros_like(p) for name, p in self.matrices.items()}
        # eps far below the usual: gradients of rare tokens' embeddings are tiny and must count.
        self._adam = (
            torch.optim.AdamW(
                list(self.rest.values()), lr=adam_rate, betas=config.betas, eps=1e-10, weight_decay=0.0, fused=True
            )
            if self.rest
            else None
        )

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update with both rates multiplied by ``scale`` and clear the gradients."""
        if self._adam is not None:
            if self.config.clip:
                nn.utils.clip_grad_norm_(list(self.rest.values()), self.config.clip)
            for group in self._adam.param_groups:
                group["lr"] = self.adam_rate * scale
            self._adam.step()
        for shape, names in self._groups.items():
            self._muon(shape, names, self.muon_rate * scale)
        for parameter in (*self.matrices.values(), *self.rest.values()):
            parameter.grad = None

    def _muon(self, shape: tuple[int, int], names: Sequence[str], rate: float) -> None:
        mu = self.config.momentum
        pending: list[Tensor] = []
        used: list[str] = []
        for name in names:
            gradient = self.matrices[name].grad
            if gradient is None:
                continue
            momentum = self.momentum[name]
            momentum.lerp_(gradient, 1 - mu)
            update = gradient.lerp(momentum, mu)  # Nesterov
            update = update if update.shape[-2] <= update.shape[-1] else update.mT
            pending.append(update.reshape(-1, *shape))
            used.append(name)
        if not pending:
            return
        updates = newton_schulz(torch.cat(pending), self.config.newton_schulz)
        at = 0
        for name in used:
            parameter = self.matrices[name]
            count = parameter.numel() // (shape[0] * shape[1])
            update = updates[at : at + count]
            at += count
            if parameter.shape[-2] > parameter.shape[-1]:
                update = update.mT
            if self.config.weight_decay:
                parameter.mul_(1 - rate * self.config.weight_decay)
            parameter.add_(update.reshape(parameter.shape), alpha=-rate * 0.2 * math.sqrt(shape[1]))

    def state(self) -> dict[str, Tensor]:
        """Return every tensor a resumed run needs, by ``momentum.NAME``, ``first.NAME``, ..."""
        tensors = {f"momentum.{name}": value for name, value in self.momentum.items()}
        for name, parameter in self.rest.items():
            kept = self._adam.state.get(parameter) if self._adam is not None else None
            if kept:
                tensors[f"first.{name}"] = kept["exp_avg"]
                tensors[f"second.{name}"] = kept["exp_avg_sq"]
                tensors[f"step.{name}"] = kept["step"]
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take the tensors of :meth:`state`.

        Raises:
            BundleError: a tensor is missing, left over or of another shape.
        """
        expected = {f"momentum.{name}": p.shape for name, p in self.matrices.items()}
        moved = {name for name in self.rest if f"first.{name}" in tensors}
        for name in moved:
            expected |= {f"{part}.{name}": self.rest[name].shape for part in ("first", "second")}
            expected[f"step.{name}"] = torch.Size()
        _match(expected, tensors)
        for name in self.matrices:
            self.momentum[name].copy_(tensors[f"momentum.{name}"])
        for name in moved:
            if self._adam is not None:
                self._adam.state[self.rest[name]] = {
                    "step": tensors[f"step.{name}"].clone(),
                    "exp_avg": tensors[f"first.{name}"].clone(),
                    "exp_avg_sq": tensors[f"second.{name}"].clone(),
                }

    def bytes(self) -> int:
        """Bytes of optimiser state when every parameter has been updated once."""
        return state_bytes(self.matrices.values(), self.rest.values())


def state_bytes(matrices: Iterable[nn.Parameter], rest: Iterable[nn.Parameter]) -> int:
    """Return optimiser bytes: one f32 tensor a matrix, two (and a counter) for the rest."""
    return sum(4 * p.numel() for p in matrices) + sum(8 * p.numel() + 4 for p in rest)


def _match(expected: dict[str, torch.Size], found: dict[str, Tensor]) -> None:
    for name in sorted(expected.keys() - found.keys()):
        raise BundleError(f"the optimiser state lacks {name!r}", "the checkpoint is of another model")
    for name in sorted(found.keys() - expected.keys()):
        raise BundleError(f"the optimiser state has {name!r}, which the model does not", "it is of another model")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise BundleError(f"optimiser state {name!r} is {tuple(found[name].shape)}, the model wants {tuple(shape)}")
