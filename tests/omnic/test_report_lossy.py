"""The report's section on lossy passes: what it counts, and that it says so."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from omnic.ir.graph import Module, Recipe
from omnic.ir.rewrite import retype_weights
from omnic.ir.types import Storage, TensorType, parse_element
from omnic.ir.weights import pinned
from omnic.models import build
from omnic.passes.base import parse_pass
from omnic.report.html import table
from omnic.report.lossy import lossy_facts, lossy_section
from omnic.report.precision import Cell, precision_picture
from omnic.runtime.manifest import PassRecord, Remark
from omnic.spec import Spec, load_spec


@pytest.fixture(scope="module")
def spec() -> Spec:
    return load_spec("tiny")


def quantised(front: Module, name: str, type: str, key: str = "") -> Module:
    """Return the module with one weight in a storage type, rounded or as a stored result."""
    weight, storage = front.weights[name], parse_element(type)
    assert isinstance(storage, Storage)
    recipe = Recipe("stored", {"hash": key}) if key else Recipe("quantise", {"type": storage}, (pinned(weight),))
    return retype_weights(front, {name: (TensorType(storage, weight.type.shape), recipe)})


def bundle(spec: Spec, module: Module, *passes: PassRecord) -> Any:
    return SimpleNamespace(spec=spec, from_spec=True, module=module, manifest=SimpleNamespace(passes=passes))


PASS = PassRecord(
    name="int4-packing",
    stage="lossy",
    options={"method": "gptq"},
    seconds=1.25,
    remarks=(Remark(rule="int4-packing", message="calibrated on 128 windows"), Remark(rule="r", node="n", message="x")),
)


def test_a_compile_without_lossy_passes_has_no_section(spec: Spec) -> None:
    front = build(spec)
    facts = lossy_facts(bundle(spec, front, PassRecord(name="fold", stage="front")), None)
    assert not facts and lossy_section(facts, table) == ""


def test_bytes_are_those_of_the_types(spec: Spec) -> None:
    front = build(spec)
    module = quantised(quantised(front, "blocks.0.attn.q", "i4<g64, asym>"), "embed", "i8<row>", "ab" * 32)
    facts = lossy_facts(bundle(spec, module, PASS), None)
    rows = {r.name: r for r in facts.weights}
    # 256 x 256 codes of 4 bits, 4 groups a row with an f16 scale and a u8 zero point each.
    assert rows["blocks.0.attn.q"].bytes_after == 256 * (128 + 4 * 3)
    assert rows["blocks.0.attn.q"].bytes_before == 2 * 256 * 256
    assert rows["blocks.0.attn.q"].how == "rounded to nearest"
    assert rows["embed"].bytes_after == 4096 * (256 + 2)
    assert rows["embed"].how == "calibrated, result abababababab"
    assert rows["blocks.1.attn.q"].before == rows["blocks.1.attn.q"].after == "bf16"
    assert sum(r.bytes_after for r in facts.weights) == sum(w.type.bytes() for w in module.weights.values())


def test_the_section_shows_types_options_remarks_and_every_weight(spec: Spec) -> None:
    module = quantised(build(spec), "blocks.0.attn.q", "i4<g64, asym>")
    text = lossy_section(lossy_facts(bundle(spec, module, PASS), None), table)
    for word in ("method=gptq", "1.2 s", "calibrated on 128 windows", "i4&lt;g64, asym&gt;", "rounded to nearest"):
        assert word in text, word
    assert text.count("<tr>") > len(module.weights), "every weight has its line"
    assert "States" not in text, "no state changed"


def test_predicted_state_bytes_stand_beside_the_measured(spec: Spec) -> None:
    front = build(spec)
    module = parse_pass("kv-quant{bits=4, group=64}").run(front).module
    # 3 layers and the MTP block; keys and values of 2 heads, 1024 tokens: 64 codes of 4 bits, an f16 scale, a u8 zero;
    # and the newest 48 tokens in f16.
    predicted = 4 * 2 * 2 * (1024 * (32 + 2 + 1) + 48 * 64 * 2)
    facts = lossy_facts(bundle(spec, module, PASS), {"state_bytes": predicted})
    assert facts.predicted == predicted
    equal = lossy_section(facts, table)
    assert f"{predicted:,} bytes measured in the session (equal)" in equal
    other = lossy_section(lossy_facts(bundle(spec, module, PASS), {"state_bytes": predicted + 8}), table)
    assert "(+8)" in other
    unmeasured = lossy_section(lossy_facts(bundle(spec, module, PASS), None), table)
    assert "measured" not in unmeasured


def test_the_picture_has_a_cell_for_every_weight_and_colours_by_bits() -> None:
    cells = [Cell(str(i), "attn.q", bits, "i4<g64>", "t") for i, bits in enumerate((2.3, 4.3, 4.4, 8.1, 16.0))]
    picture = precision_picture([*cells, Cell("ends", "embed", 8.1, "i8<row>", "<t>")])
    fills = re.findall(r'fill="(#\w+)"', picture)
    assert len(fills) == 6
    assert fills[1] == fills[2] != fills[0] and len(set(fills)) == 4
    assert "&lt;t&gt;" in picture and "<t>" not in picture
