"""Writes ``docs/parity.md``: every preset on every backend against the f64 reference.

Scaled copies of all presets with random weights, and the shipped models with theirs.

    python bench/parity.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from omnic.api import compile as compile_model
from omnic.ir.numeric import AMBIGUOUS_SHARE, CLASSES, TAIL_SHARE
from omnic.runtime.bundle import Bundle
from omnic.spec import load_spec, preset_names, scale

PAGE = Path(__file__).resolve().parents[1] / "docs" / "parity.md"
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch": ("torch", {}),
    "onnx, fused": ("onnx", {"profile": "fused"}),
    "onnx, plain": ("onnx", {"profile": "plain"}),
}
SHIPPED = ("tiny", "tiny_moe")
HEAD = """# Parity

The device program, run from its own saved bytes, against the IR it was made from, evaluated in f64. The figure
is the largest absolute error of any logit over the rms of the logits, the worst of all ways a session is
used: one call, chunks of {chunks} tokens, single tokens, a ragged batch of three, the MTP block, other
heads. This page is written by `python bench/parity.py`; every compile writes the same figures of its own
bundle to `parity.json`.

| class | bound | tail | why |
|---|---|---|---|
{classes}

At most {share:.0%} of the positions of a case may be ambiguous: the reference itself is nearly undecided there
(its top token, or a router), or attention near a tie between keys amplifies rounding (at most {tail:.0%}, within
the tail, with the same top token).
"""


def cell(bundle: Bundle) -> str:
    """Return the table cell of one bundle."""
    parity = bundle.parity
    assert parity is not None
    ambiguous = sum(c["ambiguous"] for c in parity["cases"])
    note = f" ({ambiguous} of {sum(c['positions'] for c in parity['cases']):,} ambiguous)" if ambiguous else ""
    return f"{parity['ratio']:.1e}{note}" if parity["ok"] else f"**missed: {parity['ratio']:.1e}**"


def main() -> int:
    """Compile everything and write the page."""
    classes = "\n".join(
        f"| {c.name} | {c.bound or 'same top token, KL <= ' + str(c.kl)} | {c.tail or ''} | {c.reason} |"
        for c in CLASSES.values()
    )
    text = [HEAD.format(chunks="1, 7, 16 and 33", classes=classes, share=AMBIGUOUS_SHARE, tail=TAIL_SHARE)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for heading, names, small in (
            ("Shipped models, trained weights, held-out text, 300 tokens", SHIPPED, False),
            ("Scaled copies of the presets, random weights and ids, 64 tokens", preset_names(), True),
        ):
            text += [f"\n## {heading}\n", f"| model | {' | '.join(BACKENDS)} |", "|---" * (len(BACKENDS) + 1) + "|"]
            for name in names:
                cells: list[str] = []
                for backend, (target, options) in BACKENDS.items():
                    spec = scale(load_spec(name)) if small else load_spec(name)
                    out = Path(folder) / f"{name}-{small}-{backend.replace(', ', '-')}"
                    bundle = compile_model(spec, target, out, seed=1 if small else None, options=options)
                    missed += not (bundle.parity or {}).get("ok")
                    cells.append(cell(bundle))
                print(name, *cells, flush=True)
                text.append(f"| {name} | {' | '.join(cells)} |")
    PAGE.write_text("\n".join(text) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
