"""Running a method over the chosen weights, and keeping what it finds by the hash of all that went in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from omnic.errors import InputError
from omnic.ir.graph import Module, Recipe
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.rewrite import Remark, retype_weights
from omnic.ir.text import print_module
from omnic.ir.types import DType, Storage, TensorType
from omnic.ir.weights import ResultStore, WeightStore
from omnic.passes.context import Calibration, PassContext
from omnic.passes.quantise.awq import Fold, channel_scales, clipped, folds, names_of, scaled_inputs, taken_out
from omnic.passes.quantise.calibrate import Inputs, collect, readers, stages
from omnic.passes.quantise.gptq import gptq
from omnic.passes.quantise.hqq import hqq
from omnic.passes.quantise.select import Chosen

if TYPE_CHECKING:
    from omnic.passes.quantise.pack import Int4Packing

__all__ = ["Changes", "Run"]

NAME = "int4-packing"
#: part of the key of every result: raised when a method gives other numbers than before
VERSION = 1

#: an expert that saw fewer tokens than this many times its contraction dim is not calibrated
FEW_ROWS = 1.0

Changes = dict[str, tuple[TensorType, Recipe]]


@dataclass
class Run:
    """One run of the pass: its surroundings, and what it has to say.

    Attributes:
        options: the pass.
        module: as it came.
        context: of the pass.
        remarks: what was done and not done.
    """

    options: Int4Packing
    module: Module
    context: PassContext
    remarks: list[Remark] = field(default_factory=list[Remark])
    _facts: dict[str, str] = field(default_factory=dict[str, str])

    # -- surroundings -------------------------------------------------------------------------------------
    @property
    def results(self) -> ResultStore:
        """Where results are kept."""
        return self.context.need_results(NAME)

    def store(self, module: Module) -> WeightStore:
        """Return the numbers of a stage of the module, stored results among them."""
        weights = self.context.need_weights(NAME)
        return WeightStore(module, weights.source, weights.seed, self.results)

    def calibration(self) -> Calibration:
        """Return at most ``windows`` windows of the calibration text, evenly spread.

        Raises:
            InputError: there is none, or a token is not of the vocabulary.
        """
        every = self.context.need_calibration(NAME)
        vocab = self.module.meta.get("vocab")
        top = int(every.tokens.max(initial=0))
        if isinstance(vocab, int) and top >= vocab:
            raise InputError(f"the calibration text has token {top}, @{self.module.name} has a vocabulary of {vocab}",
                             "it was cut by the tokenizer of another model")
        count = min(self.options.windows, len(every.tokens))
        told = Remark(NAME, f"calibrated on {count} of {len(every.tokens)} windows: {every.text}")
        if told not in self.remarks:
            self.remarks.append(told)
        return replace(every, tokens=every.tokens[np.arange(count) * len(every.tokens) // count])

    def key(self, what: str, calibration: Calibration | None, **facts: str) -> str:
        """Return the key of a result of this run."""
        if not self._facts:
            weights = self.context.weights_key or _hash_of(self.context.need_weights(NAME), self.module)
            text = hashlib.sha256(print_module(self.module).encode()).hexdigest()
            self._facts.update(weights=weights, module=text)
        said = "" if calibration is None else calibration.sha256
        return ResultStore.key(result=NAME, version=VERSION, what=what, calibration=said, **self._facts, **facts)

    # -- methods ------------------------------------------------------------------------------------------
    def quantise(self, chosen: Mapping[str, Chosen]) -> Changes:
        """Return types and recipes of ``chosen`` by the method of the options, computing what is not kept yet."""
        method = self.options.method
        if method == "hqq":
            return self._data_free(chosen)
        seen = readers(self.module, chosen)
        unseen = {name: c for name, c in chosen.items() if name not in seen}
        changes = self._data_free(unseen)
        for name in unseen:
            self.remarks.append(Remark(NAME, f"@{name} by hqq: forward does not multiply with it, so nothing is known "
                                             "of its inputs", name))
        known = {name: c for name, c in chosen.items() if name in seen}
        return changes | (self._awq(known) if method == "awq" else self._gptq(known))

    def _data_free(self, chosen: Mapping[str, Chosen]) -> Changes:
        changes: Changes = {}
        for done, (name, each) in enumerate(chosen.items()):
            type = _storage(each)
            key = self.key("hqq", None, weight=name, type=str(type))
            if key not in self.results:
                self.context.progress(f"{NAME}: hqq", done / len(chosen))
                self.results.put(key, over_experts(self._numbers(name), lambda w, _, t=type: hqq(w, t)))
            changes[name] = (each.type, Recipe("stored", {"hash": key}))
        return changes

    def _numbers(self, name: str) -> Array:
        """Return the numbers of a weight.

        Raises:
            InputError: one of them is not finite.
        """
        numbers = self.store(self.module).array(name)
        if not np.isfinite(numbers).all():
            raise InputError(f"@{name} holds NaN or infinite numbers, which no storage type has",
                             "the weights are damaged, or the training that made them diverged")
        return numbers

    def _gptq(self, chosen: Mapping[str, Chosen]) -> Changes:
        options, calibration = self.options, self.calibration()
        facts = {"damp": str(options.damp), "order": str(options.order), "clip": str(options.clip),
                 "sweeps": str(options.sweeps), "sequential": str(options.sequential)}
        keys = {name: self.key("gptq", calibration, weight=name, type=str(c.element), among=_among(chosen), **facts,
                               **_sweep_facts(c)) for name, c in chosen.items()}
        changes: Changes = {n: (c.type, Recipe("stored", {"hash": keys[n]})) for n, c in chosen.items()}
        if all(key in self.results for key in keys.values()):
            return changes
        rounds = stages(self.module, chosen) if options.sequential else [list(chosen)]
        ready: Changes = {}
        for done, names in enumerate(rounds):
            module = retype_weights(self.module, ready)
            inputs = self._collect(module, names, calibration, done / len(rounds), len(rounds))
            for name in names:
                type = _storage(chosen[name])

                def one(w: Array, each: Inputs | None, type: Storage = type) -> QTensor:
                    if each is None or each.rows < FEW_ROWS * w.shape[1]:
                        return hqq(w, type)
                    return gptq(w, each.gram, type, options.damp, options.order, options.clip, options.sweeps)

                self._say_starved(name, inputs[name], chosen[name])
                self.results.put(keys[name], over_experts(self._numbers(name), one, inputs[name]))
                ready[name] = changes[name]
        return changes

    def _awq(self, chosen: Mapping[str, Chosen]) -> Changes:
        calibration = self.calibration()
        found, refused = folds(self.module, chosen)
        self.remarks += [Remark(NAME, reason, node) for node, reason in refused]
        among = _among(chosen)
        keys = {name: self.key("awq", calibration, weight=name, type=str(c.element), among=among,
                               fold="in its own type") for name, c in chosen.items()}
        beside = [n for fold in found for n in (*fold.vectors, *fold.matrices) if n not in chosen]
        for name in beside:
            keys[name] = self.key("awq", calibration, weight=name, type=str(self.module.weights[name].type.element),
                                  among=among, fold="in its own type")
        changes: Changes = {n: (c.type, Recipe("stored", {"hash": keys[n]})) for n, c in chosen.items()}
        changes |= {n: (self.module.weights[n].type, Recipe("stored", {"hash": keys[n]})) for n in beside}
        if all(key in self.results for key in keys.values()):
            return changes
        inputs = self._collect(self.module, list(chosen), calibration, 0.0, 1)
        scales = {fold.norm.name: self._fold_scales(fold, chosen, inputs) for fold in found}
        by_matrix = names_of(found)
        for name, each in chosen.items():
            type = _storage(each)
            fold = by_matrix.get(name)
            scale = None if fold is None else scales[fold.norm.name]

            def one(w: Array, seen: Inputs | None, type: Storage = type, scale: Array | None = scale) -> QTensor:
                w = w if scale is None else w * scale
                if seen is None or seen.rows < FEW_ROWS * w.shape[1]:
                    return hqq(w, type)
                return clipped(w, type, (seen if scale is None else scaled_inputs(seen, scale)).gram)

            self._say_starved(name, inputs[name], each)
            self.results.put(keys[name], over_experts(self._numbers(name), one, inputs[name]))
        for fold in found:
            scale = scales[fold.norm.name]
            for name in fold.vectors:
                self.results.put(keys[name], self._numbers(name) / scale)
            for name in (n for n in fold.matrices if n not in chosen):
                self.results.put(keys[name], self._numbers(name) * scale)
        return changes

    def _fold_scales(self, fold: Fold, chosen: Mapping[str, Chosen], inputs: Mapping[str, Sequence[Inputs]]) -> Array:
        parts: list[tuple[Array, Storage, Inputs]] = []
        for name in fold.matrices:
            if name not in chosen:
                continue
            numbers = self._numbers(name)
            matrices = numbers if numbers.ndim == 3 else numbers[None]
            pairs = zip(matrices, inputs[name], strict=True)
            parts += [(w, _storage(chosen[name]), seen) for w, seen in pairs if seen.rows]
        first = fold.vectors[0]
        element = self.module.weights[first].type.element
        assert isinstance(element, DType)
        return taken_out(self._numbers(first), channel_scales(parts), element)

    def _collect(self, module: Module, names: Sequence[str], calibration: Calibration, share: float,
                 rounds: int) -> dict[str, list[Inputs]]:
        executor = self.context.need_executor(NAME)(module, self.store(module))
        return collect(module, names, executor, calibration.tokens,
                       lambda done: self.context.progress(f"{NAME}: calibrate", share + done / rounds))

    def _say_starved(self, name: str, inputs: Sequence[Inputs], chosen: Chosen) -> None:
        if chosen.role != "expert":
            return
        width = int(str(chosen.type.shape[-1]))
        few = [str(e) for e, seen in enumerate(inputs) if seen.rows < FEW_ROWS * width]
        if few:
            self.remarks.append(Remark(NAME, f"experts {', '.join(few)} of @{name} by hqq: they saw fewer than "
                                             f"{int(FEW_ROWS * width)} tokens of the calibration text", name))


def over_experts(w: Array, one: Callable[[Array, Inputs | None], QTensor],
                 inputs: Sequence[Inputs] | None = None) -> QTensor:
    """Return w [N, K], or experts [E, N, K] one by one, as ``one`` quantises a matrix given its inputs."""
    if w.ndim == 2:
        return one(w, inputs[0] if inputs else None)
    parts = [one(matrix, inputs[e] if inputs else None) for e, matrix in enumerate(w)]
    first = parts[0].parts()
    arrays = {key: np.stack([p.parts()[key] for p in parts]) for key in first}
    return QTensor.of_parts(parts[0].type, arrays)


def _storage(chosen: Chosen) -> Storage:
    assert isinstance(chosen.element, Storage)
    return chosen.element


def _sweep_facts(chosen: Chosen) -> dict[str, str]:
    """Return what the key of a GPTQ result also holds: s4 steps were once chosen before the sweep."""
    return {"steps": "by the sweep"} if _storage(chosen).scale == "s4" else {}


def _among(chosen: Mapping[str, Chosen]) -> str:
    """Return what a calibration in stages or with shared scales also depends on: every weight and its type."""
    return ";".join(f"{name}:{c.element}" for name, c in chosen.items())


def _hash_of(weights: WeightStore, module: Module) -> str:
    """Return a hash of the numbers of every weight of the module."""
    digest = hashlib.sha256()
    store = weights.with_module(module)
    for name in module.weights:
        digest.update(name.encode())
        for start, stop in store.row_ranges(name):
            rows = (start, stop) if module.weights[name].type.rank else None
            for part in store.parts(name, rows).values():
                digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
