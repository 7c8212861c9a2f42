"""What a package says of itself: how it was made, and what a program that runs it must know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from omnic.ir.graph import Module, Node
from omnic.ir.op import find_op
from omnic.targets.coreml.build import Built
from omnic.targets.coreml.options import Options

__all__ = ["describe", "metadata_of", "order_of"]

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


def metadata_of(module: Module, options: Options, text: str, source: str) -> dict[str, str]:
    """Return the user-defined metadata of a package; every value is text, lists and objects are JSON.

    Args:
        module: as it is computed.
        options: of the compile.
        text: the module's.
        source: hash of the spec, empty where it is not known.
    """
    nodes = [n for f in module.functions.values() for n in f.nodes]
    ropes: list[dict[str, Any]] = []
    for node in nodes:
        if node.op == "rope":
            bound = find_op("rope").bind(node.attrs)
            rope = {k: bound[k] for k in ("base", "dims", "scaling", "factor", "interleaved", "attention_factor")}
            if rope not in ropes:
                ropes.append(rope)
    attends = [n for n in nodes if n.op in ("attention", "mla", "block_attention")]
    found: dict[str, Any] = {
        "model": module.name,
        "spec_sha256": source,
        "module_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "layers": len({n.scope.split(".")[1] for n in module.function().nodes if n.scope.startswith("blocks.")}),
        "cached_layers": len({s.group for s in module.states.values()}),
        "heads": _sizes(attends, 0, 1),
        "kv_heads": _sizes([n for n in attends if n.op == "attention"], 1, 1),
        "head_dim": sorted({sum(int(str(v.type.shape[3])) for v in n.operands[: 2 if n.op == "mla" else 1] if v)
                            for n in attends}),
        "latent_dim": sorted({int(str(n.operands[4].type.shape[-1])) for n in attends
                              if n.op == "mla" and n.operands[4] is not None}),
        "rope": ropes,
        "vocabulary": module.meta.get("vocab", ""),
        "context": module.meta.get("context", ""),
        "capacity": module.meta.get("capacity", ""),
        "chunk": module.dims["T"].high if "T" in module.dims else 1,
        "windows": sorted({s.window for s in module.states.values() if s.ring}),
        "compute": options.compute,
        "state": options.state,
        "precision": options.precision,
        "weights": sorted({str(w.type.element) for w in module.weights.values()}),
        "states": {s.name: str(s.type) for s in module.states.values()},
    }
    for rope in ropes[:1]:
        found |= {"rope_base": rope["base"], "rope_scale": rope["factor"], "rope_scaling": rope["scaling"]}
    plain = (str, int, float)
    return {f"omnic.{k}": str(v) if isinstance(v, plain) else json.dumps(v, sort_keys=True) for k, v in found.items()}


def _sizes(nodes: Sequence[Node], operand: int, dim: int) -> list[int]:
    return sorted({int(str(v.type.shape[dim])) for n in nodes if (v := n.operands[operand]) is not None})


def order_of(built: Sequence[Built], packages: Sequence[str], package: int) -> dict[str, str]:
    """Return what a package of several says of its place: which it is, and what runs after what.

    Args:
        built: all functions of all packages.
        packages: their names.
        package: which of them.
    """
    if len(packages) == 1:
        return {}
    order: dict[str, list[dict[str, Any]]] = {}
    for one in built:
        order.setdefault(one.form.name, []).append({
            "package": packages[one.stage.package], "function": one.stage.name, "takes": list(one.takes),
            "gives": list(one.gives)})
    return {"omnic.package": f"{package + 1} of {len(packages)}", "omnic.order": json.dumps(order)}


def describe(description: Any, module: Module, built: Sequence[Built]) -> None:
    """Fill in texts of the model, its functions' inputs, outputs and states."""
    description.metadata.shortDescription = f"{module.name}, a language model compiled by omnic"
    by_name = {b.stage.name: b for b in built}
    for function in description.functions:
        one = by_name[function.name]
        read = {**one.inputs, **{name: "" for name in one.takes}}
        written = {**one.outputs, **{name: "" for name in one.gives}}
        for feature in function.input:
            feature.shortDescription = _text(module, read[feature.name]) or "what an earlier package gives"
        for feature in function.output:
            text = _text(module, written[feature.name]) or "for the package that runs next"
            feature.shortDescription = f"{text}, after the call" if feature.name.endswith("_new") else text
        for feature in function.state:
            feature.shortDescription = _text(module, read[feature.name])


def _text(module: Module, name: str) -> str:
    state = module.states.get(name)
    if state is None:
        return _TEXTS.get(name, name)
    slots = f"a ring for a window of {state.window}" if state.ring else "a slot for each token"
    return f"cache {name} of group {state.group}, {slots}; zeros before the first token"
