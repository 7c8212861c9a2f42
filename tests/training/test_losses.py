"""The parts of the loss, and the distillation that leaves the trunk alone."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from omnic.errors import InputError
from omnic.training.config import TrainConfig
from omnic.training.distill import DistillLoss, freeze_trunk
from omnic.training.losses import (
    Experts,
    TrainingLoss,
    balance_loss,
    expert_load,
    importance_loss,
    update_select_bias,
    z_loss,
)
from omnic.training.optim import Optimizer
from tests.training.modules import Counting, Tiny


def batch(rows=4, length=9, size=40, seed=0):
    return torch.randint(size, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_the_block_is_weighed_and_takes_a_share_of_the_rows():
    model, tokens = Tiny(), batch()
    total, main, _ = TrainingLoss(model, TrainConfig(mtp_weight=0.5, mtp_share=0.5))(tokens)
    out = model(tokens[:, :-1])
    assert main.item() == pytest.approx(F.cross_entropy(out["logits"].flatten(0, 1), tokens[:, 1:].flatten()).item())
    drafted, _ = model.mtp_forward(out["hidden"][:2, :-1], tokens[:2, 1:-1])
    block = F.cross_entropy(drafted.flatten(0, 1), tokens[:2, 2:].flatten())
    assert total.item() == pytest.approx((main + 0.5 * block).item())


def test_without_its_weight_the_block_is_not_trained():
    model = Tiny()
    total, main, _ = TrainingLoss(model, TrainConfig(mtp_weight=0.0))(batch())
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
    total, main, _ = TrainingLoss(Heads(40, 0), config)(tokens)
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
        logits = torch.randn(1, 256, 8, generator=generator) + skew + bias
        update_select_bias(bias, expert_load(logits.topk(2, -1).indices, 8), rate=2e-3)
    assert worst(bias) < 0.3 * before


class Routed(Tiny):
    """Chooses the two best of four experts, or, with ``chosen``, always the same ones with the same gates."""

    def __init__(self, chosen=None):
        super().__init__()
        self.chosen = chosen

    def forward(self, tokens):
        out = super().forward(tokens)
        logits = out["logits"][..., :4]
        indices = logits.topk(2, -1).indices
        if self.chosen is not None:
            indices = torch.tensor(self.chosen).expand_as(indices)
        gates = logits.gather(-1, indices).softmax(-1)
        return {**out, "router_logits": [logits], "router_indices": [indices], "router_gates": [gates]}


PLAIN = TrainConfig(mtp_weight=0.0, balance_weight=0.0)


def test_routers_with_a_bias_are_balanced_by_it_alone():
    model = Routed([1, 3])
    config = TrainConfig(mtp_weight=0.0)
    biased = Experts(4, 2, "blocks.0.ffn.select_bias", by_logits=False)
    total, main, loads = TrainingLoss(model, config, [biased])(batch())
    assert total is main
    assert [load.tolist() for load in loads] == [[0, 32, 0, 32]]
    total, main, loads = TrainingLoss(model, config, [Experts(4, 2)])(batch())
    assert total > main
    assert loads == []


def test_the_load_is_of_the_experts_really_chosen():
    """Groups, or an expert left out, choose others than the top-k of the logits."""
    logits = Routed()(batch()[:, :-1])["router_logits"][0]
    always = torch.tensor([0, 1]).expand(*logits.shape[:-1], 2)
    wanted = 4 * (torch.tensor([0.5, 0.5, 0, 0]) * logits.softmax(-1).mean((0, 1))).sum()
    assert torch.isclose(balance_loss(logits, 2, always), wanted)
    config = TrainConfig(mtp_weight=0.0, balance_weight=1.0)
    total, main, _ = TrainingLoss(Routed([0, 1]), config, [Experts(4, 2, by_logits=False)])(batch())
    assert (total - main).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_importance_is_the_squared_variation_of_the_summed_gates():
    gates = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    indices = torch.tensor([[[0, 1], [2, 3]]])
    summed = torch.tensor([0.5, 0.5, 1.0, 0.0])
    assert importance_loss(gates, indices, 4).item() == pytest.approx((summed.std(correction=0) / 0.5).item() ** 2)
    assert importance_loss(torch.full((1, 4, 1), 0.7), torch.arange(4)[None, :, None], 4).item() == pytest.approx(0.0)
    total, main, _ = TrainingLoss(Routed([0, 2]), dataclasses.replace(PLAIN, importance_weight=2.0), [Experts(4, 2)])(
        batch()
    )
    gates = Routed([0, 2])(batch()[:, :-1])["router_gates"][0]
    both = torch.stack([gates[..., 0].sum(), gates[..., 1].sum(), torch.zeros(()), torch.zeros(())])
    wanted = 2.0 * both.var(correction=0) / both.mean().square()
    assert (total - main).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_z_loss_is_the_mean_square_of_the_log_sum():
    assert z_loss(torch.zeros(2, 3, 4)).item() == pytest.approx(math.log(4) ** 2)
    total, main, _ = TrainingLoss(Routed(), dataclasses.replace(PLAIN, z_weight=0.5), [Experts(4, 2)])(batch())
    logits = Routed()(batch()[:, :-1])["router_logits"][0]
    assert (total - main).item() == pytest.approx(0.5 * logits.logsumexp(-1).square().mean().item(), rel=1e-4)


def test_weights_that_are_no_numbers_from_0_on_are_refused():
    for name in ("importance_weight", "z_weight", "balance_weight"):
        with pytest.raises(InputError, match=rf"{name} must be a number from 0 on, not -1"):
            TrainConfig(**{name: -1.0})
        with pytest.raises(InputError, match=rf"{name} must be a number from 0 on, not nan"):
            TrainConfig(**{name: math.nan})


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
