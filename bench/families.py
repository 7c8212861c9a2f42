"""Published families against transformers: logits of every backend, greedy tokens; writes ``docs/models.md``.

python bench/families.py              # all, recorded
python bench/families.py qwen3 phi3   # only these model types, printed
python bench/families.py --page       # the page from the last recorded run
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omnic.ir.numeric import find_class
from omnic.models.checkpoints.family import Family, families

ROOT = Path(__file__).resolve().parents[1]
HISTORY = ROOT / "bench" / "history" / "families.jsonl"
TEXT, PAGE = ROOT / "docs" / "_text" / "models.md", ROOT / "docs" / "models.md"
EXAMPLE = ROOT / "examples" / "omnic-family-example" / "omnic_family_example" / "arcee.py"
COLUMNS = ("reference f64", "reference f32", "torch", "onnx")


def proved(only: list[str]) -> Iterator[dict[str, Any]]:
    """Prove every example of the wanted model types and yield one row each."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    sys.path.insert(0, str(ROOT))
    from common import row

    from tests.models.checkpoints.dense import DENSE
    from tests.models.checkpoints.proof import BACKENDS, Proof
    from tests.models.checkpoints.sparse import SPARSE

    for example in (*DENSE, *SPARSE):
        if only and example.family not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            proof = Proof(example, Path(folder))
            cases = {name: [finding.case for finding in proof.findings(name)] for name in COLUMNS}
            greedy = [proof.greedy(name) for name in BACKENDS]
            unread = proof.checkpoint.unread
        errors = {name: max(case.ratio for case in found) for name, found in cases.items()}
        problems = [f"{name}, {c.name}: {c.problem}" for name, found in cases.items() for c in found if not c.ok]
        problems += [f"{g.backend}: {g.agreed} of {g.steps} greedy tokens" for g in greedy if not g.ok]
        problems += [f"unknown keys: {', '.join(unread)}"] if unread else []
        agreed, steps, ties = (sum(getattr(g, what) for g in greedy) for what in ("agreed", "steps", "ties"))
        figure = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        figure += f", greedy {agreed} of {steps}" + (f" and {ties} near-ties" if ties else "")
        made = row(
            f"{example.family}: {example.name}",
            figure,
            "f64 1e-9, f32 2e-5, same tokens",
            not problems,
            family=example.family,
            errors=errors,
            ambiguous=sum(c.ambiguous for found in cases.values() for c in found),
            agreed=agreed,
            steps=steps,
            ties=ties,
        )
        print(f"  {made['what']}: {figure}" + "".join(f"\n    MISSED {p}" for p in problems), flush=True)
        yield made


def page(entry: dict[str, Any]) -> str:
    """Return the text of ``docs/models.md`` for a recorded run."""
    parts = {
        "families": _families(),
        "proof": _proof(entry),
        "transformers": entry["conditions"]["transformers"],
        "f64_bound": f"{find_class('f64').bound:.0e}".replace("e-0", "e-"),
        "f32_bound": f"{find_class('f32').bound:.0e}".replace("e-0", "e-"),
        "example": EXAMPLE.read_text(encoding="utf-8").strip(),
    }
    text = TEXT.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return text


def _distinct() -> list[Family]:
    return list({id(family): family for family in families().values()}.values())


def _families() -> str:
    lines = ["| models | `model_type` | written back | described in |", "|---|---|---|---|"]
    for family in _distinct():
        names = ", ".join(f"`{name}`" for name in family.model_types)
        lines.append(f"| {family.title} | {names} | {'yes' if family.publish else ''} | {family.source} |")
    return "\n".join(lines)


def _proof(entry: dict[str, Any]) -> str:
    head = "| models | configurations | " + " | ".join(COLUMNS) + " | greedy tokens |"
    lines = [head, "|---|---|" + "---|" * (len(COLUMNS) + 1)]
    for family in _distinct():
        rows = [r for r in entry["rows"] if r["family"] in family.model_types]
        if not rows:
            continue
        worst = [max(r["errors"][name] for r in rows) for name in COLUMNS]
        agreed, steps, ties = (sum(r[what] for r in rows) for what in ("agreed", "steps", "ties"))
        tokens = f"{agreed} of {steps}" + (f", {ties} near-ties" if ties else "")
        missed = "" if all(r["met"] for r in rows) else " **missed**"
        errors = " | ".join(f"{w:.1e}" for w in worst)
        lines.append(f"| {family.title}{missed} | {len(rows)} | {errors} | {tokens} |")
    rows = entry["rows"]
    excused, count = sum(r["ambiguous"] for r in rows), len(rows)
    lines.append(
        f"\n{entry['at']}, {entry['processor']}: {count} configurations, {sum(r['met'] for r in rows)} within "
        f"their class; {excused} positions were ambiguous."
    )
    return "\n".join(lines)


def main() -> int:
    """Run, record and write; 1 where something is not as transformers computes it."""
    from common import record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="model types; all when none is named")
    parser.add_argument("--page", action="store_true", help="only write the page, from the last recorded run")
    options = parser.parse_args()
    if options.page:
        entry = json.loads(HISTORY.read_text(encoding="utf-8").splitlines()[-1])
    else:
        rows = list(proved(options.families))
        if options.families:
            return int(not all(r["met"] for r in rows))
        import onnxruntime
        import torch
        import transformers

        versions = {m.__name__: m.__version__ for m in (transformers, torch, onnxruntime)}
        entry = record("families", versions | {"threads": 1}, rows)
    PAGE.write_text(page(entry), encoding="utf-8", newline="\n")
    print(f"docs/{PAGE.name}: written")
    return int(not all(r["met"] for r in entry["rows"]))


if __name__ == "__main__":
    sys.exit(main())
