"""Every scaling of positions that a family's configuration allows, in the reference in f64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.models.checkpoints import sparse
from tests.models.checkpoints.dense import DYNAMIC, LINEAR, LLAMA3, YARN, gemma, neox, phi, plain, smol
from tests.models.checkpoints.making import Example
from tests.models.checkpoints.proof import Proof

Keys = Callable[..., dict[str, Any]]


def longrope(dims: int, original: int) -> dict[str, Any]:
    """Factors for ``dims`` rotated dims, the long ones beyond ``original`` tokens."""
    short, long = ([1 + i / by for i in range(dims // 2)] for by in (9, 2))
    return {"rope_type": "longrope", "rope_theta": 8000.0, "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": original, "factor": 3.0}


#: family -> (its keys, the dims that rotate); without those whose positions are in a form of their own
FAMILIES: Mapping[str, tuple[Keys, int]] = {
    "gpt_neox": (neox, 24),
    "llama": (plain, 20),
    "mistral": (plain, 20),
    "granite": (phi, 16),
    "qwen2": (phi, 16),
    "qwen3": (plain, 20),
    "gemma2": (gemma, 28),
    "olmo2": (phi, 16),
    "starcoder2": (phi, 16),
    "smollm3": (smol, 20),
    "nanochat": (plain, 20),
    "mixtral": (sparse.mixtral, 18),
    "qwen3_moe": (sparse.qwen3, 18),
    "granitemoe": (sparse.granite, 14),
}
#: name -> (rope parameters for so many dims, tokens of the states that are asked for)
SCALINGS: Mapping[str, tuple[Callable[[int], dict[str, Any]], int | None]] = {
    "linear": (lambda dims: LINEAR, None),
    "dynamic": (lambda dims: DYNAMIC, None),
    "llama3": (lambda dims: LLAMA3, None),
    "yarn": (lambda dims: YARN | {"beta_fast": 20, "beta_slow": 2}, None),
    "yarn, mscale": (lambda dims: YARN | {"mscale": 0.8, "mscale_all_dim": 0.6, "truncate": False}, None),
    "longrope, long": (lambda dims: longrope(dims, 8), None),
    "longrope, short": (lambda dims: longrope(dims, 64), 64),
}
#: nanochat norms its heads after the rotation, so that a factor on them is lost
REFUSED = {("nanochat", name) for name in SCALINGS if name.startswith(("yarn", "longrope"))}


def proof(family: str, scaling: str, older: bool, folder: Path) -> Proof:
    keys, dims = FAMILIES[family]
    parameters, context = SCALINGS[scaling]
    extra = {"partial_rotary_factor": 1.0} if family == "gpt_neox" else {}
    wanted = keys(num_hidden_layers=1, rope_parameters=parameters(dims) | extra)
    return Proof(Example(family, scaling, wanted, context=context, older=older, tokens=24), folder)


@pytest.mark.parametrize(
    ("family", "scaling"),
    [(f, s) for f in FAMILIES for s in SCALINGS if (f, s) not in REFUSED],
)
def test_every_scaling_is_what_transformers_computes(family: str, scaling: str, tmp_path: Path) -> None:
    found = proof(family, scaling, False, tmp_path)
    case = next(iter(found.findings("reference f64"))).case
    assert found.checkpoint.unread == ()
    assert case.ok, case.problem


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_older_form_is_the_same_model(scaling: str, tmp_path: Path) -> None:
    specs = []
    for older in (False, True):
        found = proof("llama", scaling, older, tmp_path / str(older))
        assert next(iter(found.findings("reference f64"))).case.ok
        specs.append(found.checkpoint.spec)
    assert specs[0] == specs[1]
