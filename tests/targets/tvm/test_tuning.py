"""Tuning: which records apply, how a value wins, what compile makes of it, and that no bit changes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.weights import WeightStore
from omnic.passes.base import parse_pass, run_pass
from omnic.runtime.kernels.build import SOURCES
from omnic.runtime.kernels.toolchain import host_triple
from omnic.runtime.machine import processor
from omnic.targets.base import TuneRequest
from omnic.targets.tvm.legalise import legalise
from omnic.targets.tvm.matrices import Matrices
from omnic.targets.tvm.options import parse_options
from omnic.targets.tvm.source import ProgramText, program_source
from omnic.targets.tvm.states import state_forms
from omnic.targets.tvm.tuning import records, search
from omnic.targets.tvm.tuning.lookup import fingerprint, tunings_for, tunings_of
from omnic.targets.tvm.tuning.products import ROWS, Product, panels_text, read_panels, row_classes
from omnic.targets.tvm.tuning.records import Tuning, kernels_hash, read_records
from omnic.targets.tvm.tuning.search import DEFAULT, candidates
from omnic.targets.tvm.tuning.tune import plans_of, tasks_of, tune
from tests.targets.tvm.helpers import emitted, session_of, small_module

ACT = "i8<g32>"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user has no records, and omnic brings none."""
    folder = tmp_path / "home"
    (folder / "shipped").mkdir(parents=True)
    monkeypatch.setattr("omnic.targets.tvm.tuning.lookup.user_folder", lambda: folder / "user")
    monkeypatch.setattr("omnic.targets.tvm.tuning.tune.user_folder", lambda: folder / "user")
    monkeypatch.setattr("omnic.targets.tvm.tuning.lookup.SHIPPED", folder / "shipped")
    return folder


def small() -> Module:
    return run_pass(small_module(), parse_pass("int4-packing{group=32, scale=s4}")).module


def line(**changed: Any) -> str:
    record = {
        "schema_version": 1, "triple": host_triple(), "cpu": processor(), "level": "generic", "threads": 1,
        "kernels": kernels_hash(), "gain": 1.2, "interval": [1.1, 1.3], "measured_at": "2026-01-01T00:00:00+00:00",
        "op": "linear", "rows": "1", "tuning": {"panels": 1, "prefetch": 512},
        "shape": {"n": [64], "k": 64, "weights": ["i4<g32, s4>"], "act": ACT},
    }  # fmt: skip
    return json.dumps(record | changed)


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in lines), encoding="utf-8")
    return path


OUT = Product("linear", (64,), 64, ("i4<g32, s4>",), ACT)


# -- records -----------------------------------------------------------------------------------------------
def test_a_record_of_this_machine_applies(home: Path) -> None:
    write(home / "shipped" / "a.jsonl", line())
    found = tunings_for("auto")
    assert [r.tuning for r in found.of(OUT)] == [Tuning(panels=1, prefetch=512)]
    assert found.remarks() == (f"tuned by 1 record of {processor()} on {host_triple()} (omnic's records, a.jsonl)",)
    assert found.of(Product("linear", (64,), 96, ("i4<g32, s4>",), ACT)) == []
    assert tunings_for("off").of(OUT) == []


@pytest.mark.parametrize("changed", [{"triple": "aarch64-macos"}, {"cpu": "another (avx2)"}, {"kernels": "0" * 16}])
def test_a_record_of_anything_else_never_applies(home: Path, changed: dict[str, str]) -> None:
    write(home / "user" / "a.jsonl", line(**changed))
    found = tunings_for("auto")
    assert found.of(OUT) == [] and not found.used
    left = f"left aside: 1 record of {processor()}, of other kernels than these; omnic tune measures again"
    assert found.remarks() == ((left,) if "kernels" in changed else ())


def test_the_users_record_comes_before_omnics(home: Path) -> None:
    write(home / "shipped" / "a.jsonl", line(), line(threads=2))
    write(home / "user" / "z.jsonl", line(tuning={"panels": 4}))
    found = tunings_for("auto").of(OUT)
    assert [(r.threads, r.tuning) for r in found] == [(1, Tuning(panels=4)), (2, Tuning(panels=1, prefetch=512))]


def test_a_file_of_records_takes_the_place_of_all_others(home: Path, tmp_path: Path) -> None:
    write(home / "user" / "a.jsonl", line())
    path = write(tmp_path / "mine.jsonl", line(tuning={"panels": 4}))
    assert [r.tuning for r in tunings_for(str(path)).of(OUT)] == [Tuning(panels=4)]


def test_another_platform_takes_its_own_records_by_the_name_of_its_processor(home: Path) -> None:
    arm = {"triple": "aarch64-linux-musl", "cpu": "Cortex-A76", "level": "dotprod"}
    write(home / "shipped" / "a.jsonl", line(), line(**arm, tuning={"panels": 2}))
    assert [r.tuning for r in tunings_for("auto", "Cortex-A76", "aarch64-linux-musl").of(OUT)] == [Tuning(panels=2)]
    assert tunings_for("auto", "host", "aarch64-linux-musl").of(OUT) == []
    with pytest.raises(InputError) as caught:
        tunings_for("auto", "Cortex-A77", "aarch64-linux-musl")
    assert caught.value.message == "target tvm: there are no records of the processor 'Cortex-A77'"
    assert caught.value.hint == f"there are some of: {processor()}, Cortex-A76"


HINT = "delete the line, or measure again: omnic tune MODEL"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1', "not JSON: Expecting ',' delimiter at column 21"),
        ("[1]", "a record is a JSON object"),
        (line(schema_version=2), "a record of schema 2; this omnic reads 1"),
        (line(threads=0), "threads: input should be greater than or equal to 1"),
        (line(tuning={"panels": 3}), "tuning.panels: input should be 0, 1, 2 or 4"),
        (line(tuning={"chunk": 24}), "tuning.chunk: input should be a multiple of 16"),
        (line(tuning={"speed": 2}), "tuning.speed: extra inputs are not permitted"),
        (line(rows="2"), "rows: input should be '1', '2-16', '17-128' or '>128'"),
        (line(shape={"n": [64], "k": 64, "weights": ["i4<g32, s5>"], "act": ACT}),
         "shape.weights.0: value error, 'i4<g32, s5>' has scales that panels have not"),
    ],
)
def test_a_damaged_record_names_its_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", line(), "", text)
    with pytest.raises(InputError) as caught:
        read_records(path)
    assert (caught.value.message, caught.value.hint) == (f"{path}:3: {message}", HINT)


def test_a_file_that_is_not_there_is_refused_by_the_option() -> None:
    with pytest.raises(InputError) as caught:
        parse_options({"tuning": "nowhere.jsonl"})
    assert caught.value.message == (
        "target tvm: tuning must be auto, off or a file of records, and there is no file 'nowhere.jsonl'")
    assert caught.value.hint == "make one: omnic tune MODEL --records FILE"
    assert parse_options({"tuning": False})["tuning"] == "off"


def test_what_was_measured_again_and_lost_is_dropped() -> None:
    first, second = (records.ProductRecord.model_validate_json(line(threads=n)) for n in (1, 2))
    again = first.model_copy(update={"gain": 2.0})
    assert records.merged([first, second], [again]) == [second, again]
    assert records.merged([first, second], [], [first.key]) == [second]


@pytest.mark.parametrize("text", ["f32", "bf16", "i8<row, f32>", "i4<g32, s4>", "i4<g64, f16, asym>", "i2<g64, f32>"])
def test_panels_are_written_and_read(text: str) -> None:
    assert panels_text(read_panels(text)) == text


def test_classes_of_rows_cover_every_number_once() -> None:
    assert [[c.name for c in ROWS if c.low <= n and (not c.high or n <= c.high)] for n in (1, 2, 16, 17, 128, 129, 4096)
            ] == [["1"], ["2-16"], ["2-16"], ["17-128"], ["17-128"], [">128"], [">128"]]
    assert [c.name for c in row_classes(2, 64)] == ["2-16", "17-128"]
    assert [c.name for c in row_classes(1, 1)] == ["1"]


# -- how a value wins --------------------------------------------------------------------------------------
def timer_of(times: Callable[[Tuning, np.random.Generator], float]) -> Callable[[Tuning], float]:
    random = np.random.default_rng(1)
    return lambda tuning: times(tuning, random)


FAST = Tuning(panels=4, prefetch=4096)


def test_what_is_faster_beyond_noise_wins() -> None:
    timer = timer_of(lambda t, r: (0.95 if t == FAST else 1.0) * (1 + 0.05 * r.random()))
    found = search.search(timer, DEFAULT, candidates(ROWS[0], 256, 1), 1e9)
    assert found.best == FAST and found.won and found.rounds == search.LAST
    assert 1.03 < found.gain < 1.08 and found.interval[0] > 1.0


def test_noise_never_enters_the_records() -> None:
    won = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        found = search.search(
            lambda t, random=random: 1 + 0.3 * random.random(), DEFAULT, candidates(ROWS[0], 256, 1), 1e9)
        won += found.won
    assert won <= 1


def test_what_only_looked_fast_in_the_field_is_tested_again() -> None:
    calls: dict[Tuning, int] = {}

    def timer(tuning: Tuning) -> float:
        calls[tuning] = calls.get(tuning, 0) + 1
        return 0.5 if tuning == FAST and calls[tuning] <= 20 else 1.0

    found = search.search(timer, DEFAULT, candidates(ROWS[0], 256, 1), 1e9)
    assert found.best == FAST and not found.won and found.gain == 1.0


def ticking(step: float) -> Iterator[float]:
    at = 0.0
    while True:
        yield at
        at += step


def test_a_search_keeps_to_its_budget() -> None:
    clock = ticking(1.0)
    found = search.search(lambda t: 1.0, DEFAULT, candidates(ROWS[0], 256, 1), 1.0, lambda: next(clock))
    assert found.best is None and not found.won and found.rounds == 0


@pytest.mark.parametrize(
    ("rows", "k", "threads", "count"),
    [(0, 256, 1, 15), (0, 256, 2, 30), (1, 256, 1, 0), (1, 768, 1, 2), (2, 256, 1, 3), (2, 768, 1, 11),
     (3, 2048, 2, 31)],
)
def test_the_field_is_small_and_without_equals(rows: int, k: int, threads: int, count: int) -> None:
    found = candidates(ROWS[rows], k, threads)
    assert len(found) == len(set(found)) == count


def test_what_levels_do_by_themselves_is_what_the_kernels_say() -> None:
    text = (SOURCES / "products" / "tuning.h").read_text()
    own = re.search(r"own = \{[^}]*\.k_block = (\d+), \.chunk = (\d+)\}", text)
    assert own is not None
    assert tuple(map(int, own.groups())) == (search.LEVEL.k_block, search.LEVEL.chunk)


# -- a module ----------------------------------------------------------------------------------------------
def products() -> dict[tuple[str, str], int]:
    module = legalise(small(), parse_options({}))
    matrices = Matrices(module)
    plans_of(module, matrices)
    return {(str(t.product), t.rows.name): t.count for t in tasks_of(matrices)}


def test_the_products_of_a_program_and_their_rows() -> None:
    found = products()
    assert {name for name, rows in found if rows == "1"} == {
        "linear 64 x 64 i4<g32, s4>, act i8<g32>", "linear 64 x 96 i4<g32, s4>, act i8<g32>",
        "linear 96 x 64 i8<row, f16>, act i8<per_token>", "linear_many 64+32+32 x 64 i4<g32, s4>, act i8<g32>",
        "linear_many 96+96 x 64 i4<g32, s4>, act i8<g32>",
    }  # fmt: skip
    assert {rows: count for (name, rows), count in found.items() if name.startswith("linear 64 x 64")} == {
        "1": 1, "2-16": 16, "17-128": 128}


def request(path: Path, seconds: float = 100.0, ops: tuple[str, ...] = ("linear",)) -> TuneRequest:
    return TuneRequest(small(), parse_options({"level": "generic"}), seconds, 1, path, ops, lambda what, share: None)


def fake(task: Any, kernel: Any, size: int) -> Callable[[Tuning], float]:
    fast = task.rows.name == "1" and task.product.k == 64 and task.product.n == (64,)
    return lambda tuning: 0.9 if fast and tuning == FAST else 1.0


def test_what_wins_is_kept_and_applies(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    found = list(tune(request(path), fake))
    assert [f.best for f in found if f.won] == ["panels 4, prefetch 4096"]
    assert next(f.note for f in found if not f.won) == "best of 15: panels 1, prefetch 0; not beyond noise"
    (record,) = read_records(path)
    assert str(record) == "linear 64 x 64 i4<g32, s4>, act i8<g32>, rows 1, threads 1: panels 4, prefetch 4096 (1.11x)"
    assert (record.level, record.kernels, record.cpu) == ("generic", kernels_hash(), processor())
    assert [r.tuning for r in tunings_for(str(path)).of(OUT)] == [FAST]
    # Measured again, nothing is faster: the record goes.
    list(tune(request(path), lambda task, kernel, size: lambda tuning: 1.0))
    assert read_records(path) == ()


def test_the_budget_ends_and_the_rest_says_so(tmp_path: Path) -> None:
    clock = ticking(1.0)
    found = list(tune(request(tmp_path / "mine.jsonl", 9.0), fake, lambda: next(clock)))
    assert found[0].note == "the budget ended before one was left" and found[0].seconds == 1.0
    assert found[-1].note == "the budget had ended" and found[-1].seconds is None
    assert not (tmp_path / "mine.jsonl").exists()


def test_an_interruption_leaves_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"

    def interrupted(task: Any, kernel: Any, size: int) -> Callable[[Tuning], float]:
        if path.exists() and read_records(path):
            raise KeyboardInterrupt
        return fake(task, kernel, size)

    found: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(tune(request(path), interrupted))
    assert found[-1].won and len(read_records(path)) == 1


def test_an_unknown_op_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        list(tune(request(tmp_path / "a.jsonl", ops=("linaer",)), fake))
    assert (caught.value.message, caught.value.hint) == ("there is no op 'linaer' to tune", "did you mean 'linear'?")


def test_a_real_product_is_timed(tmp_path: Path) -> None:
    found = list(tune(request(tmp_path / "a.jsonl", 1.5)))
    assert {f.rows for f in found} == {"1", "2-16", "17-128"}
    assert any(f.seconds for f in found)


# -- compile -----------------------------------------------------------------------------------------------
def test_the_program_has_the_tuning_and_the_same_bits(home: Path, tmp_path: Path) -> None:
    module = small()
    store = WeightStore.random(module, 3)
    level = {"level": "generic"}
    plain = tmp_path / "plain"
    emitted(module, plain, weights=store, **level)
    assert "omnic_tuned" not in (plain / "program.c").read_text()
    tuned = {"panels": 4, "prefetch": 0, "k_block": 64, "chunk": 16, "threads": 1}
    write(home / "user" / "a.jsonl", line(tuning=tuned), line(rows="17-128", threads=2, tuning=tuned),
          line(op="linear_many", shape={"n": [96, 96], "k": 64, "weights": ["i4<g32, s4>"] * 2, "act": ACT}))
    out = tmp_path / "tuned"
    made = emitted(module, out, weights=store, **level)
    text = (out / "program.c").read_text()
    table = text[text.index("/* Measured ways") : text.index("static size_t")]
    assert table == (
        "/* Measured ways of calling products: level, threads, fewest and most rows, tuning. */\n"
        f"/* {processor()}, {host_triple()} */\n"
        "static const omnic_tuned_rows TUNED_0[] = { /* linear 64 x 64 i4<g32, s4>, act i8<g32> */\n"
        "  {OMNIC_GENERIC, 1, 1, 1, {4, 0, 64, 16, 1}},\n"
        "  {OMNIC_GENERIC, 2, 17, 128, {4, 0, 64, 16, 1}},\n"
        "  {0}};\n"
        "static const omnic_tuned_rows TUNED_1[] = { /* linear_many 96+96 x 64 i4<g32, s4>, act i8<g32> */\n"
        "  {OMNIC_GENERIC, 1, 1, 1, {1, 512, 0, 0, 0}},\n"
        "  {0}};\n\n"
    )
    assert "K->linear((omnic_call[]){omnic_tuned(&c, K, TUNED_0, B * T)}, &W[W_blocks_0_attn_o]," in text
    assert made.remarks[-1] == f"tuned by 3 records of {processor()} on {host_triple()} (your records, a.jsonl)"
    about = json.loads((out / "program.json").read_text())["tuning"]
    assert [a["from"] for a in about] == ["your records, a.jsonl"] * 3
    assert about[0]["what"].startswith("linear 64 x 64 i4<g32, s4>, act i8<g32>, rows 1, threads 1: panels 4,")
    ids = np.random.default_rng(5).integers(0, 96, (1, 24))
    for threads in (1, 2):
        first, second = (session_of(folder, threads) for folder in (plain, out))
        for part in (ids[:, :20], ids[:, 20:21], ids[:, 21:]):
            assert np.array_equal(first.forward(part).logits, second.forward(part).logits)


def test_the_executable_of_another_platform_has_records_of_its_own(home: Path) -> None:
    arm = {"triple": "aarch64-linux-musl", "cpu": "Cortex-A76", "level": "dotprod"}
    write(home / "shipped" / "a.jsonl", line(), line(**arm, tuning={"panels": 2}))
    options = parse_options({"triple": "aarch64-linux-musl", "cpu": "Cortex-A76"})
    module = legalise(small(), options)
    matrices = Matrices(module, tunings=tunings_of(options))
    plans = plans_of(module, matrices)
    states, row_bytes = state_forms(module)
    text = program_source(ProgramText(module, 4, plans, matrices, states, row_bytes, 0, ""))
    assert text[text.index("#if !defined(OMNIC_EXECUTABLE)") : text.index("#endif\n\nstatic")] == (
        "#if !defined(OMNIC_EXECUTABLE)\n"
        f"/* {processor()}, {host_triple()} */\n"
        "static const omnic_tuned_rows TUNED_0[] = { /* linear 64 x 64 i4<g32, s4>, act i8<g32> */\n"
        "  {OMNIC_GENERIC, 1, 1, 1, {1, 512, 0, 0, 0}},\n"
        "  {0}};\n"
        "#else\n"
        "/* Cortex-A76, aarch64-linux-musl */\n"
        "static const omnic_tuned_rows TUNED_0[] = { /* linear 64 x 64 i4<g32, s4>, act i8<g32> */\n"
        "  {OMNIC_DOTPROD, 1, 1, 1, {2, -1, 0, 0, 0}},\n"
        "  {0}};\n"
    )


def test_the_key_of_a_bundle_follows_its_records(home: Path) -> None:
    options = parse_options({})
    assert fingerprint(options) == ""
    write(home / "user" / "a.jsonl", line())
    first = fingerprint(options)
    assert first and first == fingerprint(options)
    write(home / "user" / "a.jsonl", line(tuning={"panels": 4}))
    assert fingerprint(options) not in ("", first)
    assert fingerprint(parse_options({"tuning": "off"})) == ""
    write(home / "user" / "a.jsonl", line(cpu="another"))
    assert fingerprint(options) == ""


def test_what_omnic_ships_can_be_read() -> None:
    for path in sorted(records.SHIPPED.glob("*.jsonl")):
        found = read_records(path)
        assert found and len({r.key for r in found}) == len(found)
        assert all(r.interval[0] > 1.0 for r in found), path
