"""Static scales of states: ranges seen on calibration text, kept in the result store and in a sidecar file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from omnic.errors import BundleError, InputError
from omnic.ir.graph import Module, Recipe
from omnic.ir.types import DType, TensorType
from omnic.ir.weights import ResultStore, SafetensorsSource
from omnic.passes.context import PassContext
from omnic.passes.kv.forms import Cache, Form
from omnic.passes.kv.rewrite import scale_name

__all__ = ["Ranges", "read_ranges", "save_ranges", "scales_of", "state_ranges", "store_scales"]

Floats = npt.NDArray[np.floating[Any]]
NAME = "kv-quant"


@dataclass(frozen=True)
class Ranges:
    """The least and the greatest number of each head and channel of each state, f32 [heads, width].

    Attributes:
        low: by name of the state.
        high: by name of the state.
        text: what they were seen on.
    """

    low: Mapping[str, Floats]
    high: Mapping[str, Floats]
    text: str


def state_ranges(module: Module, caches: Sequence[Cache], windows: int, context: PassContext) -> Ranges:
    """Return the ranges of what ``caches`` of ``forward`` are written with, on at most ``windows`` windows of text.

    Raises:
        InputError: there is no text, or nothing to run the model with.
    """
    calibration = context.need_calibration(NAME)
    weights = context.need_weights(NAME)
    results = context.need_results(NAME)
    tokens = calibration.tokens[:windows]
    names = [c.state.name for c in caches]
    key = results.key(what="ranges of states", model=context.weights_key, module=module.name, states=names,
                      text=calibration.sha256, windows=len(tokens))
    if key in results:
        kept = results.get(key)
        assert isinstance(kept, np.ndarray)
        return _unpacked(kept, caches, calibration.text)
    owner = {node.name: c.state.name for c in caches for node in c.writes}
    low = {c.state.name: np.full((c.heads, c.width), np.inf, np.float32) for c in caches}
    high = {c.state.name: np.full((c.heads, c.width), -np.inf, np.float32) for c in caches}

    def visit(node: str, operands: tuple[Any, ...], _: tuple[Any, ...]) -> None:
        x = np.asarray(operands[1], np.float32)
        name = owner[node]
        axes = (0, 2) if x.ndim == 4 else (0, 1)
        low[name] = np.minimum(low[name], x.min(axes).reshape(low[name].shape))
        high[name] = np.maximum(high[name], x.max(axes).reshape(high[name].shape))

    context.progress(f"{NAME}: ranges of states", 0.0)
    context.need_executor(NAME)(module, weights.with_module(module)).observe(tokens, list(owner), visit)
    flat = [part[n].reshape(-1) for n in names for part in (low, high)]
    results.put(key, np.concatenate(flat))
    return Ranges(low, high, calibration.text)


def _unpacked(kept: Floats, caches: Sequence[Cache], text: str) -> Ranges:
    low: dict[str, Floats] = {}
    high: dict[str, Floats] = {}
    at = 0
    for cache in caches:
        size = cache.heads * cache.width
        low[cache.state.name], high[cache.state.name] = (
            kept[at + i * size : at + (i + 1) * size].reshape(cache.heads, cache.width) for i in range(2)
        )
        at += 2 * size
    return Ranges(low, high, text)


def save_ranges(path: Path, ranges: Ranges, scheme: Mapping[str, str], model: str) -> None:
    """Write the sidecar: ``NAME.low`` and ``NAME.high`` of each state, and what they are in the header.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {f"{n}.{end}": np.ascontiguousarray(part[n], np.float32)
               for end, part in (("low", ranges.low), ("high", ranges.high)) for n in part}
    about = {"omnic": "kvq", "model": model, "text": ranges.text, "scheme": json.dumps(dict(scheme), sort_keys=True)}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(save(tensors, about))
        partial.replace(path)
    except OSError as error:
        raise InputError(f"the sidecar {path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def read_ranges(path: Path, caches: Sequence[Cache], scheme: Mapping[str, str], model: str) -> Ranges:
    """Read a sidecar.

    Raises:
        InputError: it is something else, of another model, or of another scheme.
    """
    try:
        source = SafetensorsSource(path)
    except BundleError as error:
        raise InputError(f"{path} is not a sidecar of kv-quant: {error.message}") from error
    about = source.metadata
    again = "delete the file and compile again to write it anew"
    if about.get("omnic") != "kvq":
        raise InputError(f"{path} is not a sidecar of kv-quant", "name a new file, and it will be written")
    if about.get("model") != model:
        raise InputError(f"{path} was calibrated on another model or other weights", again)
    if about.get("scheme") != json.dumps(dict(scheme), sort_keys=True):
        raise InputError(f"{path} holds scales of the scheme {about.get('scheme')}, not "
                         f"{json.dumps(dict(scheme), sort_keys=True)}", again)
    low: dict[str, Floats] = {}
    high: dict[str, Floats] = {}
    for cache in caches:
        name = cache.state.name
        for end, into in (("low", low), ("high", high)):
            key, shape = f"{name}.{end}", (cache.heads, cache.width)
            part = source.read(key, ((0, shape[0]), (0, shape[1]))) if _has(source, key, shape) else None
            if part is None or not np.isfinite(part).all():
                raise InputError(f"{path} has no ranges of {name} [{cache.heads}, {cache.width}]", again)
            into[name] = part
    return Ranges(low, high, about.get("text", ""))


def _has(source: SafetensorsSource, name: str, shape: tuple[int, ...]) -> bool:
    return name in source.names() and source.shape(name) == shape


def scales_of(low: Floats, high: Floats, form: Form) -> tuple[Floats, Floats | None]:
    """Return scale and offset, f32 [heads, width] or [heads, 1], of numbers between ``low`` and ``high``.

    A code q stands for ``q scale + offset``.  With an offset, ``scale = (high - low) / L`` and the least code stands
    for ``low``; else ``scale = max(-low, high) / Q`` (L and Q as in :mod:`omnic.ir.packing`).

    Raises:
        BundleError: a range is not finite.
    """
    if form.static == "head":
        low, high = low.min(-1, keepdims=True), high.max(-1, keepdims=True)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise BundleError("calibration saw numbers in the states that are not finite")
    element = form.element
    bits, kind = element.bits, getattr(element, "kind", "")
    if form.offset:
        scale = ((high - low) / np.float32(2**bits - 1)).astype(np.float32)
        scale = np.where(scale > 0, scale, np.float32(1))
        return scale, (low + scale * np.float32(2 ** (bits - 1))).astype(np.float32)
    peak = np.float32(1) if kind == "nf4" else np.float32(2 ** (bits - 1) - 1)
    scale = (np.maximum(-low, high) / peak).astype(np.float32)
    return np.where(scale > 0, scale, np.float32(1)), None


def store_scales(
    cache: Cache, ranges: Ranges, form: Form, results: ResultStore
) -> dict[str, tuple[TensorType, Recipe]]:
    """Keep the scales of a state in the result store; return the weights that hold them."""
    name = cache.state.name
    scale, offset = scales_of(ranges.low[name], ranges.high[name], form)
    made: dict[str, tuple[TensorType, Recipe]] = {}
    for weight, numbers in ((scale_name(name), scale), (f"{name}.offset", offset)):
        if numbers is None:
            continue
        # [heads, 1, width] against [B, heads, S, width]; a latent has no heads.
        shaped = numbers[:, None, :] if cache.state.type.rank == 4 else numbers
        key = results.key(what=weight, numbers=shaped.astype("<f4").tobytes().hex(), shape=str(shaped.shape))
        if key not in results:
            results.put(key, np.ascontiguousarray(shaped, np.float32))
        made[weight] = (TensorType(DType.F32, tuple(shaped.shape)), Recipe("stored", {"hash": key}))
    return made
