"""Cases for every composite, and a check that runs one as it is and decomposed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from omnic.ir.builder import ModuleBuilder
from omnic.ir.decompose import decompose
from omnic.ir.dims import Dim, DimRange, evaluate, symbol
from omnic.ir.graph import Module
from omnic.ir.op import all_ops, find_op
from omnic.ir.ops.composite import ACTIVATIONS
from omnic.ir.reference import Interpreter
from omnic.ir.shortlist import reach_of
from omnic.ir.types import DType, TensorType, parse_element
from omnic.ir.verify import verify

# Sizes that no other dim of a case has, so that the dim of that size can be made a symbol.
TOKENS, SLOTS = 5, 11


@dataclass
class Case:
    """Operands (None = absent) and attributes."""

    arrays: list[Any]
    attrs: dict[str, Any]


class Maker:
    """Draws shapes and attributes; numbers come from a drawn seed."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.batch = draw(st.integers(1, 3))
        self.heads = draw(st.sampled_from([1, 2, 4]))
        self.tokens = draw(st.sampled_from([1, TOKENS]))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def floats(self, *shape: int) -> Any:
        return self.random.standard_normal(shape)

    def maybe(self, *shape: int) -> Any:
        return self.floats(*shape) if self.flag() else None

    def below(self, limit: int, *shape: int) -> Any:
        return self.random.integers(0, limit, shape)

    def keys(self) -> tuple[Any, Any, Any, Any]:
        """Return q_index, k_index, parents and start of a call behind a filled or partly empty cache."""
        start = self.below(SLOTS - self.tokens + 1, self.batch)
        query = start[:, None] + np.arange(self.tokens)
        slots = np.broadcast_to(np.arange(SLOTS), (self.batch, SLOTS))
        key = np.where(slots < (start + self.tokens)[:, None], slots, -1)
        key = self.random.permuted(key, axis=1)
        if not self.flag():
            return query, key, None, None
        parents = np.stack([self.random.integers(-1, i, self.batch) if i else np.full(self.batch, -1)
                            for i in range(self.tokens)], axis=1)
        return query, key, parents, start


def attention(m: Maker) -> Case:
    groups, width = m.pick(1, m.heads), m.pick(3, 4)
    query, key, parents, start = m.keys()
    arrays = [m.floats(m.batch, m.heads, m.tokens, width), m.floats(m.batch, groups, SLOTS, width),
              m.floats(m.batch, groups, SLOTS, 6), query, key, m.maybe(m.heads), parents, start]
    return Case(arrays, {"scale": 0.7, "window": m.pick(0, 1, 4), "softcap": m.pick(0.0, 1.5)})


def recent_keys(m: Maker) -> tuple[Any, Any, Any]:
    """Return q_index, k_index and recent_index: every token is recent, in any order, with places that hold none.

    Slots are those of a linear state or of a ring that has wrapped.
    """
    start = m.below(SLOTS - m.tokens + 1, m.batch) + m.pick(0, 3 * SLOTS)
    query = start[:, None] + np.arange(m.tokens)
    last, slots = query[:, -1:], np.arange(SLOTS)[None]
    key = np.maximum(last - (last - slots) % SLOTS, -1)
    recent = m.random.permuted(np.concatenate([key, np.full((m.batch, 2), -1)], axis=1), axis=1)
    return query, key, recent


def block_attention(m: Maker) -> Case:
    groups, width = m.pick(1, m.heads), m.pick(3, 4)
    query, key, recent = recent_keys(m)
    arrays = [m.floats(m.batch, m.heads, m.tokens, width), m.floats(m.batch, groups, SLOTS, width),
              m.floats(m.batch, groups, SLOTS, 6), m.floats(m.batch, groups, SLOTS + 2, width), query, key, recent,
              m.maybe(m.heads), m.maybe(m.batch, groups, SLOTS + 2, 6)]
    attrs = {"block": m.pick(1, 2, 4), "keep": m.pick(0, 2), "scale": 0.7, "window": m.pick(0, 1, 4),
             "softcap": m.pick(0.0, 1.5)}
    return Case(arrays, attrs)


def mla(m: Maker) -> Case:
    attrs = {"form": m.pick("naive", "absorbed"), "scale": 0.3, "window": m.pick(0, 3), "softcap": m.pick(0.0, 2.0)}
    if m.flag():
        query, key, recent = recent_keys(m)
        rest = [None, None, m.floats(m.batch, SLOTS + 2, 7), recent]
        attrs |= {"block": m.pick(1, 2, 4), "keep": m.pick(0, 2)}
    else:
        query, key, *rest = m.keys()
    arrays = [m.floats(m.batch, m.heads, m.tokens, 6), m.floats(m.batch, m.heads, m.tokens, 2),
              m.floats(m.batch, SLOTS, 7), m.floats(m.batch, SLOTS, 2),
              m.floats(m.heads, 6, 7), m.floats(m.heads, 3, 7), query, key, *rest]
    return Case(arrays, attrs)


def rope(m: Maker) -> Case:
    lead = (m.batch, m.heads) if m.flag() else (m.batch,)
    attrs = {"base": m.pick(100.0, 10000.0), "dims": m.pick(2, 6, 8), "interleaved": m.flag(),
             "scaling": m.pick("none", "linear", "ntk", "yarn", "llama3"), "factor": m.pick(1.0, 4.0),
             "original_context": 64,
             "attention_factor": m.pick(None, 1.3), "truncate": m.flag()}
    return Case([m.floats(*lead, m.tokens, 8), m.below(9000, m.batch, m.tokens)], attrs)


def router(m: Maker) -> Case:
    groups = m.pick(None, (2, 4), (3, 3), (1, 2, 3))
    top_groups = 1 if groups is None else m.pick(*range(1, len(groups) + 1))
    top_k = m.pick(1, 2) if groups is None else m.draw(st.integers(1, sum(sorted(groups)[:top_groups])))
    group_gate = None if groups is None else m.maybe(len(groups), 7)
    rules = ("max",) if groups is None or group_gate is not None or min(groups) < 2 else ("max", "top2_sum")
    attrs = {"top_k": top_k, "groups": groups, "group_score": m.pick(*rules), "top_groups": top_groups,
             "score": m.pick("softmax", "sigmoid"),
             "renormalise": m.flag(), "scale": m.pick(1.0, 2.5), "train": m.pick("none", "noisy(gumbel=0.5)")}
    return Case([m.floats(m.batch, m.tokens, 7), m.floats(6, 7), group_gate, m.maybe(6), m.maybe(6)], attrs)


def gate(m: Maker) -> dict[str, Any]:
    """Attributes of a gated activation."""
    kind = m.pick(*ACTIVATIONS)
    return {"kind": kind, "alpha": m.pick(1.0, 1.702) if kind == "silu" else 1.0, "beta": m.pick(0.0, 1.0),
            "limit": m.pick(None, 0.5)}


def moe(m: Maker) -> Case:
    experts, hidden, width, top_k = m.pick(1, 4), 9, 7, m.pick(1, 3)
    gated = m.flag()
    arrays = [m.floats(m.batch, m.tokens, width), m.below(experts, m.batch, m.tokens, top_k),
              m.floats(m.batch, m.tokens, top_k), m.floats(experts, hidden, width), m.floats(experts, width, hidden),
              m.floats(experts, hidden, width) if gated else None, m.maybe(experts, hidden), m.maybe(experts, width),
              m.maybe(experts, hidden) if gated else None]
    act = gate(m) if gated else {"kind": m.pick(*ACTIVATIONS)}
    return Case(arrays, act | {"dispatch": m.pick("grouped", "dense", "gather")})


def linear(m: Maker) -> Case:
    lead = m.pick((), (m.tokens,), (m.batch, m.tokens))
    x = m.floats(*lead, 8)
    if m.flag():
        x[..., :4] = 0.0
    return Case([x, m.floats(7, 8), m.maybe(7)], {"act": m.pick("none", "bf16", "i8<per_token>", "i8<g4>")})


def lm_head(m: Maker) -> Case:
    rows = m.below(m.tokens, m.batch, 2) if m.flag() else None
    return Case([m.floats(m.batch, m.tokens, 8), m.floats(9, 8), rows, m.maybe(9)], {"softcap": m.pick(0.0, 3.0)})


def lm_argmax(m: Maker) -> Case:
    rows = m.below(m.tokens, m.batch, 2) if m.flag() else None
    x, w = m.floats(m.batch, m.tokens, 8), m.floats(9, 8)
    if not m.flag():
        return Case([x, w, rows, None, None, None], {})
    basis, screen = m.floats(3, 8), m.floats(9, 3)
    return Case([x, w, rows, basis, screen, reach_of(w, basis, screen)], {})


def layer_norm(m: Maker) -> Case:
    return Case([m.floats(m.batch, m.tokens, 8), m.maybe(8), m.maybe(8)], {"eps": m.pick(1e-6, 0.1)})


def short_conv(m: Maker) -> Case:
    size = m.pick(2, 4)
    length = m.below(m.tokens + 1, m.batch) if m.flag() else None
    arrays = [m.floats(m.batch, m.tokens, 7), m.floats(7, size), m.maybe(7), m.floats(m.batch, size - 1, 7), length]
    return Case(arrays, {"snapshots": m.flag()})


def linear_recurrence(m: Maker) -> Case:
    lead = (m.batch, m.heads, m.tokens)
    length = m.below(m.tokens + 1, m.batch) if m.flag() else None
    arrays = [m.floats(*lead, 3), m.floats(*lead, 3), m.floats(*lead, 7), -np.abs(m.floats(*lead, m.pick(1, 3))),
              m.floats(m.batch, m.heads, 3, 7), length]
    form = m.pick("chunked", "step") if m.tokens == 1 else "chunked"
    return Case(arrays, {"form": form, "chunk": m.pick(1, 2, 16), "snapshots": m.flag()})


def pool_blocks(m: Maker) -> Case:
    return Case([m.floats(m.batch, 2, SLOTS, 3), m.maybe(2, 3)], {"page": m.pick(1, 3, 4)})


def fake_quant(m: Maker) -> Case:
    kinds = ("i4<g4>", "i8<row>", "i4<g8, asym>", "nf4<g4>", "t2<g8>", "f16", "bf16")
    return Case([m.floats(m.batch, 8)], {"to": parse_element(m.pick(*kinds))})


CASES: dict[str, Callable[[Maker], Case]] = {
    "act": lambda m: Case([m.floats(m.batch, m.tokens)], {"kind": m.pick(*ACTIVATIONS)}),
    "attention": attention,
    "block_attention": block_attention,
    "embedding": lambda m: Case([m.floats(9, 8), m.below(9, m.batch, m.tokens)], {}),
    "fake_quant": fake_quant,
    "gated_act": lambda m: Case([m.floats(m.batch, 8), m.floats(m.batch, 8)], gate(m)),
    "host.fetch": lambda m: Case([m.below(9, m.batch, m.tokens)], {"kind": m.pick("expert", "kv_block"), "layer": 3}),
    "layer_norm": layer_norm,
    "linear": linear,
    "linear_recurrence": linear_recurrence,
    "lm_argmax": lm_argmax,
    "lm_head": lm_head,
    "mla": mla,
    "moe": moe,
    "pool_blocks": pool_blocks,
    "rms_norm": lambda m: Case([m.floats(m.batch, m.tokens, 8), m.maybe(8)], {"eps": m.pick(1e-6, 0.1)}),
    "rope": rope,
    "router": router,
    "short_conv": short_conv,
}


def module_of(op: str, arrays: list[Any], symbols: dict[str, int], **attrs: Any) -> Module:
    """Return a module whose @forward applies ``op`` to parameters shaped like ``arrays`` (None = absent).

    A dim whose size is a value of ``symbols`` becomes that symbol, so decompositions see symbolic dims.
    """
    names = {size: name for name, size in symbols.items()}
    builder = ModuleBuilder("one", {name: DimRange(1, 4096) for name in symbols})
    f = builder.function("forward")
    values = []
    for index, array in enumerate(arrays):
        if array is None:
            values.append(None)
            continue
        shape: tuple[Dim, ...] = tuple(symbol(names[s]) if s in names else s for s in array.shape)
        element = DType.I64 if array.dtype.kind == "i" else DType.F32
        values.append(f.param(f"p{index}", TensorType(element, shape)))
    for name, value in zip(find_op(op).outputs, f.emit(op, *values, **attrs), strict=False):
        f.result(name, value)
    return builder.build()


def inputs_of(arrays: list[Any]) -> dict[str, Any]:
    return {f"p{i}": a for i, a in enumerate(arrays) if a is not None}


def is_core(module: Module) -> bool:
    ops = all_ops()
    return all(not ops[n.op].composite for f in module.functions.values() for n in f.nodes)


def check_decomposition(op: str, arrays: list[Any], symbols: dict[str, int], **attrs: Any) -> dict[str, Any]:
    """Check that the op and its decomposition agree within 1e-9 and have the shapes inferred; return the results."""
    module = module_of(op, arrays, symbols, **attrs)
    inputs = inputs_of(arrays)
    whole = Interpreter(module, {}).run(inputs)
    split = decompose(module)
    verify(split)
    assert is_core(split)
    params = {p.value for p in split.function().params}
    for before, after in zip(module.function().results, split.function().results, strict=True):
        assert after.value in params or after.value.name == before.value.name
    parts = Interpreter(split, {}).run(inputs)
    for result in module.function().results:
        expected = tuple(evaluate(d, symbols) for d in result.value.type.shape)
        assert whole[result.name].shape == expected
        assert parts[result.name].shape == expected
        scale = max(1.0, float(np.max(np.abs(whole[result.name]), initial=0.0)))
        np.testing.assert_allclose(parts[result.name], whole[result.name], rtol=0, atol=1e-9 * scale)
    return whole
