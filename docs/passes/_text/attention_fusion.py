"""Draw docs/passes/attention-fusion.svg: one layer as an exporter writes it, and as composites.

Run it with ``python docs/passes/_text/attention_fusion.py``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from omnic.ir.decompose import decompose
from omnic.ir.graph import Module
from omnic.models import build
from omnic.passes.fusion import AttentionFusion
from omnic.spec import load_spec, scale

HERE = Path(__file__).resolve().parent.parent
ROW, LEFT, BAR, GAP = 17, 130, 170, 400
COLOURS = {False: "#9aa5b1", True: "#2f6f9f"}


def counts(module: Module, scope: str) -> list[tuple[str, int, bool]]:
    """Return op, number and whether it is a composite, for the nodes under ``scope``, the most frequent first."""
    from omnic.ir.op import find_op

    found = Counter(n.op for n in module.function().nodes if n.scope == scope or n.scope.startswith(f"{scope}."))
    return [(op, count, find_op(op).composite) for op, count in sorted(found.items(), key=lambda i: (-i[1], i[0]))]


def column(rows: list[tuple[str, int, bool]], x: int, title: str, most: int) -> list[str]:
    """Return one column of bars."""
    total = sum(count for _, count, _ in rows)
    out = [f'<text x="{x}" y="20" font-weight="bold">{title}: {total} nodes</text>']
    for index, (op, count, composite) in enumerate(rows):
        y = 36 + index * ROW
        out.append(f'<text x="{x + LEFT - 8}" y="{y + 11}" text-anchor="end">{op}</text>')
        out.append(f'<rect x="{x + LEFT}" y="{y}" width="{max(count * BAR / most, 2):.0f}" height="12" '
                   f'fill="{COLOURS[composite]}"/>')
        out.append(f'<text x="{x + LEFT + max(count * BAR / most, 2) + 5:.0f}" y="{y + 11}">{count}</text>')
    return out


def main() -> None:
    """Write the picture."""
    plain = decompose(build(scale(load_spec("mobile_2gb_moe16"))))
    fused = AttentionFusion().run(plain).module
    before, after = (counts(m, "blocks.0") for m in (plain, fused))
    most = max(count for _, count, _ in before)
    height = 36 + ROW * max(len(before), len(after)) + 30
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * GAP} {height}" role="img" '
             'font-family="sans-serif" font-size="12">',
             "<title>The nodes of one layer before and after attention-fusion</title>",
             *column(before, 0, "core ops", most), *column(after, GAP, "after attention-fusion", most),
             f'<text x="{GAP + LEFT}" y="{height - 10}" fill="{COLOURS[True]}">blue: composites</text>', "</svg>"]
    (HERE / "attention-fusion.svg").write_text("\n".join(parts) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
