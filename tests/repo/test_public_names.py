"""The public names of `omnic` resolve, and their tables agree with each other."""

from __future__ import annotations

import pytest

import omnic


@pytest.mark.parametrize("name", sorted(omnic.__all__))
def test_public_name_resolves(name: str) -> None:
    assert getattr(omnic, name) is not None
    assert name in dir(omnic)


def test_every_lazy_name_is_public() -> None:
    assert {*omnic._HOME, "__version__"} == set(omnic.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'omnic' has no attribute 'nothing'"):
        omnic.nothing  # noqa: B018
