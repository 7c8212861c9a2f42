"""What ONNX Runtime does to activations, written into the module before it is lowered.

``accuracy_level: 4`` multiplies 8-bit activations, quantised block by block as the weight is.  That is meaning and
not a hint, so each product that runs so carries ``act = i8<gN>`` with N the block of its weight; the reference then
computes the same.
"""

from __future__ import annotations

from dataclasses import replace

from omnic.ir.graph import Function, Module, Node, Value
from omnic.ir.types import Storage
from omnic.targets.onnx.blocks import Blocks, blocks_of
from omnic.targets.onnx.writer import attrs_of

__all__ = ["activation_of", "expert_forms", "legalise", "product_form", "remarks"]

PRODUCTS = ("linear", "lm_head")


def _form(value: Value | None) -> Blocks | None:
    """Return how a storage-typed weight lies in blocks, None for anything else."""
    if value is None or not value.weight or not isinstance(value.type.element, Storage):
        return None
    width = value.type.shape[-1]
    found = blocks_of(value.type.element, width) if isinstance(width, int) else "a symbolic dim"
    return found if isinstance(found, Blocks) else None


def product_form(node: Node) -> Blocks | None:
    """Return the blocks of the weight of a ``linear`` or ``lm_head``, None when it has none."""
    return _form(node.operands[1]) if node.op in PRODUCTS else None


def expert_forms(node: Node) -> tuple[Blocks, ...] | None:
    """Return the blocks of up, down and (if there is one) gate of a ``moe``, None when one of them has none."""
    up, down, gate = node.operands[3:6]
    forms = tuple(_form(v) for v in (up, down, gate) if v is not None)
    found = tuple(f for f in forms if f is not None)
    return found if len(found) == len(forms) else None


def activation_of(node: Node) -> str | None:
    """Return the ``act`` that the fused operators can execute for a product, None when only ``none``."""
    if node.op in PRODUCTS:
        form = product_form(node)
        return form.activation if form is not None else None
    forms = expert_forms(node) if node.op == "moe" else None
    kinds = {f.activation for f in forms} if forms else {None}
    return kinds.pop() if len(kinds) == 1 else None


def legalise(module: Module, accuracy_level: int) -> Module:
    """Return ``module`` with the activations of its products as ``accuracy_level`` has them."""
    if accuracy_level == 0:
        return module
    functions = {name: _function(f) for name, f in module.functions.items()}
    return replace(module, functions=functions)


def _function(function: Function) -> Function:
    nodes = tuple(_node(node) for node in function.nodes)
    return replace(function, nodes=nodes)


def _node(node: Node) -> Node:
    act = activation_of(node)
    if act is None or attrs_of(node)["act"] != "none":
        return node
    return replace(node, attrs={**node.attrs, "act": act})


def remarks(module: Module, fused: bool) -> tuple[str, ...]:
    """Say of each storage-typed weight that is not read as it lies what is done with it."""
    found: list[str] = []
    readers: dict[str, set[str]] = {}
    for function in module.functions.values():
        for node in function.nodes:
            for value in node.inputs():
                if value.weight:
                    readers.setdefault(value.name, set()).add(node.op)
    for name, weight in module.weights.items():
        type, width = weight.type.element, weight.type.shape[-1] if weight.type.rank else 0
        if not isinstance(type, Storage) or not isinstance(width, int) or name not in readers:
            continue
        form = blocks_of(type, width)
        why = form if isinstance(form, str) else None
        if not fused:
            why = "the standard set has no product with stored codes"
        elif why is None and not readers[name] <= {*PRODUCTS, "embedding", "moe"}:
            why = f"{', '.join(sorted(readers[name] - {*PRODUCTS, 'embedding', 'moe'}))} reads it"
        if why is not None:
            found.append(f"weight {name} ({type}) is decoded to f32 when the program is loaded: {why}")
        elif isinstance(form, Blocks) and form.bits != type.bits:
            found.append(f"weight {name} ({type}) lies in the file as {form.bits}-bit codes")
    return tuple(found)
