"""Sessions and executors over the interpreter."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import DTypeLike

from omnic.errors import InputError, nearest
from omnic.ir import packing
from omnic.ir.dims import evaluate
from omnic.ir.executor import Outputs, Visit
from omnic.ir.graph import Module, Node, State
from omnic.ir.op import Array
from omnic.ir.packing import QTensor
from omnic.ir.reference.binding import Numbers
from omnic.ir.reference.interpreter import Interpreter, Routing, Trace, WeightReader, empty_states

__all__ = ["ReferenceExecutor", "ReferenceSession"]

Ints = npt.NDArray[np.int64]


class ReferenceSession:
    """The states of a batch of rows over :class:`Interpreter`: the session interface in the reference.

    Args:
        module: a module whose ``function`` has the signature of the one forward.
        weights: a weight store, or arrays by name.
        dtype: f64 or f32.
        batch: rows.
        function: the function that :meth:`forward` runs; of ``forward`` and ``prefill`` each call takes its own
            (:meth:`omnic.ir.graph.Module.called`).
    """

    def __init__(self, module: Module, weights: WeightReader | Mapping[str, Any], dtype: DTypeLike = np.float64,
                 batch: int = 1, function: str = "forward") -> None:
        self.module = module
        self.interpreter = Interpreter(module, weights, dtype)
        self.function = function
        self._mtp = tuple(name for name in module.functions if name == "mtp" or name.startswith("mtp."))
        self.reset(batch)

    def reset(self, batch: int = 1) -> None:
        """Forget everything and hold ``batch`` empty rows."""
        self._start = np.zeros(batch, np.int64)
        self._written = np.zeros(batch, np.int64)
        self._mtp_start = {name: np.zeros(batch, np.int64) for name in self._mtp}
        self._states: dict[str, Numbers] = {}
        for name in (self.function, *self._mtp):
            self._states |= empty_states(self.module, batch, self.interpreter.dtype, name)

    @property
    def start(self) -> Ints:
        """Committed tokens of each row, i64[B] (a copy)."""
        return self._start.copy()

    @property
    def states(self) -> Mapping[str, Numbers]:
        """The states by name, as they are now."""
        return dict(self._states)

    def forward(
        self,
        tokens: npt.ArrayLike,
        length: npt.ArrayLike | None = None,
        rows: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        parents: npt.ArrayLike | None = None,
        embeds: npt.ArrayLike | None = None,
        embed_mask: npt.ArrayLike | None = None,
        trace: Trace | None = None,
        routing: Mapping[str, Routing] | None = None,
    ) -> Outputs:
        """Append tokens i64[B, T] (or [T] for one row) to every row; the arguments are those of every session.

        ``trace`` and ``routing`` go to :meth:`Interpreter.run`.

        Raises:
            InputError: shapes, ids out of the vocabulary, more tokens than the capacity, an argument the
                function does not take.
        """
        ids = np.atleast_2d(np.asarray(tokens))
        extra = {"parents": parents, "embeds": embeds, "embed_mask": embed_mask}
        name = self.module.called(ids.shape[1]) if self.function == "forward" else self.function
        results, valid = self._call(name, self._start, ids, {"tokens": ids}, length, rows, positions, extra, trace,
                                    routing)
        self._start = self._start + valid
        self._written = np.maximum(self._written, self._start)
        return Outputs(results["logits"], results.get("hidden"), results.get("mtp"), results.get("verifier"))

    def mtp_forward(
        self,
        hidden: npt.ArrayLike,
        next_tokens: npt.ArrayLike,
        length: npt.ArrayLike | None = None,
        rows: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        depth: int = 0,
    ) -> Outputs:
        """Append (hidden, next token) pairs to the states of MTP block ``depth`` and return its logits and hidden.

        Args:
            hidden: [B, T, D], residual stream before the final norm (of ``forward`` or of an earlier draft).
            next_tokens: i64[B, T], the token after each.
            length: i64[B], valid pairs of each row.
            rows: i64[B, R], wanted rows.
            positions: i64[B, T], seen by rope; counted from the block's own states when None.
            depth: which block; the last one when there are fewer.

        Raises:
            InputError: the module has no MTP block, or shapes.
        """
        if not self._mtp:
            raise InputError(f"@{self.module.name} has no MTP block")
        name = self._mtp[min(depth, len(self._mtp) - 1)]
        ids = np.atleast_2d(np.asarray(next_tokens))
        inputs = {"hidden": hidden, "next_tokens": ids}
        results, valid = self._call(name, self._mtp_start[name], ids, inputs, length, rows, positions)
        self._mtp_start[name] = self._mtp_start[name] + valid
        return Outputs(results["logits"], results.get("hidden"))

    def _call(self, name: str, start: Ints, ids: Array, inputs: dict[str, Any], length: Any, rows: Any, positions: Any,
              extra: Mapping[str, Any] | None = None, trace: Trace | None = None,
              routing: Mapping[str, Routing] | None = None) -> tuple[dict[str, Any], Ints]:
        batch, count = ids.shape
        if batch != len(start):
            raise InputError(f"tokens has {batch} rows, the session holds {len(start)}", "call reset(batch) first")
        valid = np.full(batch, count, np.int64) if length is None else np.asarray(length)
        if valid.shape != (batch,) or (valid < 0).any() or (valid > count).any():
            raise InputError(f"length must be in 0..{count} for each of the {batch} rows, not {valid.tolist()}")
        steps = np.arange(int(count))[None]
        inputs |= {
            "positions": start[:, None] + steps if positions is None else positions,
            "start": start,
            "length": valid,
            "rows": np.repeat(steps, batch, 0) if rows is None else rows,
        }
        inputs |= {key: value for key, value in (extra or {}).items() if value is not None}
        results = self.interpreter.run(inputs, name, self._states, trace, routing)
        self._states |= {p.state: results[p.state] for p in self.module.function(name).params if p.state}
        return results, valid

    def rollback(self, lengths: npt.ArrayLike) -> None:
        """Keep the first ``lengths[b]`` tokens of each row, and at most as many pairs of MTP blocks.

        Raises:
            InputError: a length above ``start``, or one that a ring or a snapshot state cannot go back to.
        """
        new = np.asarray(lengths)
        if new.shape != self._start.shape or (new < 0).any() or (new > self._start).any():
            raise InputError(f"rollback to {new.tolist()} tokens; the rows hold {self._start.tolist()}")
        moved = (new < self._start) & (new > 0)
        for state in self.module.states.values():
            if moved.any() and state.rollback != "positional":
                raise InputError(f"the state {state.name} keeps no history", "roll back to 0 and prefill again")
            if state.ring:
                self._check_ring(state, new, moved)
        self._start = new.astype(np.int64)
        self._written = np.where(new == 0, 0, self._written)
        self.mtp_rollback(self._start)

    def _check_ring(self, state: State, new: Ints, moved: npt.NDArray[np.bool_]) -> None:
        """Refuse to go back further than a ring still holds.

        Slot j mod S holds the newest token written to it, and a window that ends at n needs j >= n - W + 1.
        """
        slots = evaluate(state.type.shape[-2], {name: r.high for name, r in self.module.dims.items()})
        reach = slots - state.window + 1
        lost = moved & (self._written > slots) & (self._written - new > reach)
        if lost.any():
            row = int(np.flatnonzero(lost)[0])
            raise InputError(f"rollback of row {row} from {self._written[row]} to {new[row]} tokens; the ring "
                             f"{state.name} reaches back {reach}", "roll back less, or to 0 and prefill again")

    def mtp_rollback(self, lengths: npt.ArrayLike) -> None:
        """Keep at most the first ``lengths[b]`` pairs of each MTP block's states (drafts are dropped so)."""
        limit = np.asarray(lengths)
        self._mtp_start = {name: np.minimum(start, limit) for name, start in self._mtp_start.items()}

    def fork(self) -> ReferenceSession:
        """Return an independent session with the same states (they are never changed in place: none is copied)."""
        other = copy.copy(self)
        other._states = dict(self._states)
        other._mtp_start = dict(self._mtp_start)
        return other

    def state_bytes(self) -> int:
        """Return the bytes that the states of all rows take, counted on the packed numbers that they hold."""
        total = 0
        for name, numbers in self._states.items():
            element = self.module.states[name].type.element
            if isinstance(numbers, QTensor):
                total += sum(part.nbytes for part in packing.packed_parts(numbers).values())
            else:
                total += numbers.size * element.bits // 8
        return total


class ReferenceExecutor:
    """The :class:`omnic.ir.executor.Executor` of the reference, in f32 unless asked."""

    def __init__(self, module: Module, weights: WeightReader | Mapping[str, Any],
                 dtype: DTypeLike = np.float32) -> None:
        self._session = ReferenceSession(module, weights, dtype)
        self._function = module.function()
        self._chunk = module.dims["T"].high

    def forward(self, tokens: Ints) -> Outputs:
        """Return what the module says about every position of i64[B, T], from empty states."""
        parts = self._run(tokens, None)
        joined: dict[str, Any] = {}
        for name in ("logits", "hidden", "mtp", "verifier"):
            arrays = [p[name] for p in parts if name in p]
            joined[name] = np.concatenate(arrays, axis=1) if arrays else None
        return Outputs(**joined)

    def observe(self, tokens: Ints, nodes: Collection[str], visit: Visit) -> None:
        """Call ``visit(node, operands, results)`` for each named node, chunk by chunk."""
        have = {n.name for n in self._function.nodes}
        for name in sorted(set(nodes) - have):
            near = nearest(name, sorted(have))
            hint = f"did you mean '{near}'?" if near else None
            raise InputError(f"@{self._function.name} has no node '{name}'", hint)
        wanted = set(nodes)

        def look(node: Node, operands: tuple[Any, ...], results: tuple[Any, ...]) -> None:
            if node.name in wanted:
                visit(node.name, operands, results)

        self._run(tokens, look)

    def _run(self, tokens: Ints, look: Any) -> list[dict[str, Any]]:
        """Run the sequence in chunks from empty states and return the results of each."""
        interpreter = self._session.interpreter
        takes = {p.value.name for p in self._function.params if p.state is None}
        states: Mapping[str, Numbers] = empty_states(interpreter.module, len(tokens), interpreter.dtype)
        found: list[dict[str, Any]] = []
        for first in range(0, tokens.shape[1], self._chunk):
            part = tokens[:, first : first + self._chunk]
            batch, count = part.shape
            steps = np.repeat(np.arange(int(count))[None], batch, 0)
            every = {"tokens": part, "positions": first + steps, "start": np.full(batch, first),
                     "length": np.full(batch, count), "rows": steps}
            found.append(interpreter.run({k: v for k, v in every.items() if k in takes}, states=states, observe=look))
            states = {name: found[-1][name] for name in states}
        return found
