"""How the inputs of products with weights of codes are rounded, by what it costs on real text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError
from omnic.ir.graph import Module, Node, Value
from omnic.ir.op import find_op
from omnic.ir.ops.composite import activate, gate_of, gated
from omnic.ir.ops.linear import quantise_activation
from omnic.ir.rewrite import Remark
from omnic.ir.types import Storage
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, option, register_pass

__all__ = ["RoundActivations"]

NAME = "round-activations"
TOKEN, BF16 = "i8<per_token>", "bf16"
#: the operands of each op that are matrices
_MATRICES = {"linear": (1,), "lm_head": (1,), "lm_argmax": (1,), "moe": (3, 4, 5)}
#: rows of one call that are looked at
_ROWS = 64

Array = npt.NDArray[Any]


@dataclass
class _Errors:
    """Squared sums over all outputs that were looked at: of the exact ones, and of each rounding's errors."""

    exact: float = 0.0
    wrong: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, x: Array, w: Array, acts: tuple[str, ...]) -> None:
        """Add the outputs of x [R, K] times w [N, K]."""
        self.exact += float(np.square(x @ w.T).sum(dtype=np.float64))
        for act in acts:
            off = quantise_activation(x, act) - x
            self.wrong[act] = self.wrong.get(act, 0.0) + float(np.square(off @ w.T).sum(dtype=np.float64))

    def relative(self, act: str) -> float:
        """Return the error of a rounding relative to the outputs (root of sums of squares)."""
        return float(np.sqrt(self.wrong[act] / self.exact)) if self.exact > 0 else 0.0


@register_pass
@dataclass(frozen=True)
class RoundActivations:
    """Choose for each product with weights of codes how its inputs are rounded: codes of 8 bits or bf16.

    1. ``linear``, ``lm_head`` and ``moe`` of ``forward`` whose weights are all of storage types and whose ``act`` is
       ``none`` are looked at on calibration windows, products of one input together: it is rounded once.
    2. The error of a rounding is that of the outputs, relative to the outputs themselves, over all products of the
       input; of ``moe`` the worse of its two layers, over the experts that the router chose.
    3. ``i8<per_token>``, one scale for a whole row, is chosen where its error is at most ``bound`` times that of
       codes in the groups of the weight, or at most ``floor``; ``otherwise`` elsewhere.
    4. Other functions take the choice of the weight that they share. A rounding that the target does not execute is
       not chosen.

    Smoothing (int4-packing with method=awq) is in the weights and norms when this pass looks, and so in the errors.

    Given::

        %y = linear(%x, @w) : f32[B, T, 256]

    Result::

        %y = linear(%x, @w) {act = "i8<per_token>"} : f32[B, T, 256]

    Attributes:
        bound: the most that one scale a row may cost, in errors of one scale a group.
        floor: a relative error that is taken whatever groups would give.
        otherwise: where one scale a row costs more: bf16, or group (codes in the groups of the weight).
        windows: of the calibration text, at most.
    """

    bound: float = option(1.2, low=1.0, high=100.0)
    floor: float = option(0.01, low=0.0, high=1.0)
    otherwise: str = option("bf16", choices=("bf16", "group"))
    windows: int = option(16, low=1, high=4096)

    name: ClassVar[str] = NAME
    stage: ClassVar[Stage] = "lossy"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with the choices in its products.

        Raises:
            InputError: there are no weights, no text or nothing to run the module with, or an input is not finite.
        """
        nodes = {n.name: n for n in module.function().nodes if _groups(n) is not None}
        if not nodes:
            return PassResult(module, False, (Remark(NAME, "no product has weights of codes alone", missed=True),))
        errors = self._measure(module, nodes, context)
        chosen: dict[str, str] = {}
        shared: dict[str, str] = {}
        remarks: list[Remark] = []
        for node in nodes.values():
            act, said = self._choice(node, errors[_key(node)], context)
            remarks.append(Remark(NAME, said, node.name, act is None))
            if act is not None:
                chosen[node.name] = act
                shared[_weights(node)[0].name] = act
        functions = {
            name: replace(f, nodes=tuple(_rounded(n, {} if name != "forward" else chosen, shared) for n in f.nodes))
            for name, f in module.functions.items()
        }
        return PassResult(replace(module, functions=functions), bool(chosen), tuple(remarks))

    def _choice(self, node: Node, errors: list[_Errors], context: PassContext) -> tuple[str | None, str]:
        """Return the rounding of a node and what is said of it."""
        acts = _acts(node)
        if not errors:
            return None, "the text reached none of it: left to the target"
        worst = {act: max(e.relative(act) for e in errors) for act in acts}
        own = acts[-1]
        otherwise = BF16 if self.otherwise == "bf16" else own
        safe = worst[TOKEN] <= max(self.bound * worst[own] if own not in (TOKEN, BF16) else 0.0, self.floor)
        act = TOKEN if safe else otherwise
        told = ", ".join(f"{a} {worst[a]:.2%}" for a in acts)
        if context.caps is not None and act not in context.caps.activations:
            return None, f"{context.caps.target} does not execute {act}; errors: {told}"
        return act, f"{act}; errors of its outputs: {told}"

    def _measure(
        self, module: Module, nodes: Mapping[str, Node], context: PassContext
    ) -> dict[str, list[_Errors]]:
        """Return the errors of each input: one entry, of ``moe`` one for each of its two layers."""
        weights = context.need_weights(NAME)
        tokens = context.need_calibration(NAME).tokens
        # Other functions may hold ops that the executor does not run.
        forward = module.function()
        used = {name: module.weights[name] for name in dict.fromkeys(forward.weights())}
        alone = replace(module, functions={"forward": forward}, weights=used)
        executor = context.need_executor(NAME)(alone, weights.with_module(alone))
        found: dict[str, list[_Errors]] = {_key(n): [] for n in nodes.values()}

        def visit(name: str, operands: tuple[Any, ...], results: tuple[Any, ...]) -> None:
            node = nodes[name]
            x = np.asarray(operands[0], np.float32)
            x = x.reshape(-1, x.shape[-1])
            if not np.isfinite(x).all():
                raise InputError(f"the input of {name} holds NaN or infinite numbers on the calibration text",
                                 "the weights are damaged, or the training that made them diverged")
            sums = found[_key(node)]
            if not sums:
                sums += [_Errors() for _ in range(2 if node.op == "moe" else 1)]
            rows = np.unique(np.linspace(0, len(x) - 1, min(_ROWS, len(x))).astype(int))
            if node.op == "moe":
                _experts(node, x, rows, operands, sums)
            else:
                sums[0].add(x[rows], np.asarray(operands[1], np.float32), _acts(node))

        chosen = tokens[np.unique(np.linspace(0, len(tokens) - 1, min(self.windows, len(tokens))).astype(int))]
        for at, window in enumerate(chosen):
            context.progress(NAME, at / len(chosen))
            executor.observe(window[None], list(nodes), visit)
        return found


def _experts(node: Node, x: Array, rows: Array, operands: tuple[Any, ...], sums: list[_Errors]) -> None:
    """Add what the chosen experts of some rows read: for up and gate, and for down."""
    up, down, gate = (None if operands[at] is None else np.asarray(operands[at], np.float32) for at in (3, 4, 5))
    assert up is not None and down is not None
    indices = np.asarray(operands[1]).reshape(len(x), -1)
    biases = {at: None if operands[at] is None else np.asarray(operands[at], np.float32) for at in (6, 8)}
    attrs = find_op("moe").bind(node.attrs)
    acts = _acts(node)
    for expert in np.unique(indices[rows]):
        seen = x[rows[(indices[rows] == expert).any(-1)]]
        inner = seen @ up[expert].T + (0 if (bias := biases[6]) is None else bias[expert])
        sums[0].add(seen, up[expert], acts)
        if gate is None:
            hidden = activate(inner, str(attrs["kind"]))
        else:
            opening = seen @ gate[expert].T + (0 if (bias := biases[8]) is None else bias[expert])
            sums[0].add(seen, gate[expert], acts)
            hidden = gated(opening, inner, str(attrs["kind"]), **gate_of(attrs))
        sums[1].add(np.asarray(hidden, np.float32), down[expert], acts)


def _weights(node: Node) -> list[Value]:
    """Return the matrices of a product."""
    return [v for at in _MATRICES.get(node.op, ()) if at < len(node.operands) and (v := node.operands[at]) is not None]


def _groups(node: Node) -> tuple[int, ...] | None:
    """Return the groups of the weights of a product of codes that nobody has decided, None for any other node."""
    values = _weights(node)
    if not values or find_op(node.op).bind(node.attrs).get("act", "none") != "none":
        return None
    found: list[int] = []
    for value in values:
        element = value.type.element
        if not value.weight or not isinstance(element, Storage) or element.kind == "nf4" or element.axis != -1:
            return None
        width = value.type.shape[-1]
        found.append(element.group if element.group > 0 and isinstance(width, int) and not width % element.group else 0)
    return tuple(found)


def _acts(node: Node) -> tuple[str, ...]:
    """Return the roundings that are compared; the last is that of the groups of the weights, where they have one."""
    groups = set(_groups(node) or ())
    own = groups.pop() if len(groups) == 1 else 0
    return (TOKEN, BF16, f"i8<g{own}>") if own else (BF16, TOKEN)


def _key(node: Node) -> str:
    """Return what is decided together: the products of one input with groups alike, and each ``moe`` alone."""
    source = node.operands[0]
    assert source is not None
    return f"{node.op} {node.name}" if node.op == "moe" else f"{source.name} {_acts(node)}"


def _rounded(node: Node, chosen: Mapping[str, str], shared: Mapping[str, str]) -> Node:
    """Return a node with the rounding that was chosen for it, or in another function for its weight."""
    if _groups(node) is None:
        return node
    act = chosen.get(node.name) or shared.get(_weights(node)[0].name)
    return replace(node, attrs={**node.attrs, "act": act}) if act else node
