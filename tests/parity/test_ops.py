"""Every op, with its variants, on every target: what the saved program computes, or the words that refuse it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.caps import Caps
from omnic.ir.numeric import find_class
from omnic.ir.op import all_ops
from omnic.ir.types import Storage, parse_element
from omnic.targets import TARGETS, caps_of
from omnic.targets.onnx.caps import PROFILE_CAPS
from tests.parity.op_cases import CASES
from tests.parity.op_operands import Case
from tests.parity.op_programs import emit_cases, packed, run_saved


@dataclass(frozen=True)
class Row:
    """A target with the options that its programs of ops are made with; ``first``: it runs one case of each op."""

    target: str
    caps: Caps
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    first: bool = False


ROWS = {
    "torch": Row("torch", caps_of("torch")),
    "onnx fused": Row("onnx", PROFILE_CAPS["fused"], {"profile": "fused"}),
    "onnx plain": Row("onnx", PROFILE_CAPS["plain"], {"profile": "plain"}),
    "coreml": Row("coreml", caps_of("coreml")),
    "tvm": Row("tvm", caps_of("tvm")),
    # To lower a function of all cases takes minutes.
    "executorch": Row("executorch", caps_of("executorch"), {"delegate": "portable"}, first=True),
}
SLOW = {
    "executorch portable": Row("executorch", caps_of("executorch"), {"delegate": "portable"}),
    "executorch xnnpack": Row("executorch", caps_of("executorch")),
}
BOUND = find_class("f32").bound


def refusal(row: Row, case: Case) -> str | None:
    """Return why a target takes no such case by its capabilities, None when it does."""
    why = row.caps.reason(case.op, case.attrs)
    element = parse_element(case.state) if case.state else None
    if why is None and isinstance(element, Storage):
        why = row.caps.storage_refusal(element, 16, state=True)
    return why


def taken(row: Row) -> list[Case]:
    found = [case for case in CASES.values() if refusal(row, case) is None]
    return list({case.op: case for case in reversed(found)}.values()) if row.first else found


def difference(found: np.ndarray, wanted: np.ndarray) -> str | None:
    """Return how a value differs by more than the class f32 allows, None when it does not."""
    assert BOUND is not None
    if found.shape != wanted.shape:
        return f"shape {found.shape} for {wanted.shape}"
    finite = np.isfinite(wanted)
    numbers, given = np.asarray(wanted, np.float64), np.asarray(found, np.float64)
    if not np.array_equal(given[~finite], numbers[~finite], equal_nan=True):
        return f"{given[~finite]} for {numbers[~finite]}"
    if wanted.dtype.kind in "iub":
        return None if np.array_equal(given, numbers) else f"{found} for {wanted}"
    rms = float(np.sqrt((numbers[finite] ** 2).mean())) if finite.any() else 0.0
    error = float(np.abs(given[finite] - numbers[finite]).max(initial=0.0))
    return None if error <= BOUND * max(rms, 1e-3) else f"off by {error / max(rms, 1e-3):.1e} of the rms"


@pytest.mark.parametrize("name", [*ROWS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_case_that_a_target_takes_is_the_reference(name: str, tmp_path: Path) -> None:
    row = {**ROWS, **SLOW}[name]
    program = packed(taken(row))
    emit_cases(program, row.target, dict(row.options), tmp_path)
    found, wanted = run_saved(program, row.target, tmp_path), program.wanted()
    off = {value: how for value in wanted if (how := difference(np.asarray(found[value]), wanted[value])) is not None}
    assert not off


def test_every_case_is_the_reference_as_the_torch_module_that_executorch_lowers() -> None:
    from tests.targets.executorch.helpers import run_eager

    program = packed(taken(SLOW["executorch portable"]))
    found, wanted = run_eager(program.module, program.inputs, program.weights), program.wanted()
    off = {value: how for value in wanted if (how := difference(found[value], wanted[value])) is not None}
    assert not off


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case.name) for name, row in ROWS.items() for case in CASES.values() if refusal(row, case) is not None],
)
def test_what_a_target_refuses_is_said_word_for_word(name: str, case: str, tmp_path: Path) -> None:
    row, program = ROWS[name], packed([CASES[case]])
    why = refusal(row, CASES[case])
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        emit_cases(program, row.target, dict(row.options), out)
    said = caught.value.message
    if row.caps.reason(CASES[case].op, CASES[case].attrs) is not None:
        scope = program.module.function().nodes[-1].scope
        assert said == f"{row.target} cannot take {CASES[case].op} of {scope} (ops.yaml:7:3): {why}"
        others = [t for t in sorted(TARGETS) if caps_of(t).reason(CASES[case].op, CASES[case].attrs) is None]
        assert caught.value.hint == (
            f"targets that take it: {', '.join(others)}"
            if others
            else "no target takes it: codes are of weights and states; quantise those instead"
        )
    else:
        assert program.module.states.keys() & set(said.replace("'", " ").split()) and caught.value.hint
    assert not any(out.iterdir())


@pytest.mark.parametrize("name", ROWS)
def test_every_op_has_an_entry_with_its_source(name: str) -> None:
    caps = ROWS[name].caps
    assert set(caps.ops) == set(all_ops())
    assert all(support.source for support in caps.ops.values())


def test_every_target_has_a_row() -> None:
    assert {row.target for row in ROWS.values()} == set(TARGETS)


def test_every_attribute_takes_every_kind_of_value_in_some_case() -> None:
    poor: list[str] = []
    for op, definition in all_ops().items():
        cases = [case for case in CASES.values() if case.op == op]
        for attr in definition.attrs:
            # One op has the same element in each of its cases only where all others are refused.
            values = {str(case.attrs.get(attr.name, attr.default)) for case in cases}
            wanted = {str(choice) for choice in attr.choices}
            if not wanted <= values or (len(values) < 2 and attr.name not in ("to", "ring")):
                poor.append(f"{op}.{attr.name}: {sorted(values)}")
        for at, operand in enumerate(definition.inputs):
            given = {case.operands[at] is not None for case in cases if at < len(case.operands)}
            if operand.optional and True not in given and not any(case.state for case in cases):
                poor.append(f"{op}({operand.name}) is never given")
    assert not poor
