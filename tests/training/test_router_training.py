"""Routers in training: noise that evaluation does not have, and losses that change the balance."""

import numpy as np
import pytest
import torch

from omnic.ir.reference import Interpreter
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.passes.specialise import specialise_train
from omnic.spec import parse_spec
from omnic.targets.torch.library import noisy_logits, route
from omnic.targets.torch.training import emit_training, load_training_module
from omnic.training.config import TrainConfig
from omnic.training.distill import DistillLoss, freeze_trunk
from omnic.training.losses import TrainingLoss, experts_of, wants_choices
from tests.models.variants import MHA, MOE, model

X = torch.randn(2, 3000, 8, generator=torch.Generator().manual_seed(0))
GATE = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
NOISE = "router: {temperature: 1.5, gumbel: 0.3, gaussian: 0.2, jitter: 0.05, dropout: 0.2}"


def front(extra="", heads=""):
    return build(parse_spec(model(MHA, f"{MOE}, activation: swiglu{extra}") + heads, "routed.yaml"))


def tokens_of(count=24, rows=4, seed=0):
    return torch.randint(97, (rows, count), generator=torch.Generator().manual_seed(seed))


# -- noise --------------------------------------------------------------------------------------------


def test_each_kind_of_noise_does_what_it_is_named_for():
    torch.manual_seed(0)
    plain = X @ GATE.T
    assert torch.equal(noisy_logits(X, GATE, False, temperature=2.0, gumbel=1.0), noisy_logits(X, GATE, False))
    assert torch.allclose(noisy_logits(X, GATE, True, temperature=2.0), plain / 2, atol=1e-5)
    gumbel = noisy_logits(X, GATE, True, gumbel=0.5) - plain
    # A Gumbel variable has the mean 0.5772 and the variance pi^2 / 6.
    assert gumbel.mean().item() == pytest.approx(0.5 * 0.5772, abs=0.01)
    assert gumbel.var().item() == pytest.approx(0.25 * np.pi**2 / 6, rel=0.03)
    normal = noisy_logits(X, GATE, True, gaussian=0.7) - plain
    assert (normal.mean().item(), normal.std().item()) == (pytest.approx(0, abs=0.02), pytest.approx(0.7, rel=0.02))
    shaken = noisy_logits(torch.ones(1, 20000, 1), torch.ones(1, 1), True, jitter=0.1)
    assert 0.9 <= shaken.min() < 0.901 and 1.099 < shaken.max() <= 1.1


def test_gumbel_noise_of_scale_1_draws_from_the_softmax():
    torch.manual_seed(1)
    x = X[:1, :1].expand(1, 40000, 8)
    indices, _, _ = route(x, GATE, top_k=1, logits=noisy_logits(x, GATE, True, gumbel=1.0))
    drawn = torch.bincount(indices.flatten(), minlength=6) / 40000
    assert (drawn - (x[0, 0] @ GATE.T).softmax(-1)).abs().max() < 0.01


@pytest.mark.parametrize("groups", [None, (2, 4), (1, 5)])
def test_dropout_leaves_experts_out_but_never_the_best(groups):
    torch.manual_seed(2)
    top_k = 1 if groups == (1, 5) else 2
    options = {"top_k": top_k, "groups": groups}
    plain, _, logits = route(X, GATE, **options)
    chosen, gates, _ = route(X, GATE, **options, dropout=0.4)
    assert torch.equal(chosen[..., 0], plain[..., 0])
    if top_k == 2:
        moved = (chosen[..., 1] != plain[..., 1]).float().mean().item()
        # Two of a group of two are always taken; elsewhere the second is left out with probability 0.4.
        large = 1.0 if groups is None else (plain[..., 0] >= 2).float().mean().item()
        assert moved == pytest.approx(0.4 * large * (1 if groups is None else 1 - 0.4**2), abs=0.03)
    assert torch.allclose(gates, logits.gather(-1, chosen).softmax(-1))
    group = (torch.arange(6) >= (groups or (6,))[0]).long()
    assert torch.equal(group[chosen], group[plain])


def test_where_too_few_are_left_the_best_of_those_left_out_are_taken():
    torch.manual_seed(3)
    chosen, _, logits = route(X, GATE, top_k=4, dropout=0.99)
    assert torch.equal(chosen[..., 0], logits.argmax(-1))
    assert chosen.sort(-1).values.diff(dim=-1).min() > 0
    rare = route(X, GATE, top_k=4)[0]
    assert (chosen == rare).all(-1).float().mean() > 0.8


def test_evaluation_is_that_of_the_router_without_noise():
    noisy, plain = front(f", {NOISE}"), front()
    assert "noisy_logits(normed, self.router, self.training, temperature=1.5, gumbel=0.3" in emit_training(noisy)
    assert "noisy_logits" not in emit_training(plain)
    store = WeightStore.random(noisy, 3)
    tokens = tokens_of()
    wanted = Interpreter(specialise_train(plain), store).run({"tokens": tokens.numpy()})["logits"]
    found = Interpreter(specialise_train(noisy), store).run({"tokens": tokens.numpy()})["logits"]
    assert np.array_equal(found, wanted)
    module, other = load_training_module(noisy, store), load_training_module(plain, store)
    assert torch.equal(module.eval()(tokens)["logits"], other(tokens)["logits"])
    assert not torch.equal(module.train()(tokens)["logits"], other(tokens)["logits"])


def test_a_seed_draws_the_same_noise_again():
    module = load_training_module(front(f", {NOISE}"), WeightStore.random(front(), 3))
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append(module(tokens_of())["logits"])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.slow
def test_noise_in_a_compiled_step_is_a_function_of_the_seed():
    config = TrainConfig(importance_weight=0.1, z_weight=0.1)
    module = front(f", select_bias: true, {NOISE}")
    layers = experts_of(module)
    trained = load_training_module(module, WeightStore.random(module, 3), choices=True)
    step = torch.compile(TrainingLoss(trained, config, layers), dynamic=False, fullgraph=True)
    totals = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        total, _, loads = step(tokens_of())
        total.backward()
        totals.append((total.item(), loads[0].tolist()))
    assert totals[0] == totals[1]
    assert totals[0] != totals[2]


@pytest.mark.parametrize("extra", ["", ", score: sigmoid, groups: [3, 3], top_groups: 2, group_gate: true"])
def test_gradients_through_the_noise_are_those_of_finite_differences(extra):
    # No dropout: where an expert is left out, its neighbours' margins change sides.
    noise = "router: {temperature: 0.7, gumbel: 0.2, gaussian: 0.1, jitter: 0.05}"
    module = front(f"{extra}, {noise}")
    trained = load_training_module(module, WeightStore.random(module, 3)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    tokens = tokens_of(11, 1)
    mixed = torch.randn(1, 11, 97, generator=generator, dtype=torch.float64)

    def loss():
        torch.manual_seed(9)
        return (trained(tokens)["logits"] * mixed).sum()

    loss().backward()
    for name, parameter in trained.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-6)
            above = loss()
            parameter.sub_(direction, alpha=2e-6)
            below = loss()
            parameter.add_(direction, alpha=1e-6)
        told = (parameter.grad * direction).sum()
        assert torch.isclose((above - below) / 2e-6, told, rtol=1e-4, atol=1e-4 * float(mixed.norm())), name


def test_the_frozen_trunk_has_no_noise_while_the_block_learns():
    module = front(f", {NOISE}", "heads: {mtp: {kind: block}}\n")
    trained = load_training_module(module, WeightStore.random(module, 3))
    freeze_trunk(trained)
    tokens = tokens_of()
    assert torch.equal(trained(tokens)["logits"], trained(tokens)["logits"])
    loss = DistillLoss(trained, 2)
    assert loss(tokens)[0].item() != loss(tokens)[0].item()


# -- losses -------------------------------------------------------------------------------------------


def collapsed(steps=40, **weights):
    """Train a model whose routers prefer the first two experts; return (variation of the load, mean z^2) in training.

    The noise lets the others be tried: without it the importance of an expert that is never chosen has no gradient.
    """
    config = TrainConfig(**{"balance_weight": 0.0, **weights})
    module = front(", router: {gumbel: 1.0}")
    layers = experts_of(module)
    trained = load_training_module(module, WeightStore.random(module, 3), wants_choices(config, layers))
    with torch.no_grad():
        trained.embed[:, 0] += 1.0
        for block in trained.blocks:
            block.ffn.router[:, 0] = torch.linspace(0.6, -0.6, 6)
    loss = TrainingLoss(trained, config, layers)
    optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        loss(tokens_of(seed=step))[0].backward()
        optimizer.step()
    torch.manual_seed(steps)
    logits = trained(tokens_of(seed=999))["router_logits"][0].detach()
    load = torch.bincount(logits.topk(2, -1).indices.flatten(), minlength=6).float()
    return (load.std(correction=0) / load.mean()).item(), logits.logsumexp(-1).square().mean().item()


def test_the_auxiliary_losses_change_the_balance():
    uneven, squared = collapsed()
    assert uneven > 1.0
    assert collapsed(balance_weight=1.0)[0] < 0.3
    assert collapsed(importance_weight=1.0)[0] < 0.3
    assert collapsed(z_weight=1.0)[1] < 0.5 * squared


def test_what_a_router_chooses_by_is_read_from_the_ir():
    (plain,) = experts_of(front())
    assert (plain.experts, plain.top_k, plain.select_bias, plain.by_logits) == (6, 2, None, True)
    (biased,) = experts_of(front(", select_bias: true"))
    assert (biased.select_bias, biased.by_logits) == ("blocks.0.ffn.select_bias", False)
    for extra in (", groups: [3, 3]", ", router: {dropout: 0.1}"):
        (other,) = experts_of(front(extra))
        assert not other.by_logits and wants_choices(TrainConfig(), [other])
    assert not wants_choices(TrainConfig(), [plain]) and not wants_choices(TrainConfig(importance_weight=1.0), [])
    assert wants_choices(TrainConfig(importance_weight=1.0), [plain])


def test_the_model_returns_what_its_routers_chose():
    module = front(", groups: [2, 4]")
    trained = load_training_module(module, WeightStore.random(module, 3), choices=True)
    out = trained(tokens_of())
    assert set(out) == {"logits", "hidden", "router_indices", "router_gates", "router_logits"}
    (indices,), (gates,), (logits,) = out["router_indices"], out["router_gates"], out["router_logits"]
    assert torch.equal(logits.gather(-1, indices).softmax(-1), gates)
    assert ((indices < 2).all(-1) | (indices >= 2).all(-1)).all()
