"""The operations of a function as the package says them, without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omnic.errors import BundleError
from omnic.targets.coreml.evaluator.blobs import unpacked
from omnic.targets.coreml.evaluator.package import Package
from omnic.targets.coreml.evaluator.stored import FileConst, Held, Stored
from omnic.targets.coreml.evaluator.types import BITS, NUMPY, Type

__all__ = ["Block", "Op", "free_names", "read_block", "reads_of", "writes_of"]

#: a literal of the program: a tensor, or text
Literal = Stored | str
_NUMBERS = {"floats", "ints", "bools", "longInts", "doubles"}


@dataclass(frozen=True, eq=False)
class Op:
    """One operation.

    Attributes:
        kind: such as ``matmul``.
        name: of the operation.
        inputs: parameter -> the values or literals it is given.
        outputs: name and type of each result.
        blocks: the bodies of ``cond`` and ``while_loop``.
        value: of a ``const``.
    """

    kind: str
    name: str
    inputs: Mapping[str, tuple[str | tuple[Literal], ...]]
    outputs: tuple[tuple[str, Type], ...]
    blocks: tuple[Block, ...] = ()
    value: Literal | None = None

    @property
    def constant(self) -> bool:
        """Whether it is known before anything runs."""
        return self.kind == "const" or self.kind.startswith("constexpr_")

    def names(self) -> Iterator[str]:
        """Return the names of the values it reads, those inside its blocks too."""
        for given in self.inputs.values():
            yield from (g for g in given if isinstance(g, str))
        for block in self.blocks:
            yield from free_names(block)


@dataclass(frozen=True, eq=False)
class Block:
    """Operations in order.

    Attributes:
        inputs: name and type of each.
        ops: the operations.
        outputs: names of what it gives.
        opset: such as ``CoreML8``; empty for blocks inside an operation.
    """

    inputs: tuple[tuple[str, Type], ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    opset: str = ""
    types: Mapping[str, Type] = field(default_factory=dict[str, Type])


def free_names(block: Block) -> Iterator[str]:
    """Return the names that a block reads and does not make."""
    made = {name for name, _ in block.inputs}
    for op in block.ops:
        yield from (n for n in op.names() if n not in made)
        made.update(name for name, _ in op.outputs)
    yield from (n for n in block.outputs if n not in made)


def _states(op: Op, kinds: Sequence[str]) -> set[str]:
    found = {str(op.inputs[p][0]) for p in ("input", "state") if op.kind in kinds and p in op.inputs}
    return found.union(*(_states(inner, kinds) for block in op.blocks for inner in block.ops))


def reads_of(op: Op) -> set[str]:
    """Return the states that an operation reads."""
    return _states(op, ("read_state",))


def writes_of(op: Op) -> set[str]:
    """Return the states that an operation writes."""
    return _states(op, ("write_state", "coreml_update_state"))


def read_block(package: Package, proto: Any, inputs: Any, opset: str = "") -> Block:
    """Return a block of the protobuf."""
    given = tuple((str(i.name), Type.of(i.type)) for i in inputs)
    ops = tuple(_read_op(package, op) for op in proto.operations)
    types = dict(given)
    types.update(output for op in ops for output in op.outputs)
    return Block(given, ops, tuple(str(o) for o in proto.outputs), opset, types)


def _read_op(package: Package, proto: Any) -> Op:
    outputs = tuple((str(o.name), Type.of(o.type)) for o in proto.outputs)
    inputs: dict[str, tuple[str | tuple[Literal], ...]] = {}
    for parameter, argument in proto.inputs.items():
        inputs[parameter] = tuple(
            str(b.name) if b.WhichOneof("binding") == "name" else (_literal(package, b.value),)
            for b in argument.arguments
        )
    # In the oldest op sets the operands of constexpr_* are attributes.
    for parameter, value in proto.attributes.items():
        if parameter not in ("name", "val"):
            inputs[parameter] = ((_literal(package, value),),)
    name = _literal(package, proto.attributes["name"]) if "name" in proto.attributes else ""
    value = _literal(package, proto.attributes["val"]) if proto.type == "const" else None
    blocks = tuple(read_block(package, b, b.inputs) for b in proto.blocks)
    return Op(str(proto.type), str(name), inputs, outputs, blocks, value)


def _literal(package: Package, value: Any) -> Literal:
    type = Type.of(value.type)
    if value.WhichOneof("value") == "blobFileValue":
        shape = tuple(d or 0 for d in type.shape)
        return FileConst(type.word, shape, package.file(value.blobFileValue.fileName), int(value.blobFileValue.offset))
    tensor = value.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    if kind == "strings":
        return str(tensor.strings.values[0]) if tensor.strings.values else ""
    shape = tuple(d or 0 for d in type.shape)
    count = int(np.prod(shape, dtype=np.int64))
    if type.word not in NUMPY or (kind != "bytes" and kind not in _NUMBERS):
        raise BundleError(f"{package.path}: the program has a constant of type {type}, which is not known")
    if kind == "bytes":
        raw = bytes(tensor.bytes.values)
        found = unpacked(raw, type.word, count) if len(raw) * 8 >= count * BITS[type.word] else np.empty(0)
    else:
        found = np.array(getattr(tensor, kind).values, NUMPY[type.word])
    if found.size != count:
        raise BundleError(f"{package.path}: a constant of type {type} has {found.size} elements")
    return Held(type.word, found.reshape(shape))
