"""The lines of one method: names for values, nesting of short expressions, loops over isomorphic modules."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omnic.errors import InternalError
from omnic.ir.dims import Atom, Dim, Expr, symbols
from omnic.ir.graph import Value
from omnic.targets.torch.text.core import Code, literal
from omnic.targets.torch.text.scopes import Body, Call, Entry, Scope
from omnic.targets.torch.text.steps import ROUTER_LISTS, Step

if TYPE_CHECKING:
    from omnic.targets.torch.text.write import ClassWriter

__all__ = ["BodyWriter", "Hole", "dim_text"]

#: longest line that nesting may make, and how many calls deep it may go
MAX_LINE, MAX_DEPTH = 104, 3
_RESERVED = {"self", "torch", "nn", "F", "K", "A", "B", "T", "R", *dir(builtins)}
#: ops that read as one chain, so they do not count as nesting
_CHAINED = {"reshape", "transpose", "cast", "broadcast", "slice"}
#: ops that read well with their operand written inside them
_NESTS = _CHAINED | {"add", "linear", "lm_head", "split", "rms_norm", "layer_norm", "act"}
#: ops that are Python operators, or take Python numbers
_OPERATORS = {"add", "sub", "mul", "div", "pow", "eq", "ne", "lt", "le", "gt", "ge", "where"}
#: short names for results of ops that are more telling than the hint
_RESULT_NAMES = {"router": ("indices", "gates", "router_logits")}


@dataclass(frozen=True)
class Hole:
    """A number in the text of a class: an argument of the class if its instances differ in it."""

    name: str
    value: int | float


@dataclass
class _Pending:
    """An expression that waits to be written inside the next one."""

    value: Value
    code: Code
    depth: int
    name: str


class BodyWriter:
    """Writes one body; it is the pen that lowerings write with."""

    def __init__(self, writer: ClassWriter, scope: Scope, body: Body, numbers: list[Hole]) -> None:
        self.writer, self.scope, self.body, self.numbers = writer, scope, body, numbers
        self.names: dict[Value, str] = {}
        self.symbols: dict[str, None] = {}
        self.lines: list[str] = []
        self.pending: _Pending | None = None
        self.used_pending = False
        self.literals: dict[Value, str] = {}
        self.last: dict[Value, int] = {}
        self.reads: dict[Value, int] = {}
        for at, entry in enumerate(body.entries):
            for value in entry.inputs():
                self.last[value] = at
                self.reads[value] = self.reads.get(value, 0) + 1
        for value in body.results:
            self.last[value] = len(body.entries)
            self.reads[value] = self.reads.get(value, 0) + 1

    # -- the pen ------------------------------------------------------------------------------------
    def _code(self, value: Value | None) -> Code:
        if value is None:
            return Code("None")
        if self.pending is not None and self.pending.value is value:
            self.used_pending = True
            return self.pending.code
        if value in self.names:
            return Code(self.names[value])
        if value in self.literals:
            return Code(self.literals[value])
        if value.weight:
            return Code(weight_path(self.scope.path, value.name))
        raise InternalError(f"%{value.name} has no name in the body of '{self.scope.path}'")

    def arg(self, value: Value | None) -> str:
        """Return ``value`` as an argument."""
        return self._code(value).text

    def atom(self, value: Value | None) -> str:
        """Return ``value`` so that an operator or a method may follow it."""
        code = self._code(value)
        return code.text if code.atomic else f"({code.text})"

    def number(self, name: str, value: float | int) -> str:
        """Return the mark of a number; the class writer puts the number or the argument there."""
        self.numbers.append(Hole(name, value))
        return mark(len(self.numbers) - 1)

    def dims(self, dims: tuple[Dim, ...]) -> str:
        """Return dims separated by commas."""
        return ", ".join(self._dim(d) for d in dims)

    def _dim(self, dim: Dim) -> str:
        if isinstance(dim, int):
            return self.number("size", dim)
        self.symbols.update(dict.fromkeys(sorted(symbols(dim))))
        return dim_text(dim)

    def helper(self, name: str) -> str:
        """Return the name of a library function."""
        self.writer.helpers.setdefault(name)
        return name

    def buffers(self, names: tuple[str, ...], source: str) -> list[str]:
        """Return what the buffers made once by the expression ``source`` are called."""
        if self.scope.path:
            raise InternalError("only the root of a model has buffers")
        return [f"self.{n}" for n in self.writer.buffers_of(names, source)]

    def constant(self, name: str, text: str) -> str:
        """Return the expression itself: classes keep no constants."""
        return text

    def like(self) -> str:
        """Return the device that new tensors belong on."""
        # What is no longer read may have lost its name to another value.
        for value in (*self.body.params, *self.names):
            if value in self.names:
                return f"{self.names[value]}.device"
        raise InternalError(f"the body of '{self.scope.path}' has no tensor to take a device from")

    # -- the method ---------------------------------------------------------------------------------
    def method(self, name: str, routers: Mapping[Value, str]) -> str:
        """Return the text of the method."""
        self.routers = routers
        own_router = self.scope.path == "" and bool(routers)
        for value in self.body.params:
            self._bind(value, -1, param=True)
        if own_router:
            self.lines += [f"{name} = []" for name in self._lists()]
        entries = self.body.entries
        at = 0
        while at < len(entries):
            run = self._run_of_calls(at)
            if len(run) > 1:
                self._loop(at, run)
                at += len(run)
                continue
            self._entry(entries[at], at)
            at += 1
        returned = self._returned(own_router)
        params = "".join(f", {self.param_names[v]}" for v in self.body.params)
        unpack = self._unpack()
        body = [*unpack, *self.lines, f"return {returned}"]
        return "\n".join([f"    def {name}(self{params}):", *(f"        {line}" for line in body)])

    @property
    def param_names(self) -> dict[Value, str]:
        """The names parameters have in the signature."""
        return self._param_names

    _param_names: dict[Value, str]

    def _bind(self, value: Value, at: int, param: bool = False, hint: str = "") -> str:
        """Name ``value``, made by entry ``at``; the name of a value no longer read may be taken again."""
        base = hint or re.sub(r"\.\d+$", "", value.name.rsplit(".", 1)[-1] if value.weight else value.name)
        base = re.sub(r"\W", "_", base)
        busy = {n for v, n in self.names.items() if self.last.get(v, -1) > at}
        if param:
            busy = set(self.names.values())
        name, count = base, 1
        while name in busy or name in _RESERVED or keyword.iskeyword(name) or name in self.writer.helpers:
            count += 1
            name = f"{base}{count}"
        self.names = {v: n for v, n in self.names.items() if n != name or v is value}
        self.names[value] = name
        if param:
            if not hasattr(self, "_param_names"):
                self._param_names = {}
            self._param_names[value] = name
        return name

    def _flush(self) -> None:
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        at = self._home(pending.value)
        name = self._bind(pending.value, at, hint=pending.name)
        self.lines.append(f"{name} = {pending.code.text}")

    def _home(self, value: Value) -> int:
        return next(i for i, e in enumerate(self.body.entries) if value in e.results)

    def _expression(self, entry: Entry) -> Code:
        if isinstance(entry, Call):
            arguments = ", ".join(self.arg(v) for v in entry.operands)
            return Code(f"{weight_path(self.scope.path, entry.path)}({arguments})")
        if entry.op not in self.writer.lowerings:
            raise InternalError(f"no lowering of {entry.op} to torch")
        return self.writer.lowerings[entry.op](self, entry)

    def _entry(self, entry: Entry, at: int) -> None:
        if isinstance(entry, Step) and self._is_literal(entry):
            value, kind = entry.attrs["values"][0], entry.results[0].type.dtype
            self.literals[entry.results[0]] = literal(value, kind)
            return
        self.used_pending = False
        code = self._expression(entry)
        depth = 1
        if self.pending is not None:
            chained = isinstance(entry, Step) and entry.op in _CHAINED
            depth = self.pending.depth + (0 if chained else 1)
            if not self.used_pending or depth > MAX_DEPTH or visible(code.text) > MAX_LINE - 12:
                self._flush()
                code, depth = self._expression(entry), 1
            self.pending = None
        hints = (
            _RESULT_NAMES.get(entry.op, ("",) * len(entry.results))
            if isinstance(entry, Step)
            else ("",) * len(entry.results)
        )
        if self._may_wait(entry, at):
            self.pending = _Pending(entry.results[0], code, depth, hints[0])
            return
        names = [
            self._bind(v, at, hint=self._hint(v, h)) if v in self.last or v in self.routers else "_"
            for v, h in zip(entry.results, hints, strict=True)
        ]
        self.lines.append(f"{', '.join(names)} = {code.text}")
        if self.scope.path == "":
            self.lines += [
                f"{self.routers[v]}.append({n})" for v, n in zip(entry.results, names, strict=True) if v in self.routers
            ]

    def _is_literal(self, step: Step) -> bool:
        """Whether a scalar constant may stand as a number where it is read: next to a tensor in an operator."""
        if step.op != "constant" or step.results[0].type.shape:
            return False
        value = step.results[0]
        readers = [e for e in self.body.entries if value in e.inputs()]
        return value not in self.body.results and all(
            isinstance(e, Step)
            and e.op in _OPERATORS
            and any(v not in self.literals and v is not value for v in e.inputs())
            for e in readers
        )

    def _hint(self, value: Value, hint: str) -> str:
        if self.scope.path == "" and value in self.routers:
            return _of_router(self.routers[value])
        return hint or self.routers.get(value, "")

    def _lists(self) -> list[str]:
        """Return the lists that results of routers go to, in order."""
        return [name for name in ROUTER_LISTS if name in self.routers.values()]

    def _may_wait(self, entry: Entry, at: int) -> bool:
        """Whether the expression may be written inside the next entry's."""
        if len(entry.results) != 1 or self.reads.get(entry.results[0]) != 1 or entry.results[0] in self.routers:
            return False
        if at + 1 == len(self.body.entries):
            return self.scope.path != "" and self.body.results == [entry.results[0]]
        following = self.body.entries[at + 1]
        if isinstance(following, Step) and following.op not in _NESTS:
            return False
        return entry.results[0] in following.inputs() and len(self._run_of_calls(at + 1)) < 2

    def _returned(self, own_router: bool) -> str:
        if self.pending is not None and self.body.results != [self.pending.value]:
            self._flush()
        texts = [self.arg(v) for v in self.body.results]
        if not self.body.names or self.body.names[0] != "logits" or self.body.tuple:
            return ", ".join(texts)
        pairs = [f'"{n}": {t}' for n, t in zip(self.body.names, texts, strict=True)]
        if own_router:
            for name in self._lists():
                self.lines.append(f"self.{name} = {name}")
                pairs.append(f'"{name}": {name}')
        return "{" + ", ".join(pairs) + "}"

    def _unpack(self) -> list[str]:
        """Return the lines that give the symbols in use their values."""
        lines: list[str] = []
        missing = list(self.symbols)
        for value in self.body.params:
            names = [str(d) if isinstance(d, Expr) and str(d) in missing else "_" for d in value.type.shape]
            if all(n == "_" for n in names) or len({n for n in names if n != "_"}) != len(
                [n for n in names if n != "_"]
            ):
                continue
            lines.append(f"{', '.join(names)}{',' if len(names) == 1 else ''} = {self._param_names[value]}.shape")
            missing = [m for m in missing if m not in names]
        if missing:
            raise InternalError(f"no operand of '{self.scope.path}' shows the dim {missing[0]}")
        return lines

    # -- loops --------------------------------------------------------------------------------------
    def _run_of_calls(self, at: int) -> list[Call]:
        """Return the longest run of calls from ``at`` that is one loop over a module list."""
        entries = self.body.entries
        first = entries[at]
        if not isinstance(first, Call) or not first.path.rsplit(".", 1)[-1].isdigit():
            return []
        above, number = first.path.rsplit(".", 1)
        run = [first]
        for entry in entries[at + 1 :]:
            if not isinstance(entry, Call) or entry.path != f"{above}.{int(number) + len(run)}":
                break
            if self._carry(first, run[-1], entry) is None or (
                len(run) > 1 and self._carry(first, run[-1], entry) != self._carry(first, run[0], run[1])
            ):
                break
            run.append(entry)
        if len(run) > 1:
            carry = self._carry(first, run[0], run[1])
            assert carry is not None
            if any(self.last.get(first.operands[p], -1) != at for p in carry):
                return [first]
        return run

    def _carry(self, first: Call, before: Call, after: Call) -> dict[int, int] | None:
        """Return operand of ``after`` -> result of ``before`` that it is; None if the two are not one loop."""
        if len(before.operands) != len(after.operands) or len(before.results) != len(after.results):
            return None
        carried: dict[int, int] = {}
        for place, value in enumerate(after.operands):
            if value in before.results:
                carried[place] = before.results.index(value)
            elif value is not first.operands[place]:
                return None
        for place, value in enumerate(before.results):
            if place in carried.values():
                if self.reads.get(value) != 1:
                    return None
            elif value not in self.routers:
                return None
        return carried

    def _loop(self, at: int, run: Sequence[Call]) -> None:
        self._flush()
        carry = self._carry(run[0], run[0], run[1])
        assert carry is not None
        above, number = run[0].path.rsplit(".", 1)
        listed = weight_path(self.scope.path, above)
        count = len(self._list_at(above).children)
        item = above.rsplit(".", 1)[-1].removesuffix("s") or "item"
        rest = f"[{number}:{int(number) + len(run)}]" if len(run) != count else ""
        arguments = [self.arg(v) for v in run[0].operands]
        names: list[str] = []
        for place, value in enumerate(run[-1].results):
            source = next((p for p, o in carry.items() if o == place), None)
            names.append(arguments[source] if source is not None else _of_router(self.routers[value]))
            if source is not None:
                self.names = {v: n for v, n in self.names.items() if n != arguments[source]}
                self.names[value] = arguments[source]
        self.lines.append(f"for {item} in {listed}{rest}:")
        self.lines.append(f"    {', '.join(names)} = {item}({', '.join(arguments)})")
        self.lines += [f"    {name}.append({_of_router(name)})" for name in self._lists() if _of_router(name) in names]

    def _list_at(self, path: str) -> Scope:
        scope = self.writer.tree.root
        for segment in path.split("."):
            scope = scope.children[segment]
        return scope


def _of_router(name: str) -> str:
    """Return what one entry of a list of routers' results is called, such as ``logits_of_router``."""
    return f"{name.removeprefix('router_')}_of_router"


def mark(index: int) -> str:
    """Return the mark of the number ``index`` in a template."""
    return f"\ue000{index}\ue001"


def visible(text: str) -> int:
    """Return the length of ``text`` with every mark counted as four characters, whatever its number."""
    return len(re.sub("\ue000\\d+\ue001", "1234", text))


def weight_path(scope: str, name: str) -> str:
    """Return how the body of ``scope`` reaches the weight or module ``name`` at or below it."""
    inner = name[len(scope) + 1 :] if scope else name
    return "self" + "".join(f"[{s}]" if s.isdigit() else f".{s}" for s in inner.split("."))


def dim_text(dim: Dim) -> str:
    """Return a dim as a Python expression."""
    if isinstance(dim, int):
        return str(dim)
    parts: list[str] = []
    for monomial, coefficient in dim.terms:
        factors = [str(abs(coefficient))] if abs(coefficient) != 1 or not monomial else []
        factors += [_atom_text(a) for a in monomial]
        sign = ("-" if coefficient < 0 else "") if not parts else (" - " if coefficient < 0 else " + ")
        parts.append(sign + " * ".join(factors))
    return "".join(parts)


def _atom_text(atom: Atom) -> str:
    if atom.kind == "sym":
        return atom.name
    inner = [dim_text(a) for a in atom.args]
    if atom.kind == "floordiv":
        return f"(({inner[0]}) // {inner[1]})"
    if atom.kind == "ceildiv":
        return f"(-(-({inner[0]}) // {inner[1]}))"
    return f"{atom.kind}({', '.join(inner)})"
