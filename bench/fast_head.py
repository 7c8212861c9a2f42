"""The head's argmax by a shortlist beside the whole product, on the shipped models.

For each model and each type of its head the pass ``fast-head`` makes a shortlist; the kernels ``head_argmax`` and
``head_shortlist`` then take turns over what the head reads on held-out text, one row at a time, and must say the same
ids.  Where the pass finds that no shortlist pays, it is told how many directions to take, so that the figure says why.

    python bench/fast_head.py [--rounds 21] [--threads 1] [--json]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
from typing import Any

import numpy as np
from common import interleaved, ratio, record, row, show

from omnic.compiler.executor import torch_executor
from omnic.ir.types import Storage
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.passes.base import PassContext, parse_pass, run_pass
from omnic.passes.context import Calibration
from omnic.runtime.kernels.abi import Activation, Shortlist
from omnic.runtime.kernels.library import Kernels, address, kernels
from omnic.runtime.kernels.packing import Packed, pack, weight_of
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import load_spec
from omnic.training.corpus import load_corpus
from omnic.training.heldout import heldout

MODELS = ("tiny", "tiny_moe")
HEADS = {"bf16": "", "i8<g32>": "int4-packing{group=32, embedding=i8<g32>, head=i8<g32>}"}
#: directions where none pay, windows of held-out text and tokens of each
DIMS, WINDOWS, LENGTH = 160, 2, 256
Array = np.ndarray[Any, Any]


def ids(tokenizer: Tokenizer, text: str, windows: int) -> Array:
    """Return windows of token ids."""
    return np.array(tokenizer.encode(text)[: windows * LENGTH], np.int64).reshape(windows, LENGTH)


def shortlist(name: str, pack_call: str, folder: str) -> tuple[WeightStore, Array, str]:
    """Return the weights of a model with a shortlist, inputs of its head on held-out text, and what the pass said."""
    spec = load_spec(name)
    tokenizer = Tokenizer.load(spec.resolve("tokenizer"))  # type: ignore[arg-type]
    results = ResultStore(folder)
    module = build(spec)
    store = WeightStore.load(module, spec.resolve("weights"), results)  # type: ignore[arg-type]
    text = "\n".join(d.text for d in load_corpus("stdlib").documents[:40])
    context = PassContext(weights=store, weights_key=name, results=results, executor=torch_executor,
                          calibration=lambda: Calibration(ids(tokenizer, text, 16), "the first files of the corpus"))
    if pack_call:
        module = run_pass(module, parse_pass(pack_call), context).module
    found = run_pass(module, parse_pass("fast-head"), context)
    said = "" if found.changed else ", which the pass leaves out"
    if not found.changed:
        found = run_pass(module, parse_pass(f"fast-head{{dims={DIMS}}}"), context)
    seen: list[Array] = []
    head = next(n for n in module.function().nodes if n.op == "lm_head")
    torch_executor(module, store.with_module(module)).observe(
        ids(tokenizer, heldout().text, WINDOWS), [head.name], lambda _, given, __: seen.append(np.array(given[0])))
    return store.with_module(found.module), np.concatenate(seen).reshape(-1, seen[0].shape[-1]), said


def packed(store: WeightStore, name: str) -> Packed:
    """Return a weight in panels."""
    type = store.module.weights[name].type.element
    if isinstance(type, Storage):
        return pack(store.quantised(name))
    return pack(store.array(name).astype(type.numpy))


class Heads:
    """Both kernels over the inputs x [N, D], one row a call."""

    def __init__(self, level: Kernels, store: WeightStore, x: Array, act: Activation, group: int) -> None:
        self.level, self.x, self.act, self.group = level, x, int(act), group
        self.packed = [packed(store, name) for name in ("embed", "head.basis", "head.screen")]
        self.weights = [weight_of(part) for part in self.packed]
        self.reach = store.array("head.reach")
        self.shortlist = Shortlist(*(ctypes.pointer(w) for w in self.weights), self.reach.ctypes.data)
        self.ids, self.panels = np.empty(len(x), np.int64), np.empty(len(x), np.int64)

    def whole(self) -> None:
        """Multiply with all of the head."""
        scratch = self.level.scratch_linear(self.weights[0], 1, self.act, self.group)
        for at in range(len(self.x)):
            self.level.run("head_argmax", ctypes.byref(self.weights[0]), address(self.x[at]), 1, self.x.shape[1],
                           self.act, self.group, 0.0, address(self.ids[at:]), None, scratch=scratch)

    def searched(self) -> None:
        """Search with the shortlist."""
        scratch = self.level.scratch_shortlist(self.shortlist, 1, self.act, self.group)
        for at in range(len(self.x)):
            self.level.run("head_shortlist", ctypes.byref(self.shortlist), address(self.x[at]), 1, self.x.shape[1],
                           self.act, self.group, address(self.ids[at:]), None, address(self.panels[at:]),
                           scratch=scratch)


def measured(level: Kernels, name: str, type: str, call: str, rounds: int) -> dict[str, Any]:
    """Return the row of one model and type of head.

    Raises:
        SystemExit: the kernels say different ids.
    """
    with tempfile.TemporaryDirectory() as folder:
        store, x, said = shortlist(name, call, folder)
        act, group = (Activation.I8_GROUP, 32) if call else (Activation.F32, 0)
        heads = Heads(level, store, np.ascontiguousarray(x[::2], np.float32), act, group)
    heads.whole()
    wanted = heads.ids.copy()
    heads.searched()
    if not np.array_equal(wanted, heads.ids):
        raise SystemExit(f"{name}, {type}: the shortlist says other ids than the head")
    times = interleaved({"whole": heads.whole, "searched": heads.searched}, rounds)
    gain = ratio(times["whole"], times["searched"])
    each = [1e6 * float(np.median(times[key])) / len(heads.x) for key in times]
    head, basis = heads.packed[:2]
    share = float(heads.panels.mean()) / -(-head.n // 16)
    what = f"{name}, head {type} [{head.n}, {head.k}], {basis.n} directions{said}"
    return row(f"{what}: whole product's time / shortlist's",
               f"{gain} ({each[0]:.0f} against {each[1]:.0f} us), {share:.0%} of the panels multiplied, ids equal",
               gain=gain, panels=share)


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the recorded entry as JSON")
    args = parser.parse_args()
    level = kernels(threads=args.threads)
    rows = [measured(level, name, type, call, args.rounds) for name in MODELS for type, call in HEADS.items()]
    entry = record("fast_head", {"threads": args.threads, "level": level.level.name.lower(),
                                 "text": f"{WINDOWS} windows of {LENGTH} held-out tokens, every other one"}, rows)
    print(json.dumps(entry)) if args.json else show(entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
