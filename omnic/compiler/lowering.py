"""The passes of a compile: which ones, what they are lent, what they said, and where to look in between."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnic.compiler.calibration import LENGTH, WINDOWS, calibration_windows
from omnic.compiler.progress import Progress, silent
from omnic.errors import Diagnostic, DiagnosticError, InputError, Span
from omnic.ir.caps import Caps
from omnic.ir.executor import Executor
from omnic.ir.graph import Module
from omnic.ir.verify import verify
from omnic.ir.weights import ResultStore, WeightStore
from omnic.passes.base import OptionError, Pass, PassContext, Stage, make_pass, run_pass, stage_of
from omnic.passes.options import split_call
from omnic.passes.pipelines import expand
from omnic.runtime.files import sha256_file
from omnic.runtime.manifest import PassRecord, Remark
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec

if TYPE_CHECKING:
    from omnic.compiler.imported import Imported
    from omnic.targets.base import Target

__all__ = [
    "CalibrationSource",
    "Listed",
    "Lowered",
    "Watch",
    "calibration_key",
    "listed_passes",
    "lower",
    "pass_context",
    "results_folder",
    "target_passes",
]

#: called with the module after each pass; False stops the list there
Watch = Callable[["Listed", Module], bool]


@dataclass(frozen=True)
class Listed:
    """A pass that a spec asks for.

    Attributes:
        made: the pass with its options.
        options: the options that were given.
        span: where the spec says so, when it is written down.
    """

    made: Pass
    options: Mapping[str, Any]
    span: Span | None = None

    @property
    def name(self) -> str:
        """The name of the pass."""
        return self.made.name

    @property
    def stage(self) -> Stage:
        """The stage of the pass."""
        return stage_of(self.made)


@dataclass(frozen=True)
class Lowered:
    """The module before and after the passes, and what they said."""

    front: Module
    lossy: Module
    passes: tuple[PassRecord, ...]


@dataclass(frozen=True)
class CalibrationSource:
    """Where calibration text comes from: see :func:`omnic.compiler.calibration.calibration_windows`."""

    path: Path | None = None
    windows: int = WINDOWS
    length: int = LENGTH


def calibration_key(source: CalibrationSource) -> list[str]:
    """Return what tells calibration texts apart in the key of a bundle, without reading more than it must."""
    if source.path is None:
        text = f"stdlib of Python {sys.version}"
    elif source.path.is_file():
        text = sha256_file(source.path)
    else:
        from omnic.training.corpus import load_corpus

        text = load_corpus(str(source.path)).sha256
    return [text, str(source.windows), str(source.length)]


def results_folder() -> Path:
    """Return the folder of this user's cache where results of calibration are kept (XDG Base Directory, 0.8)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path.
    cache_folder = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return cache_folder / "omnic" / "results"


def listed_passes(spec: Spec | Imported) -> tuple[Listed, ...]:
    """Return the passes of ``spec``'s list, pipelines replaced by their passes.

    Raises:
        DiagnosticError: an unknown pass or option, or an option out of its range, with its place in the spec.
    """
    found: list[Listed] = []
    problems: list[Diagnostic] = []
    items: Sequence[Any] = [spec.passes] if isinstance(spec.passes, str) else spec.passes
    for index, item in enumerate(items):
        name, options = (item, {}) if isinstance(item, str) else next(iter(item.items()))
        try:
            for call_name, call_options in expand(name, options):
                span = _span(spec, index, name, None)
                found.append(Listed(make_pass(call_name, call_options), call_options, span))
        except InputError as error:
            option = error.option if isinstance(error, OptionError) else None
            problems.append(Diagnostic(error.message, _span(spec, index, name, option), error.hint))
    if problems:
        raise DiagnosticError(problems)
    return tuple(found)


def target_passes(target: Target, options: Mapping[str, Any]) -> tuple[Listed, ...]:
    """Return the passes that a target's own options ask for; they run after those of the spec."""
    calls = (split_call(text) for text in target.passes(options))
    return tuple(Listed(make_pass(name, given), given) for name, given in calls)


def _span(spec: Spec | Imported, index: int, name: str, option: str | None) -> Span | None:
    node = spec.tree.find(("passes", index))
    if node is None:
        return None
    named = node.child(name)
    if named is None:
        return node.span
    valued = named.child(option) if option is not None else None
    return valued.place if valued is not None else named.place


def _executor(module: Module, weights: WeightStore) -> Executor:
    """Return an executor in torch; imported when a pass first looks at activations."""
    from omnic.compiler.executor import torch_executor

    return torch_executor(module, weights)


def pass_context(
    spec: Spec | Imported,
    weights: WeightStore,
    weights_key: str,
    tokenizer: Tokenizer | None,
    results: ResultStore,
    calibration: CalibrationSource | None = None,
    caps: Caps | None = None,
    progress: Progress = silent,
) -> PassContext:
    """Return what a compile lends its passes; the calibration text is read when a pass first asks for it."""
    source = calibration or CalibrationSource()
    has_text = tokenizer is not None or source.path is not None

    @cache
    def windows() -> Any:
        return calibration_windows(spec, tokenizer, source.path, source.windows, source.length)

    return PassContext(
        weights=weights,
        weights_key=weights_key,
        calibration=windows if has_text else None,
        executor=_executor,
        results=results,
        caps=caps,
        progress=progress,
    )


def lower(front: Module, passes: Sequence[Listed], context: PassContext, watch: Watch | None = None) -> Lowered:
    """Run ``passes`` over the front module, the module verified after each.

    Args:
        front: the module of the spec.
        passes: in order.
        context: what they are lent.
        watch: shown the module after each pass.

    Raises:
        InputError: a pass cannot do what it was asked for, or takes from ``@forward`` what a session needs.
    """
    verify(front)
    module, records = front, list[PassRecord]()
    for each in passes:
        began = time.perf_counter()
        context.progress(each.name, 0.0)
        try:
            result = run_pass(module, each.made, context)
        except InputError as error:
            if type(error) not in (InputError, OptionError):  # these have a place, or a meaning, of their own
                raise
            raise DiagnosticError([Diagnostic(error.message, each.span, error.hint)]) from error
        module = result.module
        records.append(
            PassRecord(
                name=each.name,
                stage=each.stage,
                options=dict(each.options),
                changed=result.changed,
                seconds=time.perf_counter() - began,
                remarks=tuple(
                    Remark(rule=r.rule, node=r.node, message=r.message, missed=r.missed) for r in result.remarks
                ),
            )
        )
        if watch is not None and not watch(each, module):
            break
    return Lowered(front, module, tuple(records))
