"""What the torch target can do."""

from __future__ import annotations

from typing import get_args

from omnic.ir.caps import Caps, GroupRule, OpSupport, Refused, computing_ops
from omnic.ir.types import DType, ScaleKind, StorageKind

__all__ = ["CAPS"]

_DOCS = "torch 2.13 documentation"
_KERNELS = "targets/torch/kernels.py"

_KERNEL_OPS = (
    "cache_write",
    "cache_read",
    "cache_move",
    "cache_close",
    "linear",
    "embedding",
    "act",
    "gated_act",
    "rms_norm",
    "layer_norm",
    "rope",
    "attention",
    "block_attention",
    "mla",
    "router",
    "moe",
    "lm_head",
)
_REFUSES = {
    "moe": (Refused("act", "other", "its experts multiply f32 rows (targets/torch/kernels.py: grouped products)"),),
}
# Weights are decoded when they are loaded, so every group is as good as another.
_GROUPS = (-1, 0, 8, 16, 32, 64, 128, 256, 512)
_STATE_KINDS: tuple[StorageKind, ...] = ("i8", "i4", "i2", "nf4")
_SCALES: frozenset[ScaleKind] = frozenset({"f16", "f32", "s4", "e8m0"})
_NO_STORAGE = "the kernels read f32, f16 and bf16 numbers; a storage type has no torch tensor"

CAPS = Caps(
    target="torch",
    ops={
        **{op: OpSupport("native", f"{_DOCS}: torch, Tensor and torch.nn.functional") for op in computing_ops()},
        **{op: OpSupport("native", _KERNELS, refuses=_REFUSES.get(op, ())) for op in _KERNEL_OPS},
        **{
            op: OpSupport("decompose", "its core ops are lowered")
            for op in ("lm_argmax", "short_conv", "linear_recurrence", "pool_blocks", "host.fetch")
        },
        **{op: OpSupport("excluded", _NO_STORAGE) for op in ("quantise", "dequantise")},
        "fake_quant": OpSupport("excluded", "its rounding to storage types is; 16-bit rounding is the op cast"),
    },
    elements=frozenset({DType.F32, DType.F16, DType.BF16, DType.I64, DType.I32, DType.I8, DType.U8, DType.BOOL}),
    storage=tuple(
        GroupRule(kind, _GROUPS, ragged=True, asym=kind[0] == "i", scales=_SCALES, axes=frozenset({-1, -2}))
        for kind in get_args(StorageKind)
    ),
    state_storage=tuple(
        GroupRule(
            kind, _GROUPS[1:], ragged=True, asym=kind[0] == "i", scales=frozenset({"f16", "f32", "one"}),
            axes=frozenset({-1, -2}),
        )
        for kind in _STATE_KINDS
    ),
    dynamic=frozenset({"B", "T", "R"}),
    activations=frozenset({"none", "bf16", "i8<per_token>"}),
    state="in_place",
    batch_invariant=True,
    shared_weights=True,
    sources={
        "elements": f"{_DOCS}: torch.dtype",
        "storage": "targets/torch/inference.py: load_weights decodes to f32, as the reference does",
        "dynamic": "eager execution",
        "state": "targets/torch/kernels.py: cache_write",
        "state_storage": "targets/torch/states.py: codes in u8 tensors; tests/targets/torch/test_states.py",
        "activations": "targets/torch/kernels.py: quantise_activation, round_to",
        "batch_invariant": "tests/targets/torch/test_invariance.py",
        "shared_weights": "targets/torch/inference.py: load_weights holds one tensor a weight",
    },
)
