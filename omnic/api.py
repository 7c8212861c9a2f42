"""The Python interface: what ``import omnic`` offers beside the error types and the spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnic.runtime.bundle import Bundle
from omnic.runtime.model import Model, load_model

if TYPE_CHECKING:
    from omnic.compiler.importing import ImportReport
    from omnic.spec import Spec

__all__ = ["compile", "import_checkpoint", "load"]


def compile(
    spec: str | Path | Spec,
    target: str,
    out: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
    parity: str = "auto",
    threads: int | None = None,
    passes: Sequence[str] = (),
    calibration: str | Path | None = None,
    results: str | Path | None = None,
) -> Bundle:
    """Compile a spec for one target and measure what came out.

    Args:
        spec: a spec file, the name of a preset, or a loaded spec.
        target: name of the target (``omnic list targets``).
        out: the bundle's folder; ``build/<model>-<target>`` when None.
        weights: a safetensors file; the one the spec names when None.
        seed: random weights instead.
        options: options of the target, over the spec's.
        force: replace a bundle of other content.
        parity: ``auto``, ``full`` or ``off``.
        threads: for checking; None = the cores this process really has.
        passes: ``NAME`` or ``NAME{option=value, ...}``, run after those of the spec's list (``omnic list passes``).
        calibration: text for calibrating passes: a file, a folder or saved windows; the training corpus when None.
        results: folder where their results are kept and found again; this user's cache when None.

    Returns:
        The bundle: ``path``, ``manifest``, ``parity``, ``fidelity``.  One made from the same inputs before is
        returned as it is.

    Raises:
        InputError: a spec, option or destination that cannot be used.
        BundleError: damaged weights.
        MissingExtraError: the target's package is not installed.
    """
    from omnic.compiler.lowering import CalibrationSource
    from omnic.compiler.options import with_passes
    from omnic.compiler.pipeline import CompileRequest, compile_spec
    from omnic.spec import Spec, load_spec

    loaded = spec if isinstance(spec, Spec) else load_spec(str(spec))
    return compile_spec(
        CompileRequest(
            with_passes(loaded, passes),
            target,
            Path(out) if out is not None else None,
            Path(weights) if weights is not None else None,
            seed,
            options or {},
            force,
            parity,
            threads,
            CalibrationSource(Path(calibration) if calibration is not None else None),
            Path(results) if results is not None else None,
        )
    )


def import_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    link: bool = False,
    context: int | None = None,
    name: str | None = None,
    force: bool = False,
) -> ImportReport:
    """Turn a published checkpoint (a folder with ``config.json``) into a folder omnic works on.

    Args:
        path: the checkpoint's folder.
        out: the folder to write: ``spec.yaml``, weights, tokenizer, chat template.
        link: leave the weights where they are.
        context: tokens the states shall hold; the trained length, 4096 at most, when None.
        name: of the model; the checkpoint's folder's when None.
        force: replace what ``out`` holds.

    Returns:
        What was written, and what every key of the configuration did.

    Raises:
        BundleError: damaged or incomplete files.
        InputError: a family or a value of the configuration that omnic cannot express.
    """
    from omnic.compiler.importing import import_checkpoint as run

    return run(Path(path), Path(out), link=link, context=context, name=name, force=force)


def load(
    bundle: str | Path | Bundle, threads: int | None = None, memory: int | None = None, verify: bool = False
) -> Model:
    """Load a compiled model.

    Args:
        bundle: the folder that ``omnic compile`` wrote, or an opened bundle.
        threads: threads of one operator; None = the cores this process really has.
        memory: bytes the model may hold; None = no limit.
        verify: check the hash of every file first, however large.

    Returns:
        A model: ``generate``, ``chat``, ``logits``, ``session``, ``tokenizer``, ``spec``.

    Raises:
        BundleError: damaged, of a newer version, or of a kind this omnic does not run.
        MissingExtraError: its backend is not installed.
    """
    return load_model(bundle, threads, memory, verify)
