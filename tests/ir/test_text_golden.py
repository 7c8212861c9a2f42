"""Golden texts: valid ones stand in their canonical form, wrong ones beside the diagnostics they give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import omnic.models
from omnic.errors import DiagnosticError
from omnic.ir.equal import same_module
from omnic.ir.op import all_ops
from omnic.ir.text import parse_module, print_module
from omnic.ir.verify import verify_text
from omnic.spec import load_spec

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VALID = sorted(p.name for p in GOLDEN.glob("*.ir"))
INVALID = sorted(p.stem for p in (GOLDEN / "invalid").glob("*.ir"))


@pytest.mark.parametrize("name", VALID)
def test_valid_text_is_canonical(name: str, golden: Callable[[str, str], None]) -> None:
    module = verify_text((GOLDEN / name).read_text(encoding="utf-8"), name)
    text = print_module(module)
    golden(name, text)
    again = parse_module(text, name)
    assert same_module(module, again) == []
    assert print_module(again) == text


@pytest.mark.parametrize("name", INVALID)
def test_invalid_text_gives_its_diagnostics(name: str, golden: Callable[[str, str], None]) -> None:
    with pytest.raises(DiagnosticError) as caught:
        verify_text((GOLDEN / "invalid" / f"{name}.ir").read_text(encoding="utf-8"), f"{name}.ir")
    golden(f"invalid/{name}.txt", caught.value.render() + "\n")


def test_tiny_prints_as_its_golden_text(golden: Callable[[str, str], None]) -> None:
    golden("tiny.ir", print_module(omnic.models.build(load_spec("tiny"))))


def test_golden_texts_hold_every_op() -> None:
    used: set[str] = set()
    for name in VALID:
        module = parse_module((GOLDEN / name).read_text(encoding="utf-8"), name)
        used |= {node.op for function in module.functions.values() for node in function.nodes}
    assert sorted(set(all_ops()) - used) == []


def test_the_example_of_the_docs_is_right(repository: Path) -> None:
    page = (repository / "docs" / "text_form.md").read_text(encoding="utf-8")
    example = page.partition("## An example\n")[2].partition("\n## ")[0]
    verify_text(example.replace("\n    ", "\n"), "docs/text_form.md")
