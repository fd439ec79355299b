"""What training changes. In: a run's settings. Out: a `Learner` at step 0. Next in the data flow: `rollout`."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from r1ranker.backends.blocks import make_maskable
from r1ranker.backends.loading import cast, load, pick_dtype
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import BackendError
from r1ranker.io.config import PPOConfig, RunConfig
from r1ranker.training.batch import Batch, PoolBatch, Scores, score
from r1ranker.training.critic import Critic
from r1ranker.training.memory import add_lora, passes_in, without_lora
from r1ranker.training.parallel import Crew, join_crew
from r1ranker.training.sharding import gathered, part_of_tensor, shard, whole


@dataclass
class Learner:
    """Everything that PPO updates, and how far it has come.

    reference: a frozen network, or None: the policy without its adapters.
    dtype: of the passes and of what is saved. Weights are trained in float32 whatever it is: at small learning rates
        most updates are less than the last bit of a bfloat16.
    best, kept: the best score on dev, and the step whose model has it. origin: see `checkpoint.origin_of`.
    """

    backend: TransformersBackend
    reference: Any
    critic: Critic | None
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype = torch.float32
    step: int = 0
    tokens: int = 0
    best: float = -1.0
    kept: int = 0
    crew: Crew = field(default_factory=Crew)
    sharded: bool = False
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def policy(self) -> Any:
        """The network being trained."""
        return self.backend.network

    def alone(self) -> AbstractContextManager[None]:
        """In here this process makes passes at its own pace; of sharded networks it holds all weights meanwhile."""
        return whole(*passing(self.policy, self.reference, self.critic))

    def passes(self) -> AbstractContextManager[None]:
        """In here forward passes are computed in `dtype`."""
        return passes_in(self.dtype, self.policy.device)

    def reference_scores(self, batch: Batch | PoolBatch) -> Scores:
        """How the model that training began from sees a batch."""
        if self.reference is not None:
            return score(self.reference, batch)
        with without_lora(self.policy):  # which is the policy itself where nothing is asked of a reference
            return score(self.policy, batch)


def new_learner(config: RunConfig) -> Learner:
    """Policy, frozen reference, critic (for the estimator that has one) and optimizer at step 0."""
    crew = join_crew()
    network, tokenizer = load(config.model, config.device, "float32", config.threads)
    dtype = pick_dtype(config.dtype, network.device, network)
    if config.layout == "blocks":
        make_maskable(network, config.model)
    backend = TransformersBackend(network, tokenizer, name=config.model)  # while the network is whole: it is tried
    if not backend.pads:
        raise BackendError(f"{config.model} says other things beside padding, so it cannot be trained in batches here")
    torch.manual_seed(config.seed)
    critic = Critic(network, config.ppo.critic) if needs_critic(config) else None
    reference = None
    if config.ppo.lora:
        add_lora(network, config.ppo.lora, dtype)
    elif config.ppo.kl:
        reference = cast(copy.deepcopy(network).requires_grad_(False), dtype)
    sharded = config.ppo.shard and crew.size > 1
    for each in passing(network, reference, critic) if sharded else ():
        shard(each, dtype)
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [{"params": trained, "base_lr": config.ppo.actor_lr}]
    if critic is not None:
        groups.append({"params": list(critic.parameters()), "base_lr": config.ppo.critic_lr})
    optimizer = new_optimizer(groups, crew, sharded)
    return Learner(backend, reference, critic, optimizer, dtype, crew=crew, sharded=sharded)


def needs_critic(config: RunConfig) -> bool:
    """Whether sampled answers are credited by GAE; of answers credited whole the rewards are known."""
    return config.ppo.estimator == "gae" and config.ppo.answer == "sampled"


def passing(network: Any, reference: Any, critic: Critic | None) -> list[Any]:
    """The networks that make passes."""
    trunk = critic.trunk if critic is not None else None
    return [each for each in (network, reference, trunk) if each is not None]


def new_optimizer(groups: list[dict[str, Any]], crew: Crew, sharded: bool) -> torch.optim.Optimizer:
    """AdamW. Each process of several keeps the moments of its part of the weights (ZeRO stage 1, Rajbhandari 2020).

    With sharded weights their parts have the moments.
    """
    if crew.size == 1 or sharded:
        # One by one: weights in parts and whole ones cannot be worked on as a list. On a CPU the fused loop takes a
        # tenth of the time.
        how: dict[str, Any] = {"foreach": False} if sharded else {"fused": True}
        return torch.optim.AdamW(groups, weight_decay=0.0, **how)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, weight_decay=0.0)


def optimizer_state(learner: Learner) -> dict[str, Any]:
    """The optimizer's whole state on the leading process, nothing elsewhere; all processes have to call this."""
    if learner.sharded:
        state = learner.optimizer.state_dict()
        return state | {"state": {number: gathered(moments) for number, moments in state["state"].items()}}
    if learner.crew.size > 1:
        learner.optimizer.consolidate_state_dict(to=0)  # type: ignore[attr-defined]
    return learner.optimizer.state_dict() if learner.crew.leads else {}


def load_optimizer(learner: Learner, state: dict[str, Any]) -> None:
    """The optimizer goes on from a whole state."""
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    moments = {n: {k: part_of_tensor(v, parameters[n]) for k, v in of.items()} for n, of in state["state"].items()}
    learner.optimizer.load_state_dict(state | {"state": moments})


def finished(learner: Learner, ppo: PPOConfig) -> bool:
    """Whether the steps or the token budget are used up."""
    return progress(learner, ppo) >= 1.0


def progress(learner: Learner, ppo: PPOConfig) -> float:
    """Share of the run that is done, by steps or by tokens, whichever is further."""
    by_tokens = learner.tokens / ppo.token_budget if ppo.token_budget else 0.0
    return max(learner.step / ppo.steps, by_tokens)
