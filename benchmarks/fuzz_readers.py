"""Damaged files against every reader. In: a number of inputs. Out: a table by reader, and an exit code.

    python benchmarks/fuzz_readers.py 20000 --seed 0

Each input is the files of one source, small and valid, with one to three changes of bytes in one of them. A reader must
say in an error of this package what is wrong, or read what is there. Counted are tracebacks (any other exception) and
losses: fewer problems than the valid files give, without a word of it. A change of an identifier or a number may make
another valid file; so for sources whose records stand alone a loss is only what is neither logged nor a file that
lost lines, and for histories of users, where one line changes who has enough items, losses are not counted.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from r1ranker.backends.prices import read_prices
from r1ranker.datasets import load
from r1ranker.datasets.jsonl import validate_jsonl
from r1ranker.errors import R1RankerError
from r1ranker.evaluation.results import read_csv
from r1ranker.io.config import load_config
from r1ranker.io.runs import read_run
from r1ranker.problem import Splits
from r1ranker.ranking.thoughts import read_thoughts

LONG = b"9" * 40
PIECES = (
    b"\xef\xbb\xbf", b"\xff", b"\xe9", b"\xed\xa0\xbd", b"\x00", b"\r", b"\n", b"\r\n", b"\t", b" ", b",", b'"',
    b"{", b"]", b"nan", b"inf", b"-1", b"1e999", LONG, b"null", b"\\ud83d", b"\xe2\x80\xa8", b"::", b"\x1f\x8b",
    b"- ", b": ", b"&a ", b"*a",
)  # fmt: skip
"""What is put into files: marks, ends of lines, separators, odd numbers, halves of characters."""


@dataclass(frozen=True)
class Reader:
    """Valid files, and how many things are read from their folder. alone: no record depends on another."""

    files: Mapping[str, bytes]
    read: Callable[[Path], int]
    alone: bool = True


@dataclass
class Outcome:
    """What became of the inputs of one reader. told: read in part, with a word of it. first: an example each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)


def _count(splits: Splits) -> int:
    return sum(map(len, splits.values()))


def _lines(*rows: object) -> bytes:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def _source(name: str, **options: object) -> Callable[[Path], int]:
    return lambda path: _count(load(name, path, **options))


@cache
def readers() -> dict[str, Reader]:
    """Every reader by name."""
    pool = [{"docid": f"d{i}", "text": f"owl {i} é"} for i in range(3)]
    own = [
        {"qid": f"q{i}", "task": "t", "scenario": "passage", "query": "owls", "candidates": pool, "gains": {"d1": 1}}
        for i in range(3)
    ]
    corpus = _lines(*({"_id": f"d{i}", "title": "Owls", "text": f"owl {i}"} for i in range(3)))
    run = _lines(*(f"{q} Q0 d{i} {i + 1} {9 - i} x" for q in (1, 2) for i in range(3)))
    texts = {"queries.tsv": _lines("1\towls", "2\tmice"), "qrels.txt": _lines("1 0 d1 2", "2 0 d2 1"), "run.txt": run}
    hits = [{"content": f"owl {i}", "docid": f"d{i}", "rank": i, "score": 9.5 - i} for i in range(6)]
    asked = [{"query": f"owls {q}", "hits": [hit | {"qid": q} for hit in hits]} for q in range(4)]
    documents = _lines(*({"id": f"d{i}", "content": f"owl {i}"} for i in range(3)))
    examples = _lines(
        *({"id": n, "query": "owl", "gold_ids": [f"d{n}"], "excluded_ids": ["d2"]} for n in range(2)),
    )
    judged = _lines(*(f"{q} 0 d{i} {2 - i}" for q in range(4) for i in range(2)))
    llms = {
        name: {"size": "7B", "feature": "quick", "input_price": 1, "output_price": 1 + i} for i, name in enumerate("ab")
    }
    asks = [{"question": f"question {n}", "scores": {"a": n % 2, "b": (n + 1) % 2}} for n in range(6)]
    calls = [
        {"prompt": f"question {n}", "model": model, "score": (n + i) % 2, "cost": 1e-3 * (n + 2 * i + 1), "time": n}
        for n in range(6)
        for i, model in enumerate("ab")
    ]
    thought = {"query": "owls", "task": "t", "thought": "x", "removed": "d1", "kind": "valid", "reward": 1.0}
    yaml = _lines("model: nano", "data:", "  - {source: mini, limit: 5}", "ppo:", "  steps: 7", "  kl: 1e-3")
    rows = _lines("task,system,split,measure,value,n,ci_low,ci_high", *(f"t,{s},test,MRR,0.5,3,0.1,0.9" for s in "ab"))
    router = {"llm_candidates.json": _lines(llms), "train.json": _lines(asks)}
    return {
        "jsonl": Reader({"test.jsonl": _lines(*own)}, _source("jsonl")),
        "jsonl.gz": Reader({"test.jsonl.gz": gzip.compress(_lines(*own))}, _source("jsonl")),
        "validate": Reader({"test.jsonl": _lines(*own)}, lambda path: 3 + len(validate_jsonl(path))),
        "trec": Reader(texts | {"corpus.jsonl": corpus}, _source("trec")),
        "trec.tsv": Reader(texts | {"corpus.tsv": _lines(*(f"d{i}\towl {i}" for i in range(3)))}, _source("trec")),
        "rankllm": Reader({"a.json": _lines(asked), "qrels.txt": judged}, _source("rankllm", tasks=["passage-bm25"])),
        "requests": Reader({"a.jsonl": _lines(*asked), "qrels.txt": judged}, _source("trec")),
        "bright": Reader(
            {"documents/bio-0.jsonl": documents, "examples/bio-0.jsonl": examples}, _source("bright", top_k=2)
        ),
        "msmarco-qa": Reader({"train-0.parquet": _parquet()}, _source("msmarco-qa", tasks=["passage-5"])),
        "llmrouter": Reader(router, _source("llmrouter", objectives=["performance"])),
        "routing-log": Reader(
            {"log.jsonl": _lines(*calls), "llms.json": _lines(llms)}, _source("routing-log", llms="llms.json")
        ),
        "run": Reader({"run": run}, lambda path: sum(len(r.docids) for r in read_run(path / "run"))),
        "yaml": Reader({"c.yaml": yaml}, lambda path: bool(load_config(path / "c.yaml"))),
        "prices": Reader(
            {"p": _lines("m: {input: 0.1, output: 0.2}")}, lambda path: len(read_prices(path / "p").by_model)
        ),
        "thoughts": Reader({"t": _lines(thought, thought)}, lambda path: len(read_thoughts(path / "t"))),
        "results": Reader({"r.csv": rows}, lambda path: len(read_csv(path / "r.csv"))),
    } | {
        name: Reader(files, _source(name.partition(".")[0], pool_size=3), alone=False)
        for name, files in _users().items()
    }


def _users() -> dict[str, dict[str, bytes]]:
    """Files of the sources of recommendation: six users with seven items of fourteen."""
    chosen = [(user, (user + i) % 14, 100 + i) for user in range(6) for i in range(7)]
    names = [(item, f"Film {item}, The (2000)") for item in range(14)]
    windows = "user_id,item_id,history_item_id,item_title,history_item_title,history_timestamp,timestamp"
    return {
        "movielens": {
            "movies.csv": _lines("movieId,title,genres", *(f'{i},"{name}",Drama' for i, name in names)),
            "ratings.csv": _lines("userId,movieId,rating,timestamp", *(f"{u},{i},4.0,{t}" for u, i, t in chosen)),
        },
        "movielens.dat": {
            "movies.dat": _lines(*(f"{i}::{name}::Drama" for i, name in names)),
            "ratings.dat": _lines(*(f"{u}::{i}::4::{t}" for u, i, t in chosen)),
        },
        "csv": {
            "items.csv": _lines("item,title", *(f'{i},"{name}"' for i, name in names)),
            "interactions.csv": _lines("user;item", *(f"{u};{i}" for u, i, _ in chosen)),
        },
        "recbole": {
            "x.item": _lines("item_id:token\ttitle:token", *(f"{i}\t{name}" for i, name in names)),
            "x.inter": _lines(
                "user_id:token\titem_id:token\ttimestamp:float", *(f"{u}\t{i}\t{t}" for u, i, t in chosen)
            ),
        },
        "lastfm": {
            "artists.dat": _lines("id\tname\turl\tpictureURL", *(f"{i}\t{name}\tu\tp" for i, name in names)),
            "user_artists.dat": _lines("userID\tartistID\tweight", *(f"{u}\t{i}\t{t}" for u, i, t in chosen)),
        },
        "amazon-windows": {
            "a.csv": _lines(
                windows, *(f'u{u},{i},"[\'{i}\']",Disc {i},"[\'Disc {i}\']","[{t}]",{t}' for u, i, t in chosen)
            )
        },
    }


def _parquet() -> bytes:
    row = {"is_selected": [1, 0, 0, 0, 0], "passage_text": [f"owl {i}" for i in range(5)]}
    rows = [{"query_id": n, "query": f"owls {n}", "passages": row} for n in range(3)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def mutated(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to three changes."""
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 5, 40))
        end = min(len(content), at + length)
        kind = rng.randrange(6)
        if kind == 0 and content:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        elif kind == 1:
            content = content[:at] + rng.choice(PIECES) + content[at:]
        elif kind == 2:
            content = content[:at] + content[end:]
        elif kind == 3:
            content = content[:at] + content[at:end] * 2 + content[end:]
        elif kind == 4:
            content = content[:at] + rng.choice(PIECES) + content[end:]
        elif rng.random() < 0.3:
            content = content[:at]
        else:
            lines = content.split(b"\n")
            one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[one], lines[other] = lines[other], lines[one]
            content = b"\n".join(lines)
    return content


def lay_out(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their paths in a folder."""
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


def tried(reader: Reader, valid: int, name: str, content: bytes, folder: Path) -> tuple[str, str]:
    """What becomes of a source one of whose files is replaced: refused, read, told, lost or traceback; and a detail."""
    lay_out(folder, reader.files | ({name: content} if name in reader.files else {}))
    with _told() as words:
        try:
            found = reader.read(folder)
        except R1RankerError:
            return "refused", ""
        except Exception:
            return "traceback", traceback.format_exc(limit=-3)
    if found >= valid or not reader.alone:
        return "read", ""
    if words.getvalue():
        return "told", ""
    before, after = (
        Counter(line for raw in text.split(b"\n") if (line := raw.strip()))
        for text in (reader.files[name], content.replace(LONG, b""))
    )
    joined = max(map(len, after), default=0) > 1.5 * max(map(len, before))  # two lines made one would be a loss
    if (before - after).total() > (after - before).total() and not joined:
        return "read", ""  # a whole line is gone, which no reader can know
    return "lost", f"{found} of {valid}"


@contextmanager
def _told() -> Iterator[io.StringIO]:
    """What the package logs."""
    words, log = io.StringIO(), logging.getLogger("r1ranker")
    handler, level = logging.StreamHandler(words), log.level
    handler.addFilter(lambda record: "the first stage is" not in record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield words
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = True


def fuzz(inputs: int, seed: int, seconds: float) -> dict[str, Outcome]:
    """`inputs` damaged files, shared out over the readers, or as many as `seconds` allow."""
    outcomes = {name: Outcome() for name in readers()}
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as top:
        folders = {name: Path(top) / name for name in readers()}
        valid: dict[str, int] = {}
        for name, reader in readers().items():
            lay_out(folders[name], reader.files)
            valid[name] = reader.read(folders[name])
        for number in range(inputs):
            if time.monotonic() > until:
                break
            name = list(outcomes)[number % len(outcomes)]
            reader, rng = readers()[name], random.Random(f"{seed}:{number}")
            file = rng.choice(list(reader.files))
            content = mutated(reader.files[file], rng)
            kind, detail = tried(reader, valid[name], file, content, folders[name])
            outcomes[name].counts[kind] += 1
            if detail:
                outcomes[name].first.setdefault(kind, f"input {number}, {file}: {detail}\n{content[:2000]!r}")
    return outcomes


def main() -> int:
    """Print the table; 1 where there is a traceback or a loss."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("inputs", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    arguments = parser.parse_args()
    outcomes = fuzz(arguments.inputs, arguments.seed, arguments.seconds)
    kinds = ("refused", "read", "told", "lost", "traceback")
    print(f"{'reader':16}{'inputs':>8}" + "".join(f"{kind:>11}" for kind in kinds))
    total: Counter[str] = Counter()
    for name, outcome in outcomes.items():
        total += outcome.counts
        print(f"{name:16}{outcome.counts.total():8}" + "".join(f"{outcome.counts[kind]:11}" for kind in kinds))
    print(f"{'all':16}{total.total():8}" + "".join(f"{total[kind]:11}" for kind in kinds))
    for name, outcome in outcomes.items():
        for kind, detail in outcome.first.items():
            print(f"\n{name}, {kind}: {detail}")
    return int(bool(total["lost"] or total["traceback"]))


if __name__ == "__main__":
    sys.exit(main())
