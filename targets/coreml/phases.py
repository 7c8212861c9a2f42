"""The functions of a package: clones of the IR's functions for one row and the lengths that an app calls with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from omnic.errors import InputError
from omnic.ir.dims import Dim, evaluate, symbol
from omnic.ir.graph import AttrValue, Function, Module, Node
from omnic.ir.op import find_op
from omnic.passes.specialise import substitute_dims
from omnic.targets.coreml.options import Options
from omnic.targets.coreml.writer import sanitised

__all__ = ["CallForm", "call_forms", "clone"]


@dataclass(frozen=True)
class CallForm:
    """One function of the package.

    Attributes:
        name: such as ``decode``, ``verify_16``, ``prefill``, ``mtp_decode``.
        function: of the IR.
        sizes: lengths it takes: one, some, or the lowest and the highest of a range.
        length: ``fixed``, ``enumerated`` or ``ranged``.
        rows: R, how many rows of logits it gives.
    """

    name: str
    function: str
    sizes: tuple[int, ...]
    length: str
    rows: int

    @property
    def tokens(self) -> int | None:
        """The only length, None when there are several."""
        return self.sizes[0] if self.length == "fixed" else None

    @property
    def longest(self) -> int:
        """The greatest length."""
        return max(self.sizes)


def call_forms(module: Module, options: Options) -> tuple[CallForm, ...]:
    """Return the functions of a package in order: decode, verify, prefill, for each function of the IR.

    Raises:
        InputError: a length beyond what the module takes in one call.
    """
    high = module.dims["T"].high if "T" in module.dims else 1
    for name, lengths in (("sizes", options.sizes), ("verify", options.verify if options.verify != (16,) else ())):
        beyond = [n for n in lengths if n > high]
        if beyond:
            raise InputError(
                f"target coreml: {name} has {beyond[0]}; a call of {module.name} takes at most {high} tokens (chunk)",
                f"write lengths up to {high}, or raise chunk in the spec",
            )
    found: list[CallForm] = []
    for function in module.functions.values():
        prefix = "" if function.name == "forward" else f"{sanitised(function.name)}_"
        found.append(CallForm(f"{prefix}decode", function.name, (1,), "fixed", 1))
        found += [CallForm(f"{prefix}verify_{k}", function.name, (k,), "fixed", k) for k in options.verify if k <= high]
        if high == 1:
            continue
        sizes = options.sizes or ((1, high) if options.length == "ranged" else (high,))
        found.append(CallForm(f"{prefix}prefill", function.name, sizes, options.length, 1))
    return tuple(found)


def clone(module: Module, form: CallForm) -> Function:
    """Return the function of the IR for one row and the lengths of ``form``.

    ``mla`` gets the form that multiplies less; experts are gathered for a call that chooses no more than there are.
    """
    values: dict[str, Dim] = {"B": 1, "R": form.rows}
    values["T"] = form.tokens if form.tokens is not None else symbol("T")
    made = substitute_dims(replace(module.function(form.function), name=form.name), values)
    return replace(made, nodes=tuple(_chosen(n, form) for n in made.nodes))


def _chosen(node: Node, form: CallForm) -> Node:
    if node.op == "mla":
        types = tuple(v.type if v is not None else None for v in node.operands)
        bound = find_op("mla").bind(node.attrs)
        cost = {
            kind: evaluate(find_op("mla").flops(*types, **{**bound, "form": kind}), {"T": form.longest})
            for kind in ("absorbed", "naive")
        }
        recent = len(node.operands) > 10 and node.operands[10] is not None
        return _with(node, {"form": "absorbed" if recent else min(cost, key=lambda k: cost[k])})
    if node.op == "moe":
        indices, up = node.operands[1], node.operands[3]
        assert indices is not None
        assert up is not None
        chosen = form.longest * int(str(indices.type.shape[2]))
        gather = form.tokens is not None and chosen <= int(str(up.type.shape[0]))
        return _with(node, {"dispatch": "gather" if gather else "dense"})
    return node


def _with(node: Node, attrs: Mapping[str, AttrValue]) -> Node:
    definition = {a.name: a for a in find_op(node.op).attrs}
    kept = {k: v for k, v in {**node.attrs, **attrs}.items() if not definition[k].is_default(v)}
    return replace(node, attrs=kept)
