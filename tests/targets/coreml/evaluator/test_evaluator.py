"""Packages of the builder: states, control, constants that are decoded, parts, and damaged ones."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.errors import BundleError, InputError
from omnic.targets.coreml.evaluator import Program
from omnic.targets.coreml.evaluator.blobs import WeightFile
from omnic.targets.coreml.mil import BlobWriter, Builder, nptype, types
from omnic.targets.coreml.mil import coremltools as ct

RNG = np.random.default_rng(3)
CODES = RNG.integers(-8, 8, (6, 64)).astype(np.int8)
SCALE = RNG.random((6, 4)).astype(np.float16) / 8
ZERO = RNG.integers(0, 16, (6, 4)).astype(np.uint8)
INDICES = RNG.integers(0, 8, (6, 64)).astype(np.uint8)
LUT = RNG.standard_normal((2, 1, 8, 1)).astype(np.float16)
WEIGHT = RNG.standard_normal((50, 64)).astype(np.float16)
MASK = (RNG.random((6, 64)) < 0.3).astype(np.uint8)
#: how the metadata of an fp16 tensor begins
FLOATS = struct.pack("<II", 0xDEADBEEF, 1)
NONZERO = RNG.standard_normal(int(MASK.sum())).astype(np.float16)


def _word(array: Any, word: str) -> Any:
    return array.astype(nptype(word))


def saved(path: Path, program: Any, **options: Any) -> Path:
    made = ct.convert(
        program, minimum_deployment_target=options.pop("target", ct.target.iOS18), skip_model_load=True,
        compute_precision=ct.precision.FLOAT32, pass_pipeline=ct.PassPipeline.EMPTY,
    )
    made.save(str(path))
    return path


def weights_program() -> Any:
    @Builder.program(input_specs=[Builder.TensorSpec((2, 64), dtype=types.fp16),
                                  Builder.TensorSpec((3,), dtype=types.int32)], opset_version=ct.target.iOS18)
    def program(x: Any, rows: Any) -> Any:
        int4 = Builder.constexpr_blockwise_shift_scale(data=_word(CODES, "int4"), scale=SCALE, name="int4")
        zero = Builder.constexpr_blockwise_shift_scale(
            data=_word(CODES + 8, "uint4"), scale=SCALE, offset=_word(ZERO, "uint4"), name="uint4")
        table = Builder.constexpr_lut_to_dense(indices=_word(INDICES, "uint3"), lut=LUT, name="table")
        sparse = Builder.constexpr_sparse_to_dense(nonzero_data=NONZERO, mask=_word(MASK, "uint1"), name="sparse")
        plain = Builder.const(val=WEIGHT, name="plain")
        y = Builder.linear(x=x, weight=plain, name="y")
        outputs = [Builder.linear(x=x, weight=w, name=f"by_{n}") for n, w in
                   (("int4", int4), ("uint4", zero), ("table", table), ("sparse", sparse))]
        return (y, Builder.gather(x=int4, indices=rows, axis=0, validate_indices=False, name="rows_of"), *outputs)

    return program


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "w.mlpackage", weights_program())


def test_constants_are_decoded_and_read_back(weights: Path) -> None:
    function = Program.open(weights).function()
    x = RNG.standard_normal((2, 64)).astype(np.float16)
    scale = np.repeat(SCALE, 16, axis=1).astype(np.float32)
    blocks = (CODES * scale).astype(np.float16)
    group = np.repeat(LUT[:, 0, :, 0], 3, axis=0)
    dense = np.zeros((6, 64), np.float16)
    dense[MASK != 0] = NONZERO
    want = {
        "y": WEIGHT, "by_int4": blocks, "by_sparse": dense,
        "by_table": np.take_along_axis(group, INDICES.astype(int), 1),
        "by_uint4": ((CODES + 8 - np.repeat(ZERO.astype(np.float32), 16, axis=1)) * scale).astype(np.float16),
    }
    found = function.run({"x": x, "rows": np.array([4, 0, 4])})
    for name, weight in want.items():
        exact = (x.astype(np.float32) @ weight.astype(np.float32).T).astype(np.float16)
        np.testing.assert_array_equal(found[name], exact, err_msg=name)
    np.testing.assert_array_equal(found["rows_of"], blocks[[4, 0, 4]])
    np.testing.assert_array_equal(function.weight("int4.data"), CODES)
    np.testing.assert_array_equal(function.weight("int4.scale"), SCALE)
    np.testing.assert_array_equal(function.weight("uint4.offset"), ZERO)
    np.testing.assert_array_equal(function.weight("plain"), WEIGHT)
    np.testing.assert_array_equal(function.stored("int4").rows(1, 3), blocks[1:3])


def test_only_the_weights_of_the_wanted_part_are_read(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = WeightFile.read
    monkeypatch.setattr(WeightFile, "read", lambda self, offset, word, *a: read.append(word) or whole(
        self, offset, word, *a))
    function = Program.open(weights).function()
    assert len(function.values()) > 10 and read == []
    function.run({"x": np.zeros((2, 64))}, until=["by_table"])
    assert "uint3" in read and "int4" not in read and "uint1" not in read


def _damaged(weights: Path, tmp_path: Path, change: Callable[[bytearray], bytes | bytearray]) -> Path:
    copy = tmp_path / "d.mlpackage"
    shutil.copytree(weights, copy)
    file = next(copy.rglob("weight.bin"))
    file.write_bytes(change(bytearray(file.read_bytes())))
    return copy


@pytest.mark.parametrize(("change", "said"), [
    (lambda raw: raw[:1500], "beyond the file's 1500 bytes|cut off|the file ends"),
    (lambda raw: b"", "not a weight file of an ML package"),
    (lambda raw: raw[:64] + bytes(len(raw) - 64), "no tensor lies at offset"),
    (lambda raw: raw.replace(FLOATS, struct.pack("<II", 0xDEADBEEF, 99)), "unknown type 99"),
    (lambda raw: raw.replace(FLOATS, struct.pack("<II", 0xDEADBEEF, 3)), "is .* bytes of uint8"),
])
def test_damaged_weights(weights: Path, tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        Program.open(_damaged(weights, tmp_path, change)).function().run(
            {"x": np.zeros((2, 64)), "rows": np.zeros(3, np.int64)})


def test_damaged_packages(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such package"):
        Program.open(tmp_path / "none.mlpackage")
    copy = tmp_path / "c.mlpackage"
    shutil.copytree(weights, copy)
    model = next(copy.rglob("model.mlmodel"))
    model.write_bytes(b"\xff" * 40)
    with pytest.raises(BundleError, match="not a Core ML model"):
        Program.open(copy)
    model.write_bytes(b"")
    with pytest.raises(BundleError, match="holds a model of kind none"):
        Program.open(copy)
    next(copy.rglob("Manifest.json")).write_text("{}")
    with pytest.raises(BundleError, match="not the table of contents"):
        Program.open(copy)
    copy = tmp_path / "e.mlpackage"
    shutil.copytree(weights, copy)
    next(copy.rglob("weight.bin")).unlink()
    with pytest.raises(BundleError, match="the weight file cannot be read"):
        Program.open(copy).function().run({"x": np.zeros((2, 64))}, until=["y"])


@pytest.mark.parametrize(("inputs", "until", "said"), [
    ({}, ["y"], "input 'x' is missing"),
    ({"x": np.zeros((2, 63))}, ["y"], r"'x' is fp16\[2, 64\], and was given the shape \[2, 63\]"),
    ({"rows": np.zeros(3)}, ["rows_of"], "is int32.3., and was given float64"),
    ({"rows": np.full(3, 2**40)}, ["rows_of"], "numbers beyond its range"),
    ({"z": np.zeros(3)}, ["y"], "has no value 'z'"),
    ({"x": np.zeros((2, 64))}, ["by_int5"], "has no value 'by_int5'"),
])
def test_wrong_calls(weights: Path, inputs: Any, until: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Program.open(weights).function().run(inputs, until=until)


def test_wrong_names(weights: Path) -> None:
    program = Program.open(weights)
    with pytest.raises(InputError, match="has no function 'decode'"):
        program.function("decode")
    with pytest.raises(InputError, match="has no constant 'plein'"):
        program.function().weight("plein")
    with pytest.raises(InputError, match="no rounding 'up'"):
        program.function().run({}, rounding="up")


def test_an_index_out_of_range_shows(weights: Path) -> None:
    found = Program.open(weights).function().run({"rows": np.array([1, -1, 6])}, until=["rows_of"])["rows_of"]
    assert np.isfinite(found[0]).all() and np.isnan(found[1:]).all()


def test_values_inside_may_be_given(weights: Path) -> None:
    found = Program.open(weights).function().run({"y": np.ones((2, 50))}, until=["y"])
    assert (found["y"] == 1).all()


def test_states_control_and_parts(tmp_path: Path) -> None:
    @Builder.program(input_specs=[Builder.TensorSpec((1, 4), dtype=types.fp16),
                                  Builder.TensorSpec((1,), dtype=types.int32),
                                  Builder.StateTensorSpec((3, 4), dtype=types.fp16)], opset_version=ct.target.iOS18)
    def program(x: Any, at: Any, cache: Any) -> Any:
        before = Builder.read_state(input=cache, name="before")
        slot = Builder.expand_dims(x=at, axes=[1])
        placed = Builder.scatter_nd(data=before, indices=slot, updates=x, mode="update", name="placed")
        after = Builder.coreml_update_state(state=cache, value=placed, name="after")
        count = Builder.while_loop(
            _cond=lambda i, total: Builder.less(x=i, y=at), name="loop",
            _body=lambda i, total: (Builder.add(x=i, y=[1]), Builder.add(x=total, y=[2])),
            loop_vars=(Builder.const(val=np.array([0], np.int32)), Builder.const(val=np.array([1], np.int32))))
        first = Builder.squeeze(x=Builder.less(x=at, y=[1]), axes=[0])
        chosen = Builder.cond(pred=first, name="chosen", _true_fn=lambda: Builder.reduce_sum(x=after, axes=[0]),
                              _false_fn=lambda: Builder.reduce_max(x=after, axes=[0]))
        return chosen, Builder.identity(x=count[1], name="count"), Builder.mul(x=after, y=np.float16(2), name="twice")

    function = Program.open(saved(tmp_path / "s.mlpackage", program)).function()
    assert list(function.states) == ["cache"] and list(function.inputs) == ["x", "at"]
    states: dict[str, Any] = {}
    rows = RNG.standard_normal((3, 4)).astype(np.float16)
    for i in range(3):
        found = function.run({"x": rows[i : i + 1], "at": np.array([i])}, states)
        held = np.concatenate([rows[: i + 1], np.zeros((2 - i, 4), np.float16)])
        np.testing.assert_array_equal(states["cache"], held)
        np.testing.assert_array_equal(found["chosen"], held.sum(0, dtype=np.float32).astype(np.float16) if i == 0 else
                                      held.max(0))
        assert found["count"].tolist() == [1 + 2 * i]
    untouched = dict(states)
    np.testing.assert_array_equal(function.run({}, states, until=["before"])["before"], rows)
    found = function.run({"x": rows[:1], "at": np.array([2])}, states, until=["twice", "cache"])
    np.testing.assert_array_equal(found["twice"], np.stack([rows[0], rows[1], rows[0]]) * 2)
    np.testing.assert_array_equal(found["cache"], states["cache"])
    assert (states["cache"] != untouched["cache"]).any()
    with pytest.raises(InputError, match="scatter_nd 'placed': index 3 is out of range"):
        function.run({"x": rows[:1], "at": np.array([3])}, {})


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    @Builder.program(input_specs=[Builder.TensorSpec((1, 2, 4, 4))], opset_version=ct.target.iOS15)
    def program(x: Any) -> Any:
        y = Builder.gather(x=x, indices=[-1], axis=1, name="last")
        return y, Builder.local_response_norm(x=x, size=3, name="normed")

    function = Program.open(saved(tmp_path / "u.mlpackage", program, target=ct.target.iOS15)).function()
    x = RNG.standard_normal((1, 2, 4, 4)).astype(np.float32)
    # In the op sets before iOS 17 a negative index counts from the end.
    np.testing.assert_array_equal(function.run({"x": x}, until=["last"])["last"], x[:, 1:])
    with pytest.raises(InputError, match="local_response_norm 'normed': the evaluator does not know this operation"):
        function.run({"x": x})


@pytest.mark.parametrize(("word", "method", "bits"), [
    *((f"uint{b}", f"write_uint{b}_data", b) for b in (1, 2, 3, 4, 6, 8)), ("int4", "write_int4_data", 4),
])
def test_packed_elements_from_any_place(tmp_path: Path, word: str, method: str, bits: int) -> None:
    values = RNG.integers(0, 2**bits, 101).astype(np.uint8)
    if word == "int4":
        values = (values.astype(np.int8) - 8).astype(np.int8)
    writer = BlobWriter(str(tmp_path / "w.bin"))
    offset = getattr(writer, method)(values)
    del writer
    file = WeightFile(tmp_path / "w.bin")
    for start, stop in ((0, 101), (1, 2), (3, 50), (8, 9), (100, 101), (77, 77)):
        np.testing.assert_array_equal(file.read(offset, word, start, stop, 101), values[start:stop])
    with pytest.raises(BundleError, match="and the program reads 300 elements"):
        file.read(offset, word, 0, 300, 300)


@pytest.mark.slow
def test_a_large_package_is_evaluated_in_little_memory(tmp_path: Path) -> None:
    """12 products of 4096 x 4096 in fp16 (403 MB): the child's peak is far below 1.4 x size + its own 0.5 GB."""
    from omnic.targets.coreml.evaluator.child import Job, evaluate_in_child

    @Builder.program(input_specs=[Builder.TensorSpec((1, 4096), dtype=types.fp16)], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        for i in range(12):
            weight = np.zeros((4096, 4096), np.float16)
            weight[np.arange(4096), (np.arange(4096) + i + 1) % 4096] = 1
            x = Builder.linear(x=x, weight=weight, name=f"y{i}")
        return x

    package = saved(tmp_path / "large.mlpackage", program)
    x = RNG.standard_normal((1, 4096)).astype(np.float16)
    found, base = evaluate_in_child(package, [Job({"y11": x}, until=["y11"])])
    found, peak = evaluate_in_child(package, [Job({"x": x})])
    np.testing.assert_array_equal(found[0]["y11"], np.roll(x, -sum(range(1, 13)), axis=1))
    print(f"package 403 MB: peak {peak / 1e6:.0f} MB, of which {base / 1e6:.0f} MB before any weight is read")
    assert peak - base < 0.2e9


def test_the_page_lists_every_operation() -> None:
    from omnic.targets.coreml.evaluator.ops import HANDLERS
    from omnic.targets.coreml.evaluator.ops.constexpr import CONSTEXPR

    page = (Path(__file__).parents[4] / "docs" / "coreml_evaluator.md").read_text(encoding="utf-8")
    listed = set(page.split("## Operations")[1].replace("|", " ").split())
    known = {f"`{n}`" for n in (*HANDLERS, *CONSTEXPR, "const", "cond", "while_loop")}
    assert {w for w in listed if w.startswith("`")} == known


def test_exact_sums_are_rounded_once(tmp_path: Path) -> None:
    """4096 + 2 + 2^-14 in f32 is the tie 4098, which fp16 rounds to 4096; the sum itself is nearer to 4100."""

    @Builder.program(input_specs=[Builder.TensorSpec((1, 3), dtype=types.fp16),
                                  Builder.TensorSpec((1, 3), dtype=types.fp32)], opset_version=ct.target.iOS18)
    def program(x: Any, w: Any) -> Any:
        ones = Builder.const(val=np.ones((3, 1), np.float16))
        return (Builder.matmul(x=x, y=ones, name="half"),
                Builder.reduce_sum(x=w, axes=[1], name="single"), Builder.mul(x=w, y=w, name="product"))

    function = Program.open(saved(tmp_path / "sums.mlpackage", program)).function()
    inputs = {"x": np.array([[4096, 2, 2.0**-14]]), "w": np.array([[1 / 3, 2 / 3, 2.0**-40]])}
    found = {r: function.run(inputs, rounding=r) for r in ("as_typed", "exact")}
    assert (found["as_typed"]["half"].item(), found["exact"]["half"].item()) == (4096.0, 4100.0)
    assert found["exact"]["half"].dtype == np.float16 and found["as_typed"]["single"].dtype == np.float32
    assert found["exact"]["single"].item() == (1 / 3 + 2 / 3 + 2.0**-40)
    np.testing.assert_array_equal(found["exact"]["product"], inputs["w"] ** 2)
