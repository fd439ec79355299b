"""The picture in the README, drawn from published rows.

    python benchmarks/picture.py results/quickstart/seed0/results.json.gz docs/quickstart.svg

In: `results.json` of an evaluation, packed or not. Out: an SVG of each system's average, for light and dark ground.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from r1ranker.evaluation.charts import Interval, interval_chart
from r1ranker.evaluation.results import AVERAGE, read_results

STYLE = """<style>
svg { font: 11.5px system-ui, sans-serif; color: #8a9199; }
text { fill: #57606a; } .grid { stroke: #8a919955; } .ours { color: #0b6bcb; }
.whisker { stroke: currentColor; stroke-width: 1.5; opacity: .6; }
.dot { fill: currentColor; } .hollow { fill: none; stroke: currentColor; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) { text { fill: #b1bac4; } .ours { color: #62a8f5; } }
</style>"""
OURS = ("dranker", "iranker")
MEASURES = ("MRR", "nDCG@10")


def picture(rows: Path) -> str:
    """SVG text: MRR (full) and nDCG@10 (hollow) of every system, average over tasks, with 95 % intervals."""
    shown = [row for row in read_results(rows) if row.task == AVERAGE and row.measure in MEASURES]
    intervals = [
        Interval(
            row.system,
            row.value,
            row.ci_low,
            row.ci_high,
            kind="ours" if row.system in OURS else "",
            hollow=row.measure != MEASURES[0],
            note=row.measure,
        )
        for row in sorted(shown, key=lambda row: (MEASURES.index(row.measure), -row.value))
    ]
    svg = str(interval_chart(intervals, "MRR and nDCG@10 by system, average over tasks"))
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{STYLE}", 1) + "\n"


def main() -> None:
    """Parse, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("svg", type=Path)
    given = parser.parse_args()
    given.svg.write_text(picture(given.rows), encoding="utf-8")


if __name__ == "__main__":
    main()
