"""From scopes to the text of classes: isomorphic scopes become one class, numbers that differ its arguments."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from omnic.errors import InternalError
from omnic.ir.dims import Dim
from omnic.ir.graph import Value
from omnic.targets.torch.text.core import Lowering
from omnic.targets.torch.text.lines import BodyWriter, Hole, mark
from omnic.targets.torch.text.scopes import Scope, ScopeTree
from omnic.targets.torch.text.steps import Program, Step

__all__ = ["ClassText", "write_classes"]


HOLE = "\ue000"
_MARK = re.compile(HOLE)


@dataclass
class Instance:
    """One use of a class: its scope, the numbers in its text, and the instances below it."""

    scope: Scope
    template: str
    numbers: list[Hole]
    children: list[tuple[str, Instance]]

    def key(self) -> str:
        """Return what two scopes of one class have in common."""
        return self.template + "".join(f"\n<{name}: {child.key()}>" for name, child in self.children)

    def all_numbers(self) -> list[Hole]:
        """Return its numbers and those of everything below, in one fixed order."""
        return [*self.numbers, *(n for _, child in self.children for n in child.all_numbers())]


@dataclass
class ClassText:
    """A finished class."""

    name: str
    text: str
    scopes: list[str] = field(default_factory=list[str])


class ClassWriter:
    """Writes every class of a scope tree, innermost first."""

    def __init__(
        self,
        tree: ScopeTree,
        lowerings: Mapping[str, Lowering],
        naming: Callable[[Scope], str],
        methods: Mapping[str, str],
        root: str,
        limit: int,
    ) -> None:
        self.limit = limit
        self.buffers: dict[str, tuple[str, ...]] = {}
        self.tree, self.lowerings, self.naming, self.methods, self.root = tree, lowerings, naming, methods, root
        self.helpers: dict[str, None] = {}
        self.instances: dict[str, list[Instance]] = {}
        self.names: dict[str, str] = {}

    def buffers_of(self, names: tuple[str, ...], source: str) -> tuple[str, ...]:
        """Return the names of the root's buffers that ``source`` makes; the same source makes them once."""
        if source not in self.buffers:
            suffix = str(len(self.buffers) + 1) if self.buffers else ""
            self.buffers[source] = tuple(f"{n}{suffix}" for n in names)
        return self.buffers[source]

    def write(self, routers: Mapping[str, Mapping[Value, str]]) -> list[ClassText]:
        """Return the classes in an order of definition, the root last."""
        self.routers = routers
        top = self._instance(self.tree.root)
        self._collect(top)
        taken: set[str] = set()
        for key, found in self.instances.items():
            base = self.root if found[0].scope.path == "" else self.naming(found[0].scope)
            name, count = base, 1
            while name in taken:
                count += 1
                name = f"{base}{count}"
            taken.add(name)
            self.names[key] = name
        return [
            ClassText(self.names[k], self._class(k, found), [i.scope.path for i in found])
            for k, found in self.instances.items()
        ]

    def _instance(self, scope: Scope) -> Instance:
        children: list[tuple[str, Instance]] = []
        for segment, child in scope.children.items():
            if child.kind == "list":
                children += [(f"{segment}.{n}", self._instance(c)) for n, c in child.children.items()]
            elif child.kind != "numbered":
                children.append((segment, self._instance(child)))
        numbers: list[Hole] = []
        lines: list[str] = []
        for name, weight in scope.weights.items():
            sizes = [
                self._number(numbers, f"{name}_{axis}", size)
                for axis, size in zip(_axes(weight.type.rank), weight.type.shape, strict=True)
            ]
            lines.append(f"        self.{name} = nn.Parameter(torch.empty({', '.join(sizes)}))")
        for segment, child in scope.children.items():
            if child.kind == "numbered":
                shapes = [tuple(int(str(d)) for d in w.type.shape) for w in child.weights.values()]
                if len(set(shapes)) == 1:
                    one = f"nn.Parameter(torch.empty({', '.join(str(d) for d in shapes[0])}))"
                    inner = f"{one} for _ in range({len(shapes)})"
                else:
                    inner = f"[nn.Parameter(torch.empty(shape)) for shape in {shapes}]"
                lines.append(f"        self.{segment} = nn.ParameterList({inner})")
            else:
                lines.append(f"        <{segment}>")
        methods: list[str] = []
        for function, body in scope.bodies.items():
            writer = BodyWriter(self, scope, body, numbers)
            methods.append(
                writer.method(
                    self.methods.get(function, "forward")
                    if scope.path == ""
                    else "forward"
                    if len(methods) == 0
                    else self.methods.get(function, function),
                    self.routers.get(function, {}),
                )
            )
        if scope.path == "":
            for source, names in self.buffers.items():
                lines.append(f"        {', '.join(names)} = {source.format(limit=self.limit)}")
                lines += [f'        self.register_buffer("{n}", {n}, persistent=False)' for n in names]
        text = "\n".join(["    def __init__(self<arguments>):", "        super().__init__()", *lines])
        template, ordered = _in_order("\n\n".join([text, *methods]), numbers)
        return Instance(scope, template, ordered, children)

    def _number(self, numbers: list[Hole], name: str, value: Dim | float) -> str:
        if not isinstance(value, (int, float)):
            raise InternalError(f"a weight dim {value} is not a number")
        numbers.append(Hole(name, value))
        return mark(len(numbers) - 1)

    def _collect(self, instance: Instance) -> None:
        for _, child in instance.children:
            self._collect(child)
        self.instances.setdefault(instance.key(), []).append(instance)

    # -- one class ----------------------------------------------------------------------------------
    def _arguments(self, found: Sequence[Instance]) -> list[str | None]:
        """Return, for every number of the class, the argument it is, or None where it never varies."""
        table = [i.all_numbers() for i in found]
        out: list[str | None] = []
        seen: dict[tuple[float, ...], str] = {}
        for column in zip(*table, strict=True):
            values = tuple(hole.value for hole in column)
            if len(set(values)) == 1:
                out.append(None)
                continue
            if values not in seen:
                name, count = column[0].name, 1
                while name in seen.values():
                    count += 1
                    name = f"{column[0].name}{count}"
                seen[values] = name
            out.append(seen[values])
        return out

    def _class(self, key: str, found: Sequence[Instance]) -> str:
        arguments = self._arguments(found)
        first = found[0]
        own = len(first.numbers)
        init = first.template.split("\n\n    def ", 1)[0]
        text = ""
        for index, piece in enumerate(_MARK.split(first.template)):
            text += piece
            if index < own:
                name = arguments[index]
                where = "" if index < init.count(HOLE) else "self."
                text += repr(first.numbers[index].value) if name is None else where + name
        named = list(dict.fromkeys(n for n in arguments if n is not None))
        used_later = [n for n in named if f"self.{n}" in text]
        text = text.replace("<arguments>", "".join(f", {n}" for n in named), 1)
        if used_later:
            text = text.replace(
                "super().__init__()\n",
                "super().__init__()\n" + "".join(f"        self.{n} = {n}\n" for n in used_later),
                1,
            )
        at = own
        lines: dict[str, list[tuple[str, str]]] = {}
        for name, child in first.children:
            numbers = child.all_numbers()
            child_key = child.key()
            lines.setdefault(name.split(".")[0], []).append(
                (self.names[child_key], self._construct(child_key, numbers, arguments[at : at + len(numbers)]))
            )
            at += len(numbers)
        for segment, made in lines.items():
            is_list = first.scope.children[segment].kind == "list"
            text = text.replace(f"<{segment}>", _construction(segment, [m for _, m in made], is_list), 1)
        return f"class {self.names[key]}(nn.Module):\n{self._doc(found)}{text}\n"

    def _construct(self, key: str, numbers: Sequence[Hole], outer: Sequence[str | None]) -> str:
        """Return the call that makes a child; ``outer`` names the arguments of the parent its numbers are."""
        passed: dict[str, str] = {}
        for inner, hole, name in zip(self._arguments(self.instances[key]), numbers, outer, strict=True):
            if inner is not None:
                passed.setdefault(inner, name if name is not None else repr(hole.value))
        return f"{self.names[key]}({', '.join(f'{k}={v}' for k, v in passed.items())})"

    def _doc(self, found: Sequence[Instance]) -> str:
        first = found[0]
        if first.scope.path == "":
            return '    """The whole model; see the head of this file for what goes in and comes out."""\n\n'
        paths = [i.scope.path for i in found]
        place = next(
            (
                s.loc
                for b in first.scope.bodies.values()
                for e in b.entries
                for s in ([e] if isinstance(e, Step) else e.steps)
                if s.loc
            ),
            None,
        )
        where = f" ({place.file}:{place.line})" if place else ""
        return f'    """{_listed(paths)}{where}."""\n\n'


def _in_order(template: str, numbers: Sequence[Hole]) -> tuple[str, list[Hole]]:
    """Return the template with plain marks, and the numbers in the order in which they stand in it."""
    ordered = [numbers[int(m.group(1))] for m in re.finditer("\ue000(\\d+)\ue001", template)]
    return re.sub("\ue000\\d+\ue001", HOLE, template), ordered


def _construction(segment: str, made: Sequence[str], is_list: bool) -> str:
    if not is_list:
        return f"self.{segment} = {made[0]}"
    if len(set(made)) == 1 and len(made) > 1:
        return f"self.{segment} = nn.ModuleList({made[0]} for _ in range({len(made)}))"
    if len(", ".join(made)) < 80:
        return f"self.{segment} = nn.ModuleList([{', '.join(made)}])"
    inner = "".join(f"            {m},\n" for m in made)
    return f"self.{segment} = nn.ModuleList([\n{inner}        ])"


def _listed(paths: Sequence[str]) -> str:
    if len(paths) <= 3:
        return ", ".join(paths)
    return f"{paths[0]}, {paths[1]} ... {paths[-1]}"


def _axes(rank: int) -> tuple[str, ...]:
    return {1: ("size",), 2: ("rows", "columns"), 3: ("count", "rows", "columns")}.get(
        rank, tuple(f"dim{i}" for i in range(rank))
    )


def library_source(functions: Sequence[Callable[..., object]]) -> str:
    """Return the source of library functions as the text of the emitted file holds it."""
    return "\n\n".join(textwrap.dedent(inspect.getsource(f)) for f in functions)


def write_classes(
    programs: Sequence[Program],
    tree: ScopeTree,
    lowerings: Mapping[str, Lowering],
    naming: Callable[[Scope], str],
    methods: Mapping[str, str],
    limit: int,
    root: str = "Model",
) -> tuple[list[ClassText], list[str]]:
    """Return the classes of ``programs`` and the names of the library functions they use."""
    writer = ClassWriter(tree, lowerings, naming, methods, root, limit)
    classes = writer.write({p.name: p.routers for p in programs})
    return classes, list(writer.helpers)
