"""llama.cpp: our GGUF export in the type with the same group size."""

from __future__ import annotations

from collections.abc import Mapping

from omnic.bench.peers.request import PeerRequest, installed, key_of
from omnic.bench.runners import Contestant
from omnic.compiler.exporting_gguf import export_gguf
from omnic.errors import InputError

__all__ = ["build"]


def build(request: PeerRequest) -> Contestant:
    """Build it, or find it built.

    Raises:
        InputError: it has no such precision, or the package is not there.
    """
    package = installed("llama-cpp-python", "bench")
    types: Mapping[tuple[int, int], str] = {(32, 0): "f32", (16, 0): "f16", (8, 32): "q8_0", (4, 32): "q4_0"}
    kind = types.get((request.precision.bits, request.precision.group))
    if kind is None:
        raise InputError(f"llama.cpp has no type of {request.precision}", "its types q4_0 and q8_0 have groups of 32")
    out = request.folder / f"{key_of(request, 'gguf')}.gguf"
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        export_gguf(request.spec, out, weights=request.weights, seed=request.seed, type=kind, heads=False,
                    tokenizer=False)
    return Contestant(
        "llama.cpp", "omnic.bench.engines.llama_cpp:open_llama_cpp",
        {"file": str(out.absolute()), "length": request.length, "threads": request.threads},
        {"llama-cpp-python": package, "type": kind, "keys and values": "f16"},
    )  # fmt: skip
