"""From a module to its text form; :func:`omnic.ir.text.parser.parse_module` reads it back.

    module @tiny {
      meta stage = "front"
      dim T in 1..512
      weight @embed : f32[8192, 256] = normal(std = 0.02)
      state @kv.0.k : f32[B, 4, 8192, 64] role(k) group(0) rollback(positional)
      func @forward(%tokens: i64[B, T]) -> (%hidden: f32[B, T, 256]) {
        %x = embedding(@embed, %tokens) : f32[B, T, 256]  scope("embed") loc("specs/tiny.yaml":12:5)
        return hidden = %x
      }
    }

A name that is not plain is quoted as JSON (``%"a b"``).  Attributes at their default are left out, the others
come in the order of the op.  Operands stand in the order of the op; after an absent optional one they
are named.  A node's name is written where it does not follow the count (:mod:`omnic.ir.text.names`).
"""

from __future__ import annotations

from collections.abc import Iterable

from omnic.errors import InternalError
from omnic.ir.graph import AttrValue, Function, Module, Node, Param, Recipe, Result, State, Value
from omnic.ir.op import Op, all_ops
from omnic.ir.text.lexer import PLAIN_VALUE, PLAIN_WORD, quote
from omnic.ir.text.names import NodeNames

__all__ = ["print_attribute", "print_attributes", "print_function", "print_module", "print_node", "print_recipe",
           "print_state"]

_WIDTH = 120


def print_module(module: Module) -> str:
    """Return the text of ``module``, ended by a newline."""
    lines = [f"module @{_value_name(module.name)} {{"]
    lines += [f"  meta {_word(key)} = {print_attribute(value)}" for key, value in module.meta.items()]
    for name, range in module.dims.items():
        lines.append(f"  dim {name} = {range}" if range.low == range.high else f"  dim {name} in {range}")
    for weight in module.weights.values():
        lines.append(f"  weight @{_value_name(weight.name)} : {weight.type} = {print_recipe(weight.recipe)}")
    lines += [f"  {print_state(state)}" for state in module.states.values()]
    for function in module.functions.values():
        lines += [f"  {line}" for line in _function_lines(function)]
    return "\n".join([*lines, "}\n"])


def print_function(function: Function) -> str:
    """Return the text of one function, ended by a newline."""
    return "\n".join([*_function_lines(function), ""])


def print_state(state: State) -> str:
    """Return the declaration of ``state``."""
    rollback = f"snapshot({state.snapshots})" if state.rollback == "snapshot" else state.rollback
    text = f"state @{_value_name(state.name)} : {state.type} role({state.role}) group({state.group})"
    ring, window = " ring" if state.ring else "", f" window({state.window})" if state.window else ""
    return f"{text} rollback({rollback}){ring}{window}"


def print_recipe(recipe: Recipe) -> str:
    """Return a recipe as nested calls: ``kind(recipe, ..., name = value, ...)``."""
    inputs = [print_recipe(r) for r in recipe.inputs]
    return f"{recipe.kind}({', '.join([*inputs, *_pairs(recipe.args.items())])})"


def print_node(node: Node, names: NodeNames | None = None) -> str:
    """Return the line of ``node``; its name is written unless ``names`` says that it follows the count."""
    op = all_ops().get(node.op)
    results = ", ".join(f"%{_value_name(v.name)}" for v in node.results)
    attrs = _pairs(print_attributes(node, op))
    parts = [f"{results} = {node.op}({', '.join(_operands(node, op))})"]
    if attrs:
        parts.append(f"{{{', '.join(attrs)}}}")
    parts.append(f": {', '.join(str(v.type) for v in node.results)}")
    tail: list[str] = []
    if node.scope:
        tail.append(f"scope({quote(node.scope)})")
    if node.loc:
        tail.append(f"loc({quote(node.loc.file)}:{node.loc.line}:{node.loc.column})")
    if names is None or names.expected(node.scope, node.op) != node.name:
        tail.append(f"name({quote(node.name)})")
    return " ".join(parts) + ("  " + " ".join(tail) if tail else "")


def print_attributes(node: Node, op: Op | None) -> list[tuple[str, AttrValue]]:
    """Return the attributes of ``node`` that are written: not at their default, in the order of the op."""
    if op is None:
        return list(node.attrs.items())
    given = dict(node.attrs)
    out: list[tuple[str, AttrValue]] = []
    for attr in op.attrs:
        if attr.name not in given:
            continue
        value = given.pop(attr.name)
        if not attr.is_default(value):
            out.append((attr.name, value))
    return out + list(given.items())


def print_attribute(value: AttrValue) -> str:
    """Return the text of an attribute's value.

    Raises:
        InternalError: the value is of no kind that attributes have.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, tuple):
        return f"[{', '.join(print_attribute(v) for v in value)}]"
    if type(value).__module__.startswith("numpy"):
        raise InternalError(f"an attribute holds the numpy scalar {value!r}")
    return str(value)


def _pairs(items: Iterable[tuple[str, AttrValue]]) -> list[str]:
    return [f"{_word(key)} = {print_attribute(value)}" for key, value in items]


def _operands(node: Node, op: Op | None) -> list[str]:
    inputs = op.inputs if op else ()
    variadic = inputs[-1] if inputs and inputs[-1].variadic else None
    fixed = len(inputs) - 1 if variadic else len(inputs)
    out: list[str] = []
    named = False
    for index, value in enumerate(node.operands[:fixed]):
        if value is None:
            named = True
        else:
            out.append(f"{inputs[index].name} = {_reference(value)}" if named else _reference(value))
    tail = ["none" if v is None else _reference(v) for v in node.operands[fixed:]]
    if named and tail and variadic:
        return [*out, f"{variadic.name} = [{', '.join(tail)}]"]
    return out + tail


def _function_lines(function: Function) -> list[str]:
    params = [_param(p) for p in function.params]
    results = [_result(r) for r in function.results]
    head = f"func @{_value_name(function.name)}("
    line = f"{head}{', '.join(params)}) -> ({', '.join(results)}) {{"
    lines = [line]
    if len(line) + 2 > _WIDTH:
        lines = [head, *_column(params, ","), ") -> (", *_column(results, ","), ") {"]
    names = NodeNames()
    for node in function.nodes:
        lines.append(f"  {print_node(node, names)}")
        names.note(node.scope, node.op, node.name)
    returned = [f"{_word(r.name)} = {_reference(r.value)}" for r in function.results]
    line = f"  return {', '.join(returned)}".rstrip()
    if len(line) + 2 > _WIDTH:
        lines += ["  return", *(f"  {text}" for text in _column(returned, ""))]
    else:
        lines.append(line)
    return [*lines, "}"]


def _column(items: list[str], last: str) -> list[str]:
    """Return one line an item; ``last`` ends the last one, a comma the others."""
    return [f"  {item}{',' if i + 1 < len(items) else last}" for i, item in enumerate(items)]


def _param(param: Param) -> str:
    text = f"%{_value_name(param.value.name)}: {param.value.type}"
    return f"{text} = @{_value_name(param.state)}" if param.state is not None else text


def _result(result: Result) -> str:
    text = f"%{_value_name(result.name)}: {result.value.type}"
    return f"{text} aliases @{_value_name(result.state)}" if result.state is not None else text


def _reference(value: Value) -> str:
    return f"{'@' if value.weight else '%'}{_value_name(value.name)}"


def _value_name(name: str) -> str:
    return name if PLAIN_VALUE.fullmatch(name) else quote(name)


def _word(name: str) -> str:
    return name if PLAIN_WORD.fullmatch(name) else quote(name)
