"""The pool: every task once, parked workers wake, any number of calls, threads that are not given."""

from __future__ import annotations

import ctypes
import time
from collections import Counter

import pytest

from omnic.errors import InputError
from omnic.runtime.kernels.library import Library, Pool

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_runs_once(built: Library, threads: int) -> None:
    with Pool(built, threads) as pool:
        assert built.c.omnic_pool_threads(pool.address) == threads
        for tasks in (0, 1, 2, 3, 100):
            seen: list[int] = []
            built.c.omnic_pool_run(pool.address, TASK(lambda _, i: seen.append(i)), None, tasks)  # noqa: B023
            assert Counter(seen) == Counter(range(tasks))


def test_workers_that_sleep_are_woken(built: Library) -> None:
    with Pool(built, 3) as pool:
        for pause in (0.0, 0.02, 0.0, 0.02):
            time.sleep(pause)
            seen: list[int] = []
            built.c.omnic_pool_run(pool.address, TASK(lambda _, i: seen.append(i)), None, 40)  # noqa: B023
            assert sorted(seen) == list(range(40))


def test_many_small_calls(built: Library) -> None:
    with Pool(built, 4) as pool:
        count = 0

        def task(_: object, i: int) -> None:
            nonlocal count
            count += 1

        held = TASK(task)
        for _ in range(500):
            built.c.omnic_pool_run(pool.address, held, None, 3)
        assert count == 1500


def test_without_a_pool_the_caller_works_alone(built: Library) -> None:
    seen: list[int] = []
    built.c.omnic_pool_run(None, TASK(lambda _, i: seen.append(i)), None, 4)
    assert seen == [0, 1, 2, 3]
    assert built.c.omnic_pool_threads(None) == 1


def test_a_pool_has_a_thread(built: Library) -> None:
    with pytest.raises(InputError, match="a pool has at least 1 thread, not 0"):
        Pool(built, 0)


def test_closing_twice_is_quiet(built: Library) -> None:
    pool = Pool(built, 2)
    pool.close()
    pool.close()
