"""Small tokenizers of the kinds that real models have, trained on the spot, as folders that transformers reads."""

from __future__ import annotations

import functools
import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = (
    "", " ", "  two  spaces ", "\ttab\n\nnew lines\r\n", "The quick brown fox, it's 12345 3.14!", "don't 'Tis we'LL",
    "Größe Ärger straße naïve café", "e\u0301 composed \u00e9", "漢字かな交じり文、全角ＡＢＣ", "안녕하세요 세계",
    "Привет, мир",
    "שלום עולם", "مرحبا بالعالم ١٢٣", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Γειά σου Κόσμε", "\U000103a0 \U0001d54f ⅷ ﬁ ½",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪", "\x00\x01\x07\x1b[31m\x7f\x80\x9f", "\ufeffbom \u200bzero\u200d\u00a0nbsp\u3000wide",
    "\u2581low \u2581\u2581 line", "Ġ Ċ ĉ byte letters", "<0x0A> <0xFF> names of bytes", "a" * 300, "==>>::->//**", "�",
    "<s>a</s> <s> <|x|><|y|> b <unk>", "x <|strip|> y<|strip|>z", "word wordy sword word", "  <|left|>  <|right|>  end",
    "<think>plain</think> <think>", "\u0130\u0131 ǅ", "\U0010ffff \ufffe",
)  # fmt: skip
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
         r"\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ("<unk>", "<s>", "</s>", "<|x|>", "<|y|>")
SIZE = 700


def library(limit: int) -> list[str]:
    """Return texts of the standard library, about ``limit`` characters in all, the same on every run of one Python."""
    texts: list[str] = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        texts.append(file.read_text("utf-8"))
        limit -= len(texts[-1])
        if limit < 0:
            break
    return texts


CORPUS = [text[:20000] for text in library(300_000)] + list(LINES) * 4


def flags(text: str, **given: Any) -> AddedToken:
    return AddedToken(text, **given)


# Tokens with every flag; the last two are no special tokens.
ADDED = [
    flags("<|strip|>", lstrip=True, rstrip=True, special=True),
    flags("<|left|>", lstrip=True, special=True),
    flags("<|right|>", rstrip=True, special=True),
    flags("word", single_word=True, normalized=False),
    flags("<think>", normalized=False),
]


def byte_level(prefix_space: bool = False) -> Tokenizer:
    """GPT-2, StarCoder2, OLMo2: a byte-level BPE split by the built-in pattern."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=SIZE, special_tokens=list(SPECIAL),
                                                         initial_alphabet=alphabet, show_progress=False))
    made.add_tokens(ADDED)
    return made


def split_byte_level(normal: bool) -> Tokenizer:
    """Llama 3 (which puts a first token) and Qwen (which composes characters): a byte-level BPE with a pattern."""
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    if normal:
        made.normalizer = normalizers.NFC()
    else:
        template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 1)])
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return made


def pieces(kind: str) -> Tokenizer:
    """Llama 2, Gemma and later Mistral: a BPE of SentencePiece with bytes for characters it lacks."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS[:-40], trainers.BpeTrainer(vocab_size=500, show_progress=False, min_frequency=9,
                                                                  limit_alphabet=90))
    model = json.loads(trained.to_str())["model"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(
        [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]))}
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    strip = [decoders.Strip(" ", 1, 0)] if kind != "gemma" else []
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    if kind == "llama":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    elif kind == "gemma":
        made.normalizer = normalizers.Replace(" ", "\u2581")
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.add_special_tokens(list(SPECIAL))
    made.add_tokens(ADDED)
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)])
    made.post_processor = template
    return made


def unigram() -> Tokenizer:
    """A Unigram of SentencePiece (XGLM, Nemotron, T5's kind), which ends its texts."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=SIZE, unk_token="<unk>", show_progress=False,
                                                             special_tokens=list(SPECIAL)))
    made.add_tokens(ADDED)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B:1 </s>",
                                                        special_tokens=[("</s>", 2)])
    return made


_MAKERS = {
    "gpt2": byte_level,
    "prefix space": lambda: byte_level(prefix_space=True),
    "llama3": lambda: split_byte_level(normal=False),
    "qwen": lambda: split_byte_level(normal=True),
    "llama2": lambda: pieces("llama"),
    "gemma": lambda: pieces("gemma"),
    "mistral": lambda: pieces("mistral"),
    "unigram": unigram,
}


@functools.cache
def _text(kind: str) -> str:
    return _MAKERS[kind]().to_str()


#: kind -> a function that returns a new tokenizer of it; each is trained once a run
ZOO: dict[str, Callable[[], Tokenizer]] = {
    kind: functools.partial(lambda kind: Tokenizer.from_str(_text(kind)), kind) for kind in _MAKERS
}


def write(kind: str, folder: Path, **config: Any) -> PreTrainedTokenizerFast:
    """Write a tokenizer of the zoo as a model folder and return transformers' reading of it."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=ZOO[kind](), **named).save_pretrained(folder)
    return reread(folder, **config)


def reread(folder: Path, **config: Any) -> PreTrainedTokenizerFast:
    """Put keys into a folder's tokenizer_config.json (None removes one) and return transformers' reading of it."""
    file = folder / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return PreTrainedTokenizerFast.from_pretrained(folder)
