"""The inference module: one flat function per function of the IR, states updated in place, kernels by name.

States are pure values in the IR.  Here a state is a buffer of the session, and ``cache_write`` changes it; that is
the same only if nobody reads the value from before the write afterwards, which is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnic.errors import InputError, InternalError
from omnic.ir.graph import Function, Module, Value
from omnic.ir.ops.linear import activation_group
from omnic.ir.rope import rope_frequencies
from omnic.ir.types import DType, TensorType
from omnic.targets.torch.text.core import CORE, Code, Lowering, Pen, call, gate_numbers, torch_dtype
from omnic.targets.torch.text.lines import BodyWriter
from omnic.targets.torch.text.scopes import Body, Scope
from omnic.targets.torch.text.steps import Program, Step, dead_code, program_of, users

__all__ = ["INFERENCE", "emit_inference"]

_HEAD = '''"""{title}: inference, written by omnic from its IR.

Each function takes the weights ``w`` and the states ``s`` by name and updates the states in place; the other arguments
are int64 tensors (tokens, positions [B, T], start, length [B], rows [B, R]) and hidden states f32 [B, T, D].
"""

import torch
import torch.nn.functional as F

from omnic.targets.torch import attention as A
from omnic.targets.torch import kernels as K
'''
_IN_ATTENTION = {"attention", "block_attention", "mla", "moe", "route"}


class _Rewriter:
    """Turns the nodes of one function into the steps that kernels take, shared ones made once."""

    def __init__(self, function: Function) -> None:
        self.program = program_of(function)
        self.users = users(self.program.steps)
        self.steps: list[Step] = []
        self.made: dict[tuple[Any, ...], tuple[Value, ...]] = {}
        self.found: dict[Value, Value] = {}
        self.reads: dict[Value, Value] = {}

    def run(self) -> Program:
        """Return the program."""
        for step in self.program.steps:
            operands = tuple(self.found.get(v, v) if v is not None else None for v in step.operands)
            rewrite = getattr(self, f"_{step.op}", None)
            if rewrite is None:
                self.steps.append(Step(step.op, operands, step.attrs, step.results, step.scope, step.loc))
            else:
                rewrite(step, operands)
        results = {n: self.found.get(v, v) for n, v in self.program.results.items()}
        program = Program(self.program.name, self.program.params, self.steps, results)
        dead_code(program)
        return program

    def _shared(
        self, op: str, operands: tuple[Value | None, ...], attrs: dict[str, Any], *names: str
    ) -> tuple[Value, ...]:
        """Return the results of a step that all layers share; made at its first use."""
        key = (op, operands, *attrs.items())
        if key not in self.made:
            shape = next((v.type.shape for v in operands if v is not None), ())
            results = tuple(Value(n, TensorType(DType.I64, shape)) for n in names)
            self.made[key] = results
            # As early as its operands allow, so that what all layers share stands together at the top.
            after = [at for at, s in enumerate(self.steps) if any(v in operands for v in s.results)]
            self.steps.insert(max(after, default=-1) + 1, Step(op, operands, attrs, results, "", None))
        return self.made[key]

    def _rope(self, step: Step, operands: tuple[Value | None, ...]) -> None:
        settings = {k: v for k, v in step.attrs.items() if k != "interleaved"}
        table = self._shared("rope_table", (operands[1],), settings, "cos", "sin")
        self.steps.append(Step("rotate", (operands[0], *table), step.attrs, step.results, step.scope, step.loc))

    def _cache_write(self, step: Step, operands: tuple[Value | None, ...]) -> None:
        state, x, start, length = operands
        assert state is not None
        assert x is not None
        ring = step.attrs["ring"]
        sizes = {"tokens": x.type.shape[-2], "capacity": state.type.shape[-2], "ring": ring}
        slots = self._shared("write_slots", (start, length), sizes, "slots")[0]
        self.steps.append(Step("cache_write", (state, x, slots), step.attrs, step.results, step.scope, step.loc))

    def _cache_move(self, step: Step, operands: tuple[Value | None, ...]) -> None:
        assert operands[0] is not None
        sizes = {"capacity": operands[0].type.shape[-2], "ring": step.attrs["ring"]}
        self.steps.append(Step("cache_move", operands, sizes, step.results, step.scope, step.loc))

    def _cache_read(self, step: Step, operands: tuple[Value | None, ...]) -> None:
        state, start, length = operands
        assert state is not None
        capacity = state.type.shape[-2]
        y, index = step.results
        self.found[index] = self._shared(
            "slot_index", (start, length), {"capacity": capacity, "ring": step.attrs["ring"]}, "k_index"
        )[0]
        self.reads[y] = state
        if not self._only_keys(y):
            self.steps.append(Step("state_values", (state,), {"capacity": capacity}, (y,), step.scope, step.loc))

    def _only_keys(self, y: Value) -> bool:
        """Whether the values read from a state go to attention kernels only, which take states as they are."""
        places = {"attention": (1, 2), "block_attention": (1, 2), "mla": (2, 3)}
        return y not in self.program.results.values() and all(
            step.op in places and all(place in places[step.op] for place, v in enumerate(step.operands) if v is y)
            for step in self.users.get(y, [])
        )

    def _blocked(self, original: Value | None, value: Value | None, step: Step) -> Value | None:
        """Return a key or value operand in blocks: a state as it is, anything else packed."""
        assert original is not None
        assert value is not None
        if original in self.reads:
            return self.reads[original]
        packed = Value("blocks", value.type)
        self.steps.append(Step("to_blocks", (value,), {}, (packed,), step.scope, step.loc))
        return packed

    def _seen(
        self, step: Step, q_index: Value | None, k_index: Value | None, parents: Value | None, start: Value | None
    ) -> Value:
        tree = (parents, start) if parents is not None else (None, None)
        return self._shared("visible", (q_index, k_index, *tree), {"window": step.attrs["window"]}, "seen")[0]

    def _attention(self, step: Step, operands: tuple[Value | None, ...]) -> None:
        q, k, v, q_index, k_index, sinks, parents, start = operands
        seen = self._seen(step, q_index, k_index, parents, start)
        k, v = self._blocked(step.operands[1], k, step), self._blocked(step.operands[2], v, step)
        self.steps.append(Step("attention", (q, k, v, seen, sinks), step.attrs, step.results, step.scope, step.loc))

    def _block_attention(self, step: Step, operands: tuple[Value | None, ...]) -> None:
        q, k, v, recent, q_index, k_index, recent_index, sinks, recent_v = operands
        if step.operands[1] not in self.reads:
            raise InternalError(f"block_attention in {step.scope} reads keys that are no state")
        seen = self._seen(step, q_index, k_index, None, None)
        k, v = self._blocked(step.operands[1], k, step), self._blocked(step.operands[2], v, step)
        given = (q, k, v, recent, recent_index, q_index, k_index, seen, recent_v, sinks)
        self.steps.append(Step("block_attention", given, step.attrs, step.results, step.scope, step.loc))

    def _mla(self, step: Step, operands: tuple[Value | None, ...]) -> None:
        q_nope, q_rope, latent, rope_k, w_k, w_v, q_index, k_index, parents, start, recent, recent_index = operands
        seen = self._seen(step, q_index, k_index, parents, start)
        latent, rope_k = self._blocked(step.operands[2], latent, step), self._blocked(step.operands[3], rope_k, step)
        newest = () if recent is None else (recent, recent_index, q_index, k_index)
        given = (q_nope, q_rope, latent, rope_k, w_k, w_v, seen, *newest)
        self.steps.append(Step("mla", given, step.attrs, step.results, step.scope, step.loc))


def check_in_place(program: Program) -> None:
    """Check that no state is read in its old value after it was written.

    Raises:
        InternalError: one is, so updating it in place would change the result.
    """
    gone: set[Value] = set()
    for step in program.steps:
        for value in step.inputs():
            if value in gone:
                raise InternalError(
                    f"%{value.name} is read by {step.op} in {step.scope or '@' + program.name} after it was overwritten"
                )
        if step.op in ("cache_write", "cache_move", "cache_close") and step.operands[0] is not None:
            gone.add(step.operands[0])
    if gone & program.returned():
        raise InternalError(f"@{program.name} returns a state that it has overwritten")


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


# -- lowerings ----------------------------------------------------------------------------------------------
def _kernel(name: str, *attrs: str, optional: Mapping[str, Any] | None = None) -> Lowering:
    """Return a lowering to a kernel: operands by position, ``attrs`` by name, ``optional`` unless at that value."""

    def lower(pen: Pen, step: Step) -> Code:
        operands = list(step.operands)
        while operands and operands[-1] is None:
            operands.pop()
        words = [f"{a}={_literal(step.attrs[a])}" for a in attrs]
        words += [
            f"{a}={_literal(step.attrs[a])}" for a, default in (optional or {}).items() if step.attrs[a] != default
        ]
        return call(pen.helper(name), *(pen.arg(v) for v in operands), *words)

    return lower


def _pointwise(function: str) -> Lowering:
    return lambda pen, step: call(pen.helper("pointwise"), function, pen.arg(step.operands[0]))


def _rope_table(pen: Pen, step: Step) -> Code:
    frequencies, magnitude = rope_frequencies(**step.attrs)
    return call(
        pen.helper("rope_table"),
        pen.arg(step.operands[0]),
        pen.constant("FREQUENCIES", _numbers(frequencies)),
        repr(magnitude),
    )


def _numbers(values: tuple[float, ...]) -> str:
    rows = [", ".join(repr(v) for v in values[i : i + 4]) for i in range(0, len(values), 4)]
    return "(\n" + "".join(f"    {row},\n" for row in rows) + ")"


def _rotate(pen: Pen, step: Step) -> Code:
    return call(
        pen.helper("rotate_pairs" if step.attrs["interleaved"] else "rotate"), *(pen.arg(v) for v in step.operands)
    )


def _write_slots(pen: Pen, step: Step) -> Code:
    words = (pen.dims((step.attrs["tokens"],)), f"capacity={step.attrs['capacity']}", f"ring={step.attrs['ring']}")
    return call(pen.helper("write_slots"), *(pen.arg(v) for v in step.operands), *words)


def _cast(pen: Pen, step: Step) -> Code:
    to = step.attrs["to"]
    if to in (DType.F16, DType.BF16):
        return call(pen.helper("round_to"), pen.arg(step.operands[0]), torch_dtype(to))
    return call(f"{pen.atom(step.operands[0])}.to", torch_dtype(to))


def _constant(pen: Pen, step: Step) -> Code:
    code = CORE["constant"](pen, step)
    return Code(code.text.replace("torch.bfloat16", "torch.float32").replace("torch.float16", "torch.float32"))


def _linear(pen: Pen, step: Step) -> Code:
    x, w, bias = step.operands
    return call(pen.helper("linear"), _quantised(pen, step, x), pen.arg(w), pen.arg(bias) if bias is not None else "")


def _quantised(pen: Pen, step: Step, x: Value | None) -> str:
    """Return x as the step's ``act`` has it."""
    if step.attrs["act"] == "bf16":
        return call(pen.helper("round_to"), pen.arg(x), torch_dtype(DType.BF16)).text
    group = activation_group(step.attrs["act"])
    return pen.arg(x) if group is None else call(pen.helper("quantise_activation"), pen.arg(x), str(group)).text


def _gated_act(pen: Pen, step: Step) -> Code:
    gate, up = step.operands
    numbers = gate_numbers(step)
    if numbers:
        return call(pen.helper("gated_act"), pen.arg(gate), pen.arg(up), f'"{step.attrs["kind"]}"', *numbers)
    return Code(f'{pen.helper("act")}({pen.arg(gate)}, "{step.attrs["kind"]}") * {pen.atom(up)}', False)


def _named(pen: Pen, names: tuple[str, ...], values: tuple[Value | None, ...]) -> list[str]:
    return [f"{n}={pen.arg(v)}" for n, v in zip(names, values, strict=True) if v is not None]


def _attention(pen: Pen, step: Step) -> Code:
    *operands, sinks = step.operands
    words = [f"{n}={step.attrs[n]!r}" for n in ("block", "keep", "scale") if n in step.attrs]
    operands = operands if operands[-1] is not None else operands[:-1]
    words += [f"softcap={step.attrs['softcap']!r}"] if step.attrs["softcap"] else []
    return call(pen.helper(step.op), *(pen.arg(v) for v in operands), *words, *_named(pen, ("sinks",), (sinks,)))


def _router(pen: Pen, step: Step) -> Code:
    defaults = {
        "groups": None, "top_groups": 1, "group_score": "max", "score": "softmax", "renormalise": True, "scale": 1.0
    }
    words = [f"{n}={_literal(step.attrs[n])}" for n, default in defaults.items() if step.attrs[n] != default]
    return call(
        pen.helper("route"),
        *(pen.arg(v) for v in step.operands[:2]),
        *_named(pen, ("group_weight", "bias", "gate_bias"), step.operands[2:]),
        f"top_k={step.attrs['top_k']}",
        *words,
    )


def _moe(pen: Pen, step: Step) -> Code:
    names = ("gate", "up_bias", "down_bias", "gate_bias")
    if step.attrs["act"] != "none":
        raise InputError(
            f"{step.scope}: torch does not run experts whose inputs are quantised as {step.attrs['act']}",
            "compile the module before a target has set act",
        )
    return call(
        pen.helper("moe"),
        *(pen.arg(v) for v in step.operands[:5]),
        *_named(pen, names, step.operands[5:]),
        f'kind="{step.attrs["kind"]}"',
        *gate_numbers(step),
    )


def _lm_head(pen: Pen, step: Step) -> Code:
    x, w, rows, bias = step.operands
    return call(
        pen.helper("lm_head"),
        _quantised(pen, step, x),
        pen.arg(w),
        *_named(pen, ("rows", "bias"), (rows, bias)),
        f"softcap={step.attrs['softcap']!r}" if step.attrs["softcap"] else "",
    )


#: op -> how the inference module writes it
INFERENCE: dict[str, Lowering] = {
    **CORE,
    "constant": _constant,
    "cast": _cast,
    **{op: _pointwise(f"torch.{op}") for op in ("exp", "log", "sin", "cos", "tanh", "sigmoid", "erf")},
    "softmax": _kernel("softmax", "axis"),
    "gather": _kernel("gather", "axis"),
    "topk": _kernel("topk", "k", "axis"),
    "scatter": _kernel("scatter", "axis", "reduce"),
    "sort": _kernel("sort", "axis", "descending"),
    "linear": _linear,
    "embedding": _kernel("embedding"),
    "act": _kernel("act", "kind"),
    "gated_act": _gated_act,
    "rms_norm": lambda pen, step: call(
        pen.helper("rms_norm"), *(pen.arg(v) for v in step.operands), repr(step.attrs["eps"])
    ),
    "layer_norm": lambda pen, step: call(
        pen.helper("layer_norm"), *(pen.arg(v) for v in step.operands), repr(step.attrs["eps"])
    ),
    "rope_table": _rope_table,
    "rotate": _rotate,
    "write_slots": _write_slots,
    "slot_index": _kernel("slot_index", "capacity", "ring"),
    "cache_write": _kernel("cache_write"),
    "cache_move": _kernel("cache_move", "capacity", "ring"),
    "cache_close": _kernel("cache_close", optional={"ring": False}),
    "state_values": _kernel("state_values", "capacity"),
    "to_blocks": _kernel("to_blocks"),
    "visible": _kernel("visible", "window"),
    "attention": _attention,
    "block_attention": _attention,
    "mla": _kernel("mla", "scale", optional={"softcap": 0.0, "block": 1, "keep": 0}),
    "router": _router,
    "moe": _moe,
    "lm_head": _lm_head,
}


class _FlatWriter(BodyWriter):
    """Writes a whole function as one list of lines, a comment where the scope changes."""

    def __init__(self, owner: _FileWriter, program: Program, states: Mapping[Value, str]) -> None:
        body = Body(list(program.params), list(program.steps), list(program.results.values()), list(program.results))
        super().__init__(owner, Scope(""), body, numbers=[])  # type: ignore[arg-type]
        self.owner, self.states, self.routers = owner, states, {}
        self.where = ""

    def _code(self, value: Value | None) -> Code:
        if value is not None and value.weight:
            return Code(f'w["{value.name}"]')
        return super()._code(value)

    def number(self, name: str, value: float | int) -> str:
        """Return the number itself."""
        return repr(value)

    def helper(self, name: str) -> str:
        """Return the kernel with the module it is in."""
        return f"{'A' if name in _IN_ATTENTION else 'K'}.{name}"

    def constant(self, name: str, text: str) -> str:
        """Return the name of a constant of the file."""
        return self.owner.constant(name, text)

    def like(self) -> str:
        """Return the device of new tensors."""
        return '"cpu"'

    def function(self, name: str) -> str:
        """Return the text of the function."""
        outputs = {n: v for n, v in zip(self.body.names, self.body.results, strict=True) if v not in self.states}
        for value in self.body.params:
            if value in self.states:
                self.names[value] = f's["{self.states[value]}"]'
                self._param_names = {**getattr(self, "_param_names", {}), value: self.names[value]}
            else:
                self._bind(value, -1, param=True)
        for at, entry in enumerate(self.body.entries):
            assert isinstance(entry, Step)
            if entry.scope != self.where and entry.op != "constant":
                self._flush()
                self.where = entry.scope
                place = f" ({entry.loc.file}:{entry.loc.line})" if entry.loc else ""
                self.lines.append(f"# {entry.scope or 'for all layers'}{place}")
            self._entry(entry, at)
        self._flush()
        pairs = ", ".join(f'"{n}": {self.arg(v)}' for n, v in outputs.items())
        params = "".join(f", {self._param_names[v]}" for v in self.body.params if v not in self.states)
        lines = [*self._unpack(), *self.lines, f"return {{{pairs}}}"]
        return "\n".join([f"def {name}(w, s{params}):", *(f"    {line}" for line in lines)]) + "\n"


class _FileWriter:
    """What the functions of one file share."""

    def __init__(self) -> None:
        self.helpers: dict[str, None] = dict.fromkeys(("w", "s", "K", "A"))
        self.lowerings = INFERENCE
        self.constants: dict[str, str] = {}

    def constant(self, name: str, text: str) -> str:
        """Return the name of the constant ``text``."""
        if text not in self.constants:
            self.constants[text] = name if not self.constants else f"{name}_{len(self.constants) + 1}"
        return self.constants[text]


def function_name(function: str) -> str:
    """Return the name a function of the IR has in Python."""
    return function.replace(".", "_")


def emit_inference(module: Module) -> str:
    """Return the source of the inference module of a (legalised) module.

    Raises:
        InternalError: an op has no lowering, or a state is read after it was overwritten.
    """
    owner = _FileWriter()
    texts: list[str] = []
    for name, function in module.functions.items():
        program = _Rewriter(function).run()
        check_in_place(program)
        states = {p.value: p.state for p in function.params if p.state is not None}
        made = {r.value for r in function.results if r.state is not None}
        program.results = {n: v for n, v in program.results.items() if v not in made}
        writer = _FlatWriter(owner, program, states)
        texts.append(writer.function(function_name(name)))
    constants = "".join(f"{name} = {text}\n" for text, name in owner.constants.items())
    return "\n\n".join(t for t in (_HEAD.format(title=module.name), constants, *texts) if t)
