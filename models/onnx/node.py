"""One node of an ONNX graph with what its inputs stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnic.errors import InternalError
from omnic.ir.types import DType
from omnic.models.onnx.kinds import Tensor, dtype_of_onnx

__all__ = ["OnnxNode"]


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """A node as a lowering sees it.

    Attributes:
        raw: the ``onnx_ir`` node.
        inputs: what each input stands for; None where absent.
        single: for each input, whether this node is its only reader.
    """

    raw: Any
    inputs: tuple[Tensor | None, ...]
    single: tuple[bool, ...] = ()

    @property
    def op(self) -> str:
        """The op type."""
        return str(self.raw.op_type)

    @property
    def domain(self) -> str:
        """The domain; empty for ai.onnx."""
        domain = str(self.raw.domain)
        return "" if domain == "ai.onnx" else domain

    @property
    def outputs(self) -> int:
        """How many outputs it names."""
        return len(self.raw.outputs)

    def get(self, index: int) -> Tensor | None:
        """Return input ``index``, None when absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def need(self, index: int) -> Tensor:
        """Return input ``index``, which the op requires.

        Raises:
            Refusal: it is absent.
        """
        from omnic.models.onnx.converter import Refusal

        tensor = self.get(index)
        if tensor is None:
            raise Refusal(f"input {index} is missing")
        return tensor

    def _attribute(self, name: str) -> Any:
        attribute = self.raw.attributes.get(name)
        return None if attribute is None else attribute.value

    def integer(self, name: str, default: int | None = None) -> int:
        """Return an integer attribute."""
        value = self._attribute(name)
        if value is None:
            if default is None:
                raise InternalError(f"{self.op} has no attribute {name}")
            return default
        return int(value)

    def number(self, name: str, default: float) -> float:
        """Return a float attribute: the shortest decimal that is the f32 number in the file."""
        value = self._attribute(name)
        return default if value is None else float(str(np.float32(value)))

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        value = self._attribute(name)
        return default if value is None else str(value)

    def ints(self, name: str) -> tuple[int, ...]:
        """Return a list of integers, empty when absent."""
        value = self._attribute(name)
        return () if value is None else tuple(int(v) for v in value)

    def tensor(self, name: str) -> tuple[NDArray[Any], DType] | None:
        """Return a tensor attribute and its element type."""
        value = self._attribute(name)
        if value is None:
            return None
        array = np.asarray(value.numpy())
        dtype = dtype_of_onnx(int(value.dtype))
        return (array.astype(np.float32) if dtype.is_float else array), dtype

    def has(self, name: str) -> bool:
        """Whether it has the attribute."""
        return name in self.raw.attributes

    def compute(self, opset: int, arrays: Sequence[NDArray[Any] | None]) -> list[tuple[NDArray[Any], DType]] | None:
        """Run the node alone in the ONNX project's reference; None when that has no such op."""
        import onnx
        import onnx_ir
        from onnx.reference import ReferenceEvaluator

        names = [f"i{i}" for i in range(len(arrays))]
        outs = [f"o{i}" for i in range(self.outputs)]
        proto = onnx_ir.serde.serialize_node(self.raw)
        del proto.input[:], proto.output[:]
        proto.input.extend(n if a is not None else "" for n, a in zip(names, arrays, strict=True))
        proto.output.extend(outs)
        feeds = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
        infos = [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                 for n, a in feeds.items()]
        results = [onnx.helper.make_empty_tensor_value_info(n) for n in outs]
        graph = onnx.helper.make_graph([proto], "one", infos, results)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        try:
            found = ReferenceEvaluator(model).run(None, feeds)
        except (NotImplementedError, RuntimeError):
            return None
        out: list[tuple[NDArray[Any], DType]] = []
        for array in (np.asarray(a) for a in found):
            if array.dtype == np.float64:
                array = array.astype(np.float32)
            out.append((array, DType.F32 if array.dtype.kind == "f" else DType(_NAMES[array.dtype.name])))
        return out


_NAMES = {"int64": "i64", "int32": "i32", "int8": "i8", "uint8": "u8", "bool": "bool", "int16": "i32", "uint16": "i32"}
