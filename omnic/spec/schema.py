"""The schema: the validated object both front ends produce."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PrivateAttr

from omnic.spec.blocks import BlockModel, QkNorm
from omnic.spec.kinds import KindOf
from omnic.spec.layers import Layer, Place
from omnic.spec.tree import Node, Path
from omnic.spec.values import (
    Bytes,
    Dim,
    FileName,
    Flag,
    ModelName,
    Options,
    Passes,
    Positive,
    Record,
    Tokens,
)

__all__ = [
    "SPEC_VERSION",
    "BudgetModel",
    "HeadsModel",
    "InitModel",
    "MtpModel",
    "MultipliersModel",
    "NormModel",
    "SoftcapModel",
    "Spec",
    "VocabModel",
]

SPEC_VERSION = 1

FloatType = Literal["f32", "bf16", "f16"]


class VocabModel(Record):
    """The tokens the model knows."""

    size: Tokens = Field(description="rows of the embedding and of the head")
    used: Tokens | None = Field(
        default=None, description="tokens of the tokenizer, when the rows beyond are padding; none: all of size"
    )


class NormModel(Record):
    """The norm of every block and the final one."""

    kind: Literal["rms", "layer"] = Field(
        default="rms",
        description="rms: RMSNorm (arXiv 1910.07467); layer: LayerNorm (arXiv 1607.06450), biased if 'bias' is true",
    )
    eps: Positive = Field(default=1e-6, description="added to the mean square (the variance)")
    place: Literal["pre", "post", "both", "parallel"] = Field(
        default="pre",
        description="pre: before attention and ffn; post: after each, before the residual is added; both: both; "
        "parallel: before each, attention and ffn of a block reading the same stream",
    )
    weight: Flag = Field(default=True, description="norms have a learned weight")
    bias: Flag | None = Field(default=None, description="a layer norm has a learned bias; unset: the spec's bias")
    embedding: Flag = Field(default=False, description="the embedding is normed before the first block")


class SoftcapModel(Record):
    """Soft limits: x becomes cap * tanh(x / cap)."""

    attention: Positive | None = Field(default=None, description="cap of the attention logits; none: no cap")
    logits: Positive | None = Field(default=None, description="cap of the head's logits; none: no cap")


class MultipliersModel(Record):
    """Factors of parts of the model (Granite; muP, arXiv 2203.03466)."""

    embedding: Positive = Field(default=1.0, description="factor of the embedding")
    residual: Positive = Field(default=1.0, description="factor of what attention and ffn add to the stream")
    logits: Positive = Field(default=1.0, description="factor of the head's logits, before softcap.logits")


class InitModel(Record):
    """How weights start before training."""

    std: Positive = Field(default=0.02, description="standard deviation of the normal distribution of matrices")


class MtpModel(Record):
    """Heads that predict tokens beyond the next one."""

    kind: Literal["linear", "block"] = Field(
        description="linear: independent heads W[V, D] on the final hidden state (arXiv 2401.10774); block: a block "
        "over [hidden, next embedding], re-applied for further tokens (arXiv 2412.19437)"
    )
    depth: Annotated[Dim, Field(le=16)] = Field(
        default=1, description="linear: tokens predicted beyond the next; block: blocks"
    )
    ffn: Annotated[BaseModel, KindOf("ffn")] | None = Field(
        default=None, description="block: the ffn of the block; none: that of the last layer"
    )
    normed: Flag = Field(
        default=False,
        description="block: it reads the hidden state after the final norm, and a further block that after the norm of "
        "the one before (DeepSeek-V3 and GLM-4.5 as published); false: before these norms",
    )


class HeadsModel(Record):
    """Heads beside the main one."""

    mtp: MtpModel | None = Field(default=None, description="multi-token prediction; none: no such head")
    verifier: Flag = Field(
        default=False, description="a linear head [V, D] whose agreement with the main one says how far to draft"
    )


class BudgetModel(Record):
    """What the compiled model must fit in."""

    memory: Bytes | None = Field(default=None, description="bytes the process may hold; none: not limited")
    context: Tokens | None = Field(
        default=None, description="tokens of state capacity to plan for; none: the model's context"
    )
    disk: Bytes | None = Field(default=None, description="bytes the bundle may take; none: not limited")


def _chunk(data: dict[str, Any]) -> int:
    return min(512, data["budget"].context or data["context"])


def _chunk_verify(data: dict[str, Any]) -> int:
    return min(16, data["chunk"])


class Spec(Record):
    """A model: what it is, what it must fit in, where it goes."""

    omnic: Literal[1] = Field(default=SPEC_VERSION, description="version of the spec language")
    model: ModelName = Field(description="name of the model: letters, digits, '_', '-', '.'")
    extends: FileName | None = Field(
        default=None, description="a spec file (relative to this one) or preset whose values this one overrides"
    )
    vocab: VocabModel = Field(description="the tokens the model knows")
    tokenizer: FileName | None = Field(
        default=None, description="tokenizer file, relative to this one; none: the model takes and gives token ids"
    )
    context: Tokens = Field(description="trained length in tokens; rope scaling is relative to it")
    budget: BudgetModel = Field(default=BudgetModel(), description="what the compiled model must fit in")
    chunk: Tokens = Field(
        default_factory=_chunk,
        description="most tokens of one call (T_max); unset: 512, or the state capacity where that is less",
    )
    chunk_verify: Tokens = Field(
        default_factory=_chunk_verify,
        description="most tokens of one verification; states that snapshot keep as many steps; unset: 16, or the chunk",
    )
    dtype: FloatType = Field(
        default="f32", description="how weights are stored; arithmetic is f32 unless a target says otherwise"
    )
    kv_dtype: FloatType = Field(default="f32", description="how the KV cache is stored before any quantisation")
    tie: Flag = Field(default=False, description="the head uses the embedding's weight")
    norm: NormModel = Field(default=NormModel(), description="the norm of the blocks and the final one")
    bias: Flag = Field(default=False, description="biases of all projections, unless a block says otherwise")
    qk_norm: QkNorm = Field(
        default=False,
        description="RMS norm of each query and key head (full: of all heads of a token together), unless a block says "
        "otherwise",
    )
    sinks: Flag = Field(default=False, description="a learned sink logit per head, unless a block says otherwise")
    softcap: SoftcapModel = Field(default=SoftcapModel(), description="soft limits of logits")
    multipliers: MultipliersModel = Field(default=MultipliersModel(), description="factors of parts of the model")
    position_table: Tokens | None = Field(
        default=None, description="rows of a learned table of positions that is added to the embedding; none: no table"
    )
    head_dim: Dim | None = Field(
        default=None, description="dims of a head where a block does not say; none: width / heads"
    )
    kv_heads: Dim | None = Field(default=None, description="key and value heads where a gqa block does not say")
    init: InitModel = Field(default=InitModel(), description="how weights start before training")
    weights: FileName | None = Field(
        default=None, description="safetensors file, relative to this one; none: given at compile time"
    )
    draft: FileName | None = Field(
        default=None, description="spec file (relative to this one) or preset of the draft model for speculation"
    )
    blocks: Annotated[tuple[BlockModel, ...], Field(min_length=1, max_length=1024)] = Field(
        description="the layers from the first on; with extends also {NUMBER: keys to override}"
    )
    heads: HeadsModel = Field(default=HeadsModel(), description="heads beside the main one")
    passes: Passes = Field(
        default="auto",
        description="what changes the module before a target takes it, in order: a list of NAME or {NAME: options}; "
        "auto: no pass, so weights and states stay as they are stored (a target still finds its own fusions)",
    )
    targets: dict[ModelName, Options] = Field(default={}, description="devices to compile for, each with its options")

    _tree: Node = PrivateAttr()
    _file: str = PrivateAttr("<spec>")
    _folder: FilePath | None = PrivateAttr(None)

    # -- what the file says ---------------------------------------------------------------

    def given(self) -> dict[str, Any]:
        """Return the values that were written, in their order, sizes as numbers, without ``extends``."""
        data = self.model_dump(by_alias=True, exclude_unset=True, mode="json", exclude={"extends"})
        return _in_order(data, self._tree)

    def meaning(self) -> dict[str, Any]:
        """Return what the spec means as plain data: every default filled in, blocks expanded to layers.

        Two specs are equal when this is: a pattern equals the layers it stands for, a default that
        is written equals one that is not.
        """
        data = self.model_dump(by_alias=True, mode="json", exclude=set(_EXPANDED))
        data["layers"] = [_plain_layer(layer) for layer in self.layers()]
        mtp = self.mtp_layer()
        if mtp is not None:
            data["heads"]["mtp"]["ffn"] = _plain_layer(mtp)["ffn"]
        return data

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of :meth:`meaning`: equal specs have equal digests."""
        return hashlib.sha256(json.dumps(self.meaning(), sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    # -- where it says it -----------------------------------------------------------------

    @property
    def file(self) -> str:
        """The file's name as messages show it."""
        return self._file

    @property
    def folder(self) -> FilePath | None:
        """The folder relative files start from; None for a text without a file."""
        return self._folder

    @property
    def tree(self) -> Node:
        """The placed tree the spec was made from, extensions merged."""
        return self._tree

    def place(self, path: Path | str = ()) -> Place:
        """Return (file, line, column) of the value at ``path``, or of what is nearest above it.

        Args:
            path: keys and indices, or a dotted text such as ``blocks.0.attention``.
        """
        steps = _steps(path) if isinstance(path, str) else path
        span = self._tree.nearest(steps).place
        return span.file, span.line, span.column

    def resolve(self, key: Literal["weights", "tokenizer", "draft"]) -> FilePath | None:
        """Return the path of the file a key names, relative to the file the key is written in.

        None when the key is unset or the spec came from a text without a folder.
        """
        name = getattr(self, key)
        node = self._tree.find((key,))
        if name is None or node is None:
            return None
        folder = node.folder or self._folder
        return None if folder is None else folder / name

    # -- what follows from it -------------------------------------------------------------

    @property
    def width(self) -> int:
        """Dims of the residual stream."""
        return self.blocks[0].width

    @property
    def capacity(self) -> int:
        """State capacity S in tokens: ``budget.context``, else ``context``."""
        return self.budget.context if self.budget.context is not None else self.context

    def layers(self) -> tuple[Layer, ...]:
        """Return the layers with every default, repeat and pattern expanded."""
        return self._layers

    def mtp_layer(self) -> Layer | None:
        """Return the layer of a block MTP head, None without one.

        Its attention is the last layer's; its ffn is ``heads.mtp.ffn``, else the last layer's.
        """
        return self._mtp_layer

    @cached_property
    def _layers(self) -> tuple[Layer, ...]:
        from omnic.spec.resolve import resolve_layers

        return resolve_layers(self)

    @cached_property
    def _mtp_layer(self) -> Layer | None:
        from omnic.spec.resolve import resolve_mtp

        return resolve_mtp(self)


_EXPANDED = ("extends", "blocks", "head_dim", "kv_heads", "qk_norm", "sinks")
"""Keys whose meaning is in the layers."""


def _in_order(value: Any, node: Node | None) -> Any:
    """Return plain data with the keys of each mapping as the tree has them."""
    if node is None:
        return value
    if isinstance(value, dict) and isinstance(node.value, dict):
        keys = [*(key for key in node.value if key in value), *(key for key in value if key not in node.value)]
        return {key: _in_order(value[key], node.child(key)) for key in keys}
    if isinstance(value, list) and isinstance(node.value, list):
        return [_in_order(item, node.child(index)) for index, item in enumerate(value)]
    return value


def _plain_layer(layer: Layer) -> dict[str, Any]:
    return {"width": layer.width, "attention": _plain(layer.attention), "ffn": _plain(layer.ffn)}


def _plain(part: Any) -> dict[str, Any]:
    """Return a layer's part as plain data; that of a registered kind is a dataclass or a pydantic model."""
    if isinstance(part, BaseModel):
        return part.model_dump(mode="json")
    return {"kind": type(part).__name__.lower()} | asdict(part)


def _steps(text: str) -> Path:
    words = text.replace("[", ".").replace("]", "").split(".")
    return tuple(int(word) if word.isdigit() else word for word in words if word)
