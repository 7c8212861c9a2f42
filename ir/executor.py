"""What running a module's ``forward`` gives, whoever runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Outputs"]

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Outputs:
    """The results of one call of ``forward``; None where the program has no such head.

    Attributes:
        logits: [B, R, V], the wanted rows.
        hidden: [B, T, D], the residual stream before the final norm.
        mtp: [B, R, depth, V], linear multi-token-prediction heads; head j predicts token t+1+j.
        verifier: [B, R, V].
    """

    logits: Floats
    hidden: Floats | None = None
    mtp: Floats | None = None
    verifier: Floats | None = None
