"""What crosses the borders of blocks in a bundle's module is a value of its program too, so that parts can be run."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnic.compiler.parts import parts_of
from omnic.ir.weights import WeightStore
from omnic.targets.coreml.target import TARGET
from tests.targets.coreml.helpers import emitted
from tests.targets.coreml.test_chunks import model


@pytest.mark.parametrize("compute", ["gpu", "ane"])
def test_the_program_shows_what_a_block_reads_from_others(compute: str, tmp_path: Path) -> None:
    module = model()
    made = emitted(module, WeightStore.random(module, 1), tmp_path, compute=compute, verify="none")
    function = made.module.function()
    given = {p.value.name for p in function.params}
    shown = {*TARGET.preserved(tmp_path), *given}
    for part in parts_of(function):
        assert {v.name for v in part.inputs} <= shown, part.name
