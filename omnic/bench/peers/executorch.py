"""ExecuTorch: the program that its own export of Llama makes of our numbers, with its settings for phones.

``8da4w`` in the groups of the request (the head among them), the embedding in 4 bits, key-value cache,
``llama::custom_sdpa``, XNNPACK with the extended operators, shapes dynamic.
"""

from __future__ import annotations

import json
import subprocess
import sys

from omnic.bench.peers.executorch_export import NAME
from omnic.bench.peers.request import PeerRequest, installed, key_of, source_of
from omnic.bench.runners import Contestant
from omnic.errors import InputError, OmnicError
from omnic.models import build as build_model
from omnic.models.checkpoints.publish import publish
from omnic.spec import Spec
from omnic.spec.export import to_yaml

__all__ = ["build"]


def build(request: PeerRequest) -> Contestant:
    """Build it, or find it built.

    Raises:
        InputError: its Llama cannot express the model, it has no such precision, or the package is not there.
    """
    package, torchao = installed("executorch", "executorch"), installed("torchao", "executorch")
    bits, group = request.precision.bits, request.precision.group
    if bits not in (4, 32):
        raise InputError(f"ExecuTorch's export of Llama has no {request.precision}", "it has f32 and int4 in groups")
    _expressible(request.spec)
    out = request.folder / f"executorch-{key_of(request, 'executorch', package, torchao)}"
    if not (out / NAME).is_file():
        out.mkdir(parents=True, exist_ok=True)
        asked = {"spec": to_yaml(request.spec), "file": "spec.yaml", "seed": request.seed,
                 "weights": str(source_of(request)) if request.seed is None else None,
                 "group": group, "length": request.length}
        (out / "request.json").write_text(json.dumps(asked), encoding="utf-8")
        # In a process of its own: the exporter changes torch's settings and the folder it runs in.
        done = subprocess.run([sys.executable, "-m", "omnic.bench.peers.executorch_export", str(out.absolute())],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"
            raise InputError(f"ExecuTorch's export of Llama failed: {last}")
    return Contestant(
        "executorch", "omnic.bench.engines.executorch:open_executorch",
        {"file": str((out / NAME).absolute()), "threads": request.threads},
        {"version": package, "torchao": torchao, "precision": f"8da4w, groups of {group}" if bits == 4 else "f32",
         "keys and values": "f32"},
    )  # fmt: skip


def _expressible(spec: Spec) -> None:
    """Check that ``ModelArgs`` of their Llama can say what the spec says.

    Raises:
        InputError: it cannot.
    """
    try:
        publish(spec, build_model(spec), "llama")
    except OmnicError as error:
        raise InputError(f"ExecuTorch's Llama cannot express {spec.model}: {error.message}") from error
    layers = spec.layers()
    rope, bias = layers[0].attention.rope, any(layer.attention.bias or layer.ffn.bias for layer in layers)
    if rope is None or rope.scaling or rope.dims != layers[0].attention.head_dim or bias:
        raise InputError(f"the exporter of ExecuTorch's Llama is given no biases and no scaled rope of {spec.model}")
