"""What a target can do: one frozen, validated record of facts, each with the document it comes from.

Passes ask a :class:`Caps` and never a target's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from omnic.errors import InputError, InternalError
from omnic.ir.graph import AttrValue
from omnic.ir.types import DType, ScaleKind, Storage, StorageKind

__all__ = ["Caps", "GroupRule", "HostForm", "OpSupport", "Refused", "StateForm", "computing_ops"]

HostForm = Literal["callback", "segments", "kernel_mmap"]
StateForm = Literal["in_place", "functional", "state_type"]
OpForm = Literal["native", "decompose", "excluded"]


@dataclass(frozen=True)
class Refused:
    """Values of an attribute that a target cannot take.

    Attributes:
        attr: the attribute.
        value: as it is written, ``storage`` for every storage type, or ``other`` for all but the default.
        source: the document that says so, or the reason.
    """

    attr: str
    value: str
    source: str

    def holds(self, value: AttrValue | None, default: object) -> bool:
        """Whether ``value`` is refused; None = not given."""
        if value is None or (self.value == "other" and value == default):
            return False
        return self.value == "other" or (
            isinstance(value, Storage) if self.value == "storage" else str(value) == self.value
        )


@dataclass(frozen=True)
class OpSupport:
    """How a target takes one op.

    Attributes:
        form: ``native`` (lowered as it is), ``decompose`` (its core ops are lowered), or ``excluded``.
        source: the document that says so, or for an exclusion the reason.
        elements: plain element types of its operands; empty = every one in ``Caps.elements``.
        storage: kinds of storage-typed weights it reads without decoding them first.
        refuses: values of attributes that it cannot take.
    """

    form: OpForm
    source: str
    elements: frozenset[DType] = frozenset()
    storage: frozenset[StorageKind] = frozenset()
    refuses: tuple[Refused, ...] = ()


def computing_ops() -> tuple[str, ...]:
    """Return the names of the core ops that touch neither states nor storage types, in the registry's order.

    These every target has; what it says of the others is its own.
    """
    from omnic.ir.op import all_ops

    return tuple(
        name
        for name, op in all_ops().items()
        if not op.composite and name not in ("quantise", "dequantise") and not any(i.state for i in op.inputs)
    )


def _default(op: str, attr: str) -> object:
    from omnic.ir.op import find_op

    return next((a.default for a in find_op(op).attrs if a.name == attr), None)


@dataclass(frozen=True)
class GroupRule:
    """Which storage types of one kind a target's kernels read.

    Attributes:
        kind: the code.
        groups: allowed group sizes, 0 = a whole row, -1 = a head.
        ragged: whether the last group of a row may be short.
        asym: whether a zero point may be there.
        scales: allowed types of scales.
        axes: allowed grouped dims, counted from the end.
    """

    kind: StorageKind
    groups: tuple[int, ...]
    ragged: bool = False
    asym: bool = False
    scales: frozenset[ScaleKind] = frozenset({"f16"})
    axes: frozenset[int] = frozenset({-1})

    def refusal(self, type: Storage, size: int) -> str | None:
        """Return why a dim of ``size`` cannot be stored as ``type``, or None when it can."""
        if type.group not in self.groups:
            return f"group {_group(type.group)} is not one of {', '.join(_group(g) for g in self.groups)}"
        if type.group > 0 and size % type.group and not self.ragged:
            return f"group {type.group} does not divide {size}"
        if type.asym and not self.asym:
            return "a zero point is not supported"
        if type.scale not in self.scales:
            return f"{type.scale} scales are not one of {', '.join(sorted(self.scales))}"
        if type.axis not in self.axes:
            return f"groups along dim {type.axis} are not supported"
        return None

    def pick(self, size: int, at_most: int) -> int | None:
        """Return the largest allowed group size up to ``at_most`` that fits a dim of ``size``; None if none does."""
        fitting = [g for g in self.groups if 0 < g <= at_most and (self.ragged or size % g == 0)]
        return max(fitting, default=None)


def _group(group: int) -> str:
    return {0: "row", -1: "head"}.get(group, str(group))


@dataclass(frozen=True)
class Caps:
    """The capabilities of one target.

    Every field that is set needs an entry in ``sources`` under its name (ops carry their own), so that no
    fact is without its document.

    Attributes:
        target: name of the target, for messages only.
        ops: every op by name; an op that is not here is not lowered.
        elements: plain element types of values.
        storage: rules for storage-typed weights, one per kind.
        state_storage: rules for storage-typed states.
        opset: version of each operator set by domain ("" = the standard one).
        dynamic: symbols that may stay symbolic in a program (``B``, ``T``, ``R``).
        state: how states live: buffers updated ``in_place``, inputs and outputs (``functional``), or a state
            type of the runtime (``state_type``).
        programs: ``one`` program for every T, or one ``per_phase``.
        host: how ``host.fetch`` leaves a program.
        activations: the ``act`` attributes that its products execute, such as ``none`` and ``i8<per_token>``.
        limits: named whole numbers: ``file_bytes``, ``constant_bytes``, ``rank``, ``batch``, ...
        numeric: its numeric class (:mod:`omnic.ir.numeric`).
        batch_invariant: whether a row is bitwise the same for T in 1..16 and any B.
        shared_weights: whether a weight that two ops read lies in memory once.
        sources: field name -> document (a path in the target's documentation, with its version), or the
            measurement that shows it.
    """

    target: str
    ops: Mapping[str, OpSupport] = field(default_factory=dict[str, OpSupport])
    elements: frozenset[DType] = frozenset()
    storage: tuple[GroupRule, ...] = ()
    state_storage: tuple[GroupRule, ...] = ()
    opset: Mapping[str, int] = field(default_factory=dict[str, int])
    dynamic: frozenset[str] = frozenset()
    state: StateForm = "functional"
    programs: Literal["one", "per_phase"] = "one"
    host: HostForm = "segments"
    activations: frozenset[str] = frozenset({"none"})
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    numeric: str = "f32"
    batch_invariant: bool = False
    shared_weights: bool = False
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InternalError(f"the capabilities of {self.target}: {'; '.join(problems)}")

    def _problems(self) -> Iterable[str]:
        from omnic.ir.numeric import CLASSES
        from omnic.ir.op import all_ops

        names = {f.name for f in fields(self)} - {"target", "ops", "sources"}
        yield from (f"a source is given for '{n}', which is not a fact" for n in self.sources if n not in names)
        yield from (f"'{n}' has no source" for n in sorted(names) if self._is_set(n) and not self.sources.get(n))
        yield from (f"op '{n}' does not exist" for n in self.ops if n not in all_ops())
        yield from (f"op '{n}' has no source" for n, support in self.ops.items() if not support.source)
        yield from (f"op '{n}' has no attribute '{one.attr}' to refuse" for n, support in self.ops.items()
                    for one in support.refuses
                    if n in all_ops() and one.attr not in {a.name for a in all_ops()[n].attrs})
        composites = {name for name, op in all_ops().items() if op.composite}
        yield from (f"op '{n}' is core and cannot be decomposed" for n, support in self.ops.items()
                    if support.form == "decompose" and n in all_ops() and n not in composites)
        for rules in (self.storage, self.state_storage):
            kinds = [rule.kind for rule in rules]
            yield from (f"two rules for {k}" for k in sorted(set(kinds)) if kinds.count(k) > 1)
        if self.numeric not in CLASSES:
            yield f"numeric class '{self.numeric}' is not one of {', '.join(CLASSES)}"
        yield from (f"limit '{n}' must be positive" for n, limit in self.limits.items() if limit < 1)

    def _is_set(self, name: str) -> bool:
        """Whether a fact differs from the most modest claim, which needs no document."""
        default = {"state": "functional", "programs": "one", "host": "segments", "activations": frozenset({"none"}),
                   "numeric": "f32"}
        value: object = getattr(self, name)
        return value != default[name] if name in default else bool(value)

    def lowers(self, op: str) -> bool:
        """Whether the target lowers the op as it is."""
        support = self.ops.get(op)
        return support is not None and support.form == "native"

    def refusal(self, op: str) -> str | None:
        """Return why the target cannot take an op in any form, or None when it can."""
        support = self.ops.get(op)
        if support is None:
            return f"{self.target} has no lowering of {op}"
        return f"{self.target} excludes {op}: {support.source}" if support.form == "excluded" else None

    def reason(self, op: str, attrs: Mapping[str, AttrValue]) -> str | None:
        """Return the reason why the target cannot take an op with these attributes, or None when it can."""
        support = self.ops.get(op)
        if support is None:
            return "there is no lowering of it"
        if support.form == "excluded":
            return support.source
        for one in support.refuses:
            if one.holds(attrs.get(one.attr), _default(op, one.attr)):
                return f"with {one.attr}={attrs[one.attr]}, and {one.source}"
        return None

    def rule(self, kind: StorageKind, state: bool = False) -> GroupRule | None:
        """Return the rule for a storage kind of weights (or of states), or None."""
        return next((r for r in (self.state_storage if state else self.storage) if r.kind == kind), None)

    def storage_refusal(self, type: Storage, size: int, state: bool = False) -> str | None:
        """Return why a grouped dim of ``size`` cannot be stored as ``type``, or None when it can."""
        rule = self.rule(type.kind, state)
        if rule is None:
            return f"{self.target} stores no {'states' if state else 'weights'} as {type.kind}"
        problem = rule.refusal(type, size)
        return f"{self.target}, {type.kind}: {problem}" if problem else None

    def limit(self, name: str) -> int:
        """Return a limit.

        Raises:
            InputError: the target states none of that name.
        """
        if name not in self.limits:
            raise InputError(f"{self.target} states no limit '{name}'", f"known: {', '.join(self.limits) or 'none'}")
        return self.limits[name]
