"""What a training will hold in memory, before any of it is allocated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnic.errors import InputError
from omnic.training.config import TrainConfig

if TYPE_CHECKING:
    from omnic.spec import Spec

__all__ = ["MemoryPlan", "available_memory", "plan_memory", "require_memory"]

_RUNTIME = 600_000_000  # torch itself, its allocator's slack and the compiler's workers


@dataclass(frozen=True)
class MemoryPlan:
    """Planned bytes of a training.

    Attributes:
        weights: f32 master weights.
        gradients: f32, one for each weight.
        optimizer: Muon's momentum for matrices, two moments for the rest.
        activations: kept for the backward pass, the head's logits apart.
        logits: logits, their softmax and its gradient, of every head.
        corpus: token ids.
        runtime: the libraries.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    corpus: int
    runtime: int = _RUNTIME

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.asdict(self).values())

    def to_dict(self) -> dict[str, Any]:
        """Return the parts and the total as JSON values."""
        return {**dataclasses.asdict(self), "total": self.total}


def plan_memory(spec: Spec, config: TrainConfig, matrices: int, rest: int, corpus_tokens: int = 0) -> MemoryPlan:
    """Plan a training's memory from the spec alone.

    Args:
        spec: the model.
        config: batch and window.
        matrices: parameters that Muon updates.
        rest: the other parameters.
        corpus_tokens: tokens of the corpus.
    """
    layers = list(spec.layers())
    block_mtp = spec.mtp_layer()
    kept = sum(_kept_per_token(layer, config.sequence) for layer in layers)
    share = 0.0
    if block_mtp is not None:
        # The block is trained on part of the batch, then unrolled on the distillation's batch alone.
        joint = config.mtp_share * _kept_per_token(block_mtp, config.sequence)
        unrolled = config.distill_unroll * _kept_per_token(block_mtp, config.sequence)
        unrolled *= config.distill_batch / config.batch
        kept = max(kept + joint, unrolled)
        share = max(config.mtp_share, config.distill_unroll * config.distill_batch / config.batch)
    heads = 1.0 + share
    mtp = spec.heads.mtp
    if mtp is not None and mtp.kind == "linear":
        heads += mtp.depth
    if spec.heads.verifier:
        heads += 1
    # f32 logits, their log-softmax and the gradient of it.
    logits = int(3 * 4 * heads * config.tokens * spec.vocab.size)
    return MemoryPlan(
        weights=4 * (matrices + rest),
        gradients=4 * (matrices + rest),
        optimizer=4 * matrices + 8 * rest,
        activations=int(4 * kept * config.tokens),
        logits=logits,
        corpus=corpus_tokens * (2 if spec.vocab.size <= 1 << 16 else 4),
    )


def available_memory() -> int:
    """Bytes this process may take without swapping, by the operating system's own estimate."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    import psutil

    return int(psutil.virtual_memory().available)


def require_memory(spec: Spec, config: TrainConfig, plan: MemoryPlan, limit: int) -> None:
    """Refuse a training that does not fit.

    Raises:
        InputError: the plan is over ``limit``; the hint lists the changes that help, cheapest first.
    """
    if plan.total <= limit:
        return

    def held(smaller: TrainConfig) -> int:
        batch = plan_memory(spec, smaller, 0, 0)
        return plan.total - plan.activations - plan.logits + batch.activations + batch.logits

    hints = []
    for windows in range(config.batch - 1, 0, -1):
        distilled = min(windows, config.distill_batch)
        smaller = dataclasses.replace(config, batch=windows, distill_batch=distilled)
        if held(smaller) <= limit:
            also = f" --set distill_batch={distilled}" if distilled < config.distill_batch else ""
            hints.append(f"--set batch={windows}{also} (saves {_gb(plan.total - held(smaller))})")
            break
    for tokens in range((config.sequence - 1) // 32 * 32, 0, -32):
        smaller = dataclasses.replace(config, sequence=tokens)
        if held(smaller) <= limit:
            hints.append(f"--set sequence={tokens} (saves {_gb(plan.total - held(smaller))})")
            break
    fixed = plan.weights + plan.gradients + plan.optimizer
    hints.append(f"a smaller model (weights, gradients and optimiser take {_gb(fixed)})")
    raise InputError(
        f"training {spec.model} needs {_gb(plan.total)} and {_gb(limit)} are allowed", "change: " + "; or ".join(hints)
    )


def _kept_per_token(layer: Any, sequence: int) -> float:
    """Values a layer keeps per token for its backward pass (flash attention keeps no T x T matrix)."""
    attention, ffn, width = layer.attention, layer.ffn, layer.width
    heads = attention.heads * (attention.head_dim * 2 + attention.value_dim * 2)
    projected = attention.heads * attention.head_dim + attention.kv_heads * (attention.head_dim + attention.value_dim)
    if hasattr(ffn, "routed_experts"):
        matrices = 4 if ffn.gated else 2
        active = ffn.routed_top_k * ffn.routed_hidden + ffn.shared * (ffn.shared_hidden or ffn.hidden)
        # Every expert also keeps the copy of its tokens' inputs and outputs.
        inner = matrices * active + 2 * ffn.routed_top_k * width + 3 * ffn.routed_experts
    else:
        inner = (4 if ffn.gated else 2) * ffn.hidden
    return 6 * width + heads + projected + inner


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
