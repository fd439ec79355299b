"""Training by TRL instead of `ppo`. In: problems and a tokenizer. Out: what its `GRPOTrainer` wants.

    rows = dataset(problems, tokenizer, "iranker", think=False)
    GRPOTrainer(model, reward_funcs=reward, train_dataset=rows, processing_class=tokenizer, args=...)

One row, of a problem with three candidates of which the second has left the pool:

    {"prompt": "Query: why is ... [1] Shorter waves ... [3] The sky is ... <think>\\n</think>\\n<answer>",
     "problem": '{"qid": "q17", ...}', "pool": [1, 3], "design": "iranker", "think": false}

Prompts, parser and rewards are those of the package, so a model ranks as it was trained. The prompt is plain text
with the chat template already in it: of a conversation TRL cannot begin the answer, and without thoughts the prompt
ends in how the answer begins. Next in the data flow: `rankers`, with the model that TRL saved.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from r1ranker.answers import parse_ranking, parse_removal
from r1ranker.backends.encoding import Encoder
from r1ranker.elimination import sampled_pool
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.extras import library
from r1ranker.io.problems import PROBLEM
from r1ranker.problem import Answer, Problem
from r1ranker.prompts import NO_THOUGHT, Design, Layout, Prompt, build_prompt, sampled_past
from r1ranker.rewards import Reward, score_ranking, score_removal


def dataset(
    problems: Sequence[Problem],
    tokenizer: Any,
    design: Design = "iranker",
    *,
    layout: Layout = "relist",
    think: bool = False,
    seed: int = 0,
) -> Any:
    """A `datasets.Dataset`. dranker: a row for each problem. iranker: a row for each size of pool, 2 to n.

    The pools are the paper's training states (see `sampled_pool`). Left out are problems that reward nothing: with
    a single candidate, or no relevant one. Raises DataError when none is left, BackendError without `datasets`,
    ConfigError for a layout in which TRL would read other tokens than a ranker.
    """
    if layout == "blocks":
        raise ConfigError("layout blocks is no text that TRL can read: take relist, or train by `r1ranker train`")
    kept = [p for p in problems if p.trainable]
    if not kept:
        raise DataError("no training problem has two candidates and a relevant one; there is nothing to reward")
    rng, encoder = random.Random(f"trl:{seed}"), Encoder(tokenizer)
    rows = [
        {
            "prompt": _as_text(prompt, encoder),
            "problem": PROBLEM.dump_json(problem).decode(),
            "pool": list(pool),
            "design": design,
            "think": think,
        }
        for problem in kept
        for pool, prompt in _states(problem, design, layout, think, rng)
    ]
    return library("datasets", "trl", "training by TRL").Dataset.from_list(rows)


def reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    problem: Sequence[str],
    pool: Sequence[Sequence[int]],
    design: Sequence[Design],
    think: Sequence[bool],
    kind: str = "graded",
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float]:
    """The total reward of each completion: a text, or the messages that follow a conversation.

    kind: a key of `rewards.REWARDS`; another one is set by `functools.partial(reward, kind="paper")`.
    log_metric: given by TRL; logs the means of the reward's parts and the share of broken answers.
    """
    columns = zip(completions, problem, pool, design, think, strict=True)
    scored = [
        _scored(_whole(completion, thinks), PROBLEM.validate_json(text), left, does, kind)
        for completion, text, left, does, thinks in columns
    ]
    if log_metric:
        for name, value in _means(scored).items():
            log_metric(name, value)
    return [each.total for each, _ in scored]


def _states(
    problem: Problem, design: Design, layout: Layout, think: bool, rng: random.Random
) -> Iterator[tuple[Sequence[int], Prompt]]:
    """What the policy is asked about one problem: pools, each with its prompt."""
    if design == "dranker":
        yield problem.identifiers, build_prompt(problem, problem.identifiers, design, think=think)
        return
    for size in range(2, len(problem.candidates) + 1):
        pool = sampled_pool(problem, size, rng)
        past = sampled_past(problem, pool, rng, think=think)
        yield pool, build_prompt(problem, pool, design, layout=layout, think=think, past=past)


def _as_text(prompt: Prompt, encoder: Encoder) -> str:
    """The text of which TRL's call of the tokenizer makes the token ids that `Encoder.encode` makes of the prompt.

    That call puts its own special tokens before a text, so the text must not begin with them too.
    """
    tokenizer = encoder.tokenizer
    added = tokenizer.decode(tokenizer("")["input_ids"])
    text = encoder.head(prompt.text).removeprefix(added) + prompt.transcript + prompt.prefill
    if list(tokenizer(text)["input_ids"]) != list(encoder.encode(prompt)):
        raise ConfigError(
            "this tokenizer joins what follows a step to the step before it, so TRL would read other tokens than a "
            "ranker: take layout relist"
        )
    return text


def _whole(completion: Any, think: bool) -> str:
    """The completion as it is scored. Without a thought its beginning stands in the prompt, as a prefill."""
    written = completion if isinstance(completion, str) else "".join(turn["content"] for turn in completion)
    return written if think else NO_THOUGHT + written


def _scored(text: str, problem: Problem, pool: Sequence[int], design: Design, kind: str) -> tuple[Reward, Answer]:
    """Whether it was cut by the limit makes no difference: no answer is no answer."""
    if design == "dranker":
        answer = parse_ranking(text, pool)
        return score_ranking(text, answer, problem, pool, kind), answer
    answer = parse_removal(text, pool)
    return score_removal(text, answer, problem, pool, kind), answer


def _means(scored: Sequence[tuple[Reward, Answer]]) -> Mapping[str, float]:
    """Means by the names that the log of `ppo` has, each over the completions that have the part."""
    names = dict.fromkeys(name for each, _ in scored for name in each.parts)
    parts = {f"reward_{n}": fmean(each.parts[n] for each, _ in scored if n in each.parts) for n in names}
    return parts | {"broken": fmean(answer.kind != "valid" for _, answer in scored)}
