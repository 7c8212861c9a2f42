"""Kernels of the inference module: a row comes out bitwise the same for T in 1..16 and any batch.

BLAS picks its kernel by the shape of a product (and may pick it by the alignment of its operands), and a vectorised
function rounds the last elements of an array, those that fill no whole vector, by other code.  So up to ``FEW``
tokens a row

* every product has one row, which starts at an aligned address.  Products of 16 padded rows have the same
  property; one row at a time is 2.6 times as fast at T = 1, as fast at T = 8 and 0.6 times at T = 16
  (125 M parameters, one AVX2 core), and decoding is what sessions do most;
* attention is one query of one row of the batch at a time, over blocks of exactly ``KEYS`` keys that are added
  up in order; a block nobody sees adds exact zeros, so it may as well be left out;
* transcendental functions run over arrays padded to whole vectors (:func:`pointwise`).

Longer calls (prefill chunks) use the fastest product of their own shape and agree within the f32 class.
States are updated in place; the session owns them.  Their slots lie in blocks: a state ``[B, G, S, D]`` of the IR is
``[B, S/KEYS, G, KEYS, D]`` here, ``[B, S, D]`` is ``[B, S/KEYS, KEYS, D]``, where KEYS divides S and the numbers are
floats; any other is a :class:`omnic.targets.torch.states.Rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from omnic.targets.torch.states import Rows, cache_close

__all__ = [
    "BLOCK",
    "FEW",
    "KEYS",
    "Seen",
    "Slots",
    "act",
    "aligned",
    "ancestors",
    "blocked_shape",
    "cache_close",
    "cache_move",
    "cache_write",
    "depthwise_conv1d",
    "embedding",
    "gated_act",
    "gather",
    "head_product",
    "layer_norm",
    "linear",
    "lm_head",
    "pointwise",
    "product",
    "product_in_blocks",
    "quantise_activation",
    "rms_norm",
    "rope_table",
    "rotate",
    "rotate_pairs",
    "round_to",
    "scatter",
    "slot_index",
    "softmax",
    "sort",
    "state_values",
    "to_blocks",
    "topk",
    "visible",
    "write_slots",
]

#: the most tokens of a short call
FEW = 16
#: rows of an expert's products in a long call
BLOCK = 32
#: keys of one block of a state
KEYS = 256
#: elements that torch gives to one thread at a time, a multiple of every vector length
_PIECE = 32768
_VECTOR = 32
_ALIGNMENT = 64


def pointwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(x)``, elementwise, with every element computed by the vector code whatever the shape."""
    count = x.numel()
    if count % _VECTOR == 0 and count <= _PIECE and x.is_contiguous():
        return function(x)
    flat = F.pad(x.reshape(-1), (0, -count % _VECTOR))
    parts = [function(part) for part in flat.split(_PIECE)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[:count].reshape(x.shape)


def aligned(x: Tensor) -> Tensor:
    """Return x contiguous and at an address that every vector instruction finds aligned."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % _ALIGNMENT else x


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return rows [n, K] times weight [N, K] transposed, one row at a time."""
    if rows.shape[0] == 1:
        return F.linear(aligned(rows), weight)
    return torch.cat([F.linear(aligned(row), weight) for row in rows.split(1)])


def product_in_blocks(rows: Tensor, weight: Tensor) -> Tensor:
    """Return rows [n, K] times weight [N, K] transposed, in products of exactly ``BLOCK`` rows, padded with zeros.

    A row is the same whatever rows stand beside it and however many there are, so the rows that other tokens send
    to an expert change nothing.
    """
    count = rows.shape[0]
    padded = F.pad(rows, (0, 0, 0, -count % BLOCK))
    parts = [F.linear(aligned(part), weight) for part in padded.split(BLOCK)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[:count]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X [B, T, K] (or [..., T, K]) times weight [N, K] transposed, plus bias."""
    if x.dim() < 2 or x.shape[-2] > FEW:
        return F.linear(x, weight, bias)
    y = product(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias


def head_product(x: Tensor, weight: Tensor) -> Tensor:
    """X [B, H, T, K] times weight [H, K, N] of each head: [B, H, T, N]."""
    batch, heads, tokens, inner = x.shape
    if tokens > FEW:
        return x @ weight
    rows = x.permute(0, 2, 1, 3).reshape(batch * tokens, heads, 1, inner)
    parts = [torch.bmm(aligned(row), weight) for row in rows]
    return torch.stack(parts).reshape(batch, tokens, heads, -1).transpose(1, 2)


def embedding(weight: Tensor, tokens: Tensor) -> Tensor:
    """Rows of the table [V, D]."""
    return F.embedding(tokens, weight)


def lm_head(
    x: Tensor, weight: Tensor, rows: Tensor | None = None, bias: Tensor | None = None, softcap: float = 0.0
) -> Tensor:
    """Logits [B, R, V] of the wanted rows i64[B, R] of x [B, T, D], bounded by ``softcap`` where it is set."""
    if rows is not None:
        x = x.take_along_dim(rows[:, :, None], 1)
    logits = linear(x, weight, bias)
    return pointwise(torch.tanh, logits / softcap) * softcap if softcap else logits


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu2": lambda x: F.relu(x).square(),
}


def act(x: Tensor, kind: str) -> Tensor:
    """The activation ``kind`` of x."""
    return pointwise(_ACTIVATIONS[kind], x)


def gated_act(
    gate: Tensor, up: Tensor, kind: str, alpha: float = 1.0, beta: float = 0.0, limit: float | None = None
) -> Tensor:
    """act(min(gate, limit)) * (clamp(up, -limit, limit) + beta); alpha is silu's, no limit is none."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    opening = act(gate, kind) if alpha == 1.0 else gate * pointwise(torch.sigmoid, alpha * gate)
    return opening * (up if beta == 0.0 else up + beta)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dim."""
    y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dim."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Softmax; sums run in order, so a row's result is its own; a row of nothing but -inf gives 0."""
    top = x.amax(axis, keepdim=True).clamp(min=-1e30)
    power = pointwise(torch.exp, x - top)
    total = power.cumsum(axis).narrow(axis, -1, 1)
    return power / torch.where(total == 0, 1.0, total)


def quantise_activation(x: Tensor, group: int) -> Tensor:
    """Round x to 8 bits, symmetric, one scale max|x|/127 for ``group`` numbers of the last dim (0 = all of it)."""
    shaped = x if group == 0 else x.unflatten(-1, (-1, group))
    peak = shaped.abs().amax(-1, keepdim=True)
    step = torch.where(peak > 0, peak / 127.0, 1.0)
    return ((shaped / step).round() * step).reshape(x.shape)


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y[:, t] = sum_k weight[:, k] * x[:, t + k] of x [B, T, C] and weight [C, K], no padding, in the order of k."""
    size = weight.shape[1]
    steps = x.shape[1] - size + 1
    y = x[:, :steps] * weight[:, 0]
    for k in range(1, size):
        y = y + x[:, k : k + steps] * weight[:, k]
    return y if bias is None else y + bias


# -- positions ------------------------------------------------------------------------------------------
def rope_table(positions: Tensor, frequencies: tuple[float, ...], magnitude: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, T, dims/2] of positions [B, T]; angles in f64."""
    angles = positions[..., None].double() * torch.tensor(frequencies, dtype=torch.float64)
    return (pointwise(torch.cos, angles) * magnitude).float(), (pointwise(torch.sin, angles) * magnitude).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + dims/2]) of each head; x is [B, H, T, R] or [B, T, R]."""
    if x.dim() == 4:
        cos, sin = cos[:, None], sin[:, None]
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the neighbouring pairs (x[2i], x[2i + 1]) of each head."""
    if x.dim() == 4:
        cos, sin = cos[:, None], sin[:, None]
    dims = 2 * cos.shape[-1]
    a, b = x[..., 0:dims:2], x[..., 1:dims:2]
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return torch.cat([turned, x[..., dims:]], dim=-1)


# -- states ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Slots:
    """Where the tokens of a call go: row of the batch, token, block and place in the block of each one written."""

    row: Tensor
    token: Tensor
    block: Tensor
    place: Tensor


def blocked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in blocks of a state [B, ..., S, D] of the IR."""
    batch, *middle, slots, width = shape
    return (batch, -(-slots // KEYS), *middle, KEYS, width)


def write_slots(start: Tensor, length: Tensor, tokens: int, capacity: int, ring: bool) -> Slots:
    """Return the slots of the valid tokens; of two for one slot of a ring only the later."""
    step = torch.arange(tokens)
    valid = (step < length[:, None]) & (step >= length[:, None] - capacity)
    row, token = valid.nonzero(as_tuple=True)
    slot = start[row] + token
    slot = slot % capacity if ring else slot
    return Slots(row, token, slot // KEYS, slot % KEYS)


def cache_write(state: Tensor | Rows, x: Tensor, slots: Slots) -> Tensor | Rows:
    """Write x [B, ..., T, D] into the state in place and return it."""
    if isinstance(state, Rows):
        state.write(slots.row, slots.block * KEYS + slots.place, x.movedim(-2, 1)[slots.row, slots.token])
    elif x.dim() == 4:
        state[slots.row, slots.block, :, slots.place] = x[slots.row, :, slots.token].to(state.dtype)
    else:
        state[slots.row, slots.block, slots.place] = x[slots.row, slots.token].to(state.dtype)
    return state


def cache_move(
    state: Tensor | Rows, source: Tensor, target: Tensor, capacity: int, ring: bool
) -> Tensor | Rows:
    """Copy token source[b, n] to target[b, n] in place, all reads before all writes; -1 skips the pair."""
    row, pair = ((source >= 0) & (target >= 0)).nonzero(as_tuple=True)
    read, write = source[row, pair], target[row, pair]
    if ring:
        read, write = read % capacity, write % capacity
    if isinstance(state, Rows):
        state.move(row, read, write)
    elif state.dim() == 5:
        state[row, write // KEYS, :, write % KEYS] = state[row, read // KEYS, :, read % KEYS]
    else:
        state[row, write // KEYS, write % KEYS] = state[row, read // KEYS, read % KEYS]
    return state


def slot_index(start: Tensor, length: Tensor, capacity: int, ring: bool) -> Tensor:
    """Logical index i64[B, S] of the token in each slot, -1 where there is none."""
    last = (start + length - 1)[:, None]
    slot = torch.arange(capacity)
    if ring:
        return (last - (last - slot) % capacity).clamp(min=-1)
    return torch.where(slot <= last, slot, -1)


def state_values(state: Tensor | Rows, capacity: int) -> Tensor:
    """Return a state as f32 numbers in the order of the IR, [B, ..., S, D]."""
    if isinstance(state, Rows):
        return state.every()
    if state.dim() == 5:
        return state.transpose(1, 2).flatten(2, 3)[:, :, :capacity].float()
    return state.flatten(1, 2)[:, :capacity].float()


def to_blocks(x: Tensor) -> Tensor:
    """Return x [B, ..., S, D] as a state in blocks, the last one filled up with zeros."""
    x = F.pad(x, (0, 0, 0, -x.shape[-2] % KEYS))
    blocks = x.unflatten(-2, (-1, KEYS))
    return blocks.transpose(1, 2).contiguous() if x.dim() == 4 else blocks


@dataclass(frozen=True)
class Seen:
    """Which keys each query sees.

    Attributes:
        mask: bool [B, T, slots], the slots of whole blocks.
        blocks: per row of the batch, how many leading blocks hold a visible key.
        bias: f32 [B, T, blocks, KEYS], 0 where seen and -inf elsewhere (short calls only).
    """

    mask: Tensor
    blocks: list[int]
    bias: Tensor | None


def visible(
    q_index: Tensor, k_index: Tensor, parents: Tensor | None = None, start: Tensor | None = None, *, window: int = 0
) -> Seen:
    """Key s is seen by query t iff 0 <= k_index[s] <= q_index[t], in the window, and in a tree by descendants only."""
    query, key = q_index[:, :, None], k_index[:, None, :]
    seen = (key >= 0) & (key <= query)
    if window:
        seen &= key > query - window
    if parents is not None and start is not None:
        slot = key - start[:, None, None]
        inside = slot.clamp(0, parents.shape[1] - 1).expand_as(seen)
        seen &= (slot < 0) | ancestors(parents).gather(2, inside)
    tokens, slots = seen.shape[1:]
    seen = F.pad(seen, (0, -slots % KEYS))
    held = seen.any(1).reshape(seen.shape[0], -1, KEYS).any(-1)
    last = (held * torch.arange(1, held.shape[1] + 1)).amax(-1).clamp(min=1)
    bias = None
    if tokens <= FEW:
        bias = torch.where(seen, 0.0, float("-inf")).reshape(seen.shape[0], tokens, -1, KEYS)
    return Seen(seen, last.tolist(), bias)


def ancestors(parents: Tensor) -> Tensor:
    """Return bool [B, T, T]: whether token j is token t or an ancestor of it, from parents i64[B, T] (-1 = root)."""
    tokens = parents.shape[1]
    reach = ((parents[:, :, None] == torch.arange(tokens)) | torch.eye(tokens, dtype=torch.bool)).float()
    for _ in range(max(tokens - 1, 1).bit_length()):
        reach = (reach @ reach).clamp(max=1.0)
    return reach > 0.5


# -- places and order -------------------------------------------------------------------------------------
def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x rounded to a 16-bit float, as f32 numbers."""
    return x.to(dtype).float()


def topk(x: Tensor, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The k greatest, value descending, equal values by ascending index."""
    values, indices = x.sort(dim=axis, descending=True, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


def sort(x: Tensor, axis: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """A stable sort."""
    values, indices = x.sort(dim=axis, descending=descending, stable=True)
    return values, indices


def gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """take_along_axis, dims other than ``axis`` broadcast."""
    axis = axis % x.dim()
    shape = [max(a, b) for a, b in zip(x.shape, index.shape, strict=True)]
    x_shape = [x.shape[i] if i == axis else d for i, d in enumerate(shape)]
    index_shape = [index.shape[i] if i == axis else d for i, d in enumerate(shape)]
    return x.expand(x_shape).gather(axis, index.expand(index_shape))


def scatter(x: Tensor, index: Tensor, updates: Tensor, axis: int, reduce: str = "none") -> Tensor:
    """put_along_axis, or add; the index broadcasts to the updates."""
    index = index.expand_as(updates)
    return x.scatter_add(axis, index, updates) if reduce == "add" else x.scatter(axis, index, updates)
