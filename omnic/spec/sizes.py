"""Parameters of a model and bytes a token reads, counted from the spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omnic.spec.layers import Attention, Dense, Ffn, Layer, Norm

if TYPE_CHECKING:
    from omnic.spec.schema import Spec

__all__ = ["FLOAT_BYTES", "Parameters", "count_parameters", "layer_parameters", "read_bytes"]

FLOAT_BYTES = {"f32": 4, "bf16": 2, "f16": 2}


@dataclass(frozen=True)
class Parameters:
    """Parameter counts: of each part, of all, and of what one token uses with the main head.

    ``active`` counts a tied head once and leaves out the embedding table of an untied model (a
    token reads one row of it), MTP and verifier heads.
    """

    embedding: int
    blocks: int
    norm: int
    head: int
    mtp: int
    verifier: int
    active: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.blocks + self.norm + self.head + self.mtp + self.verifier


def count_parameters(spec: Spec) -> Parameters:
    """Return the parameter counts of ``spec``."""
    width, vocab = spec.width, spec.vocab.size
    layers = spec.layers()
    table = vocab * width
    final = _norm(layers[0].norm, width)
    blocks = sum(layer_parameters(layer) for layer in layers)
    idle = sum(_idle(layer.ffn, width) for layer in layers)
    mtp = spec.heads.mtp
    extra = 0
    if mtp is not None and mtp.kind == "linear":
        extra = mtp.depth * table
    block = spec.mtp_layer()
    if mtp is not None and block is not None:
        extra = mtp.depth * (layer_parameters(block) + 2 * width * width + 3 * final)
    return Parameters(
        embedding=table + (spec.position_table or 0) * width,
        blocks=blocks,
        norm=final * (2 if spec.norm.embedding else 1),
        head=0 if spec.tie else table,
        mtp=extra,
        verifier=table if spec.heads.verifier else 0,
        active=blocks - idle + final + table,
    )


def read_bytes(spec: Spec) -> int:
    """Return the weight bytes one token reads in decode: active parameters, plus one embedding row if untied."""
    row = 0 if spec.tie else spec.width
    return (count_parameters(spec).active + row) * FLOAT_BYTES[spec.dtype]


def layer_parameters(layer: Layer) -> int:
    """Return the parameters of one layer, its norms included."""
    norms = 4 if layer.norm.place == "both" else 2
    own = norms * _norm(layer.norm, layer.width)
    return own + _attention(layer.attention, layer.width, layer.norm) + _ffn(layer.ffn, layer.width)


def _norm(norm: Norm, width: int) -> int:
    return width * (norm.weight + norm.bias)


def _attention(a: Attention, width: int, norm: Norm) -> int:
    sinks = a.heads if a.sinks else 0
    if a.kind == "mla":
        assert a.latent and a.nope_dim and a.rope_dim and a.v_dim
        query = a.heads * a.head_dim
        down, up = a.latent + a.rope_dim, a.heads * (a.nope_dim + a.v_dim)
        total = width * down + a.latent * norm.weight + a.latent * up + a.heads * a.v_dim * width
        total += a.q_latent * (width + norm.weight + query) if a.q_latent else width * query
        biases = (a.q_latent or 0) + down + width  # as DeepSeek-V2: not on what a norm feeds
        return total + sinks + (biases if a.bias else 0)
    query, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    total = width * (query + 2 * keys) + query * width
    if a.qk_norm and norm.weight:
        total += query + keys if a.qk_norm == "full" else 2 * a.head_dim
    biases = (query + 2 * keys if a.bias else 0) + (width if a.bias is True else 0)
    return total + sinks + biases


def _expert(hidden: int, width: int, gated: bool, bias: bool) -> int:
    ups = 2 if gated else 1
    return (ups + 1) * width * hidden + (ups * hidden + width if bias else 0)


def _ffn(ffn: Ffn, width: int) -> int:
    if isinstance(ffn, Dense):
        return _expert(ffn.hidden, width, ffn.gated, ffn.bias)
    total = ffn.routed_experts * _expert(ffn.routed_hidden, width, ffn.gated, ffn.bias)
    if ffn.shared:  # one network of the summed width
        total += _expert(ffn.shared * ffn.shared_hidden, width, ffn.gated, ffn.bias) + ffn.shared_gate * width
    router = (width + ffn.select_bias + ffn.router_bias) * ffn.routed_experts
    gate = width * len(ffn.groups) if ffn.groups and ffn.group_gate else 0
    return total + router + gate


def _idle(ffn: Ffn, width: int) -> int:
    """Return the parameters of the experts a token does not take."""
    if isinstance(ffn, Dense):
        return 0
    unused = ffn.routed_experts - ffn.routed_top_k
    return unused * _expert(ffn.routed_hidden, width, ffn.gated, ffn.bias)
