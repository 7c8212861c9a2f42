"""Specs as architectures of llama.cpp and back; what cannot be written is refused by key and place."""

from __future__ import annotations

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest

from omnic.errors import BundleError, InputError
from omnic.ir.types import Storage
from omnic.ir.weights import WeightStore
from omnic.models.gguf.container import read_gguf
from omnic.models.gguf.exporter import write_gguf
from omnic.models.gguf.importer import open_gguf
from omnic.models.gguf.publish import publish_gguf
from tests.models.gguf.specs import MIXTURE, NONE, SPECS, logits_of, model_of, prompt, rope, spec_of, write


@pytest.mark.parametrize("name", SPECS)
def test_what_is_written_is_read_as_the_same_model(name, tmp_path):
    arch, spec = SPECS[name]
    _, store = model_of(spec)
    assert publish_gguf(spec).arch.name == arch
    write(tmp_path / "m.gguf", spec, store)
    opened = open_gguf(tmp_path / "m.gguf")
    assert opened.unread == ()
    again = WeightStore.loaded(opened.module, opened.source)
    if name != "pairs":  # its rows lie in another order now
        for weight in store.module.weights:
            assert np.array_equal(again.array(weight), store.array(weight)), weight
    want = logits_of(store, prompt())
    assert np.abs(logits_of(again, prompt()) - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0", "q4_0"])
def test_types_are_read_back_as_they_were_written(type, tmp_path):
    spec = SPECS["qwen3moe"][1]
    _, store = model_of(spec)
    written = write(tmp_path / "a.gguf", spec, store, type)
    assert written.types == {type.upper(): 16, "F32": 11}
    opened = open_gguf(tmp_path / "a.gguf")
    loaded = WeightStore.loaded(opened.module, opened.source)
    want = {"f16": "f16", "bf16": "bf16", "q8_0": "i8<g32>", "q4_0": "i4<g32>"}[type]
    assert str(loaded.module.weights["blocks.0.attn.q"].type.element) == want
    assert str(loaded.module.weights["blocks.0.ffn.experts.up"].type.element) == want
    assert str(loaded.module.weights["blocks.0.attn_norm"].type.element) == "f32"
    with (tmp_path / "b.gguf").open("wb") as file:
        again = write_gguf(file, publish_gguf(opened.spec.model_copy(update={"model": "small"})), loaded, NONE)
    assert again.types == written.types
    assert again.kept == (16 if "q" in type else 0)
    a, b = read_gguf(tmp_path / "a.gguf"), read_gguf(tmp_path / "b.gguf")
    assert {k: (e.shape, e.codec.name) for k, e in a.tensors.items()} == {
        k: (e.shape, e.codec.name) for k, e in b.tensors.items()
    }
    for name, entry in a.tensors.items():
        other = b.tensors[name]
        assert np.array_equal(a.rows(entry, 0, entry.rows), b.rows(other, 0, other.rows)), name


def test_rows_without_whole_blocks_are_f16(tmp_path):
    spec = spec_of(ffn={"kind": "dense", "hidden": 80})
    written = write(tmp_path / "m.gguf", spec, model_of(spec)[1], "q4_0")
    assert written.types == {"Q4_0": 14, "F16": 2, "F32": 5}


def test_types_that_gguf_has_not(tmp_path):
    spec = spec_of()
    module, store = model_of(spec)
    q = module.weights["blocks.0.attn.q"]
    nf4 = q.value.type.with_element(Storage("nf4", 64))
    weights = {**module.weights, q.name: replace(q, value=replace(q.value, type=nf4))}
    coded = store.with_module(replace(module, weights=weights))
    with pytest.raises(InputError, match=r"weight 'blocks.0.attn.q' is nf4<g64>, which is no type of GGUF") as caught:
        write(tmp_path / "m.gguf", spec, coded)
    assert "--type q8_0" in caught.value.hint


def test_numbers_beyond_f16(tmp_path):
    spec = spec_of()
    _, store = model_of(spec)
    arrays = {name: store.array(name).copy() for name in store.module.weights}
    arrays["head"][0, 0] = 1e6
    store = WeightStore.of(store.module, arrays)
    with pytest.raises(InputError, match="numbers beyond F16"):
        write(tmp_path / "m.gguf", spec, store, "f16")


@pytest.mark.parametrize(
    "spec, message",
    [
        (spec_of({"window": 32}), r"llama lacks blocks.attention.window 32 \(it would be null\) in the block at small"),
        (spec_of({"sinks": True}), r"blocks.attention.sinks true \(it would be false\) in the block at small.yaml:1:"),
        (spec_of({"rope": None}), "blocks.attention.rope null"),
        (spec_of({"qk_norm": "full"}), "attention.qk_norm"),
        (spec_of({"scale": 0.5}), r"blocks.attention.scale 0.5 \(it would be 0.17"),
        (spec_of(ffn={"kind": "dense", "hidden": 96, "activation": "gelu"}), "ffn.activation \"gelu\""),
        (spec_of(softcap={"logits": 30.0}), r"softcap.logits 30.0 \(it would be null\)"),
        (spec_of(norm={"kind": "layer"}), r"norm.kind \"layer\" \(it would be \"rms\"\)"),
        (spec_of(norm={"place": "post"}), "norm.place \"post\""),
        (spec_of(multipliers={"residual": 0.5}), "multipliers.residual 0.5"),
        (spec_of(heads={"verifier": True}), r"heads.verifier true \(it would be false\)"),
        (spec_of(ffn=MIXTURE | {"score": "sigmoid"}), "ffn.score \"sigmoid\""),
        (spec_of(ffn=MIXTURE | {"renormalise": False}), "ffn.renormalise false"),
        (spec_of(ffn=MIXTURE | {"shared": 1}), "ffn.shared true"),
        (spec_of(ffn=MIXTURE | {"gate_scale": 2.0}), "ffn.gate_scale 2.0"),
    ],
)  # fmt: skip
def test_specs_that_llama_cpp_cannot_express(spec, message):
    with pytest.raises(InputError, match=rf"no architecture of llama.cpp .* can express small: .*{message}"):
        publish_gguf(spec)


def test_asking_for_one_architecture():
    with pytest.raises(InputError, match=r"qwen3 lacks blocks.attention.qk_norm false"):
        publish_gguf(spec_of(), "qwen3")
    with pytest.raises(InputError, match="does not write the architecture 'gpt2'"):
        publish_gguf(spec_of(), "gpt2")
    with pytest.raises(InputError, match=r"qwen3 lacks rope.scaling.kind llama3"):
        publish_gguf(spec_of({"qk_norm": True, **rope(kind="llama3", factor=8, original_context=16)}), "qwen3")


# -- files that others write ----------------------------------------------------------------------------------


def foreign(path, arch="llama", drop=(), tensors=None, skip=(), **changes):
    """Write a small file with the gguf package: keys of an architecture, f32 tensors."""
    writer = gguf.GGUFWriter(path, arch)
    keys = {
        "context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 48,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": 8, "rope.freq_base": 5e5,
    } | changes  # fmt: skip
    for key, value in keys.items():
        if key in drop:
            continue
        full = key if key.startswith(("general.", "split.")) else f"{arch}.{key}"
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}[
            type(value)
        ](full, value)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (50, 32), "output_norm.weight": (32,), "output.weight": (50, 32),
        "blk.0.attn_norm.weight": (32,), "blk.0.ffn_norm.weight": (32,), "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32), "blk.0.attn_v.weight": (16, 32), "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_gate.weight": (48, 32), "blk.0.ffn_up.weight": (48, 32), "blk.0.ffn_down.weight": (32, 48),
    } | (tensors or {})  # fmt: skip
    for name, shape in shapes.items():
        if name not in skip:
            numbers = shape if isinstance(shape, list) else rng.standard_normal(shape)
            writer.add_tensor(name, np.asarray(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_defaults_and_unknown_keys(tmp_path):
    path = foreign(tmp_path / "My Model.gguf", **{"general.author": "me", "attention.novelty": 3})
    opened = open_gguf(path)
    assert opened.spec.model == "My-Model"
    assert opened.unread == ("llama.attention.novelty",)
    attention = opened.spec.layers()[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.rope.base) == (4, 2, 8, 5e5)
    assert opened.spec.norm.eps == 1e-5
    assert opened.spec.budget.context == 64
    assert open_gguf(path, context=16, name="other").spec.budget.context == 16
    effects = {e.key: e.effect for e in opened.effects}
    assert effects["general.author"].startswith("no effect")
    assert effects["llama.attention.novelty"] == ""


def test_older_mixtral_has_a_tensor_for_every_expert(tmp_path):
    experts = {f"blk.0.ffn_{part}.{e}.weight": (32, 48) if part == "down" else (48, 32)
               for part in ("gate", "up", "down") for e in range(3)}  # fmt: skip
    dense = [f"blk.0.ffn_{part}.weight" for part in ("gate", "up", "down")]
    path = foreign(tmp_path / "m.gguf", tensors={"blk.0.ffn_gate_inp.weight": (3, 32), **experts}, skip=dense,
                   expert_count=3, expert_used_count=2)  # fmt: skip
    opened = open_gguf(path)
    store = WeightStore.loaded(opened.module, opened.source)
    third = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.2.weight").data
    assert np.array_equal(store.array("blocks.0.ffn.experts.up")[2], third)


def test_factors_of_rope_frequencies(tmp_path):
    path = foreign(tmp_path / "m.gguf", tensors={"rope_freqs.weight": [1.0, 2.0, 4.0, 8.0]})
    scaling = open_gguf(path).spec.layers()[0].attention.rope.scaling
    assert (scaling.kind, scaling.factors, scaling.attention_factor) == ("longrope", (1.0, 2.0, 4.0, 8.0), 1.0)
    again = foreign(tmp_path / "n.gguf", **{"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
                    tensors={"rope_freqs.weight": [1.0] * 4})  # fmt: skip
    with pytest.raises(InputError, match=r"rope_freqs.weight together with llama.rope.scaling.type = linear"):
        open_gguf(again)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"arch": "gpt2"}, InputError, "omnic does not read the architecture 'gpt2'"),
        ({"drop": ("block_count",)}, InputError, "m.gguf has no 'llama.block_count'"),
        ({"attention.head_count": "four"}, InputError, "llama.attention.head_count is 'four', not a whole number"),
        ({"attention.head_count": [4, 8]}, InputError, "cannot express llama.attention.head_count of 2 sizes"),
        ({"attention.value_length": 4}, InputError, "cannot express llama.attention.value_length = 4"),
        ({"rope.dimension_count": 4}, InputError, "cannot express llama.rope.dimension_count = 4"),
        ({"rope.scaling.type": "magic"}, InputError, 'cannot express llama.rope.scaling.type = "magic"'),
        ({"split.count": 3}, BundleError, "m.gguf is one of 3 parts of a model"),
        ({"skip": ("blk.0.attn_q.weight", "output_norm.weight")}, BundleError,
         "2 missing: output_norm.weight, blk.0.attn_q.weight"),
        ({"tensors": {"blk.0.attn_q.weight": (32, 16), "extra.weight": (2, 2)}}, BundleError,
         r"1 of another shape than the configuration says: .*blk.0.attn_q.weight \[32, 16\].*extra.weight"),
    ],
)  # fmt: skip
def test_files_omnic_cannot_read(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        open_gguf(foreign(tmp_path / "m.gguf", **changes))


def test_metadata_is_reported_as_json(tmp_path):
    from omnic.models.checkpoints.checkpoint import effects_table

    rows = effects_table(open_gguf(foreign(tmp_path / "m.gguf")).effects)
    assert ("llama.block_count", "1", "blocks.repeat") in rows
    json.dumps(rows)
