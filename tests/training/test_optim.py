"""Muon orthogonalises, AdamW does the rest, and the state goes around exactly."""

import pytest
import torch
from torch import nn

from omnic.errors import BundleError
from omnic.training.config import TrainConfig
from omnic.training.optim import Optimizer, is_matrix, newton_schulz


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embed": (20, 8),
        "w": (8, 16),
        "tall": (16, 8),
        "experts.up": (3, 8, 16),
        "norm": (8,),
        "ffn.router": (3, 8),
    }
    return [(name, nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in shapes.items()]


def gradients(named, seed):
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def optimizer_of(named, **options):
    return Optimizer(named, TrainConfig(**options), 0.01, 0.02)


def test_newton_schulz_brings_singular_values_near_one():
    matrices = torch.randn(4, 64, 192, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(newton_schulz(matrices))
    assert values.min() > 0.65
    assert values.max() < 1.2


def test_more_steps_come_nearer_to_full_rank_and_none_leave_the_norm():
    matrices = torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(0))
    spread = [torch.linalg.svdvals(newton_schulz(matrices, n)).min().item() for n in (0, 2, 5)]
    assert spread[0] < spread[1] < spread[2]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.attn.q", (256, 256), True),
        ("blocks.0.ffn.experts.up", (8, 128, 256), True),
        ("mtp.proj", (256, 512), True),
        ("embed", (4096, 256), False),
        ("head", (4096, 256), False),
        ("mtp.heads.0", (4096, 256), False),
        ("blocks.0.ffn.router", (8, 256), False),
        ("final_norm", (256,), False),
        ("blocks.0.attn.sinks", (4,), False),
    ],
)
def test_what_muon_updates(name, shape, expected):
    assert is_matrix(name, shape) is expected


def test_a_muon_step_has_the_rms_of_adamw_and_stacks_are_single_matrices():
    named = parameters()
    before = {name: p.detach().clone() for name, p in named}
    gradients(named, 1)
    wide, stack = (dict(named)[n].grad.clone() for n in ("w", "experts.up"))
    optimizer_of(named).step(1.0)
    after = dict(named)
    for gradient, name in ((wide[None], "w"), (stack, "experts.up")):
        # Nesterov from a zero momentum m: g + mu ((1 - mu) g - g) = (1 - mu^2) g, and scale does not matter.
        update = newton_schulz(gradient) * 0.01 * 0.2 * 16**0.5
        assert torch.allclose(before[name] - after[name].detach(), update.reshape(after[name].shape), atol=1e-6)
    assert ((before["tall"] - after["tall"].detach()).square().mean().sqrt() / 0.01) == pytest.approx(0.2, rel=0.5)


def test_scale_zero_changes_nothing_and_gradients_are_cleared():
    named = parameters()
    before = {name: p.detach().clone() for name, p in named}
    gradients(named, 1)
    optimizer_of(named).step(0.0)
    assert all(torch.equal(before[name], p) for name, p in named)
    assert all(p.grad is None for _, p in named)


def test_frozen_parameters_are_left_alone():
    named = parameters()
    dict(named)["w"].requires_grad_(False)
    optimizer = optimizer_of(named)
    assert "w" not in optimizer.matrices
    assert "w" not in optimizer.rest


def test_a_restored_optimizer_goes_on_bit_for_bit():
    first, second = parameters(), parameters()
    straight, broken = optimizer_of(first), optimizer_of(second)
    for seed in range(3):
        gradients(first, seed)
        straight.step(1.0)
        gradients(second, seed)
        broken.step(1.0)
    resumed = optimizer_of(second)
    resumed.load_state({k: v.clone() for k, v in broken.state().items()})
    for seed in range(3, 6):
        gradients(first, seed)
        straight.step(0.5)
        gradients(second, seed)
        resumed.step(0.5)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


def test_state_is_one_tensor_a_matrix_and_two_a_vector():
    named = parameters()
    optimizer = optimizer_of(named)
    gradients(named, 0)
    optimizer.step(1.0)
    assert sum(4 * t.numel() for t in optimizer.state().values()) == optimizer.bytes()


def test_a_state_of_another_model_is_refused():
    named = parameters()
    optimizer = optimizer_of(named)
    state = optimizer.state()
    with pytest.raises(BundleError, match=r"lacks 'momentum.w'"):
        optimizer.load_state({k: v for k, v in state.items() if k != "momentum.w"})
    with pytest.raises(BundleError, match=r"has 'momentum.other', which the model does not"):
        optimizer.load_state({**state, "momentum.other": torch.zeros(2, 2)})
    with pytest.raises(BundleError, match=r"'momentum.w' is \(1, 1\), the model wants \(8, 16\)"):
        optimizer.load_state({**state, "momentum.w": torch.zeros(1, 1)})
