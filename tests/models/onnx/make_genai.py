"""Write the decoders of `data/` that the model builder of onnxruntime-genai makes: its fused graph, in float.

    pip install 'omnic[bench]'
    python -m tests.models.onnx.make_genai

The builder wants a folder as transformers saves it, tokenizer included; a list of words is enough.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).parent / "data"
VOCAB = 61
SMALL = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


def folder_of(name: str, folder: Path) -> None:
    """Save a random model and a tokenizer of words in `folder`."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tests.models.onnx.exports import randomise

    torch.manual_seed(0)
    if name == "genai_llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, bos_token_id=1, eos_token_id=2))
    else:
        model = transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**SMALL, head_dim=16, sliding_window=4, query_pre_attn_scalar=20, bos_token_id=1,
                                      eos_token_id=2, layer_types=["sliding_attention", "full_attention"])
        )  # fmt: skip
    randomise(model)
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", bos_token="w1",
                                         eos_token="w2").save_pretrained(folder)  # fmt: skip


def make(name: str) -> Path:
    """Build one model and save it as a single file."""
    import subprocess

    import onnx

    target = DATA / f"{name}.onnx"
    with tempfile.TemporaryDirectory() as work:
        source, out, cache = (Path(work) / part for part in ("hf", "out", "cache"))
        for folder in (source, out, cache):
            folder.mkdir()
        folder_of(name, source)
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        subprocess.run([*builder, "-i", str(source), "-o", str(out), "-p", "fp32", "-e", "cpu", "-c", str(cache)],
                       check=True, stdout=subprocess.DEVNULL)
        DATA.mkdir(exist_ok=True)
        onnx.save(onnx.load(str(out / "model.onnx")), str(target))
    return target


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ("genai_llama", "genai_gemma2"):
        path = make(wanted)
        print(path, path.stat().st_size)
