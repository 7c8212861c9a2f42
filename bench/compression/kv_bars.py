"""The bars of quantised states."""

from __future__ import annotations

from typing import Any

from bench.common import row
from bench.compression.bars import Found
from bench.compression.scoring import kl_ratio
from omnic.spec import load_spec

__all__ = ["judge_states", "mha_bytes"]


def judge_states(model: str, found: Found) -> list[dict[str, Any]]:
    """Return a row for every bar of states whose rows were measured."""
    rows: list[dict[str, Any]] = []

    def cost(name: str, percent: float, what: str) -> None:
        if name in found:
            s = found[name].score
            figure = f"{s.percent:+.3f} ± {s.percent_error:.3f} %, KL {s.mean_kl:.2e}"
            rows.append(row(f"{model}: {what} ({name})", figure, f"<= +{percent} %", s.percent <= percent))

    def told(name: str, what: str) -> None:
        """A row without a bar: what the newest tokens in f16 are worth."""
        if name in found:
            s = found[name].score
            figure = f"{s.percent:+.3f} ± {s.percent_error:.3f} %, KL {s.mean_kl:.2e}"
            rows.append(row(f"{model}: {what} ({name})", figure))

    cost("u8 g64", 0.05, "KV at u8")
    cost("u8 static per channel", 0.05, "KV at u8")
    if model == "tiny_moe":
        barred = "i4 g64, newest 32"
        cost(barred, 0.1, "MLA latent at i4, rope part at f16, as kv-quant{bits=4} has it")
        if barred in found:
            plain, kept = mha_bytes(model), found[barred].kv_bytes
            figure = f"{plain / kept:.2f}x ({kept:,.1f} against {plain:,} bytes a token)"
            rows.append(
                row(f"{model}: fewer bytes than the same heads as MHA at f16", figure, ">= 7x", plain / kept >= 7)
            )
    else:
        cost("i4 g64, newest 32", 0.2, "KV at i4 asymmetric, as kv-quant{bits=4} has it")
        cost("K i4 per channel, V i4", 0.2, "KV at i4 asymmetric, keys per channel")
    for name in ("i4 g64 asym", "i4 g32 asym"):
        told(name, "every token in codes")
    blocks, tokens = "K i4 per channel, V i4", "i4 g64 asym"
    if model == "tiny" and blocks in found and tokens in found:
        value, error = kl_ratio(found[blocks].score, found[tokens].score)
        what = f"{model}: KL of {blocks} over {tokens}"
        rows.append(row(what, f"{value:.3f} ± {error:.3f}", "<= 0.3x", value <= 0.3))
    return rows


def mha_bytes(model: str) -> int:
    """Return the bytes of a token that the model's heads would take as plain keys and values in f16."""
    total = 0
    for layer in load_spec(model).layers():
        a = layer.attention
        width = a.nope_dim + a.rope_dim + a.v_dim if a.kind == "mla" else 2 * a.head_dim
        total += a.heads * width * 2
    return total
