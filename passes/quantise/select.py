"""Which weights are quantised, and to which storage type each.

Matrices of products are; norms, routers, biases, sinks and convolutions stay as they are: they are few, and small
changes of a router change whole experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from omnic.ir.caps import Caps
from omnic.ir.graph import Module, Weight
from omnic.ir.rewrite import Remark
from omnic.ir.types import DType, Storage, TensorType
from omnic.ir.weights.companions import companion_of
from omnic.ir.weights.store import fixed_shape

__all__ = ["GROUPS", "Chosen", "Role", "Wanted", "choose", "roles"]

Role = Literal["linear", "expert", "embedding", "head", "latent"]

#: group sizes that are tried in turn where a target says nothing
GROUPS = (128, 64, 32, 16)

# Of each op: the operands that are matrices of products, and what they are.
_MATRICES: dict[str, dict[int, Role]] = {
    "linear": {1: "linear"},
    "moe": {3: "expert", 4: "expert", 5: "expert"},
    "embedding": {0: "embedding"},
    "lm_head": {1: "head"},
    "mla": {4: "latent", 5: "latent"},
}


@dataclass(frozen=True)
class Wanted:
    """The types that a pass was asked for.

    Attributes:
        body: of the matrices of layers and experts; its group is the largest that may be used.
        embedding: of tables that an embedding reads, tied heads among them; None leaves them.
        head: of output matrices that no embedding reads; None leaves them.
        latent: of MLA's up-projections; a plain type stores them so, None leaves them.
    """

    body: Storage
    embedding: Storage | None
    head: Storage | None
    latent: Storage | DType | None


@dataclass(frozen=True)
class Chosen:
    """A weight that changes its type."""

    weight: Weight
    role: Role
    element: Storage | DType

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.weight.name

    @property
    def type(self) -> TensorType:
        """The new type."""
        return self.weight.type.with_element(self.element)


def roles(module: Module) -> dict[str, Role]:
    """Return what each matrix is read as, by name; a weight that any other op reads as well is left out.

    A table that an embedding and a head read is an ``embedding``.
    """
    found: dict[str, set[Role | None]] = {}
    for function in module.functions.values():
        for node in function.nodes:
            for place, value in enumerate(node.operands):
                if value is not None and value.weight:
                    found.setdefault(value.name, set()).add(_MATRICES.get(node.op, {}).get(place))
    order: tuple[Role, ...] = ("embedding", "head", "latent", "expert", "linear")
    return {name: next(r for r in order if r in uses) for name, uses in found.items() if None not in uses}


def choose(module: Module, wanted: Wanted, caps: Caps | None) -> tuple[dict[str, Chosen], list[Remark]]:
    """Return the weights to quantise in the module's order, and what there is to say about groups and refusals."""
    chosen: dict[str, Chosen] = {}
    remarks: list[Remark] = []
    already: list[str] = []
    use = roles(module)
    by_role: Mapping[Role, Storage | DType | None] = {
        "linear": wanted.body, "expert": wanted.body, "embedding": wanted.embedding, "head": wanted.head,
        "latent": wanted.latent,
    }
    for name, weight in module.weights.items():
        element = by_role[use[name]] if name in use else None
        if element is None or not weight.type.is_float or companion_of(name) in module.weights:
            continue
        if not isinstance(weight.type.element, DType):
            already.append(name)
            continue
        fitted, said = (element, None) if isinstance(element, DType) else fit_group(weight, element, caps)
        if said is not None:
            remarks.append(Remark("int4-packing", f"@{name}: {said}", name))
        if fitted is not None:
            chosen[name] = Chosen(weight, use[name], fitted)
    if already:
        kinds = ", ".join(sorted({str(module.weights[name].type.element) for name in already}))
        said = f"{len(already)} weights stay {kinds}: they are quantised already, and rounding twice loses twice"
        remarks.append(Remark("int4-packing", said, already[0]))
    return chosen, remarks


def fit_group(weight: Weight, type: Storage, caps: Caps | None) -> tuple[Storage | None, str | None]:
    """Return ``type`` with the largest group a weight can have, and a remark where it is not the one asked for.

    The group is the largest allowed one, up to the one asked for, that divides the contraction dim, unless the
    target's kernels read a ragged last group.
    """
    shape = fixed_shape(weight.type)
    size = shape[type.axis]
    rule = None if caps is None else caps.rule(type.kind)
    if caps is not None and rule is None:
        return None, f"stays {weight.type.element}: {caps.storage_refusal(type, size)}"
    if type.group <= 0:
        refusal = None if caps is None else caps.storage_refusal(type, size)
        return (None, f"stays {weight.type.element}: {refusal}") if refusal else (type, None)
    if rule is not None:
        group = rule.pick(size, type.group)
    else:
        group = next((g for g in GROUPS if g <= type.group and size % g == 0), None)
    if group is None:
        return None, f"stays {weight.type.element}: no group up to {type.group} divides {size}"
    found = replace(type, group=group)
    refusal = None if caps is None else caps.storage_refusal(found, size)
    if refusal:
        return None, f"stays {weight.type.element}: {refusal}"
    if size % group:
        return found, f"the last group of {group} in {size} is short, which {caps.target if caps else ''} reads"
    return found, None if group == type.group else f"group {group}: {type.group} does not divide {size}"
