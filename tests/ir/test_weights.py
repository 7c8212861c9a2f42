"""The weight store: slices, recipes, files and their damage, results of calibrating passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from omnic.errors import BundleError, DiagnosticError, InputError, InternalError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.graph import Module, Recipe
from omnic.ir.packing import decode, quantise
from omnic.ir.types import Storage, parse_element, parse_type
from omnic.ir.verify import verify
from omnic.ir.weights import ArraySource, ResultStore, SafetensorsSource, WeightStore, normal_rows, part_layout, pinned

RANDOM = np.random.default_rng(5)
NORMAL = Recipe("normal", {"std": 0.02})
I4 = Storage("i4", 8)


def module_of(**weights: tuple[str, Recipe]) -> Module:
    mb = ModuleBuilder("m", {})
    for name, (type, recipe) in weights.items():
        mb.weight(name, parse_type(type), recipe)
    return mb.build()


def numbers(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


# -- random weights ---------------------------------------------------------------------------------------


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    module = module_of(a=("f32[300, 400]", NORMAL), b=("f32[300, 400]", NORMAL))
    store, again, other = WeightStore.random(module, 1), WeightStore.random(module, 1), WeightStore.random(module, 2)
    a = store.array("a")
    assert a.dtype == np.float32 and abs(a.std() - 0.02) < 2e-4 and abs(a.mean()) < 2e-4
    assert (a == again.array("a")).all()
    assert abs(np.corrcoef(a.ravel(), store.array("b").ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(a.ravel(), other.array("a").ravel())[0, 1]) < 0.02


@given(data=st.data())
def test_random_rows_are_the_same_however_they_are_cut(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 400)), data.draw(st.integers(1, 700)))
    whole = normal_rows(3, "w", shape, 1.0, (0, shape[0]))
    start = data.draw(st.integers(0, shape[0]))
    stop = data.draw(st.integers(start, shape[0]))
    assert (normal_rows(3, "w", shape, 1.0, (start, stop)) == whole[start:stop]).all()


def test_slices_cover_the_weight_within_the_limit() -> None:
    store = WeightStore.random(module_of(experts=("f32[5, 30, 40]", NORMAL)), 0)
    parts = list(store.slices("experts", limit=2 * 30 * 40 * 4))
    assert [(a, b) for a, b, _ in parts] == [(0, 2), (2, 4), (4, 5)]
    assert (np.concatenate([p for _, _, p in parts]) == store.array("experts")).all()
    assert [(a, b) for a, b in store.row_ranges("experts", limit=10)] == [(i, i + 1) for i in range(5)]


def test_bf16_weights_hold_rounded_numbers() -> None:
    plain = WeightStore.random(module_of(w=("f32[4, 8]", NORMAL)), 0).array("w")
    store = WeightStore.random(module_of(w=("bf16[4, 8]", NORMAL)), 0)
    assert (store.array("w") == plain.astype(ml_dtypes.bfloat16).astype(np.float32)).all()
    assert store.parts("w")[""].dtype == ml_dtypes.bfloat16


def test_random_packed_makes_codes_of_a_useful_size_without_quantising() -> None:
    for text in ("i4<g32>", "i4<g32, s4>", "i4<g32, asym>", "i8<row>", "nf4<g32>", "fp4<g32>", "i2<g32>", "t2<g32>"):
        store = WeightStore.random_packed(
            module_of(w=(f"{text}[64, 128]", Recipe("quantise", {"type": parse_element(text)}, (NORMAL,)))), 4
        )
        q = store.quantised("w")
        assert 0.01 < store.array("w").std() < 0.04, text
        assert (store.quantised("w", (10, 20)).codes == q.codes[10:20]).all()
        assert sum(p.nbytes for p in store.parts("w").values()) == store.bytes("w") == q.nbytes


def test_random_numbers_need_a_seed() -> None:
    with pytest.raises(BundleError, match="weight 'w' is random, and neither a seed nor a weight file was given"):
        WeightStore(module_of(w=("f32[2]", NORMAL))).array("w")


# -- recipes ------------------------------------------------------------------------------------------------

BASE = {"a": numbers(6, 8), "b": numbers(4, 8), "c": numbers(6, 8)}


def load(name: str) -> Recipe:
    return Recipe("load", {"name": name})


A, B, C = load("a"), load("b"), load("c")
RECIPES = [
    (Recipe("concat", {"axis": 0}, (A, B)), np.concatenate([BASE["a"], BASE["b"]])),
    (Recipe("concat", {"axis": 1}, (A, C)), np.concatenate([BASE["a"], BASE["c"]], axis=1)),
    (Recipe("slice", {"axis": 0, "start": 1, "stop": 5}, (A,)), BASE["a"][1:5]),
    (Recipe("slice", {"axis": 1, "start": 2, "stop": 5}, (A,)), BASE["a"][:, 2:5]),
    (Recipe("slice", {"axis": 0, "start": 1, "stop": 6, "step": 2}, (A,)), BASE["a"][1:6:2]),
    (Recipe("slice", {"axis": 1, "start": 0, "stop": 8, "step": 3}, (A,)), BASE["a"][:, ::3]),
    (Recipe("shift", {"value": 1.0}, (A,)), BASE["a"] + np.float32(1)),
    (Recipe("transpose", {"perm": (1, 0)}, (A,)), BASE["a"].T),
    (Recipe("reshape", {"shape": (4, 3, 4)}, (A,)), BASE["a"].reshape(4, 3, 4)),
    (Recipe("reshape", {"shape": (48,)}, (A,)), BASE["a"].reshape(48)),
    (Recipe("stack", {}, (A, C)), np.stack([BASE["a"], BASE["c"]])),
    (Recipe("scale", {"value": 0.5}, (A,)), BASE["a"] * np.float32(0.5)),
    (
        Recipe("concat", {"axis": 0}, (Recipe("ones", {"name": "d", "shape": (2, 8)}), B)),
        np.concatenate([np.ones((2, 8)), BASE["b"]]),
    ),
    (
        Recipe("transpose", {"perm": (1, 0)}, (Recipe("concat", {"axis": 0}, (A, B)),)),
        np.concatenate([BASE["a"], BASE["b"]]).T,
    ),
    (
        Recipe("transpose", {"perm": (2, 0, 1)}, (Recipe("stack", {}, (A, C)),)),
        np.stack([BASE["a"], BASE["c"]]).transpose(2, 0, 1),
    ),
    (Recipe("quantise", {"type": I4}, (A,)), decode(quantise(BASE["a"], I4))),
]


@pytest.mark.parametrize(("recipe", "want"), RECIPES, ids=[f"{i}-{r.kind}" for i, (r, _) in enumerate(RECIPES)])
@settings(max_examples=12)
@given(data=st.data())
def test_a_recipe_gives_any_rows_of_its_result(recipe: Recipe, want: Any, data: st.DataObject) -> None:
    shape = ", ".join(str(d) for d in want.shape)
    store = WeightStore(module_of(w=(f"f32[{shape}]", recipe)), ArraySource({**BASE, "d": np.ones((2, 8))}))
    store.check(whole=False)
    assert (store.array("w") == want).all()
    start = data.draw(st.integers(0, want.shape[0] - 1))
    stop = data.draw(st.integers(start + 1, want.shape[0]))
    assert (store.array("w", (start, stop)) == want[start:stop]).all()


def test_pinned_initialisers_mean_the_same_inside_another_weight() -> None:
    front = module_of(q=("f32[6, 8]", NORMAL), k=("f32[2, 8]", NORMAL))
    merged = module_of(
        qk=("f32[8, 8]", Recipe("concat", {"axis": 0}, tuple(pinned(w) for w in front.weights.values())))
    )
    before = WeightStore.random(front, 9)
    assert (before.with_module(merged).array("qk") == np.concatenate([before.array("q"), before.array("k")])).all()
    arrays = {"q": numbers(6, 8), "k": numbers(2, 8)}
    assert (WeightStore.of(merged, arrays).array("qk") == np.concatenate([arrays["q"], arrays["k"]])).all()


@pytest.mark.parametrize("rows", [None, (1, 5)])
def test_quantised_weights_are_joined_as_codes(rows: tuple[int, int] | None) -> None:
    parts = tuple(Recipe("quantise", {"type": I4}, (r,)) for r in (A, B))
    store = WeightStore(module_of(w=("i4<g8>[10, 8]", Recipe("concat", {"axis": 0}, parts))), ArraySource(BASE))
    want = quantise(np.concatenate([BASE["a"], BASE["b"]]), I4)
    got = store.quantised("w", rows)
    span = slice(*rows) if rows else slice(None)
    assert (got.codes == want.codes[span]).all() and (got.scale == want.scale[span]).all()


CUBE = numbers(3, 6, 16)
CUTS: dict[str, tuple[dict[str, Any], tuple[slice, ...]]] = {
    "dim 0": ({"axis": 0, "start": 1, "stop": 3}, (slice(1, 3),)),
    "every second of dim 0": ({"axis": 0, "start": 0, "stop": 3, "step": 2}, (slice(0, 3, 2),)),
    "dim 1": ({"axis": 1, "start": 2, "stop": 5}, (slice(None), slice(2, 5))),
    "odd ones of dim 1": ({"axis": 1, "start": 1, "stop": 6, "step": 2}, (slice(None), slice(1, 6, 2))),
}


@pytest.mark.parametrize("type", ["i4<g8>", "i4<g8, asym>", "i4<g8, s4>", "fp4<g8>", "i8<row>"])
@pytest.mark.parametrize("cut", list(CUTS))
def test_cuts_before_the_grouped_dim_pick_codes(cut: str, type: str) -> None:
    args, index = CUTS[cut]
    element = parse_element(type)
    want = quantise(CUBE, element).pick(index)
    recipe = Recipe("slice", args, (Recipe("quantise", {"type": element}, (load("cube"),)),))
    shape = ", ".join(str(d) for d in want.shape)
    store = WeightStore(module_of(w=(f"{type}[{shape}]", recipe)), ArraySource({"cube": CUBE}))
    store.check(whole=False)
    for rows in (None, (1, 2)):
        got = store.quantised("w", rows).parts()
        assert got.keys() == want.parts().keys()
        for name, part in want.parts().items():
            assert (got[name] == part[slice(*rows) if rows else slice(None)]).all(), name
    assert (store.array("w", (1, 2)) == decode(want)[1:2]).all()


def test_rows_of_a_quantised_matrix_are_stacked_as_codes() -> None:
    want = quantise(CUBE, I4)
    recipe = Recipe("reshape", {"shape": CUBE.shape}, (Recipe("quantise", {"type": I4}, (load("rows"),)),))
    store = WeightStore(module_of(w=("i4<g8>[3, 6, 16]", recipe)), ArraySource({"rows": CUBE.reshape(18, 16)}))
    for rows in (None, (1, 3)):
        got = store.quantised("w", rows)
        span = slice(*rows) if rows else slice(None)
        assert (got.codes == want.codes[span]).all() and (got.scale == want.scale[span]).all()


def test_a_cut_along_the_grouped_dim_is_refused() -> None:
    cut = Recipe("slice", {"axis": 1, "start": 0, "stop": 8}, (Recipe("quantise", {"type": I4}, (load("w"),)),))
    store = WeightStore(module_of(w=("i4<g8>[6, 8]", cut)), ArraySource({"w": numbers(6, 16)}))
    with pytest.raises(InternalError, match="weight 'w': slice of quantised numbers would round them twice"):
        store.quantised("w")


def test_a_cut_steps_by_one_or_more() -> None:
    cut = Recipe("slice", {"axis": 0, "start": 0, "stop": 6, "step": 0}, (A,))
    with pytest.raises(DiagnosticError, match="recipe slice: step must be a number of rows, 1 or more"):
        verify(module_of(w=("f32[6, 8]", cut)))


def test_quantising_twice_is_refused() -> None:
    twice = Recipe("scale", {"value": 2.0}, (Recipe("quantise", {"type": I4}, (A,)),))
    store = WeightStore(module_of(w=("i4<g8>[6, 8]", twice)), ArraySource(BASE))
    with pytest.raises(InternalError, match="weight 'w': scale of quantised numbers would round them twice"):
        store.quantised("w")


def test_groups_along_the_rows_have_no_row_slices() -> None:
    type = parse_element("i4<g2, axis-2>")
    store = WeightStore(
        module_of(w=("i4<g2, axis-2>[6, 8]", Recipe("quantise", {"type": type}, (A,)))), ArraySource(BASE)
    )
    assert store.quantised("w").scale.shape == (8, 3)
    assert list(store.row_ranges("w")) == [(0, 6)]
    with pytest.raises(InputError, match="its groups run along dim 0, so it has no row slices"):
        store.quantised("w", (0, 2))


# -- files --------------------------------------------------------------------------------------------------


def two() -> Module:
    return module_of(a=("f32[6, 8]", NORMAL), b=("bf16[4, 8]", NORMAL))


def write(path: Path, **tensors: Any) -> Path:
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    return path


def test_initialisers_are_read_from_a_file(tmp_path: Path) -> None:
    store = WeightStore.load(two(), write(tmp_path / "w.safetensors", a=BASE["a"].astype(np.float16), b=BASE["b"]))
    assert (store.array("a") == BASE["a"].astype(np.float16).astype(np.float32)).all()
    assert (store.array("b") == BASE["b"].astype(ml_dtypes.bfloat16).astype(np.float32)).all()


def test_bf16_files_and_shards_are_read(tmp_path: Path) -> None:
    write(tmp_path / "1.safetensors", a=BASE["a"].astype(ml_dtypes.bfloat16))
    write(tmp_path / "2.safetensors", b=BASE["b"])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    for path in (tmp_path, index):
        assert (
            WeightStore.load(two(), path).array("a", (2, 4))
            == BASE["a"].astype(ml_dtypes.bfloat16).astype(np.float32)[2:4]
        ).all()


def test_missing_extra_and_misshapen_tensors_are_listed_together(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", a=numbers(8, 6), z=numbers(2))
    with pytest.raises(BundleError) as caught:
        WeightStore.load(two(), path)
    assert caught.value.message == (
        f"{path} does not fit @m: 1 missing: b; 1 of another shape: a is [8, 6], want [6, 8]; 1 not of this model: z"
    )
    store = WeightStore(module_of(a=("f32[8, 6]", NORMAL)), SafetensorsSource(path))
    store.check(whole=False)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", a=np.ones((6, 8), np.int64), b=BASE["b"] > 0)
    with pytest.raises(BundleError) as caught:
        WeightStore.load(two(), path)
    assert caught.value.message == (
        f"{path} does not fit @m: 2 of whole numbers where the model wants floating-point ones: a is int64, b is bool"
    )
    counts = {"n": np.arange(3)}
    assert WeightStore.of(module_of(n=("i64[3]", Recipe("zeros"))), counts).array("n").tolist() == [0, 1, 2]


def test_long_lists_are_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", a=BASE["a"], b=BASE["b"], **{f"x{i:02}": numbers(1) for i in range(12)})
    with pytest.raises(BundleError, match="12 not of this model: x00, x01, x02, x03, x04, x05, x06, x07 and 4 more"):
        WeightStore.load(two(), path)


def test_not_a_number_is_reported_with_its_place(tmp_path: Path) -> None:
    bad = BASE["a"].copy()
    bad[3, 5] = np.nan
    store = WeightStore.load(two(), write(tmp_path / "w.safetensors", a=bad, b=BASE["b"]))
    for rows in (None, (2, 6)):
        with pytest.raises(BundleError, match=r"tensor 'a' of .* holds nan at \[3, 5\]"):
            store.array("a", rows)
    assert np.isfinite(store.array("a", (0, 3))).all()


def test_numbers_beyond_the_16_bit_type_are_refused() -> None:
    module = module_of(w=("f16[1]", NORMAL))
    with pytest.raises(BundleError, match="weight 'w' has numbers beyond f16"):
        WeightStore.of(module, {"w": np.array([1e6], np.float32)}).array("w")


def test_every_truncation_and_many_flips_are_typed_errors_or_other_numbers(tmp_path: Path) -> None:
    whole = write(tmp_path / "w.safetensors", a=BASE["a"], b=BASE["b"]).read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in [*range(0, 220, 7), *range(220, len(whole), 31)]:
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError):
            WeightStore.load(two(), path)
    flips = np.random.default_rng(0)
    for at in range(0, 200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << flips.integers(8))]) + whole[at + 1 :])
        try:
            WeightStore.load(two(), path).array("a")
        except BundleError as error:
            assert error.message


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "is not a safetensors file: it holds no object"),
        (
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
            r"tensor 'a' \[2\] needs 8 bytes, its header gives 4",
        ),
        (
            b'{"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}',
            "tensor 'a' is F8_E4M3; omnic reads F64, F32",
        ),
        (b'{"a": {"dtype": "F32", "shape": [2]}}', "the header entry of 'a' is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "needs"),
    ],
)
def test_damaged_headers_are_named(tmp_path: Path, header: bytes, message: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(BundleError, match=message):
        SafetensorsSource(path)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"weight file .*none\.safetensors does not exist"):
        SafetensorsSource(tmp_path / "none.safetensors")
    with pytest.raises(BundleError, match=r"holds no \.safetensors file"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("text", ["i4<g8>", "i4<g8, asym>", "i4<g8, s4>", "i8<head>", "nf4<row, f32>"])
def test_packed_weights_are_written_and_read_back(tmp_path: Path, text: str) -> None:
    element = parse_element(text)
    made = WeightStore(module_of(w=(f"{text}[6, 8]", Recipe("quantise", {"type": element}, (A,)))), ArraySource(BASE))
    parts = made.parts("w")
    module = module_of(w=(f"{text}[6, 8]", load("w")))
    assert {k: (p.dtype, p.shape) for k, p in parts.items()} == part_layout(module.weights["w"].type)
    path = write(tmp_path / "w.safetensors", **{f"w{suffix}": p for suffix, p in parts.items()})
    read = WeightStore.load(module, path)
    assert (read.array("w") == made.array("w")).all()
    assert (read.array("w", (1, 4)) == made.array("w")[1:4]).all()
    other = module_of(w=("i2<g8>[6, 8]", load("w")))
    with pytest.raises(BundleError, match=r"are not i2<g8> of \[6, 8\]"):
        WeightStore.load(other, path).array("w")


def test_unknown_weights_and_rows_are_named() -> None:
    store = WeightStore.random(two(), 0)
    with pytest.raises(InputError, match="@m has no weight 'aa'"):
        store.array("aa")
    with pytest.raises(InputError, match=r"weight 'a' has rows 0\.\.6, 4\.\.9 was asked for"):
        store.array("a", (4, 9))
    with pytest.raises(InputError, match=r"weight 'a' is f32\[6, 8\]: it has no codes"):
        store.quantised("a")


# -- results of calibrating passes ----------------------------------------------------------------------------


def test_results_are_kept_by_the_hash_of_what_made_them(tmp_path: Path) -> None:
    results = ResultStore(tmp_path / "results")
    key = ResultStore.key(weights="abc", data="def", bits=4)
    assert key != ResultStore.key(weights="abc", data="def", bits=3) and key not in results
    q = quantise(BASE["a"], I4)
    results.put(key, q)
    assert key in results
    store = WeightStore(module_of(w=("i4<g8>[6, 8]", Recipe("stored", {"hash": key}))), results=results)
    assert (store.quantised("w").codes == q.codes).all() and (store.array("w", (2, 5)) == decode(q)[2:5]).all()
    plain = ResultStore.key(kind="numbers")
    results.put(plain, BASE["b"])
    assert (
        WeightStore(module_of(w=("f32[4, 8]", Recipe("stored", {"hash": plain}))), results=results).array("w")
        == BASE["b"]
    ).all()
    assert [p.suffix for p in results.folder.iterdir()] == [".safetensors"] * 2


def test_lost_results_are_named(tmp_path: Path) -> None:
    key = ResultStore.key(bits=4)
    module = module_of(w=("i4<g8>[6, 8]", Recipe("stored", {"hash": key})))
    with pytest.raises(BundleError, match=f"stored result {key[:12]} is not in"):
        WeightStore(module, results=ResultStore(tmp_path)).array("w")
    with pytest.raises(BundleError, match="and no result store was given"):
        WeightStore(module).array("w")
    with pytest.raises(InputError, match=r"'\.\./\.\./x' is not the key of a stored result"):
        ResultStore(tmp_path).get("../../x")
