"""The kernels over numpy arrays: products, attention, caches, norms, rope, activations."""

from __future__ import annotations

from ctypes import byref, pointer
from typing import Any

import numpy as np

from omnic.errors import InputError
from omnic.runtime.kernels.abi import Activation, Kind, Mask, Shortlist, Tuning, View
from omnic.runtime.kernels.caches import HeldCache
from omnic.runtime.kernels.library import Kernels, address
from omnic.runtime.kernels.packing import Packed, weight_of

__all__ = ["act", "add", "attention", "cache_move", "cache_write", "gated_act", "head_shortlist", "layer_norm",
           "linear", "mla", "rms_norm", "rope", "softmax", "topk", "view"]

Array = np.ndarray[Any, Any]
#: pairs of tokens that one call of ``cache_move`` takes
MOST_PAIRS = 16384


def view(x: Array) -> View:
    """Return the C view of f32 [B, H, T, D] whose last dim is contiguous.

    Raises:
        InputError: it is not such an array.
    """
    if x.ndim != 4 or x.dtype != np.float32 or (x.shape[3] > 1 and x.strides[3] != 4):
        raise InputError(f"a view is f32 [B, H, T, D] with contiguous rows, not {x.dtype} {list(x.shape)}")
    return View(x.ctypes.data, *(stride // 4 for stride in x.strides[:3]))


def _index(x: Array) -> Array:
    return np.ascontiguousarray(x, np.int64)


def _f32(x: Array | None) -> Array | None:
    return None if x is None else np.ascontiguousarray(x, np.float32)


def _mask(batch: int, tokens: int, start: Array, length: Array, parents: Array | None, sinks: Array | None,
          scale: float, softcap: float, window: int) -> tuple[Mask, tuple[Array | None, ...]]:
    """Return the C mask and the arrays it points into."""
    kept = (_index(start), _index(length), None if parents is None else _index(parents), _f32(sinks))
    return Mask(batch, tokens, *(address(x) for x in kept), scale, softcap, window), kept


def linear(
    kernels: Kernels, weight: Packed, x: Array, *, act: Activation = Activation.F32, act_group: int = 0,
    bias: Array | None = None, residual: Array | None = None, tuning: Tuning | None = None,
) -> Array:
    """Return residual + act(x) W^T + bias, f32 [M, N], of x f32 [M, K] and panels of W [N, K].  ``tuning`` (default:
    the level's own) changes how long it takes and nothing else.

    Raises:
        InputError: x, bias or residual do not fit the weight, or codes by groups have no group.
    """
    x, bias, residual = np.ascontiguousarray(x, np.float32), _f32(bias), _f32(residual)
    if x.ndim != 2 or x.shape[1] != weight.k:
        raise InputError(f"linear: x {list(x.shape)} does not fit a weight [{weight.n}, {weight.k}]")
    y = np.empty((len(x), weight.n), np.float32)
    if bias is not None and bias.shape != (weight.n,):
        raise InputError(f"linear: bias {list(bias.shape)} is not [{weight.n}]")
    if residual is not None and residual.shape != y.shape:
        raise InputError(f"linear: residual {list(residual.shape)} is not {list(y.shape)}")
    if act == Activation.I8_GROUP and act_group < 1:
        raise InputError(f"linear: activations in codes by groups of {act_group}", "name the group: act_group=32")
    w = weight_of(weight)
    kernels.run("linear", byref(w), address(x), len(x), weight.k, int(act), act_group, address(bias),
                address(residual), weight.n, address(y), weight.n,
                scratch=kernels.scratch_linear(w, len(x), int(act), act_group), tuning=tuning)
    return y


def head_shortlist(
    kernels: Kernels, head: Packed, basis: Packed, screen: Packed, reach: Array, x: Array, *,
    act: Activation = Activation.F32, act_group: int = 0,
) -> tuple[Array, Array, Array]:
    """Return the id of the largest logit of every row, that logit, and how many panels of 16 were multiplied for it.

    Args:
        kernels: the level and its threads.
        head: [V, D].
        basis: f32 [r, D], r a multiple of 32.
        screen: i8 in groups of 32, [V, r].
        reach: f32 [3, V] (:func:`omnic.ir.shortlist.reach_of`).
        x: f32 [M, D].
        act: how the head rounds x.
        act_group: of codes in groups.

    Raises:
        InputError: shapes or types do not fit each other.
    """
    x, bounds = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(reach, np.float32)
    fits = x.ndim == 2 and x.shape[1] == head.k == basis.k and screen.k == basis.n and screen.n == head.n
    if not fits or bounds.shape != (3, head.n) or basis.n % 32 or screen.type.code != "i8" or screen.type.group != 32:
        raise InputError(f"head_shortlist: x {list(x.shape)}, a head [{head.n}, {head.k}], a basis [{basis.n}, "
                         f"{basis.k}], a screen [{screen.n}, {screen.k}] and bounds {list(bounds.shape)} do not fit")
    parts = [weight_of(part) for part in (head, basis, screen)]
    shortlist = Shortlist(*(pointer(part) for part in parts), bounds.ctypes.data)
    ids, logits, panels = np.empty(len(x), np.int64), np.empty(len(x), np.float32), np.empty(len(x), np.int64)
    kernels.run("head_shortlist", byref(shortlist), address(x), len(x), head.k, int(act), act_group, address(ids),
                address(logits), address(panels),
                scratch=kernels.scratch_shortlist(shortlist, len(x), int(act), act_group))
    return ids, logits, panels


def attention(
    kernels: Kernels, q: Array, k: HeldCache, v: HeldCache, start: Array, length: Array, *, scale: float,
    softcap: float = 0.0, window: int = 0, parents: Array | None = None, sinks: Array | None = None,
) -> Array:
    """Return f32 [B, H, T, Dv]: attention of q f32 [B, H, T, D] over caches that hold start + length tokens.

    Raises:
        InputError: q is no such array, or its heads cannot share the caches' heads evenly.
    """
    batch, heads, tokens, d = q.shape
    groups, dv = k.shape[1], v.shape[3]
    if heads % groups or d != k.shape[3]:
        raise InputError(f"attention: q {list(q.shape)} does not fit keys {list(k.shape)}")
    mask, kept = _mask(batch, tokens, start, length, parents, sinks, scale, softcap, window)
    y = np.empty((batch, heads, tokens, dv), np.float32)
    scratch = kernels.scratch_attention(heads, tokens, d, dv, k.shape[2])
    kernels.run("attention", byref(mask), heads, groups, view(q), byref(k.struct()), byref(v.struct()), view(y),
                scratch=scratch)
    del kept
    return y


def mla(
    kernels: Kernels, q_latent: Array, q_rope: Array, latent: HeldCache, rope_k: HeldCache, start: Array, length: Array,
    *, scale: float, softcap: float = 0.0, window: int = 0, parents: Array | None = None,
) -> Array:
    """Return f32 [B, H, T, L]: absorbed MLA of q_latent f32 [B, H, T, L] and q_rope f32 [B, H, T, R].

    Raises:
        InputError: a query is no such array, or does not fit the caches.
    """
    batch, heads, tokens, width = q_latent.shape
    turned = q_rope.shape[3]
    if width != latent.shape[3] or turned != rope_k.shape[3]:
        raise InputError(f"mla: queries of {width} and {turned} do not fit caches of {latent.shape[3]} and "
                         f"{rope_k.shape[3]}")
    mask, kept = _mask(batch, tokens, start, length, parents, None, scale, softcap, window)
    y = np.empty(q_latent.shape, np.float32)
    scratch = kernels.scratch_attention(heads, tokens, width + turned, width, latent.shape[2])
    kernels.run("mla", byref(mask), heads, view(q_latent), view(q_rope), byref(latent.struct()),
                byref(rope_k.struct()), view(y), scratch=scratch)
    del kept
    return y


def cache_write(kernels: Kernels, cache: HeldCache, x: Array, start: Array, length: Array) -> None:
    """Write x f32 [B, G, T, D] into the slots of tokens start .. start + length - 1, rounded to the cache's type."""
    starts, lengths = _index(start), _index(length)
    kernels.run("cache_write", byref(cache.struct()), cache.shape[1], x.shape[0], x.shape[2], address(starts),
                address(lengths), view(x))


def cache_move(kernels: Kernels, cache: HeldCache, source: Array, target: Array) -> None:
    """Copy token source[b, i] to target[b, i] (i64 [B, N]), all reads before all writes; -1 skips a pair.

    Raises:
        InputError: there are more pairs than a call takes.
    """
    if source.shape[1] > MOST_PAIRS:
        raise InputError(f"cache_move: {source.shape[1]} pairs in one call, at most {MOST_PAIRS} are taken")
    sources, targets = _index(source), _index(target)
    kernels.run("cache_move", byref(cache.struct()), cache.shape[1], source.shape[0], source.shape[1],
                address(sources), address(targets))


def _rows(x: Array) -> tuple[Array, int, int]:
    flat = np.ascontiguousarray(x, np.float32)
    d = flat.shape[-1]
    return flat, flat.size // d if d else 0, d


def rms_norm(kernels: Kernels, x: Array, weight: Array | None = None, eps: float = 1e-6) -> Array:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last dim of x f32 [..., D]."""
    x, rows, d = _rows(x)
    weight, y = _f32(weight), np.empty_like(x)
    kernels.run("rms_norm", address(x), rows, d, d, address(weight), eps, address(y), d)
    return y


def layer_norm(
    kernels: Kernels, x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-6
) -> Array:
    """Return (x - mean) / sqrt(var + eps) * weight + bias over the last dim of x f32 [..., D]."""
    x, rows, d = _rows(x)
    weight, bias, y = _f32(weight), _f32(bias), np.empty_like(x)
    kernels.run("layer_norm", address(x), rows, d, d, address(weight), address(bias), eps, address(y), d)
    return y


def rope(
    kernels: Kernels, x: Array, positions: Array, frequencies: Array, *, magnitude: float = 1.0,
    interleaved: bool = False,
) -> Array:
    """Return x f32 [B, H, T, D] with its first 2 * len(frequencies) numbers rotated by positions i64 [B, T]."""
    batch, heads, tokens, d = x.shape
    where, freq = _index(positions), np.ascontiguousarray(frequencies, np.float64)
    y = np.empty(x.shape, np.float32)
    kernels.run("rope", batch, heads, tokens, d, 2 * freq.size, address(freq), magnitude, int(interleaved),
                address(where), view(x), view(y))
    return y


def act(kernels: Kernels, kind: Kind, x: Array) -> Array:
    """Return the activation of x f32, number by number."""
    x, y = np.ascontiguousarray(x, np.float32), np.empty(x.shape, np.float32)
    kernels.run("act", int(kind), address(x), x.size, address(y))
    return y


def gated_act(kernels: Kernels, kind: Kind, gate: Array, up: Array) -> Array:
    """Return act(gate) * up, number by number."""
    gate, up, y = (np.ascontiguousarray(x, np.float32) for x in (gate, up, np.empty(gate.shape, np.float32)))
    kernels.run("gated_act", int(kind), address(gate), address(up), gate.size, address(y))
    return y


def add(kernels: Kernels, a: Array, b: Array) -> Array:
    """Return a + b of one shape."""
    a, b, y = (np.ascontiguousarray(x, np.float32) for x in (a, b, np.empty(a.shape, np.float32)))
    kernels.run("add", address(a), address(b), a.size, address(y))
    return y


def softmax(kernels: Kernels, x: Array) -> Array:
    """Return the softmax over the last dim of x f32 [..., D]."""
    x, rows, d = _rows(x)
    y = np.empty_like(x)
    kernels.run("softmax", address(x), rows, d, address(y))
    return y


def topk(kernels: Kernels, x: Array, k: int) -> tuple[Array, Array]:
    """Return the k largest numbers of the last dim of x f32 [..., D] descending, and their i64 indices; among equals
    the lower index comes first.

    Raises:
        InputError: a row has fewer than k numbers.
    """
    x, rows, d = _rows(x)
    if not 0 < k <= d:
        raise InputError(f"topk: k = {k} of rows of {d} numbers")
    values, indices = np.empty((*x.shape[:-1], k), np.float32), np.empty((*x.shape[:-1], k), np.int64)
    kernels.run("topk", address(x), rows, d, k, address(values), address(indices))
    return values, indices
