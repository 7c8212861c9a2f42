"""The learning rate is a function of the step, and the end may move only while nothing is lost."""

import itertools

import pytest

from omnic.errors import InputError
from omnic.training.schedule import Schedule


def test_rise_plateau_fall():
    schedule = Schedule(steps=100, warmup=10, decay_start=60)
    scales = [schedule.scale(i) for i in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[9:60] == [1.0] * 51
    assert scales[60] == 1.0
    assert scales[99] == pytest.approx(1 / 40)
    assert all(a > b for a, b in itertools.pairwise(scales[60:]))


def test_lowering_leaves_every_made_step_as_it_was():
    schedule = Schedule.of(1000, 40, 0.4)
    lowered = schedule.lowered(800)
    assert lowered.steps == 800
    assert [lowered.scale(i) for i in range(601)] == [schedule.scale(i) for i in range(601)]
    assert lowered.scale(799) == pytest.approx(1 / 200)


def test_lowering_never_raises_and_keeps_one_step_of_decay():
    schedule = Schedule.of(1000, 40, 0.4)
    assert schedule.lowered(5000) == schedule
    assert schedule.lowered(3).steps == schedule.decay_start + 1


def test_a_short_run_has_a_short_warm_up():
    assert Schedule.of(20, 40, 0.5).warmup == 2


def test_impossible_schedules_are_refused():
    with pytest.raises(InputError, match="at least one step, not 0"):
        Schedule.of(0, 10, 0.5)
    with pytest.raises(InputError, match="starts at step 30, outside the run of 20 steps"):
        Schedule(20, 1, 30)
