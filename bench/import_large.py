"""A published checkpoint of 8 B parameters to an int4 bundle: ``omnic import --link``, then ``omnic compile``.

The checkpoint has the dims of Llama 3 8B, random numbers, and lies in a temporary folder: 16 GB of bf16 in shards,
made before and deleted after.  Making it is not counted.  Peak resident memory is the highest that the system saw of
each process (VmHWM), mapped files included.

    python bench/import_large.py [--layers 32] [--folder DIR] [--parity auto|off]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
from common import record, row, show
from safetensors.numpy import save_file

RSS_BAR, TIME_BAR = 3e9, 720.0
PASS = "int4-packing{method=rtn, kind=i4, group=64, embedding=i4<g64>, head=i4<g64>}"
WIDTH, HIDDEN, HEADS, KV_HEADS, VOCAB = 4096, 14336, 32, 8, 128256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCAB,
}
#: numbers drawn once; tensors are parts of them from places of their own
POOL = 1 << 24


def tensors(layers: int) -> list[dict[str, tuple[int, ...]]]:
    """Return names and shapes of each shard: embedding, two layers each, head."""
    shards: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (VOCAB, WIDTH)}]
    side = WIDTH // HEADS * KV_HEADS
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        if layer % 2 == 0:
            shards.append({})
        shards[-1] |= {
            f"{stem}.input_layernorm.weight": (WIDTH,),
            f"{stem}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{stem}.self_attn.k_proj.weight": (side, WIDTH),
            f"{stem}.self_attn.v_proj.weight": (side, WIDTH),
            f"{stem}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{stem}.post_attention_layernorm.weight": (WIDTH,),
            f"{stem}.mlp.gate_proj.weight": (HIDDEN, WIDTH),
            f"{stem}.mlp.up_proj.weight": (HIDDEN, WIDTH),
            f"{stem}.mlp.down_proj.weight": (WIDTH, HIDDEN),
        }
    return [*shards, {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH)}]


def make(folder: Path, layers: int) -> int:
    """Write the checkpoint; return its bytes."""
    random = np.random.default_rng(1)
    pool = (0.02 * random.standard_normal(POOL, np.float32)).astype(ml_dtypes.bfloat16)
    shards, where = tensors(layers), dict[str, str]()
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        held: dict[str, Any] = {}
        for tensor, shape in shard.items():
            size = int(np.prod(shape))
            if len(shape) == 1:
                held[tensor] = (1 + pool[:size].astype(np.float32)).astype(ml_dtypes.bfloat16)
                continue
            start = int(random.integers(POOL))
            repeated = np.tile(np.roll(pool, -start), -(-size // POOL))
            held[tensor] = repeated[:size].reshape(shape)
        save_file(held, folder / name, {"format": "pt"})
        where |= dict.fromkeys(shard, name)
    total = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    return total


def watched(command: list[str], peaks: dict[str, float], name: str) -> tuple[float, str, int]:
    """Run a command; return its seconds, its output and its exit status, and note the peak of each process."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    root = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for process in family:
            what = name if process.pid == root.pid else f"child of {name}"
            peaks[what] = max(peaks.get(what, 0.0), high_water(process.pid))
        time.sleep(0.2)
    assert child.stdout is not None
    text = child.stdout.read()
    return time.monotonic() - began, text, child.wait()


def high_water(process: int) -> float:
    """Return the peak resident bytes of a process, 0 when it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((1024.0 * float(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0.0)


def main() -> int:
    """Make, import, compile, record, delete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where 21 GB are free")
    parser.add_argument("--parity", default="auto")
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="omnic-import-", dir=args.folder))
    peaks: dict[str, float] = {}
    try:
        checkpoint, model, bundle = place / "checkpoint", place / "model", place / "bundle"
        checkpoint.mkdir()
        size = make(checkpoint, args.layers)
        omnic = [sys.executable, "-m", "omnic"]
        first, _, status = watched(
            [*omnic, "import", str(checkpoint), "-o", str(model), "--link", "--json"], peaks, "import"
        )
        if status:
            return status
        compile_ = [*omnic, "compile", str(model / "spec.yaml"), "--target", "onnx", "--pass", PASS]
        second, text, status = watched(
            [*compile_, "--parity", args.parity, "-o", str(bundle), "--json"], peaks, "compile"
        )
        if status not in (0, 1):
            return status
        result = json.loads(text)
        weights = sum(f.stat().st_size for f in bundle.glob("*.bin"))
    finally:
        shutil.rmtree(place)
    full = args.layers == 32
    seconds = first + second
    bar = f"<= {TIME_BAR:.0f} s" if full else ""
    rows = [
        row("import and compile", f"{seconds:.0f} s", bar, seconds <= TIME_BAR if full else None, seconds=seconds),
        row("of these, import", f"{first:.1f} s"),
    ]
    for name, peak in peaks.items():
        rows.append(row(f"peak RSS, {name}", f"{peak / 1e9:.2f} GB", "<= 3 GB", peak <= RSS_BAR, bytes=peak))
    if args.parity != "off":
        bound = f"<= {result['parity_bound']:.0e}" if result["parity_bound"] else "same tokens, KL <= 1e-3"
        rows.append(row("parity of the parts", f"{result['parity']:.1e}", bound, result["parity_ok"]))
    rows += [row("checkpoint", f"{size / 1e9:.2f} GB"), row("weights of the bundle", f"{weights / 1e9:.2f} GB")]
    conditions = {"model": "dims of Llama 3 8B", "layers": args.layers, "weights": "random", "passes": PASS}
    entry = record("import_large" if full else "import_small", conditions, rows)
    show(entry)
    return 0 if all(r["met"] is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
