"""Decoding int4 models in ExecuTorch: ours against ExecuTorch's own Llama export of the same dims and numbers.

Theirs is what ``executorch.examples.models.llama`` makes with its settings for phones: ``8da4w`` in groups of 32 (the
head among them), embedding in 4 bits and groups of 32, key-value cache, ``llama::custom_sdpa``, XNNPACK with the
extended operators, f32, shapes dynamic as it has them unless told otherwise.  Ours is
``omnic compile --target executorch`` of the same weights, ``int4-packing`` with groups of 32.  Both are XNNPACK's
products with 4-bit weights and 8-bit activations in one runtime and one process.

    python bench/executorch_int4.py [--threads 1] [--rounds 21] [--json]

Sessions are warm and take turns token by token.  A token of ours is a call of the session, one of theirs
``Method.execute``; both with the argmax.  Needs ``pip install omnic[executorch]``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import ratio, record, row, show
from onnx_decode import CONTEXTS, FOLDER, NEW, SEED, SPEC, stepper
from onnx_int4 import closeness, compiled, last_logits

from omnic.api import compile as compile_model
from omnic.bench.engines.executorch import Llama
from omnic.bench.peers import PeerRequest, Precision, prepare
from omnic.errors import InputError
from omnic.runtime.bundle import Bundle
from omnic.runtime.session import SessionOptions, open_session
from omnic.spec import Spec, parse_spec

GROUP = 32
BAR = 1.0
#: how much further from the model in f32 our logits may be than theirs; two int4 programs of other rounding differ
#: from each other by what both of them lost, so each is held against f32 by itself
SLACK = 0.02


def int4_spec() -> Spec:
    """Return the 125M class with its weights in 4 bits."""
    text = SPEC.replace("class_125m", f"class_125m_et_g{GROUP}")
    kind = f"i4<g{GROUP}>"
    text += f"passes:\n  - int4-packing: {{group: {GROUP}, embedding: '{kind}', head: '{kind}'}}\n"
    return parse_spec(text, "class_125m.yaml")


def ours() -> Bundle:
    """Return our bundle, compiled where it is not there yet; what is not decoded with is left out to save time."""
    folder, spec = FOLDER / f"class_125m-g{GROUP}-executorch", int4_spec()
    options = {"runner": False, "verify": "none"}
    try:
        return compile_model(spec, "executorch", folder, seed=SEED, parity="off", options=options)
    except InputError:
        return compile_model(spec, "executorch", folder, seed=SEED, parity="off", options=options, force=True)


def theirs(threads: int) -> Path:
    """Return the program that ExecuTorch's own export of Llama makes of our numbers."""
    spec = parse_spec(SPEC, "class_125m.yaml")
    request = PeerRequest(spec, None, SEED, Precision(4, GROUP), spec.context, threads, FOLDER / "peers")
    return Path(prepare("executorch", request).arguments["file"])


def f32_logits(prompt: np.ndarray, threads: int) -> np.ndarray:
    """Return the logits after ``prompt`` of the same weights in f32, by our ONNX program."""
    spec = parse_spec(SPEC, "class_125m.yaml")
    return last_logits(open_session(compiled(spec, "class_125m-onnx"), SessionOptions(threads=threads)), prompt)


def near_f32(ours: np.ndarray, theirs: np.ndarray, whole: np.ndarray) -> list[dict[str, Any]]:
    """Return the rows of how near the logits of both int4 programs are to those in f32."""
    mine, peers = closeness(ours, whole), closeness(theirs, whole)
    return [
        row("cosine of our logits with f32", f"{mine:.4f}", f">= theirs - {SLACK}", mine >= peers - SLACK, cosine=mine),
        row("cosine of their logits with f32", f"{peers:.4f}", cosine=peers),
    ]


def decoding(peer: Llama, ids: np.ndarray) -> Callable[[], object]:
    """Return what decodes one more token of theirs after the prompt ``ids``."""
    token = peer.prompt(ids)

    def step() -> None:
        nonlocal token
        token = peer.step(token)

    step()
    return step


def alternated(steps: dict[str, Callable[[], object]], new: int) -> dict[str, float]:
    """Decode ``new`` tokens of each, token by token in turn; return the median seconds a token of each."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(new):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            steps[name]()
            spent[name].append(time.perf_counter() - began)
    return {name: float(np.median(each)) for name, each in spent.items()}


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true", help="print the recorded entry as JSON")
    args = parser.parse_args()
    from importlib.metadata import version

    spec = parse_spec(SPEC, "class_125m.yaml")
    rng = np.random.default_rng(0)
    prompts = {n: rng.integers(3, spec.vocab.size, n).astype(np.int64) for n in CONTEXTS}
    session = open_session(ours(), SessionOptions(threads=args.threads))
    peer = Llama(theirs(args.threads), args.threads)
    first = prompts[CONTEXTS[0]]
    rows = near_f32(last_logits(session, first), peer.forward(first, 0), f32_logits(first, args.threads))
    for context, ids in prompts.items():
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(args.rounds):
            steps = {"ours": stepper(session, ids), "theirs": decoding(peer, ids)}
            for name, seconds in alternated(steps, NEW).items():
                times[name].append(seconds)
        ms = {name: 1e3 * float(np.median(each)) for name, each in times.items()}
        gain = ratio(times["theirs"], times["ours"])
        figure = f"{gain} ({ms['ours']:.2f} against {ms['theirs']:.2f} ms)"
        what = f"g{GROUP}, decode at {context}: time of ExecuTorch's own export / ours"
        rows.append(row(what, figure, f">= {BAR:.1f}x", gain.reaches(BAR), ratio=gain, milliseconds=ms))
    conditions = {"threads": args.threads, "rounds": args.rounds, "executorch": version("executorch"),
                  "torchao": version("torchao"), "weights": f"int4 g{GROUP}, head and embedding included",
                  "keys and values": "f32"}
    entry = record("executorch_int4", conditions, rows)
    print(json.dumps(entry)) if args.json else show(entry)
    return 0 if all(r["met"] is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
