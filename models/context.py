"""What every builder of a decoder needs: the function under construction and the call's inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omnic.ir.builder import FunctionBuilder, ModuleBuilder
from omnic.ir.dims import Dim
from omnic.ir.graph import Loc, Recipe, Role, State, Value
from omnic.ir.types import DType, TensorType
from omnic.spec import Norm, Spec

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """One function being built.

    Attributes:
        module: the module it belongs to.
        f: the function.
        spec: the model.
        positions: i64[B, T], what rope sees.
        start: i64[B], tokens already committed.
        length: i64[B], valid tokens of this call.
        q_index: i64[B, T], logical index of each new token.
        parents: i64[B, T], parent of each new token within the call, or None.
        residual_std: initial standard deviation of the projections that write the residual stream.
    """

    module: ModuleBuilder
    f: FunctionBuilder
    spec: Spec
    positions: Value
    start: Value
    length: Value
    q_index: Value
    parents: Value | None
    residual_std: float

    @property
    def tree_start(self) -> Value | None:
        """``start`` when the call is a token tree (attention needs both or neither)."""
        return self.start if self.parents is not None else None

    def weight(self, name: str, *shape: int, std: float | None = None, fill: float | None = None) -> Value:
        """Declare a weight of the spec's dtype: normal(0, std), or constant with ``fill``."""
        if fill is None:
            recipe = Recipe("normal", {"std": float(self.spec.init.std if std is None else std)})
        else:
            recipe = Recipe(
                "ones" if fill == 1 else "zeros" if fill == 0 else "full", {} if fill in (0, 1) else {"value": fill}
            )
        return self.module.weight(name, TensorType(DType(self.spec.dtype), shape), recipe)

    def linear(
        self, x: Value, name: str, outputs: int, *, bias: bool = False, residual: bool = False, hint: str = ""
    ) -> Value:
        """Apply the projection ``name`` [outputs, K] (and ``name_bias``) to x [..., K]."""
        inner = x.type.shape[-1]
        assert isinstance(inner, int)
        weight = self.weight(name, outputs, inner, std=self.residual_std if residual else None)
        bias_value = self.weight(f"{name}_bias", outputs, fill=0.0) if bias else None
        return self.f.op("linear", x, weight, bias_value, hint=hint or name.rsplit(".", 1)[-1])

    def norm(self, x: Value, name: str, norm: Norm, hint: str = "normed") -> Value:
        """Normalise the last dim of x with the weight ``name`` (and ``name_bias`` for a LayerNorm that has biases)."""
        size = x.type.shape[-1]
        assert isinstance(size, int)
        weight = self.weight(name, size, fill=1.0) if norm.weight else None
        if norm.kind == "rms":
            return self.f.op("rms_norm", x, weight, eps=norm.eps, hint=hint)
        bias = self.weight(f"{name}_bias", size, fill=0.0) if norm.bias else None
        return self.f.op("layer_norm", x, weight, bias, eps=norm.eps, hint=hint)

    def times(self, x: Value, factor: float, hint: str = "scaled") -> Value:
        """Multiply x by a number of the spec (nothing at 1)."""
        return x if factor == 1 else self.f.op("mul", x, self.f.constant(float(factor)), hint=hint)

    def cached(self, role: Role, group: int, x: Value, window: int | None) -> tuple[Value, Value]:
        """Append x [B, ..., T, D] to its state; return what attention reads and the index of each slot.

        The state is declared, taken as a parameter and returned here.  A windowed layer gets a ring of
        window + T_max - 1 slots, so that the window of every query of a full chunk is still there.
        """
        ring = window is not None and window + self.spec.chunk - 1 < self.spec.capacity
        capacity = window + self.spec.chunk - 1 if ring and window is not None else self.spec.capacity
        shape: tuple[Dim, ...] = (*x.type.shape[:-2], capacity, x.type.shape[-1])
        name = f"kv.{group}.{role}"
        state = self.module.state(
            State(
                name,
                TensorType(DType(self.spec.kv_dtype), shape),
                role,
                group,
                ring=ring,
                window=window if ring and window is not None else 0,
            )
        )
        before = self.f.param(name, state.type, state=name)
        after = self.f.op("cache_write", before, x, self.start, self.length, ring=ring, hint=f"{role}_state")
        self.f.result(name, after, state=name)
        values, index = self.f.emit("cache_read", after, self.start, self.length, ring=ring, hint=f"{role}_all")
        return values, index


def residual_std(spec: Spec, layers: int) -> float:
    """Return std / sqrt(2 * layers): GPT-2's scaling of the projections that write the residual stream."""
    return float(spec.init.std) / math.sqrt(2 * max(layers, 1))


def loc_of(place: tuple[str, int, int]) -> Loc:
    """Return the place of a spec entry as an IR location."""
    return Loc(*place)
