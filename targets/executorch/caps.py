"""What ExecuTorch's CPU runtime can do with a program of ours.

Sources: the operators registered in the wheel (``Runtime.get().operator_registry``), the XNNPACK partitioner's
configurations, and the tests of this target.
"""

from __future__ import annotations

from omnic.ir.caps import Caps, GroupRule, OpSupport, computing_ops
from omnic.ir.types import DType, StorageKind

__all__ = ["CAPS", "KINDS"]

_KERNELS = "ExecuTorch 1.5.1: operators registered in the runtime of the wheel"
_RANKED = "its core ops in the order of ranks: ExecuTorch has no sort, and its topk leaves ties open"
_LLAMA = "ExecuTorch 1.5.1 extension/llm/custom_ops: update_cache, custom_sdpa; explicit softmax where they do not fit"
_CODES = (
    "ExecuTorch 1.5.1 extension/llm/custom_ops: update_cache writes any element type; codes are made and read by"
    " portable kernels: tests/targets/executorch/test_codes.py"
)
#: kinds of states that are stored as codes
KINDS: tuple[StorageKind, ...] = ("i8", "i4", "i2", "nf4")
#: composites that are lowered as they are
_COMPOSITES = (
    "linear", "embedding", "act", "gated_act", "rms_norm", "layer_norm", "rope", "lm_head", "moe",
)

CAPS = Caps(
    target="executorch",
    ops={
        **{op: OpSupport("native", _KERNELS) for op in (*computing_ops(), *_COMPOSITES)},
        **{op: OpSupport("native", _RANKED) for op in ("topk", "sort")},
        **{op: OpSupport("native", _LLAMA) for op in ("cache_write", "cache_read", "attention", "mla")},
        **{
            op: OpSupport("decompose", "its core ops are lowered")
            for op in ("lm_argmax", "router", "short_conv", "linear_recurrence", "pool_blocks", "host.fetch")
        },
        "block_attention": OpSupport("native", f"{_KERNELS}: an explicit softmax over slots and newest tokens"),
        "cache_close": OpSupport(
            "excluded",
            "which blocks of tokens close in a call is known only while the program runs; kv-quant with keys=token"
            " finds the scales of every token",
        ),
        "cache_move": OpSupport("excluded", "a session moves tokens between the slots of its states, not a program"),
        **{
            op: OpSupport("excluded", "only weights and states are stored as codes, not what is computed between them")
            for op in ("quantise", "dequantise", "fake_quant")
        },
    },
    elements=frozenset({DType.F32, DType.F16, DType.BF16, DType.I64, DType.I32, DType.I8, DType.U8, DType.BOOL}),
    storage=(
        GroupRule("i4", (0, 32, 64, 128, 256), scales=frozenset({"f16", "f32"})),
        GroupRule("i8", (0,), scales=frozenset({"f16", "f32"})),
    ),
    state_storage=tuple(
        GroupRule(kind, (0, 16, 32, 64, 128, 256), True, kind != "nf4", frozenset({"f16", "f32", "one"}))
        for kind in KINDS
    ),
    activations=frozenset({"none", "i8<per_token>"}),
    dynamic=frozenset({"T", "R"}),
    state="in_place",
    programs="per_phase",
    sources={
        "elements": "ExecuTorch 1.5.1 schema/scalar_type.fbs",
        "storage": "ExecuTorch 1.5.1 backends/xnnpack/operators/node_visitor.py: qd8-qb4w, qd8-qc4w, qd8-qc8w",
        "state_storage": _CODES,
        "activations": "the same, qd8: rounded while it runs, one scale and zero point a token",
        "dynamic": "torch.export, Dim; a program is planned for the longest call",
        "state": "ExecuTorch 1.5.1 exir/passes/memory_planning_pass.py: share_mutable_buffers",
        "programs": "ExecuTorch 1.5.1 to_edge_transform_and_lower: methods of one program",
    },
)
