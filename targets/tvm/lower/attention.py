"""Attention over states where they lie, absorbed MLA, and writing states."""

from __future__ import annotations

from omnic.ir.types import DType
from omnic.targets.tvm.lower.common import attrs_of, heads_view, operand, vector, with_heads
from omnic.targets.tvm.patterns import AttentionForm
from omnic.targets.tvm.plan import Lowering, Planner
from omnic.targets.tvm.schedule import Turn
from omnic.targets.tvm.text import dim, f32
from omnic.targets.tvm.views import View

__all__ = ["LOWERINGS"]


def _heads(p: Planner, view: View) -> View:
    """Return a view [B, H, T, D] whose last dim is contiguous, copied where it is not."""
    found = with_heads(view)
    if found.strides[-1] == 1 or found.shape[-1] == 1:
        return found
    made = p.new(found.shape, DType.F32, f"{view.buffer.name}_dense")
    p.copy(found, made)
    return made


def _mask(p: Planner, form: AttentionForm, attrs: dict[str, object], sinks: str, views: dict[str, View]) -> str:
    views |= {"start": p.dense(form.start), "length": p.dense(form.length)}
    parents = "NULL"
    if form.parents is not None:
        views["parents"] = p.dense(form.parents)
        parents = "$parents"
    batch, tokens = views["q"].shape[0], views["q"].shape[2]
    return (
        f"&(omnic_mask){{.batch = {dim(batch)}, .tokens = {dim(tokens)}, .start = $start, .length = $length, "
        f".parents = {parents}, .sinks = {sinks}, .scale = {f32(float(str(attrs['scale'])))}, "
        f".softcap = {f32(float(str(attrs['softcap'])))}, .window = {attrs['window']}}}"
    )


def _attention(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    attrs, form = attrs_of(node), p.forms[node.name]
    q = _heads(p, p.view(operand(node, 0)))
    y = p.out(node.result, (0, 2, 1, 3))
    views = {"q": q, "y": y}
    mask = _mask(p, form, attrs, vector(p, node.operands[5]), views)
    _, heads, tokens, width = node.result.type.shape
    k, v = operand(node, 1).type, operand(node, 2).type
    p.step(
        f"K->attention(&c, {mask}, {dim(heads)}, {dim(k.shape[1])}, {heads_view('q', q)}, {p.state(form.states[0])}, "
        f"{p.state(form.states[1])}, {heads_view('y', y)});",
        f"omnic_scratch_attention({dim(heads)}, {dim(tokens)}, {dim(k.shape[-1])}, {dim(width)}, {dim(v.shape[2])}, "
        "threads)",
        **views,
    )


def _mla(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    attrs, form = attrs_of(node), p.forms[node.name]
    nope, rope, w_k, w_v = (operand(node, at) for at in (0, 1, 4, 5))
    batch, heads, tokens, _ = nope.type.shape
    latent = w_k.type.shape[2]
    up, down = p.matrices.matrix(w_k, turned=True), p.matrices.matrix(w_v)
    sizes = f"{dim(heads)}, {dim(batch)}, {dim(tokens)}"

    def heads_product(name: str, x: View, y: View) -> None:
        p.step(f"K->linear_heads(&c, &P[{name}], {sizes}, {heads_view('x', x)}, {heads_view('y', y)});",
               f"omnic_scratch_linear(&W[{name}], {dim(batch * tokens)}, OMNIC_ACT_F32, 0, threads)", x=x, y=y)

    q_latent = p.new((batch, heads, tokens, latent), DType.F32, "q_latent", (0, 2, 1, 3))
    heads_product(up.name, _heads(p, p.view(nope)), q_latent)
    mixed = p.new((batch, heads, tokens, latent), DType.F32, "mixed_latent", (0, 2, 1, 3))
    q_rope = _heads(p, p.view(rope))
    views = {"q": q_latent, "rope": q_rope, "y": mixed}
    mask = _mask(p, form, attrs, "NULL", views)
    slots = operand(node, 2).type.shape[1]
    p.step(
        f"K->mla(&c, {mask}, {dim(heads)}, {heads_view('q', q_latent)}, {heads_view('rope', q_rope)}, "
        f"{p.state(form.states[0])}, {p.state(form.states[1])}, {heads_view('y', mixed)});",
        f"omnic_scratch_attention({dim(heads)}, {dim(tokens)}, {dim(latent + rope.type.shape[3])}, {dim(latent)}, "
        f"{dim(slots)}, threads)",
        **views,
    )
    heads_product(down.name, mixed, p.out(node.result, (0, 2, 1, 3)))


def _cache_write(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    state, value, start, length = (operand(node, at) for at in range(4))
    x = _heads(p, p.view(value))
    p.step(
        f"K->cache_write(&c, {p.state(p.state_of(state))}, {dim(x.shape[1])}, {dim(x.shape[0])}, {dim(x.shape[2])}, "
        f"$start, $length, {heads_view('x', x)});",
        start=p.dense(start), length=p.dense(length), x=x,
    )


def _cache_move(p: Planner, turn: Turn) -> None:
    node = turn.nodes[0]
    state, source, target = (operand(node, at) for at in range(3))
    heads = state.type.shape[1] if state.type.rank == 4 else 1
    batch, pairs = source.type.shape
    p.step(
        f"K->cache_move(&c, {p.state(p.state_of(state))}, {dim(heads)}, {dim(batch)}, {dim(pairs)}, $source, $target);",
        source=p.dense(source), target=p.dense(target),
    )


LOWERINGS: dict[str, Lowering] = {
    "attention": _attention, "mla": _mla, "cache_write": _cache_write, "cache_move": _cache_move,
}
