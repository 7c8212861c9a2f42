"""A small numpy session with a real (tiny) state: what it says depends on every token a row holds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from omnic.runtime.bundle import Bundle
from omnic.runtime.bundle_write import BundleWriter
from omnic.runtime.files import Filesystem
from omnic.runtime.manifest import Executable, Manifest, SpecText, TokenizerEntry
from omnic.runtime.session import EXECUTABLES, Call, Outputs, Session, SessionBase, SessionInfo
from omnic.runtime.tokenizer import Tokenizer

INFO = SessionInfo(kind="fake", vocab=264, capacity=96, chunk=16, max_batch=8)
WINDOW = 24


class FakeSession(SessionBase):
    """Logits are a fixed random function of the decayed sum of the embeddings of the last 24 tokens.

    The state is the committed tokens in a linear or a ring buffer, so a wrong start, length, slot or
    rollback changes the logits.
    """

    def __init__(self, info: SessionInfo = INFO) -> None:
        super().__init__(info)
        rng = np.random.default_rng(1)
        self.embed = rng.standard_normal((info.vocab, 24))
        self.head = rng.standard_normal((24, info.vocab))
        self.slots = info.ring or info.capacity
        self.calls: list[tuple[int, int, int]] = []  # B, T, R of every call
        self.fail_after = -1
        self._reset(1)

    def _reset(self, batch: int) -> None:
        self.cache = np.full((batch, self.slots), -1, np.int64)

    def _run(self, call: Call) -> Outputs:
        self.calls.append((*call.tokens.shape, call.rows.shape[1]))
        logits = np.full((*call.rows.shape, self.info.vocab), np.nan, np.float32)
        for b, length in enumerate(call.length):
            index = call.start[b] + np.arange(length)
            self.cache[b, index % self.slots] = call.tokens[b, :length]
            for r, t in enumerate(call.rows[b]):
                if t < length:
                    logits[b, r] = self._after(b, int(call.start[b] + t) + 1)
        return Outputs(logits)

    def _after(self, row: int, count: int) -> np.ndarray:
        index = np.arange(max(0, count - WINDOW), count)
        mixed = (self.embed[self.cache[row, index % self.slots]] * (0.7 ** (count - 1 - index))[:, None]).sum(0)
        return np.tanh(mixed + 0.1 * np.sin(count)) @ self.head

    def _fork(self) -> FakeSession:
        other = FakeSession(self.info)
        other.cache = self.cache.copy()
        return other

    def state_bytes(self) -> int:
        return self.cache.nbytes


@pytest.fixture
def fake() -> Callable[..., FakeSession]:
    """Return a maker of fake sessions whose info differs from ``INFO`` in the given fields."""

    def make(**changes: Any) -> FakeSession:
        session = FakeSession(replace(INFO, **changes))
        assert isinstance(session, Session)
        return session

    return make


@pytest.fixture
def plain_greedy() -> Callable[[FakeSession, list[int], int], list[int]]:
    """Return the greedy answer computed from scratch for every token."""

    def answer(session: FakeSession, prompt: list[int], count: int) -> list[int]:
        ids = list(prompt)
        for _ in range(count):
            session.reset(1)
            for token in ids:
                logits = session.forward([token]).logits[0, -1]
            ids.append(int(logits.argmax()))
        session.reset(1)
        return ids[len(prompt) :]

    return answer


SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|mask|>")


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """A tokenizer of 8 special tokens and the 256 bytes: id = 8 + rank of the byte in the byte-level alphabet."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in enumerate((*SPECIALS, *alphabet))}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.add_special_tokens(list(SPECIALS))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend.to_str())


@pytest.fixture
def fake_bundle(tmp_path, monkeypatch, byte_tokenizer):
    """Return a maker of bundles that run on the fake session; ``tokenizer=False`` leaves the tokenizer out."""
    backend = ModuleType("omnic_fake_backend")
    vars(backend)["load"] = lambda bundle, _: FakeSession(replace(INFO, **bundle.manifest.executable.options))
    monkeypatch.setitem(sys.modules, "omnic_fake_backend", backend)
    monkeypatch.setitem(EXECUTABLES, "fake", "omnic_fake_backend:load")

    def make(name: str = "bundle", tokenizer: bool = True, extra: dict[str, str] | None = None, **options: Any) -> Path:
        with BundleWriter(tmp_path / name) as writer:
            writer.data("program", b"fake")
            files = []
            if tokenizer:
                byte_tokenizer.save(writer.path("tokenizer/tokenizer.json"))
                files = ["tokenizer/tokenizer.json"]
            for file, text in (extra or {}).items():
                writer.text(file, text)
            writer.commit(
                Manifest(
                    omnic="0.1.0",
                    model="fake",
                    target="fake",
                    spec=SpecText(file="fake.yaml", text=""),
                    executable=Executable(kind="fake", entry="program", options=options),
                    tokenizer=TokenizerEntry(files=tuple(files), vocab=264) if files else None,
                )
            )
        return tmp_path / name

    return make


@pytest.fixture
def manifest() -> Manifest:
    """The manifest of the bundles that ``write`` writes."""
    return Manifest(
        omnic="0.1.0",
        model="tiny",
        target="onnx",
        spec=SpecText(file="tiny.yaml", text="omnic: 1\n"),
        executable=Executable(kind="onnx", entry="model.onnx"),
        tokenizer=TokenizerEntry(files=("tokenizer/tokenizer.json",), vocab=8),
    )


@pytest.fixture
def write(manifest: Manifest) -> Callable[..., Bundle]:
    """Return a writer of small bundles: ``write(out, payload, fs=..., force=..., key=...)``."""

    def make(out: Path, payload: bytes = b"weights", fs: Filesystem | None = None, **options: Any) -> Bundle:
        with BundleWriter(out, fs=fs, **options) as writer:
            writer.data("model.onnx", b"program")
            writer.text("module.ir", "module @tiny {}\n")
            writer.json("tokenizer/tokenizer.json", {"a": 1})
            with writer.stream("weights.bin") as file:
                for at in range(0, len(payload), 3):
                    file.write(payload[at : at + 3])
            return writer.commit(manifest)

    return make


@pytest.fixture
def leftovers() -> Callable[[Path], list[str]]:
    """Return what lists the names in a folder."""
    return lambda folder: sorted(path.name for path in folder.iterdir())
