"""LoRA adapters (arXiv:2106.09685) as PEFT saves them, merged into the weights they adapt: w + scale B A.

``scale`` is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with ``use_rslora`` (arXiv:2312.03732), of each module by
``rank_pattern`` and ``alpha_pattern``.  An adapter speaks of published modules (``model.layers.0.self_attn.q_proj``); a
family's table says which weights they are, whole, cut, turned or joined.  What a table does to tensors is linear, so
the same recipe makes the change of a weight from the changes of the tensors; it is made slice by slice, in f32, and the
sum is rounded once to the weight's type.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from omnic.errors import BundleError, InputError, nearest
from omnic.ir.graph import Module, Recipe
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.types import DType, Storage, TensorType
from omnic.ir.weights import SafetensorsSource
from omnic.ir.weights.recipes import Evaluator
from omnic.ir.weights.sources import Box, CodeSource, Source, TypedSource
from omnic.models.checkpoints.config import Config, read_config
from omnic.models.checkpoints.source import names_of

__all__ = ["Adapter", "LoraSource", "open_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
}
#: keys that change nothing at merging, or that the tensors say
_IDLE = """task_type base_model_name_or_path revision inference_mode auto_mapping peft_version lora_dropout
    target_modules exclude_modules layers_to_transform layers_pattern init_lora_weights loftq_config eva_config
    corda_config megatron_config megatron_core runtime_config qalora_group_size ensure_weight_tying"""
#: keys that change what is computed, and must be unset
_REFUSED = {
    "use_dora": "DoRA scales the columns of a merged weight by their norms",
    "modules_to_save": "it holds whole modules beside its low-rank ones",
    "layer_replication": "it repeats layers",
    "lora_bias": "it has biases of its own",
    "trainable_token_indices": "it holds rows of the embedding",
    "target_parameters": "it adapts parameters of modules without a weight",
    "use_qalora": "it groups inputs",
    "alora_invocation_tokens": "it is switched on by tokens of the prompt",
    "arrow_config": "it routes between adapters",
    "use_bdlora": "it is block-diagonal",
    "lora_ga_config": "it was trained from a changed base",
}
_MERGE_FIRST = "merge it with PEFT (merge_and_unload), save that model, and import it"


@dataclass(frozen=True)
class _Low:
    """One adapted tensor: ``a`` [r, inputs] and ``b`` [outputs, r], and how the product lies in the tensor.

    Attributes:
        a: name of A in the adapter's file.
        b: name of B.
        scale: what the product is multiplied by.
        turned: the tensor is [inputs, outputs].
    """

    a: str
    b: str
    scale: float
    turned: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter that was opened.

    Attributes:
        folder: where it lies.
        source: its tensors.
        lows: of each adapted tensor, by its published name.
        strength: what the user multiplies it by.
    """

    folder: Path
    source: Source
    lows: Mapping[str, _Low]
    strength: float = 1.0

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that an adapted tensor must have."""
        low = self.lows[name]
        shape = (self.source.shape(low.b)[0], self.source.shape(low.a)[1])
        return shape[::-1] if low.turned else shape

    def change(self, name: str, box: Box) -> Array:
        """Return a part of what is added to a tensor, f32."""
        low = self.lows[name]
        outputs, inputs = (box[1], box[0]) if low.turned else (box[0], box[1])
        rank = self.source.shape(low.a)[0]
        a = np.asarray(self.source.read(low.a, ((0, rank), inputs))).astype(np.float32)
        b = np.asarray(self.source.read(low.b, (outputs, (0, rank)))).astype(np.float32)
        product = (b @ a) * np.float32(low.scale * self.strength)
        return product.T if low.turned else product


def open_adapter(folder: Path, strength: float = 1.0) -> Adapter:
    """Read an adapter's configuration and the header of its weights.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        strength: multiplies what it adds.

    Raises:
        BundleError: no adapter, or a damaged one.
        InputError: an adapter of another kind than a low-rank sum.
    """
    if not (folder / CONFIG).is_file():
        raise BundleError(
            f"{folder} is not a LoRA adapter: it has no {CONFIG}", "name the folder that save_pretrained of PEFT wrote"
        )
    config = read_config(folder / CONFIG, "an adapter's configuration")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise BundleError(
            f"the weights of {folder} are a Python pickle (adapter_model.bin): reading one runs code from it"
            if pickled
            else f"{folder} has no {WEIGHTS}",
            "save the adapter again where you trust it, with safe_serialization=True" if pickled else None,
        )
    source = SafetensorsSource(folder / WEIGHTS)
    return Adapter(folder, source, _lows(source, config), strength)


def _lows(source: Source, config: Config) -> dict[str, _Low]:
    kind = config.raw("peft_type", "kind", None)
    if kind != "LORA":
        raise InputError(f"{config.origin} is a '{kind}' adapter; omnic merges LORA", _MERGE_FIRST)
    for key, why in _REFUSED.items():
        if config.raw(key, why, None):
            raise InputError(f"{config.origin}: omnic cannot merge an adapter with {key}: {why}", _MERGE_FIRST)
    start = config.raw("init_lora_weights", "how it was initialised", True)
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise InputError(
            f"{config.origin}: the adapter was trained from a changed base (init_lora_weights = {start})",
            "save it with path_initial_model_for_weight_conversion, which makes a plain LoRA of it",
        )
    bias = config.raw("bias", "biases", "none")
    if bias != "none":
        raise InputError(f"{config.origin}: omnic cannot merge an adapter with bias = {json.dumps(bias)}", _MERGE_FIRST)
    rank, alpha = config.whole("r", "rank"), config.number("lora_alpha", "scale")
    rooted = config.flag("use_rslora", "scale", False)
    turned = config.flag("fan_in_fan_out", "layout", False)
    ranks = cast("dict[str, Any]", config.raw("rank_pattern", "rank", {}))
    alphas = cast("dict[str, Any]", config.raw("alpha_pattern", "scale", {}))
    config.ignore("changes nothing at merging", *_IDLE.split())
    unread = [key for key in config.unread() if config.raw(key, "unknown", None)]
    if unread:
        raise InputError(f"{config.origin}: omnic does not know the key '{unread[0]}'", _MERGE_FIRST)
    found: dict[str, dict[str, str]] = {}
    for name in source.names():
        ending = next((e for e in _PARTS if name.endswith(e)), None)
        if ending is None:
            raise InputError(
                f"{source.description}: '{name}' is not a low-rank part, and omnic merges no other", _MERGE_FIRST
            )
        stem = name.removesuffix(ending).removeprefix(_PREFIX)
        found.setdefault(stem, {})[_PARTS[ending]] = name
    lows: dict[str, _Low] = {}
    for stem, parts in found.items():
        lows[f"{stem}.weight"] = _low(source, stem, parts, (rank, alpha), (ranks, alphas), rooted, turned)
    if not lows:
        raise BundleError(f"{source.description} holds no tensor", "the adapter was saved before it was trained")
    return lows


def _low(
    source: Source,
    stem: str,
    parts: Mapping[str, str],
    usual: tuple[int, float],
    patterns: tuple[Mapping[str, Any], Mapping[str, Any]],
    rooted: bool,
    turned: bool,
) -> _Low:
    if len(parts) < 2:
        raise BundleError(f"{source.description}: {stem} has only {next(iter(parts.values()))}")
    rank, alpha = (_of(pattern, stem, value) for pattern, value in zip(patterns, usual, strict=True))
    a, b = source.shape(parts["a"]), source.shape(parts["b"])
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] != rank:
        raise BundleError(
            f"{source.description}: {parts['a']} is {list(a)} and {parts['b']} {list(b)}, not [{rank:g}, inputs] and "
            f"[outputs, {rank:g}]",
            "the configuration is of another adapter than the tensors",
        )
    embedding = parts["a"].endswith("lora_embedding_A")
    return _Low(parts["a"], parts["b"], alpha / (math.sqrt(rank) if rooted else rank), turned or embedding)


def _of(patterns: Mapping[str, Any], stem: str, usual: float) -> float:
    """Return the value of the first pattern that ends a module's name, else the usual one (PEFT's rule)."""
    return next((float(v) for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", stem)), usual)


class _Changes:
    """What adapters add to published tensors, as a source of numbers; zeros where they add nothing."""

    def __init__(self, adapters: Sequence[Adapter], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.adapters, self.shapes = adapters, shapes
        self.description = ", ".join(str(a.folder) for a in adapters)

    def names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(self, name: str, box: Box) -> Array:
        total = np.zeros([b - a for a, b in box], np.float32)
        for adapter in self.adapters:
            if name in adapter.lows:
                total += adapter.change(name, box)
        return total


class LoraSource:
    """Weights with adapters merged into them.

    Args:
        source: the weights by omnic's names.
        module: the model.
        table: the recipe of each weight over published tensors.
        shapes: of the published tensors.
        adapters: to add, one after the other.

    Raises:
        InputError: an adapter of another model, or of weights that are codes.
    """

    def __init__(
        self,
        source: Source,
        module: Module,
        table: Mapping[str, Recipe],
        shapes: Mapping[str, tuple[int, ...]],
        adapters: Sequence[Adapter],
    ) -> None:
        self.source, self.description = source, source.description
        for adapter in adapters:
            _check(adapter, shapes)
        adapted = {name for adapter in adapters for name in adapter.lows}
        changes = _Changes(adapters, shapes)
        self._merged: dict[str, tuple[Evaluator, Recipe, TensorType]] = {}
        for name, recipe in table.items():
            if name not in module.weights or adapted.isdisjoint(names_of(recipe)):
                continue
            typed = source.typed(name) if isinstance(source, TypedSource) else None
            if typed is not None and isinstance(typed.element, Storage):
                raise InputError(
                    f"{self.description}: {name} is quantised ({typed.element}), and what an adapter adds to it has no "
                    "place in its codes",
                    "import the checkpoint that is not quantised, and quantise after merging: --pass int4-packing",
                )
            type = typed or module.weights[name].type
            self._merged[name] = (Evaluator(name, (), changes, None, None), _linear(recipe), type)

    def names(self) -> tuple[str, ...]:
        """Return the names of the weights."""
        return self.source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight."""
        return self.source.shape(name)

    def typed(self, name: str) -> TensorType | None:
        """Return the type of a weight that has one of its own."""
        return self.source.typed(name) if isinstance(self.source, TypedSource) else None

    def read(self, name: str, box: Box) -> Array:
        """Return a part of a weight, merged: the sum in f32, rounded to the type the weight has."""
        base = self.source.read(name, box)
        if name not in self._merged or any(a == b for a, b in box):
            return base
        evaluator, recipe, type = self._merged[name]
        total = np.asarray(base).astype(np.float32) + evaluator.numbers(recipe, box)
        return total if type.element == DType.F32 else total.astype(type.dtype.numpy)

    def quantised(self, name: str, rows: tuple[int, int]) -> QTensor:
        """Return rows of a weight that is codes, which no adapter changes."""
        if isinstance(self.source, CodeSource):
            return self.source.quantised(name, rows)
        raise InputError(f"{self.description}: {name} is not read as codes")


def _linear(recipe: Recipe) -> Recipe:
    """Return what a recipe does to a change: shifts fall away."""
    inputs = tuple(_linear(i) for i in recipe.inputs)
    return inputs[0] if recipe.kind == "shift" else Recipe(recipe.kind, recipe.args, inputs)


def _check(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    unknown = [name for name in adapter.lows if name not in shapes]
    if unknown:
        near = nearest(unknown[0], list(shapes))
        raise InputError(
            f"{adapter.folder}: the model has no {unknown[0].removesuffix('.weight')}"
            + (f" (and not {len(unknown) - 1} more)" if len(unknown) > 1 else ""),
            "the adapter is of another model" + (f"; nearest: {near.removesuffix('.weight')}" if near else ""),
        )
    for name in adapter.lows:
        if adapter.shape(name) != tuple(shapes[name]):
            raise InputError(
                f"{adapter.folder}: it adds {list(adapter.shape(name))} to {name}, which is {list(shapes[name])}",
                "the adapter is of a model of another size; or fan_in_fan_out is wrong",
            )
