"""What the measurements leave in ``docs/passes``: two pictures for weights, two for states, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.compression.bars import Measured
from bench.compression.pictures import Axis, Point, picture
from bench.compression.scoring import LENGTH, STRIDE

__all__ = ["write_pages"]

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "passes"
BEGIN, END = "<!-- measured: python -m bench.compression -->", "<!-- end of what was measured -->"

Found = Mapping[str, Mapping[str, Measured]]

_WEIGHTS = Axis("weights that forward reads, MB", log=True, unit=1e6)
_STATES = Axis("states, bytes a token (all layers)", log=True)
_KL = Axis("mean KL from the f32 model, nats a token", log=True)
#: below this the differences are those of chance, and a log axis needs an end
_FLOOR = 0.003
_PERCENT = Axis(f"bits per byte, % over the f32 model (up to {_FLOOR} drawn there)", log=True)


def write_pages(found: Found, checkpoints: Mapping[str, str]) -> None:
    """Write the pictures, and the section "Measured" of both pages."""
    images = FOLDER / "img"
    images.mkdir(parents=True, exist_ok=True)
    for name, weights, what, x in (("int4-packing", True, "Weights", _WEIGHTS), ("kv-quant", False, "States", _STATES)):
        rows = {model: [m for m in of.values() if m.row.weights == weights] for model, of in found.items()}
        draw(images / f"{name}-kl.svg", f"{what}: bytes against KL", rows, x, _KL, lambda m: m.score.mean_kl)
        draw(images / f"{name}-bpb.svg", f"{what}: bytes against bits per byte", rows, x, _PERCENT,
             lambda m: max(m.score.percent, _FLOOR))  # fmt: skip
        text = _section(name, weights, rows, checkpoints)
        page = FOLDER / "_text" / f"{name}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(_replaced(page.read_text("utf-8") if page.is_file() else "", text), encoding="utf-8")


def draw(
    file: Path,
    title: str,
    rows: Mapping[str, Sequence[Measured]],
    x: Axis,
    y: Axis,
    height: Callable[[Measured], float],
) -> None:
    """Write one picture of all models."""
    panels = {
        model: [
            Point(_size(m), height(m), m.row.family, m.row.name, m.row.label)
            for m in of
        ]
        for model, of in rows.items()
        if of
    }
    if panels:
        file.write_text(picture(title, panels, x, y), encoding="utf-8")


def _size(m: Measured) -> float:
    return float(m.weight_bytes if m.row.weights else m.kv_bytes)


def _replaced(page: str, section: str) -> str:
    """Return the page with its measured section replaced, or put at its end."""
    body = f"{BEGIN}\n{section.strip()}\n{END}"
    if BEGIN in page and END in page:
        before, _, rest = page.partition(BEGIN)
        return f"{before}{body}{rest.partition(END)[2]}"
    return f"{page.rstrip()}\n\n{body}\n".lstrip()


def _section(name: str, weights: bool, rows: Mapping[str, Sequence[Measured]], checkpoints: Mapping[str, str]) -> str:
    made = ", ".join(f"`{model}` (checkpoint {sha})" for model, sha in checkpoints.items())
    parts = [
        "## Measured",
        "",
        f"By `python -m bench.compression` on {made}: the whole held-out file in windows of {LENGTH} tokens, stride "
        f"{STRIDE}, every token scored once; ± is the standard error over windows, paired.",
    ]
    if weights:
        parts += [
            "Bytes are those of every weight that `forward` reads; the embedding (tied to the head) is i8 in groups of",
            "32, which is llama.cpp's Q8_0, unless the row says; `llama.cpp`: its own quantiser without an importance",
            "matrix, rows of 256, every matrix but routers.",
        ]
    else:
        parts += [
            "Evaluated by the reference: each window is one call from empty states, whose attention reads what the",
            "states hold. Bytes a token: all states of `forward` for one row, over the tokens they hold.",
        ]
    parts += ["", f"![bytes against KL](img/{name}-kl.svg)", "", f"![bytes against bits per byte](img/{name}-bpb.svg)"]
    for model, of in rows.items():
        parts += ["", f"### `{model}`", "", *_table(weights, of)]
    return "\n".join(parts) + "\n"


def _table(weights: bool, rows: Sequence[Measured]) -> list[str]:
    first = "| row | bytes | bits a weight |" if weights else "| row | bytes a token |"
    lines = [f"{first} bits per byte | KL, nats a token | same top token |", f"|---|{'---:|' * (5 if weights else 4)}"]
    for m in sorted(rows, key=lambda m: (-(m.weight_bytes if weights else m.kv_bytes), m.score.mean_kl)):
        name = f"llama.cpp {m.row.name}" if m.row.family == "llama.cpp" else m.row.name
        size = f"{m.weight_bytes:,} | {m.bits:.2f}" if weights else f"{m.kv_bytes:,.1f}"
        s = m.score
        lines.append(
            f"| {name} | {size} | {s.percent:+.3f} ± {s.percent_error:.3f} % | {s.mean_kl:.2e} ± {s.kl_error:.0e} | "
            f"{s.top1:.4f} |"
        )
    return lines
