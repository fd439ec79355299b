"""Training sets of `smol-domains-5` made from others that a shipped model may learn from, as JSON Lines.

    python benchmarks/smol_data.py --data data --out data/made

- `tools-unnamed`: MetaTool without the tools' names, so that what they do is read.
- `sections`: SelQA's sections as passages of a web page's kind, for its questions and for sentences taken out of them.
- `functions`: functions of permissively licensed packages installed here, for the first sentence of their docstring.
- `routes-unnamed`: MMLU-Pro's LLMs, 4 to 12 at a time, under names that mean nothing, so that places are read.
- `shown`: the four passage sets with BM25's place behind each candidate.

Each set is a folder with train.jsonl alone. Negatives are BM25's best of the whole set.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import random
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from r1ranker.baselines.notes import noted_by
from r1ranker.io.bm25 import scorer
from r1ranker.io.problems import read_jsonl, write_jsonl
from r1ranker.problem import Candidate, Problem, rng_for

PACKAGES = (
    *("numpy", "scipy", "pandas", "sklearn", "networkx", "sympy", "matplotlib", "requests", "aiohttp", "transformers"),
    *("torch", "fastapi", "starlette", "pydantic", "peft", "trl", "datasets", "accelerate", "sentence_transformers"),
    *("huggingface_hub", "lightgbm", "rich", "uvicorn", "joblib", "werkzeug"),
)
"""BSD, MIT, Apache-2.0 or matplotlib's licence (of the PSF's kind)."""
POOL = 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with metatool, nl2bash, medquad, selqa, route")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--packages", nargs="+", default=PACKAGES, help="whose functions are taken (%(default)s)")
    args = parser.parse_args()
    sets = {name: read_jsonl(args.data / name / "train.jsonl") for name in ("metatool", "nl2bash", "medquad", "selqa")}
    made = {
        "tools-unnamed": [unnamed_tools(p) for p in sets["metatool"]],
        "sections": list(sections(sets["selqa"])),
        "functions": list(functions(args.packages)),
        "routes-unnamed": [unnamed_llms(p) for p in read_jsonl(args.data / "route" / "train.jsonl")],
        "shown": [p for problems in sets.values() for p in shown(problems)],
    }
    for name, problems in made.items():
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(problems, folder / "train.jsonl")
        print(f"{name}: {len(problems)} problems", flush=True)


def unnamed_tools(problem: Problem) -> Problem:
    """The same request; a tool's text is what follows "Name: "."""
    candidates = tuple(dataclasses.replace(c, text=c.text.partition(": ")[2] or c.text) for c in problem.candidates)
    return dataclasses.replace(problem, qid=f"unnamed:{problem.qid}", task="tools-unnamed", candidates=candidates)


def shown(problems: Iterable[Problem]) -> list[Problem]:
    """The same problems with BM25's places, as `data.show: [bm25]` writes them."""
    renamed = [dataclasses.replace(p, qid=f"shown:{p.qid}", task=f"{p.task}-shown") for p in problems]
    return noted_by(["bm25"], [], renamed)


def unnamed_llms(problem: Problem) -> Problem:
    """Some of its LLMs under drawn names, without descriptions; places are those among them."""
    rng = rng_for("unnamed", problem.qid)
    some = rng.sample(problem.candidates, min(rng.randint(4, 12), len(problem.candidates)))
    names = {c.docid: f"{_name(rng)}-{i}" for i, c in enumerate(some, start=1)}
    candidates = (Candidate(names[c.docid], " | ".join([names[c.docid], *c.text.split(" | ")[1:3]])) for c in some)
    unnamed = dataclasses.replace(
        problem,
        qid=f"unnamed:{problem.qid}",
        task=f"{problem.task}-unnamed",
        candidates=tuple(candidates),
        gains={names[d]: problem.gains.get(d, 0) for d in names},
        prior={names[d]: problem.prior[d] for d in names},
    )
    return noted_by(["prior"], [], [unnamed])[0]


def _name(rng: random.Random) -> str:
    stem = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
    return f"{stem}-{rng.choice(('mini', 'chat', 'large', 'instruct', 'base', 'pro'))}"


def sections(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Passages of 40 to 110 words of SelQA's sections; asked for by its question, or by a sentence taken out."""
    asked, passages = [], []
    for problem in problems:
        rng = rng_for("sections", problem.qid)
        ordered = sorted(problem.candidates, key=lambda c: int(c.docid.rpartition("-")[2]))
        parts = _parts([c.docid for c in ordered], [c.text for c in ordered])
        for docids, texts in parts:
            if any(problem.gains.get(d, 0) > 0 for d in docids):
                asked.append((problem.query, " ".join(texts)))
        docids, texts = rng.choice(parts)
        if len(texts) > 2:
            out = rng.randrange(len(texts))
            asked.append((texts[out], " ".join(texts[:out] + texts[out + 1 :])))
        passages += [" ".join(texts) for _, texts in parts]
    yield from _mined("sections", asked, passages)


def _parts(docids: list[str], texts: list[str]) -> list[tuple[list[str], list[str]]]:
    parts: list[tuple[list[str], list[str]]] = [([], [])]
    for docid, text in zip(docids, texts, strict=True):
        if sum(len(t.split()) for t in parts[-1][1]) > 70:
            parts.append(([], []))
        parts[-1][0].append(docid)
        parts[-1][1].append(" ".join(text.split()[:60]))
    return parts


def functions(packages: Iterable[str]) -> Iterator[Problem]:
    """Functions without the first sentence of their docstring, which is the query."""
    asked: dict[str, str] = {}
    for package in packages:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or [] if spec else []:
            of_package: dict[str, str] = {}
            for file in sorted(Path(folder).rglob("*.py")):
                if "test" not in str(file.relative_to(folder)):
                    of_package |= dict(_described(file.read_text(encoding="utf-8", errors="ignore")))
            keys = sorted(of_package)
            for key in rng_for("functions", package).sample(keys, min(400, len(keys))):
                asked[key] = of_package[key]
    yield from _mined("functions", list(asked.items()), list(asked.values()))


def _described(source: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
        if not 4 <= len(first.split()) <= 25:
            continue
        signature = f"def {node.name}({', '.join(a.arg for a in node.args.args)}):"
        body = "\n".join(ast.unparse(part) for part in node.body[1:])
        code = " ".join(textwrap.shorten(part, 200, placeholder="") for part in (rest, body) if part.strip())
        query = re.sub(r"[`*:]|\(\)", "", " ".join(first.split())).rstrip(".")
        if len(body) > 40:
            yield (query, f"{signature} {code}")


def _mined(task: str, asked: list[tuple[str, str]], passages: list[str]) -> Iterator[Problem]:
    distinct = list(dict.fromkeys([*passages, *(text for _, text in asked)]))
    row = {text: i for i, text in enumerate(distinct)}
    found = scorer(distinct)([query for query, _ in asked])
    for number, ((query, text), scores) in enumerate(zip(asked, found, strict=True)):
        rng = rng_for(task, str(number))
        best = [int(i) for i in np.argsort(-scores, kind="stable")[: 2 * POOL]]
        own = {row[text]} | {i for i in best if query in distinct[i] or _alike(distinct[i], text)}
        others = [i for i in best if i not in own][: POOL + 4]
        rows = [row[text], *rng.sample(others, min(POOL - 1, len(others)))]
        rng.shuffle(rows)
        candidates = tuple(Candidate(str(i), distinct[i]) for i in rows)
        gains = {str(i): int(i == row[text]) for i in rows}
        yield Problem(f"{task}-{number}", task, "passage", query=query, candidates=candidates, gains=gains)


def _alike(text: str, other: str) -> bool:
    words, others = set(text.split()), set(other.split())
    return len(words & others) > 0.7 * min(len(words), len(others))


if __name__ == "__main__":
    main()
