"""Specialisation: the training form and the phases mean what the one forward means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnic.errors import InputError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.dims import DimRange
from omnic.ir.graph import Module, State
from omnic.ir.reference import Interpreter, empty_states
from omnic.ir.text import parse_module, print_module
from omnic.ir.types import parse_type
from omnic.ir.verify import verify
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.passes.specialise import SpecialisePhase, SpecialiseTrain, specialise_phase, specialise_train
from omnic.spec import load_spec, preset_names, scale

GIVEN = """
module @small {
  dim B in 1..4
  dim T in 1..8
  dim R in 1..8
  weight @embed : f32[11, 4] = normal(std = 1)
  state @kv.0.k : f32[B, 1, 16, 4] role(k) group(0)
  func @forward(%tokens: i64[B, T], %positions: i64[B, T], %start: i64[B], %length: i64[B], %rows: i64[B, R], %k: f32[B, 1, 16, 4] = @kv.0.k) -> (%logits: f32[B, R, 11], %new_k: f32[B, 1, 16, 4] aliases @kv.0.k) {
    %reshape = reshape(%start) {shape = [B, 1]} : i64[B, 1]
    %iota = iota() {size = [T]} : i64[T]
    %q_index = add(%reshape, %iota) : i64[B, T]
    %x = embedding(@embed, %tokens) : f32[B, T, 4]
    %heads = reshape(%x) {shape = [B, 1, T, 4]} : f32[B, 1, T, 4]
    %turned = rope(%heads, %positions) {dims = 4} : f32[B, 1, T, 4]
    %new_k = cache_write(%k, %turned, %start, %length) : f32[B, 1, 16, 4]
    %keys, %index = cache_read(%new_k, %start, %length) : f32[B, 1, 16, 4], i64[B, 16]
    %mixed = attention(%turned, %keys, %keys, %q_index, %index) {scale = 0.5} : f32[B, 1, T, 4]
    %merged = reshape(%mixed) {shape = [B, T, 4]} : f32[B, T, 4]
    %at = reshape(%rows) {shape = [B, R, 1]} : i64[B, R, 1]
    %wanted = gather(%merged, %at) {axis = 1} : f32[B, R, 4]
    %logits = lm_head(%wanted, @embed) : f32[B, R, 11]
    return logits = %logits, new_k = %new_k
  }
}
"""  # noqa: E501 - the text form has one line per signature

RESULT = """
module @small {
  dim B in 1..4
  dim T in 1..32
  weight @embed : f32[11, 4] = normal(std = 1)
  func @forward(%tokens: i64[B, T]) -> (%logits: f32[B, T, 11]) {
    %place = iota() {size = [T]} : i64[T]  scope("index")
    %token_index = broadcast(%place) {shape = [B, T]} : i64[B, T]  scope("index")
    %x = embedding(@embed, %tokens) : f32[B, T, 4]
    %heads = reshape(%x) {shape = [B, 1, T, 4]} : f32[B, 1, T, 4]  name("/reshape.1")
    %turned = rope(%heads, %token_index) {dims = 4} : f32[B, 1, T, 4]
    %mixed = attention(%turned, %turned, %turned, %token_index, %token_index) {scale = 0.5} : f32[B, 1, T, 4]
    %merged = reshape(%mixed) {shape = [B, T, 4]} : f32[B, T, 4]
    %logits = lm_head(%merged, @embed) : f32[B, T, 11]
    return logits = %logits
  }
}
"""


def test_given_becomes_result() -> None:
    module = parse_module(GIVEN)
    text = print_module(module)
    result = SpecialiseTrain(32).run(module)
    assert print_module(result.module).strip() == RESULT.strip()
    assert [str(r) for r in result.remarks] == ["specialise-train: 1 states left the module"]
    assert print_module(module) == text


@pytest.fixture(scope="module", params=sorted(preset_names()))
def module(request: pytest.FixtureRequest) -> Module:
    return build(scale(load_spec(request.param)))


def call(tokens: Any, start: int, rows: Any | None = None) -> dict[str, Any]:
    batch, count = tokens.shape
    index = np.tile(np.arange(count), (batch, 1))
    return {
        "tokens": tokens, "positions": index + start, "start": np.full(batch, start), "length": np.full(batch, count),
        "rows": index if rows is None else rows,
    }


def test_training_sees_what_the_forward_computes(module: Module) -> None:
    trained = specialise_train(module)
    verify(trained)
    assert not trained.states
    assert [p.value.name for p in trained.function().params] == ["tokens"]
    assert not {n.op for f in trained.functions.values() for n in f.nodes} & {"cache_write", "cache_read"}
    assert {n.attrs.get("form") for n in trained.function().nodes if n.op == "mla"} <= {"naive"}
    assert list(trained.weights) == list(module.weights)
    tokens = np.random.default_rng(0).integers(0, 512, (2, 24))
    weights = WeightStore(module, seed=3)
    front = Interpreter(module, weights).run(call(tokens, 0))
    ours = Interpreter(trained, weights).run({"tokens": tokens})
    assert set(ours) == {r.name for r in module.function().results if r.state is None}
    for name, value in ours.items():
        bound = 1e-9 * np.sqrt(np.mean(front[name] ** 2))
        np.testing.assert_allclose(value, front[name], rtol=0, atol=bound, err_msg=name)


def test_the_mtp_block_trains_on_hidden_and_next_tokens() -> None:
    module = build(scale(load_spec("tiny_moe")))
    trained = specialise_train(module)
    mtp = trained.function("mtp")
    assert [p.value.name for p in mtp.params] == ["hidden", "next_tokens"]
    random = np.random.default_rng(0)
    given = call(random.integers(0, 512, (2, 12)), 0)
    given["next_tokens"] = given.pop("tokens")
    given["hidden"] = random.standard_normal((2, 12, load_spec_width(module)))
    weights = WeightStore(module, seed=3)
    front = Interpreter(module, weights).run(given, "mtp")
    ours = Interpreter(trained, weights).run({k: given[k] for k in ("hidden", "next_tokens")}, "mtp")
    assert set(ours) == {"logits", "hidden"}
    for name, value in ours.items():
        np.testing.assert_allclose(value, front[name], atol=1e-9)


def load_spec_width(module: Module) -> int:
    width = module.function("mtp").params[0].value.type.shape[2]
    assert isinstance(width, int)
    return width


def test_node_names_stay_in_training(module: Module) -> None:
    before = {n.name: n.op for n in module.function().nodes}
    fresh = [n for n in specialise_train(module).function().nodes if before.get(n.name) != n.op]
    assert {n.scope for n in fresh} <= {"index"}


def test_a_longer_training_context() -> None:
    module = build(scale(load_spec("tiny")))
    assert specialise_train(module, 4096).dims["T"] == DimRange(1, 4096)
    assert "R" not in specialise_train(module).dims


def test_phases_share_states_and_mean_the_same() -> None:
    module = build(scale(load_spec("tiny_moe")))
    phased = specialise_phase(module, "prefill", module.dims["T"].high, "naive")
    phased = specialise_phase(phased, "decode", 1, "absorbed")
    phased = specialise_phase(phased, "verify_4", 4, "absorbed")
    verify(phased)
    assert phased.states == module.states
    assert phased.dims["T_verify_4"] == DimRange(1, 4)
    assert str(phased.function("decode").params[0].value.type) == "i64[B, 1]"
    assert str(phased.function("verify_4").params[0].value.type) == "i64[B, T_verify_4]"
    forms = {f: {n.attrs.get("form", "absorbed") for n in phased.function(f).nodes if n.op == "mla"}
             for f in ("prefill", "decode", "verify_4")}
    assert forms == {"prefill": {"naive"}, "decode": {"absorbed"}, "verify_4": {"absorbed"}}
    tokens = np.random.default_rng(0).integers(0, 512, (1, 10))
    weights = WeightStore(module, seed=3)
    whole = Interpreter(module, weights).run(call(tokens, 0))["logits"]
    run = Interpreter(phased, weights)
    states: dict[str, Any] = empty_states(module, 1)
    pieces = []
    for function, first, last in (("prefill", 0, 5), ("verify_4", 5, 9), ("decode", 9, 10)):
        out = run.run(call(tokens[:, first:last], first), function, states)
        states = {name: out[name] for name in states}
        pieces.append(out["logits"])
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-9)


def test_the_pass_is_the_function() -> None:
    module = build(scale(load_spec("tiny")))
    result = SpecialisePhase("decode", 1).run(module)
    assert print_module(result.module) == print_module(specialise_phase(module, "decode", 1))
    assert [str(r) for r in result.remarks] == ["specialise-phase: @decode is @forward with T up to 1"]


@pytest.mark.parametrize(("arguments", "message"), [
    (("decode", 0), "@decode cannot take T up to 0: dim T is 1..8"),
    (("decode", 9), "@decode cannot take T up to 9: dim T is 1..8"),
    (("forward", 1), "module @small has a function @forward already"),
    (("decode", 1, "fast"), "mla has no form 'fast'"),
    (("decode", 1, None, "mtp"), "module @small has no function @mtp"),
])
def test_phases_that_cannot_be(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        specialise_phase(parse_module(GIVEN), *arguments)
    assert caught.value.message == message


def test_a_cache_that_is_only_read_cannot_be_trained() -> None:
    mb = ModuleBuilder("m", {"B": DimRange(1, 4), "T": DimRange(1, 8)})
    mb.state(State("kv.0.k", parse_type("f32[B, 16, 4]"), "k", 0))
    f = mb.function("forward")
    f.param("positions", parse_type("i64[B, T]"))
    start, length = f.param("start", parse_type("i64[B]")), f.param("length", parse_type("i64[B]"))
    state = f.param("k", parse_type("f32[B, 16, 4]"), "kv.0.k")
    f.result("y", f.emit("cache_read", state, start, length)[0])
    f.result("k", state, "kv.0.k")
    with pytest.raises(InputError) as caught:
        specialise_train(mb.build())
    assert caught.value.message == "/cache_read.0 reads a cache that @forward has not written: it cannot be trained"
