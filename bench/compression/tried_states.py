"""What makes 4-bit codes of states better by themselves: ranges that minimise the error, and rotated heads.

    python -m bench.compression.tried_states [--model tiny] [--windows 24]

Every token is rounded as it is written and no token is kept in f16, so that the codes alone are compared, at equal
bytes: one f16 scale and one u8 zero point for 64 numbers.  A range is chosen a group among the least-to-greatest one
and eight narrower ones by the squared error; a rotation is a Hadamard matrix over the 64 numbers of a head or latent
(QuaRot, arXiv:2404.00456), multiplied back at once.  ``norm folded`` divides a latent by the weight of its norm before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.compression.rows import MODELS
from bench.compression.scoring import Logits, Subject, reference_logits
from omnic.ir import packing
from omnic.ir.ops.cache import CacheWrite
from omnic.ir.types import Storage

Array = NDArray[Any]
Change = Callable[[str, Array], Array]
#: name of the weight of the norm before a latent is kept
LATENT_NORM = "blocks.{layer}.attn.kv_norm"
TYPE, GROUP = Storage("i4", 64, asym=True), 64
SHRINKS = (0.97, 0.94, 0.91, 0.88, 0.85, 0.8, 0.75, 0.7)


def plain(x: Array) -> Array:
    """Return x rounded as kv-quant does."""
    return packing.decode(packing.quantise(x, TYPE))


def fitted(x: Array) -> Array:
    """Return x rounded with the range of each group, of those tried, that gives the least squared error."""
    groups = x.reshape(*x.shape[:-1], -1, GROUP)
    best = plain(x).reshape(groups.shape)
    error = ((best - groups) ** 2).sum(-1)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    for shrink in SHRINKS:
        cut = np.clip(groups, np.minimum(low, 0) * shrink, np.maximum(high, 0) * shrink)
        found = packing.decode(packing.quantise(cut, replace(TYPE, group=0)))
        its = ((found - groups) ** 2).sum(-1)
        best = np.where((its < error)[..., None], found, best)
        error = np.minimum(error, its)
    return best.reshape(x.shape)


def hadamard(size: int) -> Array:
    """Return the orthogonal Hadamard matrix of a power of two."""
    found = np.ones((1, 1), np.float32)
    while len(found) < size:
        found = np.block([[found, found], [found, -found]])
    return found / np.float32(np.sqrt(size))


def rotated(rounded: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return ``rounded`` on rotated numbers."""
    turn = hadamard(GROUP)
    return lambda x: rounded(x @ turn) @ turn.T


@contextmanager
def written(change: Change, names: list[str]) -> Iterator[None]:
    """Let every ``cache_write`` of a call, in the order ``names``, write changed numbers."""
    before, count = CacheWrite.reference, 0

    def write(self: CacheWrite, state: Any, x: Array, *rest: Array, **attrs: Any) -> Any:
        nonlocal count
        name, count = names[count % len(names)], count + 1
        return before(self, state, change(name, x).astype(x.dtype), *rest, **attrs)

    CacheWrite.reference = write  # type: ignore[method-assign]
    try:
        yield
    finally:
        CacheWrite.reference = before  # type: ignore[method-assign]


def changes(subject: Subject) -> dict[str, Change]:
    """Return what is compared, by name."""
    ways = {"least to greatest": plain, "fitted range": fitted, "rotated": rotated(plain),
            "rotated, fitted range": rotated(fitted)}

    def only(roles: tuple[str, ...], way: Callable[[Array], Array]) -> Change:
        return lambda name, x: way(x) if name.rpartition(".")[2] in roles else x

    keyed = {"K": ("k",), "V": ("v",), "K and V": ("k", "v")}
    parts = {"latents": ("latent",)} if subject.name == "tiny_moe" else keyed
    found = {f"{part}, {what}": only(roles, way) for part, roles in parts.items() for what, way in ways.items()}
    if "latents" in parts:
        def folded(name: str, x: Array) -> Array:
            if not name.endswith("latent"):
                return x
            weight = subject.store.array(LATENT_NORM.format(layer=name.split(".")[1])).astype(np.float32)
            return rotated(plain)(x / weight) * weight

        found["latents, norm folded, rotated"] = folded
    return found


def main() -> None:
    """Print one line for each change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, action="append", help="only this model; may be repeated")
    parser.add_argument("--windows", type=int, default=None, help="so many windows instead of the whole file")
    args = parser.parse_args()
    for model in args.model or MODELS:
        subject = Subject(model)
        base = reference_logits(subject.short, subject.store)
        for name, change in changes(subject).items():
            score = subject.score(base, _changed(subject, base, change), "f32", args.windows)
            print(f"{model}: {name:34}{score.percent:+.3f} ± {score.percent_error:.3f} %, KL {score.mean_kl:.5f} "
                  f"± {score.kl_error:.5f}", flush=True)


def _changed(subject: Subject, base: Logits, change: Change) -> Logits:
    nodes = subject.short.function("forward").nodes
    names = [n.operands[0].name for n in nodes if n.op == "cache_write" and n.operands[0] is not None]

    def changed(tokens: Array, first: int) -> Array:
        with written(change, names):
            return base(tokens, first)

    return changed


if __name__ == "__main__":
    main()
