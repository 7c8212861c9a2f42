"""The container: the gguf package and omnic read each other's files, and damage is one error."""

from __future__ import annotations

import contextlib
import struct

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnic.errors import BundleError, OmnicError
from omnic.models.gguf.container import read_gguf
from omnic.models.gguf.importer import open_gguf
from tests.models.gguf.specs import SPECS, model_of, write


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Return a file of the gguf package with metadata of every kind."""
    path = tmp_path_factory.mktemp("gguf") / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (("u8", 200), ("i8", -5), ("u16", 60000), ("i16", -300), ("u32", 2**31), ("i32", -7),
                        ("u64", 2**40), ("i64", -(2**40))):  # fmt: skip
        kind = {"u": "UINT", "i": "INT"}[name[0]] + name[1:]
        writer.add_key_value(f"k.{name}", value, gguf.GGUFValueType[kind])
    writer.add_float32("k.f32", 1e-6)
    writer.add_float64("k.f64", 1.5)
    writer.add_bool("k.yes", True)
    writer.add_string("k.text", "größe 漢字")
    writer.add_array("k.ints", [1, 2, 3])
    writer.add_array("k.texts", ["a", "", "漢"])
    writer.add_array("k.flags", [True, False])
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("b", np.arange(4, dtype=np.float16))
    writer.add_tensor("c", np.zeros((2, 3, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "ours.gguf"
    spec = SPECS["llama3"][1]
    write(path, spec, model_of(spec)[1], "q8_0", **{"k.text": "x", "k.texts": ["a", "b"], "k.flag": False})
    return path


def test_every_kind_of_metadata(theirs):
    file = read_gguf(theirs)
    found = {key.removeprefix("k."): value for key, value in file.metadata.items() if key.startswith("k.")}
    assert found == {
        "u8": 200, "i8": -5, "u16": 60000, "i16": -300, "u32": 2**31, "i32": -7, "u64": 2**40, "i64": -(2**40),
        "f32": 1e-6, "f64": 1.5, "yes": True, "text": "größe 漢字", "ints": [1, 2, 3], "texts": ["a", "", "漢"],
        "flags": [True, False],
    }  # fmt: skip
    assert {n: (e.shape, e.codec.name) for n, e in file.tensors.items()} == {
        "a": ((2, 3), "F32"), "b": ((4,), "F16"), "c": ((2, 3, 32), "Q8_0")
    }  # fmt: skip
    rows = file.rows(file.tensors["a"], 1, 2)
    assert file.tensors["a"].codec.numbers(rows).tolist() == [[3, 4, 5]]


def test_the_gguf_package_reads_what_omnic_writes(ours):
    reader = gguf.GGUFReader(ours)
    assert reader.fields["k.text"].contents() == "x"
    assert reader.fields["k.texts"].contents() == ["a", "b"]
    assert reader.fields["k.flag"].contents() is False
    assert reader.fields["llama.context_length"].contents() == 160
    by_name = {t.name: t for t in reader.tensors}
    assert by_name["token_embd.weight"].tensor_type.name == "Q8_0"
    assert list(by_name["blk.0.attn_q.weight"].shape) == [64, 192]
    assert by_name["rope_freqs.weight"].data.shape == (16,)


def test_every_cut_of_a_file_is_one_error(ours, tmp_path):
    data = ours.read_bytes()
    header = read_gguf(ours)
    first = min(entry.offset for entry in header.tensors.values())
    path = tmp_path / "cut.gguf"
    for size in (*range(0, first, 7), first, first + 100, len(data) - 1000):
        path.write_bytes(data[:size])
        with pytest.raises(BundleError, match=r"is truncated|is not a GGUF file") as caught:
            read_gguf(path)
        assert str(path) in caught.value.message
    for size in (0, 3):
        path.write_bytes(data[:size])
        with pytest.raises(BundleError, match="is not a GGUF file: it does not begin with 'GGUF'"):
            read_gguf(path)


@given(data=st.data())
def test_damage_is_an_error_of_omnic_or_none(ours, tmp_path_factory, data):
    body = bytearray(ours.read_bytes())
    first = min(entry.offset for entry in read_gguf(ours).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, first - 1))
        body[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(body)
    with contextlib.suppress(OmnicError):
        open_gguf(path)


def put(path, version=3, tensors=0, keys=0, rest=b""):
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest)
    return path


def text(value):
    return struct.pack("<Q", len(value)) + value


def entry(name=b"w", shape=(32, 1), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    "made, message",
    [
        ({"version": 1}, "is a GGUF file of version 1; omnic reads versions 2 and 3, little-endian"),
        ({"version": 3 << 24}, "is a big-endian GGUF file; omnic reads versions 2 and 3"),
        ({"keys": 2**60}, "is truncated: the length of a metadata key at byte 24 needs 8 bytes, the file has 0 left"),
        ({"keys": 1, "rest": text(b"k") + struct.pack("<I", 99)}, "the value of 'k' is of the unknown kind 99"),
        ({"keys": 1, "rest": text(b"\xff")}, "is damaged: a metadata key is not UTF-8 text"),
        ({"keys": 1, "rest": text(b"k") + struct.pack("<IIQ", 9, 8, 2**50)}, "the value of 'k' says it has "),
        ({"keys": 1, "rest": text(b"k") + struct.pack("<IIQ", 9, 4, 2**61)}, "is truncated: the value of 'k'"),
        ({"keys": 2, "rest": 2 * (text(b"k") + struct.pack("<IB", 7, 1))}, "the metadata key 'k' occurs twice"),
        ({"keys": 1, "rest": text(b"general.alignment") + struct.pack("<II", 4, 7)}, "general.alignment is 7"),
        ({"tensors": 1, "rest": entry(shape=(1,) * 5)}, "is damaged: tensor 'w' has 5 dims"),
        ({"tensors": 1, "rest": entry(kind=20) + bytes(64)},
         "tensor 'w' is of the type IQ4_NL; omnic reads F32, F16, BF16, Q8_0, Q4_0, Q5_0, Q4_K, Q5_K, Q6_K"),
        ({"tensors": 1, "rest": entry(kind=1234) + bytes(64)}, "tensor 'w' is of the type number 1234; omnic reads"),
        ({"tensors": 1, "rest": entry(shape=(33, 1), kind=8) + bytes(64)},
         r"the rows of tensor 'w' \[1, 33\] are no whole blocks of 32 numbers of Q8_0"),
        ({"tensors": 1, "rest": entry(shape=(2**40, 2**40)) + bytes(64)}, "is truncated: tensor 'w' ends at byte"),
        ({"tensors": 1, "rest": entry(offset=4) + bytes(640)}, "tensor 'w' does not begin at a multiple of 32 bytes"),
        ({"tensors": 2, "rest": 2 * entry() + bytes(640)}, "is damaged: a tensor's name occurs twice"),
    ],
)  # fmt: skip
def test_files_that_are_wrong(tmp_path, made, message):
    path = put(tmp_path / "x.gguf", **made)
    with pytest.raises(BundleError, match=message) as caught:
        read_gguf(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


def test_version_2_is_read(tmp_path):
    path = put(tmp_path / "x.gguf", version=2, tensors=1, rest=entry() + bytes(256))
    assert read_gguf(path).tensors["w"].shape == (1, 32)


def test_no_file_at_all(tmp_path):
    with pytest.raises(BundleError, match=r"none.gguf cannot be read: No such file"):
        read_gguf(tmp_path / "none.gguf")
