"""Bundles: a folder that holds one compiled model, verified when it is opened.

``manifest.json`` names every file with its size and SHA-256 and carries a checksum of itself, so a
flipped byte anywhere is an error that names the file.  Sizes are always checked.  Hashes are checked
for the small files, up to ``HASH_LIMIT`` bytes together, and for all of them with ``verify=True``.
Writing is in :mod:`omnic.runtime.bundle_write`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from omnic.errors import BundleError, InputError
from omnic.runtime.files import PARTIAL, sha256_file
from omnic.runtime.manifest import SCHEMA_VERSION, Manifest, checksum

if TYPE_CHECKING:
    from omnic.ir.graph import Module
    from omnic.spec import Spec

__all__ = ["HASH_LIMIT", "MANIFEST", "Bundle", "open_bundle"]

MANIFEST = "manifest.json"
# SHA-256 runs at about 1 GB/s, so opening a bundle costs half a second of hashing at most.
HASH_LIMIT = 512_000_000
RECOMPILE = "copy the bundle again, or compile it again"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: its folder.
        manifest: what it says about itself.
    """

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Return the path of one of its files.

        Raises:
            BundleError: the bundle has no such file.
        """
        path = self.path / name
        if not path.is_file():
            raise BundleError(f"{self.path}: the bundle has no file '{name}'", RECOMPILE)
        return path

    def text(self, name: str) -> str:
        """Return the text of one of its files."""
        return self.file(name).read_text(encoding="utf-8")

    def json(self, name: str) -> Any:
        """Return the JSON value of one of its files.

        Raises:
            BundleError: it is absent or not JSON.
        """
        try:
            return json.loads(self.text(name))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BundleError(f"{self.path / name}: not JSON: {error}", RECOMPILE) from error

    @cached_property
    def entry(self) -> Path:
        """The file that the session opens first."""
        return self.file(self.manifest.executable.entry)

    @cached_property
    def spec(self) -> Spec:
        """The spec it was compiled from.

        Raises:
            InputError: it was compiled from an imported module.
        """
        from omnic.spec import parse_spec

        if not self.from_spec:
            raise InputError(f"{self.path} was compiled from an imported module, so it has no spec")
        return parse_spec(self.manifest.spec.text, self.manifest.spec.file)

    @property
    def from_spec(self) -> bool:
        """Whether there is a spec: an imported module has none."""
        return not self.manifest.spec.file.endswith(".ir")

    @cached_property
    def module(self) -> Module:
        """The IR after the passes."""
        from omnic.ir.text import parse_module

        return parse_module(self.text(self.manifest.module), str(self.path / self.manifest.module))

    @cached_property
    def parity(self) -> dict[str, Any] | None:
        """The contents of parity.json; None if the bundle was compiled without."""
        return self.json("parity.json") if (self.path / "parity.json").is_file() else None

    @property
    def fidelity(self) -> dict[str, Any] | None:
        """What the lossy passes cost."""
        return self.manifest.fidelity

    def bytes(self) -> int:
        """Return the bytes of all files, the manifest not counted."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def verify(self, limit: int | None = None) -> None:
        """Check sizes of all files, and hashes up to ``limit`` bytes together (None = all), small files first.

        Raises:
            BundleError: naming the first file that is missing, short, or other than what was written.
        """
        left = limit
        for name, entry in sorted(self.manifest.files.items(), key=lambda item: item[1].bytes):
            path = self.file(name)
            size = path.stat().st_size
            if size != entry.bytes:
                raise BundleError(f"{path}: {size} bytes, {entry.bytes} were written; the file is damaged", RECOMPILE)
            if left is not None:
                left -= size
                if left < 0:
                    continue
            if sha256_file(path) != entry.sha256:
                raise BundleError(f"{path}: its SHA-256 is not the one in {MANIFEST}; the file is damaged", RECOMPILE)


def open_bundle(path: str | Path, verify: bool = False, unfinished: bool = False) -> Bundle:
    """Open and check a bundle.

    Args:
        path: its folder, or its manifest.json.
        verify: check every hash, however large the files.
        unfinished: accept the folder of a compile that is still being written (parity is measured there).

    Raises:
        BundleError: no bundle, damaged, or of a newer schema version.
    """
    folder = Path(path)
    if folder.name == MANIFEST:
        folder = folder.parent
    if not folder.exists():
        raise BundleError(f"{folder}: no such bundle", "a bundle is the folder that omnic compile wrote")
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: not a bundle, it has no {MANIFEST}",
                          "a bundle is the folder that omnic compile wrote")
    if PARTIAL in folder.resolve().name and not unfinished:
        raise BundleError(f"{folder}: what an interrupted compile left", "compile again; it is removed then")
    bundle = Bundle(folder, read_manifest(folder / MANIFEST, unfinished))
    if not unfinished:
        bundle.verify(None if verify else HASH_LIMIT)
    return bundle


def read_manifest(path: Path, unfinished: bool = False) -> Manifest:
    """Read and check a manifest.

    Raises:
        BundleError: damaged, or written by a newer omnic.
    """
    try:
        body = json.loads(path.read_bytes())
    except ValueError as error:
        raise BundleError(f"{path}: not JSON, the file is damaged: {error}", RECOMPILE) from error
    if not isinstance(body, dict):
        raise BundleError(f"{path}: not a manifest, the file is damaged", RECOMPILE)
    version = body.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema version {version}; this omnic reads up to {SCHEMA_VERSION}",
            f"upgrade omnic (the bundle was written by {body.get('omnic', 'a newer one')}), or compile again",
        )
    if not unfinished and body.get("checksum") != checksum(body):
        raise BundleError(f"{path}: its checksum does not match; the file is damaged", RECOMPILE)
    try:
        return Manifest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}", RECOMPILE) from error
