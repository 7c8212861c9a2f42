"""Planned memory follows what it is made of, and refusals name what helps."""

import pytest

from omnic.errors import InputError
from omnic.models import build
from omnic.spec import load_spec, scale
from omnic.training.config import TrainConfig
from omnic.training.memory import available_memory, plan_memory, require_memory
from omnic.training.module import build_module, parameter_counts
from omnic.training.optim import split_parameters, state_bytes


@pytest.fixture(scope="module", params=["tiny", "tiny_moe", "mobile_2gb"])
def spec(request):
    return scale(load_spec(request.param))


def test_the_counts_are_those_of_the_module_that_is_built(spec):
    matrices, rest = split_parameters(build_module(build(spec), 0).named_parameters())
    counted = parameter_counts(build(spec))
    assert counted == (sum(p.numel() for p in matrices.values()), sum(p.numel() for p in rest.values()))
    plan = plan_memory(spec, TrainConfig(), *counted)
    assert plan.optimizer == pytest.approx(state_bytes(matrices.values(), rest.values()), rel=0.01)


def test_activations_and_logits_grow_with_the_batch_and_weights_do_not(spec):
    small, large = (plan_memory(spec, TrainConfig(batch=b, distill_batch=b), 1000, 100) for b in (4, 8))
    assert large.activations == pytest.approx(2 * small.activations, rel=1e-3)
    assert large.logits == pytest.approx(2 * small.logits, rel=1e-3)
    assert (large.weights, large.gradients, large.optimizer) == (small.weights, small.gradients, small.optimizer)
    assert small.total == sum(v for k, v in small.to_dict().items() if k != "total")


def test_a_plan_that_fits_passes_and_one_that_does_not_names_the_changes():
    spec, config = load_spec("tiny"), TrainConfig(batch=64)
    plan = plan_memory(spec, config, 2_490_368, 1_051_648)
    require_memory(spec, config, plan, plan.total)
    with pytest.raises(InputError) as caught:
        require_memory(spec, config, plan, plan.total - 1_000_000_000)
    assert caught.value.message.startswith(f"training tiny needs {plan.total / 1e9:.2f} GB and ")
    batch = int(caught.value.hint.split("batch=")[1].split(" ")[0])
    sequence = int(caught.value.hint.split("sequence=")[1].split(" ")[0])
    for smaller in (TrainConfig(batch=batch), TrainConfig(batch=64, sequence=sequence)):
        assert plan_memory(spec, smaller, 2_490_368, 1_051_648).total <= plan.total - 1_000_000_000
    assert plan_memory(spec, TrainConfig(batch=batch + 1), 2_490_368, 1_051_648).total > plan.total - 1_000_000_000


def test_the_machine_has_memory():
    assert available_memory() > 10_000_000
