"""What a peer is built from, and what several of them are built of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omnic.compiler.exporting import export_hf
from omnic.errors import InputError
from omnic.ir.graph import Module
from omnic.ir.types import Storage
from omnic.spec import Spec

__all__ = ["PeerRequest", "Precision", "huggingface_folder", "installed", "key_of", "precision_of",
           "source_of"]


@dataclass(frozen=True)
class Precision:
    """How the matrices of a model are stored.

    Attributes:
        bits: 32, 16, 8 or 4.
        group: numbers that share a scale; 0 for plain types.
    """

    bits: int
    group: int = 0

    def __str__(self) -> str:
        return f"int{self.bits} in groups of {self.group}" if self.group else f"f{self.bits}"


@dataclass(frozen=True)
class PeerRequest:
    """What a peer is built from.

    Attributes:
        spec: the model, lossy passes left out.
        weights: file of its numbers; None: what the spec names.
        seed: random numbers instead.
        precision: of its matrices.
        length: tokens a row must hold.
        threads: of the peer.
        folder: where it is built.
    """

    spec: Spec
    weights: Path | None
    seed: int | None
    precision: Precision
    length: int
    threads: int
    folder: Path


def precision_of(module: Module) -> Precision:
    """Return how most of the bytes of a module's matrices are stored.

    Raises:
        InputError: in a type that no peer has.
    """
    totals: dict[Precision, int] = {}
    for weight in module.weights.values():
        element = weight.type.element
        if isinstance(element, Storage):
            size = weight.type.shape[element.axis]
            assert isinstance(size, int)
            kind = Precision(element.bits, element.group or size)
        else:
            kind = Precision(element.bits)
        totals[kind] = totals.get(kind, 0) + weight.type.bytes()
    return max(totals, key=lambda kind: totals[kind])


def installed(package: str, extra: str) -> str:
    """Return the version of a package.

    Raises:
        InputError: it is not there.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        raise InputError(f"{package} is not installed", f"pip install 'omnic[{extra}]'") from None


def source_of(request: PeerRequest) -> Path:
    """Return the file of the numbers.

    Raises:
        InputError: there is none.
    """
    path = request.weights or request.spec.resolve("weights")
    if path is None:
        raise InputError(f"{request.spec.model} has no weights", "give --weights FILE, or --seed N")
    return path


def key_of(request: PeerRequest, *more: object) -> str:
    """Return a short hash of all that a peer is made of."""
    numbers: object = request.seed
    if request.seed is None:
        path = source_of(request)
        about = path.stat()
        numbers = [str(path.absolute()), about.st_size, about.st_mtime_ns]
    text = json.dumps([request.spec.model_dump(mode="json"), numbers, str(request.precision), request.length, *more],
                      default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def huggingface_folder(request: PeerRequest) -> Path:
    """Return our Hugging Face export of the model, made where it is not there yet; numbers in f32."""
    source = request.folder / f"hf-{key_of(request, 'hf')}"
    if not (source / "config.json").is_file():
        export_hf(request.spec, source, weights=request.weights, seed=request.seed, heads=False, force=True)
        _write_words(source, request.spec.vocab.size)
    return source


def _write_words(folder: Path, vocab: int) -> None:
    """Write a tokenizer of numbered words where the export has none: the builder wants one and nothing reads it."""
    if (folder / "tokenizer.json").is_file():
        return
    words = {f"w{i}": i for i in range(vocab)}
    body = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": None, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}}
    (folder / "tokenizer.json").write_text(json.dumps(body), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", "bos_token": "w1", "eos_token": "w2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
