"""The recipe of a training as data: every number the trainer uses, with the reason for its default."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from omnic.errors import InputError

__all__ = ["TrainConfig"]


@dataclass(frozen=True)
class TrainConfig:
    """How a spec is trained.

    The defaults are those that the shipped ``tiny`` and ``tiny_moe`` were trained with.

    Attributes:
        corpus: ``stdlib``, ``stdlib+tests`` or a folder (:func:`omnic.training.corpus.load_corpus`).
        sequence: tokens of a training window.  256: at a budget of minutes more short windows teach
            more than fewer long ones.
        batch: windows of a step.
        muon_rate: peak learning rate of the matrices (Muon, ``match_rms_adamw`` scale).
        adam_rate: peak learning rate of embeddings, norms and everything that is no matrix (AdamW).
        momentum: Muon's momentum.
        newton_schulz: iterations of Muon's orthogonalisation.
        betas: AdamW's decay rates.
        weight_decay: decoupled, on matrices only.
        clip: largest global norm of the AdamW parameters' gradient; Muon's step has a fixed norm anyway.
        warmup: steps of linear warm-up.
        decay: share of the steps, at the end, over which the rates fall linearly to zero (WSD).
        mtp_weight: weight of the block-MTP loss beside the main loss.
        mtp_share: share of a batch's windows that the block-MTP loss is computed on; the block costs
            as much as half the trunk, and its real training is the distillation.
        linear_mtp_weight: weight of the mean loss of linear MTP heads.
        verifier_weight: weight of the verifier head's loss (it learns the main head's softmax).
        balance_weight: weight of the experts' load-balancing loss (of routers without a selection bias).
        importance_weight: weight of the squared variation of the experts' summed gates.
        z_weight: weight of the mean squared log-sum-exp of the router logits.
        distill_share: share of the budget for the MTP distillation with the trunk frozen.
        distill_unroll: how many drafts the distillation unrolls.
        distill_muon_rate: peak Muon rate of the distillation.
        distill_adam_rate: peak AdamW rate of the distillation.
        distill_batch: windows of a distillation step.
        checkpoint_seconds: wall time between checkpoints.
        evaluate_windows: held-out windows of the evaluations along the way (the last one takes all).
    """

    corpus: str = "stdlib"
    sequence: int = 256
    batch: int = 8
    muon_rate: float = 6e-3
    adam_rate: float = 3e-3
    momentum: float = 0.95
    newton_schulz: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: int = 40
    decay: float = 0.4
    mtp_weight: float = 0.1
    mtp_share: float = 0.25
    linear_mtp_weight: float = 0.3
    verifier_weight: float = 0.1
    balance_weight: float = 0.01
    importance_weight: float = 0.0
    z_weight: float = 0.0
    distill_share: float = 0.12
    distill_unroll: int = 3
    distill_muon_rate: float = 6e-3
    distill_adam_rate: float = 2e-3
    distill_batch: int = 8
    checkpoint_seconds: float = 60.0
    evaluate_windows: int = 64

    def __post_init__(self) -> None:
        """Refuse values no training can use."""
        for name in (f.name for f in dataclasses.fields(self) if f.name.endswith("_weight")):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a number from 0 on, not {getattr(self, name)}")
        for name in ("sequence", "batch", "newton_schulz", "distill_unroll", "distill_batch", "evaluate_windows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("decay", "mtp_share", "distill_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share between 0 and 1, not {getattr(self, name)}")
        for name in ("muon_rate", "adam_rate", "distill_muon_rate", "distill_adam_rate", "checkpoint_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}")

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.sequence

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Build a config from :meth:`to_dict`'s values.

        Raises:
            InputError: an unknown field, or a value out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InputError(f"unknown training option {unknown[0]!r}", f"the options are: {', '.join(sorted(known))}")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)
