"""The example of docs/writing_passes.md is a pass that passes its own test."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "writing_passes.md"


def example() -> dict[str, Any]:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2
    names: dict[str, Any] = {"__name__": "writing_passes"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("name", ["test_given_becomes_result", "test_another_shape_says_why_not"])
def test_the_example_works(name: str) -> None:
    check: Callable[[], None] = example()[name]
    check()
