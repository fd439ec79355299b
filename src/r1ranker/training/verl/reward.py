"""What verl calls to score a DRanker's completion. In: its text and the row it answers. Out: a score and its parts.

An IRanker is scored step by step while it runs (`episode`), so verl has nothing left to call for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r1ranker.answers import completed_order, parse_ranking
from r1ranker.elimination import ranking_from
from r1ranker.evaluation.measures import evaluate
from r1ranker.problem import Problem, Usage
from r1ranker.prompts import NO_THOUGHT
from r1ranker.rewards import score_ranking
from r1ranker.training.verl.data import problem_of


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    kind: str = "graded",
    think: bool = True,
) -> dict[str, float]:
    """The reward (`score`), its parts, whether the answer was `broken`, and the ranking's `mrr`, which verl logs.

    extra_info: the row's, and `truncated` where the agent loop says that the token limit cut the completion.
    kind, think: `ppo.reward` and `think` of the run. Without thoughts the prompt begins the completion.
    """
    info = extra_info or {}
    problem = problem_of(info)
    text = solution_str if think else NO_THOUGHT + solution_str
    answer = parse_ranking(text, problem.identifiers, bool(info.get("truncated")))
    reward = score_ranking(text, answer, problem, problem.identifiers, kind=kind)
    mrr = reciprocal_rank(problem, completed_order(answer, problem.identifiers))
    return {"score": reward.total, **reward.parts, "broken": float(answer.kind != "valid"), "mrr": mrr}


def reciprocal_rank(problem: Problem, order: Sequence[int]) -> float:
    """MRR of one ranking of the whole pool, best first."""
    return evaluate([ranking_from(problem, order, (), Usage())], [problem])["MRR"][problem.qid]
