"""From the module that passes leave to the one that the program computes.

1. Products with weights of codes say how their inputs are rounded (``act``), so that the reference rounds them too.
2. Composites that have kernels stay; all others become core ops.
3. The batch is at most what the program is made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omnic.ir.decompose import decompose
from omnic.ir.dims import DimRange
from omnic.ir.graph import Module, Node, Value
from omnic.ir.ops.linear import activation_group
from omnic.ir.types import Storage
from omnic.targets.refusals import check_ops
from omnic.targets.tvm.caps import CAPS
from omnic.targets.tvm.lower.common import attrs_of
from omnic.targets.tvm.matrices import panels_of
from omnic.targets.tvm.patterns import attention_forms
from omnic.targets.tvm.plan import refuse
from omnic.targets.tvm.states import state_forms

__all__ = ["legalise", "remarks"]

_WEIGHTS_OF = {"linear": (1,), "lm_head": (1,), "lm_argmax": (1,), "moe": (3, 4, 5)}


def legalise(module: Module, options: Mapping[str, Any]) -> Module:
    """Return the module that the program computes.

    Raises:
        InputError: it holds an op, a weight or a state that the target cannot take.
    """
    check_ops("tvm", CAPS, module)
    state_forms(module)
    module = replace(
        module,
        functions={
            name: replace(f, nodes=tuple(with_activations(n, options["activations"]) for n in f.nodes))
            for name, f in module.functions.items()
        },
    )
    names = {name for f in module.functions.values() for name in attention_forms(f)}
    ready = decompose(module, lambda node: _kept(node, names))
    for function in ready.functions.values():
        for node in function.nodes:
            if not CAPS.lowers(node.op):
                raise refuse(node, CAPS.refusal(node.op) or "there is no lowering of it")
    used = {name for f in ready.functions.values() for name in f.weights()}
    ready = replace(ready, weights={name: w for name, w in ready.weights.items() if name in used})
    dims = dict(ready.dims)
    if "B" in dims:
        dims["B"] = DimRange(1, min(dims["B"].high, int(options["batch"])))
    return replace(ready, dims=dims)


def with_activations(node: Node, activations: str) -> Node:
    """Return a product with weights of codes that says how its inputs are rounded.

    ``auto`` is the groups of the weight itself; so is what ``calibrated`` (:mod:`omnic.passes.activations`) has not
    decided, since the calibration text never reached it.
    """
    if node.op not in _WEIGHTS_OF or activations == "f32" or attrs_of(node)["act"] != "none":
        return node
    weights = [v for at in _WEIGHTS_OF[node.op] if (v := node.operands[at]) is not None]
    found = {_own_activation(v) for v in weights}
    own = activations in ("auto", "calibrated")
    if None in found or (own and len(found) > 1):
        return node
    act = found.pop() if own else activations
    assert act is not None
    group = activation_group(act)
    widths = [int(str(v.type.shape[-1])) for v in weights]
    if group and any(w % group for w in widths):
        return node
    return replace(node, attrs={**node.attrs, "act": act})


def _own_activation(value: Value) -> str | None:
    """Return the rounding in the groups of a weight's codes, None for a weight of plain numbers."""
    element = value.type.element
    if not value.weight or not isinstance(element, Storage) or panels_of(value.type).scale is None:
        return None
    return f"i8<g{element.group}>" if element.group > 0 else "i8<per_token>"


def _kept(node: Node, in_place: set[str]) -> bool:
    """Whether a composite is lowered as it is."""
    if not CAPS.lowers(node.op):
        return False
    operands = node.operands
    if node.op in ("attention", "mla"):
        return node.name in in_place and (node.op == "attention" or _weights(operands[4:6]))
    if node.op in ("linear", "lm_head"):
        return _weights(operands[1:2]) and _weights(operands[2:3] if node.op == "linear" else operands[3:4])
    if node.op == "lm_argmax":
        return _weights((operands[1], *operands[3:]))
    if node.op == "embedding":
        return _weights(operands[:1])
    if node.op in ("rms_norm", "layer_norm"):
        return _weights(operands[1:])
    if node.op == "router":
        return _weights(operands[1:])
    if node.op == "gated_act":
        return _plain_gate(node)
    if node.op == "moe":
        return _weights(operands[3:])
    return True


def _weights(values: tuple[Value | None, ...]) -> bool:
    return all(v is None or v.weight for v in values)


def _plain_gate(node: Node) -> bool:
    attrs = attrs_of(node)
    return attrs["alpha"] == 1.0 and attrs["beta"] == 0.0 and attrs.get("limit") is None


def remarks(module: Module) -> tuple[str, ...]:
    """Say of each weight of codes that is not read as it lies what is done with it."""
    used = {name for f in module.functions.values() for name in f.weights()}
    found: list[str] = []
    for name in sorted(used):
        weight = module.weights[name]
        if not isinstance(weight.type.element, Storage):
            continue
        panels = panels_of(weight.type) if weight.type.rank in (2, 3) else None
        kind = "f32" if panels is None else panels.code
        if kind != weight.type.element.kind and weight.type.element.kind != "t2":
            found.append(f"weight {name} ({weight.type}) lies in the file as {kind}{'' if kind == 'f32' else ' codes'}")
    return tuple(found)
