"""Sessions: one interface over every executable kind, and the registry that targets fill.

A session holds a compiled program and the states of a batch of rows.  It is made by
``open_session(bundle)``, which looks the manifest's executable kind up in the registry and imports
only that backend.  A target registers with one line of ``EXECUTABLES`` below or, from outside, under
the ``omnic.executables`` entry-point group; the value names a callable
``(bundle, options: SessionOptions) -> Session``.

The meaning of ``forward`` is fixed by the IR (docs/ir.md): ``start[b]`` tokens of row b are committed
already, a call appends ``length[b]`` more, and ``rows`` picks the positions *of this call* whose logits
are wanted.  Prefill, decode and verification are the same call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from omnic.errors import BundleError, InputError, InternalError, MissingExtraError, nearest
from omnic.ir.executor import Outputs
from omnic.runtime import resources
from omnic.runtime.session_info import Call, Ints, SessionInfo, SessionOptions

if TYPE_CHECKING:
    from omnic.runtime.bundle import Bundle

__all__ = ["EXECUTABLES", "Call", "Ints", "Outputs", "Session", "SessionBase", "SessionInfo", "SessionOptions",
           "executable_kinds", "last_rows", "most_likely", "open_session", "session_loader"]

# Executable kind -> "module:callable".  A backend that is not installed costs nothing until asked for.
EXECUTABLES: dict[str, str] = {
    "coreml": "omnic.targets.coreml.session:load",
    "torch": "omnic.targets.torch.session:load",
    "onnx": "omnic.targets.onnx.session:load",
    "executorch": "omnic.targets.executorch.session:load",
    "native": "omnic.targets.tvm.session:load",
}
ENTRY_POINTS = "omnic.executables"


@runtime_checkable
class Session(Protocol):
    """A compiled program with the states of a batch of rows."""

    @property
    def info(self) -> SessionInfo:
        """What it can do."""
        ...

    @property
    def start(self) -> Ints:
        """Committed tokens of each row, i64[B] (a copy)."""
        ...

    def reset(self, batch: int = 1) -> None:
        """Forget everything and hold ``batch`` empty rows.

        Raises:
            InputError: more rows than ``info.max_batch``.
        """
        ...

    def forward(
        self,
        tokens: npt.ArrayLike,
        length: npt.ArrayLike | None = None,
        rows: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        parents: npt.ArrayLike | None = None,
        embeds: npt.NDArray[Any] | None = None,
        embed_mask: npt.NDArray[np.bool_] | None = None,
    ) -> Outputs:
        """Append tokens to every row and return what the program says about them.

        Args:
            tokens: i64[B, T], or [T] for one row; T <= ``info.chunk``.
            length: i64[B], valid tokens of each row (the rest touch no state); T when None.
            rows: i64[B, R], indices 0..T-1 whose logits are wanted; every one of the T when None.
            positions: i64[B, T], what rope sees; ``start + 0..T-1`` when None.
            parents: i64[B, T], parent of each token within the call, -1 = the committed prefix.
            embeds: f32[B, T, D], used instead of the token's embedding where ``embed_mask`` is true.
            embed_mask: bool[B, T].

        Returns:
            ``logits`` f32[B, R, V]; ``hidden`` f32[B, T, D], ``mtp`` f32[B, R, depth, V] and ``verifier``
            f32[B, R, V] where the program has them.  Rows of logits beyond ``length`` hold anything.
            Arrays may be views of buffers that the next call overwrites.

        Raises:
            InputError: shapes, ids out of the vocabulary, more tokens than the capacity.
        """
        ...

    def greedy(self, tokens: npt.ArrayLike, length: npt.ArrayLike | None = None) -> Ints:
        """Append tokens to every row and return the most likely next token of each row, i64[B].

        It is the id of the largest logit after a row's last valid token, the lowest among equals, and -1 where that
        logit is not finite.  A program with a function ``greedy`` (``info.greedy``; pass ``fast-head``) finds that of
        single tokens without most of the head.  A row of length 0 gives any id.  Arguments and errors are those of
        :meth:`forward`.
        """
        ...

    def rollback(self, lengths: npt.ArrayLike) -> None:
        """Keep only the first ``lengths[b]`` tokens of each row.

        Raises:
            InputError: a length above ``start``, or further back than a ring or a snapshot reaches.
        """
        ...

    def fork(self) -> Session:
        """Return an independent session with a copy of the states; weights are shared."""
        ...

    def state_bytes(self) -> int:
        """Return the bytes that the states of all rows take."""
        ...


class SessionBase:
    """What every session shares: checks, bookkeeping of ``start``, and the rule of rings.

    A target derives from it and writes ``_reset``, ``_run``, ``_fork`` and ``state_bytes``; a target
    with snapshot states also writes ``_rollback``.
    """

    def __init__(self, info: SessionInfo, batch: int = 1) -> None:
        self._info = info
        self._start = np.zeros(batch, np.int64)
        # Tokens ever written per row since the last reset to 0: a ring slot may hold one of these.
        self._written = np.zeros(batch, np.int64)

    # Targets write these.

    def _reset(self, batch: int) -> None:
        """Make empty states for ``batch`` rows."""
        raise NotImplementedError

    def _run(self, call: Call) -> Outputs:
        """Run the program once and keep the new states."""
        raise NotImplementedError

    def _fork(self) -> SessionBase:
        """Return a session of the same class with copied states."""
        raise NotImplementedError

    def _rollback(self, lengths: Ints) -> None:
        """Prepare the states for new lengths; positional states have nothing to do."""

    def state_bytes(self) -> int:
        """Return the bytes that the states of all rows take."""
        raise NotImplementedError

    # The interface.

    @property
    def info(self) -> SessionInfo:
        """What it can do."""
        return self._info

    @property
    def start(self) -> Ints:
        """Committed tokens of each row, i64[B]."""
        return self._start.copy()

    def reset(self, batch: int = 1) -> None:
        """Forget everything and hold ``batch`` empty rows."""
        if not 1 <= batch <= self._info.max_batch:
            raise InputError(f"a batch of {batch} rows; this program takes 1 to {self._info.max_batch}")
        self._reset(batch)
        self._start = np.zeros(batch, np.int64)
        self._written = np.zeros(batch, np.int64)

    def forward(
        self,
        tokens: npt.ArrayLike,
        length: npt.ArrayLike | None = None,
        rows: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        parents: npt.ArrayLike | None = None,
        embeds: npt.NDArray[Any] | None = None,
        embed_mask: npt.NDArray[np.bool_] | None = None,
    ) -> Outputs:
        """Check the call, run it, commit ``length`` tokens; see :meth:`Session.forward`."""
        call = self._checked(tokens, length, rows, positions, parents, embeds, embed_mask)
        # A call that is interrupted half-way has still written into its slots.
        self._written = np.maximum(self._written, call.start + call.length)
        outputs = self._run(call)
        self._start = call.start + call.length
        return outputs

    def greedy(self, tokens: npt.ArrayLike, length: npt.ArrayLike | None = None) -> Ints:
        """Append tokens and return the most likely next token of each row; see :meth:`Session.greedy`."""
        count = np.asarray(tokens).shape[-1] if np.ndim(tokens) else 0
        valid = np.full(len(self._start), count) if length is None else _ints("length", length, self._start.shape)
        logits = self.forward(tokens, length=length, rows=last_rows(valid)).logits[:, 0]
        return most_likely(logits.argmax(-1), logits.max(-1))

    def rollback(self, lengths: npt.ArrayLike) -> None:
        """Keep only the first ``lengths[b]`` tokens of each row."""
        new = _ints("lengths", lengths, self._start.shape)
        if (new < 0).any() or (new > self._start).any():
            row = int(np.flatnonzero((new < 0) | (new > self._start))[0])
            raise InputError(f"rollback of row {row} to {new[row]} tokens; it holds {self._start[row]}")
        moved = (new < self._start) & (new > 0)
        if moved.any() and not self._info.rollback:
            raise InputError("the states of this program cannot be rolled back", "reset it and prefill again")
        self._check_rings(new, moved)
        self._rollback(new)
        self._start = new
        self._written = np.where(new == 0, 0, self._written)

    def fork(self) -> SessionBase:
        """Return an independent session with a copy of the states."""
        other = self._fork()
        other._start = self._start.copy()
        other._written = self._written.copy()
        return other

    # Checks.

    def _check_rings(self, new: Ints, moved: npt.NDArray[np.bool_]) -> None:
        """Refuse a rollback past what a ring still holds.

        Slot j mod S holds the newest token written to it, so token j is intact iff j + S was never
        written.  A window of W keys ending at n needs j >= n - W + 1, hence at most S - W + 1 tokens (T_max, where
        S = W + T_max - 1) may have been written beyond n, unless the ring never wrapped.
        """
        if self._info.ring is None:
            return
        reach = self._info.chunk if self._info.reach is None else self._info.reach
        lost = moved & (self._written - new > reach) & (self._written > self._info.ring)
        if lost.any():
            row = int(np.flatnonzero(lost)[0])
            what = "sliding-window cache" if reach >= self._info.chunk else "ring of recent tokens"
            raise InputError(
                f"rollback of row {row} from {self._written[row]} to {new[row]} tokens; its {what} "
                f"reaches back {reach}",
                "roll back less, or to 0 and prefill again",
            )

    def _checked(
        self,
        tokens: npt.ArrayLike,
        length: npt.ArrayLike | None,
        rows: npt.ArrayLike | None,
        positions: npt.ArrayLike | None,
        parents: npt.ArrayLike | None,
        embeds: npt.NDArray[Any] | None,
        embed_mask: npt.NDArray[np.bool_] | None,
    ) -> Call:
        info, start = self._info, self._start
        ids = np.asarray(tokens)
        if ids.ndim == 1:
            ids = ids[None]
        if ids.ndim != 2 or ids.shape[1] < 1 or ids.dtype.kind not in "iu":
            raise InputError(f"tokens must be integers of shape [B, T] with T >= 1, not {ids.dtype}{list(ids.shape)}")
        ids = ids.astype(np.int64, copy=False)
        batch, count = ids.shape
        if batch != len(start):
            raise InputError(f"tokens has {batch} rows, the session holds {len(start)}", "call reset(batch) first")
        if count > info.chunk:
            raise InputError(
                f"{count} tokens in one call; this program takes at most {info.chunk}", "split the call into chunks"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= info.vocab:
            bad = int(ids[(ids < 0) | (ids >= info.vocab)][0])
            raise InputError(f"token id {bad} is outside the vocabulary 0..{info.vocab - 1}")
        valid = np.full(batch, count, np.int64) if length is None else _ints("length", length, (batch,))
        if length is not None and ((valid < 0).any() or (valid > count).any()):
            raise InputError(f"length must be in 0..{count} for every row, not {valid.tolist()}")
        if ((start + valid) > info.capacity).any():
            row = int(np.flatnonzero(start + valid > info.capacity)[0])
            raise InputError(
                f"row {row} would hold {start[row] + valid[row]} tokens; this program holds at most {info.capacity}",
                "shorten the prompt, or compile with a larger budget.context",
            )
        steps = np.arange(count, dtype=np.int64)[None]
        wanted = np.repeat(steps, batch, 0) if rows is None else _ints("rows", rows, (batch, None))
        if rows is not None and (wanted.shape[1] < 1 or (wanted < 0).any() or (wanted >= count).any()):
            raise InputError(f"rows must be indices 0..{count - 1} into this call, at least one per row")
        return Call(
            tokens=ids,
            positions=start[:, None] + steps if positions is None else _ints("positions", positions, (batch, count)),
            start=start.copy(),
            length=valid,
            rows=wanted,
            parents=self._checked_parents(parents, batch, count),
            **self._checked_embeds(embeds, embed_mask, batch, count),
        )

    def _checked_parents(self, parents: npt.ArrayLike | None, batch: int, count: int) -> Ints | None:
        if parents is None:
            # A chain: each token's parent is the one before it.
            chain = np.arange(-1, count - 1, dtype=np.int64)[None]
            return np.repeat(chain, batch, 0) if self._info.parents else None
        if not self._info.parents:
            raise InputError("this program takes no token trees (parents)")
        tree = _ints("parents", parents, (batch, count))
        if (tree < -1).any() or (tree >= np.arange(count)).any():
            raise InputError("parents[b, i] must be -1 or the index of an earlier token of the call")
        return tree

    def _checked_embeds(
        self, embeds: npt.NDArray[Any] | None, mask: npt.NDArray[np.bool_] | None, batch: int, count: int
    ) -> dict[str, Any]:
        if embeds is None and mask is None:
            return {}
        if not self._info.embeds:
            raise InputError("this program takes token ids only, no embeds")
        if embeds is None or mask is None:
            raise InputError("embeds and embed_mask go together")
        if embeds.ndim != 3 or embeds.shape[:2] != (batch, count) or mask.shape != (batch, count):
            raise InputError(f"embeds must be [{batch}, {count}, D] and embed_mask [{batch}, {count}]")
        return {"embeds": np.asarray(embeds, np.float32), "embed_mask": np.asarray(mask, np.bool_)}


def _ints(name: str, value: npt.ArrayLike, shape: tuple[int | None, ...]) -> Ints:
    """Return ``value`` as i64 of ``shape`` (None = any size)."""
    array = np.asarray(value)
    fits = array.ndim == len(shape) and all(w is None or w == g for w, g in zip(shape, array.shape, strict=True))
    if not fits or (array.dtype.kind not in "iu" and array.size):
        want = ", ".join("R" if size is None else str(size) for size in shape)
        raise InputError(f"{name} must be integers of shape [{want}], not {array.dtype}{list(array.shape)}")
    return array.astype(np.int64)


def executable_kinds() -> dict[str, str]:
    """Return executable kind -> ``module:callable``, those of installed plug-ins included."""
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return {**found, **EXECUTABLES}


def open_session(bundle: Bundle, options: SessionOptions | None = None) -> Session:
    """Return a session for the bundle's program, its states empty and one row.

    Raises:
        BundleError: the executable kind is unknown to this omnic.
        MissingExtraError: its backend is not installed.
    """
    kind = bundle.manifest.executable.kind
    chosen = options or SessionOptions()
    if chosen.threads is None:
        chosen = replace(chosen, threads=resources.threads())
    return session_loader(kind)(bundle, chosen)


def session_loader(kind: str) -> Callable[[Bundle, SessionOptions], Session]:
    """Import the backend of an executable kind and return what opens its bundles.

    Raises:
        BundleError: the kind is unknown to this omnic.
        MissingExtraError: its backend is not installed.
    """
    known = executable_kinds()
    if kind not in known:
        near = nearest(kind, list(known))
        hint = f"did you mean '{near}'?" if near else f"this omnic runs: {', '.join(sorted(known))}"
        raise BundleError(f"the bundle's executable kind '{kind}' is unknown", hint)
    module_name, _, attribute = known[kind].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        package = (error.name or module_name).split(".")[0]
        if package == "omnic":
            raise InternalError(f"the session of '{kind}' names a module that does not exist: {error.name}") from error
        raise MissingExtraError(f"the backend of '{kind}' bundles (Python package '{package}')", kind) from error
    loader = getattr(module, attribute, None)
    if loader is None:
        raise InternalError(f"{known[kind]} does not exist")
    return loader


def most_likely(tokens: npt.NDArray[Any], logits: npt.NDArray[Any]) -> Ints:
    """Return the tokens, -1 where the largest logit is not finite."""
    return np.where(np.isfinite(logits), tokens, -1).astype(np.int64)


def last_rows(lengths: Sequence[int] | Ints) -> Ints:
    """Return ``rows`` i64[B, 1] that ask for the last valid token of each row (index 0 for an idle row)."""
    return np.maximum(np.asarray(lengths, np.int64) - 1, 0)[:, None]
