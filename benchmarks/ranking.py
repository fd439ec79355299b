"""What a ranking costs: elimination as the paper evaluates it against ours, and every cheaper way.

    python benchmarks/ranking.py                      # time and tokens, random weights, n = 20 and 100
    python benchmarks/ranking.py --quality IRANKER --direct DRANKER      # models of `reproduce main --scale mini`
    python benchmarks/ranking.py --quality runs/real/model --config real --tasks passage-5 passage-7
    python benchmarks/ranking.py --quality runs/real/model --config top100.yaml --tasks dl19-passage --window 9

The paper's loop writes the remaining candidates anew at each step and generates from the whole prompt, all
queries in lock step (its evaluation, section 4). Random weights cost what trained ones cost; orders are
compared where both read the same prompts.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from r1ranker.answers import parse_removal, removal_of
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.baselines.notes import load_splits
from r1ranker.cli.common import write_json
from r1ranker.datasets import mini_recommendation
from r1ranker.evaluation.systems import evaluate_systems
from r1ranker.experiments.report import by_system
from r1ranker.io.config import ScratchConfig, load_config
from r1ranker.io.provenance import provenance
from r1ranker.problem import Candidate, Problem, first_by_task
from r1ranker.prompts import build_prompt
from r1ranker.ranking.plans import Budget
from r1ranker.ranking.rankers import DRanker, Hybrid, IRanker, Ranker, Shuffled, Tournament, Windows, Within
from r1ranker.training.scratch import new_network, train_tokenizer

THOUGHT_TOKENS = 24
ANSWER_TOKENS = 8


def pool_of(n: int, number: int) -> Problem:
    """A recommendation among n titles of the embedded catalogue."""
    items = mini_recommendation.catalogue("movie", 0)
    rng = random.Random(number)
    shown, history = rng.sample(items, n), rng.sample(items, 7)
    candidates = tuple(Candidate(item.docid, item.text) for item in shown)
    return Problem(f"q{number}", "rec", "recommendation", candidates, history=tuple(i.title for i in history))


def random_model(n: int) -> TransformersBackend:
    """A small network with random weights; identifiers up to n are one token each."""
    shape = ScratchConfig(hidden=128, layers=3, heads=4, context=65536, identifiers=n)
    texts = [build_prompt(p, p.identifiers, "iranker", think=False).text for p in (pool_of(n, i) for i in range(200))]
    tokenizer = train_tokenizer(texts, shape)
    return TransformersBackend(new_network(tokenizer, shape, 0).eval(), tokenizer, name="random")


def paper_loop(backend: TransformersBackend, problems: list[Problem], think: bool) -> tuple[list[list[int]], int]:
    """(orders, prompt tokens computed): re-listed prompts, a whole generation for each, all in lock step."""
    pools = [list(problem.identifiers) for problem in problems]
    gone: list[list[int]] = [[] for _ in problems]
    computed = 0
    for _ in range(len(pools[0]) - 1):
        prompts = [build_prompt(p, pool, "iranker", think=think) for p, pool in zip(problems, pools, strict=True)]
        limit = THOUGHT_TOKENS if think else ANSWER_TOKENS
        for i, completion in enumerate(backend.generate(prompts, max_new_tokens=limit)):
            answer = parse_removal(prompts[i].prefill + completion.text, pools[i], completion.truncated)
            removed = removal_of(answer, tuple(pools[i]))
            pools[i].remove(removed)
            gone[i].append(removed)
            computed += completion.prompt_tokens
    return [pool + removed[::-1] for pool, removed in zip(pools, gone, strict=True)], computed


def measured(work: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds)."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def time_and_tokens(n: int, queries: int) -> list[dict[str, Any]]:
    """Rows for one pool size; all on one model, one after the other."""
    backend = random_model(n)
    problems = [pool_of(n, i) for i in range(queries)]
    recomputing = TransformersBackend(backend.network, backend.encoder.tokenizer)
    recomputing._prefixes = None
    rows = []

    def add(
        name: str, think: bool, seconds: float, computed: float, orders: list[tuple[str, ...]] | None = None
    ) -> None:
        rows.append(
            {"n": n, "think": think, "system": name, "seconds": seconds / queries, "prompt_tokens": computed / queries}
        )
        if orders is not None:
            rows[-1]["orders"] = orders

    for think in (False, True):
        (_, computed), seconds = measured(lambda think=think: paper_loop(backend, problems, think))
        add("paper's loop", think, seconds, computed)
        limit = THOUGHT_TOKENS if think else ANSWER_TOKENS * n
        rankers: dict[str, Ranker] = {
            "relist": IRanker(backend, think, "relist", max_new_tokens=limit),
            "append, recomputed": IRanker(recomputing, think, "append", max_new_tokens=limit),
            "append": IRanker(backend, think, "append", max_new_tokens=limit),
            "direct": DRanker(backend, think, max_new_tokens=limit),
        }
        if n > 20:  # recomputing a hundred growing prompts is what nobody should wait for twice
            del rankers["append, recomputed"]
        for name, ranker in rankers.items():
            backend.forget()  # else one ranker reads what the one before has computed
            rankings, seconds = measured(lambda ranker=ranker: ranker.rank_many(problems))
            add(name, think, seconds, sum(r.usage.prompt_tokens for r in rankings), [r.docids for r in rankings])
    return rows


def report(rows: list[dict[str, Any]], console: Console) -> None:
    """A line for each row, with how many times less than the paper's loop it costs."""
    table = Table("n", "think", "system", "s/query", "prompt tokens/query", "fewer tokens", "faster", title="cost")
    for row in rows:
        base = next(r for r in rows if (r["n"], r["think"], r["system"]) == (row["n"], row["think"], "paper's loop"))
        table.add_row(
            str(row["n"]),
            "on" if row["think"] else "off",
            row["system"],
            f"{row['seconds']:.4f}",
            f"{row['prompt_tokens']:.0f}",
            f"{base['prompt_tokens'] / row['prompt_tokens']:.1f}x",
            f"{base['seconds'] / row['seconds']:.1f}x",
        )
    console.print(table)
    for think in (False, True):
        kept, anew = (
            next((r["orders"] for r in rows if r["system"] == name and r["think"] == think and "orders" in r), None)
            for name in ("append", "append, recomputed")
        )
        if kept and anew:
            same = mean(a == b for a, b in zip(kept, anew, strict=True))
            console.print(
                f"append, kept against recomputed, thoughts {'on' if think else 'off'}: {same:.0%} equal orders"
            )


def ways(backend: TransformersBackend, listing: TransformersBackend, window: int | None) -> dict[str, Ranker]:
    """Every knob once, around one model, but for `listing`, which ranks directly on its own.

    With a window each slides it over the list by half its size.
    """

    def slid(ranker: Ranker) -> Ranker:
        return Windows(ranker, window, window // 2) if window else ranker

    def it(**knobs: Any) -> Ranker:
        return slid(IRanker(backend, think=False, **knobs))

    direct = slid(DRanker(backend, think=False))
    return {
        "direct": slid(DRanker(listing, think=False)),
        "relist": it(),
        "append": it(layout="append"),
        "drop-2": it(drop=2),
        "drop-4": it(drop=4),
        "top-k-5": it(top_k=5),
        "top-k-10": it(top_k=10),
        "budget-8-calls": Within(it(), Budget(calls=8)),
        "budget-1500-tokens": Within(it(), Budget(tokens=1500)),
        "direct-then-head-5": Hybrid(it(), direct, 5),
        "direct-then-head-10": Hybrid(it(), direct, 10),
        "direct-then-tail-10": Hybrid(it(), direct, 10, "tail"),
        "windows-10-5": Windows(IRanker(backend, think=False), 10, 5),
        "tournament-5": Tournament(IRanker(backend, think=False), 5),
        "3-shuffles": Shuffled(it(), 3),
    }


def quality(
    model: str, direct: str | None, problems: Sequence[Problem], window: int | None, out: Path
) -> list[dict[str, Any]]:
    """Means over tasks of MRR, nDCG@10 and the cost of a query, for every way; `out` gets a report with the plot."""
    backend = TransformersBackend.load(model)
    rankers = ways(backend, TransformersBackend.load(direct) if direct else backend, window)
    given = {name: ranker.rank_many(problems, progress=name) for name, ranker in rankers.items()}
    title = "Quality against cost of every way to rank"
    rows = evaluate_systems(["random", "prior"], problems, out=out, given=given, title=title).rows
    columns = ("MRR", "nDCG@10", "calls", "prompt_tokens", "generated_tokens", "seconds")
    found = {column: {s: row.value for s, row in by_system(rows, column).items()} for column in columns}
    return [
        {
            "system": system,
            "MRR": found["MRR"][system],
            "nDCG@10": found["nDCG@10"][system],
            "calls": found["calls"][system],
            "tokens": found["prompt_tokens"][system] + found["generated_tokens"][system],
            "ms": 1000 * found["seconds"][system],
        }
        for system in rankers
    ]


def main() -> None:
    """Parse, run, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=16, help="queries for n = 20; an eighth of that for n = 100")
    parser.add_argument("--quality", metavar="MODEL", help="quality against cost with this model")
    parser.add_argument("--direct", metavar="MODEL", help="what ranks directly, where it is another model")
    parser.add_argument("--config", type=Path, help="YAML whose data are ranked; default the embedded ones")
    parser.add_argument("--tasks", nargs="+", help="of these, some")
    parser.add_argument("--per-task", type=int, default=60)
    parser.add_argument("--window", type=int, help="for lists longer than the model was trained on")
    parser.add_argument("--out", type=Path, default=Path("runs/ranking-quality"), help="where its report goes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    if arguments.quality:
        everything = load_splits(load_config(arguments.config).data)["test"]
        test = [p for p in everything if not arguments.tasks or p.task in arguments.tasks]
        some = first_by_task(test, arguments.per_task)
        rows = quality(arguments.quality, arguments.direct, some, arguments.window, arguments.out)
        table = Table(*rows[0], title="quality against cost, test split")
        for row in rows:
            table.add_row(*(value if isinstance(value, str) else f"{value:.3f}" for value in row.values()))
        console.print(table)
    else:
        rows = time_and_tokens(20, arguments.queries) + time_and_tokens(100, max(1, arguments.queries // 8))
        report(rows, console)
    saved = [{key: value for key, value in row.items() if key != "orders"} for row in rows]
    write_json(arguments.json, {"provenance": provenance(), "rows": saved})


if __name__ == "__main__":
    main()
