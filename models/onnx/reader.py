"""Opening an ONNX file: one clear error for each way in which it can be broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnic.errors import BundleError, InputError, MissingExtraError

__all__ = ["open_model"]

#: protobuf reads no message of 2 GiB or more
PROTOBUF_LIMIT = 2**31


def open_model(path: Path | str) -> Any:
    """Return the ``onnx_ir.Model`` of a file; weights are mapped, not read.

    Raises:
        InputError: no such file, or it is not an ONNX model.
        BundleError: the file or its external data is missing, cut off, or beyond what protobuf can read.
        MissingExtraError: the packages of the extra ``onnx`` are not installed.
    """
    file = Path(path)
    if file.is_dir():
        found = sorted(p.name for p in file.glob("*.onnx"))
        raise InputError(f"{file} is a folder", f"name the file: {', '.join(found[:4])}" if found else None)
    if not file.is_file():
        raise InputError(f"{file} does not exist")
    size = file.stat().st_size
    if size >= PROTOBUF_LIMIT:
        raise BundleError(f"{file} is {size / 2**30:.1f} GiB in one protobuf, which cannot hold 2 GiB or more",
                          "save it with its weights as external data: onnx.save(model, path, "
                          "save_as_external_data=True)")
    if size == 0:
        raise BundleError(f"{file} is empty")
    try:
        import google.protobuf.message as protobuf
        import onnx
        import onnx_ir
    except ImportError:
        raise MissingExtraError("the package onnx", "onnx") from None
    with file.open("rb") as stream:
        head = stream.read(16)
    if not _looks_like_onnx(head):
        raise InputError(f"{file} is not an ONNX model", _guess(head))
    try:
        proto = onnx.load(str(file), format="protobuf", load_external_data=False)
    except (protobuf.DecodeError, RuntimeError) as error:
        raise BundleError(f"{file} is damaged or cut off after {size} bytes: {_first_line(error)}",
                          "fetch or export the file again") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    if not proto.graph.node or not proto.opset_import:
        raise BundleError(f"{file} holds no ONNX graph: it is damaged or cut off", "fetch or export the file again")
    try:
        model = onnx_ir.serde.deserialize_model(proto)
    except (onnx_ir.serde.SerdeError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file} is damaged: {_first_line(error)}", "fetch or export the file again") from None
    _check_names(model, file)
    _check_external(model, file)
    return model


def _check_names(model: Any, file: Path) -> None:
    """Refuse names that are not text, and values without a type that has a shape."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    values += [v for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None]
    if not all(isinstance(v.name, str) for v in values):
        raise BundleError(f"{file} is damaged: a name is not text", "fetch or export the file again")


def _looks_like_onnx(head: bytes) -> bool:
    """A ModelProto starts with one of its fields: ir_version (varint) or a string or message of a low number."""
    return bool(head) and head[0] in (0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def _guess(head: bytes) -> str | None:
    if head.startswith(b"PK"):
        return "it is a zip archive, such as a PyTorch checkpoint: export the model with torch.onnx"
    if head.startswith(b"GGUF"):
        return "it is a GGUF file"
    if b"git-lfs" in head or head.startswith(b"version https"):
        return "it is a Git LFS pointer: fetch the file itself"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _check_external(model: Any, file: Path) -> None:
    """Find every external tensor and check that its bytes are there, without reading them."""
    import onnx_ir

    folder = file.parent.resolve()
    wrong: list[str] = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, onnx_ir.ExternalTensor):
            continue
        tensor.base_dir = str(folder)
        problem = _external_problem(tensor, folder)
        if problem:
            wrong.append(f"'{value.name}' {problem}")
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise BundleError(f"{file}: the external data of {len(wrong)} weights is broken: {'; '.join(wrong[:4])}{more}",
                          "the data files belong beside the .onnx file: fetch or export all of them again")


def _external_problem(tensor: Any, folder: Path) -> str | None:
    location = str(tensor.location)
    path = (folder / location).resolve()
    if not path.is_relative_to(folder):
        return f"lies outside the model's folder ({location})"
    if not path.is_file():
        return f"is in {location}, which does not exist"
    begin = int(tensor.offset or 0)
    need = int(tensor.nbytes)
    length = need if tensor.length is None else int(tensor.length)
    if length != need:
        return f"needs {need} bytes, the file gives it {length}"
    if begin < 0 or begin + need > path.stat().st_size:
        return f"ends at byte {begin + need} of {location}, which has {path.stat().st_size}"
    return None
