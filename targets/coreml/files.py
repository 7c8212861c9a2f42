"""What the files of a bundle and of a package are called."""

from __future__ import annotations

from pathlib import Path

__all__ = ["KIND", "MODEL", "NAMES_FILE", "PACKAGE", "WEIGHTS"]

KIND = "coreml"
PACKAGE, NAMES_FILE = "model.mlpackage", "coreml.json"
_DATA = Path("Data") / "com.apple.CoreML"
#: inside a package
MODEL, WEIGHTS = _DATA / "model.mlmodel", _DATA / "weights" / "weight.bin"
