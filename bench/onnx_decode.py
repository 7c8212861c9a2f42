"""ONNX float programs against onnxruntime-genai: the same 125M-class weights, one process, interleaved.

python bench/onnx_decode.py [--threads 1] [--rounds 21] [--json]

A decoded token is one greedy step of each: ``generate_next_token`` of genai; one session call and an argmax of
ours. The two take turns token by token, so that what else the machine does falls on both. A prefill of 512 is one
call that gives the logits of the last position; genai's model is built with ``prune_lm_head``, so it computes one
row of logits too.  genai takes a prompt whole or in pieces (``chunk_size``) of as many tokens as our session; both are
run, and the faster one counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import interleaved, ratio, record, row, show

from omnic.api import compile as compile_model
from omnic.ir.weights import WeightStore
from omnic.models import build
from omnic.runtime.session import Session, SessionOptions, open_session
from omnic.spec import Spec, parse_spec
from omnic.targets.onnx.session import PIECE

SPEC = """omnic: 1
model: class_125m
vocab: {size: 32000}
context: 1024
blocks:
  - repeat: 12
    width: 768
    attention: {kind: gqa, heads: 12, kv_heads: 4, head_dim: 64}
    ffn: {kind: dense, hidden: 2048, activation: swiglu}
"""
SEED, CONTEXTS, PREFILL, NEW = 1, (128, 512), 512, 16
BAR = 1.0
FOLDER = Path("build/bench")


def huggingface_folder(spec: Spec, folder: Path) -> Path:
    """Write the model as a Hugging Face folder with the same numbers as our bundle; return it."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if (folder / "config.json").is_file():
        return folder
    store = WeightStore(build(spec), seed=SEED)
    layer = spec.layers()[0]
    attention, ffn = layer.attention, layer.ffn
    config = LlamaConfig(
        vocab_size=spec.vocab.size,
        hidden_size=layer.width,
        intermediate_size=ffn.hidden,
        num_hidden_layers=len(spec.layers()),
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        max_position_embeddings=spec.context,
        rms_norm_eps=layer.norm.eps,
        tie_word_embeddings=False,
        rope_theta=attention.rope.base,
        bos_token_id=1,
        eos_token_id=2,
        torch_dtype="float32",
    )
    names = {"embed": "model.embed_tokens", "head": "lm_head", "final_norm": "model.norm"}
    inner = {
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.o_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn.gate": "mlp.gate_proj",
        "ffn.up": "mlp.up_proj",
        "ffn.down": "mlp.down_proj",
    }
    state = {}
    for name in store.module.weights:
        if name in names:
            target = names[name]
        else:
            _, number, rest = name.split(".", 2)
            target = f"model.layers.{number}.{inner[rest]}"
        state[f"{target}.weight"] = torch.from_numpy(store.array(name))
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(spec.vocab.size)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", bos_token="w1", eos_token="w2").save_pretrained(
        folder
    )
    return folder


def genai_folder(spec: Spec, threads: int) -> Path:
    """Build genai's fp32 model for the CPU with its own builder; return its folder."""
    out = FOLDER / "genai-fp32"
    if not (out / "genai_config.json").is_file():
        source = huggingface_folder(spec, FOLDER / "huggingface")
        builder = [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            str(source),
            "-o",
            str(out),
            "-p",
            "fp32",
            "-e",
            "cpu",
            "-c",
            str(FOLDER / "cache"),
            "--extra_options",
            "prune_lm_head=true",
        ]
        subprocess.run(builder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = out / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return out


class Peer:
    """genai: a generator a run."""

    def __init__(self, folder: Path, length: int) -> None:
        import onnxruntime_genai as og

        self.og, self.model, self.length = og, og.Model(str(folder)), length
        self.params = og.GeneratorParams(self.model)
        self.params.set_search_options(max_length=length, do_sample=False, min_length=length)

    def stepper(self, ids: np.ndarray) -> Callable[[], object]:
        """Return what decodes one more token after the prompt ``ids``."""
        generator = self.og.Generator(self.model, self.params)
        generator.append_tokens(ids)
        generator.generate_next_token()
        return generator.generate_next_token

    def prefill(self, ids: np.ndarray, pieces: int | None = None) -> float:
        """Return seconds for the prompt, given whole or in ``pieces`` of so many tokens (its ``chunk_size``)."""
        params = self.params
        if pieces is not None:
            params = self.og.GeneratorParams(self.model)
            params.set_search_options(
                max_length=self.length, do_sample=False, min_length=self.length, chunk_size=pieces
            )
        generator = self.og.Generator(self.model, params)
        began = time.perf_counter()
        generator.append_tokens(ids)
        generator.get_logits()
        return time.perf_counter() - began

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Return the last position's logits."""
        generator = self.og.Generator(self.model, self.params)
        generator.append_tokens(ids)
        return np.asarray(generator.get_logits())[0, -1]


def stepper(session: Session, ids: np.ndarray) -> Callable[[], object]:
    """Return what decodes one more token after the prompt ``ids``."""
    session.reset(1)
    token = int(session.forward(ids[None], rows=np.array([[len(ids) - 1]])).logits[0, 0].argmax())

    def step() -> None:
        nonlocal token
        token = int(session.forward(np.array([[token]])).logits[0, 0].argmax())

    step()
    return step


def alternated(ours: Callable[[], object], theirs: Callable[[], object], new: int) -> tuple[float, float]:
    """Decode ``new`` tokens of each, token by token in turn; return seconds a token of each."""
    spent = {ours: 0.0, theirs: 0.0}
    for turn in range(new):
        for step in (ours, theirs) if turn % 2 else (theirs, ours):
            began = time.perf_counter()
            step()
            spent[step] += time.perf_counter() - began
    return spent[ours] / new, spent[theirs] / new


def ours_prefill(session: Session, ids: np.ndarray) -> float:
    """Return seconds for the prompt."""
    session.reset(1)
    began = time.perf_counter()
    session.forward(ids[None], rows=np.array([[len(ids) - 1]]))
    return time.perf_counter() - began


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true", help="print the recorded entry as JSON")
    args = parser.parse_args()
    import onnxruntime
    import onnxruntime_genai

    spec = parse_spec(SPEC, "class_125m.yaml")
    bundle = compile_model(spec, "onnx", FOLDER / "class_125m-onnx", seed=SEED, parity="off")
    session = open_session(bundle, SessionOptions(threads=args.threads))
    peer = Peer(genai_folder(spec, args.threads), spec.context)
    rng = np.random.default_rng(0)
    prompts = {n: rng.integers(3, spec.vocab.size, n).astype(np.int32) for n in (*CONTEXTS, PREFILL)}
    rows: list[dict[str, Any]] = [agreement(session, peer, prompts[CONTEXTS[0]])]
    for name, times in cases(session, peer, prompts, args.rounds):
        found = ratio(times["genai"], times["ours"])
        medians = {k: 1e3 * float(np.median(v)) for k, v in times.items()}
        rows.append(
            row(
                f"{name}: genai's time / ours",
                f"{found} ({medians['ours']:.2f} against {medians['genai']:.2f} ms)",
                f">= {BAR:.1f}x",
                found.reaches(BAR),
                ratio=found,
                milliseconds=medians,
            )
        )
    conditions = {
        "threads": args.threads,
        "rounds": args.rounds,
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime-genai": onnxruntime_genai.__version__,
        "precision": "f32",
    }
    entry = record("onnx_decode", conditions, rows)
    print(json.dumps(entry)) if args.json else show(entry)
    return 0 if all(r["met"] is not False for r in rows) else 1


def agreement(session: Session, peer: Peer, ids: np.ndarray) -> dict[str, Any]:
    """Show that both compute the same model: the largest difference of the last logits over their rms."""
    session.reset(1)
    ours = np.asarray(session.forward(ids[None], rows=np.array([[len(ids) - 1]])).logits[0, 0], np.float64)
    theirs = peer.logits(ids).astype(np.float64)
    gap = float(np.abs(ours - theirs).max() / np.sqrt(np.mean(theirs**2)))
    return row(
        "the two models' logits differ by (over their rms)", f"{gap:.1e}", "<= 2e-05", gap <= 2e-5, ratio_of_rms=gap
    )


def cases(
    session: Session, peer: Peer, prompts: dict[int, np.ndarray], rounds: int
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Yield (name, seconds of each round by contestant) of each comparison."""
    for count in CONTEXTS:
        times: dict[str, list[float]] = {"ours": [], "genai": []}
        for _ in range(rounds):
            found = alternated(stepper(session, prompts[count]), peer.stepper(prompts[count]), NEW)
            for name, seconds in zip(times, found, strict=True):
                times[name].append(seconds)
        yield f"decode at {count}", times
    ids = prompts[PREFILL]
    yield f"prefill {PREFILL}", best_of_peer(lambda: ours_prefill(session, ids), peer, ids, rounds)


def best_of_peer(
    ours: Callable[[], float], peer: Peer, ids: np.ndarray, rounds: int
) -> dict[str, list[float]]:
    """Return seconds of each round of ours and of genai at the faster of its two ways to take a prompt."""
    contestants = {"ours": ours, "whole": lambda: peer.prefill(ids), "pieces": lambda: peer.prefill(ids, PIECE)}
    found = interleaved(contestants, rounds)
    best = min(("whole", "pieces"), key=lambda name: float(np.median(found[name])))
    return {"ours": found["ours"], "genai": found[best]}


if __name__ == "__main__":
    sys.exit(main())
