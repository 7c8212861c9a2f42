"""The engines people would use instead, made from the same numbers: same dims, same group size, their best settings.

A peer is built once into a folder and found there again.  What cannot be measured here is said, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from omnic.bench.peers import executorch, genai, llama_cpp, transformers
from omnic.bench.peers.request import PeerRequest, Precision, precision_of
from omnic.bench.runners import Contestant
from omnic.errors import InputError, OmnicError, nearest
from omnic.spec.load import with_values

__all__ = ["PEERS", "PeerRequest", "Precision", "peer_names", "precision_of", "prepare", "prepared"]

#: name -> how it is built
PEERS: Mapping[str, Callable[[PeerRequest], Contestant]] = {
    "onnxruntime-genai": genai.build,
    "llama.cpp": llama_cpp.build,
    "executorch": executorch.build,
    "transformers": transformers.build,
}


def peer_names() -> tuple[str, ...]:
    """Return the names that ``--peers`` takes."""
    return tuple(PEERS)


def prepare(name: str, request: PeerRequest) -> Contestant:
    """Build a peer, or find it built.

    Raises:
        InputError: there is no such peer, it cannot express the model, or its package is not installed.
    """
    if name not in PEERS:
        near = nearest(name, list(PEERS))
        raise InputError(f"unknown peer '{name}'", f"did you mean '{near}'?" if near else f"known: {', '.join(PEERS)}")
    return PEERS[name](request)


def prepared(names: tuple[str, ...], request: PeerRequest) -> tuple[list[Contestant], dict[str, str]]:
    """Build every peer; return those that can be measured, and why the others cannot."""
    plain = with_values(request.spec, {"passes": [], "heads": {"mtp": None, "verifier": False}}, "--peers")
    request = replace(request, spec=plain)
    found: list[Contestant] = []
    absent: dict[str, str] = {}
    for name in names:
        if name not in PEERS:
            prepare(name, request)
        try:
            found.append(prepare(name, request))
        except OmnicError as error:
            absent[name] = error.message + (f" ({error.hint})" if error.hint else "")
    return found, absent
