"""What a wrong spec gets to read, word for word (tests/golden/spec: each file with its message)."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnic.errors import DiagnosticError
from omnic.spec import load_spec

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "spec"
WRONG = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".yaml", ".omnic"))


@pytest.mark.parametrize("name", WRONG)
def test_message(name: str, golden: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    with pytest.raises(DiagnosticError) as caught:
        load_spec(name)
    golden(f"spec/{name}.txt", caught.value.render() + "\n")  # type: ignore[operator]
