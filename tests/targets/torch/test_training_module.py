"""The training module: what it computes, its gradients, its causality, its names."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.numeric import logit_rms
from omnic.ir.reference import Interpreter
from omnic.ir.weights import WeightStore
from omnic.passes.specialise import specialise_train
from omnic.targets.torch.grouped import grouped_linear
from omnic.targets.torch.training import emit_training, load_training_module
from tests.models.variants import VARIANTS, variant

NAMES = (*VARIANTS, "tiny", "tiny_moe", "mobile_4gb")


def ids(module: Module, batch: int = 2, tokens: int = 23) -> np.ndarray:
    return np.random.default_rng(5).integers(0, int(str(module.meta["vocab"])), (batch, tokens))


def loaded(module: Module, seed: int = 3) -> Any:
    return load_training_module(module, WeightStore.random(module, seed))


def near(found: torch.Tensor, wanted: np.ndarray, bound: float = 2e-5) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found.detach().numpy() - wanted).max() <= bound * logit_rms(wanted)


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_the_reference_says(name: str) -> None:
    module = variant(name)
    store = WeightStore.random(module, 3)
    model, reference = load_training_module(module, store), Interpreter(specialise_train(module), store)
    tokens = ids(module)
    wanted = reference.run({"tokens": tokens})
    found = model(torch.from_numpy(tokens))
    routers = found.pop("router_logits", [])
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        near(found[key], value, 2e-3 if name == "f16 cache" else 2e-5)
    assert len(routers) == sum(n.op == "router" for n in module.function().nodes)
    for depth, block_name in enumerate(n for n in module.functions if n != "forward"):
        hidden, following = wanted["hidden"], np.roll(tokens, -1, 1)
        block = reference.run({"hidden": hidden, "next_tokens": following}, block_name)
        options = {"depth": depth} if block_name != "mtp" else {}
        logits, state = model.mtp_forward(torch.from_numpy(hidden).float(), torch.from_numpy(following), **options)
        near(logits, block["logits"])
        near(state, block["hidden"])


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_keys_are_the_weight_names(name: str) -> None:
    module = variant(name)
    assert {k: tuple(p.shape) for k, p in loaded(module).state_dict().items()} == {
        n: tuple(w.type.shape) for n, w in module.weights.items()
    }


@pytest.mark.parametrize("name", ["tiny", "tiny_moe", "several kinds, linear heads"])
def test_a_later_token_changes_no_earlier_logit(name: str) -> None:
    module = variant(name)
    model = loaded(module)
    tokens = torch.from_numpy(ids(module))
    changed = tokens.clone()
    changed[:, 14] = (changed[:, 14] + 1) % int(str(module.meta["vocab"]))
    one, two = model(tokens), model(changed)
    rms = logit_rms(one["logits"].detach().numpy())
    assert (one["logits"][:, :14] - two["logits"][:, :14]).abs().max() <= 1e-5 * rms
    assert (one["logits"][:, 14] - two["logits"][:, 14]).abs().max() > 1e-3 * rms
    for left, right in zip(one.get("router_logits", []), two.get("router_logits", []), strict=True):
        assert torch.equal(left[:, :14].topk(2).indices, right[:, :14].topk(2).indices)


@pytest.mark.parametrize(
    "name",
    ["sinks, softcap, qk_norm", "mla, q latent", "groups, split, bias", "group gate, sigmoid", "layer norm, biases"],
)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    module = variant(name)
    model = loaded(module).double()
    tokens = torch.from_numpy(ids(module, 1, 11))
    # Distributions with some spread, so that no router is nearly undecided.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    mixed = torch.randn(model(tokens)["logits"].shape, generator=generator, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return (model(tokens)["logits"] * mixed).sum()

    loss().backward()
    for key, parameter in model.named_parameters():
        if parameter.grad is None:
            assert key.endswith("select_bias")
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = loss()
            parameter.sub_(direction, alpha=2 * step)
            below = loss()
            parameter.add_(direction, alpha=step)
        measured, told = (above - below) / (2 * step), (parameter.grad * direction).sum()
        assert torch.isclose(measured, told, rtol=1e-4, atol=1e-4 * float(mixed.norm())), key


def test_the_product_per_expert_has_right_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    counts = torch.tensor([4, 0, 3])
    assert torch.autograd.gradcheck(lambda a, b: grouped_linear(a, b, counts), (x, weight))
    torch.library.opcheck(torch.ops.omnic.grouped_linear.default, (x, weight, counts))


def test_autocast_keeps_norms_logits_and_routing_in_f32() -> None:
    module = variant("tiny_moe")
    model = loaded(module)
    tokens = torch.from_numpy(ids(module))
    full = model(tokens)["logits"]
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens)
    assert found["logits"].dtype == found["hidden"].dtype == torch.float32
    assert all(r.dtype == torch.float32 for r in found["router_logits"])
    assert (found["logits"] - full).abs().max() < 0.1 * logit_rms(full.detach().numpy())


def test_the_text_of_tiny(golden: Any) -> None:
    from omnic.models import build
    from omnic.spec import load_spec

    golden("torch/tiny_model.py", re.sub(r"\([^()\s]*specs/", "(specs/", emit_training(build(load_spec("tiny")))))


def test_isomorphic_scopes_are_one_class_and_runs_of_blocks_are_loops() -> None:
    text = emit_training(variant("pattern of windows"))
    assert re.findall(r"^class (\w+)", text, re.M) == ["Attention", "MLP", "Block", "Attention2", "Block2", "Model"]
    assert "nn.ModuleList([Block(), Block(), Block2(), Block(), Block(), Block2()])" in text
    assert text.count("for block in self.blocks:") == 1


def test_numbers_in_which_scopes_differ_become_arguments() -> None:
    from omnic.models import build
    from omnic.spec import parse_spec
    from tests.models.variants import MHA, model

    two = model(MHA, "kind: dense, hidden: 40, activation: silu") + (
        f"  - {{width: 32, attention: {{{MHA}}}, ffn: {{kind: dense, hidden: 56, activation: silu}}}}\n"
    )
    module = build(parse_spec(two, "two.yaml"))
    text = emit_training(module)
    assert "def __init__(self, up_rows):" in text
    assert "self.blocks = nn.ModuleList([Block(up_rows=40), Block(up_rows=56)])" in text
    assert set(loaded(module).state_dict()) == set(module.weights)


def test_a_traceback_shows_the_emitted_line() -> None:
    import traceback

    model = loaded(variant("tiny"))
    try:
        model(torch.zeros(2, 3, 4, dtype=torch.int64))
    except ValueError:
        assert "_, T = tokens.shape" in traceback.format_exc()
    else:
        pytest.fail("three dims of tokens were taken")


def test_weights_of_another_shape_are_refused() -> None:
    module = variant("tiny")
    arrays = {n: np.zeros(w.type.shape, np.float32) for n, w in module.weights.items()}
    arrays["final_norm"] = np.zeros(3, np.float32)
    with pytest.raises(InputError):
        load_training_module(module, WeightStore.of(module, arrays))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny_moe"])
def test_it_compiles_as_one_graph(name: str) -> None:
    module = variant(name)
    model = loaded(module)
    tokens = torch.from_numpy(ids(module))

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        out = model(tokens)
        drafted, _ = model.mtp_forward(out["hidden"], tokens)
        return (
            out["logits"].square().mean()
            + drafted.square().mean()
            + sum((r.square().mean() for r in getattr(model, "router_logits", [])), torch.zeros(()))
        )

    eager = loss(tokens)
    eager.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    compiled = torch.compile(loss, fullgraph=True)(tokens)
    compiled.backward()
    assert torch.isclose(compiled, eager, rtol=1e-5)
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, wanted[key], rtol=1e-3, atol=1e-6), key
