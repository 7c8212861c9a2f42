"""llama.cpp's formats of the same weights: its own quantiser, a GGUF file, and the numbers it decodes to.

Every tensor is quantised by ``ggml_quantize_chunk`` (the function that ``llama-quantize`` calls) in rows of 256 along
the contraction dim (tensors of shorter rows are laid out as rows of 256, which divides all of them), written to a GGUF
file, and read back and dequantised by the ``gguf`` package. No importance matrix is used unless one is given.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from omnic.errors import InputError, MissingExtraError

#: the formats by name, from fine to coarse
FORMATS = ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "Q3_K", "Q2_K")
ROW = 256

Floats = NDArray[np.float32]


@functools.cache
def library(path: Path | None = None) -> ctypes.CDLL:
    """Return ``libggml-base``: the one at ``path``, or the one that llama-cpp-python brings.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        InputError: there is no such library.
    """
    if path is None:
        import importlib.util

        found = importlib.util.find_spec("llama_cpp")
        if found is None or found.origin is None:
            raise MissingExtraError("llama-cpp-python", "bench")
        names = sorted((Path(found.origin).parent / "lib").glob("*ggml-base*"))
        if not names:
            raise InputError("the installed llama-cpp-python has no ggml-base library", "give one by --ggml FILE")
        path = names[0]
    if not path.is_file():
        raise InputError(f"there is no library {path}")
    loaded = ctypes.CDLL(str(path))
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    return loaded


def ggml_version(path: Path | None = None) -> str:
    """Return the version of the library that quantises."""
    version = library(path).ggml_version
    version.restype = ctypes.c_char_p
    return version().decode()


def quantise(
    numbers: Floats, form: str, ggml: Path | None = None, importance: Floats | None = None
) -> NDArray[np.uint8]:
    """Return ``numbers`` as the bytes of ``form``, u8 [rows of 256, bytes of a row].

    Args:
        numbers: any shape whose size is a multiple of 256; consecutive numbers of the last dim share blocks.
        form: one of :data:`FORMATS`.
        ggml: the library; llama-cpp-python's when None.
        importance: f32 [256 or columns], the weight of each column's squared error (an importance matrix row).

    Raises:
        InputError: the size is not a multiple of 256.
    """
    if numbers.size % ROW:
        raise InputError(f"{numbers.size} numbers are not rows of {ROW}")
    kind = gguf.GGMLQuantizationType[form]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    row_bytes = ROW // block * size
    source = np.ascontiguousarray(numbers, np.float32).reshape(-1, ROW)
    out = np.zeros((len(source), row_bytes), np.uint8)
    weight = None if importance is None else np.ascontiguousarray(importance, np.float32)
    written = library(ggml).ggml_quantize_chunk(
        int(kind), source.ctypes.data, out.ctypes.data, 0, len(source), ROW,
        None if weight is None else weight.ctypes.data,
    )  # fmt: skip
    if written != out.nbytes:
        raise InputError(f"llama.cpp wrote {written} bytes of {form}, {out.nbytes} were expected")
    return out


def write_gguf(path: Path, name: str, tensors: Mapping[str, tuple[NDArray[np.uint8], str]]) -> None:
    """Write quantised tensors (bytes and format by name) to a GGUF file."""
    writer = gguf.GGUFWriter(path, name)
    for tensor, (data, form) in tensors.items():
        writer.add_tensor(tensor, data, raw_dtype=gguf.GGMLQuantizationType[form])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path) -> dict[str, tuple[Floats, int]]:
    """Return the numbers [rows, 256] that a GGUF file's tensors decode to, and their bytes, by name."""
    found: dict[str, tuple[Floats, int]] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        numbers = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        found[tensor.name] = (np.ascontiguousarray(numbers, np.float32), int(tensor.n_bytes))
    return found


def through_gguf(
    weights: Mapping[str, Floats], forms: Mapping[str, str], path: Path, ggml: Path | None = None
) -> dict[str, tuple[Floats, int]]:
    """Return weights as llama.cpp stores them: (decoded numbers of the same shape, bytes) by name.

    Args:
        weights: numbers by name.
        forms: the format of each.
        path: the GGUF file that is written on the way.
        ggml: the library; llama-cpp-python's when None.
    """
    write_gguf(path, "omnic", {n: (quantise(weights[n], forms[n], ggml), forms[n]) for n in weights})
    return {n: (a.reshape(weights[n].shape), size) for n, (a, size) in read_gguf(path).items()}
