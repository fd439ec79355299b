"""verl's agent loop for both designs. In: a row of `data`. Out: verl's `AgentLoopOutput`s, next read by its trainer.

verl imports this module by name (`actor_rollout_ref.model.external_lib`) in each of its workers, which registers
the loop; the run's config stands in verl's own, under `r1ranker`. Rewards are put on the last token of each step, as
in our own PPO: verl's outputs have one reward for all of a sequence, so `EpisodeOutput` writes them itself.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from r1ranker.backends.base import STOP
from r1ranker.backends.encoding import Encoder
from r1ranker.errors import BackendError
from r1ranker.io.config import validated
from r1ranker.problem import Problem
from r1ranker.prompts import build_prompt
from r1ranker.ranking.plans import ranking_tokens
from r1ranker.training.rollout import whole_episode
from r1ranker.training.verl.data import TRAIN, problem_of
from r1ranker.training.verl.episode import Episode, Tokens, Written, run_episode, training_state
from r1ranker.training.verl.reward import reciprocal_rank

NAME = "r1ranker"


class EpisodeOutput(AgentLoopOutput):  # type: ignore[misc]  # verl has no types
    """An output with a reward on each step's last token: `rewards`, by place in the response."""

    rewards: dict[int, float]

    def as_dict(self) -> dict[str, Any]:
        """The fields that verl's trainer reads; `rm_scores` are the rewards by token."""
        fields: dict[str, Any] = super().as_dict()
        scores = torch.zeros(len(self.response_ids))
        for place, reward in fields.pop("rewards").items():
            scores[place] = reward
        return fields | {"rm_scores": scores}


@dataclass
class _Calls:
    """The calls of one row to verl's servers, all to the one that has the prefix cached."""

    client: Any
    encoder: Encoder
    sampling: Mapping[str, Any]
    seconds: float = 0.0
    request_id: str = field(default_factory=lambda: uuid4().hex)
    versions: list[tuple[Any, Any]] = field(default_factory=list)

    async def write(self, token_ids: list[int], limit: int) -> Written:
        """Sample on from the token ids, to the end of the answer."""
        began = time.perf_counter()
        stop = {"max_tokens": limit, "stop": [STOP], "include_stop_str_in_output": True}
        said = await self.client.generate(
            request_id=self.request_id, prompt_ids=token_ids, sampling_params={**self.sampling, **stop}
        )
        self.seconds += time.perf_counter() - began
        if not said.token_ids:
            raise BackendError(f"verl's server wrote nothing (it stopped because: {said.stop_reason})")
        self.versions.append((said.extra_fields.get("min_global_steps"), said.extra_fields.get("max_global_steps")))
        text = self.encoder.decode(said.token_ids)
        return Written(list(said.token_ids), list(said.log_probs or ()), text, len(said.token_ids) >= limit)

    def shared(self) -> dict[str, Any]:
        """What every output of the row says of its calls: seconds, and the weights' versions it was written by."""
        return {
            "metrics": AgentLoopMetrics(generate_sequences=self.seconds),
            "extra_fields": {
                "min_global_steps": self.versions[0][0],
                "max_global_steps": self.versions[-1][1],
                "turn_scores": [],
                "tool_rewards": [],
            },
        }


@register(NAME)
class RankerLoop(AgentLoopBase):  # type: ignore[misc]
    """One row at a time: a DRanker's ranking, an IRanker's episode, or one removal from a sampled state."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run_config = validated(OmegaConf.to_container(self.config.r1ranker), NAME)
        self.encoder = Encoder(self.tokenizer)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput | list[EpisodeOutput]:
        """The outputs of a row. Training rows of an IRanker begin where `training_state` says, others whole."""
        problem = problem_of(row["extra_info"])
        calls = _Calls(self.server_manager, self.encoder, sampling_params)
        if self.run_config.design == "dranker":
            return await self._ranking(problem, calls)
        state = whole_episode(problem)
        if row["extra_info"]["split"] == TRAIN:
            # The same for all of a group: verl calls with equal step and index for each of its members.
            drawn = f"verl:{self.run_config.seed}:{row.get('global_steps', 0)}:{row['extra_info']['index']}"
            state = training_state(problem, self.run_config, random.Random(drawn))
        episode = await run_episode(state, self.run_config, self.encoder, calls.write)
        return self._outputs(episode, problem, calls)

    async def _ranking(self, problem: Problem, calls: _Calls) -> AgentLoopOutput:
        """verl has it scored by `reward.compute_score`."""
        config = self.run_config
        tokens = Tokens(self.encoder.encode(build_prompt(problem, problem.identifiers, "dranker", think=config.think)))
        limit = ranking_tokens([problem], config.think, config.ppo.max_new_tokens)
        written = await calls.write(tokens.prompt_ids, limit)
        tokens.write(written)
        output = AgentLoopOutput(**_fields(tokens), num_turns=2, **calls.shared())
        output.extra_fields["truncated"] = written.truncated
        return output

    def _outputs(self, episode: Episode, problem: Problem, calls: _Calls) -> list[EpisodeOutput]:
        """One output for each sequence. `reward_score` is the episode's sum: verl wants one, and copies the last."""
        by_token = [tokens.rewards for tokens in episode.sequences]
        if self.config.algorithm.adv_estimator != "gae":
            # verl compares groups by the rewards of each member's last output, and spreads that over the others.
            last = len(episode.sequences[-1].response_ids) - 1
            by_token = [{} for _ in by_token[:-1]] + [{last: episode.total}]
        outputs = []
        for tokens, rewards in zip(episode.sequences, by_token, strict=True):
            output = EpisodeOutput(
                **_fields(tokens),
                num_turns=1 + len(episode.steps),
                rewards=rewards,
                reward_score=episode.total,
                **calls.shared(),
            )
            output.extra_fields["turn_scores"] = [reward.total for reward in episode.rewards]
            output.extra_fields["reward_extra_info"] = _logged(episode, problem)
            outputs.append(output)
        return outputs


def _logged(episode: Episode, problem: Problem) -> dict[str, float]:
    """What verl's validation reports beside the reward; a ranking where the whole pool was put in order."""
    order = (*episode.left, *reversed(episode.removed))
    whole = len(order) == len(problem.candidates) and len(episode.left) == 1
    return episode.means | ({"mrr": reciprocal_rank(problem, order)} if whole else {})


def _fields(tokens: Tokens) -> dict[str, Any]:
    return {
        "prompt_ids": tokens.prompt_ids,
        "response_ids": tokens.response_ids,
        "response_mask": tokens.mask,
        "response_logprobs": tokens.logprobs if len(tokens.logprobs) == len(tokens.mask) else None,
    }
