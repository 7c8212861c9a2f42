"""Small programs for coremltools' own torch front end: each gives one tensor from named inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Case = Callable[[Mapping[str, Any]], Tensor]

_g = torch.Generator().manual_seed(5)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_g)


#: inputs of every program; numbers that fp16 holds exactly
INPUTS: dict[str, Tensor] = {
    name: value.half().float() if value.is_floating_point() else value
    for name, value in {
        "x": _normal(2, 3, 8), "y": _normal(2, 3, 8), "p": torch.rand(2, 3, 8, generator=_g) + 0.5,
        "u": torch.rand(2, 3, 8, generator=_g) * 1.6 - 0.8, "r": _normal(3, 1), "a": _normal(4, 6),
        "s": _normal(2, 4, 12), "m": _normal(1, 4, 9, 9), "v": _normal(1, 4, 4, 6, 6),
        "q": _normal(1, 2, 5, 8), "k": _normal(1, 2, 7, 8), "w": _normal(1, 2, 7, 4),
        "i": torch.tensor([2, -1, 0, -3], dtype=torch.int32), "j": torch.randint(0, 8, (2, 3, 5), generator=_g).int(),
        "t": torch.randint(0, 11, (2, 5), generator=_g).int(), "n": torch.tensor([7, -7, 3, -2], dtype=torch.int32),
        "d": torch.tensor([2, 3, -2, 5], dtype=torch.int32), "e": torch.tensor([1], dtype=torch.int32),
        "h": torch.tensor([3, 0, 2, 3], dtype=torch.int32),
    }.items()
}

_torch_seed = torch.manual_seed(6)
#: layers with weights
LAYERS = nn.ModuleDict({
    "linear": nn.Linear(8, 16), "plain": nn.Linear(8, 5, bias=False), "wide": nn.Linear(8, 300),
    "embed": nn.Embedding(11, 6), "layer_norm": nn.LayerNorm(8), "no_affine": nn.LayerNorm(8, elementwise_affine=False),
    "two_dims": nn.LayerNorm((3, 8)), "batch_norm": nn.BatchNorm1d(4), "batch_norm2": nn.BatchNorm2d(4),
    "group_norm": nn.GroupNorm(2, 4), "instance_norm": nn.InstanceNorm2d(4, affine=True), "prelu": nn.PReLU(4),
    "conv1": nn.Conv1d(4, 6, 3), "conv1_stride": nn.Conv1d(4, 6, 3, stride=2, padding=1),
    "conv1_dilated": nn.Conv1d(4, 6, 3, dilation=2), "conv1_depth": nn.Conv1d(4, 4, 3, groups=4, padding=2),
    "conv1_one": nn.Conv1d(4, 7, 1), "conv2": nn.Conv2d(4, 6, 3), "conv2_pad": nn.Conv2d(4, 6, (3, 5), padding=(1, 2)),
    "conv2_one": nn.Conv2d(4, 8, 1), "conv2_one_stride": nn.Conv2d(4, 8, 1, stride=2),
    "conv2_groups": nn.Conv2d(4, 6, 3, groups=2), "conv2_same": nn.Conv2d(4, 6, 3, padding="same"),
    "conv3": nn.Conv3d(4, 3, 3), "up1": nn.ConvTranspose1d(4, 6, 3, stride=2),
    "up2": nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
    "up2_groups": nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
    "head": nn.Linear(8, 11, bias=False),
})
for _layer in LAYERS.values():
    for _parameter in _layer.parameters():
        _parameter.data = _parameter.data.half().float()
for _name in ("batch_norm", "batch_norm2"):
    LAYERS[_name].running_mean.data = torch.tensor([0.5, -0.25, 0.125, 1.0])
    LAYERS[_name].running_var.data = torch.tensor([1.5, 0.5, 2.0, 0.75])
LAYERS.eval()


def _layer_of(name: str, over: str) -> Case:
    return lambda z: LAYERS[name](z[over])


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def _rope(x: Tensor, length: int) -> Tensor:
    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(4) / 4)
    first, second = x.chunk(2, -1)
    return torch.cat([first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()], -1)


def _causal(q: Tensor, k: Tensor, v: Tensor, keys: int = 7) -> Tensor:
    mask = torch.full((5, keys), -1e4).triu(keys - 4)
    return torch.softmax(q @ k.transpose(-1, -2) / 8**0.5 + mask, -1) @ v


def _experts(x: Tensor) -> Tensor:
    flat = x.reshape(6, 8)
    gates, chosen = torch.topk(torch.softmax(LAYERS["plain"](flat), -1), 2, dim=-1)
    weights = LAYERS["wide"].weight[:40].reshape(5, 8, 8)[chosen]
    return (torch.einsum("tkof,tf->tko", weights, flat) * gates[..., None]).sum(1)


def _mlp(x: Tensor) -> Tensor:
    gate, up = LAYERS["linear"](x).chunk(2, -1)
    return F.silu(gate) * up


def _written(z: Mapping[str, Any]) -> Tensor:
    y = z["x"].clone()
    y[:, 1:2] = z["y"][:, :1] * 2
    return y


ELEMENTWISE: dict[str, Case] = {
    "abs": lambda z: z["x"].abs(), "acos": lambda z: z["u"].acos(), "asin": lambda z: z["u"].asin(),
    "atan": lambda z: z["x"].atan(), "atanh": lambda z: z["u"].atanh(), "ceil": lambda z: z["x"].ceil(),
    "cos": lambda z: z["x"].cos(), "cosh": lambda z: z["x"].cosh(), "erf": lambda z: torch.erf(z["x"]),
    "exp": lambda z: z["x"].exp(), "exp2": lambda z: torch.exp2(z["x"]), "floor": lambda z: z["x"].floor(),
    "reciprocal": lambda z: z["p"].reciprocal(), "log": lambda z: z["p"].log(), "log1p": lambda z: z["p"].log1p(),
    "log2": lambda z: z["p"].log2(), "neg": lambda z: -z["x"], "round": lambda z: (z["x"] * 4).round(),
    "rsqrt": lambda z: z["p"].rsqrt(), "sign": lambda z: z["x"].sign(), "sin": lambda z: z["x"].sin(),
    "sinh": lambda z: z["x"].sinh(), "sqrt": lambda z: z["p"].sqrt(), "square": lambda z: z["x"].square(),
    "tan": lambda z: z["u"].tan(), "tanh": lambda z: z["x"].tanh(), 
    "add": lambda z: z["x"] + z["y"], "sub": lambda z: z["x"] - z["y"], "mul": lambda z: z["x"] * z["r"],
    "div": lambda z: z["x"] / z["p"], "pow": lambda z: z["p"] ** z["y"], "pow_scalar": lambda z: z["x"] ** 3,
    "rsub": lambda z: 1.5 - z["x"],
    "floor_divide": lambda z: torch.floor_divide(z["x"], z["p"]),
    "remainder": lambda z: torch.remainder(z["x"], z["p"]),
    "maximum": lambda z: torch.maximum(z["x"], z["y"]),
    "minimum": lambda z: torch.minimum(z["x"], z["y"]), "clamp": lambda z: z["x"].clamp(-0.5, 0.75),
    "clamp_min": lambda z: z["x"].clamp(min=0.25), "where": lambda z: torch.where(z["x"] > z["y"], z["x"], z["y"] * 2),
    "masked_fill": lambda z: z["x"].masked_fill(z["y"] > 0, -7.0), "eq": lambda z: (z["x"] == z["x"].round()).float(),
    "ne": lambda z: (z["x"] != z["y"]).float(), "lt": lambda z: (z["x"] < z["y"]).float(),
    "le": lambda z: (z["x"] <= z["y"]).float(), "gt": lambda z: (z["x"] > z["y"]).float(),
    "ge": lambda z: (z["x"] >= 0.5).float(), "and": lambda z: ((z["x"] > 0) & (z["y"] > 0)).float(),
    "not": lambda z: (~(z["x"] > 0)).float(),
    "xor": lambda z: torch.logical_xor(z["x"] > 0, z["y"] > 0).float(), "relu": lambda z: F.relu(z["x"]),
    "relu6": lambda z: F.relu6(z["x"] * 5), "leaky_relu": lambda z: F.leaky_relu(z["x"], 0.2),
    "elu": lambda z: F.elu(z["x"], 0.7), "gelu": lambda z: F.gelu(z["x"]),
    "gelu_tanh": lambda z: F.gelu(z["x"], approximate="tanh"), "sigmoid": lambda z: torch.sigmoid(z["x"] * 6),
    "silu": lambda z: F.silu(z["x"]), "softplus": lambda z: F.softplus(z["x"]),
    "softsign": lambda z: F.softsign(z["x"]), "hardtanh": lambda z: F.hardtanh(z["x"]),
    "hardsigmoid": lambda z: F.hardsigmoid(z["x"]), "hardswish": lambda z: F.hardswish(z["x"]),
    "threshold": lambda z: F.threshold(z["x"], 0.2, 0.0), "prelu": _layer_of("prelu", "s"),
    "mish": lambda z: F.mish(z["x"]),
    "int_add": lambda z: z["n"] + z["d"], "int_mul": lambda z: z["n"] * z["d"],
    "int_floor": lambda z: torch.div(z["n"], z["d"], rounding_mode="floor"),
    "int_mod": lambda z: torch.remainder(z["n"], z["d"]), "int_max": lambda z: torch.maximum(z["n"], z["d"]),
    "float_to_int": lambda z: (z["x"] * 3).int(), "int_to_float": lambda z: z["n"].float() / 4,
    "int_abs": lambda z: z["n"].abs(),
}
REDUCTION: dict[str, Case] = {
    "sum": lambda z: z["x"].sum(-1), "sum_all": lambda z: z["x"].sum(), "sum_dims": lambda z: z["x"].sum((0, 2)),
    "mean": lambda z: z["x"].mean(1), "mean_keep": lambda z: z["x"].mean(-1, keepdim=True),
    "amax": lambda z: z["x"].amax(-1), "amin": lambda z: z["x"].amin(1), 
    "max_dim": lambda z: z["y"].max(1)[0], "max_at": lambda z: z["x"].max(-1)[1],
    "argmax": lambda z: z["x"].argmax(-1), "argmin": lambda z: z["x"].argmin(1), "std": lambda z: z["x"].std(-1),
    "var": lambda z: z["x"].var(-1, unbiased=False), "norm": lambda z: z["x"].norm(dim=-1),
    "norm1": lambda z: z["x"].norm(p=1, dim=-1), "logsumexp": lambda z: torch.logsumexp(z["x"], -1),
    "softmax": lambda z: torch.softmax(z["x"], -1), "softmax_mid": lambda z: torch.softmax(z["x"] * 9, 1),
    "log_softmax": lambda z: torch.log_softmax(z["x"], -1), "cumsum": lambda z: z["x"].cumsum(1),
    "cumsum_last": lambda z: z["x"].cumsum(-1), "sort": lambda z: z["x"].sort(-1)[0],
    "sort_at": lambda z: z["x"].sort(-1, descending=True)[1], "argsort": lambda z: z["x"].argsort(-1),
    "topk": lambda z: z["x"].topk(3, dim=-1)[0], "topk_at": lambda z: z["x"].topk(3, dim=-1)[1],
    "topk_low": lambda z: z["x"].topk(2, dim=1, largest=False)[0], "layer_norm": _layer_of("layer_norm", "x"),
    "layer_norm_plain": _layer_of("no_affine", "x"), "layer_norm_two": _layer_of("two_dims", "x"),
    "batch_norm": _layer_of("batch_norm", "s"), "batch_norm2": _layer_of("batch_norm2", "m"),
    "group_norm": _layer_of("group_norm", "s"), "instance_norm": _layer_of("instance_norm", "m"),
    "normalize": lambda z: F.normalize(z["x"], dim=-1), "any": lambda z: (z["x"] > 1).any(-1).float(),
    "all": lambda z: (z["x"] > -1).all(-1).float(), "count": lambda z: (z["x"] > 0).sum(-1),
    "rms": lambda z: _rms(z["x"]),
}
SHAPE: dict[str, Case] = {
    "reshape": lambda z: z["x"].reshape(6, 8), "view_minus": lambda z: z["x"].view(2, -1), "t": lambda z: z["a"].t(),
    "permute": lambda z: z["x"].permute(2, 0, 1), "transpose": lambda z: z["x"].transpose(1, 2),
    "flatten": lambda z: z["m"].flatten(1), "unflatten": lambda z: z["x"].unflatten(-1, (2, 4)),
    "squeeze": lambda z: z["m"].squeeze(0), "unsqueeze": lambda z: z["x"].unsqueeze(1),
    "expand": lambda z: z["r"].expand(2, 3, 8) + 0, "repeat": lambda z: z["a"].repeat(2, 3),
    "repeat_interleave": lambda z: z["q"].repeat_interleave(2, dim=1), "cat": lambda z: torch.cat([z["x"], z["y"]], 1),
    "stack": lambda z: torch.stack([z["x"], z["y"]], 2), "chunk": lambda z: z["x"].chunk(2, -1)[1],
    "split": lambda z: z["x"].split([3, 5], -1)[1], "unbind": lambda z: z["x"].unbind(1)[2],
    "narrow": lambda z: z["x"].narrow(-1, 2, 3), "select": lambda z: z["x"].select(1, -1),
    "slice": lambda z: z["x"][:, 1:, 2:7], "slice_step": lambda z: z["x"][..., ::3],
    "slice_negative": lambda z: z["x"][:, -2:, :-3], "slice_index": lambda z: z["x"][1, :, 3],
    "flip": lambda z: z["x"].flip(-1), "roll": lambda z: z["x"].roll(3, -1), "pad": lambda z: F.pad(z["x"], (1, 2)),
    "pad_two": lambda z: F.pad(z["m"], (1, 2, 3, 0), value=0.5),
    "pad_reflect": lambda z: F.pad(z["m"], (2, 1, 1, 2), mode="reflect"),
    "pad_replicate": lambda z: F.pad(z["m"], (2, 1, 1, 2), mode="replicate"), "tril": lambda z: z["a"].tril(),
    "triu": lambda z: z["a"].triu(1), "tril_low": lambda z: z["a"].tril(-1), "diag_mask": lambda z: z["a"].triu(-2),
    "pixel_shuffle": lambda z: F.pixel_shuffle(z["m"], 2),
    "pixel_unshuffle": lambda z: F.pixel_unshuffle(z["v"][0, :1], 2),
    "one_hot": lambda z: F.one_hot(z["t"].long(), 11).float(),
    "arange": lambda z: torch.arange(2, 14, 3).float() + z["x"][0, 0, 0],
    "full_like": lambda z: torch.full_like(z["x"], 2.5) * z["x"],
    "zeros_like": lambda z: torch.zeros_like(z["x"]) + z["y"], "ones": lambda z: torch.ones(3, 8) + z["x"],
    "meshgrid": lambda z: torch.meshgrid(z["a"][0], z["a"][:, 0], indexing="ij")[1] * 2,
    "upsample": lambda z: F.interpolate(z["m"], scale_factor=2, mode="nearest"),
    
}
INDEXING: dict[str, Case] = {
    "index": lambda z: z["a"][z["i"].long()], "index_last": lambda z: z["x"][:, :, z["h"].long()],
    "index_two": lambda z: z["a"][z["h"].long(), z["h"].long() + 1],
    "index_select": lambda z: z["a"].index_select(0, z["i"].abs().long()),
    "gather": lambda z: z["x"].gather(-1, z["j"].long()), 
    "embedding": _layer_of("embed", "t"), "embedding_used": lambda z: LAYERS["embed"](z["t"])[:, 1:] * 3,
    "scatter": lambda z: z["x"].scatter(-1, z["j"].long()[..., :1], z["y"][..., :1]),
    "scatter_add": lambda z: z["x"].scatter_add(-1, z["j"].long(), z["y"][..., :5]),
    "index_put": _written, "masked": lambda z: z["x"] * (z["x"] > z["y"]),
    "bool_where": lambda z: torch.where(z["y"] > 0, torch.zeros(()), z["x"]),
    "dynamic_slice": lambda z: z["a"].index_select(1, z["e"].long()),
    "bucket": lambda z: (z["x"][..., None] > torch.tensor([-1.0, 0.0, 1.0])).sum(-1).float(),
}
PRODUCTS: dict[str, Case] = {
    "linear": _layer_of("linear", "x"), "linear_plain": _layer_of("plain", "x"), "linear_wide": _layer_of("wide", "x"),
    "matmul": lambda z: z["q"] @ z["k"].transpose(-1, -2), 
    "matmul_broadcast": lambda z: z["y"] @ LAYERS["plain"].weight.t(), "mm": lambda z: torch.mm(z["a"], z["a"].t()),
    "bmm": lambda z: torch.bmm(z["x"], z["y"].transpose(1, 2)),
    "baddbmm": lambda z: torch.baddbmm(z["x"][:, :, :3], z["x"], z["y"].transpose(1, 2), beta=0.5, alpha=2.0),
    "addmm": lambda z: torch.addmm(z["a"][:, :4], z["a"], z["a"].t()),
    "outer": lambda z: torch.outer(z["a"][0], z["a"][1]),
    "einsum": lambda z: torch.einsum("bhqd,bhkd->bhqk", z["q"], z["k"] * 2),
    "einsum_reordered": lambda z: torch.einsum("bhqd,bhkd->bqhk", z["q"], z["k"]),
    "sdpa": lambda z: F.scaled_dot_product_attention(z["q"], z["k"], z["w"]),
    "sdpa_mask": lambda z: F.scaled_dot_product_attention(z["q"], z["k"], z["w"], attn_mask=z["k"][0, 0, :5, :7] * 2),
    "sdpa_bool": lambda z: F.scaled_dot_product_attention(z["q"], z["k"], z["k"], attn_mask=z["k"][0, 0, :5, :7] < 1.5),
    
    **{name: _layer_of(name, "s") for name in ("conv1", "conv1_stride", "conv1_dilated", "conv1_depth", "conv1_one",
                                               "up1")},
    **{name: _layer_of(name, "m") for name in ("conv2", "conv2_pad", "conv2_one", "conv2_one_stride", "conv2_groups",
                                               "conv2_same", "up2", "up2_groups")},
    "conv3": _layer_of("conv3", "v"), "max_pool1": lambda z: F.max_pool1d(z["s"], 3, 2),
    "max_pool2": lambda z: F.max_pool2d(z["m"], 3, 2, padding=1),
    "max_pool2_ceil": lambda z: F.max_pool2d(z["m"], 2, 2, ceil_mode=True),
    "avg_pool1": lambda z: F.avg_pool1d(z["s"], 3, 2, padding=1), "avg_pool2": lambda z: F.avg_pool2d(z["m"], 3, 2),
    "avg_pool2_inside": lambda z: F.avg_pool2d(z["m"], 3, 2, padding=1, count_include_pad=False),
    "adaptive": lambda z: F.adaptive_avg_pool2d(z["m"], 1),
}
PROGRAMS: dict[str, Case] = {
    "rope": lambda z: _rope(z["q"], 5), "causal": lambda z: _causal(z["q"], z["k"], z["w"]),
    "shared_keys": lambda z: _causal(z["q"], z["k"][:, :1].repeat_interleave(2, 1), z["w"][:, :1].repeat(1, 2, 1, 1)),
    "mlp": lambda z: _mlp(z["x"]), "norm_mlp": lambda z: z["x"] + _mlp(_rms(z["x"])),
    "experts": lambda z: _experts(z["x"]),
    "logits": lambda z: torch.tanh(LAYERS["head"](_rms(z["x"])) / 30) * 30,
    "block": lambda z: z["q"] + _causal(_rope(_rms(z["q"]), 5), _rope(_rms(z["q"]), 5), z["q"], 5),
    "conv_block": lambda z: F.silu(LAYERS["conv2_one"](F.relu(LAYERS["conv2_same"](z["m"]))[:, :4])),
    "short_conv": lambda z: LAYERS["conv1_depth"](z["s"])[..., :12] * torch.sigmoid(z["s"]),
    "router": lambda z: torch.topk(torch.sigmoid(LAYERS["plain"](z["x"])), 2, dim=-1)[0],
    "latent": lambda z: (z["x"] @ LAYERS["plain"].weight.t()) @ LAYERS["plain"].weight,
    "cache": lambda z: torch.cat([z["k"][:, :, 2:], z["q"][:, :, :2]], 2).softmax(-1),
    "positions": lambda z: (torch.arange(5)[None] * (z["t"] > 3)).cumsum(-1),
    
}
GROUPS: dict[str, dict[str, Case]] = {
    "elementwise": ELEMENTWISE, "reduction": REDUCTION, "shape": SHAPE, "indexing": INDEXING, "products": PRODUCTS,
    "programs": PROGRAMS,
}


#: what coremltools' front end makes of an op where that is not what torch computes
DIFFERENT: dict[str, Case] = {
    # ``inverse`` of MIL adds 1e-4 by default, and the front end leaves the default.
    "reciprocal": lambda z: 1 / (z["p"] + 1e-4),
}


class Packed(nn.Module):
    """Many cases as the outputs of one module, over all inputs."""

    def __init__(self, cases: Mapping[str, Case], names: tuple[str, ...]) -> None:
        super().__init__()
        self.layers, self.cases, self.names = LAYERS, cases, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        z = dict(zip(self.names, inputs, strict=True))
        return tuple(case(z) for case in self.cases.values())
