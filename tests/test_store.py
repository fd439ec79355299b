"""Query last: what is read of candidates serves every query, and a store of it changes no answer."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r1ranker.backends.blocks import Blocks, packed, read_all
from r1ranker.backends.models import resolve
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import ConfigError
from r1ranker.io.config import RunConfig, validated
from r1ranker.problem import Candidate, Problem, Ranking, part_of
from r1ranker.prompts import QueryPlace, Readout, Wanted, block_prompt, neutralise
from r1ranker.ranking.jobs import rank_file
from r1ranker.ranking.rankers import DRanker, IRanker
from r1ranker.ranking.spec import RankerSpec
from r1ranker.ranking.store import CandidateStore
from r1ranker.training import pools
from r1ranker.training.batch import Sample
from r1ranker.training.ppo import train
from test_blocks import check_one_pass_has_the_gradients_of_its_steps

TEXTS = (
    "the barn owl lives four years",
    "tractors need oil",
    "owls eat mice at night, and sometimes a young rabbit",
    "a red bicycle",
    "how long do barn owls live in the wild",
    "nine lives",
)
READOUTS: tuple[Readout, ...] = ("judge", "identifier")
ASKS: tuple[Wanted, ...] = ("worst", "best")


@pytest.fixture(scope="module")
def nano() -> TransformersBackend:
    return TransformersBackend.load("nano")


def problem(texts: Sequence[str] = TEXTS, query: str = "how long do barn owls live", qid: str = "q1") -> Problem:
    candidates = tuple(Candidate(f"d{n}", text) for n, text in enumerate(texts))
    return Problem(qid, "t", "passage", candidates, query=query, gains={"d0": 2, "d4": 1})


def ranker(backend: TransformersBackend, readout: Readout = "judge", ask: Wanted = "best") -> IRanker:
    return IRanker(backend, layout="blocks", readout=readout, ask=ask, query="last")


def said(ranking: Ranking) -> list[float]:
    return [p for step in ranking.steps for _, p in sorted(step.probabilities.items())]


@pytest.mark.parametrize("readout", READOUTS)
def test_neither_head_nor_blocks_say_anything_of_the_query(nano: TransformersBackend, readout: Readout) -> None:
    one, other = (
        nano.block_ids(block_prompt(problem(query=query), readout, "best", query="last"))
        for query in ("how long do barn owls live", "what does a tractor need")
    )
    assert (one.head, one.blocks, one.labels) == (other.head, other.blocks, other.labels)
    assert [question.sees for question in one.questions] == [question.sees for question in other.questions]
    assert all(a.ids != b.ids for a, b in zip(one.questions, other.questions, strict=True))


def test_all_that_a_query_says_stands_behind_the_candidates() -> None:
    bought = Problem(
        "q", "t", "recommendation", problem().candidates, query="for the garden", history=("a spade", "a hose")
    )
    prompt = block_prompt(bought, "judge", "best", query="last")
    assert prompt.text == "What will the user choose next?\n"
    assert prompt.prefill == "The user chose, oldest first:\n- a spade\n- a hose\nfor the garden\n"
    asked = replace(bought, instruction="Which one [1] lasts?")
    assert block_prompt(asked, "judge", "best", query="last").text == f"{neutralise(asked.instruction)}\n"


def test_a_judge_has_a_question_for_each_block_that_sees_the_head_and_that_block(nano: TransformersBackend) -> None:
    pool = nano.block_ids(block_prompt(problem(), "judge", "best", query="last"))
    row = packed([pool])
    (head,), blocks, questions = row.kinds
    for n, question in enumerate(questions):
        assert list(question.before) == [*head.own, *blocks[n].own]
        assert row.positions_L[question.begin] == len(head.own) + len(blocks[n].own)
    assert row.ends_S.tolist() == [part.end - 1 for part in (*blocks, *questions)]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("ask", ASKS)
def test_every_step_is_a_fresh_prompt_of_the_survivors(readout: Readout, ask: Wanted, kept: bool) -> None:
    backend, whole = TransformersBackend.load("nano"), problem()
    if kept:
        CandidateStore.build(ranker(backend, readout, ask), [problem(TEXTS[::-1], "another query")])
    ranking = ranker(backend, readout, ask).rank(whole)
    assert len(ranking.steps) == len(TEXTS) - 1
    read = backend.block_ids(block_prompt(whole, readout, ask, query="last"))
    for step in ranking.steps:
        fresh = _fresh(read, [k - 1 for k in step.pool])
        with torch.inference_mode():
            ((values, _),) = read_all(backend.network, [fresh], backend.encoder.yes_no(), 4096)
        values = values[0] if readout == "identifier" else values if ask == "best" else -values
        expected = torch.softmax(values.double(), -1).tolist()
        assert [step.probabilities[k] for k in step.pool] == pytest.approx(expected, abs=1e-5)


def _fresh(pool: Blocks, left: Sequence[int]) -> Blocks:
    """A pool that never held what has left."""
    if pool.judged:
        return pool.part(left)
    blocks, labels = (tuple(of[place] for place in left) for of in (pool.blocks, pool.labels))
    questions = tuple(replace(question, sees=tuple(range(len(left)))) for question in pool.questions)
    return Blocks(pool.head, blocks, questions, labels)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("design", ["worst", "best", "list"])
def test_any_order_of_the_candidates_gives_the_same_ranking(
    nano: TransformersBackend, readout: Readout, design: str
) -> None:
    def ranked(order: Sequence[int]) -> list[str]:
        shown = part_of(problem(), order)
        if design == "list":
            return list(DRanker(nano, layout="blocks", readout=readout, query="last").rank(shown).docids)
        ask: Wanted = "best" if design == "best" else "worst"
        return list(ranker(nano, readout, ask).rank(shown).docids)

    rng = random.Random(1)
    ids = problem().identifiers
    assert all(ranked(rng.sample(ids, len(ids))) == ranked(ids) for _ in range(3))


def test_pools_longer_than_a_row_are_read_in_parts(nano: TransformersBackend) -> None:
    read = nano.block_ids(block_prompt(problem(), "judge", "best", query="last"))
    whole, parts = (read_all(nano.network, [read], nano.encoder.yes_no(), most)[0][0] for most in (4096, 40))
    assert parts.tolist() == pytest.approx(whole.tolist(), abs=1e-4)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("ask", ASKS)
def test_an_episode_as_one_sequence_has_the_gradients_of_its_steps(
    nano: TransformersBackend, readout: Readout, ask: Wanted
) -> None:
    ppo = {"answer": "expected", "critic": "head", "kl": 0.0}
    settings: RunConfig = validated(
        {"model": "nano", "layout": "blocks", "query": "last", "readout": readout, "ask": ask, "ppo": ppo}, "test"
    )
    whole = problem()
    (episode,) = pools.episodes(nano, [(whole, whole.identifiers, True, random.Random(3))], settings)
    check_one_pass_has_the_gradients_of_its_steps(nano, episode, [_step(episode, t) for t in range(episode.steps)])


def _step(episode: Sample, t: int) -> Sample:
    assert episode.pool is not None and episode.allowed is not None
    left, pool = episode.allowed[t], episode.pool
    pool = _fresh(pool if pool.judged else replace(pool, questions=pool.questions[t : t + 1]), left)
    named = [left.index(episode.completion_ids[t])]
    return replace(episode, completion_ids=named, allowed=(tuple(range(len(left))),), steps=1, pool=pool)


@pytest.mark.parametrize("readout", READOUTS)
def test_with_a_store_a_query_reads_the_query_alone_and_says_the_same(readout: Readout, tmp_path: Path) -> None:
    file = tmp_path / "store.safetensors"
    spec = RankerSpec(model="nano", layout="blocks", readout=readout, ask="best", query="last", dtype="float32")
    without = spec.build()
    plain = [without.rank(problem(query=query, qid=query)) for query in ("how long do owls live", "what needs oil")]

    built = spec.build()
    CandidateStore.build(built, [problem(query="of no matter")]).save(file)
    mapped = replace(spec, store=file).build()
    assert len(CandidateStore(mapped.backend)) == len(TEXTS)
    for one in (built, mapped):
        for expected in plain:
            ranking = one.rank(problem(query=expected.qid, qid=expected.qid))
            assert ranking.docids == expected.docids
            assert said(ranking) == pytest.approx(said(expected), abs=1e-5)
            prompt = block_prompt(problem(query=expected.qid), readout, "best", query="last")
            pool = mapped.backend.block_ids(prompt)  # type: ignore[union-attr]
            questions = len(TEXTS) if readout == "judge" else len(TEXTS) - 1
            assert ranking.usage.prompt_tokens == questions * len(pool.questions[0].ids)


def test_what_a_store_lacks_is_added_and_what_it_has_is_not_read_again(tmp_path: Path) -> None:
    file, problems = tmp_path / "store.safetensors", tmp_path / "problems.jsonl"
    spec = RankerSpec(model="nano", layout="blocks", ask="best", query="last", store=file)

    def job(name: str, texts: Sequence[str]) -> tuple[int, int]:
        record = {"qid": "q", "task": "t", "scenario": "passage", "query": "how long do owls live"}
        record["candidates"] = [{"docid": f"d{n}", "text": text} for n, text in enumerate(texts)]  # type: ignore[assignment]
        problems.write_text(json.dumps(record) + "\n", encoding="utf-8")
        result = rank_file(problems, spec, tmp_path / name, resume=False, trace=None)
        return result.usage.prompt_tokens, len(CandidateStore(spec.build().backend))

    first, known = job("a.trec", TEXTS[:4])
    assert known == 4
    again, known = job("b.trec", TEXTS[3::-1])
    assert again < first and known == 4
    changed, known = job("c.trec", [*TEXTS[:3], TEXTS[3].replace("red", "blue"), TEXTS[4]])
    assert again < changed < first and known == 6


def test_a_store_of_another_model_or_of_nothing_is_refused(nano: TransformersBackend, tmp_path: Path) -> None:
    file, other = tmp_path / "store.safetensors", tmp_path / "other"
    CandidateStore.build(ranker(TransformersBackend.load("nano")), [problem()]).save(file)
    shutil.copytree(resolve("nano"), other)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ConfigError, match=r"what another model read: weights differ; delete it"):
        CandidateStore.open(file, TransformersBackend.load(str(other)))
    with pytest.raises(ConfigError, match=r"what another model read: dtype differ"):
        CandidateStore.open(file, TransformersBackend.load("nano", dtype="bfloat16"))
    with pytest.raises(ConfigError, match="is no store of candidates"):
        CandidateStore.open(weights, TransformersBackend.load("nano"))
    in_memory = TransformersBackend(nano.network, nano.encoder.tokenizer)
    with pytest.raises(ConfigError, match="the files of model are not here"):
        CandidateStore.build(ranker(in_memory), [problem()]).save(tmp_path / "new")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layout": "relist", "query": "last"}, "query last is of layout blocks"),
        ({"layout": "blocks", "query": "first", "store": "s"}, "reads its candidates for each query"),
        ({"layout": "blocks", "query": "last", "store": "s", "thoughts": "t"}, "thoughts of other queries"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RankerSpec(**settings).check()  # type: ignore[arg-type]


def test_a_store_is_refused_for_a_model_that_reads_candidates_for_each_query(
    nano: TransformersBackend, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="reads its candidates for each query"):
        RankerSpec(store=tmp_path / "s").around(nano)
    with pytest.raises(ConfigError, match="query last"):
        CandidateStore.build(IRanker(nano, layout="blocks"), [problem()])
    with pytest.raises(ConfigError, match="with the model in this process"):
        CandidateStore(ScriptedBackend([]))
    with pytest.raises(ConfigError, match="query=last is of layout blocks"):
        validated({"query": "last"}, "test")


def test_a_model_trained_with_the_query_last_is_asked_so(tmp_path: Path) -> None:
    ppo = {"steps": 1, "batch": 2, "minibatch": 2, "answer": "expected", "critic": "head", "validate_problems": 0}
    settings = {"model": "nano", "layout": "blocks", "ask": "best", "out": str(tmp_path), "ppo": ppo}
    model = train(validated(settings | {"query": "last"}, "test"), {"train": [problem()], "dev": []})
    trained = TransformersBackend.load(str(model))
    place: QueryPlace = "last"
    assert trained.trained_in["query"] == place
    assert RankerSpec(model=str(model)).around(trained).query == place  # type: ignore[attr-defined]
    assert RankerSpec(model=str(model), layout="relist").around(trained).query == "first"  # type: ignore[attr-defined]
