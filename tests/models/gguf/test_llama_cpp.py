"""Against llama.cpp itself: the same greedy tokens, the same logits, and its own quantised files read exactly.

llama-cpp-python has no wheel, so only the extra ``bench`` brings it (it compiles for twenty minutes).  What llama.cpp
generated with the files omnic writes lies in ``data/llama_cpp.json`` and is compared everywhere; where the package is
installed the rest runs too, and the file is checked.
"""

from __future__ import annotations

import ctypes
import json

import numpy as np
import pytest

from omnic.ir.numeric import CLASSES, logit_rms, near_ties
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.models.gguf.codecs import CODECS
from omnic.models.gguf.container import read_gguf
from omnic.models.gguf.importer import open_gguf
from tests.models.gguf.specs import GREEDY, SPECS, STEPS, LlamaCpp, logits_of, model_of, prompt, spec_of, write

RECORDED = json.loads(GREEDY.read_text())


@pytest.mark.parametrize("name", SPECS)
def test_greedy_tokens_are_those_of_llama_cpp(name):
    """64 tokens, each the reference's choice after those before it, but where it is nearly undecided itself."""
    assert len(RECORDED[name]) == STEPS
    _, store = model_of(SPECS[name][1])
    check_greedy(store, RECORDED[name])


def check_greedy(store: WeightStore, tokens: list[int]) -> None:
    ids = prompt() + tokens
    logits = logits_of(store, ids, np.float32)[len(prompt()) - 1 : -1]
    undecided = near_ties(logits, CLASSES["f32"])
    assert undecided.mean() < 0.05
    assert np.array_equal(np.argmax(logits, axis=-1)[~undecided], np.asarray(tokens)[~undecided])


@pytest.mark.parametrize("name", SPECS)
def test_logits_are_those_of_llama_cpp(name, tmp_path):
    pytest.importorskip("llama_cpp", reason="needs the extra bench")
    spec = SPECS[name][1]
    _, store = model_of(spec)
    write(tmp_path / "m.gguf", spec, store)
    engine, ids = LlamaCpp(tmp_path / "m.gguf"), prompt() + RECORDED[name]
    assert engine.greedy(prompt()) == RECORDED[name]
    ours = logits_of(store, ids)
    errors = np.abs(engine.logits(ids) - ours).max(axis=-1) / logit_rms(ours)
    assert np.median(errors) < 1e-5
    assert errors.max() < 1e-4  # numpy's own f32 run of these models is up to 3e-5 away


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_codes_we_write_are_read_by_llama_cpp(name, type, tmp_path):
    """llama.cpp rounds activations to 8 bits, so its logits are near those of the numbers the codes stand for."""
    pytest.importorskip("llama_cpp", reason="needs the extra bench")
    spec = SPECS[name][1]
    _, store = model_of(spec)
    write(tmp_path / "m.gguf", spec, store, type)
    opened = open_gguf(tmp_path / "m.gguf")
    ours = logits_of(WeightStore.loaded(opened.module, opened.source), prompt())
    theirs = LlamaCpp(tmp_path / "m.gguf").logits(prompt())
    assert np.abs(theirs - ours).mean() < 0.1 * logit_rms(ours)
    assert np.abs(theirs - ours).mean() < np.abs(logits_of(store, prompt()) - ours).mean()


# llama_model_quantize's file types: (number, types of the tensors it makes of rows of 256)
FILE_TYPES = {
    "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "BF16": 32, "F16": 1,
}  # fmt: skip


@pytest.mark.parametrize("form", FILE_TYPES)
def test_files_of_llama_cpp_are_read_as_it_dequantises_them(form, tmp_path):
    """A file its quantiser wrote: its weights are the dequantised numbers to the bit."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs the extra bench")
    import gguf

    wide = spec_of({"heads": 8}, {"kind": "dense", "hidden": 512}, width=256, vocab={"size": 320}, init={"std": 0.06})
    _, store = model_of(wide)
    write(tmp_path / "plain.gguf", wide, store)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[form], 1
    made = tmp_path / "quantised.gguf"
    assert not llama_cpp.llama_model_quantize(
        str(tmp_path / "plain.gguf").encode(), str(made).encode(), ctypes.byref(params)
    )
    opened = open_gguf(made)
    loaded = WeightStore.loaded(opened.module, opened.source)
    numbers = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(made).tensors}
    types = {t.tensor_type.name for t in gguf.GGUFReader(made).tensors}
    assert types - {"F32"}, "nothing was quantised"
    for ours, theirs in (("embed", "token_embd"), ("blocks.0.attn.v", "blk.0.attn_v"), ("head", "output"),
                         ("blocks.1.ffn.down", "blk.1.ffn_down"), ("final_norm", "output_norm")):  # fmt: skip
        found = loaded.array(ours)
        assert np.array_equal(found.view(np.uint32), numbers[f"{theirs}.weight"].view(np.uint32)), ours
    # q lies in another order of rows, so its numbers are compared through the logits.
    q = numbers["blk.0.attn_q.weight"].reshape(8, 16, 2, 256).swapaxes(1, 2).reshape(256, 256)
    assert np.array_equal(loaded.array("blocks.0.attn.q"), q)
    wide = build(opened.spec.model_copy(update={"dtype": "f32"}))
    dequantised = WeightStore.of(wide, {n: loaded.array(n) for n in loaded.module.weights})
    assert np.array_equal(logits_of(loaded, prompt()), logits_of(dequantised, prompt()))
    kept = [w.type.element for w in loaded.module.weights.values() if w.type.element.__class__.__name__ == "Storage"]
    assert bool(kept) == (form in ("Q4_0", "Q8_0", "Q5_0", "Q6_K", "Q4_K_S", "Q4_K_M", "Q5_K_M"))
    theirs = LlamaCpp(made).logits(prompt())
    ours = logits_of(loaded, prompt())
    assert np.abs(theirs - ours).mean() < 0.04 * logit_rms(ours)


@pytest.mark.parametrize("name", [n for n in CODECS if n != "F32"])
def test_blocks_are_dequantised_as_ggml_does(name):
    """ggml's own C code, by ``ggml_get_type_traits(type)->to_float``, on random blocks."""
    pytest.importorskip("llama_cpp", reason="needs the extra bench")
    from bench.compression.llama_cpp import library

    class Traits(ctypes.Structure):
        _fields_ = [
            ("name", ctypes.c_char_p), ("block", ctypes.c_int64), ("interleave", ctypes.c_int64),
            ("size", ctypes.c_size_t), ("quantised", ctypes.c_bool), ("to_float", ctypes.c_void_p),
        ]  # fmt: skip

    ggml, codec = library(), CODECS[name]
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    traits = ggml.ggml_get_type_traits(codec.identity).contents
    assert (traits.name.decode().upper(), traits.block, traits.size) == (name.upper(), codec.values, codec.bytes)
    blocks = np.random.default_rng(1).integers(0, 256, (4096, codec.bytes), np.uint8)
    out = np.empty((4096, codec.values), np.float32)
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    signature(traits.to_float)(blocks.ctypes.data, out.ctypes.data, out.size)
    with np.errstate(invalid="ignore"):
        ours = codec.decode(blocks).astype(np.float32)
    same = (ours.view(np.uint32) == out.view(np.uint32)) | (np.isnan(ours) & np.isnan(out))
    assert same.all()


def test_a_file_llama_cpp_quantised_is_no_larger_than_what_it_says(tmp_path):
    spec = SPECS["llama"][1]
    write(tmp_path / "m.gguf", spec, model_of(spec)[1], "q8_0")
    file = read_gguf(tmp_path / "m.gguf")
    last = max(file.tensors.values(), key=lambda entry: entry.offset)
    assert -(-(last.offset + last.bytes) // 32) * 32 == (tmp_path / "m.gguf").stat().st_size
