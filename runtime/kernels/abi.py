"""The C interface of ``omnic_kernels.h`` as ctypes: enumerations, structures, the table of functions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from enum import IntEnum
from typing import Any

__all__ = ["ABI", "Activation", "Cache", "Call", "Kind", "Level", "Mask", "Number", "Ops", "Tuning", "View", "Weight",
           "declare"]

ABI = 2


class Level(IntEnum):
    """An instruction set (``OMNIC_GENERIC`` ...)."""

    GENERIC = 0
    AVX2 = 1
    AVXVNNI = 2
    AVX512 = 3
    AMX = 4
    NEON = 16
    DOTPROD = 17
    I8MM = 18


class Number(IntEnum):
    """What lies in memory (``OMNIC_F32`` ...)."""

    F32 = 0
    F16 = 1
    BF16 = 2
    I8 = 3
    I4 = 4
    I2 = 5
    S4 = 6


class Activation(IntEnum):
    """What a product makes of its activations first (``OMNIC_ACT_F32`` ...)."""

    F32 = 0
    I8_ROW = 1
    I8_GROUP = 2
    BF16 = 3


class Kind(IntEnum):
    """The functions of ``act`` and ``gated_act`` (``OMNIC_SILU`` ...)."""

    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3
    RELU2 = 4


class Tuning(ctypes.Structure):
    """``omnic_tuning``: how products are cut and read ahead.  No value changes a bit of any result.

    ``panels`` in flight for one row (1, 2, 4), bytes of ``prefetch`` ahead of the codes (0: none), numbers of k
    unpacked at a time for many rows (``k_block``: a multiple of 64, at most 2048), rows that share an unpacked panel
    (``chunk``: a multiple of 16, at most 512), most ``threads`` of a call (0: all).  0, and a negative ``prefetch``,
    leave a field to the level.
    """

    _fields_ = [("panels", c_int32), ("prefetch", c_int32), ("k_block", c_int32), ("chunk", c_int32),
                ("threads", c_int32)]

    def __init__(self, panels: int = 0, prefetch: int = -1, k_block: int = 0, chunk: int = 0, threads: int = 0) -> None:
        super().__init__(panels, prefetch, k_block, chunk, threads)


class Call(ctypes.Structure):
    """``omnic_call``."""

    _fields_ = [("pool", c_void_p), ("scratch", c_void_p), ("scratch_bytes", c_size_t), ("tuning", POINTER(Tuning))]


class Weight(ctypes.Structure):
    """``omnic_weight``."""

    _fields_ = [("codes", c_void_p), ("scales", c_void_p), ("zeros", c_void_p), ("row", c_void_p), ("n", c_int64),
                ("k", c_int64), ("group", c_int64), ("type", c_int32), ("scale_type", c_int32)]


class Shortlist(ctypes.Structure):
    """``omnic_shortlist``."""

    _fields_ = [("head", POINTER(Weight)), ("basis", POINTER(Weight)), ("screen", POINTER(Weight)), ("reach", c_void_p)]


class Cache(ctypes.Structure):
    """``omnic_cache``."""

    _fields_ = [("data", c_void_p), ("scales", c_void_p), ("zeros", c_void_p), ("slots", c_int64), ("d", c_int64),
                ("group", c_int64), ("stride_b", c_int64), ("stride_g", c_int64), ("stride_s", c_int64),
                ("blocks", c_void_p), ("blocks_b", c_int64), ("block", c_int64), ("type", c_int32),
                ("scale_type", c_int32), ("ring", c_int32)]


class Mask(ctypes.Structure):
    """``omnic_mask``."""

    _fields_ = [("batch", c_int64), ("tokens", c_int64), ("start", c_void_p), ("length", c_void_p),
                ("parents", c_void_p), ("sinks", c_void_p), ("scale", c_float), ("softcap", c_float),
                ("window", c_int64)]


class View(ctypes.Structure):
    """``omnic_view``."""

    _fields_ = [("data", c_void_p), ("stride_b", c_int64), ("stride_h", c_int64), ("stride_t", c_int64)]


def _function(*arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(None, POINTER(Call), *arguments)


_WEIGHT = POINTER(Weight)
_CACHE = POINTER(Cache)


class Ops(ctypes.Structure):
    """``omnic_ops``: the table of one level.  Pointers to numbers are passed as addresses."""

    _fields_ = [
        ("abi", c_int32), ("level", c_int32),
        ("linear", _function(_WEIGHT, c_void_p, c_int64, c_int64, c_int32, c_int64, c_void_p, c_void_p, c_int64,
                             c_void_p, c_int64)),
        ("linear_many", _function(POINTER(_WEIGHT), c_int64, c_void_p, c_int64, c_int64, c_int32, c_int64, c_void_p,
                                  c_void_p, c_void_p)),
        ("embed", _function(_WEIGHT, c_void_p, c_int64, c_void_p, c_int64)),
        ("moe", _function(c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p,
                          c_int64, c_int32, c_float, c_float, c_float, c_int32, c_int64, c_void_p, c_void_p, c_void_p,
                          c_void_p, c_int64)),
        ("attention", _function(POINTER(Mask), c_int64, c_int64, View, _CACHE, _CACHE, View)),
        ("mla", _function(POINTER(Mask), c_int64, View, View, _CACHE, _CACHE, View)),
        ("linear_heads", _function(POINTER(_WEIGHT), c_int64, c_int64, c_int64, View, View)),
        ("cache_write", _function(_CACHE, c_int64, c_int64, c_int64, c_void_p, c_void_p, View)),
        ("cache_move", _function(_CACHE, c_int64, c_int64, c_int64, c_void_p, c_void_p)),
        ("rms_norm", _function(c_void_p, c_int64, c_int64, c_int64, c_void_p, c_float, c_void_p, c_int64)),
        ("layer_norm", _function(c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_float, c_void_p, c_int64)),
        ("rope", _function(c_int64, c_int64, c_int64, c_int64, c_int64, c_void_p, c_double, c_int32, c_void_p, View,
                           View)),
        ("act", _function(c_int32, c_void_p, c_int64, c_void_p)),
        ("gated_act", _function(c_int32, c_void_p, c_void_p, c_int64, c_void_p)),
        ("add", _function(c_void_p, c_void_p, c_int64, c_void_p)),
        ("softmax", _function(c_void_p, c_int64, c_int64, c_void_p)),
        ("topk", _function(c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p)),
        ("head_argmax", _function(_WEIGHT, c_void_p, c_int64, c_int64, c_int32, c_int64, c_float, c_void_p, c_void_p)),
        ("head_shortlist", _function(POINTER(Shortlist), c_void_p, c_int64, c_int64, c_int32, c_int64, c_void_p,
                                     c_void_p, c_void_p)),
    ]


def declare(library: ctypes.CDLL) -> None:
    """Give the functions of a loaded library their types."""
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "omnic_pool_create": (c_void_p, [c_int]),
        "omnic_pool_destroy": (None, [c_void_p]),
        "omnic_pool_threads": (c_int, [c_void_p]),
        "omnic_pool_run": (None, [c_void_p, ctypes.CFUNCTYPE(None, c_void_p, c_int64), c_void_p, c_int64]),
        "omnic_best_level": (c_int, []),
        "omnic_kernels": (POINTER(Ops), [c_int]),
        "omnic_level_name": (c_char_p, [c_int]),
        "omnic_scratch_linear": (c_size_t, [_WEIGHT, c_int64, c_int32, c_int64, c_int]),
        "omnic_scratch_moe": (c_size_t, [_WEIGHT, _WEIGHT, c_int64, c_int64, c_int64, c_int32, c_int64, c_int]),
        "omnic_scratch_shortlist": (c_size_t, [POINTER(Shortlist), c_int64, c_int32, c_int64, c_int]),
        "omnic_scratch_attention": (c_size_t, [c_int64, c_int64, c_int64, c_int64, c_int64, c_int]),
    }
    for name, (result, arguments) in signatures.items():
        if not hasattr(library, name):
            continue
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
