"""Opening a saved ML package: its table of contents, the model's protobuf, its weight files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omnic.errors import BundleError
from omnic.targets.coreml.evaluator.blobs import WeightFile
from omnic.targets.coreml.mil import proto

__all__ = ["Package"]

_REMEDY = "write the package again; a copy of it may be incomplete"


class Package:
    """An ``.mlpackage`` on disk; of its weights nothing is read.

    Args:
        path: the folder.

    Raises:
        BundleError: no such package, a damaged one, or one that holds no ML program.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model_path = _model_path(path)
        self.model: Any = proto.Model_pb2.Model()
        try:
            self.model.ParseFromString(self.model_path.read_bytes())
        except OSError as error:
            raise BundleError(f"{self.model_path}: cannot be read: {error.strerror}", _REMEDY) from None
        except proto_error() as error:
            raise BundleError(f"{self.model_path}: not a Core ML model: {error}", _REMEDY) from None
        kind = self.model.WhichOneof("Type")
        if kind != "mlProgram":
            raise BundleError(f"{path}: holds a model of kind {kind or 'none'}, not an ML program")
        self._files: dict[str, WeightFile] = {}

    def file(self, name: str) -> WeightFile:
        """Return the weight file that the program calls ``name`` (``@model_path/weights/weight.bin``)."""
        if name not in self._files:
            inside = name.removeprefix("@model_path/")
            if inside == name or ".." in Path(inside).parts:
                raise BundleError(f"{self.path}: the program reads weights from '{name}', which is not in the package")
            self._files[name] = WeightFile(self.model_path.parent / inside)
        return self._files[name]

    def close(self) -> None:
        """Close the weight files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def proto_error() -> type[Exception]:
    """Return what the protobuf package raises for bytes that are no message."""
    from google.protobuf.message import DecodeError

    return DecodeError


def _model_path(package: Path) -> Path:
    manifest = package / "Manifest.json"
    if not package.is_dir():
        raise BundleError(f"{package}: no such package", "name the folder that ends in .mlpackage")
    try:
        contents = json.loads(manifest.read_text(encoding="utf-8"))
        root = contents["itemInfoEntries"][contents["rootModelIdentifier"]]["path"]
    except OSError as error:
        raise BundleError(f"{manifest}: cannot be read: {error.strerror}", _REMEDY) from None
    except (ValueError, KeyError, TypeError):
        raise BundleError(f"{manifest}: not the table of contents of a package", _REMEDY) from None
    return package / "Data" / str(root)
