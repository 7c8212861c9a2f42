"""Comparing modules: what counts, what does not, and the sentences."""

from __future__ import annotations

import pytest

from omnic.ir.equal import same_module
from omnic.ir.text import parse_module

TEXT = """\
module @m {
  meta stage = "front"
  dim B in 1..4
  weight @w : f32[8, 8] = normal(std = 0.02)
  state @k : f32[B, 1, 8, 8] role(k) group(0) rollback(positional)
  func @main(%x: f32[B, 8], %k: f32[B, 1, 8, 8] = @k) -> (%y: f32[B, 8], %k: f32[B, 1, 8, 8] aliases @k) {
    %a = linear(%x, @w) : f32[B, 8]
    %b = rms_norm(%a) {eps = 0.001} : f32[B, 8]
    %c, %i = topk(%b) {k = 8} : f32[B, 8], i64[B, 8]
    return y = %c, k = %k
  }
}
"""

SAME = [
    ("%a", "%renamed"),
    (") {eps = 0.001} : f32[B, 8]", ') {eps = 0.001} : f32[B, 8] loc("a.yaml":1:2)'),
    ("{k = 8}", "{k = 8, axis = -1}"),
    ('  dim B in 1..4\n  weight @w : f32[8, 8] = normal(std = 0.02)\n',
     '  weight @w : f32[8, 8] = normal(std = 0.02)\n  dim B in 1..4\n'),
]

DIFFERENT = [
    ("module @m", "module @n", ["the modules are called @m and @n"]),
    ('"front"', '"lossy"', ['meta stage: "front" and "lossy"']),
    ("1..4", "1..5", ["dim B: 1..4 and 1..5"]),
    ("0.02", "0.03", ["weight w: f32[8, 8] = normal(std = 0.02) and f32[8, 8] = normal(std = 0.03)"]),
    ("group(0)", "group(1)", [
        "state k: state @k : f32[B, 1, 8, 8] role(k) group(0) rollback(positional) and "
        "state @k : f32[B, 1, 8, 8] role(k) group(1) rollback(positional)"]),
    ("func @main", "func @other", ["func main is only in the first", "func other is only in the second"]),
    ("{eps = 0.001}", "{eps = 0.002}", ["func @main: /rms_norm.0: attribute eps: 0.001 and 0.002"]),
    ("{eps = 0.001}", "", ["func @main: /rms_norm.0: attribute eps is only in the first"]),
    ("rms_norm(%a)", "rms_norm(%x)", ["func @main: /rms_norm.0: operand 0 is %a and %x"]),
    ("y = %c", "y = %b", ["func @main: result y is %c and %b"]),
    ("rms_norm(%a) {eps = 0.001}", "relu(%a)", ["func @main: /rms_norm.0 is rms_norm and relu (/relu.0)"]),
    ("(%a) {eps = 0.001} : f32[B, 8]", '(%a) {eps = 0.001} : f32[B, 8] scope("s")', [
        "func @main: /rms_norm.0 in scope '' and s/rms_norm.0 in scope 's'"]),
    ("(%x: f32[B, 8],", "(%z: f32[B, 8],", ["func @main: parameters %x: f32[B, 8] and %z: f32[B, 8]"]),
]


@pytest.mark.parametrize(("old", "new"), SAME)
def test_same(old: str, new: str) -> None:
    assert TEXT.count(old) >= 1
    assert same_module(parse_module(TEXT), parse_module(TEXT.replace(old, new))) == []


@pytest.mark.parametrize(("old", "new", "expected"), DIFFERENT, ids=[d[1] or "removed" for d in DIFFERENT])
def test_different(old: str, new: str, expected: list[str]) -> None:
    changed = TEXT.replace(old, new)
    if new == "(%z: f32[B, 8],":
        changed = changed.replace("linear(%x", "linear(%z")
    assert same_module(parse_module(TEXT), parse_module(changed)) == expected


def test_name_and_metadata_can_be_left_out() -> None:
    other = TEXT.replace("module @m", "module @n").replace('"front"', '"lossy"')
    assert same_module(parse_module(TEXT), parse_module(other), meta=False) == []


def test_a_removed_node_is_found() -> None:
    other = TEXT.replace("    %b = rms_norm(%a) {eps = 0.001} : f32[B, 8]\n", "").replace("topk(%b)", "topk(%a)")
    found = same_module(parse_module(TEXT), parse_module(other))
    assert found[0] == "func @main: 3 and 2 nodes"
    assert "func @main: /rms_norm.0 is rms_norm and topk (/topk.0)" in found
