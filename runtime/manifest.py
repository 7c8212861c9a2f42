"""The manifest of a bundle and the sidecar ``parity.json``: their schema, in one place.

The JSON Schemas in ``runtime/data/`` are generated from these classes (``python -m
omnic.runtime.manifest``) and a test compares them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["SCHEMA_VERSION", "Case", "Executable", "FileEntry", "Manifest", "Parity", "PassRecord", "Prefill",
           "Program", "Remark", "SpecText", "StateEntry", "TokenizerEntry", "checksum", "json_schemas"]

SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Record):
    """One file of the bundle."""

    bytes: int = Field(ge=0, description="Size of the file.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of its bytes.")


class SpecText(_Record):
    """The spec the bundle was compiled from, word for word."""

    file: str = Field(description="Name of the spec file; its suffix says which front end reads the text.")
    text: str


class Executable(_Record):
    """What runs the bundle."""

    kind: str = Field(description="Key of the session registry, such as onnx.")
    entry: str = Field(description="File, relative to the bundle, that the session opens first.")
    options: dict[str, Any] = Field(default_factory=dict, description="What only this kind reads.")


class Remark(_Record):
    """What a pass says about one place."""

    rule: str
    node: str = ""
    message: str
    missed: bool = Field(default=False, description="The rule nearly applied; the message is why it did not.")


class PassRecord(_Record):
    """A pass that ran, its options and remarks."""

    name: str
    stage: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    changed: bool = True
    seconds: float | None = None
    remarks: tuple[Remark, ...] = ()


class Program(_Record):
    """One device program."""

    function: str = Field(description="Function of module.ir that it implements.")
    file: str
    dims: dict[str, tuple[int, int]] = Field(default_factory=dict, description="Symbolic dims and their ranges.")
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    nodes: dict[str, str] = Field(
        default_factory=dict, description="Node of the IR -> what the target made of it, where that is worth saying."
    )


class StateEntry(_Record):
    """One state tensor: the state interface."""

    name: str
    type: str = Field(description="Text form of its type, such as f32[B, 2, 1024, 64].")
    role: str
    group: int
    rollback: str = "positional"
    ring: bool = False
    window: int = 0


class Prefill(_Record):
    """The second weights that long calls are computed with."""

    from_tokens: int = Field(ge=2, description="The shortest call that runs @prefill, in tokens a row.")
    weights: int = Field(ge=1, description="How many weights @prefill alone reads.")
    bytes: int = Field(ge=1, description="Their bytes as the model stores them, scales included.")


class TokenizerEntry(_Record):
    """The tokenizer's files."""

    files: tuple[str, ...] = Field(min_length=1)
    vocab: int = Field(ge=1)


class Manifest(_Record):
    """manifest.json: everything about a bundle except its bytes."""

    schema_version: Literal[1] = SCHEMA_VERSION
    omnic: str = Field(description="Version of omnic that wrote it.")
    model: str
    target: str
    profile: str = ""
    key: str = Field(default="", description="Hash of everything that went into the compile.")
    spec: SpecText
    executable: Executable
    module: str = Field(default="module.ir", description="IR text after the passes.")
    model_sha256: str = Field(default="", description="Hash of the module text and the weights; sidecars repeat it.")
    numeric_class: Literal["f64", "f32", "f16", "int8", "tolerant"] = "f32"
    caps: dict[str, Any] = Field(default_factory=dict)
    plan: dict[str, Any] | None = None
    passes: tuple[PassRecord, ...] = ()
    programs: tuple[Program, ...] = ()
    states: tuple[StateEntry, ...] = ()
    prefill: Prefill | None = None
    tokenizer: TokenizerEntry | None = None
    fallbacks: tuple[str, ...] = Field(default=(), description="What --allow-fallback let pass.")
    needs: str = Field(default="", description="Device that runs it, where the compiling machine was not one.")
    fidelity: dict[str, Any] | None = Field(default=None, description="What the lossy passes cost.")
    files: dict[str, FileEntry] = Field(default_factory=dict)
    checksum: str = Field(default="", description="SHA-256 of this object without this field, as canonical JSON.")

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            parts = Path(name).parts
            if not parts or Path(name).is_absolute() or ".." in parts or "\\" in name:
                raise ValueError(f"'{name}' is not a path inside the bundle")
        return files

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, its checksum filled in."""
        body = self.model_dump(mode="json")
        body["checksum"] = checksum(body)
        return body


class Case(_Record):
    """One comparison of parity.json."""

    name: str
    max_abs: float
    logit_rms: float
    ratio: float
    ambiguous: int = 0
    positions: int = 0
    ok: bool = True
    problem: str = Field(default="", description="What is wrong, empty when ok.")


class Parity(_Record):
    """parity.json: the device program against the module after the lossy passes."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    target: str
    numeric_class: str = Field(alias="class")
    reference: str
    model_sha256: str = ""
    cases: tuple[Case, ...]
    max_abs: float
    ratio: float
    bound: float
    ok: bool


def checksum(body: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest object without its ``checksum``."""
    rest = {key: value for key, value in body.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return file name -> JSON Schema of the manifest and of each sidecar."""
    schemas: dict[str, dict[str, Any]] = {}
    for name, record in (("manifest", Manifest), ("parity", Parity)):
        schema = record.model_json_schema()
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        schemas[f"{name}.schema.json"] = schema
    return schemas


def _write_schemas() -> None:
    folder = Path(__file__).with_name("data")
    folder.mkdir(exist_ok=True)
    for name, schema in json_schemas().items():
        (folder / name).write_text(json.dumps(schema, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    _write_schemas()
