"""Functions that emitted training modules are written with; their source becomes part of the emitted text.

Each is self-contained but for ``torch``, ``F``, ``Tensor``, the other functions here and ``grouped_linear``.
What needs range or precision (norms, softmax, routing, rotations) runs in f32 under autocast, and in f64
when the module is double.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from omnic.targets.torch.grouped import grouped_linear

__all__ = [
    "activated",
    "attend",
    "attend_capped",
    "attend_latent",
    "causal_mask",
    "depthwise_conv1d",
    "fake_quant",
    "full_precision",
    "gated",
    "gather",
    "group_mask",
    "layer_norm",
    "logits_of",
    "mix_experts",
    "noisy_logits",
    "relu2",
    "rms_norm",
    "rope_table",
    "rotate",
    "rotate_pairs",
    "route",
    "scaled_rope_table",
    "scatter",
    "softmax",
    "sort",
    "topk",
]


def full_precision(x: Tensor) -> Tensor:
    """Return x in f32 if it is in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dim (arXiv:1910.07467)."""
    return F.rms_norm(full_precision(x), x.shape[-1:], weight, eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dim (arXiv:1607.06450)."""
    return F.layer_norm(full_precision(x), x.shape[-1:], weight, bias, eps)


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (arXiv:2109.08668)."""
    return F.relu(x).square()


def gated(
    gate: Tensor, up: Tensor, kind: str, alpha: float = 1.0, beta: float = 0.0, limit: float | None = None
) -> Tensor:
    """act(min(gate, limit)) * (clamp(up, -limit, limit) + beta); alpha is silu's, no limit is none."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    opening = activated(gate, kind) if alpha == 1.0 else gate * torch.sigmoid(alpha * gate)
    return opening * (up if beta == 0.0 else up + beta)


def activated(x: Tensor, kind: str) -> Tensor:
    """The activation ``kind`` of x."""
    if kind == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "relu2": relu2}[kind](x)


def rope_table(positions: Tensor, dims: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., dims/2] of positions [...] (RoPE, arXiv:2104.09864); angles in f64."""
    frequencies = base ** (-torch.arange(0, dims, 2, dtype=torch.float64, device=positions.device) / dims)
    angles = positions[..., None].double() * frequencies
    return angles.cos().float(), angles.sin().float()


def scaled_rope_table(positions: Tensor, frequencies: tuple[float, ...], magnitude: float) -> tuple[Tensor, Tensor]:
    """The same of given frequencies, for contexts that were extended (YaRN, arXiv:2309.00071)."""
    angles = positions[..., None].double() * torch.tensor(frequencies, dtype=torch.float64, device=positions.device)
    return (angles.cos() * magnitude).float(), (angles.sin() * magnitude).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + dims/2]) of the leading dims of each head; x is [B, H, T, R] or [B, T, R]."""
    if cos.dim() == 3 and x.dim() == 4:
        cos, sin = cos[:, None], sin[:, None]
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1).to(x.dtype)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the neighbouring pairs (x[2i], x[2i + 1]) of the leading dims of each head."""
    if cos.dim() == 3 and x.dim() == 4:
        cos, sin = cos[:, None], sin[:, None]
    dims = 2 * cos.shape[-1]
    a, b = x[..., 0:dims:2], x[..., 1:dims:2]
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return torch.cat([turned, x[..., dims:]], dim=-1).to(x.dtype)


def causal_mask(tokens: int, window: int, device: torch.device) -> Tensor:
    """Whether query t sees key s, bool [T, T]: s <= t, and s > t - window where there is a window."""
    at = torch.arange(tokens, device=device)
    seen = at[None, :] <= at[:, None]
    return seen & (at[None, :] > at[:, None] - window) if window else seen


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int = 0) -> Tensor:
    """Causal attention [B, H, T, Dv]; H query heads share G KV heads in order (arXiv:2305.13245).

    The values are padded to the width of the keys where it differs: torch's fused kernels want one width.
    """
    tokens, width, value = q.shape[-2], q.shape[-1], v.shape[-1]
    q, k, v = q.to(v.dtype), k.to(v.dtype), F.pad(v, (0, width - value)) if value < width else v
    mask = causal_mask(tokens, window, q.device) if window and tokens > window else None
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[..., :value]


def attend_capped(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int = 0, softcap: float = 0.0, sinks: Tensor | None = None
) -> Tensor:
    """Causal attention, logits bounded by c tanh(s/c) (arXiv:2408.00118), sink logits (arXiv:2309.17453)."""
    batch, heads, tokens, width = q.shape
    groups = k.shape[1]
    q = q.reshape(batch, groups, heads // groups, tokens, width)
    scores = full_precision(q @ k[:, :, None].transpose(-1, -2)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~causal_mask(tokens, window, q.device), float("-inf"))
    if sinks is not None:
        sink = sinks.reshape(1, groups, heads // groups, 1, 1).expand(batch, -1, -1, tokens, -1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(dim=-1)[..., :tokens]
    return (weights.to(v.dtype) @ v[:, :, None]).reshape(batch, heads, tokens, v.shape[-1])


def attend_latent(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    rope_k: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Causal latent attention (arXiv:2405.04434): keys w_k latent beside the shared rope_k, values w_v latent."""
    heads, nope, _ = w_k.shape
    batch, tokens, _ = latent.shape
    expanded = F.linear(latent, torch.cat([w_k, w_v], dim=1).flatten(0, 1))
    k_nope, v = expanded.reshape(batch, tokens, heads, -1).transpose(1, 2).split([nope, w_v.shape[1]], dim=-1)
    shared = rope_k[:, None].expand(-1, heads, -1, -1).to(k_nope.dtype)
    k = torch.cat([k_nope, shared], dim=-1)
    q = torch.cat([q_nope, q_rope], dim=-1)
    if softcap:
        return attend_capped(q, k, v, scale, window, softcap)
    return attend(q, k, v, scale, window)


def logits_of(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X weight^T + bias in full precision, whatever autocast says: routing decides on small differences."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(full_precision(x), full_precision(weight), None if bias is None else full_precision(bias))


def noisy_logits(
    x: Tensor,
    weight: Tensor,
    training: bool,
    gate_bias: Tensor | None = None,
    temperature: float = 1.0,
    gumbel: float = 0.0,
    gaussian: float = 0.0,
    jitter: float = 0.0,
) -> Tensor:
    """The logits of a router; in training with noise, from torch's generator, so that it tries other experts.

    Jitter multiplies every input by a number near 1 (arXiv:2101.03961); Gaussian noise is that of arXiv:1701.06538.
    """
    if not training:
        return logits_of(x, weight, gate_bias)
    x = full_precision(x)
    shaken = x * (1 + jitter * (2 * torch.rand_like(x) - 1)) if jitter else x
    logits = logits_of(shaken, weight, gate_bias) / temperature
    if gumbel:
        logits = logits - gumbel * torch.log(-torch.log(torch.rand_like(logits).clamp(min=1e-30)))
    if gaussian:
        logits = logits + gaussian * torch.randn_like(logits)
    return logits


def group_mask(
    scores: Tensor, group_logits: Tensor | None, groups: tuple[int, ...], top_groups: int, group_score: str = "max"
) -> Tensor:
    """Put -inf where an expert's group is not among the best ``top_groups``."""
    member = torch.repeat_interleave(
        torch.arange(len(groups), device=scores.device),
        torch.tensor(groups, device=scores.device),
        output_size=sum(groups),
    )
    best = group_logits
    if best is None:
        parts = scores.split(list(groups), dim=-1)
        two = group_score == "top2_sum"
        best = torch.stack([p.topk(2, -1).values.sum(-1) if two else p.amax(-1) for p in parts], dim=-1)
    kept = best.topk(top_groups, dim=-1).indices
    return scores.masked_fill((member[:, None] != kept[..., None, :]).all(-1), float("-inf"))


def route(
    x: Tensor,
    weight: Tensor,
    group_weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    gate_bias: Tensor | None = None,
    top_k: int,
    groups: tuple[int, ...] | None = None,
    top_groups: int = 1,
    group_score: str = "max",
    score: str = "softmax",
    renormalise: bool = True,
    scale: float = 1.0,
    logits: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose experts: (indices [B, T, k], gates [B, T, k], logits [B, T, E]); the bias enters the selection only.

    In training the logits may be noisy ones, and each expert but the best is left out with probability ``dropout``.
    """
    logits = logits_of(x, weight, gate_bias) if logits is None else logits
    squashed = logits.sigmoid() if score == "sigmoid" else logits
    select = squashed if bias is None else squashed + bias
    group_logits = None if group_weight is None else logits_of(x, group_weight)
    if groups is not None:
        select = group_mask(select.detach(), group_logits, groups, top_groups, group_score)
    if dropout:
        # One that is left out stands behind all others of its groups: it is taken where too few are left.
        select = select.detach()
        best = select.amax(-1, keepdim=True)
        least = select.masked_fill(select == float("-inf"), float("inf")).amin(-1, keepdim=True)
        dropped = (torch.rand_like(select) < dropout) & (select < best)
        select = torch.where(dropped, select - (best - least) - 1, select)
    indices = select.topk(top_k, dim=-1).indices
    if score == "sigmoid":
        gates = squashed.gather(-1, indices)
        gates = gates / gates.sum(-1, keepdim=True) if renormalise else gates
    elif renormalise:
        gates = logits.gather(-1, indices).softmax(-1)
    else:
        gates = logits.softmax(-1).gather(-1, indices)
    if group_logits is not None and groups is not None:
        member = torch.repeat_interleave(
            torch.arange(len(groups), device=x.device), torch.tensor(groups, device=x.device), output_size=sum(groups)
        )
        share = group_logits.softmax(-1).gather(-1, member[indices])
        gates = gates * (share / share.sum(-1, keepdim=True) if top_groups > 1 else share)
    return indices, gates * scale if scale != 1.0 else gates, logits


def mix_experts(
    x: Tensor,
    indices: Tensor,
    gates: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    *,
    kind: str,
    alpha: float = 1.0,
    beta: float = 0.0,
    limit: float | None = None,
) -> Tensor:
    """Sum over the chosen experts of gates * down act(up x), or down (act(gate x) * up x); no token is dropped.

    Tokens are sorted by expert, so each expert is one product over its own rows (arXiv:2211.15841).
    """
    experts, top_k = up.shape[0], indices.shape[-1]
    owner = indices.reshape(-1)
    order = owner.argsort(stable=True)
    counts = (owner[:, None] == torch.arange(experts, device=x.device)).sum(0)
    rows = x.reshape(-1, x.shape[-1])[order // top_k]
    sorted_owner = owner[order]
    h = grouped_linear(rows, up, counts)
    h = h if up_bias is None else h + up_bias[sorted_owner]
    if gate is None:
        h = activated(h, kind)
    else:
        g = grouped_linear(rows, gate, counts)
        h = gated(g if gate_bias is None else g + gate_bias[sorted_owner], h, kind, alpha, beta, limit)
    y = grouped_linear(h, down, counts)
    y = y if down_bias is None else y + down_bias[sorted_owner]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=x.device))
    y = y[back].reshape(*indices.shape, -1) * gates[..., None]
    return y.sum(-2)


def softmax(x: Tensor, axis: int) -> Tensor:
    """Softmax in full precision; a row of nothing but -inf gives 0."""
    x = full_precision(x)
    power = torch.exp(x - x.detach().amax(axis, keepdim=True).clamp(min=-1e30))
    total = power.sum(axis, keepdim=True)
    return power / torch.where(total == 0, 1.0, total)


def topk(x: Tensor, k: int, axis: int) -> tuple[Tensor, Tensor]:
    """The k greatest, value descending, equal values by ascending index."""
    values, indices = x.sort(dim=axis, descending=True, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


def sort(x: Tensor, axis: int, descending: bool) -> tuple[Tensor, Tensor]:
    """A stable sort."""
    values, indices = x.sort(dim=axis, descending=descending, stable=True)
    return values, indices


def fake_quant(w: Tensor, kind: str, group: int = 0, asym: bool = False, scale: str = "f16") -> Tensor:
    """Round w to a storage type and back by the rules of omnic.ir.packing; the gradient passes as if nothing was done.

    Straight-through estimator (arXiv:1308.3432).  ``kind`` is t2 or iN, groups of ``group`` numbers of the last dim
    (0 = all of it) share a scale.
    """
    x = w.detach().unflatten(-1, (-1, group)) if group else w.detach()[..., None, :]
    zero, least = 0.0, x
    if kind == "t2":
        step = (x.abs().sum(-1, keepdim=True, dtype=torch.float64).float() / x.shape[-1])
        low, top = -1.0, 1.0
    elif asym:
        top = 2.0 ** int(kind[1:]) - 1
        least, low = x.amin(-1, keepdim=True).clamp(max=0), 0.0
        step = (x.amax(-1, keepdim=True).clamp(min=0) - least) / top
    else:
        top = 2.0 ** (int(kind[1:]) - 1) - 1
        step, low = x.abs().amax(-1, keepdim=True) / top, -top - 1
    step = step.half().float() if scale == "f16" else step
    divisor = torch.where(step > 0, step, 1.0)
    if asym:
        zero = (-least / divisor).round().clamp(0, top)
    rounded = (((x / divisor).round() + zero).clamp(low, top) - zero) * step
    return w + (rounded.flatten(-2).reshape(w.shape) - w).detach()


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution of each channel of x [B, T, C] with its weight [C, K], without padding."""
    return F.conv1d(x.transpose(1, 2), weight[:, None], bias, groups=weight.shape[0]).transpose(1, 2)


def gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """take_along_axis, dims other than ``axis`` broadcast."""
    axis = axis % x.dim()
    common = [max(a, b) if i != axis else -1 for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True))]
    return x.expand(*common).gather(axis, index.expand(*common))


def scatter(x: Tensor, index: Tensor, updates: Tensor, axis: int, reduce: str) -> Tensor:
    """put_along_axis, or add; the index broadcasts to the updates."""
    index = index.expand_as(updates)
    return x.scatter_add(axis, index, updates) if reduce == "add" else x.scatter(axis, index, updates)
