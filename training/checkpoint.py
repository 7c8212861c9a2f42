"""Checkpoints that are whole or absent, and resume a run exactly.

A checkpoint is a folder ``step-00001234``: ``weights.safetensors``, ``optimizer.safetensors`` and
``state.json``, which has the sha256 of the other two.  It is written under another name, flushed to
the disk and renamed, so a killed run leaves either the whole of it or none; the one before is
removed only afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from omnic.errors import BundleError, InputError
from omnic.training.files import sync_folder

__all__ = ["SCHEMA_VERSION", "Checkpoint", "latest", "load_checkpoint", "save_checkpoint"]

SCHEMA_VERSION = 1
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on.

    Attributes:
        step: steps made, over both phases.
        weights: parameters by front name.
        optimizer: :meth:`omnic.training.optim.Optimizer.state`.
        facts: everything else, as JSON: phase, schedule, seconds used, configuration.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    facts: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint into ``folder`` and remove all but the newest ``keep``.

    torch's random state is stored with it.

    Raises:
        InputError: the disk is full or ``folder`` cannot be written; older checkpoints stay.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    partial = folder / f"{_PARTIAL}{os.getpid()}-{checkpoint.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left)
        partial.mkdir()
        random = {"random": torch.get_rng_state()}
        hashes = {}
        for name, tensors in (("weights", checkpoint.weights), ("optimizer", {**checkpoint.optimizer, **random})):
            data = save_tensors({k: v.detach().contiguous() for k, v in tensors.items()})
            hashes[name] = hashlib.sha256(data).hexdigest()
            _write(partial / f"{name}.safetensors", data)
        state = {"schema_version": SCHEMA_VERSION, "step": checkpoint.step, "sha256": hashes, **checkpoint.facts}
        _write(partial / "state.json", (json.dumps(state, indent=1) + "\n").encode())
        sync_folder(partial)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(
            f"the checkpoint of step {checkpoint.step} cannot be written: {error.strerror}",
            f"older checkpoints in {folder} are whole; free some space and run the same command again",
        ) from error
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint of ``folder``, or None."""
    steps = _steps(folder)
    return steps[-1] if steps else None


def load_checkpoint(path: Path, restore_random: bool = True) -> Checkpoint:
    """Read a checkpoint and, unless told otherwise, torch's random state.

    Raises:
        BundleError: a file is missing, cut short or changed, or of a newer version.
    """
    older = [p for p in _steps(path.parent) if p.name < path.name]
    hint = f"remove {path} and run again: it goes on from {older[-1].name}" if older else f"remove {path.parent}"
    try:
        state = json.loads((path / "state.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"checkpoint {path} has no readable state.json", hint) from error
    if not isinstance(state, dict) or not isinstance(state.get("sha256"), dict):
        raise BundleError(f"checkpoint {path} has a state.json of another form", hint)
    version = state.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"checkpoint {path} has schema version {version}, this omnic reads {SCHEMA_VERSION}",
            "use the omnic that wrote it, or start anew",
        )
    hashes = state.pop("sha256")
    tensors = {name: _read(path / f"{name}.safetensors", hashes.get(name), hint) for name in ("weights", "optimizer")}
    random = tensors["optimizer"].pop("random", None)
    if random is None:
        raise BundleError(f"checkpoint {path} has no random state", hint)
    if restore_random:
        torch.set_rng_state(random)
    return Checkpoint(state.pop("step"), tensors["weights"], tensors["optimizer"], state)


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, expected: str | None, hint: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", hint) from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise BundleError(f"{path} is damaged: its hash is not the one in state.json", hint)
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise BundleError(f"{path} is no safetensors file: {error}", hint) from error
