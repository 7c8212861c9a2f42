"""Which records apply to a program: those of its platform, processor and kernels, the user's before omnic's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnic.errors import InputError
from omnic.runtime.kernels.toolchain import host_triple
from omnic.runtime.machine import processor
from omnic.targets.tvm.tuning.products import Product
from omnic.targets.tvm.tuning.records import (
    SHIPPED,
    LoopRecord,
    ProductRecord,
    Record,
    kernels_hash,
    read_records,
    user_folder,
)

__all__ = ["Found", "Tunings", "fingerprint", "tunings_for", "tunings_of"]


@dataclass(frozen=True)
class Found:
    """A record and the file that it is from."""

    record: Record
    file: str


@dataclass
class Tunings:
    """The records of one platform and processor.

    Attributes:
        triple: platform.
        cpu: processor.
        products: of products, first come first served.
        loops: of generated loops, by hash.
        stale: how many are of other sources of the kernels.
        used: those that a program asked for.
    """

    triple: str
    cpu: str
    products: Mapping[Product, Sequence[Found]] = field(default_factory=dict[Product, Sequence[Found]])
    loops: Mapping[str, Sequence[Found]] = field(default_factory=dict[str, Sequence[Found]])
    stale: int = 0
    used: dict[tuple[Any, ...], Found] = field(default_factory=dict[tuple[Any, ...], Found])

    def of(self, product: Product) -> list[ProductRecord]:
        """Return the records of a product, in order of level, threads and rows."""
        found = self.products.get(product, ())
        self.used.update({f.record.key: f for f in found})
        records = [f.record for f in found if isinstance(f.record, ProductRecord)]
        return sorted(records, key=lambda r: (r.level, r.threads, len(r.rows), r.rows))

    def loop(self, name: str, tvm: str) -> LoopRecord | None:
        """Return the record of a generated loop by its hash and TVM's version: of one thread, as loops run on one."""
        for found in self.loops.get(name, ()):
            record = found.record
            if isinstance(record, LoopRecord) and (record.threads, record.kernels) == (1, tvm):
                self.used[record.key] = found
                return record
        return None

    def about(self) -> list[dict[str, Any]]:
        """Return what ``program.json`` says of the records that were used."""
        return [
            {"what": str(f.record), "level": f.record.level, "threads": f.record.threads, "gain": f.record.gain,
             "interval": list(f.record.interval), "measured_at": f.record.measured_at, "from": f.file,
             "triple": self.triple, "cpu": self.cpu}
            for f in self.used.values()
        ]

    def remarks(self) -> tuple[str, ...]:
        """Say in words what was used, and what was left aside though it is of this processor."""
        found: list[str] = []
        if self.used:
            files = ", ".join(dict.fromkeys(f.file for f in self.used.values()))
            found.append(f"tuned by {_count(len(self.used))} of {self.cpu} on {self.triple} ({files})")
        if self.stale:
            found.append(f"left aside: {_count(self.stale)} of {self.cpu}, of other kernels than these; "
                         "omnic tune measures again")
        return tuple(found)


def _count(number: int) -> str:
    return f"{number} record{'s' * (number != 1)}"


def tunings_for(tuning: str, cpu: str = "host", triple: str = "host") -> Tunings:
    """Return the records that apply.

    Args:
        tuning: ``auto`` (this user's, then those that omnic brings), ``off``, or a file.
        cpu: the processor; ``host``: this machine's, and none where ``triple`` is another platform.
        triple: the platform; ``host``: this machine's.

    Raises:
        InputError: a file of records is damaged, or no record is of that processor.
    """
    foreign = triple not in ("host", host_triple())
    name = processor() if cpu == "host" else cpu
    found = Tunings(host_triple() if triple == "host" else triple, name)
    if tuning == "off" or (foreign and cpu == "host"):
        return found
    products: dict[Product, list[Found]] = {}
    loops: dict[str, list[Found]] = {}
    seen: set[tuple[Any, ...]] = set()
    cpus: dict[str, None] = {}
    for path, said in _files(tuning):
        for record in read_records(path):
            cpus[record.cpu] = None
            if (record.triple, record.cpu) != (found.triple, found.cpu) or record.key in seen:
                continue
            if isinstance(record, ProductRecord) and record.kernels != kernels_hash():
                found.stale += 1
                continue
            seen.add(record.key)
            if isinstance(record, ProductRecord):
                products.setdefault(record.product, []).append(Found(record, said))
            else:
                loops.setdefault(record.loop, []).append(Found(record, said))
    if cpu != "host" and name not in cpus:
        raise InputError(f"target tvm: there are no records of the processor '{cpu}'",
                         f"there are some of: {', '.join(cpus)}" if cpus else "measure on it: omnic tune MODEL")
    found.products, found.loops = products, loops
    return found


def _files(tuning: str) -> list[tuple[Path, str]]:
    """Return the files of records, the first word first, and how they are called in a program."""
    if tuning != "auto":
        return [(Path(tuning), tuning)]
    return [
        *((path, f"your records, {path.name}") for path in sorted(user_folder().glob("*.jsonl"))),
        *((path, f"omnic's records, {path.name}") for path in sorted(SHIPPED.glob("*.jsonl"))),
    ]


def tunings_of(options: Mapping[str, Any]) -> tuple[Tunings, ...]:
    """Return the records for the library, and after them those for the executable of another platform."""
    tuning, cpu, triple = (str(options[name]) for name in ("tuning", "cpu", "triple"))
    if tuning == "off":
        return ()
    if triple == "host":
        return (tunings_for(tuning, cpu),)
    return tunings_for(tuning), tunings_for(tuning, cpu, triple)


def fingerprint(options: Mapping[str, Any]) -> str:
    """Return a hash of the records that a program of these options may use, "" where there are none."""
    every = [
        one.record.model_dump_json()
        for tunings in tunings_of(options)
        for group in (*tunings.products.values(), *tunings.loops.values())
        for one in group
    ]
    return hashlib.sha256("\n".join(every).encode()).hexdigest() if every else ""
