"""Cases of what models are made of: rotations, attention, experts, recurrences and states."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.ir.rope import SCALINGS
from tests.parity.op_operands import CAPACITY, Case, F, K, N, Operand, P, W, one

__all__ = ["MODEL_CASES"]


def _rotations() -> list[Case]:
    def rope(variant: str, *x: int, **attrs: Any) -> Case:
        positions = N(1, x[-2], low=0, high=CAPACITY)
        return one("rope", variant, F(*x), positions, **{"dims": 8, "base": 100.0, **attrs})

    scalings: dict[str, dict[str, Any]] = {
        "linear": {"factor": 4.0},
        "ntk": {"factor": 4.0},
        "yarn": {"factor": 4.0, "original_context": 8},
        "llama3": {"factor": 4.0, "original_context": 8, "beta_fast": 4.0},
        "longrope": {"factors": (1.0, 1.5, 2.0, 4.0), "factor": 4.0, "original_context": 8},
    }
    assert set(scalings) == set(SCALINGS) - {"none"}
    return [
        rope("heads", 1, 2, 5, 8),
        rope("no heads", 1, 5, 8, base=10000.0),
        rope("part", 1, 2, 5, 8, dims=6),
        rope("interleaved", 1, 2, 5, 8, interleaved=True),
        rope("part interleaved", 1, 5, 8, dims=4, interleaved=True),
        *(rope(kind, 1, 2, 5, 8, scaling=kind, **attrs) for kind, attrs in scalings.items()),
        rope(
            "unrounded yarn",
            1,
            2,
            5,
            8,
            scaling="yarn",
            factor=4.0,
            original_context=8,
            truncate=False,
            beta_fast=2.0,
            beta_slow=0.5,
            attention_factor=1.3,
        ),
    ]


#: what a call of 5 tokens behind 7 sees: query indices, and the index in each of 12 slots
QUERY, KEYS = K([[7, 8, 9, 10, 11]]), K([[3, 0, 1, -1, 2, 4, 11, 5, 10, 8, 9, 7]])
PARENTS, START = K([[-1, 0, 0, 1, 2]]), K([7])
#: recent tokens of block attention, in any order with empty places
RECENT = K([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, -1, -1]])
SLOTS = K([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])


def _attention() -> list[Case]:
    def attention(variant: str, groups: int = 2, *rest: Operand | None, width: int = 6, **attrs: Any) -> Case:
        operands = (F(1, 4, 5, 8), F(1, groups, 12, 8), F(1, groups, 12, width), QUERY, KEYS, *rest)
        return one("attention", variant, *operands, **{"scale": 0.4, **attrs})

    def blocks(variant: str, *rest: Operand | None, **attrs: Any) -> Case:
        operands = (F(1, 4, 5, 8), F(1, 2, 12, 8), F(1, 2, 12, 6), F(1, 2, 14, 8), QUERY, SLOTS, RECENT, *rest)
        return one("block_attention", variant, *operands, **{"scale": 0.4, "block": 4, **attrs})

    def mla(variant: str, *rest: Operand | None, **attrs: Any) -> Case:
        # With recent tokens slot s of the latents holds token s.
        keys = SLOTS if len(rest) > 2 else KEYS
        operands = (F(1, 3, 5, 6), F(1, 3, 5, 2), F(1, 12, 7), F(1, 12, 2), W(3, 6, 7), W(3, 4, 7), QUERY, keys)
        return one("mla", variant, *operands, *rest, **{"scale": 0.3, **attrs})

    recent = (None, None, F(1, 14, 7), RECENT)
    return [
        attention("grouped", scale=1.0),
        attention("every head its own", 4),
        attention("one head of keys", 1),
        attention("equal widths", width=8),
        attention("window", window=3),
        attention("softcap", softcap=1.5),
        attention("sinks", 2, W(4)),
        attention("sinks, softcap, window", 2, W(4), window=4, softcap=1.5),
        attention("tree", 2, None, PARENTS, START),
        attention("tree in a window", 2, None, PARENTS, START, window=4),
        blocks("blocks"),
        blocks("window", window=6, keep=2, block=2, scale=1.0),
        blocks("sinks", W(4), softcap=1.5),
        blocks("values of their own", None, F(1, 2, 14, 6)),
        mla("absorbed"),
        mla("naive", form="naive", scale=1.0),
        mla("window", window=3),
        mla("softcap", softcap=2.0),
        mla("tree", PARENTS, START),
        mla("blocks", *recent, block=4),
        mla("kept blocks", *recent, block=4, keep=2, window=6),
    ]


def _experts() -> list[Case]:
    def router(variant: str, *rest: Operand | None, **attrs: Any) -> Case:
        return one("router", variant, F(1, 5, 7), W(6, 7), *rest, **{"top_k": 2, **attrs})

    def moe(variant: str, tokens: int = 5, gated: bool = True, biased: bool = False, **attrs: Any) -> Case:
        biases = (W(4, 9), W(4, 7), W(4, 9) if gated else None) if biased else (None, None, None)
        operands = (
            F(1, tokens, 7),
            N(1, tokens, 2, low=0, high=4),
            P(1, tokens, 2),
            W(4, 9, 7),
            W(4, 7, 9),
            W(4, 9, 7) if gated else None,
            *biases,
        )
        return one("moe", variant, *operands, **{"kind": "silu", **attrs})

    return [
        router("softmax"),
        router("shares of all", renormalise=False),
        router("sigmoid", score="sigmoid", scale=2.5),
        router("sigmoid of all", score="sigmoid", renormalise=False),
        router("bias", None, W(6), W(6), score="sigmoid"),
        router("groups", groups=(3, 3)),
        router("two groups", groups=(1, 2, 3), top_groups=2, top_k=3),
        router("best two of a group", groups=(3, 3), group_score="top2_sum", score="sigmoid"),
        router("group gate", W(2, 7), groups=(3, 3)),
        router("two group gates", W(3, 7), groups=(2, 2, 2), top_groups=2),
        router("noise of training", train="noisy(gumbel=0.5)"),
        moe("grouped"),
        moe("dense", dispatch="dense"),
        moe("gather", dispatch="gather"),
        moe("one token", 1),
        moe("one token, gathered", 1, dispatch="gather"),
        moe("plain", gated=False, kind="relu2"),
        moe("biases", biased=True),
        moe("plain biases", gated=False, biased=True, kind="gelu"),
        moe("clamped", alpha=1.702, beta=1.0, limit=0.7),
        moe("relu", kind="relu"),
        moe("8-bit tokens", act="i8<per_token>"),
        moe("bf16 tokens", act="bf16"),
        moe("gelu tanh", kind="gelu_tanh"),
    ]


def _recurrent() -> list[Case]:
    def conv(variant: str, bias: Operand | None, *rest: Operand | None, **attrs: Any) -> Case:
        return one("short_conv", variant, F(1, 5, 7), W(7, 4), bias, F(1, 3, 7), *rest, **attrs)

    def recurrence(variant: str, tokens: int, decay: int, *rest: Operand | None, **attrs: Any) -> Case:
        lead = (1, 2, tokens)
        forget = Operand(lambda r: -np.abs(r.standard_normal((*lead, decay))).astype(np.float32))
        return one(
            "linear_recurrence", variant, F(*lead, 3), F(*lead, 3), F(*lead, 4), forget, F(1, 2, 3, 4), *rest, **attrs
        )

    return [
        conv("whole", W(7)),
        conv("padded", None, K([3])),
        conv("snapshots", None, snapshots=True),
        recurrence("chunks", 5, 3, chunk=2),
        recurrence("one chunk", 5, 1),
        recurrence("padded", 5, 3, K([3]), chunk=2),
        recurrence("step", 1, 3, form="step"),
        recurrence("snapshots", 5, 3, chunk=2, snapshots=True),
        one("pool_blocks", "means", F(1, 2, 11, 3), page=4),
        one("pool_blocks", "weighed", F(1, 2, 11, 3), W(2, 3), page=3),
    ]


def _states() -> list[Case]:
    """States start empty; the case's op follows a write of what it needs, and is read back."""
    found: list[Case] = []
    for ring in (False, True):
        kind = "ring" if ring else "linear"
        start = K([13 if ring else 3])
        for element in ("f32", "f16"):
            found += [
                Case("cache_write", f"{kind} {element}", (F(1, 2, 5, 4), start, K([5])), {"ring": ring}, element),
                Case("cache_read", f"{kind} {element}", (F(1, 2, 5, 4), K([3]), K([5])), {"ring": ring}, element),
            ]
        found += [
            Case("cache_write", f"{kind} one token", (F(1, 2, 1, 4), start, K([1])), {"ring": ring}, "f32"),
            Case("cache_write", f"{kind} latent", (F(1, 5, 4), start, K([5])), {"ring": ring}, "f32"),
            Case(
                "cache_move",
                kind,
                (
                    F(1, 2, 5, 4),
                    start,
                    K([5]),
                    K([[start_of(ring), start_of(ring) + 2, -1]]),
                    K([[start_of(ring) + 1, start_of(ring), 3]]),
                ),
                {"ring": ring},
                "f32",
            ),
        ]
    found += [
        Case("cache_write", "codes", (F(1, 2, 5, 4), K([3]), K([5])), {}, "i8<row>"),
        Case("cache_close", "blocks", (F(1, 2, 16, 4), K([[*range(16)]]), K([0]), K([16])), {}, "i8<g16, axis-2>"),
    ]
    return found


def start_of(ring: bool) -> int:
    return 13 if ring else 3


MODEL_CASES = [
    *_rotations(),
    *_attention(),
    *_experts(),
    *_recurrent(),
    *_states(),
]
