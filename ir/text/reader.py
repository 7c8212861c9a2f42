"""From text to the syntax tree; goes on after an error, so that one reading finds them all."""

from __future__ import annotations

from typing import get_args

from omnic.errors import Diagnostic, nearest
from omnic.ir.dims import DimRange
from omnic.ir.graph import Recipe, Role, State
from omnic.ir.text.cursor import Bad, Cursor
from omnic.ir.text.lexer import Source, is_dim_name, tokenise
from omnic.ir.text.tree import (
    Attribute,
    Declaration,
    FunctionTree,
    ModuleTree,
    Name,
    NodeTree,
    Operand,
    ParamTree,
    ResultTree,
    Where,
)
from omnic.ir.types import DType, TensorType

__all__ = ["read_tree"]

_ITEMS = ("meta", "dim", "weight", "state", "func")
_ROLES: tuple[str, ...] = get_args(Role)
_CLAUSES = ("role", "group", "rollback", "ring", "window")
_NO_TYPE = TensorType(DType.F32, ())


def read_tree(source: Source) -> tuple[ModuleTree, list[Diagnostic]]:
    """Return the syntax tree of ``source`` and everything that could not be read."""
    tokens, problems = tokenise(source)
    reader = _Reader(source, Cursor(source, tokens))
    tree = reader.module()
    unreadable = {p.span.line for p in problems if p.span}
    return tree, problems + [p for p in reader.problems if not (p.span and p.span.line in unreadable)]


class _Reader:
    def __init__(self, source: Source, cursor: Cursor) -> None:
        self.source = source
        self.cursor = cursor
        self.problems: list[Diagnostic] = []
        self.tree = ModuleTree()

    def note(self, bad: Bad) -> None:
        self.problems.append(bad.diagnostic)

    # -- module -------------------------------------------------------------------------------------
    def module(self) -> ModuleTree:
        cursor = self.cursor
        try:
            if not cursor.has_word("module"):
                raise cursor.unexpected("'module @name {'")
            self.tree.name = cursor.sigil_name("@", "the module's name, @name")
            cursor.expect("{")
        except Bad as bad:
            self.note(bad)
            while not (cursor.here.leads and cursor.here.text in (*_ITEMS, "")):
                cursor.take()
            if cursor.here.kind == "end":
                return self.tree
        while cursor.here.kind not in ("}", "end"):
            before = cursor.at
            try:
                self._item()
            except Bad as bad:
                self.note(bad)
                if cursor.at == before:
                    cursor.take()
                self._skip_to_item()
        try:
            if cursor.here.kind == "end" and self.problems:
                return self.tree  # what the earlier error left open is not news
            cursor.expect("}", "'}' of the module")
            if cursor.here.kind != "end":
                token = cursor.here
                raise cursor.bad("text after the end of the module", token.start, token.end)
        except Bad as bad:
            self.note(bad)
        return self.tree

    def _skip_to_item(self) -> None:
        """Go to the next line that starts an item or ends the module; over the body of what is no item."""
        cursor = self.cursor
        depth = 0
        while cursor.here.kind != "end":
            token = cursor.here
            if token.leads and token.kind == "word" and (depth == 0 or token.text in _ITEMS):
                return
            if token.kind == "}" and depth == 0 and token.leads:
                return
            depth = max(0, depth + (token.kind == "{") - (token.kind == "}"))
            cursor.take()

    def _item(self) -> None:
        cursor = self.cursor
        token = cursor.here
        if token.kind != "word":
            raise cursor.misplaced("meta, dim, weight, state or func")
        if token.text not in _ITEMS:
            near = nearest(token.text, _ITEMS)
            hint = f"did you mean '{near}'?" if near else "a module holds: meta, dim, weight, state, func"
            raise cursor.bad(f"unknown item '{token.text}'", token.start, token.end, hint)
        cursor.take()
        if token.text == "func":
            self._function()
        elif token.text == "weight":
            self.tree.weights.append(self._weight())
        elif token.text == "state":
            self.tree.states.append(self._state())
        elif token.text == "dim":
            self.tree.dims.append(self._dim())
        else:
            key = cursor.word("the name of an entry")
            cursor.expect("=")
            self.tree.meta.append(Declaration(key, cursor.value()))

    def _dim(self) -> Declaration[DimRange]:
        cursor = self.cursor
        token = cursor.expect("word", "a dim's name")
        name = Name(token.start, token.end, token.text)
        if not is_dim_name(token.text):
            raise cursor.bad(f"'{token.text}' cannot be a dim's name", token.start, token.end,
                             "a letter, then letters, digits and _; not a word of the language such as f32, inf, min")
        if cursor.has("="):
            size = cursor.integer("a number")
            return Declaration(name, DimRange(size, size))
        if not cursor.has_word("in"):
            raise cursor.unexpected("'in 1..N' or '= N'")
        low = cursor.integer("a number")
        cursor.expect("..")
        return Declaration(name, DimRange(low, cursor.integer("a number")))

    def _weight(self) -> Declaration[Recipe]:
        cursor = self.cursor
        name = cursor.sigil_name("@", "a weight's name, @name")
        cursor.expect(":")
        type = cursor.type()
        cursor.expect("=", "'=' and a recipe")
        return Declaration(name, cursor.recipe(), type)

    def _state(self) -> Declaration[State]:
        cursor = self.cursor
        name = cursor.sigil_name("@", "a state's name, @name")
        cursor.expect(":")
        type = cursor.type()
        found: dict[str, int | str] = {}
        while cursor.here.kind == "word" and not cursor.here.leads:
            token = cursor.here
            clause = cursor.choice(_CLAUSES, "a property of a state")
            if clause in found:
                raise cursor.bad(f"'{clause}' is given twice", token.start, token.end)
            self._clause(clause, found)
        for clause in ("role", "group"):
            if clause not in found:
                raise cursor.unexpected(f"{clause}(...)")
        state = State(
            name.text, type.type or _NO_TYPE, found["role"], int(found["group"]),  # type: ignore[arg-type]
            "snapshot" if found.get("snapshots") is not None else "positional", int(found.get("snapshots", 0)),
            "ring" in found, int(found.get("window", 0)),
        )
        return Declaration(name, state, type)

    def _clause(self, clause: str, found: dict[str, int | str]) -> None:
        cursor = self.cursor
        found[clause] = 1
        if clause == "ring":
            return
        cursor.expect("(")
        if clause == "role":
            found["role"] = cursor.choice(_ROLES, "a role of a state")
        elif clause == "rollback":
            if cursor.choice(("positional", "snapshot"), "a kind of rollback") == "snapshot":
                cursor.expect("(")
                found["snapshots"] = cursor.integer("the number of snapshots")
                cursor.expect(")")
        else:
            found[clause] = cursor.integer("a number")
        cursor.expect(")")

    # -- functions ----------------------------------------------------------------------------------
    def _function(self) -> None:
        cursor = self.cursor
        function = FunctionTree(cursor.sigil_name("@", "a function's name, @name"))
        self.tree.functions.append(function)
        try:
            self._signature(function)
        except Bad as bad:
            self.note(bad)
            function.whole = False
            self._skip_to_body()
        while cursor.here.kind not in ("}", "end"):
            token = cursor.here
            if token.leads and token.kind == "word" and token.text in _ITEMS and cursor.after.kind != "(":
                break
            before = cursor.at
            try:
                self._line(function)
            except Bad as bad:
                self.note(bad)
                if cursor.at == before:
                    cursor.take()
                while not cursor.here.leads:
                    cursor.take()
        end = cursor.here
        function.end = Where(end.start, end.end)
        function.whole = function.whole and end.kind == "}"
        cursor.expect("}", f"'}}' of func @{function.name.text}")

    def _skip_to_body(self) -> None:
        """Go from a wrong signature to the first line of the body, or to what ends the body."""
        cursor = self.cursor
        while cursor.here.kind != "end":
            token = cursor.here
            if token.leads:
                if token.kind == "%" and cursor.after.kind in ("=", ","):
                    return
                if token.kind == "}" or (token.kind == "word" and (token.text == "return" or token.text in _ITEMS)):
                    return
            cursor.take()

    def _signature(self, function: FunctionTree) -> None:
        cursor = self.cursor
        cursor.expect("(")
        while not cursor.has(")"):
            name = cursor.sigil_name("%", "a parameter, %name")
            cursor.expect(":")
            type = cursor.type()
            state = cursor.sigil_name("@", "a state, @name") if cursor.has("=") else None
            function.params.append(ParamTree(name, type, state))
            self._comma(")")
        cursor.expect("->")
        cursor.expect("(")
        while not cursor.has(")"):
            name = cursor.sigil_name("%", "a result, %name")
            cursor.expect(":")
            type = cursor.type()
            state = cursor.sigil_name("@", "a state, @name") if cursor.has_word("aliases") else None
            function.results.append(ResultTree(name, type, state))
            self._comma(")")
        cursor.expect("{")

    def _comma(self, close: str) -> None:
        if self.cursor.here.kind != close:
            self.cursor.expect(",", f"',' or '{close}'")

    def _line(self, function: FunctionTree) -> None:
        cursor = self.cursor
        if cursor.here.kind == "word" and cursor.here.text == "return" and cursor.after.kind not in ("=", "("):
            self._return(function)
            return
        first = cursor.here
        if first.kind != "%":
            raise cursor.misplaced("'%name = op(...)' or 'return'")
        node = NodeTree(first.start, first.end, [])
        function.nodes.append(node)
        while True:
            node.results.append(cursor.sigil_name("%", "%name"))
            if not cursor.has(","):
                break
        cursor.expect("=")
        token = cursor.expect("word", "an op")
        if cursor.here.kind != "(":
            raise cursor.unexpected("'(' and the operands")
        self._application(node)
        node.end = cursor.tokens[cursor.at - 1].end
        if not cursor.here.leads:
            raise cursor.unexpected("the end of the line")
        node.op = Name(token.start, token.end, token.text)

    def _application(self, node: NodeTree) -> None:
        cursor = self.cursor
        cursor.expect("(")
        while not cursor.has(")"):
            self._operand(node)
            self._comma(")")
        if cursor.here.kind == "{" and not cursor.here.leads:
            cursor.take()
            self._attributes(node)
        if cursor.has(":"):
            node.types.append(cursor.type())
            while cursor.has(","):
                node.types.append(cursor.type())
        while cursor.here.kind == "word" and not cursor.here.leads:
            clause = cursor.choice(("scope", "loc", "name"), "a property of a node")
            if clause == "loc":
                node.loc = cursor.location()
                continue
            cursor.expect("(")
            text = cursor.expect("string", "a string")
            cursor.expect(")")
            if clause == "scope":
                node.scope = text.text
            else:
                node.name = Name(text.start, text.end, text.text)

    def _operand(self, node: NodeTree) -> None:
        cursor = self.cursor
        if cursor.here.kind in "%@":
            node.operands.append(self._value())
            return
        key = cursor.word("an operand: %value, @weight or input = %value")
        cursor.expect("=")
        if not cursor.has("["):
            node.operands.append(self._value(key))
            return
        while not cursor.has("]"):
            node.operands.append(self._value(key))
            self._comma("]")

    def _value(self, input: Name | None = None) -> Operand:
        cursor = self.cursor
        if cursor.here.kind not in "%@":
            raise cursor.unexpected("%value or @weight")
        token = cursor.take()
        return Operand(token.start, token.end, token.text, token.kind == "@", input)

    def _attributes(self, node: NodeTree) -> None:
        cursor = self.cursor
        while not cursor.has("}"):
            key = cursor.word("an attribute")
            if any(a.name.text == key.text for a in node.attrs):
                raise cursor.bad(f"attribute '{key.text}' is given twice", key.start, key.end)
            cursor.expect("=")
            start = cursor.here.start
            value = cursor.value()
            node.attrs.append(Attribute(key, value, Where(start, cursor.tokens[cursor.at - 1].end)))
            self._comma("}")

    def _return(self, function: FunctionTree) -> None:
        cursor = self.cursor
        word = cursor.take()
        if function.returned is not None:
            raise cursor.bad("a second return", word.start, word.end)
        function.returned = []
        if cursor.here.kind == "}":
            return
        while True:
            name = cursor.word("a result: name = %value")
            cursor.expect("=")
            function.returned.append((name, self._value()))
            if not cursor.has(","):
                break
        if cursor.here.kind != "}":
            raise cursor.unexpected("'}' after the return")
