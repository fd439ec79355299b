"""One YAML file describes a run; these types say what may stand in it.

    model: nano
    design: iranker
    data: [{source: mini}]
    ppo: {steps: 300}

Every key can be set from the command line (`ppo.steps=500`). Unknown keys are refused with the nearest
known name. The parts of training stand here too, since a run is checked as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from r1ranker.errors import ConfigError, DataError
from r1ranker.io import configs
from r1ranker.io.strict import Strict, override_key, read_keys, valid_as
from r1ranker.problem import Problem
from r1ranker.prompts import Design, Layout, QueryPlace, Readout, Wanted
from r1ranker.rewards import REWARDS, is_own
from r1ranker.scenarios import Scenario, scenarios_of

BESIDE_BYTES = 6
"""Of a vocabulary from nothing: padding, the end, and four tags."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class DataConfig(Strict):
    """One source: its name in `datasets.SOURCES`, where it lies, and the loader's own options."""

    source: str = Field("mini", description="its name in `r1ranker data list`")
    path: Path | None = Field(None, description="its folder or file")
    seed: int = Field(0, description="of splits, pools and negatives")
    limit: int | None = Field(None, ge=1, description="problems per task and split, at most")
    show: tuple[str, ...] = Field(
        (), description="rankers whose places the model reads: prior, bm25, bm25=other words for it"
    )
    splits: tuple[Literal["train", "dev", "test"], ...] = Field(
        ("train", "dev", "test"), min_length=1, description="those that are used; `[test]`: trained on by nothing"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="of the source, see below")

    @property
    def held_out(self) -> bool:
        """Whether nothing is trained on it, though it is there to be tested on."""
        return "train" not in self.splits


class ScratchConfig(Strict):
    """Shape of a model made from nothing (see `scratch`)."""

    vocab: int = Field(4096, ge=300, description="at least 256 bytes, tags and identifiers")
    hidden: int = Field(128, ge=2, description="a multiple of twice the heads")
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1, description="of attention")
    context: int = Field(2048, ge=16, description="tokens that a prompt and its answer may have")
    identifiers: int = Field(20, ge=0, description="[1] to this are one token each")

    @model_validator(mode="after")
    def _heads_share_what_is_hidden(self) -> ScratchConfig:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden={self.hidden} must be a multiple of twice heads={self.heads}")
        if self.vocab < 256 + BESIDE_BYTES + self.identifiers:
            raise ValueError(f"vocab={self.vocab} leaves no room beside bytes, tags and {self.identifiers} identifiers")
        return self


class WarmstartConfig(Strict):
    """Supervised start: `steps` batches of `batch` demonstrations."""

    scratch: ScratchConfig | None = Field(None, description="make a model from nothing instead of loading `model`")
    steps: int = Field(200, ge=1)
    batch: int = Field(64, ge=1, description="demonstrations per step")
    lr: float = Field(1e-5, gt=0, description="learning rate")
    warmup: int = Field(20, ge=0, description="steps over which it rises from 0")
    think_share: float = Field(0.5, ge=0, le=1, description="share of demonstrations with a thought")
    ranking_share: float = Field(0.5, ge=0, le=1, description="share that are whole lists (dranker)")
    append_share: float = Field(0.25, ge=0, le=1, description="share in layout append")
    answers: Literal["gains", "prior", "lambdamart"] = Field(
        "gains",
        description="whose order the examples follow; prior: the form and a weak order, the rest is left to RL; "
        "lambdamart: learned from the first-stage ranks in data.show",
    )
    pointwise: float = Field(0.0, ge=0, description="weight of judging each candidate at its end; for new models")
    pointing: float = Field(
        0.0, ge=0, description="beside that, of judging by the last layer's attention from where the answer is given"
    )
    log_every: int = Field(10, ge=1, description="steps")


class PPOConfig(Strict):
    """The paper's settings are the defaults (section Training of its appendix), for a 3 B model."""

    steps: int = Field(1500, ge=1, description="updates of a batch, at most")
    token_budget: int | None = Field(None, ge=1, description="stop when this many tokens have been trained on")
    batch: int = Field(64, ge=1, description="trajectories per step")
    minibatch: int = Field(32, ge=1, description="trajectories per update of the weights")
    epochs: int = Field(1, ge=1, description="times that a batch is gone through")
    episode_share: float = Field(0.25, ge=0, le=1, description="share of the policy's own episodes (iranker)")
    largest_pool: int | None = Field(None, ge=2, description="larger pools are sampled down to it (iranker)")
    curriculum: float = Field(
        0.0, ge=0, le=1, description="share of the run over which the largest pool grows from 2 to all (iranker)"
    )
    reward: str = Field(
        "graded", description="paper, graded, or module:function of your own (docs/training.md, Rewards of your own)"
    )
    scenarios: tuple[str, ...] | None = Field(
        None, description="whose problems earn rewards (null: all); validation is on all that the data hold"
    )
    answer: Literal["sampled", "expected"] = Field(
        "sampled",
        description="credit the sampled answer by GAE, or all that could stand in its place by their own reward "
        "(think off)",
    )
    objective: Literal["surrogate", "log", "listnet"] = Field(
        "surrogate",
        description="of answers credited whole (answer=expected): the clipped surrogate of their expected reward, "
        "its logarithm, log sum_a pi(a) r(a), or labels in its place: the cross-entropy of r(a) / sum r",
    )
    estimator: Literal["gae", "grpo", "dr_grpo", "rloo"] = Field(
        "gae", description="advantages by a critic, or against the `group` of trajectories that began alike"
    )
    group: int = Field(1, ge=1, description="trajectories from each start")
    centre: bool = Field(False, description="take off each removal's reward what a random one earns (iranker)")
    actor_lr: float = Field(1e-6, gt=0, description="learning rate of the policy")
    critic_lr: float = Field(2e-6, gt=0, description="learning rate of the critic")
    critic: Literal["separate", "head"] = Field("separate", description="a network of its own, or a head on the policy")
    schedule: Literal["cosine", "constant"] = Field("constant", description="of both learning rates")
    warmup: int = Field(0, ge=0, description="steps over which they rise from 0")
    gamma: float = Field(1.0, ge=0, le=1, description="discount of a step")
    lam: float = Field(1.0, ge=0, le=1, description="lambda of GAE")
    clip: float = Field(0.2, gt=0, lt=1, description="of the policy's ratio")
    value_clip: float = Field(0.5, gt=0, description="of the critic's change")
    kl: float = Field(0.001, ge=0, description="weight of the divergence (k3) from the model at the start")
    entropy: float = Field(0.001, ge=0, description="weight of the entropy bonus")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to it")
    max_prompt_tokens: int = Field(1400, ge=1, description="a longer training prompt is refused")
    max_new_tokens: int = Field(1024, ge=1, description="longest completion")
    lora: int | None = Field(
        None, ge=1, description="train adapters of this rank on all linear layers, and keep the model as it is"
    )
    recompute: bool = Field(False, description="compute activations again in the backward pass: less memory, more time")
    shard: bool = Field(
        False,
        description="processes hold weights, gradients and moments in parts: for a model too large for one",
    )
    micro_tokens: int = Field(16384, ge=1, description="padded tokens in one forward and backward pass")
    validate_every: int = Field(50, ge=1, description="steps")
    validate_problems: int = Field(20, ge=0, description="dev problems per task; 0: the newest model is kept")
    checkpoint_every: int = Field(50, ge=1, description="steps; `--resume` goes on from the last one")
    keep: int = Field(1, ge=1, description="checkpoints that are kept, the newest; delete one to resume from before it")

    @property
    def one_update(self) -> bool:
        """Whether a batch is one update, so that the policy it is updated from is the one that sampled."""
        return self.epochs == 1 and self.minibatch >= self.batch

    def learns_from(self, problem: Problem) -> bool:
        """Whether a training problem earns rewards: it can teach, and is of these scenarios."""
        return problem.trainable and (self.scenarios is None or problem.scenario in self.scenarios)

    @field_validator("reward")
    @classmethod
    def _has_a_form(cls, reward: str) -> str:
        if reward not in REWARDS and not is_own(reward):
            raise ValueError(f"{reward!r} is neither {' nor '.join(REWARDS)} nor module:function of your own")
        return reward

    @model_validator(mode="after")
    def _groups_are_compared(self) -> PPOConfig:
        if self.estimator != "gae" and self.group < 2:
            raise ValueError(f"estimator={self.estimator} compares trajectories that began alike: set group=2 or more")
        if self.batch % self.group:
            raise ValueError(f"batch={self.batch} does not hold whole groups of {self.group}: set a multiple of it")
        return self

    @model_validator(mode="after")
    def _adapters_are_whole(self) -> PPOConfig:
        if self.shard and self.lora:
            raise ValueError("shard and lora do not go together: leave shard out, adapters are small")
        return self


class RunConfig(Strict):
    """One run."""

    model: str = Field("Qwen/Qwen2.5-3B-Instruct", description="hub name, directory, GGUF file, smol-base or nano")
    design: Design = Field("iranker", description="a list in one go, or one candidate at a time")
    think: bool = Field(False, description="a free thought before each answer")
    layout: Layout = Field("relist", description="how pools are shown (docs/ranking.md)")
    readout: Readout = Field("judge", description="of layout blocks: each judged alone, or named by its identifier")
    ask: Wanted = Field("worst", description="remove the worst, or select the best")
    query: QueryPlace = Field(
        "first", description="of layout blocks: before the candidates, or behind them, which then serve any query"
    )
    data: tuple[DataConfig, ...] = (DataConfig(),)
    scenarios: dict[str, Scenario] = Field(
        default_factory=dict, description="wordings of your own scenarios by name (docs/scenarios.md)"
    )
    seed: int = 0
    out: Path = Field(Path("runs/run"), description="folder of the run")
    device: str = Field("auto", description="auto, cpu, cuda")
    dtype: Dtype = Field("auto", description="of the passes, and of what is saved; auto: what is faster here")
    threads: int | None = Field(None, ge=1, description="CPU threads; by default one for a small model")
    warmstart: WarmstartConfig = WarmstartConfig()
    ppo: PPOConfig = PPOConfig()

    @field_validator("scenarios", mode="before")
    @classmethod
    def _records(cls, records: Any) -> dict[str, Scenario]:
        try:
            return scenarios_of(records)
        except DataError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _blocks_are_judged(self) -> RunConfig:
        if self.layout != "blocks":
            for name, given in (("query", self.query == "last"), ("readout", self.readout == "identifier")):
                if given:
                    raise ValueError(f"{name}={getattr(self, name)} is of layout blocks: set layout=blocks")
            return self
        if self.think:
            raise ValueError("layout=blocks has no thoughts: set think=false, or another layout")
        return self

    @model_validator(mode="after")
    def _whole_objectives_are_of_expected(self) -> RunConfig:
        objective = self.ppo.objective
        if objective != "surrogate" and (self.ppo.answer != "expected" or self.think):
            needs = "all answers credited: set ppo.answer=expected and think=false"
            raise ValueError(f"ppo.objective={objective} needs {needs}")
        return self

    @property
    def reads_once(self) -> bool:
        """Whether a step is one pass: where all answers of a single decision are credited, none has to be drawn first.

        The policy that is updated is then the one that would have drawn, so its own probabilities are the old ones.
        The surrogate's advantages are made of the old probabilities of the whole batch, which have to be known before.
        """
        ppo = self.ppo
        alone = self.design == "iranker" and ppo.episode_share == 0 and ppo.one_update
        whole = ppo.answer == "expected" and ppo.objective != "surrogate"
        return self.layout == "blocks" and whole and alone and not ppo.kl

    @property
    def way(self) -> dict[str, str]:
        """How the model is asked, which is saved with it: who ranks with it asks it the same way."""
        return {"layout": self.layout, "readout": self.readout, "ask": self.ask, "query": self.query}

    def check_training(self) -> None:
        """Raises ConfigError for settings that training cannot do."""
        if self.ppo.shard and self.layout == "blocks":
            raise ConfigError("layout=blocks is not trained in parts: set ppo.shard=false; ppo.lora saves memory there")
        if self.ppo.centre and self.ppo.answer == "expected":
            raise ConfigError("ppo.centre is of sampled answers: set ppo.centre=false, or ppo.answer=sampled")
        alone = self.ppo.estimator == "gae" and self.ppo.critic == "separate" and self.ppo.answer == "sampled"
        if self.layout == "blocks" and alone:
            raise ConfigError(
                "layout=blocks has no critic of its own network: set ppo.critic=head, or ppo.answer=expected"
            )
        if self.think and self.ppo.answer == "expected":
            raise ConfigError(
                "ppo.answer=expected credits identifiers that are chosen without a thought, and think=true: "
                "set ppo.answer=sampled, or think=false"
            )


def load_config(path: Path | None, overrides: Sequence[str] = (), scenarios: Path | None = None) -> RunConfig:
    """The run of a YAML file with `key.sub=value` overrides (values are YAML). Raises ConfigError.

    path: a file; where there is none, the name of a config in this package, such as `smol`.
    scenarios: a file of records, in place of those of the same names in the run.
    """
    raw = {} if path is None else read_keys(configs.found(path))
    for override in overrides:
        override_key(raw, override)
    run = validated(raw, str(path or "command line"))
    return run.model_copy(update={"scenarios": run.scenarios | read_scenarios(scenarios)}) if scenarios else run


def read_scenarios(path: Path) -> dict[str, Scenario]:
    """The records of a YAML file, by the scenario's name. Raises ConfigError."""
    try:
        return scenarios_of(read_keys(path))
    except DataError as error:
        raise ConfigError(f"{path}: {error}") from error


def validated(raw: dict[str, Any], where: str) -> RunConfig:
    """`raw` as a RunConfig, or a ConfigError that names the key."""
    return valid_as(RunConfig, raw, where)
