"""Hypothesis strategies: random valid modules, built with the builders over many ops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from hypothesis import strategies as st

from omnic.ir.builder import FunctionBuilder, ModuleBuilder
from omnic.ir.dims import DimRange, ceildiv, floordiv, minimum, symbol
from omnic.ir.graph import Function, Loc, Module, Node, Recipe, State, Value
from omnic.ir.types import DType, Storage, TensorType

B, T = symbol("B"), symbol("T")
F32 = DType.F32

_plain = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}(\.[a-z0-9]{1,4})?", fullmatch=True)
_locs = st.one_of(st.none(), st.builds(Loc, st.text(max_size=8), st.integers(1, 99), st.integers(1, 99)))
names = st.one_of(_plain, st.text(min_size=1, max_size=8))
floats = st.floats(width=64)
dims = st.sampled_from(
    [1, 2, 7, B, T, T + 1, B * T, 2 * T - 1, floordiv(T, 4), ceildiv(T + 3, 16), minimum(T, 4), 4096]
)
elements = st.one_of(
    st.sampled_from(list(DType)),
    st.builds(Storage, st.sampled_from(["i8", "i4", "i2", "nf4", "fp4", "t2"]), st.sampled_from([0, -1, 16, 64]),
              st.booleans(), st.sampled_from(["f16", "f32", "s4"]), st.sampled_from([-1, -2])),
)
scalars = st.one_of(st.integers(-(2**63), 2**63 - 1), floats, st.booleans(), st.text(max_size=12), elements, dims)
attributes = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)
_free = names.filter(lambda n: n not in ("name", "shape", "axis", "std", "hash"))
_extra = st.dictionaries(_free, attributes, max_size=2)
_leaves = st.one_of(
    st.builds(lambda std, extra: Recipe("normal", {"std": std, **extra}), floats, _extra),
    st.builds(lambda shape: Recipe("zeros", {"shape": tuple(shape)}), st.lists(st.integers(0, 9), max_size=3)),
    st.builds(lambda name: Recipe("load", {"name": name}), st.text(max_size=12)),
    st.builds(lambda key, extra: Recipe("stored", {"hash": key, **extra}), st.text(max_size=12), _extra),
)
recipes = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(lambda r, shape: Recipe("reshape", {"shape": tuple(shape)}, (r,)), inner,
                  st.lists(st.integers(0, 9), max_size=3)),
        st.builds(lambda r, extra: Recipe("concat", {"axis": 0, **extra}, tuple(r)),
                  st.lists(inner, min_size=1, max_size=3), _extra),
    ),
    max_leaves=4,
)

Step = Callable[[st.DrawFn, ModuleBuilder, FunctionBuilder, Value, str], Value]


def _norm(draw: st.DrawFn, mb: ModuleBuilder, f: FunctionBuilder, x: Value, hint: str) -> Value:
    weight = mb.weight(f"norm.{x.type.shape[-1]}", TensorType(F32, (x.type.shape[-1],)), Recipe("ones"))
    bias = draw(st.sampled_from([None, weight]))
    eps = draw(st.sampled_from([1e-6, 0.1]))
    return f.op("layer_norm", x, draw(st.sampled_from([None, weight])), bias, hint=hint, eps=eps)


def _linear(draw: st.DrawFn, mb: ModuleBuilder, f: FunctionBuilder, x: Value, hint: str) -> Value:
    size = draw(st.sampled_from([8, 16]))
    element = draw(st.sampled_from([F32, DType.BF16, Storage("i4", 0), Storage("i8", 8, asym=True)]))
    name = f"w.{size}.{x.type.shape[-1]}.{element}"
    weight = mb.weight(name, TensorType(element, (size, x.type.shape[-1])), draw(recipes))
    return f.op("linear", x, weight, hint=hint)


def _topk(draw: st.DrawFn, mb: ModuleBuilder, f: FunctionBuilder, x: Value, hint: str) -> Value:
    return f.emit("topk", x, k=draw(st.integers(1, 4)), hint=hint)[0]


def _split(draw: st.DrawFn, mb: ModuleBuilder, f: FunctionBuilder, x: Value, hint: str) -> Value:
    parts = f.emit("split", x, axis=-1, sizes=(4, x.type.shape[-1] - 4), hint=hint)
    return f.op("concat", *draw(st.permutations(parts)), axis=-1)


def _flat(draw: st.DrawFn, mb: ModuleBuilder, f: FunctionBuilder, x: Value, hint: str) -> Value:
    flat = f.op("reshape", x, shape=(B * T, x.type.shape[-1]), hint=hint)
    return f.op("reshape", flat, shape=x.type.shape)


def _scaled(draw: st.DrawFn, mb: ModuleBuilder, f: FunctionBuilder, x: Value, hint: str) -> Value:
    return f.op("mul", x, f.op("constant", values=(draw(floats),), shape=(), type=F32), hint=hint)


def _clamped(draw: st.DrawFn, mb: ModuleBuilder, f: FunctionBuilder, x: Value, hint: str) -> Value:
    low = draw(st.one_of(st.none(), st.floats(-4, 0)))
    return f.op("clamp", x, min=low, max=draw(st.floats(0, 4)), hint=hint)


def _padded(draw: st.DrawFn, mb: ModuleBuilder, f: FunctionBuilder, x: Value, hint: str) -> Value:
    value = draw(st.sampled_from([0.0, -0.0, 1.5]))
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    return f.op("pad", x, axis=-1, before=before, after=after, value=value, hint=hint)


def _simple(op: str, **attrs: object) -> Step:
    return lambda draw, mb, f, x, hint: f.op(op, x, hint=hint, **attrs)


_STEPS: list[Step] = [
    _norm, _linear, _topk, _split, _flat, _scaled, _clamped, _padded, _simple("relu"), _simple("softmax"),
    _simple("act", kind="gelu"), _simple("cumsum", axis=1), lambda draw, mb, f, x, hint: f.op("add", x, x, hint=hint),
    lambda draw, mb, f, x, hint: f.op("cast", f.op("cast", x, to=DType.F16), to=F32, hint=hint),
]


def _states(draw: st.DrawFn, mb: ModuleBuilder, f: FunctionBuilder) -> None:
    ring = draw(st.booleans())
    state = mb.state(State(draw(names), TensorType(F32, (B, 2, 23, 8)), draw(st.sampled_from(["k", "v"])),
                           draw(st.integers(0, 9)), ring=ring, window=8 if ring else 0))
    old = f.param(draw(names), state.type, state.name)
    x = f.param(draw(names), TensorType(F32, (B, 2, T, 8)))
    start, length = f.param("start", TensorType(DType.I64, (B,))), f.param("length", TensorType(DType.I64, (B,)))
    new = f.op("cache_write", old, x, start, length, ring=ring)
    f.result("read", f.emit("cache_read", new, start, length, ring=ring)[0])
    f.result(draw(names.filter(lambda n: n not in ("read", "out"))), new, state.name)


def _renamed(draw: st.DrawFn, function: Function) -> Function:
    """Give a few nodes names, scopes and places of their own, as passes do."""
    nodes: list[Node] = []
    taken = {n.name for n in function.nodes}
    for node in function.nodes:
        if draw(st.integers(0, 4)) == 0:
            name = draw(st.one_of(st.just(f"{node.scope}/{node.op}.{draw(st.integers(0, 12))}"), names))
            name = node.name if name in taken else name
            taken.add(name)
            node = dataclasses.replace(node, name=name, loc=draw(_locs))
        nodes.append(node)
    if len(nodes) > 1 and draw(st.booleans()):
        nodes = _without_unused(function, nodes)
    return dataclasses.replace(function, nodes=tuple(nodes))


def _without_unused(function: Function, nodes: list[Node]) -> list[Node]:
    read = {v for n in nodes for v in n.inputs()} | {r.value for r in function.results}
    return [n for n in nodes if any(v in read for v in n.results)]


@st.composite
def modules(draw: st.DrawFn) -> Module:
    """Return a random module that the verifier accepts."""
    mb = ModuleBuilder(draw(names), {"B": DimRange(1, 4), "T": DimRange(4, 16)},
                       draw(st.dictionaries(names, attributes, max_size=3)))
    for name in draw(st.lists(names, max_size=2, unique=True)):
        size = draw(st.integers(1, 5000))
        mb.weight(name, TensorType(draw(st.sampled_from(list(DType))), (size,)), draw(recipes))
    functions: dict[str, Function] = {}
    for name in draw(st.lists(names.filter(lambda n: n != "forward" and n.split(".")[0] != "mtp"), min_size=1,
                              max_size=2, unique=True)):
        f = FunctionBuilder(name)
        values = [f.param(draw(names), TensorType(F32, (B, T, 8)))]
        if draw(st.booleans()):
            _states(draw, mb, f)
        for _ in range(draw(st.integers(1, 6))):
            x = draw(st.sampled_from(values[-3:]))
            step = draw(st.sampled_from(_STEPS))
            with f.scope(draw(st.one_of(st.sampled_from(["", "blocks.0", "blocks.1"]), st.text(max_size=6)))):
                value = step(draw, mb, f, x, draw(st.one_of(st.just(""), names)))
            if isinstance(value.type.shape[-1], int) and value.type.shape[-1] >= 5:
                values.append(value)
        f.result("out", values[-1])
        functions[name] = _renamed(draw, f.build())
    return dataclasses.replace(mb.build(), functions=functions)
