"""Programs saved with their weights packed as ONNX Runtime's kernels want them, which are mapped and not copied.

An ordinary program is packed on the heap when it is loaded.  With the option ``prepacked`` the compiler does that
once and keeps the result beside the program: ``forward.packed.onnx`` and its data, which hold the weights as they
were and packed, about 2.2 times the bytes on disk.  A session then maps the packed ones, page by page as they are
used.  The packing is one processor's and one version's, so both are written down and checked.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import onnxruntime as ort

from omnic.errors import BundleError, InputError
from omnic.ir.graph import Module
from omnic.ir.types import Storage
from omnic.targets.onnx.program import runtime_options

__all__ = ["ABOUT", "check_packable", "packed_program", "write_packed"]

#: what the packing belongs to
ABOUT = "packed.json"
#: tensors below this many bytes would stay inside the program; there they are read back unpacked and wrong
SMALL = 128
_FEATURES = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "asimddp", "i8mm", "sve")


def machine() -> dict[str, str]:
    """Return what the packed layout depends on."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text(encoding="utf-8").split()) if info.is_file() else set[str]()
    units = ",".join(f for f in _FEATURES if f in words)
    return {"onnxruntime": ort.__version__, "machine": platform.machine(), "units": units}


def check_packable(module: Module) -> None:
    """Check that the programs of ``module`` can be prepacked.

    Raises:
        InputError: it has experts with stored weights (measured: ONNX Runtime 1.31.1 crashes when it runs them).
    """
    for function in module.functions.values():
        for node in function.nodes:
            if node.op == "moe" and any(isinstance(v.type.element, Storage) for v in node.inputs() if v.weight):
                raise InputError(
                    f"onnx cannot prepack {node.scope or node.name}: ONNX Runtime crashes on prepacked experts (QMoE, "
                    "measured of 1.31.1)",
                    "leave out prepacked: true",
                )


def write_packed(folder: Path, function: str) -> int:
    """Write the packed program of a function beside it; return the bytes of its data.

    Raises:
        OSError: the disk refused a write.
    """
    program, data = folder / f"{function}.packed.onnx", f"{function}.packed.bin"
    options = runtime_options(1)
    options.optimized_model_filepath = str(program)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", str(SMALL))
    ort.InferenceSession(str(folder / f"{function}.onnx"), options, providers=["CPUExecutionProvider"])
    (folder / ABOUT).write_text(json.dumps(machine()), encoding="utf-8")
    return (folder / data).stat().st_size


def packed_program(folder: Path, function: str) -> Path | None:
    """Return the packed program of a function, None where the bundle has none.

    Raises:
        BundleError: it was packed on another processor or by another ONNX Runtime.
    """
    program, about = folder / f"{function}.packed.onnx", folder / ABOUT
    if not program.is_file():
        return None
    packed = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    here = machine()
    other = [f"{name} {packed.get(name)} and not {value}" for name, value in here.items() if packed.get(name) != value]
    if other:
        raise BundleError(
            f"{program}: the weights were packed for {', '.join(other)}",
            "compile here with prepacked: true, or anywhere with prepacked: false",
        )
    return program
