"""What a model weighs and costs, counted from its IR: parameters, bytes, states, arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from omnic.ir.dims import evaluate
from omnic.ir.graph import Function, Module, Node
from omnic.ir.op import find_op
from omnic.ir.types import TensorType

__all__ = ["Summary", "kind_of", "summarise"]

#: ops whose arithmetic grows with the context, not with the weights
ATTENTION_OPS = ("attention", "mla")


@dataclass(frozen=True)
class Summary:
    """Totals of one model; bytes are bytes, FLOPs count 2 per multiply-add, embeddings 0.

    Attributes:
        parameters: numbers in all weights.
        active: numbers that one token multiplies with through the main head: chosen and shared
            experts, no MTP, no verifier, no embedding table unless it is the head.
        by_kind: parameters of each kind of weight.
        bytes_by_kind: their bytes as stored, scales included.
        weight_bytes: the sum of those.
        kv_bytes_per_token: bytes one more token adds to all states of the main model.
        state_bytes: bytes of all states at capacity, batch 1.
        flops_per_token: products with weights, one decoded token.
        attention_flops_per_token: products with the states when they are full.
        weight_bytes_per_token: weight bytes one decoded token reads.
        state_bytes_per_token: state bytes it reads when they are full.
    """

    model: str
    parameters: int
    active: int
    by_kind: Mapping[str, int]
    bytes_by_kind: Mapping[str, int]
    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes: int
    flops_per_token: int
    attention_flops_per_token: int
    weight_bytes_per_token: int
    state_bytes_per_token: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def kind_of(name: str) -> str:
    """Return the kind of a weight from its name: what a table of bytes calls it."""
    last = name.rsplit(".", 1)[-1]
    if last == "prefill":
        return "prefill copies"
    if last.endswith("norm") or last.endswith("norm_bias"):
        return "norms"
    if name.startswith("mtp"):
        return "mtp"
    if name in ("embed", "head", "verifier"):
        return {"embed": "embedding"}.get(name, name)
    if ".experts." in name:
        return "experts"
    if ".shared." in name:
        return "shared experts"
    if last in ("router", "group_router", "select_bias", "router_bias"):
        return "routers"
    return "attention" if ".attn" in name else "feed-forward" if ".ffn" in name else "other"


def summarise(module: Module) -> Summary:
    """Count ``module`` (any stage that still has ``forward``)."""
    forward = module.function("forward")
    by_kind: dict[str, int] = {}
    bytes_by_kind: dict[str, int] = {}
    for weight in module.weights.values():
        kind = kind_of(weight.name)
        by_kind[kind] = by_kind.get(kind, 0) + _count(weight.type)
        bytes_by_kind[kind] = bytes_by_kind.get(kind, 0) + weight.type.bytes()
    main = _main_path(forward)
    shares = _shares(main)
    flops, attention = _flops(main)
    states = {r.state for r in forward.results if r.state}
    slot = sum(_state_bytes(module.states[s].type) // _capacity(module.states[s].type) for s in states if s)
    read = sum(_state_bytes(module.states[s].type) for s in states if s)
    return Summary(
        model=module.name,
        parameters=module.parameters(),
        active=round(sum(_count(module.weights[n].type) * share for n, share in shares.items())),
        by_kind=by_kind,
        bytes_by_kind=bytes_by_kind,
        weight_bytes=sum(bytes_by_kind.values()),
        kv_bytes_per_token=slot,
        state_bytes=sum(_state_bytes(s.type) for s in module.states.values()),
        flops_per_token=flops,
        attention_flops_per_token=attention,
        weight_bytes_per_token=round(sum(module.weights[n].type.bytes() * share for n, share in shares.items())),
        state_bytes_per_token=read,
    )


def _main_path(function: Function) -> tuple[Node, ...]:
    """The nodes that the main logits and the states need (no MTP, no verifier)."""
    wanted = {r.value for r in function.results if r.state or r.name == "logits"}
    kept: list[Node] = []
    for node in reversed(function.nodes):
        if any(r in wanted for r in node.results):
            kept.append(node)
            wanted.update(node.inputs())
    return tuple(reversed(kept))


def _shares(nodes: tuple[Node, ...]) -> dict[str, float]:
    """Weight name -> share of its numbers that one token touches in products and norms."""
    shares: dict[str, float] = {}
    for node in nodes:
        for index, value in enumerate(node.operands):
            if value is None or not value.weight:
                continue
            share = 1.0
            if node.op == "embedding":
                share = 0.0
            elif node.op == "moe" and index >= 3:
                indices, experts = node.operands[1], value.type.shape[0]
                assert indices is not None and isinstance(experts, int)
                chosen = indices.type.shape[-1]
                assert isinstance(chosen, int)
                share = chosen / experts
            shares[value.name] = max(shares.get(value.name, 0.0), share)
    return shares


def _flops(nodes: tuple[Node, ...]) -> tuple[int, int]:
    """FLOPs of products with weights and with states, for one token of one row."""
    one = {"B": 1, "T": 1, "R": 1}
    weights = attention = 0
    for node in nodes:
        op = find_op(node.op)
        types = op.arrange(tuple(v.type if v else None for v in node.operands))
        count = evaluate(op.flops(*types, **op.bind(node.attrs)), one)
        if node.op in ATTENTION_OPS:
            attention += count
        else:
            weights += count
    return weights, attention


def _count(type: TensorType) -> int:
    return evaluate(type.size, {})


def _state_bytes(type: TensorType) -> int:
    """Bytes of one row (B = 1) of a state."""
    return TensorType(type.element, tuple(evaluate(d, {"B": 1}) for d in type.shape)).bytes()


def _capacity(type: TensorType) -> int:
    return evaluate(type.shape[-2], {"B": 1})
