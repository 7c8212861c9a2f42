"""What composites cannot take, word for word."""

from __future__ import annotations

import pytest

from omnic.ir.op import ShapeError, find_op
from omnic.ir.types import parse_type

ATTENTION = ("f32[B, 4, T, 8]", "f32[B, 2, S, 8]", "f32[B, 2, S, 8]", "i64[B, T]", "i64[B, S]")
RECURRENCE = ("f32[B, 2, T, 3]", "f32[B, 2, T, 3]", "f32[B, 2, T, 5]", "f32[B, 2, T, 3]", "f32[B, 2, 3, 5]")
MOE = ("f32[B, T, 8]", "i64[B, T, 2]", "f32[B, T, 2]", "f32[4, 6, 8]", "f32[4, 8, 6]")

CASES = [
    ("linear", ("f32[B, 8]", "f32[4, 7]"), {}, "linear: last dim of x and of w: 8 against 7"),
    ("linear", ("f32[B, 8]", "f32[4, 8]", "f32[5]"), {}, "linear: bias must be [4], got [5]"),
    ("linear", ("f32[B, 8]", "f32[4, 8]"), {"act": "i8"},
     "linear: act must be none, bf16, i8<per_token> or i8<gN>, got 'i8'"),
    ("linear", ("f32[B, 8]", "f32[4, 8]"), {"act": "i8<g3>"}, "linear: activation group 3 does not divide 8"),
    ("embedding", ("f32[8]", "i64[B]"), {}, "embedding: w must have 2 dims, got f32[8]"),
    ("act", ("f32[8]",), {"kind": "tanh"},
     "act: attribute 'kind' must be one of gelu, gelu_tanh, relu, relu2, silu, got tanh"),
    ("gated_act", ("f32[8]", "f32[9]"), {"kind": "silu"}, "gated_act: up must be [8], got [9]"),
    ("rms_norm", ("f32[B, 8]", "f32[9]"), {}, "rms_norm: weight must be [8], got [9]"),
    ("rope", ("f32[B, T, 8]", "i64[B, T]"), {"dims": 7},
     "rope: rotated dims come in pairs: 7 is not a positive even number"),
    ("rope", ("f32[B, T, 8]", "i64[B, T]"), {"dims": 10}, "rope: dims = 10 is more than the 8 numbers of a head"),
    ("rope", ("f32[B, T, 8]", "i64[B, S]"), {"dims": 8}, "rope: positions must be [B, T], got [B, S]"),
    ("attention", ("f32[B, 3, T, 8]", *ATTENTION[1:]), {"scale": 1.0},
     "attention: 3 query heads cannot share 2 KV heads evenly"),
    ("attention", (*ATTENTION[:3], "i64[B, S]", "i64[B, S]"), {"scale": 1.0},
     "attention: q_index must be [B, T], got [B, S]"),
    ("attention", (*ATTENTION, None, "i64[B, T]"), {"scale": 1.0}, "attention: parents needs start"),
    ("attention", ATTENTION, {}, "attention needs the attribute 'scale'"),
    ("attention", ATTENTION, {"scale": 1.0, "window": -1}, "attention: window and softcap must not be negative"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 5}, "router: top_k = 5 of 4 experts"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "train": "noise"},
     "router: train: 'noise' is neither none nor noisy(NAME=VALUE, ...)"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "train": "noisy(gumble=1)"},
     "router: train: 'gumble=1' is not one of dropout, gaussian, gumbel, jitter, temperature, each once"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "train": "noisy(gumbel=x)"},
     "router: train: gumbel = 'x' is no number"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "train": "noisy(dropout=1)"},
     "router: train: dropout = 1.0 is not below 1"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "train": "noisy(temperature=0)"},
     "router: train: temperature = 0 leaves no logits"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "train": "noisy(jitter=-0.1)"},
     "router: train: jitter = -0.1 is no number from 0 on"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "groups": (2, 3)},
     "router: groups [2, 3] do not sum to 4 experts"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 2, "groups": (1, 3)},
     "router: 1 of the groups [1, 3] may hold fewer than top_k = 2 experts"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "groups": (2, 2), "top_groups": 3},
     "router: top_groups = 3 of 2 groups"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]", "f32[2, 8]"), {"top_k": 1},
     "router: a group gate needs the attribute groups"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]", None, None, "f32[5]"), {"top_k": 1},
     "router: gate_bias must be [4], got [5]"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "group_score": "top2_sum"},
     "router: group_score = top2_sum needs the attribute groups"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]", "f32[2, 8]"), {"top_k": 1, "groups": (2, 2), "group_score": "top2_sum"},
     "router: group_score = top2_sum is for groups without a gate of their own"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "groups": (1, 3), "group_score": "top2_sum"},
     "router: group_score = top2_sum needs two experts in every group, got [1, 3]"),
    ("router", ("f32[B, T, 8]", "f32[4, 8]"), {"top_k": 1, "groups": (2, 2), "group_score": "mean"},
     "router: attribute 'group_score' must be one of max, top2_sum, got mean"),
    ("gated_act", ("f32[8]", "f32[8]"), {"kind": "gelu", "alpha": 1.5},
     "gated_act: alpha = 1.5 is for kind silu, not for gelu"),
    ("gated_act", ("f32[8]", "f32[8]"), {"kind": "gelu", "limit": 0.0}, "gated_act: limit must be positive, got 0"),
    ("moe", MOE, {"kind": "silu", "limit": 7.0}, "moe: limit needs gate"),
    ("moe", (*MOE[:4], "f32[4, 6, 8]"), {"kind": "gelu"}, "moe: down must be [4, 8, 6], got [4, 6, 8]"),
    ("moe", (*MOE, None, None, None, "f32[4, 6]"), {"kind": "gelu"}, "moe: gate_bias needs gate"),
    ("lm_argmax", ("f32[B, T, 8]", "f32[9, 8]", None, "f32[4, 8]"), {},
     "lm_argmax: basis, screen and reach go together"),
    ("lm_argmax", ("f32[B, T, 8]", "f32[9, 8]", None, "f32[4, 8]", "f32[9, 4]", "f32[9, 3]"), {},
     "lm_argmax: reach must be [3, 9], got [9, 3]"),
    ("lm_head", ("f32[B, T, 8]", "f32[9, 8]", "i64[R, B]"), {}, "lm_head: rows must be [B, B], got [R, B]"),
    ("short_conv", ("f32[B, T, 8]", "f32[8, 1]", None, "f32[B, 0, 8]"), {}, "short_conv: a kernel of 1 has no past"),
    ("linear_recurrence", RECURRENCE, {"form": "step"}, "linear_recurrence: form step takes one token, got T"),
    ("pool_blocks", ("f32[B, 2, 3, 8]",), {"page": 4}, "pool_blocks: 3 keys make no block of 4"),
    ("fake_quant", ("f32[8]",), {"to": parse_type("i64[]").element}, "fake_quant: i64 holds no floating point numbers"),
    ("host.fetch", ("i64[B]",), {"kind": "expert", "layer": -1}, "host.fetch: layer -1 is negative"),
]


@pytest.mark.parametrize(("op", "types", "attrs", "message"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_what_does_not_fit(op: str, types: tuple[str | None, ...], attrs: dict[str, object], message: str) -> None:
    definition = find_op(op)
    given = [parse_type(t) if t else None for t in types]
    given += [None] * (len(definition.inputs) - len(given))
    with pytest.raises(ShapeError) as caught:
        definition.infer_results(tuple(given), attrs)  # type: ignore[arg-type]
    assert caught.value.message == message
