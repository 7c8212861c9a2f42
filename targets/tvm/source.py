"""The C text of a program: its tables, and one function for each plan.

Each function is a list of calls in the order of the model, a comment before every part with its scope and its line of
the spec.  ``$name`` in a step becomes a buffer's variable plus an offset; a buffer is declared where it is first used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from omnic.ir.dims import evaluate
from omnic.ir.graph import Module, Node
from omnic.targets.tvm.matrices import Matrices, Matrix, Place
from omnic.targets.tvm.plan import Plan, Step
from omnic.targets.tvm.states import StateForm
from omnic.targets.tvm.text import C_TYPES, dim, f32, ident, wrapped
from omnic.targets.tvm.tuning.products import row_class
from omnic.targets.tvm.views import Buffer, View

__all__ = ["ProgramText", "loop_prototypes", "program_source"]

_TYPES = {"f32": "OMNIC_F32", "f16": "OMNIC_F16", "bf16": "OMNIC_BF16", "i8": "OMNIC_I8", "i4": "OMNIC_I4",
          "i2": "OMNIC_I2", "s4": "OMNIC_S4", "": "OMNIC_F32"}


@dataclass(frozen=True)
class ProgramText:
    """What the text is made from.

    Attributes:
        module: the legalised module.
        batch: the most rows of a call.
        plans: of every function.
        matrices: of the program.
        states: of a session.
        row_bytes: of the states of one row.
        file_bytes: of the file of weights.
        file_hash: of its content.
        declarations: of generated loops, C.
    """

    module: Module
    batch: int
    plans: Sequence[Plan]
    matrices: Matrices
    states: Sequence[StateForm]
    row_bytes: int
    file_bytes: int
    file_hash: str
    declarations: str = ""


def program_source(text: ProgramText) -> str:
    """Return ``program.c``."""
    marks = _marks(text.plans)
    parts = [_head(text), _matrices(text.matrices), _states(text), _tables(text.matrices), _tunings(text.matrices),
             text.declarations]
    parts += [_function(plan, text, marks) for plan in text.plans]
    parts.append(_table(text, marks))
    return "\n".join(p for p in parts if p)


def _marks(plans: Sequence[Plan]) -> list[str]:
    """Return the scopes of all steps in order of first use."""
    found: dict[str, None] = {}
    for plan in plans:
        for step in plan.steps:
            found.setdefault(_scope(step.node))
    return list(found)


def _scope(node: Node | None) -> str:
    return node.scope if node is not None else "results"


def _head(text: ProgramText) -> str:
    functions = ", ".join(f"{p.name}()" for p in text.plans)
    return (
        f"/* {text.module.name}: {functions}; made by omnic.\n"
        " *\n"
        " * W[W_name] is a packed matrix, P[W_name] the first of several, VECTOR(V_name) plain numbers; the file\n"
        " * that holds them is laid out by the table `matrices`.  Activations lie in the arena A at places\n"
        " * chosen by how long each lives; B rows of T tokens are in a call, and logits of R tokens a row are wanted.\n"
        " */\n"
        '#include "omnic_program.h"\n'
        "\n#include <math.h>\n"
        "\n#define VECTOR(at) ((const float *)(r->file + (at)))\n"
        "#define MARK(at) do { if (r->times) omnic_mark(r, at); } while (0)\n"
    )


def _matrices(matrices: Matrices) -> str:
    vectors = matrices.layout().vectors
    lines: list[str] = []
    if vectors:
        lines.append("/* Vectors: bytes from the start of the file. */")
        lines += [f"#define {v.name} INT64_C({vectors[v.weight]})" for v in matrices.vectors.values()]
    if matrices.matrices:
        lines.append("/* Matrices: index in the table. */")
        lines += [f"#define {m.name} {m.index}" for m in matrices.matrices.values()]
    lines.append("static const omnic_matrix matrices[] = {")
    lines += [_entry(m, place) for m, place in matrices.entries()]
    lines.append("  {0}};\n")
    return "\n".join(lines)


def _entry(m: Matrix, place: Place) -> str:
    group, scale = m.panels.group or m.k, _TYPES[m.panels.scale or ""]
    return (
        f"  {{{place.codes}, {place.scales}, {place.zeros}, {place.row}, {m.n}, {m.k}, {group}, "
        f"{_TYPES[m.panels.code]}, {scale}}},"
    )


def _states(text: ProgramText) -> str:
    lines = [f"#define S_{ident(s.name)} {at}" for at, s in enumerate(text.states)]
    lines.append("static const omnic_state states[] = {")
    for s in text.states:
        scale = f"OMNIC_{s.scale_type}" if s.scale_type else "OMNIC_F32"
        lines.append(
            f'  {{"{s.name}", {s.heads}, {s.slots}, {s.d}, {s.group}, {s.at}, {s.scales_at}, {s.zeros_at}, '
            f"OMNIC_{s.type}, {scale}, {int(s.ring)}, {int(s.cache)}}},"
        )
    lines.append("  {0}};\n")
    return "\n".join(lines)


def _tables(matrices: Matrices) -> str:
    found = "".join(
        f"static const double {name}[{count}] = {{\n{numbers}\n}};\n"
        for name, (numbers, count) in matrices.tables.items()
    )
    for (dtype, values), name in matrices.arrays.items():
        words = [f32(v) if dtype.is_float else str(int(v)) for v in values]
        found += f"static const {C_TYPES[dtype]} {name}[{len(values)}] = {{\n{wrapped(words)}\n}};\n"
    return found


def _tunings(matrices: Matrices) -> str:
    """Return the table of each tuned product: level, threads, rows, and the way to call it then.

    The first platform is that of the library, a second one that of the executable beside it.
    """
    if not matrices.tuned:
        return ""
    parts = ["/* Measured ways of calling products: level, threads, fewest and most rows, tuning. */"]
    for at, tunings in enumerate(matrices.tunings):
        if len(matrices.tunings) > 1:
            parts.append("#if !defined(OMNIC_EXECUTABLE)" if at == 0 else "#else")
        parts.append(f"/* {tunings.cpu}, {tunings.triple} */")
        for product, name in matrices.tuned.items():
            lines = [f"static const omnic_tuned_rows {name}[] = {{ /* {product} */"]
            for record in tunings.of(product):
                rows = row_class(record.rows)
                assert rows is not None
                most = str(rows.high) if rows.high else "INT64_MAX"
                level = f"OMNIC_{record.level.upper()}"
                lines.append(f"  {{{level}, {record.threads}, {rows.low}, {most}, {record.tuning.c}}},")
            parts += [*lines, "  {0}};"]
    if len(matrices.tunings) > 1:
        parts.append("#endif")
    return "\n".join([*parts, ""])


def loop_prototypes(matrices: Matrices) -> str:
    """Return the declarations of generated loops that are linked as an object."""
    lines = [
        f"int32_t {loop.name}({', '.join(['void *'] * (len(loop.inputs) + 1))}, int64_t, int64_t, int64_t);"
        for loop in matrices.loops.values()
    ]
    return "\n".join(["/* Loops: operands, result, B, T, R. */", *lines, ""]) if lines else ""


def _function(plan: Plan, text: ProgramText, marks: Sequence[str]) -> str:
    scratch = sorted({step.scratch for step in plan.steps if step.scratch})
    highs = {name: r.high for name, r in text.module.dims.items()}
    ranges = {name: plan.fixed.get(name, highs.get(name, 1)) for name in ("T", "R")}
    sizes = "".join(f"  const int64_t {n} = {high};\n  (void){n};\n" for n, high in ranges.items())
    lines = [
        f"static size_t {plan.name}_scratch(const omnic_weight *W, int64_t B, int threads) {{",
        sizes + "  size_t most = 64;",
        *(f"  most = omnic_larger(most, {s});" for s in scratch),
        "  (void)W, (void)B, (void)threads;",
        "  return most;",
        "}\n",
        f"static void {plan.name}(const omnic_run *r) {{",
        "  const omnic_ops *const K = r->ops;",
        "  const omnic_weight *const W = r->weights;",
        "  const omnic_weight *const *const P = r->pointers;",
        "  uint8_t *const A = r->arena;",
        "  const omnic_call c = {r->pool, r->scratch, r->scratch_bytes};",
        "  const int64_t B = r->batch, "
        + ", ".join(f"{n} = {plan.fixed.get(n, _DIMS.get(n, 1))}" for n in ranges) + ";",
        "  (void)K, (void)W, (void)P, (void)A, (void)c, (void)B" + "".join(f", (void){n}" for n in ranges) + ";",
    ]
    lines += [f"  const omnic_cache {ident(s)} = omnic_cache_of(r, S_{ident(s)});" for s in plan.states]
    lines += _body(plan, marks)
    lines.append("}\n")
    return "\n".join(lines)


_DIMS = {"T": "r->tokens", "R": "r->rows"}


def _body(plan: Plan, marks: Sequence[str]) -> list[str]:
    lines: list[str] = []
    declared: set[Buffer] = set()
    last: tuple[str, str] | None = None
    for step in plan.steps:
        place = _scope(step.node), "" if step.node is None or step.node.loc is None else str(step.node.loc)
        if place != last:
            if last is not None and last[0] != place[0]:
                lines.append(f"  MARK({marks.index(last[0])});")
            lines.append(f"\n  /* {place[0] or plan.name}{f' ({place[1]})' if place[1] else ''} */")
            last = place
        for view in step.views.values():
            if view.buffer not in declared:
                declared.add(view.buffer)
                lines.append(f"  {_declaration(view.buffer, plan)}")
        lines += [f"  {line}" for line in _text(step).split("\n")]
    if last is not None:
        lines.append(f"  MARK({marks.index(last[0])});")
    return lines


def _declaration(buffer: Buffer, plan: Plan) -> str:
    kind = C_TYPES[buffer.dtype]
    if buffer.place.startswith("(const"):
        return f"const {kind} *const {buffer.name} = {buffer.place};"
    place = buffer.place or f"({kind} *)(A + {plan.offsets[buffer]})"
    return f"{kind} *const {buffer.name} = {place};"


def _text(step: Step) -> str:
    def pointer(match: re.Match[str]) -> str:
        return _pointer(step.views[match.group(1)])

    return _wrap(re.sub(r"\$(\w+)", pointer, step.text))


def _pointer(view: View) -> str:
    name = view.buffer.name
    return name if view.offset == 0 else f"{name} + {dim(view.offset)}"


def _wrap(text: str, width: int = 116) -> str:
    """Break a long call at commas."""
    lines: list[str] = []
    for line in text.split("\n"):
        indent = re.match(r" *", line).group() + "    "  # type: ignore[union-attr]
        while len(line) > width:
            at = line.rfind(", ", len(indent) + 4, width)
            if at < 0:
                break
            lines.append(line[: at + 1])
            line = indent + line[at + 2 :]
        lines.append(line)
    return "\n".join(lines)


def _table(text: ProgramText, marks: Sequence[str]) -> str:
    module = text.module
    lines = ["static const omnic_function functions[] = {"]
    for plan in text.plans:
        tokens = plan.fixed.get("T", module.dims["T"].high if "T" in module.dims else 1)
        lines.append(
            f'  {{"{plan.function.name}", {tokens}, {plan.arena}, {len(plan.inputs)}, {len(plan.results)}, '
            f"{plan.name}_scratch, {plan.name}}},"
        )
    lines += [
        "  {0}};",
        f"static const int64_t result_bytes[] = {{{', '.join(_result_bytes(text))}}};",
        "static const char *const marks[] = {" + ", ".join(f'"{m}"' for m in marks) + (", " if marks else "") + "0};",
        "",
        "const omnic_program omnic_program_table = {",
        f'  .abi = OMNIC_PROGRAM_ABI, .model = "{module.name}", .batch = {text.batch},',
        f"  .vocab = {module.meta.get('vocab', 0)}, .capacity = {module.meta.get('capacity', 0)}, "
        f".chunk = {module.dims['T'].high if 'T' in module.dims else 1},",
        f'  .file_bytes = {text.file_bytes}, .file_hash = "{text.file_hash}",',
        f"  .matrices = {text.matrices.count}, .matrix = matrices, .states = {len(text.states)}, .state = states,",
        f"  .row_bytes = {text.row_bytes}, .functions = {len(text.plans)}, .function = functions,",
        f"  .result_bytes = result_bytes, .marks = {len(marks)}, .mark = marks}};\n",
    ]
    return "\n".join(lines)


def _result_bytes(text: ProgramText) -> list[str]:
    """Return the bytes of each result of the first function for the longest call of one row, one row of it wanted."""
    function = text.plans[-1].function if len(text.plans) == 1 else text.module.function("forward")
    sizes = {name: r.high for name, r in text.module.dims.items()} | {"B": 1, "R": 1}
    results = [r.value.type for r in function.results if r.state is None]
    return [str(evaluate(t.size, sizes) * t.dtype.bits // 8) for t in results] or ["0"]
