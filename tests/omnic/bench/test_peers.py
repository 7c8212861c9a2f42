"""What a peer is built from, and why one cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnic.bench.peers import PEERS, PeerRequest, Precision, executorch, genai, llama_cpp, peer_names, prepared
from omnic.bench.runners import find_opener
from omnic.errors import InputError
from omnic.spec import Spec, load_spec, parse_spec

SPEC = """omnic: 1
model: small
vocab: {size: 64}
context: 64
blocks:
  - repeat: 1
    width: 64
    attention: {kind: gqa, heads: 2, kv_heads: 1, head_dim: 32}
    ffn: {kind: dense, hidden: 64, activation: swiglu}
"""


def request(folder: Path, spec: Spec | None = None, bits: int = 4, group: int = 32) -> PeerRequest:
    precision = Precision(bits, group)
    return PeerRequest(spec or parse_spec(SPEC, "small.yaml"), None, 1, precision, 64, 1, folder)


def test_every_peer_has_a_name_for_the_command_line() -> None:
    assert peer_names() == ("onnxruntime-genai", "llama.cpp", "executorch", "transformers") and set(PEERS) == set(
        peer_names())


@pytest.mark.parametrize(
    ("name", "precision", "reason"),
    [
        ("onnxruntime-genai", Precision(8, 32), "onnxruntime-genai has no int8 in groups of 32"),
        ("llama.cpp", Precision(4, 64), "llama.cpp has no type of int4 in groups of 64"),
        ("executorch", Precision(16), "ExecuTorch's export of Llama has no f16"),
    ],
)
def test_a_precision_it_lacks_is_the_reason(
    name: str, precision: Precision, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for peer in (genai, llama_cpp, executorch):
        monkeypatch.setattr(peer, "installed", lambda package, extra: "1.0")
    found, absent = prepared((name,), request(tmp_path, None, precision.bits, precision.group))
    assert not found and absent[name].startswith(reason)


def test_a_package_that_is_not_installed_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str, extra: str) -> str:
        raise InputError(f"{package} is not installed", f"pip install 'omnic[{extra}]'")

    monkeypatch.setattr(executorch, "installed", missing)
    _, absent = prepared(("executorch",), request(tmp_path))
    assert absent == {"executorch": "executorch is not installed (pip install 'omnic[executorch]')"}


def test_a_model_that_is_no_llama_is_not_exported(tmp_path: Path) -> None:
    _, absent = prepared(("executorch",), request(tmp_path, load_spec("tiny_moe")))
    assert absent["executorch"].startswith("ExecuTorch's Llama cannot express tiny_moe")


def test_openers_are_found_without_what_they_open() -> None:
    for name in ("genai:open_genai", "llama_cpp:open_llama_cpp", "executorch:open_executorch",
                 "transformers:open_transformers"):
        assert callable(find_opener(f"omnic.bench.engines.{name}"))


@pytest.mark.slow
def test_executorch_decodes_what_the_model_says(tmp_path: Path) -> None:
    import numpy as np

    from omnic.bench.worker import Worker
    from omnic.ir.weights import WeightStore
    from omnic.models import build
    from omnic.runtime.reference import ReferenceRuntime

    spec = parse_spec(SPEC.replace("context: 64", "context: 64\ninit: {std: 0.2}"), "small.yaml")
    found, absent = prepared(("executorch", "transformers"), request(tmp_path, spec, 32, 0))
    assert not absent
    module = build(spec)
    session = ReferenceRuntime(module, WeightStore(module, seed=1))
    session.reset(1)
    ids = np.arange(3, 11)
    first = int(np.argmax(session.forward(ids[None]).logits[0, -1]))
    second = int(np.argmax(session.forward(np.array([[first]])).logits[0, -1]))
    for contestant in found:
        worker = Worker(contestant)
        try:
            assert worker.greedy(ids, 2) == [first, second], contestant.name
        finally:
            worker.close()
