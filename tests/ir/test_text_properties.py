"""Round trips of random modules, and random damage to texts: a module or a typed error, nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnic.errors import DiagnosticError
from omnic.ir.equal import same_module
from omnic.ir.graph import Module
from omnic.ir.text import parse_module, print_module
from omnic.ir.verify import verify, verify_text
from tests.ir.module_strategies import modules

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def check_round_trip(module: Module) -> None:
    text = print_module(module)
    again = verify_text(text, "generated.ir")
    assert same_module(module, again) == []
    assert print_module(again) == text


@settings(max_examples=25)
@given(modules())
def test_random_modules_round_trip(module: Module) -> None:
    verify(module)
    check_round_trip(module)


@pytest.mark.slow
@settings(settings.get_profile("deep"), max_examples=500)
@given(modules())
def test_many_random_modules_round_trip(module: Module) -> None:
    check_round_trip(module)


_PIECES = ["%x", "@w", "%", "@", "(", ")", "{", "}", "[", "]", ",", "=", ":", "->", "..", "-", "+", "*", "\n", " ", '"',
           "#", "func", "return", "dim", "weight", "state", "meta", "module", "scope(", "loc(", "name(", "aliases",
           "f32", "i4<g32>", "i8<", "1", "999999999999999999999999", "1e400", "inf", "true", "linear", "add", "reshape",
           "T",
           "min(", "floordiv(T, 0)", "\\", "\x00", "é", "\u2028", "\ud7ff", "[B, T]", "{axis = 9}", "{axis = -9}"]


def damaged(text: str, rng: random.Random) -> str:
    """Return ``text`` with a few random edits."""
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(text) + 1)
        upto = min(len(text), at + rng.choice((0, 1, 1, 2, 5, 40)))
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:at] + text[upto:]
        elif kind == 1:
            text = text[:at] + rng.choice(_PIECES) + text[at:]
        elif kind == 2:
            text = text[:at] + rng.choice(_PIECES) + text[upto:]
        elif kind == 3:
            source = rng.randrange(len(text) + 1)
            text = text[:at] + text[source : source + rng.choice((1, 4, 30))] + text[at:]
        else:
            lines = text.split("\n")
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
            text = "\n".join(lines)
    return text


def check_typed(text: str) -> None:
    try:
        module = verify_text(text, "damaged.ir")
    except DiagnosticError as error:
        assert error.diagnostics
        assert len(error.diagnostics) <= 21
        error.render()
        return
    printed = print_module(module)
    assert print_module(parse_module(printed)) == printed


def _sources() -> list[str]:
    files = [*sorted(GOLDEN.glob("*.ir")) * 3, *sorted(GOLDEN.glob("invalid/*.ir"))]
    return [text for f in files if (text := f.read_text(encoding="utf-8")) and len(text) < 8000]


def test_damaged_texts_give_a_module_or_diagnostics() -> None:
    sources, rng = _sources(), random.Random(1)
    for _ in range(300):
        check_typed(damaged(rng.choice(sources), rng))


@pytest.mark.slow
def test_ten_thousand_damaged_texts() -> None:
    sources, rng = _sources(), random.Random(2)
    for _ in range(10_000):
        check_typed(damaged(rng.choice(sources), rng))


@given(st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=5)), max_size=60))
def test_soup_gives_diagnostics(pieces: list[str]) -> None:
    check_typed("module @m {\n" + " ".join(pieces))


@pytest.mark.parametrize("text", [
    "module @m { meta x = " + "[" * 20_000,
    "module @m { weight @w : f32[1] = " + "concat(" * 20_000,
    "module @m { weight @w : f32[" + "(" * 20_000 + "] = ones() }",
    "module @m { weight @w : f32[" + "min(" * 20_000,
    "module @m { meta x = " + "-" * 20_000 + "1 }",
    "module @m { dim A in 1..2 meta x = " + "*".join(["(A + B + C + D + E + F)"] * 60) + " }",
    "module @m { meta x = " + "*".join(["9999999999999999999"] * 400) + " }",
    "{" * 20_000,
    '"' * 20_001,
    "module @m {\n" + "func @f(" * 5_000,
])
def test_deep_and_huge_texts_give_diagnostics(text: str) -> None:
    with pytest.raises(DiagnosticError):
        verify_text(text)
