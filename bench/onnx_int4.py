"""Decode and prefill of the ONNX target with int4 weights against onnxruntime-genai: the same 125M-class model.

Both are quantised from the same f32 weights, all products and the head in 4 bits with the same group size, 8-bit
activations (accuracy level 4), f32 keys and values, the last position's logits alone.  Every layer has weights of
its own.  Sessions are warm and take turns: token by token when they decode, round by round for prompts.  The share of
the read limit is the bytes of weights, scales, keys and values that a token reads, times tokens a second, over what
one thread reads from memory, measured in the same run.

    python bench/onnx_int4.py [--threads 1] [--rounds 21] [--only prefill8] [--json]

``--only prefill8`` measures the rows of ``prefill-int8`` alone, without genai, and records them apart.

Needs ``pip install omnic[bench]``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import interleaved, ratio, record, row, show
from onnx_decode import (
    BAR,
    CONTEXTS,
    FOLDER,
    NEW,
    PREFILL,
    SEED,
    SPEC,
    Peer,
    alternated,
    best_of_peer,
    huggingface_folder,
    stepper,
)
from onnx_decode import ours_prefill as prefill

from omnic.api import compile as compile_model
from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.types import Storage
from omnic.ir.weights.store import fixed_shape
from omnic.runtime.bundle import Bundle
from omnic.runtime.session import Session, SessionOptions, open_session
from omnic.spec import Spec, parse_spec
from omnic.targets.onnx.blocks import Blocks, blocks_of

#: what genai's builder makes by itself, and the coarser group that is faster for both
GROUPS = (32, 128)
READ_BYTES = 512 << 20


def int4_spec(group: int, head: str | None = None, prefill: bool = False) -> Spec:
    """Return the 125M class with its weights in 4 bits, and in 8 for prompts where ``prefill``."""
    kind = f"i4<g{group}>"
    text = SPEC + f"passes:\n  - int4-packing: {{group: {group}, embedding: '{kind}', head: '{head or kind}'}}\n"
    name = f"class_125m_g{group}" + ("_prefill8" if prefill else "")
    return parse_spec(text.replace("class_125m", name) + ("  - prefill-int8\n" if prefill else ""), "class_125m.yaml")


def genai_folder(spec: Spec, group: int, threads: int) -> Path:
    """Build genai's int4 model for the CPU with its own builder; return its folder."""
    out = FOLDER / f"genai-int4-g{group}"
    if not (out / "genai_config.json").is_file():
        source = huggingface_folder(spec, FOLDER / "huggingface")
        options = [f"block_size={group}", "accuracy_level=4", "prune_lm_head=true"]
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out)]
        builder += ["-p", "int4", "-e", "cpu", "-c", str(FOLDER / "cache"), "--extra_options", *options]
        subprocess.run(builder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = out / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return out


def token_bytes(module: Module, context: int) -> int:
    """Return the bytes that one token reads: every matrix but the embedding, and keys and values up to ``context``."""
    total = 0
    for name, weight in module.weights.items():
        shape = fixed_shape(weight.type)
        if name == "embed":
            continue
        form = blocks_of(weight.type.element, shape[-1]) if isinstance(weight.type.element, Storage) else ""
        stored = (form.row_bytes + 4 * form.count) * shape[0] if isinstance(form, Blocks) else weight.type.bytes()
        total += stored
    for state in module.states.values():
        heads, _, size = (int(str(d)) for d in state.type.shape[1:])
        total += 4 * heads * size * context
    return total


def read_limit() -> float:
    """Return bytes a second that one thread reads from memory, the best of several passes over 512 MB."""
    numbers = np.ones(READ_BYTES // 4, np.float32)
    best = 0.0
    for _ in range(7):
        for read in (np.max, np.sum):
            began = time.perf_counter()
            read(numbers)
            best = max(best, READ_BYTES / (time.perf_counter() - began))
    return best


def compiled(spec: Spec, name: str, **options: Any) -> Bundle:
    """Return the model's bundle, compiled again where an older omnic made the one that is there."""
    try:
        return compile_model(spec, "onnx", FOLDER / name, seed=SEED, parity="off", options=options)
    except InputError:
        return compile_model(spec, "onnx", FOLDER / name, seed=SEED, parity="off", options=options, force=True)


def closeness(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the cosine of two rows of logits."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def last_logits(session: Session, ids: np.ndarray) -> np.ndarray:
    """Return the logits after the prompt."""
    session.reset(1)
    return np.array(session.forward(ids[None], rows=np.array([[len(ids) - 1]])).logits[0, 0])


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", choices=("prefill8",), help="these rows alone, recorded apart")
    parser.add_argument("--json", action="store_true", help="print the recorded entry as JSON")
    args = parser.parse_args()
    import onnxruntime

    if args.only:
        conditions = {"threads": args.threads, "rounds": args.rounds, "onnxruntime": onnxruntime.__version__}
        entry = record("onnx_int4_prefill8", conditions, prefill8(args.threads, args.rounds))
        print(json.dumps(entry)) if args.json else show(entry)
        return 0
    import onnxruntime_genai

    options = SessionOptions(threads=args.threads)
    plain = parse_spec(SPEC, "class_125m.yaml")
    rng = np.random.default_rng(0)
    prompts = {n: rng.integers(3, plain.vocab.size, n).astype(np.int32) for n in (*CONTEXTS, PREFILL)}
    exact = open_session(compiled(plain, "class_125m-onnx"), options)
    wanted = last_logits(exact, prompts[CONTEXTS[0]])
    limit = read_limit()
    rows: list[dict[str, Any]] = [row("one thread reads", f"{limit / 1e9:.1f} GB/s", bytes_per_second=limit)]
    ours: dict[int, tuple[Session, Module]] = {}
    theirs: dict[int, Peer] = {}
    for group in GROUPS:
        bundle = compiled(int4_spec(group), f"class_125m-g{group}-onnx")
        ours[group] = open_session(bundle, options), bundle.module
        theirs[group] = Peer(genai_folder(plain, group, args.threads), plain.context)
        found = [
            closeness(x, wanted)
            for x in (last_logits(ours[group][0], prompts[CONTEXTS[0]]), theirs[group].logits(prompts[CONTEXTS[0]]))
        ]
        rows.append(
            row(
                f"g{group}: cosine of the logits with the f32 model's, ours and genai's",
                f"{found[0]:.4f}, {found[1]:.4f}",
            )
        )
    for group in GROUPS:
        session, module = ours[group]
        for name, context, times in cases(session, theirs[group], prompts, args.rounds):
            gain, ms = ratio(times["genai"], times["ours"]), {k: 1e3 * float(np.median(v)) for k, v in times.items()}
            figure = f"{gain} ({ms['ours']:.2f} against {ms['genai']:.2f} ms"
            if context:
                share = token_bytes(module, context) / (ms["ours"] / 1e3) / limit
                figure += f"; {token_bytes(module, context) / 1e6:.1f} MB a token, {share:.0%} of the read limit"
            what = f"g{group}, {name}: genai's time / ours"
            rows.append(row(what, figure + ")", f">= {BAR:.1f}x", gain.reaches(BAR), ratio=gain, milliseconds=ms))
    levels(rows, prompts, args.threads, args.rounds)
    rows += prefill8(args.threads, args.rounds)
    conditions = {
        "threads": args.threads,
        "rounds": args.rounds,
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime-genai": onnxruntime_genai.__version__,
        "weights": "int4, head included, f32 scales",
        "accuracy level": 4,
        "keys and values": "f32",
    }
    entry = record("onnx_int4", conditions, rows)
    print(json.dumps(entry)) if args.json else show(entry)
    return 0 if all(r["met"] is not False for r in rows) else 1


def cases(session: Session, peer: Peer, prompts: dict[int, np.ndarray], rounds: int) -> Any:
    """Yield (name, context or 0, seconds of each round by contestant) of each comparison."""
    for count in CONTEXTS:
        times: dict[str, list[float]] = {"ours": [], "genai": []}
        for _ in range(rounds):
            found = alternated(stepper(session, prompts[count]), peer.stepper(prompts[count]), NEW)
            for name, seconds in zip(times, found, strict=True):
                times[name].append(seconds)
        yield f"decode at {count}", count, times
    ids = prompts[PREFILL]
    yield f"prefill {PREFILL}", 0, best_of_peer(lambda: prefill(session, ids), peer, ids, rounds)


def levels(rows: list[dict[str, Any]], prompts: dict[int, np.ndarray], threads: int, rounds: int) -> None:
    """Measure accuracy level 0 against 4 on the same weights: what the default of the option rests on."""
    group = GROUPS[0]
    sessions: list[Session] = []
    for level in (4, 0):
        name = f"class_125m-g{group}-onnx{'' if level else '-level0'}"
        bundle = compiled(int4_spec(group), name, **({} if level else {"accuracy_level": 0}))
        sessions.append(open_session(bundle, SessionOptions(threads=threads)))
    four, zero = sessions
    ids, times = prompts[CONTEXTS[0]], []
    for _ in range(rounds):
        times.append(alternated(stepper(four, ids), stepper(zero, ids), NEW))
    gain = ratio([t[1] for t in times], [t[0] for t in times])
    rows.append(row(f"g{group}, decode at {CONTEXTS[0]}: time at accuracy level 0 / level 4", str(gain), ratio=gain))
    ids = prompts[PREFILL]
    found = interleaved({"four": lambda: prefill(four, ids), "zero": lambda: prefill(zero, ids)}, rounds)
    gain = ratio(found["zero"], found["four"])
    rows.append(row(f"g{group}, prefill {PREFILL}: time at accuracy level 0 / level 4", str(gain), ratio=gain))


def prefill8(threads: int, rounds: int) -> list[dict[str, Any]]:
    """Measure ``prefill-int8`` against the same weights without it: prompts, a decoded token, and bytes."""
    group, options = GROUPS[0], SessionOptions(threads=threads)
    bundles = {
        "four": compiled(int4_spec(group), f"class_125m-g{group}-onnx"),
        "eight": compiled(int4_spec(group, prefill=True), f"class_125m-g{group}-prefill8-onnx"),
    }
    sessions = {name: open_session(bundle, options) for name, bundle in bundles.items()}
    rng = np.random.default_rng(0)
    prompts = {n: rng.integers(3, 32000, n).astype(np.int32) for n in (16, *CONTEXTS[:1], PREFILL)}
    sizes = {name: (bundle.path / "weights.bin").stat().st_size for name, bundle in bundles.items()}
    second, model = bundles["eight"].manifest.prefill, bundles["eight"].module
    assert second is not None
    assert model.prefill_from is not None
    rows: list[dict[str, Any]] = []
    for count, ids in prompts.items():
        calls = {name: lambda s=s, ids=ids: prefill(s, ids) for name, s in sessions.items()}
        times = interleaved(calls, rounds)
        gain, ms = ratio(times["four"], times["eight"]), {k: 1e3 * float(np.median(v)) for k, v in times.items()}
        figure = f"{gain} ({ms['eight']:.0f} against {ms['four']:.0f} ms)"
        what = f"g{group}, prefill {count}, int8 against int4: time in int4 / time with prefill-int8"
        rows.append(row(what, figure, ratio=gain, milliseconds=ms))
    ids = prompts[CONTEXTS[0]]
    four, eight = (last_logits(sessions[name], ids) for name in ("four", "eight"))
    near = closeness(eight, four)
    rows.append(row(f"g{group}: cosine of the logits after a prompt, int8 with int4", f"{near:.4f}", cosine=near))
    found = [alternated(stepper(sessions["four"], ids), stepper(sessions["eight"], ids), NEW) for _ in range(rounds)]
    gain = ratio([t[0] for t in found], [t[1] for t in found])
    what = f"g{group}, decode at {CONTEXTS[0]}: time without prefill-int8 / with it"
    rows.append(row(what, str(gain), ratio=gain))
    figure = f"{second.bytes / 1e6:.1f} MB; weights.bin {sizes['eight'] / 1e6:.1f} against {sizes['four'] / 1e6:.1f} MB"
    rows.append(row(f"g{group}: bytes of the second weights", figure, bytes=second.bytes, files=sizes))
    return rows


if __name__ == "__main__":
    sys.exit(main())
