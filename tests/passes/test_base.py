"""The registry of passes, their options, and what third parties may bring."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

import pytest

from omnic.errors import InputError
from omnic.ir.builder import ModuleBuilder
from omnic.ir.graph import Module
from omnic.passes.base import (
    NOTHING,
    Pass,
    PassContext,
    PassResult,
    Remark,
    all_passes,
    make_pass,
    parse_pass,
    register_pass,
    run_passes,
)
from omnic.passes.specialise import SpecialisePhase, SpecialiseTrain
from omnic.passes.split_at_host import SplitAtHost


def test_our_passes_are_there() -> None:
    assert {"specialise-train", "specialise-phase", "split-at-host"} <= set(all_passes())


@pytest.mark.parametrize("name", sorted(all_passes()))
def test_every_pass_is_a_frozen_dataclass_with_rules_and_an_example(name: str) -> None:
    cls: Any = all_passes()[name]
    assert cls.name == name
    assert cls.__dataclass_params__.frozen
    text = cls.__doc__
    assert re.search(r"^\s*1\. ", text, re.M)
    given, result = (re.search(rf"^\s*{word}\b.*:$", text, re.M) for word in ("Given", "Result"))
    assert given and result
    assert given.start() < result.start()
    for field in dataclasses.fields(cls):
        assert re.search(rf"^\s*{field.name}: ", text, re.M), f"{name}: option {field.name} is not described"


@pytest.mark.parametrize(("text", "want"), [
    ("split-at-host", SplitAtHost()),
    ("split-at-host{}", SplitAtHost()),
    ("split-at-host{function=mtp}", SplitAtHost("mtp")),
    ("specialise-train { tokens = 1024 }", SpecialiseTrain(1024)),
    ("specialise-phase{phase=decode, tokens=1, mla_form=absorbed}", SpecialisePhase("decode", 1, "absorbed")),
])
def test_a_pass_is_read(text: str, want: Pass) -> None:
    assert parse_pass(text) == want


@pytest.mark.parametrize(("text", "message", "hint"), [
    ("split-at-hots", "unknown pass 'split-at-hots'", "did you mean 'split-at-host'?"),
    ("split-at-host{functoin=a}", "pass 'split-at-host' has no option 'functoin'", "did you mean 'function'?"),
    ("specialise-phase{tokens=1}",
     "pass 'specialise-phase' needs the option 'phase'", "write specialise-phase{phase=...}"),
    ("specialise-train{tokens=many}", "option 'tokens' of pass 'specialise-train' must be int, got 'many'", None),
    ("specialise-train{tokens}", "'tokens' is not an option of pass 'specialise-train'", "write option=value"),
    ("specialise train", "'specialise train' is not a pass", "write NAME or NAME{option=value, ...}"),
])
def test_what_is_no_pass(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(InputError) as caught:
        parse_pass(text)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@dataclass(frozen=True)
class Rename:
    """Rename the module.

    1. The module is called ``to``.
    """

    name: ClassVar[str] = "rename"
    to: str
    shout: bool = False

    def run(self, module: Module, context: PassContext = NOTHING) -> PassResult:
        renamed = dataclasses.replace(module, name=self.to.upper() if self.shout else self.to)
        return PassResult(renamed, True, (Remark(self.name, f"@{module.name} is @{renamed.name}"),))


class Entry:
    """What importlib.metadata gives for an entry point."""

    def __init__(self, name: str, target: Any) -> None:
        self.name, self.value, self.target = name, "elsewhere:Pass", target

    def load(self) -> Any:
        return self.target


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    found: list[Entry] = []
    monkeypatch.setattr(metadata, "entry_points", lambda group: found if group == "omnic.passes" else [])
    return found


def test_a_pass_of_another_package(entries: list[Entry]) -> None:
    entries.append(Entry("rename", Rename))
    assert make_pass("rename", {"to": "b", "shout": "true"}) == Rename("b", True)
    with pytest.raises(InputError, match="option 'shout' of pass 'rename' must be true or false, got 'yes'"):
        parse_pass("rename{to=b, shout=yes}")


def test_a_pass_of_another_package_that_is_none(entries: list[Entry]) -> None:
    entries.append(Entry("split-at-host", Rename))
    with pytest.raises(InputError, match="the pass 'split-at-host' of elsewhere:Pass has the name of another pass"):
        all_passes()
    entries[:] = [Entry("object", object)]
    with pytest.raises(InputError, match="pass 'object' is not a frozen dataclass"):
        all_passes()


def test_a_name_is_registered_once() -> None:
    assert register_pass(SplitAtHost) is SplitAtHost
    with pytest.raises(InputError, match="pass 'split-at-host' is registered twice"):
        register_pass(dataclasses.make_dataclass("Other", [], namespace={"name": "split-at-host"}, frozen=True))


def test_passes_run_in_order_and_keep_their_remarks() -> None:
    result = run_passes(ModuleBuilder("a", {}).build(), [Rename("b"), Rename("c", True)])
    assert result.module.name == "C"
    assert result.changed
    assert [str(r) for r in result.remarks] == ["rename: @a is @b", "rename: @b is @C"]
