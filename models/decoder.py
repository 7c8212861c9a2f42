"""The decoder: one ``forward`` for prefill, decode and verification, and the MTP block beside it.

The signature is fixed in ``docs/ir.md``: tokens, positions, start, length and rows go in with the
states; logits of the wanted rows, the hidden states and the new states come out.
"""

from __future__ import annotations

from omnic.ir.builder import FunctionBuilder, ModuleBuilder
from omnic.ir.dims import DimRange, symbol
from omnic.ir.graph import Module, Value
from omnic.ir.types import DType, TensorType
from omnic.models import heads
from omnic.models.context import Context, loc_of, residual_std
from omnic.models.registry import attention_builder, ffn_builder
from omnic.spec import Layer, Spec

__all__ = ["build"]

MAX_BATCH = 64
B, T, R = symbol("B"), symbol("T"), symbol("R")


def build(spec: Spec, *, tree: bool = False) -> Module:
    """Build the front module of ``spec``: lossless and free of any target.

    Args:
        spec: a validated spec.
        tree: with the optional ``parents`` input, for verifying a tree of drafts in one call.

    Returns:
        A module with the function ``forward``, and ``mtp`` (or ``mtp.0``...) for block MTP.

    Raises:
        InputError: an unknown block kind, or a combination that has no meaning.
    """
    layers = spec.layers()
    module = ModuleBuilder(
        spec.model,
        {"B": DimRange(1, MAX_BATCH), "T": DimRange(1, spec.chunk), "R": DimRange(1, spec.chunk)},
        {"vocab": spec.vocab.size, "context": spec.context, "capacity": spec.capacity, "chunk": spec.chunk},
    )
    _forward(module, spec, layers, tree)
    mtp = spec.heads.mtp
    block = spec.mtp_layer()
    if mtp is not None and mtp.kind == "block" and block is not None:
        for depth in range(mtp.depth):
            name = "mtp" if mtp.depth == 1 else f"mtp.{depth}"
            _mtp_block(module, spec, block, name, len(layers) + depth, len(layers), tree)
    return module.build()


def _start(
    module: ModuleBuilder, spec: Spec, name: str, inputs: tuple[tuple[str, TensorType], ...], layers: int, tree: bool
) -> tuple[Context, list[Value], Value]:
    """Begin a function: its own inputs, then positions, start, length, rows; returns rows last."""
    f = module.function(name)
    own = [f.param(n, t) for n, t in inputs]
    index = TensorType(DType.I64, (B, T))
    positions = f.param("positions", index)
    start = f.param("start", TensorType(DType.I64, (B,)))
    length = f.param("length", TensorType(DType.I64, (B,)))
    rows = f.param("rows", TensorType(DType.I64, (B, R)))
    parents = f.param("parents", index) if tree else None
    q_index = _logical_index(f, start)
    return Context(module, f, spec, positions, start, length, q_index, parents, residual_std(spec, layers)), own, rows


def _logical_index(f: FunctionBuilder, start: Value) -> Value:
    """Start [B] -> i64[B, T]: the logical index of every new token."""
    with f.scope("index"):
        return f.op("add", f.reshape(start, B, 1), f.op("iota", size=(T,)), hint="q_index")


def _forward(module: ModuleBuilder, spec: Spec, layers: tuple[Layer, ...], tree: bool) -> None:
    ctx, (tokens,), rows = _start(
        module, spec, "forward", (("tokens", TensorType(DType.I64, (B, T))),), len(layers), tree
    )
    f = ctx.f
    with f.scope("embed", loc_of(spec.place("vocab"))):
        x = heads.embedded(ctx, tokens, hint="x")
        if spec.position_table is not None:
            x = f.op("add", x, heads.learned_positions(ctx, spec.position_table), hint="x")
        if spec.norm.embedding:
            x = ctx.norm(x, "embed_norm", layers[0].norm)
    states_from = len(f.outputs)
    for layer in layers:
        x = block(ctx, x, layer, layer.index, f"blocks.{layer.index}")
    states = f.outputs[states_from:]
    del f.outputs[states_from:]
    final = layers[-1].norm
    with f.scope("final_norm", loc_of(spec.place("norm"))):
        normed = ctx.norm(x, "final_norm", final)
    with f.scope("head", loc_of(spec.place("vocab"))):
        f.result("logits", heads.main_head(ctx, normed, rows))
    f.result("hidden", normed if _reads_normed(spec) else x)
    if spec.heads.mtp is not None and spec.heads.mtp.kind == "linear":
        with f.scope("mtp", loc_of(spec.place("heads.mtp"))):
            f.result("mtp", heads.linear_mtp(ctx, normed, rows, spec.heads.mtp.depth))
    if spec.heads.verifier:
        with f.scope("verifier", loc_of(spec.place("heads.verifier"))):
            f.result("verifier", heads.verifier_head(ctx, normed, rows))
    f.outputs.extend(states)


def _mtp_block(module: ModuleBuilder, spec: Spec, layer: Layer, name: str, group: int, layers: int, tree: bool) -> None:
    inputs = (("hidden", TensorType(DType.F32, (B, T, spec.width))), ("next_tokens", TensorType(DType.I64, (B, T))))
    ctx, (hidden, following), rows = _start(module, spec, name, inputs, layers, tree)
    f = ctx.f
    with f.scope(name, loc_of(spec.place("heads.mtp"))):
        x = heads.mtp_input(ctx, hidden, following, name, layer.norm)
        states_from = len(f.outputs)
        x = block(ctx, x, layer, group, f"{name}.block", scope="block")
        states = f.outputs[states_from:]
        del f.outputs[states_from:]
        with f.scope("final_norm"):
            normed = ctx.norm(x, f"{name}.final_norm", layer.norm)
        with f.scope("head"):
            f.result("logits", heads.main_head(ctx, normed, rows))
    f.result("hidden", normed if _reads_normed(spec) else x)
    f.outputs.extend(states)


def _reads_normed(spec: Spec) -> bool:
    """Whether an MTP block reads what the final norm gives, not the residual stream."""
    return spec.heads.mtp is not None and spec.heads.mtp.normed


def block(ctx: Context, x: Value, layer: Layer, group: int, prefix: str, scope: str | None = None) -> Value:
    """One block: attention and feed-forward, each in a residual branch.

    ``norm.place``: ``pre`` is x + f(norm(x)); ``post`` is x + norm(f(x)) (OLMo 2, arXiv:2501.00656);
    ``both`` is x + norm(f(norm(x))) (Gemma 2, arXiv:2408.00118); ``parallel`` is x + attention(norm(x)) + ffn(norm'(x))
    (GPT-NeoX, arXiv:2204.06745).  What a branch adds is times ``multipliers.residual``.  x is [B, T, D]; ``group``
    numbers the states; ``prefix`` names the weights.
    """
    norm = layer.norm
    attend, feed = attention_builder(layer.attention.kind), ffn_builder(layer.ffn)

    def branch(x: Value, name: str) -> Value:
        inner = f"{prefix}.{name}"
        y = x if norm.place == "post" else ctx.norm(x, f"{inner}_norm", norm)
        with ctx.f.scope(name):
            y = attend(ctx, y, layer, group, inner) if name == "attn" else feed(ctx, y, layer, inner)
        if norm.place in ("post", "both"):
            y = ctx.norm(y, f"{inner}_post_norm", norm)
        return ctx.times(y, ctx.spec.multipliers.residual)

    with ctx.f.scope(scope or prefix, loc_of(layer.place)):
        attended = ctx.f.op("add", x, branch(x, "attn"), hint="x")
        return ctx.f.op("add", attended, branch(x if norm.place == "parallel" else attended, "ffn"), hint="x")
