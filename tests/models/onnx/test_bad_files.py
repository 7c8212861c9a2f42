"""Files that cannot be taken end in one clear error."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from omnic.cli import main
from omnic.errors import BundleError, InputError
from omnic.models.onnx import import_onnx

DATA = Path(__file__).parent / "data"


def decoder(*nodes: Any, opset: int = 20, extra: tuple[Any, ...] = ()) -> Any:
    """Return a decoder without a cache: an embedding, `nodes` from x to y, a head."""
    table = np.arange(64, dtype=np.float32).reshape(16, 4) / 64
    initialisers = [numpy_helper.from_array(table, "embed"), numpy_helper.from_array(table.T.copy(), "head")]
    body = nodes or (helper.make_node("Relu", ["x"], ["y"]),)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["embed", "tokens"], ["x"]), *body,
         helper.make_node("MatMul", ["y", "head"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["b", "t"]), *extra],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "t", 16])],
        initialisers,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("acme.ai", 1)]
    return helper.make_model(graph, opset_imports=opsets)


def saved(model: Any, folder: Path, **options: Any) -> Path:
    path = folder / "m.onnx"
    onnx.save(model, str(path), **options)
    return path


def refused(path: Path, kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        import_onnx(path)
    return str(caught.value)


def test_the_small_decoder_itself_is_fine(tmp_path: Path) -> None:
    module, _ = import_onnx(saved(decoder(), tmp_path))
    assert [n.op for n in module.function().nodes] == ["embedding", "relu", "lm_head"]


def test_every_node_that_cannot_be_taken_is_named_at_once(tmp_path: Path) -> None:
    model = decoder(
        helper.make_node("Hardmax", ["x"], ["a"], name="hard"),
        helper.make_node("Mystery", ["a"], ["c"], name="riddle", domain="acme.ai"),
        helper.make_node("Det", ["x"], ["d"], name="determinant"),
        helper.make_node("Add", ["c", "x"], ["y"]),
    )
    text = refused(saved(model, tmp_path))
    assert "3 nodes cannot be taken" in text
    assert "Hardmax (hard): no lowering for this op" in text
    assert "acme.ai.Mystery (riddle): no lowering for this op" in text
    assert "Det (determinant): no lowering for this op" in text


def test_an_input_of_no_known_meaning_is_named(tmp_path: Path) -> None:
    extra = helper.make_tensor_value_info("temperature", TensorProto.FLOAT, [1])
    assert "'temperature' is f32[1]" in refused(saved(decoder(extra=(extra,)), tmp_path))


def test_a_graph_without_tokens(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 3])])  # fmt: skip
    text = refused(saved(helper.make_model(graph), tmp_path))
    assert "inputs are none of tokens" in text or "no input of token ids" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04 and so on", "is not an ONNX model"),
        (b"GGUF\x03\x00\x00\x00", "is not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1", "is not an ONNX model"),
        (b"# spec\nmodel: x\n", "is not an ONNX model"),
        (b"", "is empty"),
        (b"\x08\x07\x12\xff\xff\xff\xff", "damaged or cut off"),
    ],
)
def test_files_that_are_something_else(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert says in refused(path)


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_protobuf(part: float, tmp_path: Path) -> None:
    whole = (DATA / "genai_llama.onnx").read_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(len(whole) * part)])
    assert "damaged or cut off" in refused(path, BundleError)


def test_damaged_bytes_never_end_in_a_traceback(tmp_path: Path) -> None:
    whole = saved(decoder(), tmp_path).read_bytes()
    draw = np.random.default_rng(0)
    path = tmp_path / "damaged.onnx"
    for _ in range(150):
        damaged = bytearray(whole)
        for at in draw.integers(0, len(damaged), draw.integers(1, 4)):
            damaged[at] = draw.integers(0, 256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(InputError):
            import_onnx(path)


def test_a_file_beyond_the_limit_of_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 3 << 30)  # a sparse file: no bytes are written
    assert "is 3.0 GiB in one protobuf, which cannot hold 2 GiB or more" in refused(path, BundleError)


def test_external_data_is_mapped_and_its_faults_are_listed(tmp_path: Path) -> None:
    path = saved(decoder(), tmp_path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    module, weights = import_onnx(path)
    assert weights.array("embed").shape == (16, 4)
    files = sorted(p for p in tmp_path.iterdir() if p.name != "m.onnx")
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].unlink()
    text = refused(path, BundleError)
    assert "the external data of 2 weights is broken" in text
    assert "which does not exist" in text and "ends at byte 256 of" in text and "which has 100" in text
    del module


def test_external_data_may_not_lie_outside_the_folder(tmp_path: Path) -> None:
    model = decoder()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "256")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    assert "outside the model's folder" in refused(saved(model, tmp_path), BundleError)


def test_a_cache_of_fixed_size_is_named(tmp_path: Path) -> None:
    extra = helper.make_tensor_value_info("past.0.key", TensorProto.FLOAT, ["b", 2, 64, 8])
    text = refused(saved(decoder(extra=(extra,)), tmp_path))
    assert "'past.0.key' [b, 2, 64, 8] grows along no dim" in text


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing.onnx")
    assert "is a folder" in refused(tmp_path)


def test_numbers_out_of_range() -> None:
    with pytest.raises(InputError, match="capacity must be 1 or more, not 0"):
        import_onnx(DATA / "genai_llama.onnx", 0)


def test_the_verb_writes_files_that_stand_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from omnic.ir.text import parse_module
    from omnic.ir.weights import WeightStore

    out = tmp_path / "out"
    assert main(["import", str(DATA / "genai_llama.onnx"), "-o", str(out), "--capacity", "32"]) == 0
    assert "4 states of 32 slots" in capsys.readouterr().out
    module = parse_module((out / "module.ir").read_text(encoding="utf-8"))
    store = WeightStore.load(module, out / "weights.safetensors")
    _, origin = import_onnx(DATA / "genai_llama.onnx", 32)
    for name in module.weights:
        assert np.array_equal(store.array(name), origin.array(name))
    assert main(["import", str(DATA / "genai_llama.onnx"), "-o", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["check", str(DATA / "genai_llama.onnx"), str(out / "module.ir")]) == 0


def test_the_verb_gives_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(decoder(helper.make_node("Hardmax", ["x"], ["y"], name="hard")), tmp_path)
    assert main(["import", str(path), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "Hardmax (hard): no lowering for this op" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
