"""Which machine this is, in words."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["machine", "processor"]

_UNITS = ("amx_bf16", "amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "i8mm", "asimddp")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor and its widest vector unit that matters here."""
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    lines = cpuinfo.read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    unit = next((u for u in _UNITS if f" {u} " in f"{flags} "), "no vector unit known")
    return f"{names[0] if names else platform.machine()} ({unit})"


def machine() -> dict[str, str]:
    """Return the processor, the system and the Python that runs."""
    return {"processor": processor(), "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version()}
