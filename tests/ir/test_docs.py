"""The page docs/ir.md is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnic.errors import InternalError
from omnic.ir import docs
from omnic.ir.op import all_ops, find_op

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ir.md"


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == docs.text().rstrip() + "\n", "run: make docs"


def test_the_page_is_short_and_has_every_op() -> None:
    text = docs.text()
    assert len(text.encode()) <= 60_000
    for name in all_ops():
        assert text.count(f"**`{name}(") == 1, name
    assert "{{" not in text


def test_an_entry_says_signature_formula_and_source() -> None:
    assert docs.op_entry(find_op("lm_head")) == (
        "**`lm_head(x: float, w: float, rows?: index, bias?: float) "
        '{softcap: float = 0.0, act: str = "none"} -> y`**\n'
        "\n"
        "logits[b, r] = c(w x[b, rows[b, r]] + bias), every token when `rows` is absent; "
        "c(z) = softcap * tanh(z / softcap) when softcap > 0. Only the wanted rows are multiplied. "
        "`act` says how x is quantised before the product, as for `linear`. "
        "[definition; softcap arXiv:2408.00118]\n"
        "\n"
        "`x` [B, T, D]; `w` [V, D]; the embedding table when tied; `rows` [B, R], each in 0..T-1: an index into this "
        "call's tokens; `bias` [V]; `softcap` bound of the logits; 0 = none; `act` none, bf16, i8<per_token> or "
        "i8<gN>. "
        "FLOPs: 2 * rows * V * D.\n"
    )


def test_an_unknown_table_and_a_long_page_are_our_defects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prose = tmp_path / "prose.md"
    monkeypatch.setattr(docs, "_PROSE", prose)
    prose.write_text("{{opps}}", encoding="utf-8")
    with pytest.raises(InternalError, match=r"docs_prose.md asks for the table 'opps'"):
        docs.text()
    prose.write_text("x" * 60_001, encoding="utf-8")
    with pytest.raises(InternalError, match=r"docs/ir.md would be 60001 bytes; 60000 is the limit"):
        docs.text()
