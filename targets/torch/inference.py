"""The inference module run with its weights and states: what a session and a capture hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omnic.errors import InputError
from omnic.ir.decompose import decompose
from omnic.ir.graph import Module, Node
from omnic.ir.types import DType, TensorType
from omnic.targets.refusals import check_ops
from omnic.targets.torch.caps import CAPS
from omnic.targets.torch.kernels import KEYS, blocked_shape
from omnic.targets.torch.states import Rows, new_rows
from omnic.targets.torch.text.inference import emit_inference, function_name
from omnic.targets.torch.text.load import load_source

if TYPE_CHECKING:
    from omnic.ir.weights import WeightStore

__all__ = ["InferenceModule", "States", "legalised", "load_weights", "new_states", "state_bytes"]

#: the states of a batch by name
States = dict[str, Tensor | Rows]

_INTEGERS = {
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
}
_DTYPES = {DType.F32: torch.float32, DType.F16: torch.float16, DType.BF16: torch.bfloat16}


def legalised(module: Module) -> Module:
    """Return ``module`` with the ops that torch has no kernel for decomposed.

    Raises:
        InputError: it holds an op, a weight or a state that the target excludes.
    """
    check_ops("torch", CAPS, module)
    for name, state in module.states.items():
        _check_state(name, state.type)
    read = {n.results[0] for f in module.functions.values() for n in f.nodes if n.op == "cache_read"}

    def kept(node: Node) -> bool:
        # Its kernel reads a state block by block; other keys are what it decomposes into.
        return CAPS.lowers(node.op) and (node.op != "block_attention" or node.operands[1] in read)

    return decompose(module, kept)


def _check_state(name: str, type: TensorType) -> None:
    element = type.element
    if isinstance(element, DType):
        refusal = None if element in _DTYPES else f"torch holds no state of {element}"
    else:
        size = type.shape[element.axis]
        refusal = CAPS.storage_refusal(element, size if isinstance(size, int) else 0, state=True)
    if refusal:
        raise InputError(f"{refusal}: '{name}' is {type}", "keep it in f32, f16 or bf16 for this target")


def load_weights(module: Module, weights: WeightStore) -> dict[str, Tensor]:
    """Return every weight as an f32 tensor (rounded to 16-bit types, decoded from storage types), each once.

    Raises:
        BundleError: a weight is missing, misfits, or is not finite.
    """
    found: dict[str, Tensor] = {}
    for name, weight in module.weights.items():
        dtype = torch.float32 if weight.type.is_float else _INTEGERS[weight.type.dtype]
        # Memory of torch's own: aligned, and not a view of the file.
        tensor = torch.empty([int(str(d)) for d in weight.type.shape], dtype=dtype)
        if weight.type.rank == 0:
            tensor.numpy()[...] = weights.array(name)
        for start, stop, part in weights.slices(name) if weight.type.rank else ():
            tensor.numpy()[start:stop] = part
        found[name] = tensor
    return found


def new_states(module: Module, batch: int) -> States:
    """Return empty states for ``batch`` rows: floats in blocks where blocks fill their slots, else rows."""
    made: States = {}
    for name, state in module.states.items():
        shape = (batch, *(int(str(d)) for d in state.type.shape[1:]))
        element = state.type.element
        if isinstance(element, DType) and shape[-2] % KEYS == 0:
            made[name] = torch.zeros(blocked_shape(shape), dtype=_DTYPES[element])
        else:
            made[name] = new_rows(element, shape)
    return made


def state_bytes(states: States) -> int:
    """Return the bytes that states take in memory."""
    return sum(s.nbytes if isinstance(s, Rows) else s.numel() * s.element_size() for s in states.values())


class InferenceModule:
    """The emitted functions of one legalised module and its weights.

    Args:
        module: a legalised module (see :func:`legalised`).
        weights: its weights as tensors; shared by every session of the program.
    """

    def __init__(self, module: Module, weights: Mapping[str, Tensor]) -> None:
        self.module = module
        self.weights = dict(weights)
        self.source = emit_inference(module)
        self._code = load_source(self.source, f"{module.name}_inference")

    def function(self, name: str) -> Callable[..., dict[str, Tensor]]:
        """Return the emitted function ``name``."""
        self.module.function(name)
        return getattr(self._code, function_name(name))

    @torch.inference_mode()
    def run(self, name: str, states: States, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run a function once and update ``states`` in place.

        Args:
            name: of the function.
            states: by name, as :func:`new_states` made them.
            inputs: an array or tensor for every parameter that is not a state.

        Raises:
            InputError: a parameter is missing.
        """
        arguments: list[Tensor] = []
        for param in self.module.function(name).params:
            if param.state is not None:
                continue
            if param.value.name not in inputs:
                raise InputError(f"@{name} needs '{param.value.name}'")
            arguments.append(torch.as_tensor(inputs[param.value.name]))
        return self.function(name)(self.weights, states, *arguments)
