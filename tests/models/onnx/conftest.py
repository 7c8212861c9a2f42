"""The folder that keeps exported decoders between runs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def exports_folder(request: pytest.FixtureRequest) -> Path:
    """Return the folder of pytest's cache in which exports are kept."""
    cache = request.config.cache
    assert cache is not None
    return Path(cache.mkdir("onnx_exports"))
