"""The lowering table is what the capabilities say, and ranks equal numbers; what ops compute is in tests/parity."""

from __future__ import annotations

import torch

from omnic.ir.op import all_ops
from omnic.targets.executorch.caps import CAPS
from omnic.targets.executorch.lower import LOWERINGS


def test_every_op_has_an_entry_a_decomposition_or_a_reason() -> None:
    assert set(LOWERINGS) - {"cache_move"} == {n for n, support in CAPS.ops.items() if support.form == "native"}
    assert set(CAPS.ops) == set(all_ops())


def test_equal_numbers_are_ranked_by_their_index() -> None:
    from omnic.targets.executorch.lower import ranked

    values, indices = ranked(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 4, -1)
    assert values.tolist() == [[3.0, 3.0, 3.0, 2.0]]
    assert indices.tolist() == [[1, 2, 4, 3]]
