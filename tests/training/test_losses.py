"""The parts of the loss, and the distillation that leaves the trunk alone."""

import math

import pytest
import torch
from torch.nn import functional as F

from omnic.training.config import TrainConfig
from omnic.training.distill import DistillLoss, freeze_trunk
from omnic.training.losses import Experts, TrainingLoss, balance_loss, update_select_bias
from omnic.training.optim import Optimizer
from tests.training.modules import Counting, Tiny


def batch(rows=4, length=9, size=40, seed=0):
    return torch.randint(size, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_the_block_is_weighed_and_takes_a_share_of_the_rows():
    model, tokens = Tiny(), batch()
    total, main, _ = TrainingLoss(model, TrainConfig(mtp_weight=0.5, mtp_share=0.5), None)(tokens)
    out = model(tokens[:, :-1])
    assert main.item() == pytest.approx(F.cross_entropy(out["logits"].flatten(0, 1), tokens[:, 1:].flatten()).item())
    drafted, _ = model.mtp_forward(out["hidden"][:2, :-1], tokens[:2, 1:-1])
    block = F.cross_entropy(drafted.flatten(0, 1), tokens[:2, 2:].flatten())
    assert total.item() == pytest.approx((main + 0.5 * block).item())


def test_without_its_weight_the_block_is_not_trained():
    model = Tiny()
    total, main, _ = TrainingLoss(model, TrainConfig(mtp_weight=0.0), None)(batch())
    assert total is main
    total.backward()
    assert model.mtp["proj"].grad is None


def test_linear_heads_and_the_verifier_have_the_targets_they_are_named_for():
    class Heads(Counting):
        def forward(self, tokens):
            out = super().forward(tokens)
            ahead = [super(Heads, self).forward(tokens + 1 + j)["logits"] for j in range(2)]
            return {**out, "mtp": torch.stack(ahead, 2), "verifier": out["logits"] * 0}

    tokens = (torch.arange(9)[None] + torch.arange(3)[:, None]) % 40
    config = TrainConfig(mtp_weight=0.0, linear_mtp_weight=1.0, verifier_weight=0.25)
    total, main, _ = TrainingLoss(Heads(40, 0), config, None)(tokens)
    assert main.item() == pytest.approx(0.0, abs=1e-6)
    # The heads are right about the tokens after the next; the verifier knows nothing: log 40 nats off.
    assert total.item() == pytest.approx(0.25 * math.log(40), rel=1e-4)


def test_an_even_load_costs_one_and_a_skewed_one_more():
    even = torch.eye(4).repeat(8, 1)[None] * 1e-3
    assert balance_loss(even, 1).item() == pytest.approx(1.0, rel=1e-3)
    skewed = torch.tensor([5.0, 0, 0, 0]).repeat(1, 32, 1)
    assert balance_loss(skewed, 1).item() > 3.5


def test_the_selection_bias_evens_the_load():
    generator = torch.Generator().manual_seed(0)
    skew = torch.randn(8, generator=generator)
    bias = torch.zeros(8)

    def worst(bias):
        logits = torch.randn(1, 4096, 8, generator=torch.Generator().manual_seed(9)) + skew
        load = torch.bincount((logits + bias).topk(2, -1).indices.flatten(), minlength=8).float()
        return (load.max() / load.mean() - 1).item()

    before = worst(bias)
    for _ in range(1500):
        update_select_bias(bias, torch.randn(1, 256, 8, generator=generator) + skew, 2, rate=2e-3)
    assert worst(bias) < 0.3 * before


def test_routers_with_a_bias_are_balanced_by_it_alone():
    class Routed(Tiny):
        def forward(self, tokens):
            out = super().forward(tokens)
            return {**out, "router_logits": [out["logits"][..., :4]]}

    model = Routed()
    total, main, routers = TrainingLoss(model, TrainConfig(mtp_weight=0.0), Experts(4, 2, select_bias=True))(batch())
    assert total is main
    assert [tuple(r.shape) for r in routers] == [(4, 8, 4)]
    total, main, routers = TrainingLoss(model, TrainConfig(mtp_weight=0.0), Experts(4, 2))(batch())
    assert total > main
    assert routers == []


def test_the_trunk_does_not_move_and_the_drafts_get_better():
    model = Tiny()
    trained = freeze_trunk(model)
    assert trained == ["mtp.proj"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = DistillLoss(model, unroll=3)
    optimizer = Optimizer(model.named_parameters(), TrainConfig(), 0.02, 0.02)
    values = []
    for step in range(30):
        total, _first, _ = loss(batch(seed=step % 3))
        values.append(total.item())
        total.backward()
        optimizer.step(1.0)
    assert values[-1] < values[0]
    assert {name for name, p in model.named_parameters() if not torch.equal(before[name], p)} == {"mtp.proj"}


def test_draft_k_learns_what_the_trunk_says_k_tokens_later():
    """A block that is right for every unrolled draft has the entropy of a sure teacher: none."""
    tokens = (torch.arange(12)[None] + torch.arange(3)[:, None]) % 40
    total, first, _ = DistillLoss(Counting(40, 3), 3)(tokens)
    assert total.item() == pytest.approx(0.0, abs=1e-5)
    total, first, _ = DistillLoss(Counting(40, 2), 3)(tokens)
    assert first.item() == pytest.approx(0.0, abs=1e-5)
    assert total.item() > 1.0
