"""The kernel library of this machine, level by level."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from omnic.runtime.kernels.library import Kernels, Library, Pool, library


@pytest.fixture(scope="session")
def built() -> Library:
    """The release library, built at most once."""
    return library()


@pytest.fixture(params=["generic", "best"])
def kernels(built: Library, request: pytest.FixtureRequest) -> Kernels:
    """The functions of generic C, and of this machine's best level, on the calling thread."""
    return built.kernels(None if request.param == "best" else request.param)


@pytest.fixture
def pooled(built: Library) -> Iterator[Kernels]:
    """The functions of the best level on three threads."""
    with Pool(built, 3) as pool:
        yield built.kernels(pool=pool)
