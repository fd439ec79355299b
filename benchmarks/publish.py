"""A finished run, or a benchmark's file, as published results: one folder an experiment.

    python benchmarks/publish.py runs/quickstart quickstart --run seed0 --title "The quickstart" \\
        --command "r1ranker quickstart --seed 0"
    r1ranker reproduce report --out results --pages docs/results

In: a folder of `r1ranker evaluate`, `quickstart`, `reproduce` or `train`, or a JSON file. Out: `results/<experiment>/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from r1ranker.experiments.published import publish


def main() -> None:
    """Parse and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("experiment", help="name of the folder below results/")
    parser.add_argument("--run", default="", help="name of this run among several of the experiment")
    parser.add_argument("--title", default="", help="title of its page; kept from the last time when left out")
    parser.add_argument("--command", action="append", default=[], help="what made it; repeatable, added to those known")
    given = parser.parse_args()
    publish(given.source, Path("results") / given.experiment, run=given.run, title=given.title, commands=given.command)


if __name__ == "__main__":
    main()
