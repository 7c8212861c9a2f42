"""The options of the Core ML target: what was asked for, with defaults that depend on each other filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from omnic.errors import InputError, nearest

__all__ = ["DEVICES_ALL", "Options", "parse_options"]

COMPUTE = ("cpu", "gpu", "ane")
STATE = ("stateful", "explicit")
LENGTH = ("fixed", "enumerated", "ranged")
PRECISION = ("f32", "f16")
DEVICES_ALL = "all"
#: compute -> defaults of what the recipe decides
RECIPES: Mapping[str, Mapping[str, str]] = {
    "cpu": {"precision": "f32", "state": "explicit"},
    "gpu": {"precision": "f16", "state": "stateful"},
    "ane": {"precision": "f16", "state": "explicit"},
}
#: compute -> most bytes of one package: ANEMLL's documentation keeps files for the neural engine below 1 GB
CHUNK_BYTES: Mapping[str, int] = {"ane": 1 << 30}
_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
#: most lengths that one function may list (``EnumeratedShapes`` of coremltools)
MOST_LENGTHS = 128


@dataclass(frozen=True)
class Options:
    """What a package is built for.

    Attributes:
        compute: recipe: ``cpu`` plain, ``gpu`` fused attention over a state, ``ane`` channels-first 1x1 convolutions.
        state: caches are a ``StateType`` of the runtime, or inputs and outputs.
        length: of the prefill function: one length, some, or a range.
        sizes: lengths of prefill: the one, the list, or the lowest and the highest; empty = the module's own bound.
        verify: lengths of the functions ``verify_K``, each for exactly K tokens with the logits of all.
        precision: of arithmetic and of plain weights.
        device: chip to look up in the device matrix, or ``all``.
        chunk_bytes: most bytes of one package; a larger model is cut between its blocks. None: one package.
    """

    compute: str = "cpu"
    state: str = "explicit"
    length: str = "fixed"
    sizes: tuple[int, ...] = ()
    verify: tuple[int, ...] = (16,)
    precision: str = "f32"
    device: str = DEVICES_ALL
    chunk_bytes: int | None = None

    @property
    def half(self) -> bool:
        """Whether arithmetic is in fp16."""
        return self.precision == "f16"

    @property
    def stateful(self) -> bool:
        """Whether caches are states of the runtime, which are fp16."""
        return self.state == "stateful"

    def record(self) -> dict[str, Any]:
        """Return the options as a manifest keeps them."""
        listed = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {**listed, "chunk_bytes": "none" if self.chunk_bytes is None else self.chunk_bytes}


def parse_options(given: Mapping[str, Any]) -> Options:
    """Return the options with defaults filled in.

    Raises:
        InputError: an unknown option or value, or two that exclude each other.
    """
    known: dict[str, tuple[str, ...]] = {
        "compute": COMPUTE, "state": STATE, "length": LENGTH, "precision": PRECISION,
        "sizes": (), "verify": (), "device": (), "chunk_bytes": (),
    }
    for name in given:
        if name not in known:
            near = nearest(name, list(known))
            hint = f"did you mean '{near}'?" if near else f"it has: {', '.join(known)}"
            raise InputError(f"target coreml has no option '{name}'", hint)
    for name, values in known.items():
        if values and name in given and str(given[name]) not in values:
            raise InputError(f"target coreml: {name} must be one of {', '.join(values)}, not '{given[name]}'")
    compute = str(given.get("compute", "cpu"))
    found = Options(
        compute=compute,
        state=str(given.get("state", RECIPES[compute]["state"])),
        length=str(given.get("length", "fixed")),
        sizes=_numbers("sizes", given.get("sizes", ())),
        verify=_numbers("verify", given.get("verify", (16,))),
        precision=str(given.get("precision", RECIPES[compute]["precision"])),
        device=str(given.get("device", DEVICES_ALL)),
        chunk_bytes=_bytes(given["chunk_bytes"]) if "chunk_bytes" in given else CHUNK_BYTES.get(compute),
    )
    _check(found)
    return found


def _numbers(name: str, value: Any) -> tuple[int, ...]:
    """Return ``[16, 64]``, ``16``, ``"16,64"`` or ``"none"`` as whole numbers."""
    text = str(value).strip("[]() ").rstrip(",") if not isinstance(value, (list, tuple)) else ""
    items: list[Any] = list(value) if isinstance(value, (list, tuple)) else [] if text in ("", "none") else (
        text.replace(" ", "").split(","))
    found: list[int] = []
    for item in items:
        if not str(item).strip().isdigit() or int(item) < 1:
            raise InputError(f"target coreml: {name} are whole numbers above 0, not '{item}'", f"write {name}=16,64")
        found.append(int(item))
    return tuple(sorted(set(found)))


def _bytes(value: Any) -> int | None:
    """Return ``1GB``, ``512MiB``, ``1000000`` or ``none`` as bytes."""
    text = str(value).strip()
    if value is None or text.lower() == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    size = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if size < 1:
        raise InputError(f"target coreml: chunk_bytes is a size such as 1GB, not '{value}'",
                         "write chunk_bytes=512MB, or chunk_bytes=none for one package")
    return size


def _check(o: Options) -> None:
    if o.compute == "ane" and o.precision != "f16":
        raise InputError(
            "target coreml: compute=ane computes in fp16 only", "leave out precision, or choose compute=gpu"
        )
    if o.compute == "ane" and o.length != "fixed":
        raise InputError(
            f"target coreml: compute=ane wants static shapes, not length={o.length}",
            "leave out length, or choose compute=gpu",
        )
    wanted = {"fixed": "one length", "ranged": "the lowest and the highest length", "enumerated": "two lengths or more"}
    fits = {"fixed": len(o.sizes) <= 1, "ranged": len(o.sizes) in (0, 2), "enumerated": len(o.sizes) >= 2}
    if not fits[o.length]:
        raise InputError(
            f"target coreml: length={o.length} takes {wanted[o.length]} in sizes, got {list(o.sizes)}",
            {"fixed": "write sizes=64", "ranged": "write sizes=1,64", "enumerated": "write sizes=1,16,64"}[o.length],
        )
    if len(o.sizes) > MOST_LENGTHS:
        raise InputError(
            f"target coreml: {len(o.sizes)} lengths; a function lists at most {MOST_LENGTHS}"
            " (Core ML Tools guide, Flexible Input Shapes)",
            "list fewer, or choose length=ranged",
        )
    if 1 in o.verify:
        raise InputError("target coreml: verify=1 is what decode does", "leave it out")
