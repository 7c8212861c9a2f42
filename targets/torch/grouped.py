"""One product per expert over rows sorted by expert, as an operator that torch.compile takes whole.

The number of rows of an expert is data; inside a compiled graph it would break the graph, so the loop over
experts lives in an operator with its own gradient.  On CUDA in bf16 it is ``torch.nn.functional.grouped_mm``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["grouped_linear"]


@torch.library.custom_op("omnic::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    if x.is_cuda and x.dtype == torch.bfloat16:
        return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))
    y = x.new_empty(x.shape[0], weight.shape[1])
    for part, out, w in zip(x.split(counts.tolist()), y.split(counts.tolist()), weight, strict=True):
        torch.mm(part, w.t(), out=out)
    return y


@_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("omnic::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(dy: Tensor, x: Tensor, weight: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    dy = dy.contiguous()
    if x.is_cuda and x.dtype == torch.bfloat16:
        offsets = counts.cumsum(0).to(torch.int32)
        return F.grouped_mm(dy, weight, offs=offsets), F.grouped_mm(dy.t(), x, offs=offsets)
    dx, dw = torch.empty_like(x), torch.empty_like(weight, memory_format=torch.contiguous_format)
    sizes = counts.tolist()
    parts = zip(x.split(sizes), dy.split(sizes), dx.split(sizes), weight, dw, strict=True)
    for rows, grad, row_grad, w, w_grad in parts:
        torch.mm(grad, w, out=row_grad)
        torch.mm(grad.t(), rows, out=w_grad)
    return dx, dw


@_grouped_linear_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    dx, dw = _grouped_linear_backward(dy, *ctx.saved_tensors)
    return dx, dw, None


_grouped_linear.register_autograd(_backward, setup_context=_save)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Return rows of x [M, K] times the weights [E, N, K] of their expert: [M, N].

    The first ``counts[0]`` rows belong to expert 0, the next ``counts[1]`` to expert 1, and so on; ``counts`` is
    i64[E] and sums to M.  Under autocast the product is in the lower precision, as ``F.linear`` is.
    """
    if torch.is_autocast_enabled(x.device.type):
        low = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(low), weight.to(low)
    return _grouped_linear(x, weight, counts)
