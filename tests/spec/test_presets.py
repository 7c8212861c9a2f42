"""The presets: the numbers of the table in docs/spec.md are arithmetic."""

from __future__ import annotations

import pytest

from omnic.errors import InputError
from omnic.spec import load_spec, preset_names, preset_text
from omnic.spec.presets import preset_summary
from omnic.spec.rules import DRAFT_SHARE
from omnic.spec.sizes import count_parameters, read_bytes

# name -> total and active parameters
COUNTS = {
    "draft_150m": (125_264_640, 125_264_640),
    "draft_1b": (1_034_512_384, 1_034_512_384),
    "draft_2b": (2_048_626_944, 2_048_626_944),
    "draft_30m": (31_171_968, 31_171_968),
    "draft_3b": (2_913_262_080, 2_913_262_080),
    "draft_60m": (50_213_376, 50_213_376),
    "mobile_2gb": (361_166_592, 111_867_648),
    "mobile_2gb_moe16": (587_708_160, 137_082_624),
    "mobile_4gb": (1_371_532_160, 271_575_936),
    "mobile_4gb_moe16": (1_440_738_176, 340_781_952),
    "nano_125m": (123_552_768, 123_552_768),
    "nano_560m": (367_579_136, 334_811_136),
    "tiny": (3_542_016, 2_819_840),
    "tiny_moe": (3_876_096, 2_187_200),
}


def test_every_preset_is_counted() -> None:
    assert set(COUNTS) == set(preset_names())


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_counts(name: str) -> None:
    counted = count_parameters(load_spec(name))
    assert (counted.total, counted.active) == COUNTS[name]


def test_mobile_4gb_by_hand() -> None:
    """Twelve layers of MLA and 17 experts; embedding, head, two MTP heads and the verifier of 32000 x 1024 each."""
    mla = 1024 * 8 * 128 + 1024 * (160 + 32) + 160 + 160 * 8 * (96 + 128) + 8 * 128 * 1024
    moe = 17 * 2 * 1024 * 2816 + 16 * 1024
    assert count_parameters(load_spec("mobile_4gb")).total == 12 * (mla + moe + 2 * 1024) + 5 * 32000 * 1024 + 1024


@pytest.mark.parametrize(("name", "megabytes"), [("tiny", 7.1), ("tiny_moe", 7.75)])
def test_the_small_models_fit_their_files(name: str, megabytes: float) -> None:
    spec = load_spec(name)
    assert spec.dtype == "bf16"
    assert spec.tie
    assert count_parameters(spec).total * 2 == pytest.approx(megabytes * 1e6, rel=5e-3)
    assert count_parameters(spec).total * 2 <= 8e6


@pytest.mark.parametrize("name", [name for name in COUNTS if name.startswith("mobile")])
def test_a_draft_pays_off(name: str) -> None:
    spec = load_spec(name)
    assert spec.draft is not None
    draft = load_spec(spec.draft)
    assert draft.vocab.size == spec.vocab.size
    assert read_bytes(draft) <= DRAFT_SHARE * read_bytes(spec)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_each_says_its_name_and_what_it_is(name: str) -> None:
    assert load_spec(name).model == name
    assert preset_text(name).lines[0] == "# yaml-language-server: $schema=schema.json"
    assert preset_summary(name).endswith(".")


def test_unknown_preset() -> None:
    with pytest.raises(InputError) as caught:
        preset_text("mobile_4g")
    assert caught.value.message == "there is no preset 'mobile_4g'"
    assert caught.value.hint == "did you mean 'mobile_4gb'?"


def test_the_structure_the_small_models_show() -> None:
    tiny, moe = load_spec("tiny"), load_spec("tiny_moe")
    assert [layer.attention.kind for layer in tiny.layers()] == ["gqa"] * 3
    block = moe.mtp_layer()
    assert block is not None
    assert (block.index, block.attention.kind, block.ffn.hidden, block.ffn.gated) == (3, "mla", 256, True)
    assert block.attention.window == 256
    own = tiny.mtp_layer()
    assert own is not None
    assert own.ffn == tiny.layers()[-1].ffn
    assert load_spec("nano_125m").mtp_layer() is None
