"""Measures every row, prints tables and bars, records them, and draws the pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.common import record, row, show
from bench.compression.bars import Measured, judge
from bench.compression.kv_bars import judge_states
from bench.compression.llama_cpp import ggml_version
from bench.compression.measure import Bench
from bench.compression.pages import write_pages
from bench.compression.rows import MODELS, rows_of
from bench.compression.scoring import LENGTH, STRIDE, Subject
from omnic.errors import OmnicError


def main() -> int:
    """Measure what was not measured before; return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.compression", description=__doc__)
    parser.add_argument("--model", choices=MODELS, action="append", help="only this model; may be repeated")
    parser.add_argument("--only", default="", metavar="WORD", help="rows whose family or name contains a word")
    parser.add_argument("--what", choices=("all", "weights", "states"), default="all", help="only these rows")
    parser.add_argument("--check", action="store_true", help="torch against the reference on 16 windows")
    parser.add_argument("--last", action="store_true", help="measure nothing: what was last measured of these weights")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="another checkpoint of the one --model")
    parser.add_argument("--ggml", type=Path, metavar="FILE", help="libggml-base; llama-cpp-python's when left out")
    args = parser.parse_args()
    if args.weights and len(args.model or MODELS) != 1:
        parser.error("--weights FILE is of one --model")
    found: dict[str, dict[str, Measured]] = {}
    checkpoints: dict[str, str] = {}
    for name in args.model or MODELS:
        subject = Subject(name, args.weights)
        checkpoints[name] = subject.sha256[:12]
        bench = Bench(subject, args.ggml)
        rows = rows_of(name, args.only, args.what)
        if args.check:
            for what, torch, reference in bench.check(r for r in rows if r.weights):
                print(f"{name} {what}: KL {torch:.6f} by torch, {reference:.6f} by the reference", flush=True)
            continue
        print(f"\n{name}, checkpoint {subject.sha256[:12]}", flush=True)
        print(f"{'row':28}{'weights':>11}{'bits':>7}{'KV/token':>10}{'bpb %':>18}{'KL':>22}{'top-1':>8}{'CPU s':>7}")
        for each in rows:
            if args.last:
                last = bench.last(each)
                if last is None:
                    print(f"{each.name:28} not measured yet", flush=True)
                    continue
                measured, kept, seconds = last, True, 0.0
            else:
                measured, kept, seconds = bench.measure(each)
            found.setdefault(name, {})[each.name] = measured
            print(_line(measured, kept, seconds), flush=True)
    if args.check:
        return 0
    rows = [r for name, of in found.items() for r in (*judge(name, of), *judge_states(name, of))]
    if args.only or args.model or args.what != "all":
        show({"rows": rows})
        return 0
    entry = record("compression", _conditions(checkpoints, args.ggml), [*rows, *_data(found)])
    show({"rows": rows})
    write_pages(found, checkpoints)
    return 0 if all(r["met"] is not False for r in entry["rows"]) else 1


def _conditions(checkpoints: dict[str, str], ggml: Path | None) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "checkpoints": ", ".join(f"{n} {sha}" for n, sha in checkpoints.items()),
        "text": "the whole held-out file",
        "windows": f"{LENGTH}, stride {STRIDE}",
        "embedding": "i8<g32> (Q8_0 in llama.cpp's rows) unless the row says",
        "llama.cpp": f"ggml {ggml_version(ggml)}, gguf {version('gguf')}",
    }


def _line(m: Measured, kept: bool, seconds: float) -> str:
    s = m.score
    return (
        f"{m.row.name:28}{m.weight_bytes:>11,}{m.bits:>7.3f}{m.kv_bytes:>10,.1f}"
        f"{s.percent:>+9.3f} ± {s.percent_error:<6.3f}{s.mean_kl:>12.6f} ± {s.kl_error:.6f}{s.top1:>8.4f}"
        f"{'kept' if kept else f'{seconds:.0f}':>7}"
    )


def _data(found: dict[str, dict[str, Measured]]) -> list[dict[str, Any]]:
    """Return every row as data, so that the history holds the whole picture."""
    return [
        row(
            f"{name}: {m.row.name}",
            f"{m.weight_bytes:,} bytes, {m.score.percent:+.3f} ± {m.score.percent_error:.3f} %, "
            f"KL {m.score.mean_kl:.3e}, top-1 {m.score.top1:.4f}",
            family=m.row.family,
            weight_bytes=m.weight_bytes,
            kv_bytes_per_token=m.kv_bytes,
            bits_per_byte=m.score.bits,
            percent=m.score.percent,
            percent_error=m.score.percent_error,
            kl=m.score.mean_kl,
            kl_error=m.score.kl_error,
            top1=m.score.top1,
            detail=True,
        )
        for name, of in found.items()
        for m in of.values()
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OmnicError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        sys.exit(error.exit_code)
