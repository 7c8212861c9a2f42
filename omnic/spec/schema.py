"""The schema: the validated object both front ends produce."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from omnic.spec.blocks import BlockModel
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
    Word,
)

__all__ = [
    "SPEC_VERSION",
    "BudgetModel",
    "HeadsModel",
    "InitModel",
    "MtpModel",
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
        None, description="tokens of the tokenizer, when the rows beyond are padding; none: all of size"
    )


class NormModel(Record):
    """The norm of every block and the final one."""

    kind: Literal["rms", "layer"] = Field(
        "rms", description="rms: RMSNorm (arXiv 1910.07467); layer: LayerNorm (arXiv 1607.06450), with a bias if 'bias' is true"
    )
    eps: Positive = Field(1e-6, description="added to the mean square (the variance)")
    place: Literal["pre", "post", "both"] = Field(
        "pre", description="pre: before attention and ffn; post: after each, before the residual is added; both: both"
    )


class SoftcapModel(Record):
    """Soft limits: x becomes cap * tanh(x / cap)."""

    attention: Positive | None = Field(None, description="cap of the attention logits; none: no cap")
    logits: Positive | None = Field(None, description="cap of the head's logits; none: no cap")


class InitModel(Record):
    """How weights start before training."""

    std: Positive = Field(0.02, description="standard deviation of the normal distribution of matrices")


class MtpModel(Record):
    """Heads that predict tokens beyond the next one."""

    kind: Literal["linear", "block"] = Field(
        description="linear: independent heads W[V, D] on the final hidden state (arXiv 2401.10774); block: a block over "
        "[hidden, next embedding], re-applied for further tokens (arXiv 2412.19437)"
    )
    depth: Annotated[Dim, Field(le=16)] = Field(1, description="linear: tokens predicted beyond the next; block: blocks")
    ffn: Annotated[Any, KindOf("ffn")] = Field(
        None, description="block: the ffn of the block; none: that of the last layer", json_schema_extra={"nullable": True}
    )


class HeadsModel(Record):
    """Heads beside the main one."""

    mtp: MtpModel | None = Field(None, description="multi-token prediction; none: no such head")
    verifier: Flag = Field(
        False, description="a linear head [V, D] whose agreement with the main one says how far to draft"
    )


class BudgetModel(Record):
    """What the compiled model must fit in."""

    memory: Bytes | None = Field(None, description="bytes the process may hold; none: not limited")
    context: Tokens | None = Field(None, description="tokens of state capacity to plan for; none: the model's context")
    disk: Bytes | None = Field(None, description="bytes the bundle may take; none: not limited")


class Spec(Record):
    """A model: what it is, what it must fit in, where it goes."""

    omnic: Literal[1] = Field(SPEC_VERSION, description="version of the spec language")
    model: ModelName = Field(description="name of the model: letters, digits, '_', '-', '.'")
    extends: FileName | None = Field(
        None, description="a spec file (relative to this one) or preset whose values this one overrides"
    )
    vocab: VocabModel = Field(description="the tokens the model knows")
    tokenizer: FileName | None = Field(
        None, description="tokenizer file, relative to this one; none: the model takes and gives token ids"
    )
    context: Tokens = Field(description="trained length in tokens; rope scaling is relative to it")
    chunk: Tokens = Field(
        default_factory=lambda data: min(512, data.get("context", 512)),
        description="most tokens of one call (T_max); unset: 512, or the context where that is less",
    )
    chunk_verify: Tokens = Field(
        default_factory=lambda data: min(16, data.get("chunk", 16)),
        description="most tokens of one verification; states that snapshot keep as many steps; unset: 16, or the chunk",
    )
    dtype: FloatType = Field("f32", description="how weights are stored; arithmetic is f32 unless a target says otherwise")
    kv_dtype: FloatType = Field("f32", description="how the KV cache is stored before any quantisation")
    tie: Flag = Field(False, description="the head uses the embedding's weight")
    norm: NormModel = Field(NormModel(), description="the norm of the blocks and the final one")
    bias: Flag = Field(False, description="biases of all projections, unless a block says otherwise")
    qk_norm: Flag = Field(False, description="RMS norm of each query and key head, unless a block says otherwise")
    sinks: Flag = Field(False, description="a learned sink logit per head, unless a block says otherwise")
    softcap: SoftcapModel = Field(SoftcapModel(), description="soft limits of logits")
    head_dim: Dim | None = Field(None, description="dims of a head where a block does not say; none: width / heads")
    kv_heads: Dim | None = Field(None, description="key and value heads where a gqa block does not say")
    init: InitModel = Field(InitModel(), description="how weights start before training")
    weights: FileName | None = Field(None, description="safetensors file, relative to this one; none: given at compile time")
    draft: FileName | None = Field(
        None, description="spec file (relative to this one) or preset of the draft model for speculation"
    )
    blocks: Annotated[tuple[BlockModel, ...], Field(min_length=1, max_length=1024)] = Field(
        description="the layers from the first on; with extends also {NUMBER: keys to override}"
    )
    heads: HeadsModel = Field(HeadsModel(), description="heads beside the main one")
    budget: BudgetModel = Field(BudgetModel(), description="what the compiled model must fit in")
    passes: Passes = Field("auto", description="auto: the planner's choice; or a list of NAME or {NAME: options}")
    targets: dict[Word, Options] = Field({}, description="devices to compile for, each with its options")

    _tree: Node = PrivateAttr()
    _file: str = PrivateAttr("<spec>")
    _folder: FilePath | None = PrivateAttr(None)

    # -- what the file says ---------------------------------------------------------------

    def given(self) -> dict[str, Any]:
        """Return the values that were written, sizes as numbers, without ``extends``."""
        data = self.model_dump(by_alias=True, exclude_unset=True, mode="json")
        data.pop("extends", None)
        return data

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the whole validated value: equal specs have equal digests."""
        data = self.model_dump(by_alias=True, mode="json", exclude={"extends"})
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

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


def _steps(text: str) -> Path:
    return tuple(int(step) if step.isdigit() else step for step in text.replace("[", ".").replace("]", "").split(".") if step)
