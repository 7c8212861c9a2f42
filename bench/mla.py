"""Absorbed MLA at the dims of a spec: the fused kernel against the same sums composed in ONNX Runtime.

Decoding one token over a full cache, caches in f32, f16 and 8 bits; one thread, CPU seconds, in turning order.  For the
shapes that the kernels are held to see kernels_attention.py.

    python bench/mla.py [SPEC] [--contexts 512,2048] [--rounds 21] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import onnxruntime as ort
from common import ROUNDS, record, show
from kernels_attention import mla_rows

from omnic.errors import InputError
from omnic.runtime.kernels.library import kernels
from omnic.spec import Spec, load_spec

LEAST = 0.02


def dims(spec: Spec) -> tuple[int, int, int]:
    """Return (latent, rotated, heads) of the first layer with MLA.

    Raises:
        InputError: the model has none.
    """
    for layer in spec.layers():
        attention = layer.attention
        if attention.kind == "mla" and attention.latent and attention.rope_dim:
            return attention.latent, attention.rope_dim, attention.heads
    raise InputError(f"{spec.model} has no layer with MLA", "name another spec, such as mobile_4gb")


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", default="mobile_4gb")
    parser.add_argument("--contexts", default="512,2048,8192", help="tokens in the cache")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true", help="print the recorded entry as JSON")
    args = parser.parse_args()
    try:
        latent, rope, heads = dims(load_spec(args.spec))
    except InputError as error:
        parser.error(f"{error.message} ({error.hint})" if error.hint else error.message)
    kern = kernels()
    rows: list[dict[str, Any]] = []
    for context in (int(c) for c in args.contexts.split(",")):
        found = mla_rows(kern, latent + rope, heads, context, args.rounds, LEAST, rope)
        rows += [{**r, "bar": "", "met": None} for r in found]  # the bars are of other shapes
    conditions = {"spec": args.spec, "threads": 1, "rounds": args.rounds, "level": kern.level.name.lower(),
                  "onnxruntime": ort.__version__, "time": "CPU seconds"}
    entry = record("mla", conditions, rows)
    print(json.dumps(entry)) if args.json else show(entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
