"""Which methods a program has, and how torch.export is told of each.

``session_prefill`` takes 1 to T_max tokens, ``session_decode`` exactly one, ``verify_K`` exactly K (drafts, all of
whose logits are wanted), ``mtp`` (``mtp.0``, ...) are the blocks of multi-token prediction, and ``forward`` is what
ExecuTorch's own text runner calls: tokens and the index of the first.  ``save`` and ``restore`` read and write the
states, so that a session can hold several rows and copies of them beside one set of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from omnic.ir.graph import Function, Module, Value
from omnic.ir.types import Storage
from omnic.passes.specialise import substitute_dims
from omnic.targets.executorch.coded import Coded
from omnic.targets.executorch.codes import buffers_of, empty
from omnic.targets.executorch.delegates import DELEGATES
from omnic.targets.executorch.lower import LOWERINGS
from omnic.targets.executorch.module import TORCH_DTYPES, FunctionModule, buffer_name, state_shape

__all__ = ["DECODE", "PREFILL", "VERIFY", "Method", "example_of", "exported", "methods_of", "new_states",
           "runner_metadata", "token_state", "zeros_of"]

#: what a session calls; ExecuTorch's text runner takes a method called ``decode`` for its own
PREFILL, DECODE = "session_prefill", "session_decode"
#: before the length that such a method is for
VERIFY = "verify_"
#: sizes that torch.export traces a symbolic dim with: two dims of one size would be taken for one
_EXAMPLE = {"T": 6, "R": 5}


@dataclass(frozen=True)
class Method:
    """One method of a program.

    Attributes:
        name: of the method.
        kind: ``phase`` (a function of the IR), ``runner``, ``save`` or ``restore``.
        function: the function with its dims settled; None for save and restore.
        of: the function of the module that it is a phase of.
        fixed: symbols that are numbers in it.
    """

    name: str
    kind: str
    function: Function | None = None
    of: str = ""
    fixed: tuple[str, ...] = ()


def methods_of(module: Module, options: Mapping[str, Any]) -> list[Method]:
    """Return the methods of the program of ``module``, legalised."""
    found: list[Method] = []
    symbolic = DELEGATES[options["delegate"]].symbolic
    for name, function in module.functions.items():
        many = (
            {"B": 1}
            | ({"T": 1} if module.dims["T"].high == 1 else {})
            | ({"R": 1} if module.dims["R"].high == 1 else {})
        )
        one = {"B": 1, "T": 1, "R": 1}
        if name == "forward":
            if module.dims["T"].high > 1 and symbolic:
                found.append(Method(PREFILL, "phase", substitute_dims(function, many), name))
            found.append(Method(DECODE, "phase", substitute_dims(function, one), name, ("T", "R")))
            for count in options.get("verify", ()):
                size = {"B": 1, "T": count, "R": count}
                found.append(Method(f"{VERIFY}{count}", "phase", substitute_dims(function, size), name, ("T", "R")))
        else:
            sizes, fixed = (many, ()) if symbolic else (one, ("T", "R"))
            found.append(Method(name, "phase", substitute_dims(function, sizes), name, fixed))
    if options["state"] == "buffers":
        if options["runner"] and symbolic:
            found.append(Method("forward", "runner", found[0].function, "forward"))
        if module.states:
            found += [Method("save", "save"), Method("restore", "restore")]
    return found


def token_state(module: Module, name: str) -> bool:
    """Whether a state holds a token a slot."""
    return module.states[name].role not in ("recurrent", "conv")


def new_states(module: Module) -> dict[str, Tensor]:
    """Return empty buffers of the states of one row by name; a state of codes has several."""
    found: dict[str, Tensor] = {}
    for name, state in module.states.items():
        shape, element = state_shape(state.type.shape, token_state(module, name)), state.type.element
        if isinstance(element, Storage):
            found |= {f"{name}{suffix}": part for suffix, part in empty(element, shape[:-1], shape[-1]).items()}
        else:
            found[name] = torch.zeros(shape, dtype=TORCH_DTYPES[element])
    return found


class _Runner(FunctionModule):
    """``forward(tokens[1, T], input_pos)``: the logits [1, 1, V] of the last token."""

    def forward(self, tokens: Tensor, input_pos: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        count = tokens.shape[1]
        known = {
            "tokens": tokens,
            "positions": (input_pos + torch.arange(count))[None],
            "start": input_pos,
            "length": torch.arange(count).amax(0, keepdim=True) + 1,
            "rows": torch.arange(count).amax(0, keepdim=True)[None],
        }
        given = (known[p.value.name] for p in self.function.params if p.state is None)
        return super().forward(*given)[:1]


class _Save(nn.Module):
    def __init__(self, states: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = [buffer_name("s", n) for n in states]
        for name, tensor in zip(self.names, states.values(), strict=True):
            self.register_buffer(name, tensor)

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, n).clone() for n in self.names)


class _Restore(_Save):
    def forward(self, *given: Tensor) -> Tensor:  # type: ignore[override]
        for name, tensor in zip(self.names, given, strict=True):
            getattr(self, name).copy_(tensor)
        return torch.zeros(1)


def exported(
    module: Module,
    method: Method,
    weights: Mapping[str, Tensor | Coded],
    states: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> ExportedProgram:
    """Return the exported program of a method."""
    if method.kind == "save":
        return export(_Save(states).eval(), (), strict=False)
    if method.kind == "restore":
        return export(_Restore(states).eval(), tuple(torch.zeros_like(s) for s in states.values()), strict=False)
    function = method.function
    assert function is not None
    in_place = options["state"] == "buffers"
    plain = not DELEGATES[options["delegate"]].llama
    symbols = {n: Dim(n, min=1, max=module.dims[n].high) for n in ("T", "R") if n not in method.fixed}
    if method.kind == "runner":
        runner = _Runner(module, function, weights, states, LOWERINGS, plain=plain).eval()
        example = (torch.zeros(1, _EXAMPLE["T"], dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
        return export(runner, example, dynamic_shapes=({1: symbols["T"]}, {}), strict=False)
    inner = FunctionModule(module, function, weights, states, LOWERINGS, in_place=in_place, plain=plain).eval()
    arguments, shapes = example_of(function, states, symbols, in_place)
    return export(inner, arguments, dynamic_shapes=(shapes,), strict=False)


def example_of(
    function: Function, states: Mapping[str, Tensor], symbols: Mapping[str, Any], in_place: bool
) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Return example arguments of a function, and which of their dims are which symbol."""
    arguments: list[Tensor] = []
    shapes: list[dict[int, Any]] = []
    for param in function.params:
        if param.state is not None:
            if not in_place:
                for name in buffers_of(param.state, states).values():
                    arguments.append(torch.zeros_like(states[name]))
                    shapes.append({})
            continue
        arguments.append(zeros_of(param.value))
        shapes.append({at: symbols[str(d)] for at, d in enumerate(param.value.type.shape) if not isinstance(d, int)})
    return tuple(arguments), tuple(shapes)


def zeros_of(value: Value) -> Tensor:
    """Return an example of a value: symbolic dims have the sizes of :data:`_EXAMPLE`."""
    shape = [d if isinstance(d, int) else _EXAMPLE[str(d)] for d in value.type.shape]
    return torch.zeros(shape, dtype=TORCH_DTYPES[value.type.dtype])


def runner_metadata(module: Module) -> dict[str, Any]:
    """Return the constant methods that ExecuTorch's text runner asks for."""
    capacity = int(str(module.meta.get("capacity", 0))) or min(
        int(str(s.type.shape[-2])) for s in module.states.values() if not s.ring
    )
    return {
        "get_max_seq_len": min(module.dims["T"].high, capacity),
        "get_max_context_len": capacity,
        "get_vocab_size": int(str(module.meta["vocab"])),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }
