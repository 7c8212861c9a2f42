"""What the report shows, gathered from a bundle: rows by layer, bytes by kind, time by part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnic.ir.graph import Module
from omnic.ir.types import Storage, TensorType
from omnic.models.summary import Summary, kind_of, summarise
from omnic.report.lossy import Lossy, lossy_facts
from omnic.runtime.bundle import Bundle

__all__ = ["Facts", "LayerRow", "gather"]

_LAYER = re.compile(r"blocks\.(\d+)\.(attn|ffn)")


@dataclass
class LayerRow:
    """One layer: what its two halves are and weigh.

    Attributes:
        name: ``embed``, ``0``, ``1``, ..., ``head``, ``mtp``.
        attention: in words; empty for what has none.
        ffn: in words.
        attention_bytes: weight bytes of the attention half (all of it, for an embedding or a head).
        ffn_bytes: weight bytes of the other half.
        state_bytes: state bytes at capacity, one row.
        experts: (experts, chosen a token, shared bytes share), or None.
    """

    name: str
    attention: str = ""
    ffn: str = ""
    attention_bytes: int = 0
    ffn_bytes: int = 0
    state_bytes: int = 0
    experts: tuple[int, int] | None = None


@dataclass(frozen=True)
class Facts:
    """Everything on the page."""

    bundle: Bundle
    summary: Summary
    layers: tuple[LayerRow, ...]
    kinds: tuple[tuple[str, int, int], ...]
    elements: tuple[tuple[str, int], ...]
    profile: Mapping[str, Any] | None
    lossy: Lossy
    ops: Mapping[str, int] = field(default_factory=dict[str, int])


def gather(bundle: Bundle) -> Facts:
    """Read what the page needs; the bundle may be unfinished."""
    module = bundle.module
    summary = summarise(module)
    kinds = tuple(
        sorted(((k, summary.by_kind[k], b) for k, b in summary.bytes_by_kind.items()), key=lambda row: -row[2])
    )
    elements: dict[str, int] = {}
    for weight in module.weights.values():
        name = str(weight.type.element)
        elements[name] = elements.get(name, 0) + weight.type.bytes()
    ops: dict[str, int] = {}
    for function in module.functions.values():
        for node in function.nodes:
            ops[node.op] = ops.get(node.op, 0) + 1
    profile = bundle.json("profile.json") if (bundle.path / "profile.json").is_file() else None
    return Facts(
        bundle,
        summary,
        _layers(bundle, module),
        kinds,
        tuple(sorted(elements.items(), key=lambda e: -e[1])),
        profile,
        lossy_facts(bundle, profile),
        dict(sorted(ops.items(), key=lambda item: -item[1])),
    )


def _layers(bundle: Bundle, module: Module) -> tuple[LayerRow, ...]:
    rows: dict[str, LayerRow] = {}
    if not bundle.from_spec:
        # An imported module does not say what its layers are, but its weights are named after them.
        found = {int(m.group(1)) for name in module.weights if (m := _LAYER.match(name))}
        rows = {str(n): LayerRow(str(n), "attention", "feed-forward") for n in sorted(found)}
    for layer in bundle.spec.layers() if bundle.from_spec else ():
        rows[str(layer.index)] = LayerRow(
            str(layer.index), _attention_words(layer.attention), _ffn_words(layer.ffn), experts=_experts(layer.ffn)
        )
    ends: dict[str, LayerRow] = {}
    for weight in module.weights.values():
        size = weight.type.bytes()
        match = _LAYER.match(weight.name)
        if match and match.group(1) in rows and not weight.name.startswith("mtp"):
            row = rows[match.group(1)]
            if match.group(2) == "attn":
                row.attention_bytes += size
            else:
                row.ffn_bytes += size
            continue
        name = {"embedding": "embed", "norms": "norms"}.get(kind_of(weight.name), kind_of(weight.name))
        ends.setdefault(name, LayerRow(name, name)).attention_bytes += size
    for state in module.states.values():
        if str(state.group) in rows:
            rows[str(state.group)].state_bytes += _row_bytes(state.type)
    first = [ends.pop("embed")] if "embed" in ends else []
    return (*first, *rows.values(), *(r for r in ends.values() if r.name != "norms"))


def _row_bytes(type: TensorType) -> int:
    shape = tuple(d if isinstance(d, int) else 1 for d in type.shape)
    return TensorType(type.element, shape).bytes()


def _attention_words(attention: Any) -> str:
    if attention.kind == "mla":
        words = f"MLA {attention.heads} × {attention.nope_dim}+{attention.rope_dim}, latent {attention.latent}"
    elif attention.kv_heads == attention.heads:
        words = f"MHA {attention.heads} × {attention.head_dim}"
    else:
        words = f"{attention.kind.upper()} {attention.heads}/{attention.kv_heads} × {attention.head_dim}"
    return f"{words}, window {attention.window:,}" if attention.window else words


def _ffn_words(ffn: Any) -> str:
    if hasattr(ffn, "experts"):
        shared = f" + {ffn.shared} shared" if ffn.shared else ""
        return f"{ffn.routed_experts} experts of {ffn.routed_hidden:,}, top {ffn.routed_top_k}{shared}"
    return f"{ffn.activation} {ffn.hidden:,}"


def _experts(ffn: Any) -> tuple[int, int] | None:
    return (ffn.routed_experts, ffn.routed_top_k) if hasattr(ffn, "experts") else None


def storage_words(type: TensorType) -> str:
    """Return how a tensor is stored, for a table."""
    return f"{type.element}" if isinstance(type.element, Storage) else str(type.element)
