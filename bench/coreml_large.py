"""Core ML packages of real size, and the time of small ones: each figure against its bar.

``int4``: mobile_4gb in 4 bits (groups of 32, f16 scales; embedding and all heads too, the up-projections of latent
attention 8 bits), recipe ``gpu``.  ``fp16``: a dense model of 1.2 B parameters, recipe ``gpu``.  ``tiny``: the shipped
model, compiled and compiled again.  Peak resident memory is the high-water mark of every process, read from outside.

    python bench/coreml_large.py [--only int4|fp16|tiny]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import record, row, show
from watched import Watched, compiled

from omnic.targets.coreml.shares import shares

INT4 = "int4-packing{kind=i4, group=32, scale=f16, embedding=i4<g32>, head=i4<g32>, latent=i8}"
DENSE = """omnic: 1
model: dense_1b
vocab: {size: 32000}
context: 4k
tie: true
dtype: f16
blocks:
  - repeat: 26
    width: 2048
    attention: {kind: gqa, heads: 16, kv_heads: 4, head_dim: 128, rope: {base: 10000}}
    ffn: {kind: dense, hidden: 5632, activation: swiglu}
"""
PACKAGE = "model.mlpackage"


def size_of(folder: Path) -> int:
    """Return the bytes of all files below ``folder``."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def parity(run: Watched) -> dict[str, Any]:
    """Return the row of a compile's parity."""
    bound = f"<= {run.result['parity_bound']:.0e}" if run.result["parity_bound"] else "same tokens, KL <= 1e-3"
    return row("parity of the parts", f"{run.result['parity']:.1e}", bound, run.result["parity_ok"])


def int4(out: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Compile mobile_4gb in 4 bits."""
    run = compiled(["mobile_4gb", "--target", "coreml", "--seed", "1", "--option", "compute=gpu", "--pass", INT4,
                    "-o", str(out)])
    if run.code not in (0, 1):
        sys.exit(run.code)
    rows = [row("time", f"{run.seconds:.0f} s", "<= 600 s", run.seconds <= 600, seconds=run.seconds)]
    rows += [row(f"peak RSS, {name}", f"{peak / 1e9:.2f} GB", "<= 2.5 GB", peak <= 2.5e9, bytes=peak)
             for name, peak in run.peaks.items()]
    size = size_of(out / PACKAGE)
    rows.append(row("package", f"{size / 1e9:.4f} GB", "<= 0.8 GB", size <= 0.8e9, bytes=size))
    whole, each = shares(out / PACKAGE)
    for name, alone in each.items():
        more = whole / alone - 1
        rows.append(row(f"all functions over {name} alone", f"+{100 * more:.2f} %", "<= 1 %", more <= 0.01))
    rows.append(parity(run))
    return "coreml_int4", {"preset": "mobile_4gb", "weights": "random, seed 1", "compute": "gpu", "passes": INT4}, rows


def fp16(out: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Compile 1.2 B parameters in fp16."""
    spec = out.parent / "dense_1b.yaml"
    spec.write_text(DENSE, encoding="utf-8")
    run = compiled([str(spec), "--target", "coreml", "--seed", "1", "--option", "compute=gpu", "-o", str(out)])
    if run.code not in (0, 1):
        sys.exit(run.code)
    size = size_of(out / PACKAGE)
    rows = [row("package", f"{size / 1e9:.2f} GB", bytes=size), row("time", f"{run.seconds:.0f} s")]
    for what, name in (("writing", "compiler"), ("checking", "parity child")):
        ratio = run.peaks[name] / size
        rows.append(row(f"peak RSS of {what}", f"{run.peaks[name] / 1e9:.2f} GB, {ratio:.2f}x the package",
                        "<= 1.4x", ratio <= 1.4, bytes=run.peaks[name]))
    rows.append(parity(run))
    conditions = {"model": "26 layers of width 2048, hidden 5632, 16 heads over 4", "weights": "random, seed 1",
                  "compute": "gpu"}
    return "coreml_fp16", conditions, rows


def tiny(out: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Compile tiny, and the same again."""
    words = ["tiny", "--target", "coreml", "-o", str(out)]
    cold, cached = compiled(words), compiled(words)
    if cold.code or cached.code:
        sys.exit(cold.code or cached.code)
    rows = [row("tiny, cold", f"{cold.seconds:.1f} s", "<= 60 s", cold.seconds <= 60, seconds=cold.seconds),
            row("the same again", f"{cached.seconds:.1f} s", "<= 3 s", cached.seconds <= 3, seconds=cached.seconds)]
    return "coreml_tiny", {"preset": "tiny", "compute": "cpu"}, rows


RUNS = {"tiny": tiny, "int4": int4, "fp16": fp16}


def main() -> int:
    """Compile, watch, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=tuple(RUNS), help="one of them")
    args = parser.parse_args()
    good = True
    for name, run in RUNS.items():
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="omnic-coreml-", dir=".") as folder:
            history, conditions, rows = run(Path(folder) / "bundle")
        entry = record(history, {**conditions, "coremltools": version("coremltools")}, rows)
        print(name)
        show(entry)
        good = good and all(r["met"] is not False for r in rows)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
