"""Plans: fusion, memory that is shared only by what never lives together, C that says where it comes from."""

from __future__ import annotations

import re

import pytest

from omnic.ir.graph import Module
from omnic.targets.tvm.emit import plans_of
from omnic.targets.tvm.legalise import legalise
from omnic.targets.tvm.matrices import Matrices
from omnic.targets.tvm.options import parse_options
from omnic.targets.tvm.plan import Plan
from omnic.targets.tvm.source import ProgramText, program_source
from omnic.targets.tvm.states import state_forms
from tests.targets.tvm.helpers import small_module


def planned(module: Module) -> tuple[list[Plan], Matrices, Module]:
    ready = legalise(module, parse_options({}))
    matrices = Matrices(ready)
    return plans_of(ready, matrices), matrices, ready


def source_of(module: Module) -> str:
    plans, matrices, ready = planned(module)
    states, row_bytes = state_forms(ready)
    text = ProgramText(ready, 4, plans, matrices, states, row_bytes, matrices.layout().bytes, "0" * 64)
    return program_source(text)


@pytest.mark.parametrize("preset", ["tiny", "tiny_moe", "nano_125m", "mobile_4gb"])
def test_no_two_buffers_that_live_together_share_a_byte(preset: str) -> None:
    plans, _, module = planned(small_module(preset))
    for plan in plans:
        life: dict[object, list[int]] = {}
        for at, step in enumerate(plan.steps):
            for view in step.views.values():
                if not view.buffer.place:
                    life.setdefault(view.buffer, [at, at])[1] = at
        placed = [(plan.offsets[b], plan.offsets[b] + size_of(b, plan, module), *life[b]) for b in life]
        for i, one in enumerate(placed):
            for other in placed[:i]:
                together = one[2] <= other[3] and other[2] <= one[3]
                assert not together or one[1] <= other[0] or other[1] <= one[0]
        assert plan.arena == max(end for _, end, _, _ in placed)


def size_of(buffer: object, plan: Plan, module: Module) -> int:
    from omnic.ir.dims import bounds
    from omnic.targets.tvm.views import Buffer

    assert isinstance(buffer, Buffer)
    return bounds(buffer.size, module.dims)[1] * buffer.dtype.bits // 8


@pytest.mark.parametrize("preset", ["tiny", "tiny_moe", "nano_125m", "mobile_4gb"])
def test_a_decoder_needs_no_copy_and_no_loop_for_a_single_token(preset: str) -> None:
    plans, matrices, _ = planned(small_module(preset))
    assert not matrices.loops
    step = next(p for p in plans if p.name == "forward_step")
    assert [s.text.split("(")[0] for s in step.steps if s.text.startswith("omnic_copy")] == []


def test_products_of_one_input_run_together_and_residuals_are_added_in_place() -> None:
    text = source_of(small_module())
    step = text[text.index("static void forward_step(") : text.index("static size_t forward_chunk_scratch")]
    assert step.count("K->linear_many(") == 4 and step.count("K->linear(") == 5
    assert step.count("K->add(") == 0 and "K->rms_norm(&c, x, B, 64, 64," in step
    call = r"K->linear\(&c, &W\[W_blocks_0_attn_o\], \w+, B, 64, OMNIC_ACT_F32, 0, NULL, x, 64, x, 64\)"
    assert re.search(call, step)


def test_every_part_says_its_scope_and_its_line_of_the_spec() -> None:
    text = source_of(small_module())
    assert '/* blocks.0.attn ("small.yaml":10:5) */' in text
    assert '/* head ("small.yaml":4:1) */' in text or "/* head (" in text


def test_rotary_tables_of_equal_layers_are_one() -> None:
    assert source_of(small_module()).count("static const double FREQ_") == 1
