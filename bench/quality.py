"""The shipped models on the committed held-out text: bits per byte from their compiled programs, and MTP drafts.

python bench/quality.py [--target onnx]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from common import record, row, show

from omnic.api import compile as compile_model
from omnic.api import load
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.runtime.score import score_text, xz_bits_per_byte
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import load_spec
from omnic.targets.torch.training import load_training_module
from omnic.training.evaluate import tokens_per_pass
from omnic.training.heldout import heldout

#: model -> (bits per byte over xz's, tokens a pass with three drafts, largest file)
BARS = {"tiny": (0.70, 2.2), "tiny_moe": (0.72, 2.0)}
FILE_BAR = 8_000_000


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="onnx")
    args = parser.parse_args()
    text, rows = heldout().text, []
    xz = xz_bits_per_byte(text)
    rows.append(row("xz -9e of the held-out text", f"{xz:.4f} bits per byte", bits=xz))
    with tempfile.TemporaryDirectory() as folder:
        for name, (ratio_bar, pass_bar) in BARS.items():
            spec = load_spec(name)
            model = load(compile_model(spec, args.target, Path(folder) / name))
            bits = score_text(model.session, model.needed_tokenizer, text)
            rows.append(
                row(
                    f"{name}: bits per byte, {args.target} program",
                    f"{bits:.4f}, {bits / xz:.3f}x of xz",
                    f"<= {ratio_bar}x",
                    bits / xz <= ratio_bar,
                    bits=bits,
                )
            )
            weights, tokenizer = spec.resolve("weights"), spec.resolve("tokenizer")
            assert weights is not None and tokenizer is not None
            module = build(spec)
            trained = load_training_module(module, WeightStore.load(module, weights)).eval()
            found = tokens_per_pass(trained, Tokenizer.load(tokenizer), heldout())
            rows.append(
                row(
                    f"{name}: tokens a pass, {found.drafts} drafts of the MTP block, {found.prefixes} prefixes",
                    f"{found.value:.2f} ± {found.error:.2f}",
                    f">= {pass_bar}",
                    found.value >= pass_bar,
                    value=found.value,
                )
            )
            size = weights.stat().st_size
            rows.append(row(f"{name}: weight file", f"{size:,} bytes", f"<= {FILE_BAR:,}", size <= FILE_BAR))
    entry = record(
        "quality", {"text": f"{heldout().size:,} bytes of held-out modules", "windows": "256, stride 128"}, rows
    )
    show(entry)
    print(json.dumps(entry["conditions"]))
    return 0 if all(r["met"] is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
