"""What the files of a bundle and of a package are called."""

from __future__ import annotations

from pathlib import Path

__all__ = ["KIND", "MODEL", "NAMES_FILE", "PACKAGE", "WEIGHTS", "package_names"]

KIND = "coreml"
PACKAGE, NAMES_FILE = "model.mlpackage", "coreml.json"
_DATA = Path("Data") / "com.apple.CoreML"
#: inside a package
MODEL, WEIGHTS = _DATA / "model.mlmodel", _DATA / "weights" / "weight.bin"


def package_names(count: int) -> tuple[str, ...]:
    """Return the names of a bundle's packages, in order."""
    if count == 1:
        return (PACKAGE,)
    stem = PACKAGE.removesuffix(".mlpackage")
    return tuple(f"{stem}_{i}.mlpackage" for i in range(1, count + 1))
