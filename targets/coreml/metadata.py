"""What a package says of itself: how it was made, and what a program that runs it must know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from omnic.ir.graph import Module
from omnic.ir.op import find_op
from omnic.targets.coreml.build import Built
from omnic.targets.coreml.options import Options

__all__ = ["describe", "metadata_of"]

_TEXTS = {
    "tokens": "ids of the new tokens",
    "next_tokens": "ids of the tokens after each position",
    "positions": "position of each token, for the rotary embedding",
    "start": "tokens that the caches hold before this call",
    "length": "valid tokens of this call; what follows them changes no cache",
    "rows": "tokens of this call whose logits are wanted, counted from 0",
    "parents": "parent of each token within this call, -1 for the committed prefix",
    "logits": "logits of the next token for each of the rows",
    "hidden": "residual stream of each token before the last norm",
    "mtp": "logits of the tokens after the next one",
    "verifier": "logits of the verifier head",
}


def metadata_of(module: Module, options: Options, text: str) -> dict[str, str]:
    """Return the user-defined metadata of a package; every value is text, lists are JSON."""
    nodes = [n for f in module.functions.values() for n in f.nodes]
    ropes: list[dict[str, Any]] = []
    for node in nodes:
        if node.op == "rope":
            bound = find_op("rope").bind(node.attrs)
            rope = {k: bound[k] for k in ("base", "dims", "scaling", "factor", "interleaved", "attention_factor")}
            if rope not in ropes:
                ropes.append(rope)
    heads = sorted({int(str(n.operands[0].type.shape[1])) for n in nodes
                    if n.op in ("attention", "mla", "block_attention") and n.operands[0] is not None})
    latents = sorted({int(str(s.type.shape[-1])) for s in module.states.values() if s.role == "latent"})
    groups = {s.group for s in module.states.values()}
    found: dict[str, Any] = {
        "model": module.name,
        "module_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "layers": len({n.scope.split(".")[1] for n in module.function().nodes if n.scope.startswith("blocks.")}),
        "cached_layers": len(groups),
        "heads": heads,
        "latent_dim": latents,
        "rope": ropes,
        "vocabulary": module.meta.get("vocab", ""),
        "context": module.meta.get("context", ""),
        "capacity": module.meta.get("capacity", ""),
        "windows": sorted({s.window for s in module.states.values() if s.ring}),
        "compute": options.compute,
        "state": options.state,
        "precision": options.precision,
        "states": {s.name: str(s.type) for s in module.states.values()},
    }
    for rope in ropes[:1]:
        found |= {"rope_base": rope["base"], "rope_scale": rope["factor"], "rope_scaling": rope["scaling"]}
    plain = (str, int, float)
    return {f"omnic.{k}": str(v) if isinstance(v, plain) else json.dumps(v, sort_keys=True) for k, v in found.items()}


def describe(description: Any, module: Module, built: Sequence[Built]) -> None:
    """Fill in texts of the model, its functions' inputs, outputs and states."""
    description.metadata.shortDescription = f"{module.name}, a language model compiled by omnic"
    by_name = {b.form.name: b for b in built}
    for function in description.functions:
        one = by_name[function.name]
        for feature in function.input:
            feature.shortDescription = _text(one.inputs[feature.name])
        for feature in function.output:
            feature.shortDescription = _text(one.outputs[feature.name])
        for feature in function.state:
            feature.shortDescription = _text(one.inputs[feature.name])


def _text(name: str) -> str:
    return _TEXTS.get(name, f"cache {name}" if "." in name else name)
