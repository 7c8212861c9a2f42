"""What the router of a mixture of experts costs, and what its choices are worth: variations of one trained model.

Each variation keeps the weights and changes how experts are chosen: more or fewer of them, gates of the softmax over
all experts, and without the gate of the groups or the groups themselves where the model has them.  A row is bits per
byte on the committed held-out text, seconds of a decoded token, and the share of them that router and experts take.
The model was trained with its own choice, so another one is no fair trial of what it could learn.

    python bench/router.py [SPEC] [--target onnx] [--threads 1] [--rounds 21] [--bytes 20000] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import ROUNDS, interleaved, ratio, record, row, show

from omnic.api import compile as compile_model
from omnic.api import load
from omnic.errors import InputError
from omnic.models import build
from omnic.runtime.score import score_text
from omnic.runtime.session import Session
from omnic.spec import Spec, load_spec
from omnic.spec.load import with_values
from omnic.targets import get_target
from omnic.training.heldout import heldout

TOKENS, STEPS = 64, 16


def variations(spec: Spec) -> dict[str, Spec]:
    """Return the model as it is, and with other choices of experts.

    Raises:
        InputError: it has no experts.
    """
    layer = next((at for at, block in enumerate(spec.blocks) if block.ffn.kind == "moe"), None)
    if layer is None:
        raise InputError(f"{spec.model} has no experts", "name another spec, such as tiny_moe")
    ffn = spec.blocks[layer].ffn

    def changed(**values: Any) -> Spec:
        blocks = [b.model_dump(mode="json", by_alias=True, exclude_unset=True) for b in spec.blocks]
        for at, block in enumerate(spec.blocks):
            if block.ffn.kind == "moe":
                blocks[at]["ffn"] = {**blocks[at]["ffn"], **values}
        return with_values(spec, {"blocks": blocks}, "router")

    found = {f"as it is: {ffn.top_k} of {ffn.experts}": changed()}
    for count in (1, 2, 3, 4):
        if count != ffn.top_k and count <= ffn.experts:
            found[f"{count} of {ffn.experts}"] = changed(top_k=count)
    found["gates not renormalised" if ffn.renormalise else "gates renormalised"] = changed(
        renormalise=not ffn.renormalise)
    if ffn.group_gate:
        found["without the gate of the groups"] = changed(group_gate=False)
    if ffn.groups:
        found["without groups"] = changed(groups=None, group_gate=False)
    return found


def weights_of(spec: Spec, file: Path, folder: Path) -> Path:
    """Return the file, or a copy of what a variation reads of it."""
    from safetensors.torch import load_file, save_file

    held, needed = load_file(file), set(build(spec).weights)
    if needed == set(held):
        return file
    copy = folder / f"{len(list(folder.iterdir()))}.safetensors"
    save_file({name: tensor for name, tensor in held.items() if name in needed}, copy)
    return copy


def decoding(session: Session, ids: np.ndarray) -> Any:
    """Return what decodes ``STEPS`` tokens after ``ids``, again and again."""

    def run() -> None:
        session.reset(1)
        session.forward(ids[None], rows=np.array([[len(ids) - 1]]))
        for token in range(STEPS):
            session.forward(np.array([[token]]))

    return run


def shares(bundle: Any, target: str, ids: np.ndarray, threads: int) -> float:
    """Return the part of a token's seconds that scopes of routers and experts take."""
    scopes = {n.scope for n in bundle.module.function("forward").nodes if n.op in ("router", "moe")}
    decode = get_target(target).profile(bundle, ids, STEPS, threads)[1].seconds
    return sum(s for name, s in decode.items() if name in scopes) / sum(decode.values())


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", default="tiny_moe")
    parser.add_argument("--target", default="onnx")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--bytes", type=int, default=20_000, help="of the held-out text that is scored")
    parser.add_argument("--json", action="store_true", help="print the recorded entry as JSON")
    args = parser.parse_args()
    spec = load_spec(args.spec)
    try:
        tried = variations(spec)
    except InputError as error:
        parser.error(f"{error.message} ({error.hint})")
    file = spec.resolve("weights")
    if file is None:
        parser.error(f"{spec.model} has no trained weights: a random router tells nothing")
    text = heldout().text[: args.bytes]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bundles = {
            name: compile_model(changed, args.target, Path(folder) / str(at), parity="off",
                                weights=weights_of(changed, file, Path(folder)))
            for at, (name, changed) in enumerate(tried.items())
        }  # fmt: skip
        models = {name: load(bundle, threads=args.threads) for name, bundle in bundles.items()}
        bits = {name: score_text(model.session, model.needed_tokenizer, text) for name, model in models.items()}
        ids = np.arange(3, 3 + TOKENS)
        times = interleaved({name: decoding(model.session, ids) for name, model in models.items()}, args.rounds)
        first = next(iter(tried))
        for name, bundle in bundles.items():
            slower = ratio(times[name], times[first])
            change = "" if name == first else f", {bits[name] - bits[first]:+.4f}, time {slower}"
            part = shares(bundle, args.target, ids, args.threads)
            rows.append(row(name, f"{bits[name]:.4f} bits per byte{change}; router and experts {part:.0%} of a token",
                            bits=bits[name], share=part))
    conditions = {"spec": args.spec, "target": args.target, "threads": args.threads, "rounds": args.rounds,
                  "text": f"{len(text.encode()):,} bytes of held-out modules", "time": f"{TOKENS} + {STEPS} tokens"}
    entry = record("router", conditions, rows)
    print(json.dumps(entry)) if args.json else show(entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
