"""The kinds of blocks a spec may name, and how a third party adds one.

A package adds a kind through the entry-point group ``omnic.models``: the entry's name is
``attention.KIND`` or ``ffn.KIND``, its value a builder with the signature of the ones here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from omnic.errors import InputError, nearest
from omnic.ir.graph import Value
from omnic.models.attention import grouped_attention, latent_attention
from omnic.models.context import Context
from omnic.models.ffn import dense, mixture
from omnic.spec import Dense, Layer, MoE

__all__ = ["AttentionBuilder", "FfnBuilder", "attention_builder", "ffn_builder"]

AttentionBuilder = Callable[[Context, Value, Layer, int, str], Value]
FfnBuilder = Callable[[Context, Value, Layer, str], Value]

ATTENTION: dict[str, AttentionBuilder] = {
    "mha": grouped_attention,
    "gqa": grouped_attention,
    "mqa": grouped_attention,
    "mla": latent_attention,
}
FFN: dict[str, FfnBuilder] = {"dense": dense, "moe": mixture}


def attention_builder(kind: str) -> AttentionBuilder:
    """Return the builder of an attention kind.

    Raises:
        InputError: unknown kind.
    """
    return ATTENTION.get(kind) or _registered("attention", kind, list(ATTENTION))


def ffn_builder(ffn: object) -> FfnBuilder:
    """Return the builder of a feed-forward network: a kind of ours, or one a package registered.

    Raises:
        InputError: unknown kind.
    """
    kind = "dense" if isinstance(ffn, Dense) else "moe" if isinstance(ffn, MoE) else str(getattr(ffn, "kind", "?"))
    return FFN.get(kind) or _registered("ffn", kind, list(FFN))


def _registered(room: str, kind: str, known: list[str]) -> Callable[..., Value]:
    found = {e.name: e for e in entry_points(group="omnic.models") if e.name.startswith(f"{room}.")}
    if f"{room}.{kind}" in found:
        return found[f"{room}.{kind}"].load()
    names = known + [name.removeprefix(f"{room}.") for name in found]
    near = nearest(kind, names)
    raise InputError(
        f"unknown {room} kind '{kind}'", f"did you mean '{near}'?" if near else f"known: {', '.join(names)}"
    )
