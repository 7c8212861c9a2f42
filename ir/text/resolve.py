"""From the syntax tree to a module: names are looked up, types inferred, and every mistake is placed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from omnic.errors import Diagnostic, InputError, nearest
from omnic.ir.dims import Dim, DimRange, Expr, symbols
from omnic.ir.graph import AttrValue, Function, Module, Node, Param, Result, State, Value, Weight, dims_of
from omnic.ir.op import REQUIRED, Attr, In, Op, ShapeError, find_op
from omnic.ir.text.lexer import Source
from omnic.ir.text.names import NodeNames
from omnic.ir.text.tree import (
    Attribute,
    Declaration,
    FunctionTree,
    ModuleTree,
    Name,
    NodeTree,
    Operand,
    TypeTree,
    Where,
)
from omnic.ir.types import TensorType, parse_element

__all__ = ["resolve"]

T = TypeVar("T")


def resolve(tree: ModuleTree, source: Source) -> tuple[Module, list[Diagnostic]]:
    """Return the module that ``tree`` describes and what is wrong with it (the module is whole when nothing is)."""
    resolver = _Resolver(tree, source)
    return resolver.module(), resolver.problems


class _Resolver:
    def __init__(self, tree: ModuleTree, source: Source) -> None:
        self.tree = tree
        self.source = source
        self.problems: list[Diagnostic] = []
        self.dims: dict[str, DimRange] = {}
        self.weights: dict[str, Weight] = {}
        self.states: dict[str, State] = {}

    def note(self, message: str, where: Where, hint: str | None = None) -> None:
        self.problems.append(Diagnostic(message, self.source.span(where.start, where.end), hint))

    def module(self) -> Module:
        meta: dict[str, AttrValue] = {}
        tree = self.tree
        for item in self._once(tree.dims, "dim "):
            self.dims[item.name.text] = item.what
        for item in self._once(tree.meta, "meta "):
            meta[item.name.text] = item.what
            self.known_dims(dims_of(item.what), item.name)
        for item in self._once(tree.weights, "weight @"):
            type = self.type(item.type)
            if type:
                self.weights[item.name.text] = Weight(Value(item.name.text, type, weight=True), item.what)
        for item in self._once(tree.states, "state @"):
            if self.type(item.type):
                self.states[item.name.text] = item.what
        functions: dict[str, Function] = {}
        first: dict[str, Name] = {}
        for function in tree.functions:
            self.unique(function.name, first, "func @")
            functions[function.name.text] = _Body(self, function).build()
        return Module(tree.name.text, self.dims, self.weights, self.states, functions, meta)

    def _once(self, items: list[Declaration[T]], kind: str) -> list[Declaration[T]]:
        first: dict[str, Name] = {}
        return [item for item in items if self.unique(item.name, first, kind)]

    def unique(self, name: Name, first: dict[str, Name], kind: str) -> bool:
        """Note a second ``name``; return whether it is the first one."""
        known = first.setdefault(name.text, name)
        if known is name:
            return True
        line = self.source.line_of(known.start)
        self.note(f"{kind}{name.text} is defined twice", name, f"first defined on line {line}")
        return False

    def type(self, tree: TypeTree | None) -> TensorType | None:
        """Return the annotated type after a look at its symbols."""
        if tree is None or tree.type is None:
            return None
        self.known_dims(tree.type.shape, tree)
        return tree.type

    def known_dims(self, dims: Iterable[Dim], where: Where) -> None:
        """Note the symbols of ``dims`` that are not declared; ``where`` holds their text."""
        for dim in dims:
            for name in sorted(symbols(dim)):
                if name in self.dims:
                    continue
                near = nearest(name, list(self.dims))
                hint = f"did you mean '{near}'?" if near else f"declare it: dim {name} in 1..N"
                self.note(f"dim {name} is not declared", self._within(name, where), hint)

    def _within(self, word: str, where: Where) -> Where:
        """Return where ``word`` stands inside ``where``."""
        text, at = self.source.text, where.start
        while (at := text.find(word, at, where.end)) >= 0:
            around = text[at - 1 : at] + text[at + len(word) : at + len(word) + 1]
            if not any(c.isalnum() or c == "_" for c in around):
                return Where(at, at + len(word))
            at += 1
        return where

    def state(self, name: Name | None) -> str | None:
        """Return the declared state that ``name`` means."""
        if name is not None and name.text not in self.states:
            near = nearest(name.text, list(self.states))
            self.note(f"unknown state @{name.text}", name, f"did you mean '@{near}'?" if near else None)
        return name.text if name else None


class _Body:
    """One function: ``values`` maps a name to its value, None after a mistake that was noted already."""

    def __init__(self, resolver: _Resolver, tree: FunctionTree) -> None:
        self.outer = resolver
        self.tree = tree
        self.values: dict[str, Value | None] = {}
        self.places: dict[str, Name] = {}
        self.names = NodeNames()
        self.nodes: list[Node] = []
        self.later: dict[str, Name] = {}
        for node in tree.nodes:
            for result in node.results:
                self.later.setdefault(result.text, result)

    def note(self, message: str, where: Where, hint: str | None = None) -> None:
        self.outer.note(message, where, hint)

    def build(self) -> Function:
        params: list[Param] = []
        for param in self.tree.params:
            type = self.outer.type(param.type)
            value = Value(param.name.text, type) if type else None
            self.define(param.name, value)
            state = self.outer.state(param.state)
            if value:
                params.append(Param(value, state))
        for tree in self.tree.nodes:
            self._node(tree)
        return Function(self.tree.name.text, tuple(params), tuple(self.nodes), tuple(self._results()))

    def define(self, name: Name, value: Value | None) -> None:
        if self.outer.unique(name, self.places, "%"):
            self.values[name.text] = value

    # -- nodes --------------------------------------------------------------------------------------
    def _node(self, tree: NodeTree) -> None:
        annotated = [self.outer.type(t) for t in tree.types]
        found = self._application(tree) if tree.op else None
        if found is None or tree.op is None:
            # The line is wrong: what it says about its results is taken, so that the lines below can be read.
            for index, name in enumerate(tree.results):
                type = annotated[index] if index < len(annotated) else None
                self.define(name, Value(name.text, type) if type else None)
            return
        operands, attrs, types = found
        self._annotations(tree, tree.op.text, types)
        results = tuple(Value(n.text, t) for n, t in zip(tree.results, types, strict=False))
        for name, value in zip(tree.results, results, strict=False):
            self.define(name, value)
        for name in tree.results[len(results):]:
            self.define(name, None)
        name = tree.name.text if tree.name else self.names.expected(tree.scope, tree.op.text)
        self.names.note(tree.scope, tree.op.text, name)
        self.nodes.append(Node(tree.op.text, operands, attrs, results, name, tree.scope, tree.loc))

    def _annotations(self, tree: NodeTree, op: str, types: Sequence[TensorType]) -> None:
        count = f"{op} has {len(types)} result{'' if len(types) == 1 else 's'}"
        if len(tree.results) != len(types):
            self.note(f"{count}, {len(tree.results)} named", Where(tree.results[0].start, tree.results[-1].end))
        if not tree.types:
            return
        if len(tree.types) != len(types):
            self.note(f"{count}, {len(tree.types)} types written", Where(tree.types[0].start, tree.types[-1].end),
                      f"write {', '.join(str(t) for t in types)}")
            return
        for written, type in zip(tree.types, types, strict=True):
            if written.type is not None and written.type != type:
                self.note(f"{op} gives {type}, not {written.type}", written)

    def _application(self, tree: NodeTree) -> tuple[tuple[Value | None, ...], dict[str, AttrValue],
                                                    tuple[TensorType, ...]] | None:
        assert tree.op is not None
        before = len(self.outer.problems)
        values = [self._look_up(o) for o in tree.operands]
        try:
            op = find_op(tree.op.text)
        except ShapeError as error:
            self.note(error.message, tree.op, error.hint)
            return None
        attrs = self._attributes(tree, op)
        operands = self._arrange(tree, op, values)
        if operands is None or None in values or len(self.outer.problems) > before:
            return None
        try:
            types = op.infer_results(tuple(v.type if v else None for v in operands), attrs)
        except InputError as error:
            self.note(error.message, tree.op, error.hint)
            return None
        return tuple(operands), attrs, types

    def _look_up(self, operand: Operand) -> Value | None:
        if operand.weight:
            weight = self.outer.weights.get(operand.name)
            if weight is None and not any(w.name.text == operand.name for w in self.outer.tree.weights):
                near = nearest(operand.name, list(self.outer.weights))
                self.note(f"unknown weight @{operand.name}", operand, f"did you mean '@{near}'?" if near else None)
            return weight.value if weight else None
        if operand.name in self.values:
            return self.values[operand.name]
        if not self.tree.whole:
            return None
        if operand.name in self.later:
            line = self.outer.source.line_of(self.later[operand.name].start)
            self.note(f"%{operand.name} is used before it is defined", operand, f"it is defined on line {line}")
            return None
        near = nearest(operand.name, list(self.values))
        self.note(f"unknown value %{operand.name}", operand, f"did you mean '%{near}'?" if near else None)
        return None

    def _attributes(self, tree: NodeTree, op: Op) -> dict[str, AttrValue]:
        known = {a.name: a for a in op.attrs}
        out: dict[str, AttrValue] = {}
        for attr in tree.attrs:
            spec = known.get(attr.name.text)
            if spec is None:
                near = nearest(attr.name.text, list(known))
                hint = f"did you mean '{near}'?" if near else f"it has: {', '.join(known) or 'none'}"
                self.note(f"{op.name} has no attribute '{attr.name.text}'", attr.name, hint)
                continue
            problem = spec.check(attr.value)
            if problem:
                self.note(*_wrong_value(op, spec, attr, problem))
                continue
            self.outer.known_dims(dims_of(attr.value), attr.where)
            if not spec.is_default(attr.value):
                out[spec.name] = attr.value
        given = {a.name.text for a in tree.attrs}
        for spec in op.attrs:
            if spec.name not in given and spec.default is REQUIRED and tree.op:
                self.note(f"{op.name} needs the attribute '{spec.name}'", tree.op)
        return out

    def _arrange(self, tree: NodeTree, op: Op, values: Sequence[Value | None]) -> list[Value | None] | None:
        """Return one operand per input, the variadic ones last; None when they do not fit (noted)."""
        assert tree.op is not None
        before = len(self.outer.problems)
        variadic = bool(op.inputs) and op.inputs[-1].variadic
        fixed = len(op.inputs) - (1 if variadic else 0)
        plain = sum(o.input is None for o in tree.operands)
        if plain > fixed and not variadic:
            least = sum(not i.optional for i in op.inputs)
            count = str(fixed) if least == fixed else f"{least} to {fixed}"
            self.note(f"{op.name} takes {count} operand{'' if fixed == 1 else 's'}, got {plain}", tree.op, _usage(op))
            return None
        slots: dict[str, Value | None] = {}
        tail: list[Value | None] = []
        named = False
        for index, (operand, value) in enumerate(zip(tree.operands, values, strict=True)):
            named = named or operand.input is not None
            if named and operand.input is None:
                self.note("an operand without a name stands after a named one", operand)
                continue
            spec = op.inputs[min(index, len(op.inputs) - 1)]
            if operand.input is not None:
                spec = self._input(op, operand.input)
            if spec is None:
                continue
            if value is not None and not spec.accepts(value.type):
                self.note(f"{op.name}: input '{spec.name}' takes {spec.domain}, got {value.type}", operand)
            if spec.variadic:
                tail.append(value)
            elif spec.name in slots:
                self.note(f"{op.name}: input '{spec.name}' is given twice", operand)
            else:
                slots[spec.name] = value
        if len(self.outer.problems) > before:
            return None
        missing = [i.name for i in op.inputs[:fixed] if not i.optional and i.name not in slots]
        if missing:
            self.note(f"{op.name}: input '{missing[0]}' is missing", tree.op, _usage(op))
            return None
        return [slots.get(spec.name) for spec in op.inputs[:fixed]] + tail

    def _input(self, op: Op, name: Name) -> In | None:
        for spec in op.inputs:
            if spec.name == name.text:
                return spec
        near = nearest(name.text, [i.name for i in op.inputs])
        self.note(f"{op.name} has no input '{name.text}'", name, f"did you mean '{near}'?" if near else _usage(op))
        return None

    # -- results ------------------------------------------------------------------------------------
    def _results(self) -> list[Result]:
        tree = self.tree
        if tree.returned is None:
            if tree.whole:
                self.note(f"func @{tree.name.text} has no return", tree.end)
            return []
        returned: dict[str, Operand] = {}
        first: dict[str, Name] = {}
        known = [r.name.text for r in tree.results]
        meant: set[str] = set()
        for name, operand in tree.returned:
            if tree.whole and name.text not in known:
                near = nearest(name.text, known)
                meant.add(near or "")
                hint = f"did you mean '{near}'?" if near else None
                self.note(f"the signature has no result '{name.text}'", name, hint)
            if self.outer.unique(name, first, "result "):
                returned[name.text] = operand
        out: list[Result] = []
        first.clear()
        for result in tree.results:
            type = self.outer.type(result.type)
            state = self.outer.state(result.state)
            if not self.outer.unique(result.name, first, "result "):
                continue
            if result.name.text not in returned:
                if result.name.text not in meant:
                    self.note(f"result %{result.name.text} is not returned", result.name)
                continue
            operand = returned[result.name.text]
            value = self._look_up(operand)
            if value and type and value.type != type:
                self.note(f"result %{result.name.text} is {type}, the value is {value.type}", operand)
            elif value:
                out.append(Result(result.name.text, value, state))
        return out


def _wrong_value(op: Op, spec: Attr, attr: Attribute, problem: str) -> tuple[str, Where, str | None]:
    """Return message, place and hint for an attribute whose value is of another kind."""
    message = f"{op.name}: attribute '{spec.name}' {problem}"
    if not isinstance(attr.value, Expr):
        return message, attr.where, None
    if spec.kind == "str":
        return message, attr.where, f'a string is quoted: "{attr.value}"'
    if spec.kind == "element":
        try:
            parse_element(str(attr.value))
        except InputError as error:
            return f"{op.name}: attribute '{spec.name}': {error.message}", attr.where, error.hint
    return message, attr.where, None


def _usage(op: Op) -> str:
    """Return how ``op`` is written: ``linear(x, w, bias?)``."""
    inputs = [i.name + ("..." if i.variadic else "?" if i.optional else "") for i in op.inputs]
    return f"it is written {op.name}({', '.join(inputs)})"
