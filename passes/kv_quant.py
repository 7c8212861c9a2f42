"""The pass ``kv-quant``: the states of attention in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from omnic.errors import InputError
from omnic.ir.graph import Module, Recipe, State
from omnic.ir.rewrite import Remark
from omnic.ir.types import DType, ElementType, Storage, StorageKind, TensorType
from omnic.passes.base import NOTHING, PassContext, PassResult, Stage, option, register_pass
from omnic.passes.kv.budget import choose, sensitivity
from omnic.passes.kv.calibrate import read_ranges, save_ranges, state_ranges, store_scales
from omnic.passes.kv.forms import Cache, Form, Part, find_caches, row_bytes, state_bytes, token_element
from omnic.passes.kv.rewrite import apply_plan, part_name

__all__ = ["KvQuant"]

#: tokens that rings of tokens quantised one by one roll back: a verification of that many drafts
_BACK = 16
_KINDS: Mapping[int, StorageKind] = {8: "i8", 4: "i4", 2: "i2"}
_ROPE: Mapping[str, ElementType] = {"f32": DType.F32, "f16": DType.F16, "i8": Storage("i8", 0, asym=True)}


@register_pass
@dataclass(frozen=True)
class KvQuant:
    """Keep keys, values and latents in 8, 4 or 2 bits.

    1. Each state of the roles k, v and latent takes the type ``i8``, ``i4``, ``i2`` or ``nf4`` with a scale (and a
       zero point, unless ``symmetric``) for each group of ``group`` numbers of a head; a group that does not divide
       the head becomes the largest of 128, 64 and 32 that does, else the whole head (``row``).
    2. ``scales=dynamic``: ``cache_write`` finds the scales of every token.  ``scales=static``: calibration finds one
       scale and offset per head, or per channel of a head; the state holds codes alone, numbers beyond the range
       seen are clamped, and ``sidecar`` names a file that keeps the ranges for later compiles.
    3. ``recent``: a ring beside each state keeps that many newest tokens in f16, and a query reads the newest ``keep``
       of those it sees from there (rules in ``omnic.ir.ops.cache_blocks``).  At 4 bits and fewer it is ``keep`` + 16
       unless said, 0 is none.  Rollback reaches back ``recent - keep`` tokens.
    4. ``keys=channel``: keys and latents take one scale per channel and block of ``block`` tokens (KIVI,
       arXiv:2402.02750).  A query reads the open block and ``keep`` tokens before it from the ring, which holds
       2 ``block`` + ``keep`` tokens unless said; rollback reaches back ``recent - block - keep + 1``.  The slots of a
       ring are rounded up to whole blocks.
    5. A state keeps its tokens one by one and has no ring of recent ones, and a remark says so, where a token tree
       drops tokens from the middle, where something else than one attention reads it, and where a sliding window is
       not longer than the ring, which would be read in place of the codes.
    6. The rope part of MLA is apart: it becomes ``rope``.
    7. ``budget``: heads take 8 or 4 bits so that all states of a row fit the bytes.  Each head's cost is the KL
       divergence when it alone has 4 bits, on calibration windows; those that gain most per byte get 8.

    Given::

        state @kv.0.k : f32[B, 2, 1024, 64] role(k) group(0) rollback(positional)

    Result (``kv-quant{bits=4}``)::

        state @kv.0.k : i4<row, asym>[B, 2, 1024, 64] role(k) group(0) rollback(positional)

    Attributes:
        bits: of every code.
        key_bits: of keys, when not ``bits``.
        value_bits: of values, when not ``bits``.
        kind: int, or nf4 (4 bits, arXiv:2305.14314).
        symmetric: no zero point.
        group: numbers of a head that share a scale; 0 = the whole head.
        scales: dynamic or static.
        per: with static scales, channel or head.
        keys: token, or channel for blocks of tokens; of latents too.
        block: tokens of a block, with keys=channel.
        keep: newest tokens that are read in f16; with keys=channel those before the open block.
        recent: tokens of the rings in f16; 0 = no rings, absent = as rules 3 and 4 say.
        rope: type of the rope part of MLA, or keep.
        budget: bytes of all states of one row.
        windows: calibration windows that are looked at.
        sidecar: file of the ranges of static scales; read when it is there, else written.
    """

    name: ClassVar[str] = "kv-quant"
    stage: ClassVar[Stage] = "lossy"
    bits: int = option(8, choices=(8, 4, 2))
    key_bits: int | None = option(None, choices=(None, 8, 4, 2))
    value_bits: int | None = option(None, choices=(None, 8, 4, 2))
    kind: str = option("int", choices=("int", "nf4"))
    symmetric: bool = False
    group: int = option(64, choices=(0, 32, 64, 128))
    scales: str = option("dynamic", choices=("dynamic", "static"))
    per: str = option("channel", choices=("channel", "head"))
    keys: str = option("token", choices=("token", "channel"))
    block: int = option(32, choices=(16, 32, 64, 128))
    keep: int = option(32, low=0, high=2048)
    recent: int | None = option(None, low=0, high=4096)
    rope: str = option("f16", choices=("f16", "f32", "i8", "keep"))
    budget: int | None = option(None, low=1)
    windows: int = option(24, low=1)
    sidecar: str | None = None

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        """Return the module with its states in fewer bits."""
        self._check()
        remarks: list[Remark] = []
        caches = self._caches(module, remarks)
        alone = _alone(caches, self._ring())
        forms = {c.state.name: self._form(c, self._bits(c.state), alone, remarks) for c in caches}
        plan = {name: (Part(None, form),) for name, form in forms.items()}
        for state in module.states.values():
            form = self._rope_form(state, caches, forms)
            if form is not None:
                plan[state.name] = (Part(None, form),)
        if self.budget is not None:
            plan |= self._budgeted(module, caches, plan, remarks, context)
        for name, parts in plan.items():
            for part in parts:
                self._allowed(module.states[name], part, context)
        quantised = apply_plan(module, plan, self._static_scales(module, caches, forms, context))
        if not plan:
            return PassResult(module, False, tuple(remarks))
        for name, parts in plan.items():
            remarks.append(_told(module, quantised, name, parts))
        before, after = state_bytes(module), state_bytes(quantised)
        told = f"the states of a row take {after:,} bytes, {before:,} before ({after / before:.3f} of it)"
        return PassResult(quantised, True, (*remarks, Remark(self.name, told)))

    def _check(self) -> None:
        """Refuse options that exclude each other."""
        bits = {self.bits, self.key_bits or self.bits, self.value_bits or self.bits}
        if self.kind == "nf4" and bits != {4}:
            raise InputError(f"{self.name}: nf4 has 4 bits, not {max(bits - {4})}", "write bits=4")
        if self.keys == "channel":
            if self.kind == "nf4":
                raise InputError(f"{self.name}: keys=channel has zero points, and nf4 has none", "leave out kind=nf4")
            if self.scales == "static":
                raise InputError(f"{self.name}: keys=channel finds the scales of each block, so they are not static",
                                 "leave out keys=channel or scales=static")
            if self.budget is not None:
                raise InputError(f"{self.name}: a budget mixes bits by head, keys=channel has one type for a state",
                                 "leave out keys=channel or budget")
            if self.recent == 0:
                raise InputError(f"{self.name}: keys=channel reads the open block from a ring, so recent is not 0",
                                 "leave out recent, or keys=channel")
        ring, block = self._ring(), self._block()
        if ring and ring < block + self.keep:
            held = f"a block of {block} and {self.keep} before it"
            held = held if block > 1 else f"the {self.keep} that are read and one more"
            more = 2 * block + self.keep if block > 1 else self.keep + _BACK
            raise InputError(f"{self.name}: a ring of {ring} recent tokens cannot hold {held}",
                             f"write recent={more}, which rolls back {more - block - self.keep + 1} tokens")
        if self.recent and (self.scales == "static" or self.budget is not None):
            raise InputError(f"{self.name}: recent tokens stand beside dynamic scales of one type",
                             "leave out recent, or scales=static and budget")
        if self.budget is not None and self.kind == "nf4":
            raise InputError(f"{self.name}: a budget mixes 8 and 4 bits, and nf4 has 4", "leave out kind=nf4")
        if self.budget is not None and self.scales == "static":
            raise InputError(f"{self.name}: a budget chooses bits by head, and static scales are for one width",
                             "leave out scales=static or budget")
        if self.sidecar is not None and self.scales != "static":
            raise InputError(f"{self.name}: a sidecar keeps static scales", "write scales=static")

    def _block(self) -> int:
        """Tokens that share scales."""
        return self.block if self.keys == "channel" else 1

    def _ring(self) -> int:
        """Tokens of the rings beside the states, 0 for none (rules 3 and 4)."""
        if self.keys == "channel":
            return self.recent or 2 * self.block + self.keep
        if self.recent is not None:
            return self.recent
        few = min(self.bits, self.key_bits or self.bits, self.value_bits or self.bits) <= 4
        return self.keep + _BACK if few and self.scales == "dynamic" and self.budget is None else 0

    def _bits(self, state: State) -> int:
        wanted = {"k": self.key_bits, "v": self.value_bits}.get(state.role)
        return wanted or self.bits

    def _caches(self, module: Module, remarks: list[Remark]) -> list[Cache]:
        """Return one cache for each state to quantise."""
        found: dict[str, Cache] = {}
        for cache in find_caches(module):
            if isinstance(cache.state.type.element, Storage):
                told = f"{cache.state.name} is {cache.state.type.element} already"
                remarks.append(Remark(self.name, told, missed=True))
            elif cache.state.name not in found or cache.function == "forward":
                found[cache.state.name] = cache
        if not found:
            remarks.append(Remark(self.name, "there is no state of keys, values or latents", missed=True))
        return list(found.values())

    def _form(self, cache: Cache, bits: int, alone: Mapping[str, str], remarks: list[Remark]) -> Form:
        """Return how one state is kept; ``alone`` says why a state has no ring of recent tokens."""
        kind: StorageKind = "nf4" if self.kind == "nf4" else _KINDS[bits]
        name, ring = cache.state.name, self._ring()
        if ring and name not in alone:
            along = self.keys == "channel" and cache.state.role != "v"
            element = (
                Storage(kind, self.block, asym=not self.symmetric, axis=-2)
                if along else self._token(kind, cache, remarks)
            )
            return Form(element, block=self._block(), keep=self.keep, recent=ring, multiple=self._block())
        if ring and cache.state.role != "v":
            told = "keeps its tokens one by one" if self.keys == "channel" else "has no ring of recent tokens"
            remarks.append(Remark(self.name, f"{name} {told}: {alone[name]}", missed=True))
        if self.scales == "static":
            if cache.function == "forward":
                offset = not self.symmetric and kind != "nf4"
                per = "channel" if self.per == "channel" else "head"
                return Form(Storage(kind, 0, scale="one"), static=per, offset=offset)
            told = f"{name} has dynamic scales: calibration runs @forward, and it belongs to @{cache.function}"
            remarks.append(Remark(self.name, told, missed=True))
        return Form(self._token(kind, cache, remarks))

    def _rope_form(self, state: State, caches: list[Cache], forms: Mapping[str, Form]) -> Form | None:
        """Return how the rope part of MLA is kept: its slots are those of the latents beside it; None = as it is."""
        if state.role != "rope_k" or not isinstance(state.type.element, DType):
            return None
        beside = (forms[c.state.name] for c in caches if c.state.role == "latent" and c.state.group == state.group)
        multiple = max((f.multiple for f in beside), default=1)
        if self.rope == "keep" and not (state.ring and multiple > 1):
            return None
        return Form(state.type.element if self.rope == "keep" else _ROPE[self.rope], multiple=multiple)

    def _token(self, kind: StorageKind, cache: Cache, remarks: list[Remark]) -> Storage:
        """Return the type of a state whose tokens are quantised one by one."""
        element = token_element(kind, cache.width, self.group, self.symmetric)
        if self.group and element.group == 0 and cache.width > self.group:
            told = f"no group of 32 or more divides {cache.width}, so a token and head share one scale"
            remarks.append(Remark(self.name, f"{cache.state.name}: {told}"))
        return element

    def _budgeted(self, module: Module, caches: list[Cache], plan: Mapping[str, tuple[Part, ...]],
                  remarks: list[Remark], context: PassContext) -> dict[str, tuple[Part, ...]]:
        """Return the parts of each state under the byte budget."""
        assert self.budget is not None
        quiet: list[Remark] = []
        low = {c.state.name: self._form(c, 4, {}, quiet) for c in caches}
        high = {c.state.name: self._form(c, 8, {}, quiet) for c in caches}
        inside = [c for c in caches if c.function == "forward"]
        cost = sensitivity(module, inside, low, self.windows, context)
        rope = {name: parts for name, parts in plan.items() if module.states[name].role == "rope_k"}
        chosen = choose(apply_plan(module, rope), caches, low, high, cost, self.budget)
        for unit, kl in sorted(cost.items(), key=lambda item: -item[1]):
            head = "" if unit.head is None else f" head {unit.head}"
            remarks.append(Remark(self.name, f"{unit.state}{head} at 4 bits costs KL {kl:.2e}"))
        return chosen

    def _allowed(self, state: State, part: Part, context: PassContext) -> None:
        """Refuse a form that the target does not take."""
        element = part.form.element
        if context.caps is None or not isinstance(element, Storage):
            return
        size = state.type.shape[element.axis]
        refusal = context.caps.storage_refusal(element, size if isinstance(size, int) else 0, state=True)
        if refusal:
            raise InputError(f"{self.name}: {state.name} as {element}: {refusal}", "choose other bits or groups")

    def _static_scales(self, module: Module, caches: list[Cache], forms: Mapping[str, Form],
                       context: PassContext) -> dict[str, tuple[TensorType, Recipe]]:
        """Return the weights of static scales."""
        wanted = [c for c in caches if forms[c.state.name].static]
        if not wanted:
            return {}
        scheme = {c.state.name: f"{c.state.role} per {self.per}" for c in wanted}
        path = None if self.sidecar is None else Path(self.sidecar)
        if path is not None and path.exists():
            ranges = read_ranges(path, wanted, scheme, context.weights_key)
        else:
            ranges = state_ranges(module, wanted, self.windows, context)
            if path is not None:
                save_ranges(path, ranges, scheme, context.weights_key)
        results = context.need_results(self.name)
        made: dict[str, tuple[TensorType, Recipe]] = {}
        for cache in wanted:
            made |= store_scales(cache, ranges, forms[cache.state.name], results)
        return made


def _alone(caches: list[Cache], ring: int) -> dict[str, str]:
    """Return why states have no ring of ``ring`` recent tokens: keys with their values, or latents."""
    found: dict[str, str] = {}
    for cache in caches:
        if cache.state.role == "v":
            continue
        reason = _no_ring(cache, ring)
        beside = [c for c in caches if c.state.role == "v" and c.state.group == cache.state.group]
        if reason is None and cache.state.role == "k":
            reason = _no_values(cache, beside)
        if reason is not None:
            found |= dict.fromkeys((cache.state.name, *(c.state.name for c in beside)), reason)
    served = {c.state.group for c in caches if c.state.role == "k"}
    rest = (c.state for c in caches if c.state.role == "v" and c.state.group not in served)
    return found | {s.name: "there are no keys beside it" for s in rest}


def _no_ring(cache: Cache, ring: int) -> str | None:
    """Return why attention cannot read the newest keys or latents of a state from a ring, or None."""
    state = cache.state
    if cache.tree or cache.moved:
        return "a token tree drops tokens from the middle of a block"
    if state.ring and ring >= state.window:
        return f"its window of {state.window} tokens is not longer than the ring of {ring}, which would hold them all"
    if len(cache.writes) != 1 or len(cache.reads) != 1 or len(cache.readers) != 1:
        return "it is not written once and read by one attention"
    reader, place = cache.readers[0], 1 if state.role == "k" else 2
    if reader.op != ("attention" if state.role == "k" else "mla") or (
        reader.operands[place] is not cache.reads[0].results[0]
    ):
        return f"{reader.name} reads it, which is no attention over it as {'keys' if state.role == 'k' else 'latents'}"
    return None


def _no_values(keys: Cache, beside: list[Cache]) -> str | None:
    """Return why the values beside keys cannot be read from a ring with them, or None."""
    reader = keys.readers[0]
    for cache in beside:
        once = len(cache.writes) == len(cache.reads) == len(cache.readers) == 1
        if once and cache.readers[0] is reader and reader.operands[2] is cache.reads[0].results[0]:
            return None
    return f"{reader.name} reads values that are no state of their own"


def _told(before: Module, after: Module, name: str, parts: tuple[Part, ...]) -> Remark:
    """Return what became of one state."""
    old = before.states[name].type
    size = 0
    for part in parts:
        kept = part_name(name, part, parts)
        size += sum(row_bytes(after.states[n].type, after) for n in (kept, f"{kept}.recent") if n in after.states)
    types = ", ".join(str(p.form.element) + (f" (heads {', '.join(map(str, p.heads))})" if p.heads else "")
                      + (f" and {p.form.recent} recent tokens in f16" if p.form.recent else "") for p in parts)
    return Remark(KvQuant.name, f"{name}: {old.element} to {types}, {row_bytes(old, before):,} to {size:,} bytes a row")
