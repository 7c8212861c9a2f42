"""The pass ``int4-packing``: weights in few bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np

from omnic.errors import InputError
from omnic.ir.executor import Executor
from omnic.ir.graph import Module, Recipe
from omnic.ir.packing import check_storage
from omnic.ir.rewrite import Remark, retype_weights
from omnic.ir.types import DType, ScaleKind, Storage, StorageKind, TensorType, parse_element
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, option, register_pass
from omnic.passes.quantise.calibrate import readers
from omnic.passes.quantise.methods import Changes, Run
from omnic.passes.quantise.rtn import round_to_nearest
from omnic.passes.quantise.select import Chosen, Wanted, choose
from omnic.passes.quantise.sensitivity import assign, sensitivities

__all__ = ["Int4Packing"]

NAME = "int4-packing"
KINDS = ("i8", "i6", "i5", "i4", "i3", "i2", "nf4", "fp4", "t2")
#: with 8 bits and more, rounding to nearest loses nothing that a method could win back
_FINE = 8


@register_pass
@dataclass(frozen=True)
class Int4Packing:
    """Store the weights of products in few bits, groups of them sharing a scale.

    1. Matrices of ``linear`` and ``moe`` take ``kind`` with a scale for each ``group`` numbers of the contraction
       dim; where that does not divide the dim, the largest smaller group that does (or that the target's kernels
       read), and a remark says so. Norms, routers, biases and sinks stay.
    2. A table that an embedding reads takes ``embedding``, a head that no embedding reads takes ``head``; a tied
       table is one weight. MLA's up-projections, which absorption contracts along two dims, take ``latent``.
    3. ``rtn`` rounds to nearest as a recipe, slice by slice. ``hqq`` fits the groups to an l_p error of the weights.
       ``awq`` scales channels and clips ranges, ``gptq`` rounds column by column, both after the inputs that
       calibration text gives every matrix; experts after the tokens routed to them, weighted by the square of
       their gates. What ``forward`` does not multiply with, and experts that saw fewer tokens than their
       contraction dim, go by ``hqq``. Results are kept by the hash of weights, text and options.
    4. ``mix`` lists kinds from few bits to many: every matrix starts at the first, and those whose divergence falls
       most per byte take the next, while ``bits`` (mean bits of a code) or ``budget`` (bytes of all weights) allow. The
       divergence is that of the model with one matrix alone in one kind, on calibration windows.

    Given::

        %4 = linear(%3, @blocks.0.attn.q) : f32[B, T, 256]

    Result: the same nodes, and::

        weight @blocks.0.attn.q : i4<g64, asym>[256, 256] = stored(hash = "...")

    Attributes:
        method: how codes are chosen.
        kind: codes of the body.
        group: numbers that share a scale, at most; 0 = a whole row.
        asym: a zero point beside each scale.
        scale: type of the scales; s4 is a 4-bit step times one f32 a row.
        embedding: storage type of tables that an embedding reads, or keep.
        head: storage type of heads that no embedding reads, or keep.
        latent: i8 (one scale a head), f16 or keep, for MLA's up-projections.
        windows: of the calibration text, at most.
        damp: gptq: share of the mean of H's diagonal added to it.
        order: gptq: columns of large inputs first (act-order).
        clip: gptq: scales that minimise the weighted error, instead of the whole range.
        sweeps: gptq: passes of coordinate descent over the codes afterwards (arXiv:2309.01885).
        sequential: gptq: later layers are calibrated behind the earlier ones as they are quantised.
        mix: kinds from few bits to many, for mixed precision.
        bits: mixed: mean bits of a code of the matrices of ``forward``.
        budget: mixed: bytes of all weights of the module.
        probes: mixed: windows that sensitivity is measured on.
        reverse: mixed: the least gain first, as a control of what the order is worth.
    """

    method: str = option("rtn", choices=("rtn", "hqq", "awq", "gptq"))
    kind: str = option("i4", choices=KINDS)
    group: int = option(64, choices=(0, 16, 32, 64, 128, 256))
    asym: bool = False
    scale: str = option("f16", choices=("f16", "f32", "s4"))
    embedding: str = "i8<row>"
    head: str = "i8<row>"
    latent: str = option("i8", choices=("i8", "f16", "keep"))
    windows: int = option(128, low=1, high=4096)
    damp: float = option(0.01, low=1e-6, high=1.0)
    order: bool = False
    clip: bool = True
    sweeps: int = option(0, low=0, high=16)
    sequential: bool = False
    mix: tuple[str, ...] = option((), choices=KINDS)
    bits: float | None = option(None, low=1.0, high=8.0)
    budget: int | None = option(None, low=1)
    probes: int = option(16, low=1, high=4096)
    reverse: bool = False

    name: ClassVar[str] = NAME
    stage: ClassVar[Stage] = "lossy"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with its weights in storage types.

        Raises:
            InputError: an option has no meaning with another, what the method needs was not given, or a number to
                quantise is not finite.
        """
        self._check()
        chosen, remarks = choose(module, self._wanted(self.kind), context.caps)
        run = Run(self, module, context, remarks)
        body = {name: c for name, c in chosen.items() if self._fits_method(c)}
        changes: Changes = {name: plain(c) for name, c in chosen.items() if name not in body}
        if self.mix:
            changes |= self._mixed(run, body, chosen)
        elif self.method == "rtn":
            changes |= {name: plain(c) for name, c in body.items()}
        else:
            changes |= run.quantise(body)
        if not changes:
            return PassResult(module, False, tuple(remarks))
        return PassResult(retype_weights(module, changes), True, tuple(remarks))

    def _check(self) -> None:
        """Refuse options that have no meaning together."""
        for kind in (*self.mix, self.kind):
            type = self._type(kind)
            check_storage(type)
            if type.scale == "s4" and (type.kind != "i4" or type.asym or type.group <= 0):
                raise InputError(f"pass '{NAME}': s4 is the scale of symmetric i4 groups, not of {type}")
        for name, text in (("embedding", self.embedding), ("head", self.head)):
            _element(name, text)
        if bool(self.mix) != (self.bits is not None or self.budget is not None):
            raise InputError(f"pass '{NAME}': mix and one of bits and budget belong together",
                             "write mix=[i3, i4], bits=3.5")
        if self.bits is not None and self.budget is not None:
            raise InputError(f"pass '{NAME}': bits and budget were both given", "give one target")
        if self.mix and self.method == "awq":
            raise InputError(f"pass '{NAME}': awq scales a norm for one kind of all its readers, so it cannot be mixed",
                             "use gptq, hqq or rtn")
        bits = [self._type(kind).bits for kind in self.mix]
        if self.mix and (len(bits) < 2 or bits != sorted(set(bits))):
            raise InputError(f"option 'mix' of pass '{NAME}' lists two kinds or more, from few bits to many, got "
                             f"{', '.join(self.mix)}")

    def _type(self, kind: str) -> Storage:
        asym = self.asym and kind not in ("nf4", "fp4", "t2") if self.mix else self.asym
        return Storage(cast(StorageKind, kind), self.group, asym, cast(ScaleKind, self.scale))

    def _wanted(self, kind: str) -> Wanted:
        latent = {"i8": Storage("i8", -1), "f16": DType.F16, "keep": None}[self.latent]
        return Wanted(self._type(kind), _element("embedding", self.embedding), _element("head", self.head), latent)

    def _fits_method(self, chosen: Chosen) -> bool:
        """Whether the method chooses the codes: products of layers, and heads of few bits."""
        if chosen.role in ("linear", "expert"):
            return True
        return chosen.role != "latent" and self.method != "rtn" and chosen.element.bits < _FINE

    # -- mixed precision -------------------------------------------------------------------------------------
    def _mixed(self, run: Run, body: Mapping[str, Chosen], chosen: Mapping[str, Chosen]) -> Changes:
        """Return the changes of the body with a kind for each weight, by sensitivity."""
        module = run.module
        mixing = [name for name in readers(module, body) if body[name].role in ("linear", "expert")]
        levels: list[dict[str, Chosen]] = []
        for kind in self.mix:
            found, _ = choose(module, self._wanted(kind), run.context.caps)
            levels.append({name: found.get(name, body[name]) for name in body})
        changes = [self._by_method(run, level) for level in levels]
        costs = self._costs(run, mixing, changes)
        sizes = {name: [level[name].type.bytes() for level in levels] for name in mixing}
        level = assign({n: list(costs[i]) for i, n in enumerate(mixing)}, sizes,
                       self._room(module, mixing, levels, chosen), self.reverse)
        for name in mixing:
            run.remarks.append(Remark(NAME, f"@{name} in {self.mix[level[name]]}: alone in {self.mix[0]} it costs "
                                            f"{costs[mixing.index(name), 0]:.2e} nats a token", name))
        # What forward does not read costs nothing there, so it takes the fewest bits; awq's norms follow level 0.
        return {name: changes[level.get(name, 0)][name] for name in changes[0]}

    def _by_method(self, run: Run, level: Mapping[str, Chosen]) -> Changes:
        if self.method == "rtn":
            return {name: plain(c) for name, c in level.items()}
        return run.quantise(level)

    def _costs(self, run: Run, names: list[str], changes: list[Changes]) -> np.ndarray:
        calibration = run.calibration()
        tokens = calibration.tokens[: self.probes]
        recipes = [str(change[name]) for change in changes for name in names]
        key = run.key("sensitivity", calibration, probes=str(len(tokens)), recipes=";".join(recipes))
        if key not in run.results:
            factory = run.context.need_executor(NAME)

            def alone(name: str, kind: str) -> Executor:
                change = changes[self.mix.index(kind)][name]
                changed = retype_weights(run.module, {name: change})
                return factory(changed, run.store(changed))

            base = factory(run.module, run.store(run.module))
            costs = sensitivities(names, self.mix, base, alone, tokens,
                                  lambda share: run.context.progress(f"{NAME}: sensitivity", share))
            run.results.put(key, costs)
        found = run.results.get(key)
        assert isinstance(found, np.ndarray)
        return found

    def _room(self, module: Module, mixing: list[str], levels: list[dict[str, Chosen]],
              chosen: Mapping[str, Chosen]) -> int:
        """Return the bytes that the mixed weights may take."""
        if self.budget is not None:
            rest = sum(levels[0][n].type.bytes() if n in levels[0] else chosen[n].type.bytes() if n in chosen
                       else w.type.bytes() for n, w in module.weights.items() if n not in mixing)
            return self.budget - rest
        assert self.bits is not None
        low = sum(levels[0][n].type.bytes() for n in mixing)
        numbers = sum(int(str(levels[0][n].type.size)) for n in mixing)
        # Scales and zero points are the same whatever the kind, so the mean of the codes' bits is a matter of bytes.
        return low + int((self.bits - self._type(self.mix[0]).bits) * numbers / 8)


def plain(chosen: Chosen) -> tuple[TensorType, Recipe]:
    """Return type and recipe of a weight that is rounded, or cast."""
    if isinstance(chosen.element, DType):
        return chosen.type, chosen.weight.recipe
    return chosen.type, round_to_nearest(chosen.weight, chosen.element)


def _element(name: str, text: str) -> Storage | None:
    if text == "keep":
        return None
    element = parse_element(text)
    if not isinstance(element, Storage):
        raise InputError(f"option '{name}' of pass '{NAME}' must be a storage type or keep, got '{text}'",
                         "write i8<row>, i4<g32>, ... or keep")
    check_storage(element)
    return replace(element)
