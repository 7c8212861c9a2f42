"""What a router does in training only: the rule that the attribute ``train`` of the op ``router`` names."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, fields

__all__ = ["RouterTraining"]

_RULE = re.compile(r"noisy\(([^()]*)\)")


@dataclass(frozen=True)
class RouterTraining:
    """Noise that makes a router try other experts while it learns; each value is off at its default.

    In training the choice and the gates come from the logits ``(x u) gate^T / temperature + g + n`` instead of
    ``x gate^T``: every input is multiplied by u from [1 - jitter, 1 + jitter] (Switch Transformer, arXiv 2101.03961),
    g is ``gumbel`` times standard Gumbel noise (with 1.0 and top-1 the expert is drawn from the softmax), and n is
    ``gaussian`` times standard normal noise (noisy top-k, arXiv 1701.06538, with a fixed deviation).  Then each expert
    but the best is left out of a token's choice with probability ``dropout``.

    Attributes:
        temperature: divides the logits.
        gumbel: factor of the Gumbel noise.
        gaussian: standard deviation of the Gaussian noise.
        jitter: largest relative change of an input of the router, below 1.
        dropout: probability that an expert is left out, below 1.
    """

    temperature: float = 1.0
    gumbel: float = 0.0
    gaussian: float = 0.0
    jitter: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values without a meaning.

        Raises:
            ValueError: a temperature that is not positive, noise that is negative, or a probability beyond 1.
        """
        for name, value in asdict(self).items():
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} = {value} is no number from 0 on")
        if self.temperature == 0:
            raise ValueError("temperature = 0 leaves no logits")
        for name in ("jitter", "dropout"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} = {getattr(self, name)} is not below 1")

    @property
    def noisy(self) -> bool:
        """Whether the logits differ from those of evaluation."""
        return self != RouterTraining(dropout=self.dropout)

    def __str__(self) -> str:
        """Return the text of the attribute: ``none``, or ``noisy(NAME=VALUE, ...)`` of what is not at its default."""
        set_ = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"noisy({', '.join(set_)})" if set_ else "none"

    @classmethod
    def parse(cls, text: str) -> RouterTraining:
        """Read the text of the attribute.

        Raises:
            ValueError: it is not ``none`` or ``noisy(...)`` of known names, each with a number.
        """
        if text == "none":
            return cls()
        rule = _RULE.fullmatch(text)
        if rule is None:
            raise ValueError(f"'{text}' is neither none nor noisy(NAME=VALUE, ...)")
        known = {f.name for f in fields(cls)}
        values: dict[str, float] = {}
        for part in rule[1].split(","):
            name, _, number = (word.strip() for word in part.partition("="))
            if name not in known or name in values:
                raise ValueError(f"'{part.strip()}' is not one of {', '.join(sorted(known))}, each once")
            try:
                values[name] = float(number)
            except ValueError:
                raise ValueError(f"{name} = '{number}' is no number") from None
        return cls(**values)
