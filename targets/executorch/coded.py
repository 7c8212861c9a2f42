"""Weights that stay codes in the program: XNNPACK's products with our own codes and scales, and tables of rows.

A product with 4-bit codes in groups (or 4 or 8 bits and a scale a row) is what XNNPACK calls qd8-qb4w or qd8-qc4w /
qd8-qc8w: the activation is rounded to 8 bits, one scale and zero point a token, while the program runs.  The codes are
ours to the bit; the scales of groups are bf16 in XNNPACK's format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnic.ir import packing
from omnic.ir.graph import Function, Module, Node
from omnic.ir.packing import QTensor
from omnic.ir.types import Storage

__all__ = [
    "ACTIVATION",
    "Coded",
    "coded_product",
    "coded_rows",
    "parts_in_file",
    "product_form",
    "readers_of",
    "tensors_of",
    "with_activations",
]

#: what the products do to their activations, as the IR writes it
ACTIVATION = "i8<per_token>"
#: XNNPACK's groups are multiples of this
_GROUP = 32
_PRODUCTS = ("linear", "lm_head")


@dataclass(frozen=True)
class Coded:
    """A weight [N, K] in codes.

    Attributes:
        type: of the weight.
        codes: int8 [N, K], or for a table of 4 bits u8 packed rows [N, bytes].
        scale: f32 [N, groups].
        zero: int8 zeros of the shape of ``scale``.
    """

    type: Storage
    codes: Tensor
    scale: Tensor
    zero: Tensor

    @staticmethod
    def of(q: QTensor) -> Coded:
        """Return the weight in the form of products."""
        scale = torch.from_numpy(np.ascontiguousarray(packing.scale_numbers(q), np.float32))
        scale = scale.reshape(len(q.codes), -1)
        codes = torch.from_numpy(np.ascontiguousarray(q.codes, np.int8))
        return Coded(q.type, codes, scale, torch.zeros_like(scale, dtype=torch.int8))

    def table(self) -> Coded:
        """Return the weight in the form of a table: rows in the canonical packing."""
        if self.type.bits == 8:
            return self
        packed = packing.pack_codes(self.codes.numpy(), self.type)
        return replace(self, codes=torch.from_numpy(np.ascontiguousarray(packed, np.uint8)))


def product_form(type: Storage, shape: tuple[int, ...]) -> str | None:
    """Return why XNNPACK cannot multiply with a weight of ``type`` and ``shape`` as it is, None when it can."""
    if len(shape) != 2 or type.axis != -1:
        return "it is no matrix in groups of its columns"
    if type.kind not in ("i4", "i8") or type.asym:
        return "XNNPACK multiplies with symmetric 4-bit and 8-bit codes"
    if type.scale not in ("f16", "f32"):
        return f"XNNPACK has no {type.scale} scales"
    if type.group > 0 and type.kind == "i8":
        return "XNNPACK has one scale a row for 8-bit codes"
    if type.group > 0 and (type.group % _GROUP or shape[-1] % type.group):
        return f"XNNPACK has groups of multiples of {_GROUP} that fill a row"
    return "a scale for everything" if type.group < 0 else None


def readers_of(module: Module) -> dict[str, set[str]]:
    """Return weight -> the ops that read it as they take a matrix (another place is ``other``)."""
    found: dict[str, set[str]] = {}
    for function in module.functions.values():
        for node in function.nodes:
            for at, value in enumerate(node.operands):
                if value is not None and value.weight:
                    whole = (node.op in _PRODUCTS and at == 1) or (node.op == "embedding" and at == 0)
                    found.setdefault(value.name, set()).add(node.op if whole else "other")
    return found


def with_activations(module: Module, coded: set[str]) -> Module:
    """Return ``module`` with what its products with ``coded`` weights do to their activations written down."""

    def node(n: Node) -> Node:
        weight = n.operands[1] if n.op in _PRODUCTS else None
        return replace(n, attrs={**n.attrs, "act": ACTIVATION}) if weight is not None and weight.name in coded else n

    def function(f: Function) -> Function:
        return replace(f, nodes=tuple(node(n) for n in f.nodes))

    return replace(module, functions={name: function(f) for name, f in module.functions.items()})


def coded_product(x: Tensor, weight: Coded, bias: Tensor | None) -> Tensor:
    """X times a coded weight, in the operators from which XNNPACK's partitioner makes its own product."""
    from torchao.quantization.quant_primitives import dequantize_affine
    from torchao.quantization.quantize_.workflows.intx import intx_unpacked_to_int8_tensor as intx

    width = weight.codes.shape[-1]
    block = (1, weight.type.group or width)
    low, high = (-8, 7) if weight.type.kind == "i4" else (-128, 127)
    quantised = intx._apply_int8_act_asym_per_token_quant_dequant(x)  # pyright: ignore
    numbers = dequantize_affine(
        weight.codes, block, weight.scale, weight.zero, torch.int8, low, high, output_dtype=torch.float32
    )
    return torch.nn.functional.linear(quantised, numbers, bias)


def coded_rows(weight: Coded, tokens: Tensor, width: int) -> Tensor:
    """Return rows of a coded table, decoded: [..., width] f32."""
    flat = tokens.reshape(-1)
    codes = weight.codes.index_select(0, flat).float()
    scale = weight.scale.index_select(0, flat)
    if weight.type.kind == "i4":
        high = torch.floor(codes / 16.0)
        codes = torch.stack([codes - 16.0 * high, high], -1).reshape(flat.shape[0], -1) - 8.0
    group = weight.type.group or width
    rows = codes.reshape(flat.shape[0], width // group, group) * scale[..., None]
    return rows.reshape(*tokens.shape, width)


def tensors_of(weight: Tensor | Coded) -> tuple[Tensor, ...]:
    """Return the tensors of a weight."""
    return (weight.codes, weight.scale) if isinstance(weight, Coded) else (weight,)


def parts_in_file(name: str, weight: Coded, readers: set[str]) -> dict[str, tuple[Any, str]]:
    """Return what of a coded weight lies in a program: part -> its array there and how it is made canonical.

    ``bf16`` scales are the upper half of an f32.
    """
    codes = (packing.pack_codes(weight.codes.numpy(), weight.type), "as it is")
    if "embedding" in readers:
        return {name: codes, f"{name}.scale": (weight.scale.numpy(), "number")}
    found: dict[str, tuple[Any, str]] = {name: codes}
    if weight.type.group > 0:
        halves = weight.scale.to(torch.bfloat16).view(torch.int16).numpy()
        found[f"{name}.scale"] = (halves, "bf16")
    else:
        found[f"{name}.scale"] = (weight.scale.numpy(), "number")
    return found
