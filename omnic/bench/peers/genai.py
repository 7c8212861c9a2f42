"""onnxruntime-genai: the folder that its own builder makes of our Hugging Face export."""

from __future__ import annotations

import json
import subprocess
import sys

from omnic.bench.peers.request import PeerRequest, huggingface_folder, installed, key_of
from omnic.bench.runners import Contestant
from omnic.errors import InputError

__all__ = ["build"]


def build(request: PeerRequest) -> Contestant:
    """Build it, or find it built.

    Raises:
        InputError: it has no such precision, its builder failed, or the package is not there.
    """
    package = installed("onnxruntime-genai", "bench")
    bits = request.precision.bits
    if bits not in (4, 16, 32):
        raise InputError(f"onnxruntime-genai has no {request.precision} for the CPU", "it has f32 and int4")
    out = request.folder / f"genai-{key_of(request, 'genai', package)}"
    if not (out / "genai_config.json").is_file():
        source = huggingface_folder(request)
        options = ["prune_lm_head=true"]
        if bits == 4:
            options += [f"int4_block_size={request.precision.group}", "int4_accuracy_level=4"]
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out)]
        command += ["-p", "int4" if bits == 4 else "fp32", "-e", "cpu", "-c", str(request.folder / "genai-cache")]
        done = subprocess.run([*command, "--extra_options", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"
            raise InputError(f"the builder of onnxruntime-genai failed: {last}")
    path = out / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = request.threads
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    precision = str(request.precision) if bits == 4 else "f32"
    about = {"version": package, "precision": precision, "keys and values": "f32"}
    if bits == 4:
        about["accuracy level"] = "4"
    return Contestant("onnxruntime-genai", "omnic.bench.engines.genai:open_genai",
                      {"folder": str(out.absolute()), "length": request.length}, about)
