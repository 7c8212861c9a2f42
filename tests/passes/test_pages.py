"""Every pass of omnic has a page: what the code says of it, and what is said by hand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from omnic.passes.base import all_passes
from omnic.passes.docs import index, pages

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "passes"
OURS = sorted(name for name, cls in all_passes().items() if cls.__module__.startswith("omnic."))


@pytest.mark.parametrize("name", OURS)
def test_a_page_says_what_when_and_what_it_costs(name: str) -> None:
    top = pages()[f"{name}.md"]
    assert top.startswith(f"# `{name}`\n") and "## Rules\n" in top and "## Example\n" in top
    assert top.count("```") % 2 == 0
    by_hand = (FOLDER / "_text" / f"{name}.md").read_text("utf-8")
    assert "## When" in by_hand and "## What it costs" in by_hand
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", by_hand):
        assert (FOLDER / picture).is_file(), picture


def test_the_index_names_every_pass() -> None:
    text = index()
    assert [name for name in OURS if f"[`{name}`]({name}.md)" not in text] == []


def test_the_picture_of_rope_rescale_is_current() -> None:
    drawn = runpy.run_path(str(FOLDER / "_text" / "rope_rescale.py"))["text"]()
    assert drawn == (FOLDER / "rope-rescale.svg").read_text("utf-8")
