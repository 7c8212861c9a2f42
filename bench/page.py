"""Writes ``docs/benchmarks.md`` from the last recorded run of every benchmark.

python bench/page.py
"""

from __future__ import annotations

import json
from pathlib import Path

HISTORY = Path(__file__).parent / "history"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"

#: history file -> heading, and the command that makes it
BENCHES = {
    "quality": ("Shipped models", "python bench/quality.py"),
    "onnx_decode": ("ONNX float against onnxruntime-genai", "python bench/onnx_decode.py"),
    "onnx_int4": ("ONNX int4 against onnxruntime-genai", "python bench/onnx_int4.py"),
    "onnx_profile": ("Where a decoded int4 token spends its time, ONNX", "python bench/onnx_profile.py"),
    "onnx_int4_prefill8": ("Prompts of int4 models with prefill-int8", "python bench/onnx_int4.py --only prefill8"),
    "onnx_prefill8": ("Prefill of an int4 model through int8 products, ONNX", "python bench/onnx_prefill8.py"),
    "executorch_int4": ("ExecuTorch int4 against ExecuTorch's own export of Llama", "python bench/executorch_int4.py"),
    "executorch_tiny": ("tiny to ExecuTorch, and the same again", "python bench/executorch_tiny.py"),
    "native_peers": ("The native target in int4 against other engines", "python bench/native_peers.py"),
    "native_peers_2": ("The same on two threads", "python bench/native_peers.py --threads 2"),
    **{
        f"native_large_{part.replace('-', '_')}{suffix}": (
            f"The 1.3 B class on the native target: {heading}{words}",
            f"python bench/native_large.py --only {part}{option}",
        )
        for part, heading in (("decode", "decoding"), ("start", "start"), ("memory", "memory"),
                              ("prefill-128", "prompts of 128"), ("prefill-512", "prompts of 512"),
                              ("torch-128", "prompts of 128 beside torch in bf16"),
                              ("torch-512", "prompts of 512 beside torch in bf16"))
        for suffix, words, option in (("", "", ""), ("_2", ", two threads", " --threads 2"))
    },
    "native_moe": ("Routed experts against QMoE of ONNX Runtime", "python bench/native_moe.py"),
    "native_moe_2": ("The same on two threads", "python bench/native_moe.py --threads 2"),
    "native_moe_whole": ("mobile_4gb by targets tvm and onnx", "python bench/native_moe.py --whole"),
    "native_moe_whole_2": ("The same on two threads", "python bench/native_moe.py --whole --threads 2"),
    "mla": ("MLA at the dims of a spec", "python bench/mla.py"),
    "router": ("Variations of a trained router", "python bench/router.py"),
    "kernels_products": ("Product kernels against reading alone and MatMulNBits", "python bench/kernels_products.py"),
    "kernels_attention": ("Attention kernels against composed operators", "python bench/kernels_attention.py"),
    "fast_head": ("The head's argmax by a shortlist", "python bench/fast_head.py"),
    "engine": ("Engine over the bare session", "python bench/engine.py"),
    "large": ("A model larger than memory: mobile_4gb to ONNX", "python bench/large.py"),
    "large_int4": ("The same in 4 bits", "python bench/large.py --int4"),
    "coreml_int4": ("mobile_4gb to Core ML in 4 bits", "python bench/coreml_large.py --only int4"),
    "coreml_fp16": ("1.2 B parameters to Core ML in fp16", "python bench/coreml_large.py --only fp16"),
    "coreml_rounding": ("fp16 packages and the sums of their reference", "python bench/coreml_rounding.py"),
    "coreml_tiny": ("tiny to Core ML, and the same again", "python bench/coreml_large.py --only tiny"),
    "import_large": ("A published checkpoint of 8 B parameters to 4 bits", "python bench/import_large.py"),
    "rope_rescale": ("Longer contexts by re-scaled rope", "python bench/rope_rescale.py"),
    "compression": (
        "Weights and states in fewer bits, beside llama.cpp (pictures: [weights](passes/int4-packing.md#measured), "
        "[states](passes/kv-quant.md#measured))",
        "python -m bench.compression",
    ),
    "train_ratio": ("Training module against a plain loop", "python bench/train_ratio.py"),
}
HEAD = """# Benchmarks

Every figure here was printed by the command above it and recorded in `bench/history/`; this page is
written by `python bench/page.py`. Ratios are medians of interleaved rounds with a 95 % bootstrap interval;
a bar counts as met when the median reaches it and the interval stays within 3 % of it.
"""


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    for name, (heading, command) in BENCHES.items():
        file = HISTORY / f"{name}.jsonl"
        if not file.is_file():
            continue
        runs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        entry = runs[-1]
        conditions = ", ".join(f"{key} {value}" for key, value in entry["conditions"].items())
        parts.append(f"\n## {heading}\n\n`{command}`, {entry['at']}, {entry['processor']}; {conditions}.\n")
        parts.append("| what | figure | bar | |\n|---|---|---|---|")
        for item in entry["rows"]:
            if item.get("detail"):  # data behind a picture; its table stands on a page of its own
                continue
            verdict = {True: "met", False: "**missed**", None: ""}[item["met"]]
            parts.append(f"| {item['what']} | {item['figure']} | {item['bar']} | {verdict} |")
        missed = [run["at"] for run in runs[:-1] if any(item["met"] is False for item in run["rows"])]
        if missed:
            when = ", ".join(missed)
            parts.append(f"\nOf {len(runs)} recorded runs, {len(missed)} before this one missed a bar: {when}.")
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")
    print(f"{PAGE.name}: written")


if __name__ == "__main__":
    main()
