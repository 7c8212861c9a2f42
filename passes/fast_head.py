"""A function for greedy decoding that finds the most likely token without most of the head's products."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from omnic.errors import InputError
from omnic.ir import packing
from omnic.ir.graph import Function, Module, Node, Recipe, Result, Value, Weight
from omnic.ir.packing import QTensor
from omnic.ir.rewrite import Remark, eliminate_dead_code
from omnic.ir.shortlist import reach_of
from omnic.ir.types import DType, Storage, TensorType
from omnic.ir.weights import ResultStore, WeightStore
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, option, register_pass
from omnic.passes.specialise import specialise_phase

__all__ = ["FUNCTION", "FastHead"]

NAME, FUNCTION, VERSION = "fast-head", "greedy", 1
#: of the screen; dims of a shortlist are a multiple of its group
SCREEN = Storage("i8", 32)
#: windows of one call of the executor
_WINDOWS = 8
#: how many dims the basis has is chosen by so many inputs, on so many panels of the head, among so many numbers of dims
_PROBES, _PANELS, _TRIED = 256, 512, 16
#: share of the head's bytes up to which a shortlist pays: the bound itself costs time too
_WORTH = 2 / 3
#: columns that a product reads together
_PANEL = 16

Floats = npt.NDArray[np.float64]


@register_pass
@dataclass(frozen=True)
class FastHead:
    """Find the most likely token with a low-dimensional shortlist and a bound, and the whole head only where it must.

    1. A function ``greedy`` stands beside ``forward``: a call of one token, with the most likely next token in the
       place of the logits (``lm_argmax``). Its result is that of the full head, always: greedy text does not change.
    2. The inputs of the head on calibration text and its rows choose a few directions (``basis``: the eigenvectors of
       the sum of both covariances, each divided by its trace). Each row's share in them is kept in 8 bits
       (``screen``), with the lengths of what is missing (``reach``).
    3. For an input, the small product with ``screen`` and the Cauchy-Schwarz inequality bound every logit. Panels of 16
       rows whose bounds lie below the best logit known are left out; the others are multiplied as ever.
    4. The number of directions is the one that reads the fewest bytes on the calibration text. Where that saves less
       than a third of the head's bytes, nothing is changed.
    5. Run it after passes that change the head's numbers: a compile checks ``reach`` against the head it writes.

    Given::

        %logits = lm_head(%x, @embed, %rows) : f32[B, R, 512]

    Result: the same in ``forward``, and in ``greedy``::

        %token, %logit = lm_argmax(%x, @embed, %rows, @head.basis, @head.screen, @head.reach)

    Attributes:
        windows: of the calibration text that are looked at.
        dims: of the shortlist, a multiple of 32; 0 chooses.
    """

    windows: int = option(16, low=1, high=4096)
    dims: int = option(0, low=0, high=1 << 14)

    name: ClassVar[str] = NAME
    stage: ClassVar[Stage] = "lossy"

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with a function for greedy decoding.

        Raises:
            InputError: the head is no plain ``lm_head`` of a weight, ``dims`` does not fit, or there is nothing to
                calibrate on.
        """
        if FUNCTION in module.functions:
            return PassResult(module, False, (Remark(NAME, f"@{FUNCTION} is there already", missed=True),))
        if context.caps is not None and not context.caps.lowers("lm_argmax"):
            told = f"target {context.caps.target} computes all logits"
            return PassResult(module, False, (Remark(NAME, told, missed=True),))
        node = self._head(module)
        weight = module.weights[node.operands[1].name]  # type: ignore[union-attr]
        width = int(str(weight.type.shape[1]))
        if self.dims % SCREEN.group or self.dims > width:
            raise InputError(f"pass '{NAME}': dims must be a multiple of {SCREEN.group} up to {width}, not {self.dims}")
        store = context.need_weights(NAME).with_module(module)
        results = context.need_results(NAME)
        found, told = self._shortlist(module, node, store, results, context)
        if found is None:
            return PassResult(module, False, (Remark(NAME, told, node.name, True),))
        weights = {**module.weights, **{w.name: w for w in found}}
        after = specialise_phase(replace(module, weights=weights), FUNCTION, 1, rows=1)
        after = after.with_function(_greedy(after.function(FUNCTION), node.name, [w.value for w in found]))
        return PassResult(after, True, (Remark(NAME, told, node.name),))

    def _head(self, module: Module) -> Node:
        """Return the node that gives the logits of ``forward``."""
        forward = module.function()
        logits = next((r.value for r in forward.results if r.name == "logits"), None)
        node = next((n for n in forward.nodes if logits in n.results), None)
        if node is None or node.op != "lm_head":
            raise InputError(f"pass '{NAME}': the logits of @{module.name} come from no lm_head", "leave the pass out")
        weight = node.operands[1]
        if weight is None or not weight.weight or node.operands[3] is not None:
            raise InputError(f"pass '{NAME}': the head of @{module.name} has a bias, or no weight of its own",
                             "leave the pass out")
        return node

    def _shortlist(
        self, module: Module, node: Node, store: WeightStore, results: ResultStore, context: PassContext
    ) -> tuple[list[Weight] | None, str]:
        """Return the weights of the shortlist, None where none pays, and what to say."""
        weight = module.weights[node.operands[1].name]  # type: ignore[union-attr]
        calibration = context.need_calibration(NAME)
        count = min(self.windows, len(calibration.tokens))
        tokens = calibration.tokens[np.arange(count) * len(calibration.tokens) // count]
        digest = hashlib.sha256()
        for _, _, part in store.slices(weight.name):
            digest.update(np.ascontiguousarray(part).tobytes())
        facts = {"result": NAME, "version": VERSION, "weights": context.weights_key, "head": digest.hexdigest(),
                 "calibration": calibration.sha256, "windows": self.windows, "dims": self.dims}
        keys = {part: ResultStore.key(**facts, part=part) for part in ("basis", "screen", "reach")}
        if not all(key in results for key in keys.values()):
            inputs = self._inputs(module, node, store, tokens, context)
            basis = _directions(_head_gram(store, weight.name), inputs)
            dims, share = self._chosen(store, weight, basis, inputs, context)
            if dims == 0:
                return None, f"no shortlist reads less than {share:.0%} of the head's bytes on {calibration.text}"
            _keep(results, keys, store, weight.name, basis[:dims])
        dims = np.asarray(results.get(keys["basis"])).shape[0]
        rows, width = weight.type.shape
        types = {"basis": TensorType(DType.F32, (dims, width)), "screen": TensorType(SCREEN, (rows, dims)),
                 "reach": TensorType(DType.F32, (3, rows))}
        made = [
            Weight(Value(f"head.{part}", type, weight=True), Recipe("stored", {"hash": keys[part]}))
            for part, type in types.items()
        ]
        return made, f"{dims} of {width} dims; calibrated on {count} windows: {calibration.text}"

    def _inputs(
        self, module: Module, node: Node, store: WeightStore, tokens: npt.NDArray[np.int64], context: PassContext
    ) -> Floats:
        """Return what the head reads on the text, [N, D]."""
        executor = context.need_executor(NAME)(module, store)
        parts: list[npt.NDArray[Any]] = []

        def visit(_: str, operands: tuple[npt.NDArray[Any] | None, ...], __: tuple[npt.NDArray[Any], ...]) -> None:
            assert operands[0] is not None
            parts.append(operands[0].reshape(-1, operands[0].shape[-1]).astype(np.float32))

        for first in range(0, len(tokens), _WINDOWS):
            context.progress(f"{NAME}: calibrate", first / len(tokens))
            executor.observe(tokens[first : first + _WINDOWS], [node.name], visit)
        return np.concatenate(parts).astype(np.float64)

    def _chosen(
        self, store: WeightStore, weight: Weight, basis: Floats, inputs: Floats, context: PassContext
    ) -> tuple[int, float]:
        """Return how many directions read the fewest bytes, 0 for none, and their share of the head's bytes."""
        rows, width = (int(str(n)) for n in weight.type.shape)
        if self.dims:
            return self.dims, 0.0
        probes = inputs[:: max(len(inputs) // _PROBES, 1)]
        some, largest = _seen(store, weight.name, probes)
        best = 0, 1.0
        whole = weight.type.bytes()
        step = -(-width // (_TRIED * SCREEN.group)) * SCREEN.group
        for dims in range(step, width, step):
            context.progress(f"{NAME}: dims", dims / width)
            own = rows * (dims * (1 + 2 / SCREEN.group) + 12) + dims * width * 4
            if own >= best[1] * whole:
                break
            share = own / whole + _looked_at(some, largest, basis[:dims], probes)
            best = min(best, (dims, share), key=lambda found: found[1])
        return best if best[1] <= _WORTH else (0, best[1])


def _greedy(function: Function, head: str, shortlist: list[Value]) -> Function:
    """Return the clone with the head's argmax in the place of its logits."""
    node = next(n for n in function.nodes if n.name == head)
    x, w, rows = node.operands[:3]
    assert x is not None
    shape = node.result.type.shape[:2]
    token, logit = Value("token", TensorType(DType.I64, shape)), Value("logit", TensorType(DType.F32, shape))
    found = replace(node, name=f"{head}.token", op="lm_argmax", operands=(x, w, rows, *shortlist),
                    attrs={k: v for k, v in node.attrs.items() if k == "act"}, results=(token, logit))
    kept = tuple(r for r in function.results if r.state is not None or r.name == "hidden")
    results = (Result("token", token), Result("logit", logit), *kept)
    nodes = tuple(found if n.name == head else n for n in function.nodes)
    return eliminate_dead_code(Function(FUNCTION, function.params, nodes, results))


def _head_gram(store: WeightStore, name: str) -> Floats:
    width = int(str(store.module.weights[name].type.shape[1]))
    gram = np.zeros((width, width))
    for _, _, part in store.slices(name):
        gram += part.T.astype(np.float64) @ part
    return gram


def _directions(gram: Floats, inputs: Floats) -> Floats:
    """Return all directions [D, D], the most useful first."""
    seen = inputs.T @ inputs
    _, vectors = np.linalg.eigh(gram / np.trace(gram) + seen / np.trace(seen))
    return np.ascontiguousarray(vectors.T[::-1].astype(np.float32)).astype(np.float64)


def _screen(w: Floats, basis: Floats) -> QTensor:
    return packing.quantise((w @ basis.T).astype(np.float32), SCREEN)


def _seen(store: WeightStore, name: str, probes: Floats) -> tuple[Floats, Floats]:
    """Return rows of evenly spread panels of the head, and the largest logit of every probe over all rows."""
    rows = int(str(store.module.weights[name].type.shape[0]))
    apart = max(rows // _PANEL // _PANELS, 1)
    some: list[Floats] = []
    largest = np.full(len(probes), -np.inf)
    for start, stop, part in store.slices(name):
        w = part.astype(np.float64)
        largest = np.maximum(largest, (probes @ w.T).max(1))
        some.append(w[np.arange(start, stop) // _PANEL % apart == 0])
    return np.concatenate(some), largest


def _looked_at(rows: Floats, largest: Floats, basis: Floats, probes: Floats) -> float:
    """Return the share of the head's panels that the bound cannot leave out."""
    p = probes @ basis.T
    grouped = p.reshape(len(p), -1, SCREEN.group)
    step = np.abs(grouped).max(-1, keepdims=True) / 127
    rounded = (np.rint(grouped / np.where(step == 0, 1, step)) * step).reshape(p.shape)
    lengths = np.sqrt(np.stack([np.square(a).sum(1) for a in (probes - p @ basis, p - rounded, probes)], 1))
    screen = packing.decode(_screen(rows, basis)).astype(np.float64)
    open_ = rounded @ screen.T + lengths @ reach_of(rows, basis, screen) >= largest[:, None]
    padded = np.pad(open_, ((0, 0), (0, -open_.shape[1] % _PANEL)))
    return float(padded.reshape(len(probes), -1, _PANEL).any(2).mean())


def _keep(results: ResultStore, keys: dict[str, str], store: WeightStore, name: str, basis: Floats) -> None:
    """Compute and keep the parts of a shortlist."""
    screens: list[QTensor] = []
    reaches: list[npt.NDArray[np.float32]] = []
    for _, _, part in store.slices(name):
        w = part.astype(np.float64)
        screens.append(_screen(w, basis))
        reaches.append(reach_of(w, basis, packing.decode(screens[-1])))
    parts = {part: np.concatenate([s.parts()[part] for s in screens]) for part in screens[0].parts()}
    results.put(keys["screen"], QTensor.of_parts(SCREEN, parts))
    results.put(keys["reach"], np.concatenate(reaches, 1))
    results.put(keys["basis"], basis.astype(np.float32))
