"""Saved packages against the reference: every form of states and lengths, batches, heads, parts, shared weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.errors import BundleError, InputError
from omnic.ir.weights import WeightStore
from omnic.targets.coreml.mil import coremltools
from omnic.targets.coreml.target import TARGET
from tests.targets.coreml.helpers import emitted, held_against_reference, scaled, session_of

IDS = np.random.default_rng(5).integers(0, 512, (1, 45))
#: a call of prefill, verifications whole and padded, single tokens; the last go round a ring
CALLS = [9, 16, 5, 1, 1, 13]


#: where a program rounds to fp16, both sides round alike and sum exactly: what is left are last bits of f32 logits
EXACT = 1e-6


@pytest.mark.parametrize(("preset", "options", "bound"), [
    ("tiny", {"verify": "16"}, 2e-5),
    ("tiny_moe", {"verify": "16"}, 2e-5),
    ("mobile_4gb", {"length": "ranged", "verify": "16"}, 2e-5),
    ("tiny", {"length": "enumerated", "sizes": "4,9,16"}, 2e-5),
    ("tiny_moe", {"state": "stateful"}, EXACT),
    ("tiny", {"compute": "gpu"}, EXACT),
    ("nano_125m", {"compute": "ane"}, EXACT),
    ("tiny_moe", {"compute": "gpu", "length": "ranged"}, EXACT),
    ("tiny_moe", {"compute": "ane"}, EXACT),
    ("mobile_4gb", {"compute": "ane"}, EXACT),
])
def test_logits_are_the_reference_s(preset: str, options: dict[str, str], bound: float, tmp_path: Path) -> None:
    module = scaled(preset)
    weights = WeightStore.random(module, 1)
    made = emitted(module, weights, tmp_path, **options)
    assert held_against_reference(session_of(made, tmp_path), made, weights, IDS, CALLS) <= bound


def test_functions_share_their_weights_and_coremltools_reads_the_package(tmp_path: Path) -> None:
    module = scaled("tiny")
    weights = WeightStore.random(module, 1)
    sizes: dict[str, int] = {}
    for name, options in (("one", {"verify": "none"}), ("several", {"verify": "2,4,8,16"})):
        folder = tmp_path / name
        folder.mkdir()
        emitted(module, weights, folder, **options)
        sizes[name] = (folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert sizes["several"] <= 1.01 * sizes["one"]
    model = coremltools.models.MLModel(str(tmp_path / "several/model.mlpackage"), skip_model_load=True)
    description = model.get_spec().description
    assert [f.name for f in description.functions][:3] == ["decode", "verify_2", "verify_4"]
    assert description.defaultFunctionName == "decode"
    assert [f.name for f in description.functions[0].input] == ["tokens", "positions", "start", "kv_0_k", "kv_0_v"]
    assert description.functions[0].input[2].shortDescription == "tokens that the caches hold before this call"
    told = description.metadata.userDefined
    assert (told["omnic.rope_base"], told["omnic.layers"], told["omnic.state"]) == ("10000.0", "1", "explicit")


def test_states_of_the_runtime_are_fp16_states_of_the_package(tmp_path: Path) -> None:
    module = scaled("tiny")
    made = emitted(module, WeightStore.random(module, 1), tmp_path, state="stateful", verify="none")
    assert {str(s.type) for s in made.module.states.values()} == {"f16[B, 2, 320, 32]"} or all(
        str(s.type).startswith("f16[") for s in made.module.states.values())
    model = coremltools.models.MLModel(str(tmp_path / "model.mlpackage"), skip_model_load=True)
    decode = model.get_spec().description.functions[0]
    assert [s.name for s in decode.state] == ["kv_0_k", "kv_0_v"]
    assert [o.name for o in decode.output] == ["logits", "hidden"]


def test_rows_of_a_batch_run_by_themselves(tmp_path: Path) -> None:
    module = scaled("tiny")
    weights = WeightStore.random(module, 1)
    session = session_of(emitted(module, weights, tmp_path), tmp_path)
    both = np.concatenate([IDS[:, :12], IDS[:, 12:24]])
    session.reset(2)
    together = session.forward(both, length=[12, 7]).logits
    session.reset(1)
    alone = session.forward(both[1:, :7]).logits
    assert np.array_equal(together[1, :7], alone[0])
    fork = session.fork()
    assert np.array_equal(session.forward(IDS[:, 30:31]).logits, fork.forward(IDS[:, 30:31]).logits)


def test_a_part_between_values_and_names_that_are_not_there(tmp_path: Path) -> None:
    module = scaled("tiny")
    weights = WeightStore.random(module, 1)
    made = emitted(module, weights, tmp_path)
    steps = np.arange(6)[None]
    whole = {"tokens": IDS[:, :6], "positions": steps, "start": np.zeros(1, np.int64), "length": np.array([6]),
             "rows": steps}
    shown = TARGET.preserved(tmp_path)
    assert {"x", "x.1", "attn_out", "hidden"} & set(shown)
    found = TARGET.capture(tmp_path, whole, ["x.1", "logits"])
    part = TARGET.capture_part(tmp_path, {"x.1": found["x.1"], "rows": steps}, ["logits"])
    assert np.abs(part["logits"] - found["logits"]).max() <= 1e-5 * np.abs(found["logits"]).max()
    with pytest.raises(InputError, match="shows no value nothing"):
        TARGET.capture_part(tmp_path, {"x.1": found["x.1"]}, ["nothing"])
    with pytest.raises(InputError, match="this bundle has no program 'draft'"):
        TARGET.preserved(tmp_path, "draft")
    del made


def test_a_bundle_without_its_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "module.ir").write_text("module @m {\n}\n", encoding="utf-8")
    with pytest.raises(BundleError, match=r"the bundle has no coreml\.json or no model\.mlpackage"):
        TARGET.preserved(tmp_path)
    with pytest.raises(BundleError, match=r"the bundle has no file 'coreml\.json'"):
        TARGET.weights(tmp_path)
