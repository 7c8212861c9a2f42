"""What fp16 costs in Core ML packages, and what the order of sums decides in them.

For the shipped models and scaled copies of the presets, in both fp16 recipes: how far the saved package is from the
reference with its roundings when both sum exactly; how far when the evaluator sums in f32, and when the reference
does; and how far the roundings themselves are from the same model without them.

    python bench/coreml_rounding.py [NAME ...]      # recorded when no name is given
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import record
from numpy.typing import NDArray

from omnic.compiler.pipeline import open_weights
from omnic.compiler.sample import sample_tokens
from omnic.ir.graph import Module
from omnic.ir.numeric import kl_divergence, logit_rms
from omnic.ir.reference import Interpreter
from omnic.ir.text import print_module
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import load_spec, scale
from omnic.targets import get_target
from omnic.targets.base import EmitRequest
from omnic.targets.coreml.program import Package
from omnic.targets.coreml.session import CoremlSession

TRAINED = ("tiny", "tiny_moe")
SCALED = ("mobile_4gb", "mobile_2gb", "nano_125m", "draft_1b")
RECIPES = ("gpu", "ane")
TOKENS = 96


def _logits(module: Module, store: WeightStore, ids: NDArray[np.int64], dtype: type) -> NDArray[Any]:
    count = len(ids)
    inputs = {"tokens": ids[None], "positions": np.arange(count)[None], "start": np.zeros(1, np.int64),
              "length": np.array([count]), "rows": np.arange(count)[None]}
    return np.asarray(Interpreter(module, store, dtype).run(inputs)["logits"][0], np.float64)


def _rows(name: str) -> Iterator[dict[str, Any]]:
    trained = name in TRAINED
    spec = load_spec(name) if trained else scale(load_spec(name))
    front, weights = (found := open_weights(build(spec), spec, None, None if trained else 1))[0].module, found[0]
    path = spec.resolve("tokenizer")
    tokenizer = Tokenizer.load(path) if path is not None else None
    ids = sample_tokens(spec.vocab.size, min(TOKENS, spec.chunk), tokenizer)[0]
    plain = _logits(front, weights, ids, np.float64)
    target = get_target("coreml")
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            made = target.emit(EmitRequest(front, weights, Path(folder), target.options({"compute": recipe}),
                                           lambda what, share: None))
            (Path(folder) / "module.ir").write_text(print_module(made.module), encoding="utf-8")
            store = weights.with_module(made.module)
            exact, single = (_logits(made.module, store, ids, t) for t in (np.float64, np.float32))
            found = {"reference in f32": single}
            for what, rounding in (("exact sums", "exact"), ("sums in f32", "as_typed")):
                package = Package(Path(folder), made.module)
                package.rounding = rounding
                found[what] = np.asarray(CoremlSession(package).forward(ids[None]).logits[0], np.float64)
        rms = logit_rms(exact)
        off = {what: float(np.abs(x - exact).max() / rms) for what, x in found.items()}
        apart = float(np.abs(found["sums in f32"] - single).max() / rms)
        lost, kl = float(np.abs(exact - plain).max() / logit_rms(plain)), float(kl_divergence(plain, exact).mean())
        same = int((plain.argmax(-1) == exact.argmax(-1)).sum())
        figure = (f"exact sums {off['exact sums']:.1e}; f32 sums: package {off['sums in f32']:.1e}, reference"
                  f" {off['reference in f32']:.1e}, apart {apart:.1e}; of fp16 itself {lost:.1e}, KL {kl:.1e},"
                  f" same token at {same} of {len(ids)}")
        what = f"{name}{'' if trained else ', scaled'}, {recipe}"
        row = {"what": what, "figure": figure, "bar": "exact sums <= 2e-3", "met": off["exact sums"] <= 2e-3,
               "errors": off, "apart": apart, "lost": lost, "kl": kl}
        print(f"  {row['what']}: {figure}", flush=True)
        yield row


def main() -> int:
    """Measure, print and record; 1 where a package is not the reference's numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="models; all when none is named")
    names = parser.parse_args().names
    rows = [row for name in names or (*TRAINED, *SCALED) for row in _rows(name)]
    if not names:
        record("coreml_rounding", {"tokens": TOKENS, "threads": 1}, rows)
    return int(not all(row["met"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
