"""The engines people would use instead, made from the same numbers: same dims, same group size, their best settings.

A peer is built once into a folder and found there again.  What cannot be measured here is said, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omnic.bench.runners import Contestant
from omnic.compiler.exporting import export_hf
from omnic.compiler.exporting_gguf import export_gguf
from omnic.errors import InputError, OmnicError, nearest
from omnic.ir.graph import Module
from omnic.ir.types import Storage
from omnic.spec import Spec
from omnic.spec.load import with_values

__all__ = ["PEERS", "PeerRequest", "Precision", "peer_names", "precision_of", "prepare"]


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


def peer_names() -> tuple[str, ...]:
    """Return the names that ``--peers`` takes."""
    return tuple(PEERS)


def prepare(name: str, request: PeerRequest) -> Contestant:
    """Build a peer, or find it built.

    Raises:
        InputError: there is no such peer, it cannot express the model, or its package is not installed.
    """
    if name not in PEERS:
        near = nearest(name, list(PEERS))
        raise InputError(f"unknown peer '{name}'", f"did you mean '{near}'?" if near else f"known: {', '.join(PEERS)}")
    return PEERS[name](request)


def _version(package: str, extra: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise InputError(f"{package} is not installed", f"pip install 'omnic[{extra}]'") from None


def _key(request: PeerRequest, *more: object) -> str:
    """Return a short hash of all that a peer is made of."""
    numbers: object = request.seed
    if request.seed is None:
        path = request.weights or request.spec.resolve("weights")
        if path is None:
            raise InputError(f"{request.spec.model} has no weights", "give --weights FILE, or --seed N")
        about = path.stat()
        numbers = [str(path.absolute()), about.st_size, about.st_mtime_ns]
    text = json.dumps([request.spec.model_dump(mode="json"), numbers, str(request.precision), request.length, *more],
                      default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _genai(request: PeerRequest) -> Contestant:
    """onnxruntime-genai: the folder that its own builder makes of our Hugging Face export."""
    package = _version("onnxruntime-genai", "bench")
    bits = request.precision.bits
    if bits not in (4, 16, 32):
        raise InputError(f"onnxruntime-genai has no {request.precision} for the CPU", "it has f32 and int4")
    out = request.folder / f"genai-{_key(request, 'genai', package)}"
    if not (out / "genai_config.json").is_file():
        source = request.folder / f"hf-{_key(request, 'hf')}"
        if not (source / "config.json").is_file():
            export_hf(request.spec, source, weights=request.weights, seed=request.seed, heads=False, force=True)
            _write_words(source, request.spec.vocab.size)
        options = ["prune_lm_head=true"]
        if bits == 4:
            options += [f"int4_block_size={request.precision.group}", "int4_accuracy_level=4"]
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out)]
        command += ["-p", "int4" if bits == 4 else "fp32", "-e", "cpu", "-c", str(request.folder / "genai-cache")]
        done = subprocess.run([*command, "--extra_options", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"
            raise InputError(f"the builder of onnxruntime-genai failed: {last}")
    path = out / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = request.threads
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    precision = str(request.precision) if bits == 4 else "f32"
    about = {"version": package, "precision": precision, "keys and values": "f32"}
    if bits == 4:
        about["accuracy level"] = "4"
    return Contestant("onnxruntime-genai", "omnic.bench.runners:open_genai",
                      {"folder": str(out.absolute()), "length": request.length}, about)


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


def _llama_cpp(request: PeerRequest) -> Contestant:
    """llama.cpp: our GGUF export in the type with the same group size."""
    package = _version("llama-cpp-python", "bench")
    types: Mapping[tuple[int, int], str] = {(32, 0): "f32", (16, 0): "f16", (8, 32): "q8_0", (4, 32): "q4_0"}
    kind = types.get((request.precision.bits, request.precision.group))
    if kind is None:
        raise InputError(f"llama.cpp has no type of {request.precision}", "its types q4_0 and q8_0 have groups of 32")
    out = request.folder / f"{_key(request, 'gguf')}.gguf"
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        export_gguf(request.spec, out, weights=request.weights, seed=request.seed, type=kind, heads=False,
                    tokenizer=False)
    return Contestant(
        "llama.cpp", "omnic.bench.runners:open_llama_cpp",
        {"file": str(out.absolute()), "length": request.length, "threads": request.threads},
        {"llama-cpp-python": package, "type": kind, "keys and values": "f16"},
    )  # fmt: skip


#: name -> how it is built
PEERS: Mapping[str, Callable[[PeerRequest], Contestant]] = {
    "onnxruntime-genai": _genai,
    "llama.cpp": _llama_cpp,
}


def prepared(names: tuple[str, ...], request: PeerRequest) -> tuple[list[Contestant], dict[str, str]]:
    """Build every peer; return those that can be measured, and why the others cannot."""
    plain = with_values(request.spec, {"passes": [], "heads": {"mtp": None, "verifier": False}}, "--peers")
    request = PeerRequest(plain, request.weights, request.seed, request.precision, request.length, request.threads,
                          request.folder)
    found: list[Contestant] = []
    absent: dict[str, str] = {}
    for name in names:
        if name not in PEERS:
            prepare(name, request)
        try:
            found.append(prepare(name, request))
        except OmnicError as error:
            absent[name] = error.message + (f" ({error.hint})" if error.hint else "")
    return found, absent
