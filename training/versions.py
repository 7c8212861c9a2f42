"""What a run's numbers depend on besides its request."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Return what a run's numbers depend on: interpreter, torch, tokenizers, the processor."""
    import tokenizers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
        "machine": platform.machine(),
        "processor": _processor(),
        "platform": sys.platform,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
