"""Options, refusals, keys of lowered programs, weights found in a file, codes: all without lowering anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from omnic.errors import BundleError, InputError
from omnic.ir import packing
from omnic.ir.types import parse_element
from omnic.models import build
from omnic.spec import load_spec, scale
from omnic.targets import get_target
from omnic.targets.cut import float_values, part_of
from omnic.targets.executorch import lowered
from omnic.targets.executorch.coded import Coded, coded_product, coded_rows, parts_in_file, product_form
from omnic.targets.executorch.emit import with_verify
from omnic.targets.executorch.methods import methods_of, runner_metadata
from omnic.targets.executorch.program import Program
from omnic.targets.executorch.stored import Held, ProgramSource, find_weights
from omnic.targets.executorch.target import TARGET


def test_the_defaults_of_the_options() -> None:
    assert TARGET.options({}) == {
        "delegate": "xnnpack", "state": "buffers", "runner": True, "weights": "inside", "verify": None
    }  # fmt: skip
    assert TARGET.options({"runner": "false", "state": "explicit"})["runner"] is False
    assert get_target("executorch") is TARGET


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"delegates": "xnnpack"}, "target executorch has no option 'delegates'", "did you mean 'delegate'?"),
        (
            {"delegate": "qnn"},
            "target executorch: delegate must be one of xnnpack, portable, coreml, vulkan, not 'qnn'",
            None,
        ),
        ({"state": 3}, "target executorch: state must be one of buffers, explicit, not '3'", None),
    ],
)
def test_a_bad_option_is_said_word_for_word(given: dict[str, object], message: str, hint: str | None) -> None:
    with pytest.raises(InputError) as error:
        TARGET.options(given)
    assert str(error.value) == message
    assert error.value.hint == hint


def test_no_method_is_called_what_the_text_runner_takes_for_its_own() -> None:
    module = build(scale(load_spec("tiny")))
    names = [m.name for m in methods_of(module, with_verify(TARGET.options({}), module))]
    assert names == ["session_prefill", "session_decode", "verify_16", "mtp", "forward", "save", "restore"]
    plain = [m.name for m in methods_of(module, with_verify(TARGET.options({"state": "explicit"}), module))]
    assert plain == ["session_prefill", "session_decode", "verify_16", "mtp"]
    about = runner_metadata(module)
    assert (about["get_max_seq_len"], about["get_max_context_len"], about["get_vocab_size"]) == (64, 320, 512)


def test_a_bundle_without_its_program_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the bundle has no file 'program\.json'"):
        Program(tmp_path)


def test_other_numbers_or_options_are_another_program() -> None:
    module = build(scale(load_spec("tiny")))
    one, other = {"w": torch.zeros(4)}, {"w": torch.ones(4)}
    assert lowered.lowered_key(module, one, {"a": 1}) == lowered.lowered_key(module, one, {"a": 1})
    assert lowered.lowered_key(module, one, {"a": 1}) != lowered.lowered_key(module, other, {"a": 1})
    assert lowered.lowered_key(module, one, {"a": 1}) != lowered.lowered_key(module, one, {"a": 2})


def test_weights_are_found_where_they_lie_and_read_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    plain, turned = (random.standard_normal((5, 7)).astype(np.float32) for _ in range(2))
    program = tmp_path / "program.pte"
    program.write_bytes(b"head" + plain.tobytes() + b"....." + b"..." + np.ascontiguousarray(turned.T).tobytes())
    held = {n: Held(a, "as it is", a.shape, "float32") for n, a in (("plain", plain), ("turned", turned))}
    table = tmp_path / "weights.json"
    table.write_text(json.dumps(find_weights(program, held)))
    source = ProgramSource(program, table)
    assert np.array_equal(source.read("plain", ((1, 4), (0, 7))), plain[1:4])
    assert np.array_equal(source.read("turned", ((0, 5), (2, 3))), turned[:, 2:3])


@pytest.mark.parametrize("type", ["i4<g32>", "i4<row>", "i8<row>"])
def test_coded_products_and_rows_are_those_of_the_numbers(type: str) -> None:
    random = np.random.default_rng(1)
    q = packing.quantise(random.standard_normal((6, 64)).astype(np.float32), parse_element(type))
    numbers = packing.decode(q)
    weight = Coded.of(q)
    x = torch.from_numpy(random.standard_normal((1, 3, 64)).astype(np.float32))
    # 8 bits of activation: 1 % of the result's size is far above its rounding.
    wanted = x.numpy() @ numbers.T
    assert np.abs(coded_product(x, weight, None).numpy() - wanted).max() < 0.02 * np.abs(wanted).max()
    rows = coded_rows(weight.table(), torch.tensor([[4, 0]]), 64).numpy()
    assert np.abs(rows[0] - numbers[[4, 0]]).max() < 1e-6


@pytest.mark.parametrize(
    ("type", "why"),
    [
        ("i4<g32>", None),
        ("i8<row>", None),
        ("i4<g32, asym>", "XNNPACK multiplies with symmetric 4-bit and 8-bit codes"),
        ("nf4<g32>", "XNNPACK multiplies with symmetric 4-bit and 8-bit codes"),
        ("i8<g32>", "XNNPACK has one scale a row for 8-bit codes"),
        ("i4<g16>", "XNNPACK has groups of multiples of 32 that fill a row"),
        ("i4<g32, s4>", "XNNPACK has no s4 scales"),
    ],
)
def test_what_xnnpack_multiplies_with(type: str, why: str | None) -> None:
    assert product_form(parse_element(type), (6, 64)) == why  # type: ignore[arg-type]


def test_scales_of_groups_are_bf16_in_the_program() -> None:
    q = packing.quantise(np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32), parse_element("i4<g32>"))
    weight = Coded.of(q)
    scales, form = parts_in_file("w", weight, {"linear"})["w.scale"]
    assert form == "bf16"
    wide = (scales.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert np.abs(wide / weight.scale.numpy() - 1).max() < 2**-8


def test_a_part_is_the_nodes_between_two_values() -> None:
    function = build(scale(load_spec("tiny"))).function()
    part, _ = part_of(function, ["normed.1"], ["down"])
    assert [n.op for n in part.nodes] == ["linear", "linear", "gated_act", "linear"]
    assert "kv.0.k" not in float_values(function)
    with pytest.raises(InputError, match="@forward has no value %dwn"):
        part_of(function, ["normed.1"], ["dwn"])
    with pytest.raises(InputError, match="%tokens is needed and is not among the inputs"):
        part_of(function, [], ["x"])
