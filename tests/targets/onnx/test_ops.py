"""The lowering tables of the profiles are what their capabilities say; what ops compute is in tests/parity."""

from __future__ import annotations

import pytest

from omnic.ir.op import all_ops
from omnic.targets.onnx.caps import PROFILE_CAPS
from omnic.targets.onnx.lower import CACHED, PROFILES


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_op_has_an_entry_a_decomposition_or_a_reason(profile: str) -> None:
    caps, table = PROFILE_CAPS[profile], PROFILES[profile]
    native = {name for name, support in caps.ops.items() if support.form == "native"}
    assert native == set(table) | set(CACHED)
    assert set(caps.ops) == set(all_ops())


def test_the_plain_profile_uses_the_standard_set_alone() -> None:
    assert set(PROFILE_CAPS["plain"].opset) == {""}
    assert "com.microsoft" in PROFILE_CAPS["fused"].opset
