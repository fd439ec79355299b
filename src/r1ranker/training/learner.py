"""What training changes. In: a run's settings. Out: a `Learner` at step 0. Next in the data flow: `rollout`."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from r1ranker.backends.loading import load
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.training.config import PPOConfig, RunConfig
from r1ranker.training.critic import Critic
from r1ranker.training.parallel import Crew, join_crew


@dataclass
class Learner:
    """Everything that PPO updates, and how far it has come."""

    backend: TransformersBackend
    reference: Any
    critic: Critic | None
    optimizer: torch.optim.Optimizer
    step: int = 0
    tokens: int = 0
    best: float = -1.0
    crew: Crew = field(default_factory=Crew)

    @property
    def policy(self) -> Any:
        """The network being trained."""
        return self.backend.network


def new_learner(config: RunConfig) -> Learner:
    """Policy, frozen reference, critic (for the estimator that has one) and optimizer at step 0."""
    crew = join_crew()
    network, tokenizer = load(config.model, config.device, config.dtype, config.threads)
    torch.manual_seed(config.seed)
    critic = Critic(network, config.ppo.critic) if config.ppo.estimator == "gae" else None
    reference = copy.deepcopy(network).requires_grad_(False)
    groups = [{"params": list(network.parameters()), "base_lr": config.ppo.actor_lr}]
    if critic is not None:
        groups.append({"params": list(critic.parameters()), "base_lr": config.ppo.critic_lr})
    optimizer = torch.optim.AdamW(groups, lr=config.ppo.actor_lr, weight_decay=0.0)
    backend = TransformersBackend(network, tokenizer, name=config.model)
    return Learner(backend, reference, critic, optimizer, crew=crew)


def finished(learner: Learner, ppo: PPOConfig) -> bool:
    """Whether the steps or the token budget are used up."""
    return progress(learner, ppo) >= 1.0


def progress(learner: Learner, ppo: PPOConfig) -> float:
    """Share of the run that is done, by steps or by tokens, whichever is further."""
    by_tokens = learner.tokens / ppo.token_budget if ppo.token_budget else 0.0
    return max(learner.step / ppo.steps, by_tokens)
