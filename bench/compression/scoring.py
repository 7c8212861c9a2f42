"""Comparing a changed model with the f32 one on the held-out text, window by window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.ir.graph import Module
from omnic.ir.reference import Interpreter
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.runtime.files import sha256_file
from omnic.runtime.score import windows
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec, load_spec
from omnic.training.heldout import heldout

LENGTH, STRIDE, BATCH = 256, 128, 8
#: scores and results of calibration that are kept between runs
FOLDER = Path(__file__).resolve().parents[2] / "build" / "compression"

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
#: (tokens [B, T], first row wanted) -> logits [B, T - first, V]
Logits = Callable[[Ints, int], Floats]


@dataclass(frozen=True)
class Score:
    """A changed model against the f32 one, sums over the scored tokens of each window.

    Attributes:
        tokens: scored tokens.
        base: -log p of the text under the f32 model, nats.
        nats: the same under the changed model.
        kl: Kullback-Leibler divergence from the f32 model's distribution to the changed one's, nats.
        agree: tokens where both have the same most likely next token.
        size: UTF-8 bytes of the text.
    """

    tokens: tuple[int, ...]
    base: tuple[float, ...]
    nats: tuple[float, ...]
    kl: tuple[float, ...]
    agree: tuple[int, ...]
    size: int

    @property
    def bits(self) -> float:
        """Bits per byte of the changed model."""
        return sum(self.nats) / math.log(2) / self.size

    @property
    def base_bits(self) -> float:
        """Bits per byte of the f32 model."""
        return sum(self.base) / math.log(2) / self.size

    @property
    def percent(self) -> float:
        """Change of bits per byte, percent."""
        return float(100 * (sum(self.nats) / sum(self.base) - 1))

    @property
    def percent_error(self) -> float:
        """Standard error of :attr:`percent` over windows, paired (that of a ratio of sums, linearised)."""
        base, nats = np.asarray(self.base), np.asarray(self.nats)
        rest = nats - base * (nats.sum() / base.sum())
        return float(100 * math.sqrt(len(rest) / (len(rest) - 1) * (rest**2).sum()) / base.sum())

    @property
    def mean_kl(self) -> float:
        """Mean KL(f32 model || changed model), nats a token."""
        return float(sum(self.kl) / sum(self.tokens))

    @property
    def kl_error(self) -> float:
        """Standard error of :attr:`mean_kl` over windows."""
        kl, tokens = np.asarray(self.kl), np.asarray(self.tokens)
        rest = kl - tokens * self.mean_kl
        return float(math.sqrt(len(rest) / (len(rest) - 1) * (rest**2).sum()) / tokens.sum())

    @property
    def top1(self) -> float:
        """Share of tokens with the same most likely next token."""
        return sum(self.agree) / sum(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def of_dict(cls, fields: Mapping[str, Any]) -> Score:
        """Return what :meth:`to_dict` gave."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def kl_ratio(upper: Score, lower: Score) -> tuple[float, float]:
    """Return the ratio of the two mean KLs and its standard error over windows, paired."""
    up, low = np.asarray(upper.kl), np.asarray(lower.kl)
    found = float(up.sum() / low.sum())
    rest = up - found * low
    return found, float(math.sqrt(len(rest) / (len(rest) - 1) * (rest**2).sum()) / low.sum())


class Subject:
    """A shipped model, its held-out windows, and the f32 model's distributions on them (kept in memory).

    Args:
        name: of the preset.
        weights: another checkpoint of it.
    """

    def __init__(self, name: str, weights: Path | None = None) -> None:
        self.name = name
        self.spec: Spec = load_spec(name)
        self.front: Module = build(self.spec)
        weights, tokenizer = weights or self.spec.resolve("weights"), self.spec.resolve("tokenizer")
        assert weights is not None and tokenizer is not None
        self.path: Path = weights
        self.sha256 = sha256_file(weights)
        self.results = ResultStore(FOLDER / "results")
        self.store = WeightStore.load(self.front, weights, self.results)
        self.tokenizer = Tokenizer.load(tokenizer)
        # A window holds 256 tokens, so states of 256 tokens give the same numbers at a fraction of the time.
        self.short: Module = build(replace_context(self.spec, LENGTH))
        self.text = heldout().text
        self.ids = np.asarray(self.tokenizer.encode(self.text, bos=True), np.int64)
        self.cut = windows(len(self.ids) - 1, LENGTH, STRIDE)
        self._base: dict[str, list[Floats]] = {}

    def groups(self, sample: int | None = None) -> Iterator[tuple[list[tuple[int, int, int]], Ints, int]]:
        """Yield windows of equal length with their tokens [B, T] and the first row any of them scores."""
        cut = self.cut if sample is None else [self.cut[i * len(self.cut) // sample] for i in range(sample)]
        for first, length in dict.fromkeys((f - s, e - s) for s, e, f in cut):
            same = [w for w in cut if (w[2] - w[0], w[1] - w[0]) == (first, length)]
            for at in range(0, len(same), BATCH):
                part = same[at : at + BATCH]
                yield part, np.stack([self.ids[s:e] for s, e, _ in part]), first

    def score(self, base: Logits, changed: Logits, key: str, sample: int | None = None) -> Score:
        """Compare ``changed`` with ``base`` (whose log-probabilities are kept under ``key``)."""
        rows: list[tuple[int, float, float, float, int]] = []
        kept = self._base.setdefault(f"{key} {sample}", [])
        for index, (part, tokens, first) in enumerate(self.groups(sample)):
            if index == len(kept):
                kept.append(log_softmax(base(tokens, first)))
            p, q = kept[index], log_softmax(changed(tokens, first))
            for row, (start, end, scored) in enumerate(part):
                wanted = self.ids[scored + 1 : end + 1]
                at = np.arange(len(wanted))
                rows.append(
                    (
                        end - scored,
                        -float(p[row][at, wanted].sum(dtype=np.float64)),
                        -float(q[row][at, wanted].sum(dtype=np.float64)),
                        divergence(p[row], q[row]),
                        int((p[row].argmax(-1) == q[row].argmax(-1)).sum()),
                    )
                )
                assert scored - start == first
        tokens_, base_, nats, kl, agree = zip(*rows, strict=True)
        return Score(tokens_, base_, nats, kl, agree, len(self.text.encode()))


def replace_context(spec: Spec, context: int) -> Spec:
    """Return the spec with another context, whose states hold as many tokens."""
    return spec.model_copy(update={"context": context})


def log_softmax(logits: Floats) -> Floats:
    """Return log p of logits [..., V]."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)


def divergence(p: Floats, q: Floats) -> float:
    """Return the sum over rows of KL(p || q) of log-probabilities [N, V], nats.

    ``E_p[exp(d) - 1 - d]`` with d = log q - log p equals ``E_p[-d]`` and has no negative term, so small
    divergences are not lost in the rounding of f32.
    """
    d = q - p
    return float((np.exp(p) * (np.expm1(d) - d)).sum(dtype=np.float64))


def reference_logits(module: Module, weights: Any) -> Logits:
    """Return the reference in f32: every window is one call of ``forward`` from empty states.

    Attention reads what the states hold, so quantised states cost here what they cost on a device.
    """
    interpreter = Interpreter(module, weights, np.float32)

    def logits(tokens: Ints, first: int) -> Floats:
        count, length = tokens.shape
        steps = np.arange(length)[None].repeat(count, 0)
        inputs = {
            "tokens": tokens,
            "positions": steps,
            "start": np.zeros(count, np.int64),
            "length": np.full(count, length),
            "rows": steps[:, first:],
        }
        return np.asarray(interpreter.run(inputs)["logits"], np.float32)

    return logits


def torch_logits(module: Module, weights: Any) -> Logits:
    """Return the emitted training module in f32 on one thread; ``weights`` gives decoded numbers.

    States do not exist there, so it measures weights only.
    """
    import torch

    from omnic.targets.torch.training import load_training_module

    torch.set_num_threads(1)
    model = load_training_module(module, weights).eval()

    def logits(tokens: Ints, first: int) -> Floats:
        with torch.no_grad():
            return model(torch.from_numpy(tokens))["logits"][:, first:].float().numpy()

    return logits
