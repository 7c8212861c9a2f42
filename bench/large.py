"""A model larger than memory: ``omnic compile mobile_4gb --target onnx --seed 1``, timed and watched.

Peak resident memory is the high-water mark of every process of the compile, read from outside.  With ``--int4`` the
weights take 4 bits in groups of 64 (embedding and all heads too, the up-projections of latent attention 8 bits).

    python bench/large.py [--preset mobile_4gb] [--int4] [--keep]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from common import record, row, show
from watched import compiled

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
    try:
        run = compiled([
            args.preset, "--target", "onnx", "--seed", "1", "-o", str(out), *(["--pass", INT4] if args.int4 else []),
        ])
        weights = sum(file.stat().st_size for file in out.glob("*.bin")) if out.is_dir() else 0
    finally:
        shutil.rmtree(place)
    seconds, result = run.seconds, run.result
    if run.code not in (0, 1):
        return run.code
    rows = [row("time", f"{seconds:.0f} s", f"<= {TIME_BAR:.0f} s", seconds <= TIME_BAR, seconds=seconds)]
    for name, peak in run.peaks.items():
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
