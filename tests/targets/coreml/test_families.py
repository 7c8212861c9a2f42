"""Imported families as packages: in fp32 what transformers computes, in fp16 the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnic.ir.numeric import compare, find_class
from omnic.ir.weights import WeightStore
from omnic.models.checkpoints.checkpoint import open_checkpoint
from tests.models.checkpoints.dense import DENSE
from tests.models.checkpoints.making import Example, Original, write_checkpoint
from tests.models.checkpoints.sparse import SPARSE
from tests.targets.coreml.helpers import emitted, held_against_reference, session_of

#: calls of prefill, single tokens, verifications whole and padded; rings go round
CALLS = [9, 1, 16, 1, 7]
EXACT = 1e-6
#: latent attention over an interleaved and scaled rope, experts in groups chosen by sigmoids
FAST = ("deepseek_v3", "limited groups, yarn")


def _example(example: Example) -> object:
    marks = () if (example.family, example.name) == FAST else (pytest.mark.slow,)
    return pytest.param(example, marks=marks, id=f"{example.family}: {example.name}")


@pytest.mark.parametrize("example", [_example(e) for e in (*DENSE, *SPARSE)])
def test_a_family_in_every_recipe(example: Example, tmp_path: Path) -> None:
    original = Original(write_checkpoint(example, tmp_path / "checkpoint"))
    checkpoint = open_checkpoint(tmp_path / "checkpoint", context=example.context, name="family")
    weights = WeightStore.loaded(checkpoint.module, checkpoint.source)
    ids = np.random.default_rng(3).integers(0, original.vocab, (1, sum(CALLS)))
    for compute in ("cpu", "gpu", "ane"):
        folder = tmp_path / compute
        folder.mkdir()
        made = emitted(checkpoint.module, weights, folder, compute=compute)
        session = session_of(made, folder)
        if compute == "cpu":
            found = np.asarray(session.forward(ids).logits[0])
            case = compare(example.name, found, original.logits(ids[0]), find_class("f32"))
            assert case.ok, case.problem
        else:
            assert held_against_reference(session, made, weights, ids, CALLS) <= EXACT, compute
