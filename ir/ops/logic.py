"""Core ops that compare, combine truth values, and choose."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnic.ir.op import Array, In, Op, broadcast_shapes, register
from omnic.ir.ops.elementwise import common_element
from omnic.ir.types import DType, TensorType

__all__: list[str] = []


class _Compare(Op):
    inputs = (In("a", "number"), In("b", "number"))

    def infer(self, a: TensorType, b: TensorType, **attrs: Any) -> TensorType:
        common_element(self.name, a, b)
        return TensorType(DType.BOOL, broadcast_shapes(a.shape, b.shape))


@register
class Eq(_Compare):
    """``y = (a == b)``."""

    name = "eq"
    inputs = (In("a", "any"), In("b", "any"))

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return np.equal(a, b)


@register
class Ne(_Compare):
    """``y = (a != b)``."""

    name = "ne"
    inputs = (In("a", "any"), In("b", "any"))

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return np.not_equal(a, b)


@register
class Lt(_Compare):
    """``y = (a < b)``."""

    name = "lt"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return np.less(a, b)


@register
class Le(_Compare):
    """``y = (a <= b)``."""

    name = "le"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return np.less_equal(a, b)


@register
class Gt(_Compare):
    """``y = (a > b)``."""

    name = "gt"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return np.greater(a, b)


@register
class Ge(_Compare):
    """``y = (a >= b)``."""

    name = "ge"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return np.greater_equal(a, b)


class _Logic(Op):
    inputs = (In("a", "bool"), In("b", "bool"))

    def infer(self, a: TensorType, b: TensorType, **attrs: Any) -> TensorType:
        return TensorType(DType.BOOL, broadcast_shapes(a.shape, b.shape))


@register
class And(_Logic):
    """``y = a and b`` of bools."""

    name = "and"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return np.logical_and(a, b)


@register
class Or(_Logic):
    """``y = a or b`` of bools."""

    name = "or"

    def reference(self, a: Array, b: Array, **attrs: Any) -> Array:
        return np.logical_or(a, b)


@register
class Not(Op):
    """``y = not a`` of bools."""

    name = "not"
    inputs = (In("a", "bool"),)

    def infer(self, a: TensorType, **attrs: Any) -> TensorType:
        return a

    def reference(self, a: Array, **attrs: Any) -> Array:
        return np.logical_not(a)


@register
class Where(Op):
    """``y = a where c, else b``."""

    name = "where"
    inputs = (In("c", "bool"), In("a", "any"), In("b", "any"))

    def infer(self, c: TensorType, a: TensorType, b: TensorType, **attrs: Any) -> TensorType:
        return TensorType(common_element("where", a, b), broadcast_shapes(c.shape, a.shape, b.shape))

    def reference(self, c: Array, a: Array, b: Array, **attrs: Any) -> Array:
        return np.where(c, a, b)
