"""A model larger than memory: ``omnic compile mobile_4gb --target onnx --seed 1``, timed and watched.

Peak resident memory is read of every process of the compile twice a second, from outside.  With ``--int4`` the
weights take 4 bits in groups of 64 (embedding and all heads too, the up-projections of latent attention 8 bits).

    python bench/large.py [--preset mobile_4gb] [--int4] [--keep]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import record, row, show

RSS_BAR, TIME_BAR, WEIGHTS_BAR = 2.5e9, 480.0, 0.8e9
INT4 = "int4-packing{kind=i4, group=64, embedding=i4<g64>, head=i4<g64>, latent=i8}"


def main() -> int:
    """Compile, watch, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mobile_4gb")
    parser.add_argument("--int4", action="store_true", help=f"--pass {INT4}")
    parser.add_argument("--keep", action="store_true", help="keep the bundle in build/")
    args = parser.parse_args()
    place = tempfile.mkdtemp(prefix="omnic-large-", dir=".")
    out = Path("build") / f"{args.preset}-onnx" if args.keep else Path(place) / "bundle"
    command = [
        sys.executable,
        "-m",
        "omnic",
        "compile",
        args.preset,
        "--target",
        "onnx",
        "--seed",
        "1",
        "-o",
        str(out),
        "--json",
        *(["--pass", INT4] if args.int4 else []),
    ]
    peaks: dict[int, tuple[str, float]] = {}
    began = time.monotonic()
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        root = psutil.Process(child.pid)
        while child.poll() is None:
            for process in [root, *root.children(recursive=True)]:
                try:
                    name = "compiler" if process.pid == root.pid else "parity child"
                    rss = float(process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
                peaks[process.pid] = (name, max(rss, peaks.get(process.pid, ("", 0.0))[1]))
            time.sleep(0.5)
        seconds = time.monotonic() - began
        assert child.stdout is not None
        result = json.loads(child.stdout.read())
        weights = sum(file.stat().st_size for file in out.glob("*.bin")) if out.is_dir() else 0
    finally:
        shutil.rmtree(place)
    if child.returncode not in (0, 1):
        return child.returncode
    rows = [row("time", f"{seconds:.0f} s", f"<= {TIME_BAR:.0f} s", seconds <= TIME_BAR, seconds=seconds)]
    for name in ("compiler", "parity child"):
        peak = max((rss for kind, rss in peaks.values() if kind == name), default=0.0)
        rows.append(row(f"peak RSS, {name}", f"{peak / 1e9:.2f} GB", "<= 2.5 GB", peak <= RSS_BAR, bytes=peak))
    bound = f"<= {result['parity_bound']:.0e}" if result["parity_bound"] else "same tokens, KL <= 1e-3"
    rows.append(row("parity of the parts", f"{result['parity']:.1e}", bound, result["parity_ok"]))
    if args.int4:
        rows.append(row("weights", f"{weights / 1e9:.3f} GB", "<= 0.8 GB", 0 < weights <= WEIGHTS_BAR, bytes=weights))
    rows.append(row("bundle", f"{result['bytes'] / 1e9:.2f} GB"))
    conditions = {"preset": args.preset, "weights": "random, seed 1", **({"passes": INT4} if args.int4 else {})}
    entry = record("large_int4" if args.int4 else "large", conditions, rows)
    show(entry)
    return 0 if all(r["met"] is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
