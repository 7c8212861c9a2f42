"""The way back: a spec that came from a family's checkpoint is written as that family again, tensor for tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from omnic.compiler.exporting import export_hf
from omnic.compiler.importing import import_checkpoint
from omnic.ir.weights import SafetensorsSource
from omnic.ir.weights.recipes import whole
from omnic.models.checkpoints.family import families
from omnic.spec import load_spec
from tests.models.checkpoints.dense import DENSE
from tests.models.checkpoints.making import Example, write_checkpoint
from tests.models.checkpoints.sparse import SPARSE

# Of each family that omnic writes: its first example whose configuration says the same at every length.
EXAMPLES = {e.family: e for e in reversed([*DENSE, *SPARSE]) if families()[e.family].publish is not None and e.whole}


def read(folder: Path) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model.double()


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=str)
def test_a_family_is_written_as_it_was_published(example: Example, tmp_path: Path) -> None:
    original = write_checkpoint(example, tmp_path / "original")
    report = import_checkpoint(original, tmp_path / "imported", context=example.context)
    family = families()[example.family].model_types[0]
    export_hf(load_spec(str(report.spec)), tmp_path / "again", family=family)
    ours, theirs = SafetensorsSource(tmp_path / "again" / "model.safetensors"), SafetensorsSource(original)
    assert set(ours.names()) == set(theirs.names())
    for name in theirs.names():
        box = whole(theirs.shape(name))
        # Norms that are stored less one come back through the addition.
        assert np.allclose(ours.read(name, box), theirs.read(name, box), rtol=0, atol=2e-7), name
    first, model = (read(folder) for folder in (original, tmp_path / "again"))
    ids = torch.arange(24)[None] % 50
    with torch.no_grad():
        wanted, found = first(ids).logits, model(ids).logits
    assert (wanted - found).abs().max() < 1e-5 * wanted.std()
