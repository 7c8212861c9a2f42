"""What ONNX Runtime's CPU provider can do, by profile.

Sources: the operator specifications (onnx.ai, opset 24), ``docs/ContribOperators.md`` of ONNX Runtime
1.31, the kernel table of the installed build (``get_all_opkernel_def``), and measurements that a test
repeats (named by file).
"""

from __future__ import annotations

from collections.abc import Mapping

from omnic.ir.caps import Caps, OpSupport
from omnic.ir.types import DType

__all__ = ["CAPS", "PROFILE_CAPS"]

_SPEC = "onnx.ai operators, opset 24"
_CONTRIB = "ONNX Runtime 1.31 docs/ContribOperators.md"
_STORED = "float programs: a quantised weight or state needs the operators of the quantised profiles"

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
    "mla": "Attention with one KV head over the latent, over states; decomposed elsewhere",
    "moe": "If and MatMul per expert",
}
_FUSED = {
    "attention": "GroupQueryAttention for B = 1 or T = 1, Attention else",
    "act": "QuickGelu (alpha = 1 is silu), Gelu, Relu",
    "gated_act": "QuickGelu, Gelu, Relu, Mul",
    "rms_norm": "SkipSimplifiedLayerNormalization after a residual, RMSNormalization else",
    "moe": "MoE where its activation is exact, If and MatMul per expert else (tests/targets/onnx/test_experts.py)",
}
_BLOCKS = "keys quantised in blocks of tokens are for targets whose states are codes"
_DECOMPOSED = ("router", "fake_quant", "short_conv", "linear_recurrence", "pool_blocks", "host.fetch")


def _ops(contrib: Mapping[str, str]) -> dict[str, OpSupport]:
    standard = {op: OpSupport("native", f"{_SPEC}: {how}") for op, how in _STANDARD.items()}
    fused = {op: OpSupport("native", f"{_CONTRIB}: {how}") for op, how in contrib.items()}
    rest = {op: OpSupport("decompose", f"its core ops are lowered ({_SPEC})") for op in _DECOMPOSED}
    return {**standard, **fused, **rest, **{op: OpSupport("excluded", _STORED) for op in ("quantise", "dequantise")},
            **{op: OpSupport("excluded", _BLOCKS) for op in ("cache_close", "block_attention")}}


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
        numeric="f32",
        shared_weights=True,
        sources={
            "elements": f"{_SPEC}; 16-bit weights are kept as f32, which holds them exactly; TensorScatter takes f16",
            "opset": "ONNX Runtime 1.31 loads ai.onnx up to opset 26; Attention and TensorScatter are of opset 24",
            "dynamic": f"{_SPEC}: symbolic dims",
            "state": "one OrtValue bound as input and output: tests/targets/onnx/test_session.py",
            "programs": "one graph with dynamic T: a second session would pack the weights again",
            "limits": "ONNX Runtime 1.31 release notes; external data is memory-mapped at page-aligned offsets",
            "shared_weights": "Gather and Gemm(transB) read one table: tests/targets/onnx/test_bundle.py",
        },
    )


PROFILE_CAPS: Mapping[str, Caps] = {
    "fused": _caps("fused", _FUSED, {"": 24, "com.microsoft": 1}),
    "plain": _caps("plain", {}, {"": 24}),
}
CAPS = PROFILE_CAPS["fused"]
