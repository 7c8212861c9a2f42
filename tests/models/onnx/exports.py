"""Small random decoders as foreign tools export them: files to import and to fuse.

`exported(name, exporter, folder)` writes `name` with torch's tracing ("trace") or dynamo ("dynamo") exporter and
keeps the file in `folder` (the pytest cache), so that an export is paid once.  Each model is random but for its
shape; norms are random too, so that no two weights are equal by accident.

    python -m tests.models.onnx.exports FOLDER [NAME ...]      # write them by hand
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models.onnx import modules

EXPORTERS = ("trace", "dynamo")
VOCAB = 97


@dataclass(frozen=True)
class Exportable:
    """A module and how to call it: inputs by name with their symbolic dims, outputs by name."""

    module: Any
    arguments: dict[str, tuple[Any, dict[int, str]]]
    outputs: tuple[str, ...]


# -- transformers, eager attention, its own cache --------------------------------------------------------------
COMMON = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "attn_implementation": "eager",
}  # fmt: skip


def _transformers(name: str) -> Any:
    """Return a random transformers model."""
    import transformers as t

    moe = {"experts_implementation": "batched_mm"}
    made: dict[str, Callable[[], tuple[type[Any], Any]]] = {
        "llama": lambda: (t.LlamaForCausalLM, t.LlamaConfig(**COMMON)),
        "llama_tied": lambda: (t.LlamaForCausalLM, t.LlamaConfig(**COMMON, tie_word_embeddings=True)),
        "llama3_rope": lambda: (
            t.LlamaForCausalLM,
            t.LlamaConfig(
                **COMMON,
                rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
            ),
        ),
        "qwen2": lambda: (t.Qwen2ForCausalLM, t.Qwen2Config(**COMMON)),
        "qwen3": lambda: (t.Qwen3ForCausalLM, t.Qwen3Config(**COMMON, head_dim=16)),
        "gemma2": lambda: (
            t.Gemma2ForCausalLM,
            t.Gemma2Config(**COMMON, head_dim=16, sliding_window=4, query_pre_attn_scalar=20,
                           final_logit_softcapping=30.0, attn_logit_softcapping=50.0,
                           layer_types=["sliding_attention", "full_attention"]),
        ),
        "gpt2": lambda: (
            t.GPT2LMHeadModel,
            t.GPT2Config(vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=64, attn_implementation="eager"),
        ),
        "gpt_neox": lambda: (
            t.GPTNeoXForCausalLM,
            t.GPTNeoXConfig(**{k: v for k, v in COMMON.items() if k != "num_key_value_heads"}),
        ),
        "mistral": lambda: (t.MistralForCausalLM, t.MistralConfig(**COMMON, sliding_window=4)),
        "mixtral": lambda: (
            t.MixtralForCausalLM,
            t.MixtralConfig(**COMMON, **moe, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
        ),
        "qwen3_moe": lambda: (
            t.Qwen3MoeForCausalLM,
            t.Qwen3MoeConfig(**COMMON, **moe, head_dim=16, num_experts=6, num_experts_per_tok=2,
                             moe_intermediate_size=32, norm_topk_prob=True),
        ),
        "gpt_oss": lambda: (
            t.GptOssForCausalLM,
            t.GptOssConfig(
                **COMMON, **moe, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=4,
                layer_types=["sliding_attention", "full_attention"],
                rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0,
                                 "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 32},
            ),
        ),
        "deepseek": lambda: (
            t.DeepseekV3ForCausalLM,
            t.DeepseekV3Config(**{**COMMON, "num_key_value_heads": 4}, **moe, q_lora_rank=24, kv_lora_rank=16,
                               qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=12, first_k_dense_replace=2,
                               n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1),
        ),
        "deepseek_moe": lambda: (
            t.DeepseekV3ForCausalLM,
            t.DeepseekV3Config(**{**COMMON, "num_key_value_heads": 4}, **moe, q_lora_rank=24, kv_lora_rank=16,
                               qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=12, first_k_dense_replace=1,
                               moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_group=2,
                               topk_group=1, n_shared_experts=1),
        ),
    }  # fmt: skip
    cls, config = made[name]()
    return cls(config).eval()


TRANSFORMERS = ("llama", "llama_tied", "llama3_rope", "qwen2", "qwen3", "gemma2", "gpt2", "gpt_neox", "mistral",
                "mixtral", "qwen3_moe", "gpt_oss", "deepseek", "deepseek_moe")  # fmt: skip


def _cached_transformers(name: str) -> Exportable:
    import torch
    from transformers import DynamicCache

    model = _transformers(name)
    randomise(model)
    config = model.config

    class Cached(torch.nn.Module):
        """input_ids, attention_mask, position_ids and flat past keys and values in; logits and presents out."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> Any:
            cache = DynamicCache()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            out = self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                             past_key_values=cache, use_cache=True)
            return (out.logits, *(t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)))

    layers = config.num_hidden_layers
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or size
    widths = (size, size)
    if "deepseek" in name:
        heads, widths = 1, (config.kv_lora_rank, config.qk_rope_head_dim)
    batch, tokens, past = 2, 5, 3
    arguments: dict[str, tuple[Any, dict[int, str]]] = {
        "input_ids": (torch.randint(0, VOCAB, (batch, tokens)), {0: "batch", 1: "tokens"}),
        "attention_mask": (torch.ones(batch, past + tokens, dtype=torch.long), {0: "batch", 1: "total"}),
        "position_ids": (torch.arange(past, past + tokens)[None].expand(batch, tokens).contiguous(),
                         {0: "batch", 1: "tokens"}),
    }  # fmt: skip
    outputs = ["logits"]
    for layer in range(layers):
        for what, width in zip(("key", "value"), widths, strict=True):
            arguments[f"past_key_values.{layer}.{what}"] = (
                torch.randn(batch, heads, past, width), {0: "batch", 2: "past"})  # fmt: skip
            outputs.append(f"present.{layer}.{what}")
    return Exportable(Cached().eval(), arguments, tuple(outputs))


def randomise(model: Any) -> None:
    """Give every parameter, norms and biases included, random numbers of a sensible size."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            else:
                width = parameter.shape[-1]
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)


def _plain(name: str) -> Exportable:
    """A hand-written torch module of `modules.py`."""
    import torch

    torch.manual_seed(0)
    model, arguments, outputs = modules.MODULES[name](VOCAB)
    randomise(model)
    return Exportable(model.eval(), arguments, outputs)


NAMES = (*TRANSFORMERS, *modules.NAMES)


def exportable(name: str) -> Exportable:
    """Return the model called `name`, ready to be exported."""
    import torch

    torch.manual_seed(0)
    return _cached_transformers(name) if name in TRANSFORMERS else _plain(name)


def exported(name: str, exporter: str, folder: Path) -> Path:
    """Return the .onnx file of a model as one exporter writes it, made on first use."""
    target = folder / f"{name}-{exporter}-{_key()}.onnx"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{os.getpid()}-{target.name}"
    with _quiet():
        _export(exportable(name), exporter, partial)
    os.replace(partial, target)
    return target


def _export(model: Exportable, exporter: str, path: Path) -> None:
    import torch

    values = tuple(value for value, _ in model.arguments.values())
    names = list(model.arguments)
    if exporter == "trace":
        axes = {name: dims for name, (_, dims) in model.arguments.items()}
        torch.onnx.export(model.module, values, str(path), dynamo=False, input_names=names,
                          output_names=list(model.outputs), dynamic_axes=axes, opset_version=17)  # fmt: skip
        return
    dynamic = [dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for _, dims in model.arguments.values()]
    fixed = [n for n in names if not n.startswith("past")]
    past = (tuple(dynamic[len(fixed) :]),) if len(names) > len(fixed) else ()
    shapes: tuple[Any, ...] = (*dynamic[: len(fixed)], *past)
    torch.onnx.export(model.module, values, str(path), dynamo=True, input_names=names, output_names=list(model.outputs),
                      dynamic_shapes=shapes, external_data=False, verbose=False)  # fmt: skip


def _key() -> str:
    import torch
    import transformers

    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for source in (__file__, modules.__file__):
        digest.update(Path(str(source)).read_bytes())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' chatter out of the test output."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


if __name__ == "__main__":
    for wanted in sys.argv[2:] or NAMES:
        for tool in EXPORTERS:
            print(exported(wanted, tool, Path(sys.argv[1])), flush=True)
