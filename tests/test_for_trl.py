"""Training by TRL: its prompts are those of the rankers, its rewards those of our own training."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from r1ranker.backends.encoding import Encoder
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.datasets import mini
from r1ranker.errors import BackendError, ConfigError, DataError
from r1ranker.io.config import RunConfig
from r1ranker.problem import Problem
from r1ranker.prompts import build_prompt
from r1ranker.training.for_trl import dataset, reward
from r1ranker.training.rollout import State, rank_once, removals, whole_episode

pytest.importorskip("datasets")

MakeProblem = Callable[..., Problem]
CHAT = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}<e>\n{% endfor %}<s>assistant\n"
EXAMPLE = Path(__file__).parents[1] / "examples" / "trl_grpo.py"


@pytest.fixture
def problems(make_problem: MakeProblem) -> list[Problem]:
    return [make_problem(n, positive=1 + n % 3, qid=f"q{n}") for n in (3, 4, 12)]


def columns(rows: Any) -> dict[str, list[Any]]:
    """As TRL hands them to a reward function, with what else it hands over."""
    return {name: list(rows[name]) for name in rows.column_names if name != "prompt"} | {"trainer_state": [None]}


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("design", ["dranker", "iranker"])
@pytest.mark.parametrize("chat", [None, CHAT])
def test_trl_reads_the_tokens_that_a_ranker_reads(
    chat: str | None, design: Any, think: bool, backend: TransformersBackend, problems: list[Problem]
) -> None:
    tokenizer = backend.encoder.tokenizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "chat_template", chat)
        encoder = Encoder(tokenizer)
        for row in dataset(problems, tokenizer, design, think=think):
            problem = next(p for p in problems if p.qid == json.loads(row["problem"])["qid"])
            prompt = build_prompt(problem, row["pool"], design, think=think)
            assert tokenizer(text=[row["prompt"]])["input_ids"] == [encoder.encode(prompt)]


@pytest.mark.parametrize("chat", [None, "<|end|>" + CHAT])
@pytest.mark.parametrize("adds", [True, False])
def test_a_prompt_begins_with_one_beginning_token(
    adds: bool, chat: str | None, tiny_dir: Path, problems: list[Problem]
) -> None:
    tokenizer = TransformersBackend.load(str(tiny_dir)).encoder.tokenizer
    tokenizer.bos_token = "<|end|>"
    tokenizer.chat_template = chat
    if adds:
        special = [("<|end|>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=special)
    (row, *_) = dataset(problems, tokenizer, "dranker", think=True)
    prompt = build_prompt(problems[0], problems[0].identifiers, "dranker")
    read = tokenizer(row["prompt"])["input_ids"]
    assert read == Encoder(tokenizer).encode(prompt)
    assert read.count(tokenizer.bos_token_id) == 1


def test_a_dranker_has_a_row_for_each_problem(tiny: TransformersBackend, problems: list[Problem]) -> None:
    rows = dataset(problems, tiny.encoder.tokenizer, "dranker")
    assert [list(row["pool"]) for row in rows] == [list(p.identifiers) for p in problems]


def test_an_iranker_has_a_row_for_each_size_of_pool_with_a_relevant_candidate(
    tiny: TransformersBackend, problems: list[Problem]
) -> None:
    rows = dataset(problems, tiny.encoder.tokenizer, "iranker")
    by_qid = {p.qid: p for p in problems}
    sizes = Counter((json.loads(row["problem"])["qid"], len(row["pool"])) for row in rows)
    assert sizes == {(p.qid, n): 1 for p in problems for n in range(2, len(p.candidates) + 1)}
    assert all(any(map(by_qid[json.loads(r["problem"])["qid"]].is_relevant, r["pool"])) for r in rows)


def test_the_seed_draws_the_pools(tiny: TransformersBackend, problems: list[Problem]) -> None:
    first, same, other = (dataset(problems, tiny.encoder.tokenizer, seed=seed)["pool"] for seed in (0, 0, 1))
    assert list(first) == list(same) != list(other)


def test_layout_append_shows_the_whole_pool_and_what_has_left(
    tiny: TransformersBackend, problems: list[Problem]
) -> None:
    for row in dataset(problems[1:2], tiny.encoder.tokenizer, "iranker", layout="append", think=False):
        assert all(f"[{k}] text" in row["prompt"] for k in problems[1].identifiers)
        gone = [k for k in problems[1].identifiers if k not in row["pool"]]
        assert all(f"<answer>[{k}]</answer>" in row["prompt"] for k in gone)
        assert row["prompt"].endswith("<answer>")


def test_a_layout_in_which_other_tokens_would_be_read_is_refused(
    plain: TransformersBackend, problems: list[Problem]
) -> None:
    with pytest.raises(ConfigError, match="blocks is no text"):
        dataset(problems, plain.encoder.tokenizer, layout="blocks")
    joining = copy.deepcopy(plain.encoder.tokenizer)
    joining.add_tokens(["><"])  # as SmolLM2's has
    assert len(dataset(problems, joining)) > 0
    with pytest.raises(ConfigError, match="take layout relist"):
        dataset(problems, joining, layout="append")


def test_problems_that_reward_nothing_are_left_out(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    useless = [make_problem(4, gains={}), make_problem(1)]
    rows = dataset([*useless, make_problem(3, qid="good")], tiny.encoder.tokenizer, "dranker")
    assert [json.loads(text)["qid"] for text in rows["problem"]] == ["good"]
    with pytest.raises(DataError, match="nothing to reward"):
        dataset(useless, tiny.encoder.tokenizer)


def last_left(text: str, problem: Problem) -> int:
    """The identifier that a list of all others does not name."""
    (left,) = (k for k in problem.identifiers if f"[{k}]" not in text)
    return left


@pytest.mark.parametrize("kind", ["paper", "graded"])
@pytest.mark.parametrize("think", [True, False])
def test_a_sampled_ranking_earns_what_it_earns_in_our_own_training(
    think: bool, kind: str, backend: TransformersBackend, problems: list[Problem]
) -> None:
    ppo = {"max_new_tokens": 40, "reward": kind}
    config = RunConfig.model_validate({"design": "dranker", "think": think, "ppo": ppo})
    samples = [sample for (sample,) in rank_once(backend, [whole_episode(p) for p in problems], config)]
    rows = dataset(problems, backend.encoder.tokenizer, "dranker", think=think)
    written = [backend.encoder.decode(s.completion_ids) for s in samples]
    if not think:  # ours leaves out what there is no choice about
        written = [f"{text}>[{last_left(text, p)}]</answer>" for text, p in zip(written, problems, strict=True)]
    assert reward(list(rows["prompt"]), written, kind=kind, **columns(rows)) == [s.reward for s in samples]


@pytest.mark.parametrize("layout", ["relist", "append"])
def test_a_removal_without_a_thought_earns_what_it_earns_in_our_own_training(
    layout: Any, tiny: TransformersBackend, problems: list[Problem]
) -> None:
    rows = dataset(problems, tiny.encoder.tokenizer, "iranker", layout=layout, think=False)
    by_qid = {p.qid: p for p in problems}
    states = [State(by_qid[json.loads(row["problem"])["qid"]], tuple(row["pool"])) for row in rows]
    steps = removals(tiny, states, RunConfig.model_validate({"think": False}))
    written = [f"[{step.answer.ids[0]}]</answer>" for step in steps]
    earned = reward(list(rows["prompt"]), written, **columns(rows))
    assert earned == [step.sample.reward for step in steps]
    assert 0.0 in earned or 1.0 in earned


def test_a_conversation_is_scored_by_its_new_message(tiny: TransformersBackend, problems: list[Problem]) -> None:
    rows = dataset(problems, tiny.encoder.tokenizer, "dranker")
    said = "<think>so</think><answer>[2] > [1] > [3]</answer>"
    prompts = [[{"role": "user", "content": text}] for text in rows["prompt"]]
    messages = [[{"role": "assistant", "content": said}] for _ in prompts]
    assert reward(prompts, messages, **columns(rows)) == reward(prompts, [said] * 3, **columns(rows))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("<think>so</think><answer>[1]</answer>", 0.0),
        ("<think>so</think><answer>[2]</answer>", 1.0),
        ("<think>so</think><answer>[9]</answer>", -0.5),
        ("<think>so</think><answer>[2]</answer> and more", 1.0 - 1.0),
        ("<think>so", -1.0 - 1.0 - 0.75),
        ("", -1.0 - 1.0 - 1.0),
    ],
)
def test_a_removal_after_a_thought_earns_the_stated_reward(
    written: str, expected: float, tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    rows = dataset([make_problem(2)], tiny.encoder.tokenizer, "iranker", think=True)
    assert reward(list(rows["prompt"]), [written], **columns(rows)) == [expected]


def test_the_paper_s_reward_can_be_chosen_and_the_parts_are_logged(
    tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem = make_problem(3, gains={"d1": 2, "d2": 1})
    rows = dataset([dataclasses.replace(problem, relevant_at=2)], tiny.encoder.tokenizer, "iranker", think=False)
    whole = rows.select([1])
    logged: dict[str, float] = {}
    paper = partial(reward, kind="paper", log_metric=logged.__setitem__)
    assert reward([""], ["[2]</answer>"], **columns(whole)) == [0.5]
    assert paper([""], ["[2]</answer>"], **columns(whole)) == [1.0]
    assert logged == {"reward_format": 0.0, "reward_tags": 0.0, "reward_exclusion": 1.0, "broken": 0.0}


def test_rows_of_both_designs_train_together(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    problem = make_problem(2)
    both = [dataset([problem], tiny.encoder.tokenizer, d, think=False) for d in ("dranker", "iranker")]
    joined = {name: [*both[0][name], *both[1][name]] for name in both[0].column_names}
    logged: dict[str, float] = {}
    earned = reward(joined.pop("prompt"), ["[1]>[2]</answer>", "[1]</answer>"], log_metric=logged.__setitem__, **joined)
    assert earned == [1.0, 0.0]
    assert (logged["reward_ranking"], logged["reward_exclusion"]) == (1.0, 0.0)


def test_without_the_library_the_error_names_the_extra(
    tiny: TransformersBackend, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BackendError, match=r"pip install 'r1-ranker\[trl\]'"):
        dataset(problems, tiny.encoder.tokenizer)


def test_the_example_trains_and_then_ranks(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    command = [sys.executable, str(EXAMPLE), "--steps", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "reward_exclusion" in done.stdout
    problem = mini.load(limit=20)["test"][0]
    assert sorted(done.stdout.splitlines()[-1].split()) == sorted(c.docid for c in problem.candidates)
