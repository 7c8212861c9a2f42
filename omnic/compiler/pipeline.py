"""From a spec to a bundle: build, rewrite, emit, prove, commit.

Nothing is visible at the destination before the last step; see :mod:`omnic.runtime.bundle_write`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnic import __version__
from omnic.compiler.adapters import recorded, with_adapters
from omnic.compiler.fidelity import measure_fidelity
from omnic.compiler.imported import MODULE, Imported, check_states
from omnic.compiler.lowering import (
    CalibrationSource,
    Listed,
    Lowered,
    Watch,
    calibration_key,
    listed_passes,
    lower,
    pass_context,
    results_folder,
    target_passes,
)
from omnic.compiler.parity import measure_parity
from omnic.compiler.profiling import measure_profile
from omnic.compiler.progress import Progress, silent
from omnic.compiler.sample import whole_model
from omnic.compiler.weight_files import fingerprint, weight_source
from omnic.errors import BundleError, InputError
from omnic.ir.caps import Caps
from omnic.ir.graph import Module
from omnic.ir.numeric import class_of
from omnic.ir.text import print_module
from omnic.ir.weights import ResultStore, WeightStore
from omnic.models import build
from omnic.passes.context import PassContext
from omnic.passes.prefill_int8 import prefill_weights
from omnic.report import write_report
from omnic.runtime.bundle import MANIFEST, Bundle, open_bundle
from omnic.runtime.bundle_write import BundleWriter, check_destination
from omnic.runtime.manifest import (
    Executable,
    Manifest,
    Prefill,
    Program,
    SpecText,
    StateEntry,
    TokenizerEntry,
)
from omnic.runtime.resources import threads
from omnic.runtime.tokenizer import Tokenizer
from omnic.spec import Spec, to_yaml
from omnic.targets import get_target
from omnic.targets.base import EmitRequest, Emitted, Target

__all__ = ["CompileRequest", "compile_spec", "default_out", "lower_spec", "open_weights"]


@dataclass(frozen=True)
class CompileRequest:
    """What to compile and how.

    Attributes:
        spec: the model; an imported one has no spec, but weights of its own.
        target: name of the target.
        out: the bundle's folder; default ``build/<model>-<target>``.
        weights: a safetensors file; default the one the spec names.
        seed: random weights instead.
        options: target options that override the spec's.
        force: replace a bundle of other content.
        parity: ``auto`` (whole model below 300 M parameters, its parts above), ``full`` or ``off``.
        threads: for checking; None = the cores this process has.
        calibration: the text that calibrating passes look at.
        results: where their results are kept and found again; None = this user's cache folder.
        watch: shown the module after each pass; stops the passes by False (then nothing is compiled).
        lora: folder and strength of each adapter to merge into the weights.
    """

    spec: Spec | Imported
    target: str
    out: Path | None = None
    weights: Path | None = None
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    force: bool = False
    parity: str = "auto"
    threads: int | None = None
    calibration: CalibrationSource = field(default_factory=CalibrationSource)
    results: Path | None = None
    watch: Watch | None = None
    lora: tuple[tuple[Path, float], ...] = ()


def default_out(spec: Spec | Imported, target: str) -> Path:
    """Return ``build/<model>-<target>`` in the current folder."""
    return Path("build") / f"{spec.model}-{target}"


def _opened(request: CompileRequest, results: ResultStore) -> tuple[Module, WeightStore, dict[str, Any]]:
    """Return the front module, with the types its weights have, its weights, and where they come from."""
    spec = request.spec
    if isinstance(spec, Spec):
        weights, origin = open_weights(
            build(spec), spec, request.weights, request.seed, results, request.lora
        )
        return weights.module, weights, origin
    if request.weights is not None or request.seed is not None or request.lora:
        raise InputError(f"{spec.file} has weights of its own", "leave out --weights, --seed and --lora")
    return spec.module, spec.weights, spec.origin()


def _check_still_runs(lowered: Lowered) -> None:
    """Refuse a list of passes that takes an input or a state from ``@forward``: no session could call it."""
    left = {p.value.name for p in lowered.lossy.function("forward").params}
    gone = [p.value.name for p in lowered.front.function("forward").params if p.value.name not in left]
    if gone:
        raise InputError(
            f"after the passes {', '.join(r.name for r in lowered.passes)}, @forward has no input {', '.join(gone[:4])}"
            " any more, and cannot be run",
            "leave out the pass that makes functions for training",
        )


def open_weights(
    module: Module,
    spec: Spec,
    weights: Path | None,
    seed: int | None,
    results: ResultStore | None = None,
    lora: Sequence[tuple[Path, float]] = (),
) -> tuple[WeightStore, dict[str, Any]]:
    """Return the numbers of the front module and where they come from: ``path`` and ``sha256``, or ``seed``.

    ``results`` holds what calibrating passes found, for later stages of the module; ``lora`` names folder and strength
    of adapters to merge, which the origin then lists.

    Raises:
        InputError: nothing was named, or both a file and a seed were.
        BundleError: the file is missing, damaged, holds other tensors, or numbers that are not finite.
    """
    if weights is not None and seed is not None:
        raise InputError("--weights and --seed were both given", "a model has one set of weights: choose one")
    if weights is None and seed is None:
        weights = spec.resolve("weights")
    if weights is None and seed is None:
        raise InputError(
            f"{spec.model} has no weights", "train it, or give --weights FILE, or --seed N for random ones"
        )
    if weights is None:
        if lora:
            raise InputError("--lora and --seed were both given", "an adapter belongs to the weights it was trained on")
        return WeightStore(module, seed=seed or 0, results=results), {"seed": seed}
    store = WeightStore.loaded(module, with_adapters(spec, module, weight_source(weights), lora), results)
    origin: dict[str, Any] = {"path": str(weights.absolute()), "sha256": fingerprint(weights)}
    if lora:
        origin["lora"] = recorded(lora)
        origin["sha256"] = "-".join([origin["sha256"], *(f"{a['sha256']}*{a['strength']}" for a in origin["lora"])])
    return store, origin


def compile_spec(request: CompileRequest, progress: Progress = silent) -> Bundle:
    """Compile one spec for one target into a bundle with measured parity and fidelity.

    Raises:
        InputError: the spec asks for what cannot be had, or the destination holds something else.
        BundleError: the weights are damaged.
        CheckFailed: never; a parity that misses its bound is in ``parity.json`` and the caller decides.
    """
    spec = request.spec
    target = get_target(request.target)
    options = target.options({**spec.targets.get(request.target, {}), **request.options})
    out = request.out or default_out(spec, request.target)
    progress("build", 0.0)
    passes = (*listed_passes(spec), *target_passes(target, options))
    results = ResultStore(request.results or results_folder())
    front, weights, origin = _opened(request, results)
    tokenizer = _tokenizer(spec)
    key = _key(request, options, origin, passes, tokenizer)
    if not request.force and (there := finished_bundle(out, key)):
        return there
    check_destination(out, request.force, key)
    context = pass_context(
        spec, weights, _origin_key(origin), tokenizer, results, request.calibration, target.caps, progress
    )
    lowered = lower(front, passes, context, request.watch)
    _check_still_runs(lowered)
    check_states(lowered.lossy)
    weights = weights.with_module(lowered.lossy)
    with BundleWriter(out, force=request.force, key=key) as writer:
        need = sum(w.type.bytes() for w in lowered.lossy.weights.values())
        writer.require(target.disk_bytes(lowered.lossy), need)
        source = hashlib.sha256(_text_of(spec).text.encode()).hexdigest()
        emitted = target.emit(EmitRequest(lowered.lossy, weights, writer.folder, options, progress, source))
        text = print_module(emitted.module)
        writer.text("module.ir", text)
        if tokenizer is not None:
            for name, content in tokenizer.files.contents().items():
                writer.text(name, content)
        manifest = _manifest(spec, target, options, lowered, emitted, text, origin, tokenizer)
        progress("fidelity", 0.0)
        fidelity = measure_fidelity(lowered.front, lowered.lossy, weights, tokenizer)
        manifest = manifest.model_copy(update={"fidelity": fidelity})
        if request.parity != "off" and not emitted.needs:
            parity = measure_parity(
                writer.preview(manifest),
                target,
                emitted.module,
                weights.with_module(emitted.module),
                tokenizer,
                origin=origin,
                full=request.parity == "full",
                threads=request.threads,
                progress=progress,
            )
            writer.json("parity.json", parity.model_dump(mode="json", by_alias=True))
        if whole_model(emitted.module) and not emitted.needs:
            progress("profile", 0.0)
            profile = measure_profile(writer.preview(manifest), target, tokenizer, request.threads or threads())
            writer.json("profile.json", profile)
        write_report(writer.preview(manifest), writer.path("report.html"))
        progress("write", 1.0)
        return writer.commit(manifest)


def lower_spec(request: CompileRequest, progress: Progress = silent) -> Lowered:
    """Build the module and run its passes, and nothing else: what ``--stop-after`` shows.

    Weights are opened when there are any; a pass that needs them says so otherwise.

    Raises:
        InputError: a pass, an option or a weight file that cannot be used.
    """
    spec = request.spec
    target = get_target(request.target)
    options = target.options({**spec.targets.get(request.target, {}), **request.options})
    passes, caps = (*listed_passes(spec), *target_passes(target, options)), target.caps
    results = ResultStore(request.results or results_folder())
    tokenizer = _tokenizer(spec)
    named = request.weights is not None or request.seed is not None
    if isinstance(spec, Spec) and not named and spec.resolve("weights") is None:
        return lower(build(spec), passes, PassContext(results=results, caps=caps, progress=progress), request.watch)
    front, weights, origin = _opened(request, results)
    context = pass_context(spec, weights, _origin_key(origin), tokenizer, results, request.calibration, caps, progress)
    return lower(front, passes, context, request.watch)


def finished_bundle(out: Path, key: str) -> Bundle | None:
    """Return the bundle at ``out`` if it is whole and was made from the same inputs."""
    if not (out / MANIFEST).is_file():
        return None
    try:
        bundle = open_bundle(out)
    except BundleError:  # a damaged bundle is nobody's; the writer says what to do with it
        return None
    return bundle if bundle.manifest.key == key else None


def _key(
    request: CompileRequest,
    options: Mapping[str, Any],
    origin: Mapping[str, Any],
    passes: tuple[Listed, ...],
    tokenizer: Tokenizer | None,
) -> str:
    """Return the hash of everything a bundle depends on."""
    parts: dict[str, Any] = {
        "omnic": __version__,
        "spec": _text_of(request.spec).text,
        "target": request.target,
        "options": dict(options),
        "weights": origin.get("sha256", origin),
        "parity": request.parity,
    }
    if tokenizer is not None:
        parts["tokenizer"] = tokenizer.files.contents()
    if depends := get_target(request.target).depends_on(options):
        parts["depends"] = depends
    if passes:
        # With the defaults of their options: a new default of a pass is another bundle.
        parts["passes"] = [[type(p.made).__module__, repr(p.made)] for p in passes]
        parts["calibration"] = calibration_key(request.calibration)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _origin_key(origin: Mapping[str, Any]) -> str:
    return str(origin.get("sha256") or f"seed {origin['seed']}")


def _text_of(spec: Spec | Imported) -> SpecText:
    if isinstance(spec, Spec):
        return SpecText(file="spec.yaml", text=to_yaml(spec))
    return SpecText(file=MODULE, text=spec.text())


def _tokenizer(spec: Spec | Imported) -> Tokenizer | None:
    path = spec.resolve("tokenizer")
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"{path}: the tokenizer of {spec.model} is not there", "build it: omnic tokenizer build")
    tokenizer = Tokenizer.load(path)
    if tokenizer.size > spec.vocab.size:
        raise InputError(
            f"{path}: {tokenizer.size} tokens, the model has a vocabulary of {spec.vocab.size}",
            f"use the tokenizer the model was trained with, or set vocab.size: {tokenizer.size}",
        )
    return tokenizer


def _manifest(
    spec: Spec | Imported,
    target: Target,
    options: Mapping[str, Any],
    lowered: Lowered,
    emitted: Emitted,
    text: str,
    origin: Mapping[str, Any],
    tokenizer: Tokenizer | None,
) -> Manifest:
    module = emitted.module
    functions = {role: role for role in emitted.programs}
    states = tuple(
        StateEntry(
            name=s.name, type=str(s.type), role=s.role, group=s.group, rollback=s.rollback, ring=s.ring, window=s.window
        )
        for s in module.states.values()
    )
    programs = tuple(
        Program(
            function=functions[role],
            file=file,
            dims={name: (r.low, r.high) for name, r in module.dims.items()},
            inputs=tuple(p.value.name for p in module.functions[role].params) if role in module.functions else (),
            outputs=tuple(r.name for r in module.functions[role].results) if role in module.functions else (),
            nodes={node: ", ".join(ops) for node, ops in emitted.nodes.items()},
        )
        for role, file in emitted.programs.items()
    )
    return Manifest(
        omnic=__version__,
        model=spec.model,
        target=target.name,
        profile=str(options.get("profile", "")),
        spec=_text_of(spec),
        executable=Executable(
            kind=emitted.kind,
            entry=next(iter(emitted.programs.values())),
            options={**options, **dict(emitted.interface)},
        ),
        model_sha256=hashlib.sha256(f"{text}\n{origin.get('sha256', origin)}".encode()).hexdigest(),
        numeric_class=class_of(module),
        caps=caps_summary(target.caps),
        passes=lowered.passes,
        programs=programs,
        states=states,
        prefill=_prefill(module),
        tokenizer=TokenizerEntry(files=tuple(tokenizer.files.contents()), vocab=tokenizer.size) if tokenizer else None,
        fallbacks=emitted.remarks,
        needs=emitted.needs,
    )


def _prefill(module: Module) -> Prefill | None:
    """Return what the module says of the second weights of prompts."""
    if module.prefill_from is None:
        return None
    made = prefill_weights(module)
    return Prefill(from_tokens=module.prefill_from, weights=len(made), bytes=sum(w.type.bytes() for w in made))


def caps_summary(caps: Caps) -> dict[str, Any]:
    """Return what a manifest says of a target's capabilities: the facts, not their sources."""
    return {
        "programs": caps.programs,
        "state": caps.state,
        "host": caps.host,
        "opset": dict(caps.opset),
        "dynamic": sorted(caps.dynamic),
        "elements": sorted(str(e) for e in caps.elements),
        "limits": dict(caps.limits),
        "batch_invariant": caps.batch_invariant,
        "shared_weights": caps.shared_weights,
    }
