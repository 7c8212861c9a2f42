"""What ONNX Runtime's CPU provider can do, by profile.

Sources: the operator specifications (onnx.ai, opset 24), ``docs/ContribOperators.md`` of ONNX Runtime
1.31, the kernel table of the installed build (``get_all_opkernel_def``), and measurements that a test
repeats (named by file).
"""

from __future__ import annotations

from collections.abc import Mapping

from omnic.ir.caps import Caps, GroupRule, OpSupport, Refused
from omnic.ir.types import DType, ScaleKind, StorageKind

__all__ = ["CAPS", "KINDS", "PROFILE_CAPS"]

_SPEC = "onnx.ai operators, opset 24"
_CONTRIB = "ONNX Runtime 1.31 docs/ContribOperators.md"
_STORED = "only weights and states are stored as codes, not what is computed between them"
_MEASURED = "measured of ONNX Runtime 1.31: tests/targets/onnx/test_blocks.py"
#: kinds of states that are stored as codes
KINDS: tuple[StorageKind, ...] = ("i8", "i4", "i2", "nf4")
_SIZES = (16, 32, 64, 128, 256)

#: op -> operator of the standard set that computes it, or a note on how
_STANDARD = {
    "constant": "initializer",
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "pow": "Pow",
    "minimum": "Min",
    "maximum": "Max",
    "floordiv": "Div, Mod, Floor",
    "mod": "Mod, Floor",
    "eq": "Equal",
    "ne": "Not(Equal)",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "and": "And",
    "or": "Or",
    "not": "Not",
    "neg": "Neg",
    "abs": "Abs",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "rsqrt": "Reciprocal(Sqrt)",
    "sin": "Sin",
    "cos": "Cos",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "erf": "Erf",
    "round": "Round",
    "relu": "Relu",
    "clamp": "Clip",
    "where": "Where",
    "cast": "Cast",
    "sum": "ReduceSum",
    "max": "ReduceMax",
    "mean": "ReduceMean",
    "argmax": "ArgMax",
    "cumsum": "CumSum",
    "softmax": "Softmax",
    "matmul": "MatMul",
    "reshape": "Reshape",
    "transpose": "Transpose",
    "broadcast": "Expand",
    "slice": "Slice",
    "concat": "Concat",
    "split": "Split",
    "pad": "Pad",
    "iota": "Range",
    "gather": "GatherElements, GatherND",
    "index_select": "Gather",
    "scatter": "ScatterElements",
    "topk": "TopK",
    "sort": "TopK",
    "depthwise_conv1d": "Conv",
    "cache_write": "TensorScatter (circular)",
    "cache_read": "Slice over the live slots",
    "cache_close": "GatherElements, then TensorScatter (circular) of whole blocks",
    "cache_move": "GatherElements, ScatterElements",
    "linear": "MatMul",
    "embedding": "Gather",
    "act": "Gelu, Relu, Sigmoid",
    "gated_act": "Gelu, Relu, Sigmoid, Mul",
    "rms_norm": "RMSNormalization",
    "layer_norm": "LayerNormalization",
    "rope": "RotaryEmbedding",
    "lm_head": "GatherND, Gemm",
    "attention": "Attention with an explicit mask, over states; decomposed elsewhere",
    "block_attention": "Attention over live slots and recent tokens with an explicit mask; decomposed elsewhere",
    "mla": "Attention with one KV head over the latent, over states; decomposed elsewhere",
    "moe": "If and MatMul per expert",
    "dequantise": "Cast, Mul: of a weight, once, when the program is loaded",
}
_FUSED = {
    "attention": "GroupQueryAttention for B = 1 or T = 1, Attention else",
    "act": "QuickGelu (alpha = 1 is silu), Gelu, Relu",
    "gated_act": "QuickGelu, Gelu, Relu, Mul",
    "rms_norm": "SkipSimplifiedLayerNormalization after a residual, RMSNormalization else",
    "linear": "MatMul; MatMulNBits with stored weights",
    "embedding": "Gather; GatherBlockQuantized with a stored table",
    "lm_head": "GatherND, Gemm; MatMulNBits with stored weights",
    "moe": "MoE (QMoE with stored weights) where its activation is exact, If and a product per expert else"
    " (tests/targets/onnx/test_experts.py)",
}
_REFUSES = {"fake_quant": (Refused("to", "storage", _STORED),)}
_DECOMPOSED = ("lm_argmax", "router", "fake_quant", "short_conv", "linear_recurrence", "pool_blocks", "host.fetch")


def _ops(contrib: Mapping[str, str]) -> dict[str, OpSupport]:
    standard = {op: OpSupport("native", f"{_SPEC}: {how}") for op, how in _STANDARD.items()}
    fused = {op: OpSupport("native", f"{_CONTRIB}: {how}") for op, how in contrib.items()}
    rest = {
        op: OpSupport("decompose", f"its core ops are lowered ({_SPEC})", refuses=_REFUSES.get(op, ()))
        for op in _DECOMPOSED
    }
    return {**standard, **fused, **rest, **{op: OpSupport("excluded", _STORED) for op in ("quantise",)},
            }


def _rules() -> tuple[GroupRule, ...]:
    """Every storage kind: what no operator reads is decoded when the program is loaded, and a remark says so."""
    scales: frozenset[ScaleKind] = frozenset({"f16", "f32", "s4", "e8m0"})
    axes = frozenset({-1, -2})
    kinds: tuple[StorageKind, ...] = ("i8", "i6", "i5", "i4", "i3", "i2", "nf4", "fp4", "t2")
    return tuple(
        GroupRule(kind, (0, -1, *_SIZES) if kind == "i8" else (0, *_SIZES), True, kind.startswith("i"), scales, axes)
        for kind in kinds
    )


def _state_rules() -> tuple[GroupRule, ...]:
    """Codes that operators find and read, token by token or in blocks of tokens."""
    scales: frozenset[ScaleKind] = frozenset({"f16", "f32", "one"})
    axes = frozenset({-1, -2})
    return tuple(GroupRule(kind, (0, *_SIZES), True, kind != "nf4", scales, axes) for kind in KINDS)


def _caps(profile: str, contrib: Mapping[str, str], opset: Mapping[str, int]) -> Caps:
    return Caps(
        target=f"onnx ({profile})",
        ops=_ops(contrib),
        elements=frozenset({DType.F32, DType.F16, DType.BF16, DType.I64, DType.I32, DType.I8, DType.U8, DType.BOOL}),
        opset=opset,
        dynamic=frozenset({"B", "T", "R"}),
        state="in_place",
        programs="one",
        limits={"opset": 26, "tensor_alignment": 4096},
        storage=_rules(),
        state_storage=_state_rules(),
        activations=frozenset(
            {"none", "i8<per_token>", *(f"i8<g{n}>" for n in _SIZES)} if profile == "fused" else {"none"}
        ),
        numeric="f32",
        shared_weights=True,
        sources={
            "elements": f"{_SPEC}; 16-bit weights are kept as f32, which holds them exactly; TensorScatter takes f16",
            "opset": "ONNX Runtime 1.31 loads ai.onnx up to opset 26; Attention and TensorScatter are of opset 24",
            "dynamic": f"{_SPEC}: symbolic dims",
            "state": "one OrtValue bound as input and output: tests/targets/onnx/test_session.py",
            "programs": "one graph with dynamic T, and one without conditions for calls of one row: a session opens one"
            " of them, since each packs the weights for itself",
            "limits": "ONNX Runtime 1.31 release notes; external data is memory-mapped at page-aligned offsets",
            "storage": f"MatMulNBits, GatherBlockQuantized, QMoE ({_CONTRIB}); what they read how is {_MEASURED}",
            "state_storage": f"TensorScatter of codes ({_SPEC}), GroupQueryAttention with static scales ({_CONTRIB}):"
            " tests/targets/onnx/test_codes.py",
            "activations": f"MatMulNBits with accuracy_level 4, MatMulIntegerToFloat with a scale a token"
            f" ({_CONTRIB}); {_MEASURED}",
            "shared_weights": "Gather and Gemm(transB) read one table: tests/targets/onnx/test_bundle.py",
        },
    )


PROFILE_CAPS: Mapping[str, Caps] = {
    "fused": _caps("fused", _FUSED, {"": 24, "com.microsoft": 1}),
    "plain": _caps("plain", {}, {"": 24}),
}
CAPS = PROFILE_CAPS["fused"]
