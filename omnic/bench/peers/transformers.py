"""transformers: our Hugging Face export in torch, its matrices in bf16 however few bits ours have."""

from __future__ import annotations

from omnic.bench.peers.request import PeerRequest, huggingface_folder, installed
from omnic.bench.runners import Contestant

__all__ = ["build"]


def build(request: PeerRequest) -> Contestant:
    """Export the model, or find it exported.

    Raises:
        InputError: no published family can express the model, or a package is not there.
    """
    about = {"version": installed("transformers", "bench"), "torch": installed("torch", "torch"), "precision": "bf16",
             "attention": "sdpa", "keys and values": "bf16"}
    return Contestant("transformers", "omnic.bench.engines.transformers:open_transformers",
                      {"folder": str(huggingface_folder(request).absolute()), "threads": request.threads}, about)
