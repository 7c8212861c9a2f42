"""How long ``omnic compile tiny --target executorch`` takes: from nothing, the same again, and into another folder.

The first has an empty cache of lowered programs; the last finds its program there, and measures parity anew.

    python bench/executorch_tiny.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from common import record, row, show
from watched import compiled

from omnic.runtime.bundle import open_bundle


def main() -> int:
    """Compile three times, record."""
    with tempfile.TemporaryDirectory(prefix="omnic-executorch-", dir=".") as name:
        folder = Path(name).absolute()
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        words = ["tiny", "--target", "executorch", "-o"]
        cold, again, other = (compiled([*words, str(folder / out)]) for out in ("one", "one", "two"))
        if cold.code or again.code or other.code:
            return cold.code or again.code or other.code
        parity = open_bundle(folder / "two").parity
    assert parity is not None
    rows = [
        row("tiny, cold", f"{cold.seconds:.1f} s", "<= 60 s", cold.seconds <= 60, seconds=cold.seconds),
        row("the same again", f"{again.seconds:.1f} s", "<= 3 s", again.seconds <= 3, seconds=again.seconds),
        row("lowered before, into another folder", f"{other.seconds:.1f} s", seconds=other.seconds),
        row("parity", f"{parity['ratio']:.1e}", f"<= {parity['bound']:.0e}", parity["ok"]),
    ]
    versions = {name: version(name) for name in ("executorch", "torch")}
    show(record("executorch_tiny", {"preset": "tiny", "delegate": "xnnpack", **versions}, rows))
    return int(not all(r["met"] is not False for r in rows))


if __name__ == "__main__":
    sys.exit(main())
