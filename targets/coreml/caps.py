"""What ML Programs of iOS 18 can do.

Sources: the operation sets of coremltools 9.0 (``converters/mil/mil/ops/defs/iOS15`` to ``iOS18``), its exporter
(``converters/mil/backend/mil/load.py``), the Core ML Tools guide, and tests of this repository.
"""

from __future__ import annotations

from omnic.ir.caps import Caps, GroupRule, OpSupport, Refused
from omnic.ir.types import DType, ScaleKind, StorageKind

__all__ = ["CAPS"]

_OPS = "coremltools 9.0, mil/ops/defs"
_NATIVE = {
    "constant": "const", "add": "add", "sub": "sub", "mul": "mul", "div": "real_div", "pow": "pow",
    "minimum": "minimum", "maximum": "maximum", "floordiv": "floor_div", "mod": "mod",
    "eq": "equal", "ne": "not_equal", "lt": "less",
    "le": "less_equal", "gt": "greater", "ge": "greater_equal", "and": "logical_and", "or": "logical_or",
    "not": "logical_not", "neg": "mul", "abs": "abs", "exp": "exp", "log": "log", "sqrt": "sqrt", "rsqrt": "rsqrt",
    "sin": "sin", "cos": "cos", "tanh": "tanh", "sigmoid": "sigmoid", "erf": "erf", "round": "round", "relu": "relu",
    "clamp": "maximum, minimum", "where": "select", "cast": "cast", "sum": "reduce_sum", "max": "reduce_max",
    "mean": "reduce_mean", "argmax": "reduce_argmax", "cumsum": "cumsum", "softmax": "softmax", "matmul": "matmul",
    "reshape": "reshape", "transpose": "transpose", "broadcast": "tile", "slice": "slice_by_index", "concat": "concat",
    "split": "split", "pad": "pad", "iota": "const; range_1d of a flexible length", "gather": "gather_along_axis",
    "index_select": "gather", "scatter": "scatter_along_axis", "topk": "topk", "sort": "argsort, gather_along_axis",
    "depthwise_conv1d": "conv with groups", "cache_write": "slice_update of one token, scatter of several",
    "cache_read": "read_state, or the input", "cache_move": "gather, scatter",
    "linear": "linear; conv of 1x1 for the neural engine", "embedding": "gather", "act": "gelu, relu, silu",
    "gated_act": "gelu, relu, silu, mul", "rms_norm": "mul, reduce_mean, rsqrt",
    "rope": "rows of tables, split, concat",
    "lm_head": "gather, linear", "dequantise": "constexpr_blockwise_shift_scale, constexpr_lut_to_dense",
    "attention": "scaled_dot_product_attention over caches; decomposed with sinks, softcap, trees and elsewhere",
    "mla": "scaled_dot_product_attention over the latent, absorbed or naive; decomposed elsewhere",
}
_DECOMPOSED = ("lm_argmax", "router", "moe", "layer_norm", "fake_quant", "short_conv", "linear_recurrence",
               "pool_blocks", "block_attention", "host.fetch")
_BF16 = "MIL has no bf16 (MIL format, DataType)"
_ACTIVATIONS = "the products of an ML Program take fp16 and fp32 (coremltools 9.0, iOS18 linear)"
_REFUSES = {
    "cast": (Refused("to", "bf16", _BF16),),
    "dequantise": (Refused("to", "bf16", _BF16),),
    "linear": (Refused("act", "other", _ACTIVATIONS),),
    "lm_head": (Refused("act", "other", _ACTIVATIONS),), "lm_argmax": (Refused("act", "other", _ACTIVATIONS),),
    "moe": (Refused("act", "other", _ACTIVATIONS),),
    "fake_quant": (Refused("to", "storage", "only weights are stored as codes, not what is computed between them"),
                   Refused("to", "bf16", _BF16)),
}
_STATES = "StateType is fp16 and inputs and outputs hold no codes (coremltools 9.0, backend/mil/load.py)"


def _ops() -> dict[str, OpSupport]:
    native = {op: OpSupport("native", f"{_OPS}: {how}", refuses=_REFUSES.get(op, ())) for op, how in _NATIVE.items()}
    rest = {op: OpSupport("decompose", f"its core ops are lowered ({_OPS})", refuses=_REFUSES.get(op, ()))
            for op in _DECOMPOSED}
    out = {op: OpSupport("excluded", _STATES) for op in ("quantise", "cache_close")}
    return {**native, **rest, **out}


def _rules() -> tuple[GroupRule, ...]:
    scales: frozenset[ScaleKind] = frozenset({"f16", "f32", "s4", "e8m0", "one"})
    sizes = (0, 8, 16, 32, 64, 128, 256)
    kinds: tuple[StorageKind, ...] = ("i8", "i6", "i5", "i4", "i3", "i2", "nf4", "fp4", "t2")
    return tuple(
        GroupRule(k, (-1, *sizes) if k == "i8" else sizes, True, k.startswith("i"), scales, frozenset({-1, -2}))
        for k in kinds
    )


CAPS = Caps(
    target="coreml",
    ops=_ops(),
    elements=frozenset({DType.F32, DType.F16, DType.BF16, DType.I64, DType.I32, DType.I8, DType.U8, DType.BOOL}),
    opset={"mil": 18},
    dynamic=frozenset({"T"}),
    state="state_type",
    programs="per_phase",
    storage=_rules(),
    limits={"rank": 5, "batch": 1, "file_bytes": 1 << 30, "lengths": 128, "state_multiple": 32},
    numeric="f32",
    shared_weights=True,
    sources={
        "elements": "coremltools 9.0, mil/types: fp16, fp32, int32, bool; bf16 weights are written as fp32 or fp16, and"
        " indices, which are i64 in the IR, are int32",
        "opset": "coremltools 9.0: target iOS18, specification version 9",
        "dynamic": "Core ML Tools guide, Flexible Input Shapes: RangeDim and EnumeratedShapes; one row a call",
        "state": "Core ML Tools guide, Stateful Models: StateType of iOS 18, fp16; or inputs and outputs",
        "programs": "Core ML Tools guide, Multifunction Models: functions of one package share weights",
        "storage": "coremltools 9.0, mil/ops/defs/iOS18/compression.py: constexpr_blockwise_shift_scale, "
        "constexpr_lut_to_dense: tests/targets/coreml/test_stored.py",
        "limits": "rank: coremltools 9.0 refuses tensors of more than 5 dims; batch: packages are built for one row, a"
        " session runs rows one by one; file_bytes: packages above 2 GB have failed to load (coremltools#1807), and"
        " ANEMLL's documentation keeps files below 1 GB; lengths: Core ML Tools guide, EnumeratedShapes;"
        " state_multiple: coremltools#2631",
        "shared_weights": "two operations, and two functions, read one offset of weight.bin:"
        " tests/targets/coreml/test_package.py",
    },
)
