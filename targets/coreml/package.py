"""Writing an ML package: the model's description, its program, and the weight file that all functions share."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from omnic.errors import BundleError
from omnic.targets.coreml.build import Built
from omnic.targets.coreml.evaluator.blobs import WeightFile
from omnic.targets.coreml.files import MODEL, WEIGHTS
from omnic.targets.coreml.mil import BlobWriter, CoreMLProtoExporter, MILProtoExporter, Program
from omnic.targets.coreml.stored import WeightTable

__all__ = ["write_package"]

_SPECIFICATION = 9  # of iOS 18


class _Exporter(MILProtoExporter):
    """Writes constants from the weight table: each once, when it is first met."""

    def __init__(self, program: Any, folder: Path, table: WeightTable, progress: Callable[[str, float], None]) -> None:
        super().__init__(program, str(folder), _SPECIFICATION)
        self._table, self._progress = table, progress
        self.offsets: dict[str, int] = {}

    def create_file_value(self, var: Any) -> Any:
        """Return the reference into the file."""
        from coremltools.converters.mil.backend.mil import helper

        key = var.op.weight_id
        if key is None or key not in self._table.blobs:
            return super().create_file_value(var)
        if key not in self.weight_id_to_file_value:
            self._progress("weights", len(self.offsets) / max(len(self._table.blobs), 1))
            path = self.get_weight_path(var.op)
            try:
                self.offsets[key] = self._table.write(key, self.get_blob_writer(path))
            except RuntimeError as error:
                if "FileWriter" not in str(error):
                    raise
                raise _disk_error(Path(path)) from error
            primitive = helper.types_to_proto_primitive(var.sym_type.get_primitive())
            self.weight_id_to_file_value[key] = helper.create_file_value_tensor(
                "@model_path/weights/weight.bin", self.offsets[key], var.shape, primitive)
        return self.weight_id_to_file_value[key]


def write_package(
    package: Path,
    functions: Sequence[Built],
    table: WeightTable,
    metadata: Mapping[str, str],
    describe: Callable[[Any], None],
    progress: Callable[[str, float], None],
) -> dict[str, int]:
    """Write ``package`` and return the offset of each tensor of the table in its weight file.

    Args:
        package: the folder ``*.mlpackage``; it does not exist.
        functions: its functions, the first one the default.
        table: the weights they read.
        metadata: user-defined entries of the model's description.
        describe: told of the description, to fill in texts.
        progress: told how many weights are written.
    """
    program = Program()
    for built in functions:
        program.add_function(built.stage.name, built.mil)
    program.default_function_name = functions[0].stage.name
    program.export_as_multifunction = True
    # The builder's own rule that every operation names its source is for programs that a front end translates.
    program.skip_all_passes = True
    folder = package / WEIGHTS.parent
    folder.mkdir(parents=True)
    exporter = _Exporter(program, folder, table, progress)
    proto = exporter.export()
    for writer in list(exporter.blob_writers):
        del exporter.blob_writers[writer]  # closes the file
    _check_written(package / WEIGHTS, exporter.offsets.values())
    described = CoreMLProtoExporter(
        program, proto, "", "", classifier_config=None, convert_to="mlprogram", convert_from="milinternal",
        specification_version=_SPECIFICATION,
    )
    model = described.export(_SPECIFICATION)
    describe(model.description)
    for key, value in metadata.items():
        model.description.metadata.userDefined[key] = value
    (package / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    if not (package / WEIGHTS).exists():
        BlobWriter(str(package / WEIGHTS))
    (package / "Manifest.json").write_text(json.dumps(_manifest(package.stem), indent=4) + "\n", encoding="utf-8")
    return exporter.offsets


def _check_written(file: Path, offsets: Iterable[int]) -> None:
    """Read the place of every tensor again: the end of a file that did not fit is lost without a word."""
    try:
        if file.exists():
            with closing(WeightFile(file)) as written:
                for offset in offsets:
                    written.entry(offset)
    except BundleError as error:
        raise _disk_error(file) from error


def _disk_error(file: Path) -> OSError:
    """Return why a file could not be written, which coremltools does not say: writing more of it does."""
    try:
        with open(file, "ab") as more:
            more.write(bytes(1 << 20))
    except OSError as error:
        return error
    return OSError(errno.EIO, os.strerror(errno.EIO), str(file))


def _manifest(name: str) -> dict[str, Any]:
    """Return the package's table of contents; its ids depend on nothing but the names."""
    ids = (uuid.uuid5(uuid.NAMESPACE_URL, f"omnic:{name}:{part}") for part in ("model", "weights"))
    model, weights = (str(found).upper() for found in ids)
    author = "com.apple.CoreML"
    return {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            model: {"author": author, "description": "CoreML Model Specification", "name": "model.mlmodel",
                    "path": "com.apple.CoreML/model.mlmodel"},
            weights: {"author": author, "description": "CoreML Model Weights", "name": "weights",
                      "path": "com.apple.CoreML/weights"},
        },
        "rootModelIdentifier": model,
    }
