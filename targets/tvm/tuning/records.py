"""Records of tuning: one JSON object a line, with all that a value was measured under.

A record applies where the platform, the processor, the level, the threads and the sources of the kernels are those it
was measured with, and nowhere else.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from omnic.errors import InputError
from omnic.runtime.files import write_atomic
from omnic.runtime.kernels.build import SOURCES, cache_folder
from omnic.targets.tvm.tuning.products import ROWS, Product, read_panels

__all__ = ["SCHEMA", "SHIPPED", "Conditions", "LoopRecord", "ProductRecord", "Record", "Shape", "Tuning",
           "kernels_hash", "merged", "read_records", "user_folder", "write_records"]

SCHEMA = 1
#: the records that omnic brings
SHIPPED = Path(__file__).resolve().parent / "records"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Tuning(_Frozen):
    """``omnic_tuning``: what a field leaves out is as the level does it (runtime/kernels/include/omnic_kernels.h)."""

    panels: Literal[0, 1, 2, 4] = 0
    prefetch: Annotated[int, Field(ge=-1, le=1 << 16)] = -1
    k_block: Annotated[int, Field(ge=0, le=2048, multiple_of=64)] = 0
    chunk: Annotated[int, Field(ge=0, le=512, multiple_of=16)] = 0
    threads: Annotated[int, Field(ge=0, le=1024)] = 0

    def __str__(self) -> str:
        words = [f"{name} {value}" for name, value in self if value != type(self).model_fields[name].default]
        return ", ".join(words) or "as the level does"

    @property
    def c(self) -> str:
        """The initialiser in C."""
        return f"{{{', '.join(str(value) for _, value in self)}}}"


def _panels(text: str) -> str:
    read_panels(text)
    return text


class Shape(_Frozen):
    """The product of a record: :class:`Product` without the op."""

    n: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, strict=False)]
    k: Annotated[int, Field(ge=1)]
    weights: Annotated[tuple[Annotated[str, AfterValidator(_panels)], ...], Field(min_length=1, strict=False)]
    act: Annotated[str, Field(pattern=r"^(none|bf16|i8<(per_token|g[1-9]\d*)>)$")]
    experts: Annotated[int, Field(ge=0)] = 0
    top: Annotated[int, Field(ge=0)] = 0


class Conditions(_Frozen):
    """What a value was measured under.

    Attributes:
        schema_version: of the record.
        triple: platform.
        cpu: the processor and its widest vector unit, as :func:`omnic.runtime.machine.processor` says it.
        level: of the kernels.
        threads: of the pool.
        kernels: :func:`kernels_hash`; of a loop, the version of TVM.
        gain: how many times as fast as the level's own way (median of rounds).
        interval: of the gain, 99 %.
        measured_at: ISO 8601, UTC.
    """

    schema_version: Literal[1] = 1
    triple: Annotated[str, Field(min_length=1)]
    cpu: Annotated[str, Field(min_length=1)]
    level: Annotated[str, Field(min_length=1)]
    threads: Annotated[int, Field(ge=1)]
    kernels: Annotated[str, Field(min_length=1)]
    gain: Annotated[float, Field(gt=0, strict=False)]
    interval: Annotated[tuple[float, float], Field(strict=False)]
    measured_at: str


class ProductRecord(Conditions):
    """The tuning of a product for a class of rows."""

    op: Literal["linear", "linear_many", "moe"]
    shape: Shape
    rows: Literal["1", "2-16", "17-128", ">128"]
    tuning: Tuning

    @property
    def product(self) -> Product:
        """What it tunes."""
        return Product(op=self.op, **dict(self.shape))

    @property
    def key(self) -> tuple[Any, ...]:
        """What one record alone may speak for."""
        return self.triple, self.cpu, self.level, self.threads, self.product, self.rows

    def __str__(self) -> str:
        return f"{self.product}, rows {self.rows}, threads {self.threads}: {self.tuning} ({self.gain:.2f}x)"


class LoopRecord(Conditions):
    """The schedule of a generated loop.

    Attributes:
        loop: hash of its TIR.
        trace: of the schedule, as TVM writes it in JSON.
    """

    op: Literal["loop"]
    loop: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    trace: list[Any]

    @property
    def key(self) -> tuple[Any, ...]:
        """What one record alone may speak for."""
        return self.triple, self.cpu, self.level, self.threads, "loop", self.loop

    def __str__(self) -> str:
        return f"loop {self.loop}, threads {self.threads}: {len(self.trace[0])} steps ({self.gain:.2f}x)"


Record = ProductRecord | LoopRecord


def user_folder() -> Path:
    """Return the folder of this user's records: beside the built kernels, in the cache."""
    return cache_folder().parent / "tuning"


@functools.cache
def kernels_hash() -> str:
    """Return a hash of the sources that products are compiled from, but for comments and white space."""
    digest = hashlib.sha256()
    for path in sorted((SOURCES / "products").rglob("*.[ch]")):
        digest.update(f"\0{path.name}\0".encode())
        digest.update(re.sub(rb"/\*.*?\*/|\s+", b" ", path.read_bytes(), flags=re.DOTALL).replace(b" ", b""))
    return digest.hexdigest()[:16]


def read_records(path: Path) -> tuple[Record, ...]:
    """Return the records of a file, in order.

    Raises:
        InputError: the file cannot be read, or a line of it is no record; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the records cannot be read: {error}", "name a file that omnic tune wrote") from error
    found: list[Record] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            found.append(_record(f"{path}:{number}", line))
    return tuple(found)


def _record(place: str, line: str) -> Record:
    hint = "delete the line, or measure again: omnic tune MODEL"
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error.msg} at column {error.colno}", hint) from error
    if not isinstance(given, dict):
        raise InputError(f"{place}: a record is a JSON object", hint)
    version = given.get("schema_version")
    if version != SCHEMA:
        raise InputError(f"{place}: a record of schema {version!r}; this omnic reads {SCHEMA}", hint)
    try:
        return (LoopRecord if given.get("op") == "loop" else ProductRecord).model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "record"
        raise InputError(f"{place}: {where}: {first['msg'][:1].lower()}{first['msg'][1:]}", hint) from error


def merged(known: Iterable[Record], new: Iterable[Record], measured: Iterable[tuple[Any, ...]] = ()) -> list[Record]:
    """Return ``known`` with ``new`` in place of what they replace, and without what was ``measured`` and lost."""
    gone = {*measured, *(r.key for r in new)}
    return [*(r for r in known if r.key not in gone), *new]


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records to a file, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(r.model_dump(mode="json"), ensure_ascii=False) for r in records]
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())


assert {c.name for c in ROWS} == {"1", "2-16", "17-128", ">128"}
