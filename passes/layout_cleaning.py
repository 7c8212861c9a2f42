"""Transposes and reshapes that cancel, merge, or move to where they cancel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from omnic.ir.builder import FunctionBuilder
from omnic.ir.graph import Module, Value
from omnic.ir.rewrite import Match, Pattern, Remark, Rule, rewrite
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, register_pass

__all__ = ["LayoutCleaning"]

# What computes each number from one number, whatever the order they lie in.
_UNARY = ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "erf", "round", "relu", "cast",
          "clamp", "act", "not")


def _perm(match: Match, name: str) -> tuple[int, ...]:
    return cast("tuple[int, ...]", match.nodes[name].attrs["perm"])


def _is_itself(match: Match) -> str | None:
    """Rule 1 asks that nothing moves."""
    node = match.nodes["root"]
    if node.result.type != match["x"].type:
        return "the type changes"
    if node.op == "transpose" and _perm(match, "root") != tuple(range(node.result.type.rank)):
        return "dims change their places"
    return None


def _operand(b: FunctionBuilder, match: Match) -> Value:
    return match["x"]


def _composed(b: FunctionBuilder, match: Match) -> Value:
    """Rule 2."""
    inner, outer = _perm(match, "inner"), _perm(match, "root")
    perm = tuple(inner[p] for p in outer)
    return match["x"] if perm == tuple(range(len(perm))) else b.op("transpose", match["x"], perm=perm)


def _reshaped(b: FunctionBuilder, match: Match) -> Value:
    """Rule 3."""
    wanted = match.nodes["root"].result.type
    return match["x"] if match["x"].type == wanted else b.op("reshape", match["x"], shape=wanted.shape)


def _moves_ones(match: Match) -> str | None:
    """Rule 4 asks that only dims of 1 change their places among the others."""
    perm, shape = _perm(match, "root"), match["x"].type.shape
    left = [p for p in perm if shape[p] != 1]
    if left != sorted(left):
        return "dims longer than 1 change their places"
    return None


def _as_reshape(b: FunctionBuilder, match: Match) -> Value:
    """Rule 4."""
    return b.op("reshape", match["x"], shape=match.nodes["root"].result.type.shape)


def _pushed(b: FunctionBuilder, match: Match) -> Value:
    """Rule 5: transpose first, compute then; the two transposes meet and rule 2 merges them."""
    node = match.nodes["unary"]
    turned = b.op("transpose", match["inner"], perm=_perm(match, "root"))
    return b.op(node.op, turned, **cast("dict[str, Any]", dict(node.attrs)))


def _swaps_last(match: Match) -> str | None:
    """Rule 6 asks for a swap of the last two dims."""
    perm = _perm(match, "inner")
    rank = len(perm)
    if rank < 2 or perm != (*range(rank - 2), rank - 1, rank - 2):
        return "it does not swap the last two dims"
    return None


def _flagged(flag: str) -> Any:
    def build(b: FunctionBuilder, match: Match) -> Value:
        """Rule 6."""
        attrs = cast("dict[str, Any]", dict(match.nodes["root"].attrs))
        attrs[flag] = not attrs.get(flag, False)
        a, c = (match["x"], match["b"]) if flag == "ta" else (match["a"], match["x"])
        return b.op("matmul", a, c, **attrs)

    return build


_IDENTITY = [
    Rule(f"same-{op}", Pattern("root", {"root": (op, "x")}), _operand, (_is_itself,))
    for op in ("transpose", "reshape", "broadcast", "slice", "pad", "concat")
]
_MERGE = [
    Rule("transpose-transpose", Pattern("root", {"root": ("transpose", "inner"), "inner": ("transpose", "x")},
                                        shared=frozenset({"inner"})), _composed),
    Rule("reshape-reshape", Pattern("root", {"root": ("reshape", "inner"), "inner": ("reshape", "x")},
                                    shared=frozenset({"inner"})), _reshaped),
    Rule("reshape-of-ones", Pattern("root", {"root": ("transpose", "x")}), _as_reshape, (_moves_ones,)),
]
_PUSH = [
    Rule(f"push-{op}", Pattern("root", {"root": ("transpose", "unary"), "unary": (op, "inner"),
                                        "inner": ("transpose", "x")}, shared=frozenset({"inner"})), _pushed)
    for op in _UNARY
]
_MATMUL = [
    Rule("transpose-matmul", Pattern("root", {"root": ("matmul", "inner", "b"), "inner": ("transpose", "x")},
                                     shared=frozenset({"inner"})), _flagged("ta"), (_swaps_last,)),
    Rule("matmul-transpose", Pattern("root", {"root": ("matmul", "a", "inner"), "inner": ("transpose", "x")},
                                     shared=frozenset({"inner"})), _flagged("tb"), (_swaps_last,)),
]


@register_pass
@dataclass(frozen=True)
class LayoutCleaning:
    """Cancel transposes and reshapes, and move them to where they cancel.

    1. A ``transpose reshape broadcast slice pad`` or ``concat`` that changes nothing is its operand.
    2. A transpose of a transpose is one transpose, or nothing.
    3. A reshape of a reshape is one reshape, or nothing.
    4. A transpose that moves only dims of 1 is a reshape.
    5. A transpose moves before an op that computes number by number, where another transpose is before that.
    6. A transpose of the last two dims before ``matmul`` is the product's ``ta`` or ``tb``.

    Given::

        %t = transpose(%x) {perm = [0, 2, 1]} : f32[B, 8, 4]
        %s = sigmoid(%t) : f32[B, 8, 4]
        %y = transpose(%s) {perm = [0, 2, 1]} : f32[B, 4, 8]

    Result::

        %y = sigmoid(%x) : f32[B, 4, 8]
    """

    name: ClassVar[str] = "layout-cleaning"
    stage: ClassVar[Stage] = "front"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with its layout ops cleaned, function by function."""
        after, remarks = module, list[Remark]()
        for function in module.functions.values():
            cleaned, said = rewrite(function, [*_IDENTITY, *_MERGE, *_PUSH, *_MATMUL])
            if cleaned is not function:
                after = after.with_function(cleaned)
            # A layout op that does something is no near-miss; only what was done is told.
            remarks.extend(r for r in said if not r.missed)
        return PassResult(after, after is not module, tuple(remarks))
