"""A missing package of the dev extra fails a test: it is never a reason to skip one."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
#: packages of the extra bench alone
OPTIONAL = {"llama_cpp"}


def test_only_packages_outside_the_dev_extra_are_skipped_for() -> None:
    wanted = re.compile(r"importorskip\(\s*(\S+?)\s*[,)]")
    found = {
        (str(path.relative_to(TESTS)), name)
        for path in TESTS.rglob("*.py")
        if path != Path(__file__)
        for name in wanted.findall(path.read_text(encoding="utf-8"))
    }
    assert {name for _, name in found} <= {f'"{name}"' for name in OPTIONAL}, sorted(found)
