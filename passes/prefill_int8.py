"""A second function for prompts, whose products are of 8-bit integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from omnic.errors import InputError
from omnic.ir.graph import Function, Module, Node, Param, Recipe, Result, Value, Weight
from omnic.ir.rewrite import Remark
from omnic.ir.types import DType, Storage
from omnic.ir.weights import pinned
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, option, register_pass

__all__ = ["ACT", "CODES", "SUFFIX", "PrefillInt8", "prefill_bytes", "prefill_weights"]

NAME = "prefill-int8"
FUNCTION, SUFFIX = "prefill", ".prefill"
#: of the weights: one scale a row; of the activations: one scale a token
CODES, ACT = Storage("i8", 0), "i8<per_token>"


def prefill_weights(module: Module) -> tuple[Weight, ...]:
    """Return the weights that prompts alone are multiplied with."""
    if module.prefill_from is None:
        return ()
    others = {n for f in module.functions.values() if f.name != FUNCTION for n in f.weights()}
    return tuple(w for name, w in module.weights.items() if name not in others)


def prefill_bytes(module: Module) -> int:
    """Return the bytes of :func:`prefill_weights`, scales included."""
    return sum(w.type.bytes() for w in prefill_weights(module))


@register_pass
@dataclass(frozen=True)
class PrefillInt8:
    """Multiply the tokens of prompts with a second copy of the weights, in 8 bits.

    1. A function ``prefill`` stands beside ``forward``: the same parameters, states, nodes and results. A call of at
       least ``from_tokens`` tokens a row runs it, a shorter one ``forward`` (``meta prefill_from``; docs/ir.md).
    2. Each ``linear`` of it reads ``@X.prefill`` instead of ``@X``: i8 with one scale a row, rounded from the numbers
       that ``@X`` was itself rounded from, never from its codes. Its activations are ``i8<per_token>``: with a scale a
       token, its result does not depend on the tokens beside it.
    3. Those numbers are those of ``@X`` where it is of no storage type, what it rounds to nearest, or the weights given
       to the compile where calibration chose its codes. A norm that awq has scaled does not fit those: refused.
    4. Embedding, heads, routers, experts, MLA's up-projections, norms, biases and states are shared, and MTP blocks
       run as before. Products with ``act`` already, or with what is computed, stay as they are.

    Given::

        %y = linear(%x, @w) : f32[B, T, 256]

    Result: the same in ``forward``, and in ``prefill``::

        %y = linear(%x, @w.prefill) {act = "i8<per_token>"} : f32[B, T, 256]

    Attributes:
        from_tokens: the shortest call that runs ``prefill``, in tokens a row.
    """

    from_tokens: int = option(16, low=2, high=1 << 20)

    name: ClassVar[str] = NAME
    stage: ClassVar[Stage] = "lossy"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with a function for prompts and its weights.

        Raises:
            InputError: no call is as long, nothing to multiply with, a function of that name, or weights that are codes
                and nothing else.
        """
        if module.prefill_from is not None:
            return PassResult(module, False, (Remark(NAME, "@prefill is there already", missed=True),))
        forward = module.function()
        self._check(module, forward)
        found, remarks = self._products(forward)
        if not found:
            raise InputError(f"pass '{NAME}': @{module.name} has no product of a linear with a weight to copy",
                             "leave the pass out")
        weights = dict(module.weights)
        for name in dict.fromkeys(found.values()):
            if name + SUFFIX in weights:
                raise InputError(f"pass '{NAME}': @{module.name} has a weight @{name + SUFFIX} already")
            weight = module.weights[name]
            value = Value(name + SUFFIX, weight.type.with_element(CODES), weight=True)
            weights[value.name] = Weight(value, Recipe("quantise", {"type": CODES}, (_exact(module, weight, context),)))
        copies = {node: weights[name + SUFFIX].value for node, name in found.items()}
        after = replace(module, weights=weights, meta={**module.meta, "prefill_from": self.from_tokens})
        functions: dict[str, Function] = {}
        for name, function in module.functions.items():
            functions[name] = function
            if name == "forward":
                functions[FUNCTION] = _prefill(function, copies)
        after = replace(after, functions=functions)
        made = prefill_weights(after)
        told = f"{len(made)} weights of {prefill_bytes(after):,} bytes for calls of {self.from_tokens} tokens and more"
        return PassResult(after, True, (Remark(NAME, told), *remarks))

    def _check(self, module: Module, forward: Function) -> None:
        if FUNCTION in module.functions:
            raise InputError(f"pass '{NAME}': @{module.name} has a function @{FUNCTION} already",
                             "give the clone of specialise-phase another name")
        for name in ("start", "length"):
            if forward.param(name) is None:
                raise InputError(f"pass '{NAME}': @forward of @{module.name} takes no %{name}, so it has no phases",
                                 "run it before the pass that makes functions for training")
        longest = module.dims["T"].high if "T" in module.dims else 1
        if self.from_tokens > longest:
            raise InputError(f"pass '{NAME}': no call of @{module.name} has {self.from_tokens} tokens; "
                             f"T is at most {longest}", f"set from_tokens to {longest} or less")

    def _products(self, forward: Function) -> tuple[dict[str, str], list[Remark]]:
        """Return node -> weight of the products to copy (rule 4), and what was left and why."""
        found: dict[str, str] = {}
        remarks: list[Remark] = []
        for node in forward.nodes:
            if node.op == "moe":
                remarks.append(Remark(NAME, "experts are shared by both functions", node.name, True))
            if node.op != "linear":
                continue
            weight = node.operands[1]
            if weight is None or not weight.weight:
                remarks.append(Remark(NAME, "what it multiplies with is computed", node.name, True))
            elif node.attrs.get("act", "none") != "none":
                remarks.append(Remark(NAME, f"its activations are {node.attrs['act']} already", node.name, True))
            else:
                found[node.name] = weight.name
        return found, remarks


def _prefill(forward: Function, copies: Mapping[str, Value]) -> Function:
    """Return the clone of ``forward`` whose products are those of integers."""
    fresh = {v: replace(v) for v in forward.values()}

    def clone(node: Node) -> Node:
        operands = [fresh.get(v, v) if v is not None else None for v in node.operands]
        attrs = node.attrs
        if node.name in copies:
            operands[1], attrs = copies[node.name], {**attrs, "act": ACT}
        return replace(node, operands=tuple(operands), attrs=attrs, results=tuple(fresh[v] for v in node.results))

    params = tuple(Param(fresh[p.value], p.state) for p in forward.params)
    results = tuple(Result(r.name, fresh.get(r.value, r.value), r.state) for r in forward.results)
    return Function(FUNCTION, params, tuple(clone(n) for n in forward.nodes), results)


def _exact(module: Module, weight: Weight, context: PassContext) -> Recipe:
    """Return the recipe of the numbers that a weight stands for, as they were before any rounding (rule 3).

    Raises:
        InputError: it has none but its codes, or a norm was scaled for it.
    """
    if isinstance(weight.type.element, DType):
        return pinned(weight)
    plain = weight.type.with_element(DType.F32)
    known = _unrounded(weight.recipe)
    if known is not None:
        return pinned(Weight(replace(weight.value, type=plain), known))
    if weight.recipe.kind == "stored":
        front = context.need_weights(NAME).module
        source = front.weights.get(weight.name)
        fits = source is not None and source.type.shape == weight.type.shape
        if source is not None and fits and isinstance(source.type.element, DType):
            _check_scaled(module, front)
            return pinned(source)
    raise InputError(f"pass '{NAME}': @{weight.name} is {weight.type.element}, and its numbers before are not known",
                     f"list {NAME} before the passes that join weights; a model imported as codes cannot have it")


def _unrounded(recipe: Recipe) -> Recipe | None:
    """Return what a recipe rounds, through joined rows; None where a part of it is codes from elsewhere."""
    if recipe.kind == "quantise":
        return recipe.inputs[0]
    if recipe.kind != "concat":
        return None
    parts = [_unrounded(r) for r in recipe.inputs]
    known = tuple(p for p in parts if p is not None)
    return replace(recipe, inputs=known) if len(known) == len(parts) else None


def _check_scaled(module: Module, front: Module) -> None:
    """Refuse a module in which calibration has changed plain weights: the products behind them were changed too."""
    for name, weight in module.weights.items():
        if not isinstance(weight.type.element, DType) or weight.recipe.kind != "stored" or name not in front.weights:
            continue
        if weight.recipe != front.weights[name].recipe:
            raise InputError(f"pass '{NAME}': awq has scaled @{name}, which does not fit the weights as given",
                             "quantise with gptq, hqq or rtn")
