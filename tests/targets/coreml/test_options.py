"""Options of the Core ML target: defaults that depend on the recipe, and wrong ones word for word."""

from __future__ import annotations

from typing import Any

import pytest

from omnic.errors import InputError
from omnic.targets.coreml.options import parse_options
from omnic.targets.coreml.phases import call_forms
from omnic.targets.coreml.target import TARGET
from tests.targets.coreml.helpers import scaled


def test_a_recipe_decides_precision_and_state() -> None:
    found = {c: parse_options({"compute": c}) for c in ("cpu", "gpu", "ane")}
    assert [(o.precision, o.state) for o in found.values()] == [
        ("f32", "explicit"), ("f16", "stateful"), ("f16", "explicit")
    ]
    assert parse_options({"compute": "gpu", "state": "explicit"}).state == "explicit"
    assert TARGET.options(TARGET.options({"verify": "4,2", "sizes": 8})) == {
        "compute": "cpu", "state": "explicit", "length": "fixed", "sizes": [8], "verify": [2, 4], "precision": "f32",
        "device": "all", "chunk_bytes": "none",
    }
    assert [o.chunk_bytes for o in found.values()] == [None, None, 1 << 30]
    for said, size in (("1GB", 10**9), ("512MiB", 1 << 29), (2_000_000, 2_000_000), ("none", None), (None, None)):
        found = parse_options({"compute": "ane", "chunk_bytes": said})
        assert found.chunk_bytes == parse_options(found.record()).chunk_bytes == size


@pytest.mark.parametrize(("given", "said", "hint"), [
    ({"computes": "cpu"}, "target coreml has no option 'computes'", "did you mean 'compute'?"),
    ({"compute": "npu"}, "target coreml: compute must be one of cpu, gpu, ane, not 'npu'", None),
    ({"compute": "ane", "precision": "f32"}, "target coreml: compute=ane computes in fp16 only",
     "leave out precision, or choose compute=gpu"),
    ({"compute": "ane", "length": "ranged"}, "target coreml: compute=ane wants static shapes, not length=ranged",
     "leave out length, or choose compute=gpu"),
    ({"sizes": "8,16"}, "target coreml: length=fixed takes one length in sizes, got [8, 16]", "write sizes=64"),
    ({"length": "enumerated"}, "target coreml: length=enumerated takes two lengths or more in sizes, got []",
     "write sizes=1,16,64"),
    ({"verify": "four"}, "target coreml: verify are whole numbers above 0, not 'four'", "write verify=16,64"),
    ({"verify": "1"}, "target coreml: verify=1 is what decode does", "leave it out"),
    ({"chunk_bytes": "1 gigabyte"}, "target coreml: chunk_bytes is a size such as 1GB, not '1 gigabyte'",
     "write chunk_bytes=512MB, or chunk_bytes=none for one package"),
    ({"chunk_bytes": 0}, "target coreml: chunk_bytes is a size such as 1GB, not '0'",
     "write chunk_bytes=512MB, or chunk_bytes=none for one package"),
    ({"device": "A17"}, "target coreml: no device 'A17' in its matrix", "did you mean 'A15'?"),
])
def test_wrong_options_are_named(given: dict[str, Any], said: str, hint: str | None) -> None:
    with pytest.raises(InputError) as error:
        TARGET.options(given)
    assert error.value.message == said
    if given.get("device") is None:
        assert error.value.hint == hint
    else:
        assert error.value.hint is not None


def test_functions_follow_the_lengths() -> None:
    module = scaled("tiny")
    forms = call_forms(module, parse_options({"verify": "4,8"}))
    assert [(f.name, f.sizes, f.rows) for f in forms] == [
        ("decode", (1,), 1), ("verify_4", (4,), 4), ("verify_8", (8,), 8), ("prefill", (64,), 1),
        ("mtp_decode", (1,), 1), ("mtp_verify_4", (4,), 4), ("mtp_verify_8", (8,), 8), ("mtp_prefill", (64,), 1),
    ]
    with pytest.raises(InputError) as error:
        call_forms(module, parse_options({"sizes": "65"}))
    assert error.value.message == (
        "target coreml: sizes has 65; a call of tiny_small takes at most 64 tokens (chunk)"
    )
