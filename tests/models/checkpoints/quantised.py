"""Small Llama checkpoints as each method of quantisation writes them, and their numbers by the method's own formula.

Written after the published layouts, element by element, and apart from the readers they test.  Numbers are f64, in
which every product of a code and a scale is exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

__all__ = [
    "CONFIG",
    "FP4",
    "NF4",
    "LAYERS",
    "Made",
    "PRODUCTS",
    "SHAPES",
    "awq",
    "bnb_int8",
    "bnb_nf4",
    "gptq",
    "mxfp4",
    "plain",
    "torchao_int4",
    "torchao_intx",
    "write",
]

Array = NDArray[Any]
#: of one module: its tensors by the ending of their names, and the numbers of its weight [out, in]
Made = tuple[dict[str, Array], Array]
LAYERS, WIDTH, HIDDEN, VOCAB = 2, 64, 96, 101
SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}
#: omnic's names of the products of a layer
PRODUCTS = {
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.o_proj": "attn.o",
    "mlp.gate_proj": "ffn.gate",
    "mlp.up_proj": "ffn.up",
    "mlp.down_proj": "ffn.down",
}
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
NF4 = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def write(
    folder: Path,
    about: Mapping[str, Any],
    method: Callable[[np.random.Generator, int, int], Made],
    metadata: Callable[[str], dict[str, str]] | None = None,
    float_type: Any = np.float16,
    keys: Mapping[str, Any] | None = None,
) -> dict[str, Array]:
    """Write a checkpoint whose products ``method`` makes; return the numbers of every tensor of the plain model."""
    random = np.random.default_rng(7)
    tensors: dict[str, Array] = {}
    numbers: dict[str, Array] = {}
    told: dict[str, str] = {"format": "pt"}

    def put(name: str, array: Array) -> None:
        tensors[name] = array.astype(float_type)
        numbers[name] = tensors[name].astype(np.float64)

    put("model.embed_tokens.weight", random.standard_normal((VOCAB, WIDTH)))
    put("model.norm.weight", 1 + 0.1 * random.standard_normal(WIDTH))
    put("lm_head.weight", random.standard_normal((VOCAB, WIDTH)) / 8)
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            put(f"model.layers.{layer}.{norm}.weight", 1 + 0.1 * random.standard_normal(WIDTH))
        for module, (rows, columns) in SHAPES.items():
            stem = f"model.layers.{layer}.{module}"
            made, weight = method(random, rows, columns)
            tensors |= {f"{stem}.{part}": np.ascontiguousarray(array) for part, array in made.items()}
            numbers[f"{stem}.weight"] = weight
            told |= metadata(stem) if metadata else {}
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | dict(keys or {}) | {"quantization_config": dict(about)}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", told)
    return numbers


def plain(folder: Path, numbers: Mapping[str, Array]) -> Path:
    """Write the same model unquantised, in f32."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({n: np.ascontiguousarray(a, np.float32) for n, a in numbers.items()}, folder / "model.safetensors")
    return folder


def gptq(bits: int = 4, group: int = 32, sym: bool = True, v2: bool = False, act_order: bool = False):
    """Of AutoGPTQ's ``QuantLinear.pack``: words of codes down the inputs, zero points less one (v1)."""

    def make(random: np.random.Generator, rows: int, columns: int) -> Made:
        size = columns if group == -1 else group
        groups, top, per = -(-columns // size), 2**bits - 1, 32 // bits
        q = random.integers(0, top + 1, (columns, rows))
        z = np.full((groups, rows), (top + 1) // 2) if sym else random.integers(1, top + 1, (groups, rows))
        s = random.uniform(0.5, 1.5, (groups, rows)).astype(np.float16) / np.float16(top * 4)
        g_idx = np.arange(columns) // size
        if act_order:
            g_idx = g_idx[random.permutation(columns)]
        qweight = np.zeros((columns // per, rows), np.uint32)
        for i in range(columns):
            qweight[i // per] |= (q[i].astype(np.uint32)) << np.uint32(bits * (i % per))
        stored = (z - (0 if v2 else 1)).astype(np.uint32)
        qzeros = np.zeros((groups, -(-rows // per)), np.uint32)
        for o in range(rows):
            qzeros[:, o // per] |= stored[:, o] << np.uint32(bits * (o % per))
        weight = s[g_idx].astype(np.float64) * (q - z[g_idx])
        parts = {
            "qweight": qweight.view(np.int32),
            "qzeros": qzeros.view(np.int32),
            "scales": s,
            "g_idx": g_idx.astype(np.int32),
        }
        return parts, weight.T

    return make


def awq(group: int = 32):
    """Of AutoAWQ's ``WQLinear_GEMM.from_linear``: words of eight outputs in the order 0 2 4 6 1 3 5 7."""

    def make(random: np.random.Generator, rows: int, columns: int) -> Made:
        size = columns if group == -1 else group
        groups = columns // size
        q = random.integers(0, 16, (columns, rows))
        z = random.integers(0, 16, (groups, rows))
        s = random.uniform(0.5, 1.5, (groups, rows)).astype(np.float16) / np.float16(60)

        def pack(codes: Array) -> Array:
            packed = np.zeros((codes.shape[0], rows // 8), np.uint32)
            for column in range(rows // 8):
                for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                    packed[:, column] |= codes[:, column * 8 + output].astype(np.uint32) << np.uint32(4 * place)
            return packed.view(np.int32)

        of = np.arange(columns) // size
        return {"qweight": pack(q), "qzeros": pack(z), "scales": s}, (s[of].astype(np.float64) * (q - z[of])).T

    return make


def bnb_nf4(block: int = 64, double: bool = False, storage: Any = np.uint8):
    """Of bitsandbytes' ``QuantState.as_dict(packed=True)`` and ``quantize_4bit``: the first of two codes lies high."""

    def make(random: np.random.Generator, rows: int, columns: int) -> Made:
        q = random.integers(0, 16, rows * columns)
        blocks = -(-q.size // block)
        absmax = random.uniform(0.05, 0.3, blocks).astype(np.float32)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "float16", "shape": [rows, columns]}
        parts: dict[str, Array] = {"weight": (q[0::2] << 4 | q[1::2]).astype(np.uint8).view(storage)[:, None]}
        if double:
            levels = np.sort(random.uniform(-1, 1, 256)).astype(np.float32)
            outer = random.uniform(0.05, 0.1, -(-blocks // 4)).astype(np.float32)
            codes, offset = random.integers(0, 256, blocks).astype(np.uint8), 0.17262325
            state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": offset}
            parts |= {"weight.absmax": codes, "weight.nested_absmax": outer, "weight.nested_quant_map": levels}
            absmax = levels[codes] * outer[np.arange(blocks) // 4] + np.float32(offset)
        else:
            parts["weight.absmax"] = absmax
        parts["weight.quant_map"] = np.array(NF4, np.float32)
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        parts["weight.quant_state.bitsandbytes__nf4"] = text
        numbers = np.array(NF4, np.float32)[q].astype(np.float64) * absmax[np.arange(q.size) // block]
        return parts, numbers.reshape(rows, columns)

    return make


def bnb_int8(random: np.random.Generator, rows: int, columns: int) -> Made:
    """Of bitsandbytes' ``Linear8bitLt``: rows of i8 and the largest magnitude of each."""
    q = random.integers(-127, 128, (rows, columns)).astype(np.int8)
    scb = random.uniform(0.1, 0.4, rows).astype(np.float32)
    parts = {"weight": q, "SCB": scb, "weight_format": np.array(0, np.uint8)}
    return parts, q * (scb / np.float32(127)).astype(np.float64)[:, None]


def mxfp4(random: np.random.Generator, shape: tuple[int, ...]) -> Made:
    """Of gpt-oss: blocks of 16 bytes, the first of two numbers in the low bits; exponents plus 127."""
    q = random.integers(0, 16, shape)
    blocks = (q[..., 0::2] | q[..., 1::2] << 4).astype(np.uint8).reshape(*shape[:-1], shape[-1] // 32, 16)
    scales = random.integers(118, 126, blocks.shape[:-1]).astype(np.uint8)
    numbers = np.array(FP4)[q] * np.repeat(2.0 ** (scales.astype(np.float64) - 127), 32, axis=-1)
    return {"_blocks": blocks, "_scales": scales}, numbers


def torchao_int4(random: np.random.Generator, rows: int, columns: int) -> Made:
    """Of torchao's ``Int4Tensor``: signed codes, the first of two in the low bits; offsets in floating point."""
    q = random.integers(-8, 8, (rows, columns))
    s = (random.uniform(0.5, 1.5, (columns // 32, rows)) / 60).astype(ml_dtypes.bfloat16)
    z = (random.uniform(-1, 1, (columns // 32, rows)) / 20).astype(ml_dtypes.bfloat16)
    packed = ((q[:, 0::2] & 15) | (q[:, 1::2] & 15) << 4).astype(np.uint8)
    of = np.arange(columns) // 32
    numbers = q * s.astype(np.float64)[of].T + z.astype(np.float64)[of].T
    return {"_weight_qdata": packed, "_weight_scale": s, "_weight_zero_point": z}, numbers


def torchao_intx(bits: int = 4, asym: bool = False):
    """Of torchao's ``IntxUnpackedToInt8Tensor`` (8 bits: ``Int8Tensor``): each code in a byte."""

    def make(random: np.random.Generator, rows: int, columns: int) -> Made:
        half = 2 ** (bits - 1)
        q = random.integers(-half, half, (rows, columns)).astype(np.int8)
        s = (random.uniform(0.5, 1.5, (rows, columns // 32)) / (8 * half)).astype(ml_dtypes.bfloat16)
        z = random.integers(-half, half, s.shape).astype(np.int8) if asym else np.zeros(s.shape, np.int8)
        of = np.arange(columns) // 32
        numbers = s.astype(np.float64)[:, of] * (q.astype(np.float64) - z[:, of])
        return {"_weight_qdata": q, "_weight_scale": s, "_weight_zero_point": z}, numbers

    return make
