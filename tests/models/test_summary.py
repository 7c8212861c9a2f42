"""Totals of the presets: the table of the spec language, and closed forms."""

from __future__ import annotations

import pytest

from omnic.models import build
from omnic.models.summary import kind_of, summarise
from omnic.spec import load_spec

#: preset -> (total, active with the main head), in millions, as docs/spec.md lists them
TABLE = {
    "mobile_4gb": (1371.5, 271.6),
    "mobile_2gb": (361.2, 111.9),
    "mobile_4gb_moe16": (1440.7, 340.8),
    "mobile_2gb_moe16": (587.7, 137.1),
    "draft_30m": (31.2, 31.2),
    "draft_60m": (50.2, 50.2),
    "draft_150m": (125.3, 125.3),
    "draft_1b": (1034.5, 1034.5),
    "draft_2b": (2048.6, 2048.6),
    "draft_3b": (2913.3, 2913.3),
    "nano_125m": (123.6, 123.6),
    "nano_560m": (367.6, 334.8),
    "tiny": (3.54, 2.82),
    "tiny_moe": (3.88, 2.19),
}


@pytest.mark.parametrize("name", TABLE)
def test_totals_of_the_presets(name: str) -> None:
    summary = summarise(build(load_spec(name)))
    total, active = TABLE[name]
    assert summary.parameters / 1e6 == pytest.approx(total, abs=0.06 if total > 10 else 0.006)
    assert summary.active / 1e6 == pytest.approx(active, abs=0.06 if active > 10 else 0.006)
    assert sum(summary.by_kind.values()) == summary.parameters


def test_mobile_4gb_is_its_closed_form() -> None:
    width, hidden, vocab, layers = 1024, 2816, 32000, 12
    attention = width * 8 * 128 + width * (160 + 32) + 160 * 8 * (96 + 128) + 8 * 128 * width
    experts, router = 17 * 2 * width * hidden, 16 * width
    norms = layers * (2 * width + 160) + width
    summary = summarise(build(load_spec("mobile_4gb")))
    assert summary.parameters == layers * (attention + experts + router) + 5 * vocab * width + norms
    assert summary.by_kind["norms"] == norms
    assert summary.kv_bytes_per_token == layers * (160 + 32) * 4


def test_flops_are_two_per_active_weight_of_a_product() -> None:
    summary = summarise(build(load_spec("tiny")))
    norms = 3 * 2 * 256 + 256
    assert summary.flops_per_token == 2 * (summary.active - norms)


def test_kinds_of_weights() -> None:
    names = {
        "embed": "embedding",
        "blocks.1.attn.q": "attention",
        "blocks.1.ffn.experts.up": "experts",
        "blocks.1.ffn_norm": "norms",
        "blocks.0.ffn.shared.up": "shared experts",
        "blocks.0.ffn.router": "routers",
        "mtp.block.attn.q": "mtp",
        "verifier": "verifier",
    }
    assert {n: kind_of(n) for n in names} == names
