"""Spellings of each idea, as text: what becomes of them, their numbers, and what a near-miss says."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from omnic.ir.graph import Module
from omnic.ir.reference import Interpreter
from omnic.ir.text import parse_module, print_module
from omnic.ir.verify import verify
from omnic.ir.weights import WeightStore
from omnic.passes.base import PassResult
from omnic.passes.context import PassContext
from omnic.passes.fusion import AttentionFusion

Golden = Callable[[str, str], None]


def fused(text: str, inputs: dict[str, Any]) -> PassResult:
    """Fuse a module, and check that its numbers stay."""
    module = parse_module(text)
    verify(module)
    store = WeightStore.random(module, seed=1)
    result = AttentionFusion().run(module, PassContext(weights=store))
    verify(result.module)
    before = Interpreter(module, store).run(inputs)
    after = Interpreter(result.module, store.with_module(result.module)).run(inputs)
    for name, wanted in before.items():
        np.testing.assert_allclose(after[name], wanted, rtol=0, atol=1e-9)
    return result


def ops(module: Module) -> list[str]:
    skipped = ("constant", "iota", "reshape", "broadcast", "add", "transpose")
    return [n.op for n in module.function().nodes if n.op not in skipped]


def refusals(result: PassResult) -> list[str]:
    return [str(r) for r in result.remarks if not r.message.startswith("applied")]


# -- norms ------------------------------------------------------------------------------------------------
NORM = """module @m {{
  weight @w : f32[6] = normal(std = 1)
  weight @b : f32[6] = normal(std = 1)
  func @forward(%x: f32[3, 6]) -> (%y: f32[3, 6]) {{
    %two = constant() {{values = [2.0], shape = [], type = f32}} : f32[]
    %one = constant() {{values = [1.0], shape = [], type = f32}} : f32[]
    %half = constant() {{values = [-0.5], shape = [], type = f32}} : f32[]
    %six = constant() {{values = [6.0], shape = [], type = f32}} : f32[]
    %eps = constant() {{values = [1e-05], shape = [], type = f32}} : f32[]
{body}
    return y = %y
  }}
}}"""
SQUARE = "    %s = mul(%x, %x) : f32[3, 6]\n"
POWER = "    %s = pow(%x, %two) : f32[3, 6]\n"
MEAN = "    %m = mean(%s) {axes = [-1], keepdims = true} : f32[3, 1]\n    %e = add(%m, %eps) : f32[3, 1]\n"
SUM = ("    %t = sum(%s) {axes = [1], keepdims = true} : f32[3, 1]\n    %m = div(%t, %six) : f32[3, 1]\n"
       "    %e = add(%eps, %m) : f32[3, 1]\n")
RSQRT = "    %r = rsqrt(%e) : f32[3, 1]\n    %n = mul(%r, %x) : f32[3, 6]\n"
QUOTIENT = "    %r = sqrt(%e) : f32[3, 1]\n    %n = div(%x, %r) : f32[3, 6]\n"
INVERSE = ("    %q = sqrt(%e) : f32[3, 1]\n    %r = div(%one, %q) : f32[3, 1]\n    %n = mul(%x, %r) : f32[3, 6]\n")
BY_POWER = "    %r = pow(%e, %half) : f32[3, 1]\n    %n = mul(%x, %r) : f32[3, 6]\n"
WEIGHT = "    %y = mul(%w.1, %n) : f32[3, 6]\n"
PLAIN = "    %w.1 = reshape(@w) {shape = [1, 6]} : f32[1, 6]\n" + WEIGHT
PLUS_ONE = "    %w.1 = add(@w, %one) : f32[6]\n" + WEIGHT


@pytest.mark.parametrize("square", [SQUARE, POWER])
@pytest.mark.parametrize("mean", [MEAN, SUM])
@pytest.mark.parametrize("root", [RSQRT, QUOTIENT, INVERSE, BY_POWER])
@pytest.mark.parametrize("weight", [PLAIN, PLUS_ONE])
def test_every_spelling_of_rms_norm(square: str, mean: str, root: str, weight: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 6))
    result = fused(NORM.format(body=square + mean + root + weight), {"x": x})
    assert ops(result.module) == ["rms_norm"]
    node = next(n for n in result.module.function().nodes if n.op == "rms_norm")
    assert node.attrs["eps"] == 1e-05
    assert node.operands[1] is not None


def test_a_layer_norm_with_weight_and_bias() -> None:
    body = ("    %u = mean(%x) {axes = [1], keepdims = true} : f32[3, 1]\n    %c = sub(%x, %u) : f32[3, 6]\n"
            "    %c2 = sub(%x, %u) : f32[3, 6]\n    %s = pow(%c2, %two) : f32[3, 6]\n" + MEAN
            + "    %r = sqrt(%e) : f32[3, 1]\n    %n = div(%c, %r) : f32[3, 6]\n"
            "    %k = mul(%n, @w) : f32[3, 6]\n    %y = add(@b, %k) : f32[3, 6]\n")
    result = fused(NORM.format(body=body), {"x": np.random.default_rng(0).standard_normal((3, 6))})
    assert ops(result.module) == ["layer_norm"]
    assert all(v is not None for n in result.module.function().nodes if n.op == "layer_norm" for v in n.operands)


def test_a_norm_of_something_else_says_so() -> None:
    body = SQUARE + MEAN + "    %r = rsqrt(%e) : f32[3, 1]\n    %z = add(%x, %one) : f32[3, 6]\n" \
        "    %y = mul(%z, %r) : f32[3, 6]\n"
    result = fused(NORM.format(body=body), {"x": np.ones((3, 6))})
    assert "rms-norm: what is scaled (%z) is not what is squared (%x) (/mul.1)" in refusals(result)
    body = "    %s = mul(%x, %one) : f32[3, 6]\n" + MEAN + RSQRT + PLAIN
    result = fused(NORM.format(body=body), {"x": np.ones((3, 6))})
    assert "rms-norm: the mean must be of a square, found a product of two values (/mul.0)" in refusals(result)


# -- activations ------------------------------------------------------------------------------------------
ACT = """module @m {{
  func @forward(%x: f32[5], %u: f32[5]) -> (%y: f32[5]) {{
    %one = constant() {{values = [1.0], shape = [], type = f32}} : f32[]
    %half = constant() {{values = [0.5], shape = [], type = f32}} : f32[]
    %root = constant() {{values = [1.4142135623730951], shape = [], type = f32}} : f32[]
    %quick = constant() {{values = [1.702], shape = [], type = f32}} : f32[]
{body}
    %y = mul(%a, %u) : f32[5]
    return y = %y
  }}
}}"""
ACTS = {
    "silu": "    %n = neg(%x) : f32[5]\n    %e = exp(%n) : f32[5]\n    %d = add(%e, %one) : f32[5]\n"
            "    %a = div(%x, %d) : f32[5]",
    "gelu": "    %d = div(%x, %root) : f32[5]\n    %e = erf(%d) : f32[5]\n    %p = add(%e, %one) : f32[5]\n"
            "    %m = mul(%x, %p) : f32[5]\n    %a = mul(%m, %half) : f32[5]",
    "relu2": "    %r = relu(%x) : f32[5]\n    %a = mul(%r, %r) : f32[5]",
}


@pytest.mark.parametrize("kind", ACTS)
def test_activations_and_gates(kind: str) -> None:
    rng = np.random.default_rng(0)
    result = fused(ACT.format(body=ACTS[kind]), {"x": rng.standard_normal(5), "u": rng.standard_normal(5)})
    assert ops(result.module) == ["gated_act"]
    assert result.module.function().nodes[-1].attrs["kind"] == kind


QUICK = "    %s = mul(%x, %quick) : f32[5]\n    %g = sigmoid(%s) : f32[5]\n    %a = mul(%x, %g) : f32[5]"


def test_quick_gelu_opens_a_gate() -> None:
    result = fused(ACT.format(body=QUICK), {"x": np.linspace(-2, 2, 5), "u": np.ones(5)})
    (node,) = result.module.function().nodes
    assert (node.op, node.attrs["kind"], node.attrs["alpha"]) == ("gated_act", "silu", 1.702)


def test_quick_gelu_alone_is_none_of_ours() -> None:
    alone = ACT.format(body=QUICK).replace("%y = mul(%a, %u)", "%y = add(%a, %u)")
    result = fused(alone, {"x": np.ones(5), "u": np.ones(5)})
    assert ops(result.module) == ["mul", "sigmoid", "mul"]
    assert refusals(result) == [
        "activation: the function of %x is none of gelu, gelu_tanh, relu, relu2, silu (/mul.1)"]


# -- attention --------------------------------------------------------------------------------------------
ATTEND = """module @m {{
  dim B in 1..4
  dim T in 1..32
  weight @sinks : f32[4] = normal(std = 1)
  func @forward(%q: f32[B, 4, T, 8], %k: f32[B, 2, T, 8], %v: f32[B, 2, T, 8]) -> (%y: f32[B, 4, T, 8]) {{
    %k5 = reshape(%k) {{shape = [B, 2, 1, T, 8]}} : f32[B, 2, 1, T, 8]
    %kb = broadcast(%k5) {{shape = [B, 2, 2, T, 8]}} : f32[B, 2, 2, T, 8]
    %kr = reshape(%kb) {{shape = [B, 4, T, 8]}} : f32[B, 4, T, 8]
    %v5 = reshape(%v) {{shape = [B, 2, 1, T, 8]}} : f32[B, 2, 1, T, 8]
    %vc = concat(%v5, %v5) {{axis = 2}} : f32[B, 2, 2, T, 8]
    %vr = reshape(%vc) {{shape = [B, 4, T, 8]}} : f32[B, 4, T, 8]
    %kt = transpose(%kr) {{perm = [0, 1, 3, 2]}} : f32[B, 4, 8, T]
    %c = constant() {{values = [0.5], shape = [], type = f32}} : f32[]
    %three = constant() {{values = [3], shape = [], type = i64}} : i64[]
    %low = constant() {{values = [-1e9], shape = [], type = f32}} : f32[]
    %zero = constant() {{values = [0.0], shape = [], type = f32}} : f32[]
    %i = iota() {{size = [T]}} : i64[T]
    %row = reshape(%i) {{shape = [T, 1]}} : i64[T, 1]
    %causal = le(%i, %row) : bool[T, T]
{body}
    %y = matmul(%p, %vr) : f32[B, 4, T, 8]
    return y = %y
  }}
}}"""
SCALED_LATER = "    %s0 = matmul(%q, %kt) : f32[B, 4, T, T]\n    %s = mul(%s0, %c) : f32[B, 4, T, T]\n"
SCALED_BEFORE = ("    %qs = mul(%q, %c) : f32[B, 4, T, 8]\n    %s = matmul(%qs, %kt) : f32[B, 4, T, T]\n")
SCALED_BOTH = ("    %qs = mul(%q, %c) : f32[B, 4, T, 8]\n    %ks = div(%kt, %c) : f32[B, 4, 8, T]\n"
               "    %s1 = matmul(%qs, %ks) : f32[B, 4, T, T]\n    %s = mul(%s1, %c) : f32[B, 4, T, T]\n")
BOOLEAN = "    %l = where(%causal, %s, %low) : f32[B, 4, T, T]\n"
ADDED = "    %f = where(%causal, %zero, %low) : f32[T, T]\n    %l = add(%f, %s) : f32[B, 4, T, T]\n"
NEGATED = ("    %late = gt(%i, %row) : bool[T, T]\n    %l = where(%late, %low, %s) : f32[B, 4, T, T]\n")
SOFTMAX = "    %p = softmax(%l) {axis = 3} : f32[B, 4, T, T]"
WRITTEN = ("    %top = max(%l) {axes = [3], keepdims = true} : f32[B, 4, T, 1]\n"
           "    %d = sub(%l, %top) : f32[B, 4, T, T]\n    %e = exp(%d) : f32[B, 4, T, T]\n"
           "    %t = sum(%e) {axes = [-1], keepdims = true} : f32[B, 4, T, 1]\n"
           "    %p = div(%e, %t) : f32[B, 4, T, T]")


def qkv() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"q": rng.standard_normal((2, 4, 9, 8)), "k": rng.standard_normal((2, 2, 9, 8)),
            "v": rng.standard_normal((2, 2, 9, 8))}


def attention_of(body: str) -> dict[str, Any]:
    result = fused(ATTEND.format(body=body), qkv())
    assert ops(result.module) == ["attention"], refusals(result)
    return dict(result.module.function().nodes[-1].attrs)


@pytest.mark.parametrize("scale", [SCALED_LATER, SCALED_BEFORE, SCALED_BOTH])
@pytest.mark.parametrize("mask", [BOOLEAN, ADDED, NEGATED])
@pytest.mark.parametrize("soft", [SOFTMAX, WRITTEN])
def test_every_spelling_of_attention(scale: str, mask: str, soft: str) -> None:
    assert attention_of(scale + mask + soft) == {"scale": 0.5}


def test_a_window_a_softcap_and_sinks() -> None:
    window = ("    %far = sub(%row, %three) : i64[T, 1]\n    %near = gt(%i, %far) : bool[T, T]\n"
              "    %seen = and(%causal, %near) : bool[T, T]\n    %l = where(%seen, %s, %low) : f32[B, 4, T, T]\n")
    assert attention_of(SCALED_LATER + window + SOFTMAX) == {"scale": 0.5, "window": 3}
    capped = ("    %s0 = matmul(%q, %kt) : f32[B, 4, T, T]\n    %five = constant() {values = [5.0], shape = [], "
              "type = f32} : f32[]\n    %s1 = div(%s0, %five) : f32[B, 4, T, T]\n"
              "    %s2 = tanh(%s1) : f32[B, 4, T, T]\n"
              "    %s = mul(%five, %s2) : f32[B, 4, T, T]\n")
    assert attention_of(capped + BOOLEAN + SOFTMAX) == {"scale": 1.0, "softcap": 5.0}
    sinks = ("    %z = reshape(@sinks) {shape = [1, 4, 1, 1]} : f32[1, 4, 1, 1]\n"
             "    %zb = broadcast(%z) {shape = [B, 4, T, 1]} : f32[B, 4, T, 1]\n"
             "    %lz = concat(%l, %zb) {axis = 3} : f32[B, 4, T, T + 1]\n"
             "    %pz = softmax(%lz) : f32[B, 4, T, T + 1]\n"
             "    %p = slice(%pz) {axis = 3, start = [0], stop = [T]} : f32[B, 4, T, T]")
    assert attention_of(SCALED_LATER + BOOLEAN + sinks) == {"scale": 0.5}


MISSES = {
    "no mask": (SCALED_LATER + "    %p = softmax(%s) : f32[B, 4, T, T]",
                "there is no mask: every key is seen, later ones too (/matmul.1)"),
    "a bias": (SCALED_LATER + BOOLEAN + "    %f = cast(%i) {to = f32} : f32[T]\n"
               "    %lb = add(%l, %f) : f32[B, 4, T, T]\n"
               "    %p = softmax(%lb) : f32[B, 4, T, T]",
               "%f adds numbers to the scores that hide nothing (/cast.0)"),
    "a chunk": (SCALED_LATER + "    %a = floordiv(%i, %three) : i64[T]\n    %b = floordiv(%row, %three) : i64[T, 1]\n"
                "    %eq = eq(%a, %b) : bool[T, T]\n    %seen = and(%causal, %eq) : bool[T, T]\n"
                "    %l = where(%seen, %s, %low) : f32[B, 4, T, T]\n" + SOFTMAX,
                "the mask hides key 1 from query 3, a causal mask with window 3 does not (/and.0)"),
    "a rounded score": (SCALED_LATER + "    %h = cast(%s) {to = f16} : f16[B, 4, T, T]\n"
                        "    %s3 = cast(%h) {to = f32} : f32[B, 4, T, T]\n"
                        "    %l = where(%causal, %s3, %low) : f32[B, 4, T, T]\n" + SOFTMAX,
                        "the scores are rounded to f32 (/cast.1)"),
    "another function": (SCALED_LATER + "    %g = sin(%s) : f32[B, 4, T, T]\n"
                         "    %l = where(%causal, %g, %low) : f32[B, 4, T, T]\n" + SOFTMAX,
                         "sin stands between the softmax and the product (/sin.0)"),
}


@pytest.mark.parametrize("name", MISSES)
def test_near_misses_of_attention(name: str) -> None:
    body, reason = MISSES[name]
    result = fused(ATTEND.format(body=body), qkv())
    assert "attention" not in ops(result.module)
    assert f"attention: {reason}" in refusals(result)


def test_heads_in_another_order_are_no_groups() -> None:
    text = ATTEND.format(body=SCALED_LATER + BOOLEAN + SOFTMAX).replace(
        "%kb = broadcast(%k5) {shape = [B, 2, 2, T, 8]} : f32[B, 2, 2, T, 8]",
        "%k6 = transpose(%k5) {perm = [0, 2, 1, 3, 4]} : f32[B, 1, 2, T, 8]\n"
        "    %kb = broadcast(%k6) {shape = [B, 2, 2, T, 8]} : f32[B, 2, 2, T, 8]")
    result = fused(text, qkv())
    assert "attention" not in ops(result.module)
    assert "attention: query heads do not share key heads in order (/matmul.0)" in refusals(result)


def test_given_becomes_result() -> None:
    """The example of the docstring."""
    about = inspect.cleandoc(AttentionFusion.__doc__ or "")
    given, _, rest = about.partition("Given::")[2].partition("Result::")
    result = rest.partition("Attributes:")[0]
    _, *nodes = given.strip().splitlines()
    body = "\n".join(f"    {line.strip()}" for line in nodes)
    text = ("module @m {\n  dim B in 1..4\n  dim T in 1..32\n  func @forward(%q: f32[B, 2, T, 8], %k: f32[B, 1, T, 8], "
            f"%v: f32[B, 1, T, 8]) -> (%out: f32[B, 2, T, 8]) {{\n{body}\n    return out = %y\n  }}\n}}")
    inputs = {n: np.random.default_rng(1).standard_normal(s)
              for n, s in (("q", (1, 2, 4, 8)), ("k", (1, 1, 4, 8)), ("v", (1, 1, 4, 8)))}
    made = print_module(fused(text, inputs).module).splitlines()
    found = [line.strip() for line in made if line.strip().startswith("%") and " = " in line]
    assert [line.partition("  name(")[0] for line in found] == [line.strip() for line in result.strip().splitlines()]
