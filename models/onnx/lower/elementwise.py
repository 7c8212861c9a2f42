"""Lowerings of elementwise ops, casts, comparisons and choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from omnic.ir.dims import Dim, Expr
from omnic.ir.graph import Node, Value
from omnic.ir.op import ShapeError, broadcast_shapes
from omnic.ir.types import DType
from omnic.models.onnx.converter import Converter, Refusal
from omnic.models.onnx.kinds import Causal, Flow, Known, Sizes, Stored, Tensor, Uniform, dtype_of_onnx, numpy_of
from omnic.models.onnx.node import OnnxNode

__all__ = ["ELEMENTWISE", "Lowering", "as_positions_constant", "joint_shape", "producer"]

Lowering = Callable[[Converter, OnnxNode], Tensor | tuple[Tensor, ...]]


def joint_shape(*tensors: Tensor) -> tuple[Dim, ...]:
    """Return the shape that tensors broadcast to.

    Raises:
        Refusal: they do not.
    """
    try:
        return broadcast_shapes(*(tuple(t.shape) for t in tensors))
    except ShapeError as error:
        raise Refusal(error.message) from None


def producer(c: Converter, value: Value) -> Node | None:
    """Return the node that makes a value (None for parameters and weights)."""
    return c.made_by(value)


_NUMPY: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power, "Equal": np.equal,
    "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater, "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and, "Or": np.logical_or, "Not": np.logical_not, "Neg": np.negative, "Min": np.minimum,
    "Max": np.maximum,
}  # fmt: skip
_COMPARES = {"Equal": "eq", "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge"}
_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Mod": "mod", "And": "and", "Or": "or",
           "Min": "minimum", "Max": "maximum", **_COMPARES}  # fmt: skip
#: op -> (the operand that changes nothing, whether it may stand on the left too)
_NEUTRAL: dict[str, tuple[float, bool]] = {"Add": (0, True), "Sub": (0, False), "Mul": (1, True), "Div": (1, False),
                                           "And": (True, True), "Or": (False, True), "Pow": (1, False)}  # fmt: skip


def _uniform(c: Converter, node: OnnxNode) -> Uniform | None:
    """Return the result of an op on values that are the same everywhere."""
    given = [t for t in node.inputs if t is not None]
    if not any(isinstance(t, Uniform) for t in given) or node.op not in _NUMPY:
        return None
    values = [t.value if isinstance(t, Uniform) else c.scalar(t) for t in given]
    if any(v is None or isinstance(v, Expr) for v in values):
        return None
    shape = joint_shape(*given)
    found = _NUMPY[node.op](*values)
    dtype = DType.BOOL if node.op in _COMPARES or given[0].dtype == DType.BOOL else given[0].dtype
    return Uniform(found.item() if isinstance(found, np.generic) else found, shape, dtype)


def _neutral(c: Converter, node: OnnxNode) -> Tensor | None:
    """Return the other operand where one changes nothing."""
    if node.op not in _NEUTRAL or len(node.inputs) != 2:
        return None
    neutral, either = _NEUTRAL[node.op]
    for index in (1, 0) if either else (1,):
        scalar, other = c.scalar(node.need(index)), node.need(1 - index)
        if scalar is None or scalar != neutral:
            continue
        shape = joint_shape(node.need(0), node.need(1))
        if tuple(other.shape) == shape:
            return other
        if isinstance(other, Causal) and other.shape[-2:] == shape[-2:]:
            return Causal(other.row_start, shape, other.flip, other.dtype)
        return c.broadcast(c.emit(other), shape)
    return None


def _binary(c: Converter, node: OnnxNode) -> Tensor:
    found = _uniform(c, node) or _neutral(c, node)
    if found is not None:
        return found
    if node.op == "Equal" and (triangle := _triangle_test(c, node)) is not None:
        return triangle
    op = _BINARY[node.op]
    left, right = _operands(c, node)
    if node.op == "Div" and not left.dtype.is_float:
        op = "floordiv"  # sizes and positions are never negative, where both agree
    if node.op == "Div" and (root := _reciprocal_root(c, node, right)) is not None:
        return root
    if node.op == "Mod" and node.integer("fmod", 0):
        raise Refusal("fmod = 1")
    if node.op == "Add" and (biased := _bias(c, node)) is not None:
        return biased
    out = c.binary(op, left, right)
    for tensor in node.inputs[2:]:
        assert tensor is not None
        out = c.binary(op, out, c.emit(tensor))
    return out


def _operands(c: Converter, node: OnnxNode) -> tuple[Flow, Flow]:
    first, second = node.need(0), node.need(1)
    if node.op == "Mul":
        return _near(c, first, second), _near(c, second, first)
    return c.emit(first), c.emit(second)


def _near(c: Converter, tensor: Tensor, other: Tensor) -> Flow:
    return as_positions_constant(c, tensor) if _from_positions(c, other) else c.emit(tensor)


def as_positions_constant(c: Converter, tensor: Tensor) -> Flow:
    """Return a small table that positions are multiplied by (rope's frequencies) as a constant of the program."""
    array = c.numbers(tensor) if isinstance(tensor, Stored) else None
    if array is None or array.size > 1024:
        return c.emit(tensor)
    return Flow(c.constant(array, tensor.dtype))


def _from_positions(c: Converter, tensor: Tensor) -> bool:
    """Whether a value is integers cast to floats, up to their layout."""
    value = tensor.value if isinstance(tensor, Flow) else None
    while value is not None:
        made = c.made_by(value)
        if made is None:
            return False
        source = made.operands[0] if made.operands else None
        if made.op == "cast" and source is not None:
            return source.type.dtype.is_integer
        value = source if made.op in ("reshape", "transpose", "broadcast", "slice") else None
    return False


from_positions = _from_positions


def _reciprocal_root(c: Converter, node: OnnxNode, right: Flow) -> Flow | None:
    """1 / sqrt(x) is rsqrt(x)."""
    made = c.made_by(right.value)
    if c.scalar(node.need(0)) != 1 or made is None or made.op != "sqrt" or not right.dtype.is_float:
        return None
    inner = made.operands[0]
    assert inner is not None
    return Flow(c.f.op("rsqrt", inner), right.lifted)


def _bias(c: Converter, node: OnnxNode) -> Flow | None:
    """A weight added to a product with a weight is the product's bias."""
    for index in (0, 1):
        product, bias = node.need(index), node.need(1 - index)
        if not isinstance(product, Flow) or not isinstance(bias, Stored) or product.lifted:
            continue
        made = c.made_by(product.value)
        single = index < len(node.single) and node.single[index]
        if made is None or made.op != "linear" or made.operands[2] is not None or not single:
            continue
        if bias.shape != (product.shape[-1],):
            continue
        x, w, _ = made.operands
        return Flow(c.f.op("linear", x, w, c.weight(bias)))
    return None


def _triangle_test(c: Converter, node: OnnxNode) -> Causal | None:
    for index in (0, 1):
        tensor, scalar = node.need(index), c.scalar(node.need(1 - index))
        if isinstance(tensor, Causal) and scalar in (0, 1) and joint_shape(*_both(node)) == tensor.shape:
            return Causal(tensor.row_start, tensor.shape, tensor.flip == bool(scalar))
    return None


def _both(node: OnnxNode) -> tuple[Tensor, Tensor]:
    return node.need(0), node.need(1)


def _pow(c: Converter, node: OnnxNode) -> Tensor:
    found = _uniform(c, node) or _neutral(c, node)
    if found is not None:
        return found
    x, exponent = c.emit(node.need(0)), c.scalar(node.need(1))
    if exponent == 2:
        return c.binary("mul", x, x)
    if exponent == 3:
        return c.binary("mul", c.binary("mul", x, x), x)
    if exponent in (0.5, -0.5) and x.dtype.is_float:
        return c.unary("sqrt" if exponent > 0 else "rsqrt", x)
    power = c.cast(c.emit(node.need(1)), x.dtype)
    if not x.dtype.is_float:
        raise Refusal("a power of integers")
    return c.binary("pow", x, power)


_UNARY = {"Neg": "neg", "Abs": "abs", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Sin": "sin", "Cos": "cos",
          "Tanh": "tanh", "Sigmoid": "sigmoid", "Erf": "erf", "Round": "round", "Relu": "relu",
          "Not": "not"}  # fmt: skip


def _unary(c: Converter, node: OnnxNode) -> Tensor:
    x = node.need(0)
    if node.op == "Not" and isinstance(x, Causal):
        return Causal(x.row_start, x.shape, not x.flip)
    return _uniform(c, node) or c.unary(_UNARY[node.op], c.emit(x))


def _reciprocal(c: Converter, node: OnnxNode) -> Tensor:
    x = c.emit(node.need(0))
    made = c.made_by(x.value)
    if made is not None and made.op == "sqrt" and made.operands[0] is not None:
        return Flow(c.f.op("rsqrt", made.operands[0]), x.lifted)
    return c.binary("div", Flow(c.f.constant(1.0, x.dtype)), x)


def _cast(c: Converter, node: OnnxNode) -> Tensor:
    to = node.need(1).dtype if node.op == "CastLike" else dtype_of_onnx(node.integer("to"))
    x = node.need(0)
    if x.dtype == to:
        return x
    if isinstance(x, Uniform) and not isinstance(x.value, Expr):
        return Uniform(np.asarray(x.value).astype(numpy_of(to)).item(), x.shape, to)
    if isinstance(x, Causal):
        return Causal(x.row_start, x.shape, x.flip, to)
    if isinstance(x, Sizes) and to.is_integer:
        return Sizes(x.dims, to)
    if isinstance(x, Stored) and x.dtype.is_float and to == DType.F32:
        return Stored(x.recipe, x.shape, to, x.label)
    flow = c.emit(x)
    if flow.dtype == DType.BOOL or to != DType.BOOL:
        return c.cast(flow, to)
    zero = Flow(c.constant(np.asarray(0), flow.dtype))
    return c.binary("ne", flow, zero)


def _where(c: Converter, node: OnnxNode) -> Tensor:
    condition, yes, no = (node.need(i) for i in range(3))
    decided = c.scalar(condition)
    if decided is not None:
        chosen = yes if decided else no
        shape = joint_shape(condition, yes, no)
        if isinstance(chosen, Uniform):
            return Uniform(chosen.value, shape, chosen.dtype)
        return chosen if tuple(chosen.shape) == shape else c.broadcast(c.emit(chosen), shape)
    values, lifted = c.aligned(c.emit(condition), c.emit(yes), c.emit(no))
    return Flow(c.f.op("where", *values), lifted)


def _clip(c: Converter, node: OnnxNode) -> Tensor:
    x = c.emit(node.need(0))
    bounds: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        tensor = node.get(index)
        bound: float | None = node.number(name, 0.0) if node.has(name) else None
        if tensor is not None:
            scalar = c.scalar(tensor)
            if scalar is None:
                raise Refusal(f"its {name} is not a constant")
            bound = float(scalar)
        bounds.append(bound if bound is None or math.isfinite(bound) else None)
    if bounds == [None, None]:
        return x
    return c.unary("clamp", x, min=bounds[0], max=bounds[1])


def _identity(c: Converter, node: OnnxNode) -> Tensor | tuple[Tensor, ...]:
    x = node.need(0)
    if node.op == "Dropout":
        training = node.get(2)
        if training is not None and c.scalar(training) is not False:
            raise Refusal("dropout in training mode")
        return (x, Uniform(True, tuple(x.shape), DType.BOOL))[: node.outputs] if node.outputs > 1 else x
    return x


def _gelu(c: Converter, node: OnnxNode) -> Tensor:
    kind = "gelu_tanh" if node.op == "FastGelu" or node.text("approximate", "none") == "tanh" else "gelu"
    x = c.emit(node.need(0))
    bias = node.get(1)
    if bias is not None:
        x = c.binary("add", x, c.emit(bias))
    return c.unary("act", x, kind=kind)


def _swish(c: Converter, node: OnnxNode) -> Tensor:
    alpha = node.number("alpha", 1.702 if node.op == "QuickGelu" else 1.0)
    x = c.emit(node.need(0))
    if alpha == 1.0:
        return c.unary("act", x, kind="silu")
    scaled = c.binary("mul", x, Flow(c.f.constant(alpha, x.dtype)))
    return c.binary("mul", x, c.unary("sigmoid", scaled))


def _softplus(c: Converter, node: OnnxNode) -> Tensor:
    """log(1 + e^x), as max(x, 0) + log(1 + e^-|x|), which cannot overflow."""
    x = c.emit(node.need(0))
    one = Flow(c.f.constant(1.0, x.dtype))
    small = c.unary("exp", c.unary("neg", c.unary("abs", x)))
    return c.binary("add", c.unary("relu", x), c.unary("log", c.binary("add", one, small)))


def _is_nan(c: Converter, node: OnnxNode) -> Tensor:
    x = c.emit(node.need(0))
    return c.binary("ne", x, x)


def _xor(c: Converter, node: OnnxNode) -> Tensor:
    return c.binary("ne", c.emit(node.need(0)), c.emit(node.need(1)))


def _floor(c: Converter, node: OnnxNode) -> Tensor:
    x = c.emit(node.need(0))
    return c.binary("floordiv", x, Flow(c.f.constant(1.0, x.dtype)))


def _constant(c: Converter, node: OnnxNode) -> Tensor:
    held = node.tensor("value")
    if held is not None:
        array, dtype = held
        return c.literal(array, dtype, str(node.raw.outputs[0].name))
    for name, dtype in (("value_int", DType.I64), ("value_ints", DType.I64), ("value_float", DType.F32),
                        ("value_floats", DType.F32)):
        if node.has(name):
            return Known(np.asarray(node.raw.attributes[name].value, numpy_of(dtype)), dtype)
    raise Refusal("a constant that is neither a tensor nor numbers")


ELEMENTWISE: dict[str, Lowering] = {
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_UNARY, _unary),
    "Pow": _pow,
    "Reciprocal": _reciprocal,
    "Cast": _cast,
    "CastLike": _cast,
    "Where": _where,
    "Clip": _clip,
    "Identity": _identity,
    "Dropout": _identity,
    "Gelu": _gelu,
    "Swish": _swish,
    "Softplus": _softplus,
    "IsNaN": _is_nan,
    "Xor": _xor,
    "Floor": _floor,
    "Constant": _constant,
}
CONTRIB_ELEMENTWISE: dict[str, Lowering] = {"Gelu": _gelu, "FastGelu": _gelu, "BiasGelu": _gelu, "QuickGelu": _swish}
