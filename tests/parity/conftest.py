"""Bundles of every preset's scaled copy for every backend, compiled once a test session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from omnic.api import compile as compile_model
from omnic.ir.numeric import NumericClass, find_class
from omnic.runtime.bundle import Bundle
from omnic.runtime.session import Session, SessionOptions, open_session
from omnic.spec import load_spec, scale

TOLERANCES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("tolerances.yaml").read_text())
BACKENDS = tuple(TOLERANCES)


@dataclass(frozen=True)
class Backend:
    """One way to run a model, and how far it may be off.

    Attributes:
        name: the row of ``tolerances.yaml``; its first word is the target.
        target: name of the target.
        options: what the target is compiled with; what is not here has its default.
        kind: the numeric class of its programs.
        bitwise: whether a row of a call is the same to the bit however the tokens are cut into calls.
        causality: how far an earlier logit may move when a later token changes, over the rms of the logits.
        exact: whether its logits are the reference's but for the last bits of what they are kept in.
    """

    name: str
    target: str
    options: dict[str, Any]
    kind: NumericClass
    bitwise: bool
    causality: float
    exact: bool = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the slow suite what a row of ``tolerances.yaml`` does not name among its fast presets."""
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        fast = TOLERANCES.get(str(params.get("backend")), {}).get("fast")
        if fast is not None and params.get("preset", "tiny") not in fast:  # a test of its own choice takes tiny
            item.add_marker(pytest.mark.slow)


def backend_of(name: str) -> Backend:
    """Return the backend that ``tolerances.yaml`` calls ``name``."""
    row = TOLERANCES[name]
    return Backend(
        name,
        name.split()[0],
        dict(row.get("options", {})),
        find_class(row["class"]),
        row["bitwise"],
        row["causality"],
        row.get("exact", False),
    )


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Backend], Bundle]:
    """Return a function that compiles a preset's scaled copy for a backend, once."""
    known: dict[tuple[str, str], Bundle] = {}
    folder = tmp_path_factory.mktemp("parity")

    def get(preset: str, backend: Backend) -> Bundle:
        key = (preset, backend.name)
        if key not in known:
            out = folder / f"{preset}-{backend.name.replace(' ', '-')}"
            known[key] = compile_model(
                scale(load_spec(preset)), backend.target, out, seed=11, options=backend.options, threads=1
            )
        return known[key]

    return get


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] * bool(TOLERANCES[n].get("slow"))) for n in BACKENDS])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""
    return backend_of(request.param)


@pytest.fixture
def session_of(compiled: Callable[[str, Backend], Bundle]) -> Callable[[str, Backend], Session]:
    """Return a function that opens a fresh session of a preset on a backend."""
    return lambda preset, backend: open_session(compiled(preset, backend), SessionOptions(threads=1))
