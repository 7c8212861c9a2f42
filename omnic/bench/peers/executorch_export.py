"""Run ExecuTorch's own export of Llama on our numbers: ``python -m omnic.bench.peers.executorch_export FOLDER``.

The folder holds ``request.json``; ``llama.pte`` is written beside it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from omnic.compiler.exporting import export_store
from omnic.models import build
from omnic.spec import Spec, parse_spec

__all__ = ["NAME", "checkpoint", "main"]

NAME = "llama.pte"
_BLOCK = {"attn.q": "attention.wq", "attn.k": "attention.wk", "attn.v": "attention.wv", "attn.o": "attention.wo",
          "attn_norm": "attention_norm", "ffn_norm": "ffn_norm", "ffn.gate": "feed_forward.w1",
          "ffn.up": "feed_forward.w3", "ffn.down": "feed_forward.w2"}
_WHOLE = {"embed": "tok_embeddings", "head": "output", "final_norm": "norm"}


def checkpoint(spec: Spec, weights: Path | None, seed: int | None, folder: Path) -> tuple[Path, Path]:
    """Write our numbers as a checkpoint of their Llama; return it and its ``params.json``."""
    import torch

    store, layer = export_store(build(spec), spec, weights, seed, whole=False), spec.layers()[0]
    heads, groups = layer.attention.heads, layer.attention.kv_heads
    state: dict[str, Any] = {}
    for name in store.module.weights:
        tensor = torch.from_numpy(np.array(store.array(name), np.float32))
        if name in _WHOLE:
            state[f"{_WHOLE[name]}.weight"] = tensor
            continue
        _, number, rest = name.split(".", 2)
        if rest in ("attn.q", "attn.k"):
            # Their rope turns neighbours, ours the two halves of a head.
            count = heads if rest == "attn.q" else groups
            tensor = tensor.reshape(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape).contiguous()
        state[f"layers.{number}.{_BLOCK[rest]}.weight"] = tensor
    state.setdefault("output.weight", state["tok_embeddings.weight"])
    rope = layer.attention.rope
    assert rope is not None
    params = {"dim": layer.width, "n_layers": len(spec.layers()), "n_heads": heads, "n_kv_heads": groups,
              "head_dim": layer.attention.head_dim, "vocab_size": spec.vocab.size, "hidden_dim": layer.ffn.hidden,
              "norm_eps": layer.norm.eps, "rope_theta": rope.base}
    torch.save(state, folder / "checkpoint.pth")
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    return folder / "checkpoint.pth", folder / "params.json"


def main(folder: Path) -> None:
    """Export, as ``python -m executorch.extension.llm.export.export_llm`` does."""
    from executorch.examples.models.llama.export_llama_lib import export_llama
    from executorch.extension.llm.export.config.llm_config import LlmConfig

    asked = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    spec = parse_spec(asked["spec"], asked["file"])
    weights = Path(asked["weights"]) if asked["weights"] else None
    numbers, params = checkpoint(spec, weights, asked["seed"], folder)
    config: Any = LlmConfig()
    config.base.checkpoint, config.base.params = str(numbers), str(params)
    config.model.use_kv_cache = config.model.use_sdpa_with_kv_cache = True
    if asked["group"]:
        config.quantization.qmode, config.quantization.group_size = "8da4w", asked["group"]
        config.quantization.embedding_quantize = f"4,{asked['group']}"
    config.backend.xnnpack.enabled = config.backend.xnnpack.extended_ops = True
    config.export.max_seq_length = config.export.max_context_length = asked["length"]
    config.export.output_name = NAME
    # The exporter writes into the folder it runs in.
    os.chdir(folder)
    export_llama(config)
    numbers.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
