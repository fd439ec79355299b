"""Training by verl: its files, reward, episodes and config are ours. What needs verl itself is skipped without it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from r1ranker.backends.encoding import Encoder
from r1ranker.backends.models import resolve
from r1ranker.errors import BackendError, ConfigError
from r1ranker.io.config import RunConfig
from r1ranker.io.problems import write_jsonl
from r1ranker.problem import Problem
from r1ranker.prompts import bare_past, build_prompt, past_entry
from r1ranker.training.algorithms.gae import gae
from r1ranker.training.rollout import whole_episode
from r1ranker.training.verl.data import DEV, TRAIN, problem_of, write_rows
from r1ranker.training.verl.episode import Episode, Written, run_episode, training_state
from r1ranker.training.verl.launch import composed, launch, newest_model, prepare
from r1ranker.training.verl.reward import compute_score
from r1ranker.training.verl.settings import refuse, rows_per_step

MakeProblem = Callable[..., Problem]
# verl and what it imports warn of parts that are not installed, and of their own old names.
verl_here = importlib.util.find_spec("verl") is not None
needs_verl = pytest.mark.skipif(not verl_here, reason="needs verl: pip install 'r1-ranker[verl]'")
pytestmark = pytest.mark.filterwarnings("ignore")


def run_config(**settings: Any) -> RunConfig:
    ppo = {"batch": 12, "minibatch": 4, "steps": 3, "max_new_tokens": 32} | settings.pop("ppo", {})
    base = {"model": "nano", "think": False, "layout": "append"}
    return RunConfig.model_validate(base | {"ppo": ppo} | settings)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(resolve("nano")))


class Policy:
    """Writes what it is told to, one text a call, and keeps what it read."""

    def __init__(self, encoder: Encoder, *texts: str) -> None:
        self.encoder, self.texts, self.read = encoder, iter(texts), list[list[int]]()

    async def write(self, token_ids: list[int], limit: int) -> Written:
        self.read.append(list(token_ids))
        text = next(self.texts)
        written = self.encoder.encode_text(text)[:limit]
        return Written(written, [-0.5] * len(written), text, len(written) >= limit)

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        """As verl's client of its servers answers."""
        from verl.workers.rollout.replica import TokenOutput

        assert sampling_params["stop"] == ["</answer>"]
        written = await self.write(prompt_ids, sampling_params["max_tokens"])
        version = {"min_global_steps": 3, "max_global_steps": 3}
        return TokenOutput(token_ids=written.token_ids, log_probs=list(written.logprobs), extra_fields=version)


def episode_of(policy: Policy, problem: Problem, config: RunConfig) -> Episode:
    return asyncio.run(run_episode(whole_episode(problem), config, policy.encoder, policy.write))


def test_an_episode_in_append_is_one_sequence_of_what_ranking_would_read(
    encoder: Encoder, make_problem: MakeProblem
) -> None:
    problem = make_problem(4, gains={"d2": 2, "d3": 1})
    policy = Policy(encoder, "[4]</answer>", "[2]</answer>", "[1]</answer>")
    episode = episode_of(policy, problem, run_config())
    (tokens,) = episode.sequences
    told = build_prompt(problem, (1, 3), "iranker", layout="append", think=False, past=bare_past((4, 2)))
    assert tokens.prompt_ids + tokens.response_ids == encoder.encode(told) + encoder.encode_text("[1]</answer>")
    assert policy.read[2] == encoder.encode(told)
    written = [t for t, chosen in zip(tokens.response_ids, tokens.mask, strict=True) if chosen]
    assert encoder.decode(written) == "[4]</answer>[2]</answer>[1]</answer>"
    # [4] is the least relevant of all, [2] the most relevant, [1] again the least
    assert [tokens.rewards[t] for t in sorted(tokens.rewards)] == [1.0, 0.0, 1.0]
    assert [encoder.decode([tokens.response_ids[t]]) for t in tokens.rewards] == ["</answer>"] * 3
    assert [p for p, chosen in zip(tokens.logprobs, tokens.mask, strict=True) if not chosen] == [0.0, 0.0]
    assert (episode.removed, episode.left, episode.total) == ((4, 2, 1), (3,), 2.0)


def test_an_episode_with_thoughts_in_append_is_one_sequence(encoder: Encoder, make_problem: MakeProblem) -> None:
    said = [f"<think>so [{k}]</think><answer>[{k}]</answer>" for k in (3, 1)]
    episode = episode_of(Policy(encoder, *said), make_problem(3, positive=2), run_config(think=True))
    (tokens,) = episode.sequences
    assert encoder.decode(tokens.response_ids) == "\n".join(said)
    read = [t for t, chosen in zip(tokens.response_ids, tokens.mask, strict=True) if not chosen]
    assert encoder.decode(read) == "\n"


@pytest.mark.parametrize("think", [True, False])
def test_after_a_broken_answer_a_new_sequence_tells_what_really_left(
    think: bool, encoder: Encoder, make_problem: MakeProblem
) -> None:
    problem, config = make_problem(4), run_config(think=think)
    begins = "<think>x</think><answer>" if think else ""
    texts = [f"{begins}[{k}]</answer>" for k in (2, 9, 3)]
    episode = episode_of(Policy(encoder, *texts), problem, config)
    first, second = episode.sequences
    assert encoder.decode(first.response_ids).endswith("[9]</answer>")
    assert list(first.rewards.values()) == [1.0, -0.5]
    past = (past_entry(texts[0], 2, True), past_entry("", 4, False)) if think else bare_past((2, 4))
    following = build_prompt(problem, (1, 3), "iranker", layout="append", think=think, past=past)
    assert second.prompt_ids == encoder.encode(following)
    assert episode.removed == (2, 4, 3)
    assert episode.means["broken"] == pytest.approx(1 / 3)


def test_an_episode_in_relist_has_a_sequence_and_a_reward_for_each_step(
    encoder: Encoder, make_problem: MakeProblem
) -> None:
    problem = make_problem(3)
    episode = episode_of(Policy(encoder, "[1]</answer>", "[2]</answer>"), problem, run_config(layout="relist"))
    assert [list(tokens.rewards.values()) for tokens in episode.sequences] == [[0.0], [1.0]]
    assert all(set(tokens.mask) == {1} for tokens in episode.sequences)
    left = build_prompt(problem, (2, 3), "iranker", think=False)
    assert episode.sequences[1].prompt_ids == encoder.encode(left)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_episodes_make_up_their_share_of_the_steps(share: float, make_problem: MakeProblem) -> None:
    config, rng = run_config(ppo={"episode_share": share, "batch": 60}), random.Random(0)
    starts = [training_state(make_problem(6), config, rng) for _ in range(2000)]
    of_episodes = sum(len(s.pool) - 1 for s in starts if s.whole)
    steps = of_episodes + sum(not s.whole for s in starts)
    assert of_episodes / steps == pytest.approx(share, abs=0.03)
    # and the rows of a batch make about as many steps as our own engine's batch has
    assert rows_per_step(config, [make_problem(6)]) * steps / 2000 == pytest.approx(60, rel=0.05)


def test_rows_hold_the_problem_and_what_verl_logs(tmp_path: Path, make_problem: MakeProblem) -> None:
    problem = make_problem(3, gains={"d2": 2, "elsewhere": 1}, prior={"d1": 0.5}, relevant_at=2)
    (row,) = pq.read_table(write_rows([problem], tmp_path / "train.parquet", TRAIN, run_config())).to_pylist()
    assert problem_of(row["extra_info"]) == problem
    assert row["data_source"] == "toy"
    assert json.loads(row["reward_model"]["ground_truth"]) == {"2": 2}
    text = build_prompt(problem, (1, 2, 3), "iranker", layout="append").text
    assert row["prompt"] == [{"content": text, "role": "user"}]


def test_a_completion_is_scored_as_in_our_own_training(tmp_path: Path, make_problem: MakeProblem) -> None:
    problem = make_problem(3, positive=3)
    (row,) = pq.read_table(write_rows([problem], tmp_path / "x.parquet", DEV, run_config())).to_pylist()

    def scored(text: str, **more: Any) -> dict[str, float]:
        return compute_score("toy", text, "", row["extra_info"], **more)

    best = scored("<think>x</think><answer>[3] > [1] > [2]</answer>")
    assert (best["score"], best["mrr"], best["broken"]) == (1.0, 1.0, 0.0)
    assert scored("[3] > [1] > [2]</answer>", think=False) == best
    third = scored("[1] > [2] > [3]</answer>", think=False, kind="paper")
    assert (third["score"], third["mrr"]) == (pytest.approx(0.5), pytest.approx(1 / 3))
    nothing = scored("<think>x", think=True)
    assert nothing["broken"] == 1.0
    assert nothing["score"] < -1


@pytest.mark.parametrize(
    "setting",
    [
        {"answer": "expected"},
        {"critic": "head"},
        {"token_budget": 9},
        {"centre": True},
        {"estimator": "dr_grpo", "group": 2},
        {"lora": 8},
    ],
)
def test_what_verl_cannot_do_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"verl has no ppo.{next(iter(setting))}"):
        refuse(run_config(ppo=setting))


@pytest.mark.parametrize("setting", [{"layout": "blocks"}, {"ask": "best"}])
def test_a_way_of_asking_that_verl_does_not_know_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"verl has no {next(iter(setting))}={next(iter(setting.values()))}"):
        refuse(run_config(**setting))


def test_without_verl_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verl", None)
    with pytest.raises(BackendError, match=r"pip install 'r1-ranker\[verl\]'"):
        launch(run_config())


def test_the_newest_model_is_that_of_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no checkpoint"):
        newest_model(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("50")
    assert newest_model(tmp_path) == tmp_path / "global_step_50" / "actor" / "huggingface"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verl")


@pytest.fixture(scope="module")
def data(run_dir: Path, make_problem: MakeProblem) -> list[dict[str, Any]]:
    for split, n in (("train", 16), ("dev", 4), ("test", 1)):
        problems = [make_problem(4 + i % 3, positive=1 + i % 4, qid=f"{split}{i}") for i in range(n)]
        write_jsonl(problems, run_dir / f"{split}.jsonl")
    return [{"source": "jsonl", "path": run_dir}]


@pytest.fixture(scope="module")
def settings(run_dir: Path, data: Any) -> Iterator[Any]:
    """verl's config for an IRanker's run, as it has accepted it; the run's folder holds its files."""
    with pytest.MonkeyPatch.context() as patch:
        datasets = pytest.importorskip("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", run_dir / "cache")
        yield prepare(run_config(out=run_dir, data=data), ["trainer.nnodes=2", "+trainer.note=mine"])


@needs_verl
def test_verl_accepts_our_config_and_overrides_win(settings: Any, run_dir: Path) -> None:
    actor, rollout = settings.actor_rollout_ref.actor, settings.actor_rollout_ref.rollout
    assert (settings.trainer.nnodes, settings.trainer.note) == (2, "mine")
    assert (actor.optim.lr, actor.kl_loss_coef, actor.entropy_coeff) == (1e-6, 0.001, 0.001)
    assert (settings.critic.optim.lr, settings.critic.cliprange_value) == (2e-6, 0.5)
    assert (settings.algorithm.adv_estimator, settings.algorithm.lam) == ("gae", 1.0)
    assert rollout.prompt_length == 1400
    assert settings.data.train_files == str(run_dir / "train.parquet")
    assert settings.r1ranker.design == "iranker"
    assert (run_dir / "provenance.json").exists()


@needs_verl
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.nodes=2", "trainer.nodes"),
        ("actor_rollout_ref.actor.loss_agg_mode=mine", "loss_agg_mode"),
        ("actor_rollout_ref.rollout.name=sglang", "must be vllm"),
        ("algorithm.adv_estimator=rloo", "must be gae or grpo"),
    ],
)
def test_overrides_that_cannot_work_are_refused(override: str, says: str, settings: Any, run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        composed(run_dir, [override])


@needs_verl
def test_a_context_that_is_too_short_is_refused(tmp_path: Path, data: Any) -> None:
    with pytest.raises(ConfigError, match="reads 2048"):
        prepare(run_config(out=tmp_path, data=data, think=True, ppo={"max_new_tokens": 512}))


@needs_verl
def test_without_gpus_all_else_is_ready(tmp_path: Path, data: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there are GPUs")
    with pytest.raises(BackendError, match=r"workers need 8 GPUs .* and there are 0; everything else is ready"):
        launch(run_config(out=tmp_path, data=data, design="dranker"), ["trainer.n_gpus_per_node=8"])
    assert {"train.parquet", "dev.parquet", "verl.yaml", "config.yaml"} <= {file.name for file in tmp_path.iterdir()}


@needs_verl
def test_verls_dataset_reads_our_rows(settings: Any, encoder: Encoder) -> None:
    from verl.trainer.ppo.utils import create_rl_dataset
    from verl.utils.dataset.rl_dataset import collate_fn

    dataset = create_rl_dataset(settings.data.train_files, settings.data, encoder.tokenizer, None)
    batch = collate_fn([dataset[0], dataset[1]])
    problem = problem_of(batch["extra_info"][0])
    assert batch["data_source"][0] == problem.task
    assert list(batch["index"]) == [0, 1]
    assert batch["raw_prompt"][0][0]["content"].startswith(build_prompt(problem, problem.identifiers, "iranker").text)


@needs_verl
def test_verls_reward_manager_calls_our_reward(settings: Any, encoder: Encoder, make_problem: MakeProblem) -> None:
    import numpy as np
    from tensordict import TensorDict
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    written = encoder.encode_text("[3] > [1] > [2]</answer>")
    row = {
        "data_source": "toy",
        "reward_model": {"ground_truth": "{}"},
        "extra_info": {"problem": json.dumps(_as_json(make_problem(3, positive=1)))},
        "tool_extra_fields": {"truncated": False},
    }
    tensors = {"responses": torch.tensor([written]), "attention_mask": torch.ones(1, len(written), dtype=torch.long)}
    data = DataProto(TensorDict(tensors, batch_size=1), {k: np.array([v], dtype=object) for k, v in row.items()})

    async def scored() -> dict[str, Any]:
        return await load_reward_manager(settings, encoder.tokenizer).run_single(data)

    result = asyncio.run(scored())
    assert result["reward_score"] == pytest.approx(1 / torch.tensor(3.0).log2().item())
    assert result["reward_extra_info"]["mrr"] == 0.5


def _as_json(problem: Problem) -> Any:
    from r1ranker.io.problems import PROBLEM

    return PROBLEM.dump_python(problem, mode="json")


def run_loop(settings: Any, policy: Policy, problem: Problem, split: str = DEV) -> list[Any]:
    """The outputs of our loop, run by verl's worker; only what stores them is left out."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    class Worker(AgentLoopWorker):
        async def _agent_loop_postprocess(self, output: Any, validate: bool, **row: Any) -> Any:
            return output if isinstance(output, list) else [output]

    async def run() -> Any:
        worker = Worker(settings, policy)
        return await worker._run_agent_loop(
            {"temperature": 1.0, "logprobs": True},
            {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": split == DEV},
            agent_name=worker.rollout_config.agent.default_agent_loop,
            trace=False,
            extra_info={"split": split, "index": 0, "problem": json.dumps(_as_json(problem))},
            raw_prompt=[],
            global_steps=1,
        )

    return asyncio.run(run())


def altered(settings: Any, **values: Any) -> Any:
    from omegaconf import OmegaConf

    copied = OmegaConf.create(OmegaConf.to_container(settings))
    for key, value in values.items():
        OmegaConf.update(copied, key.replace("__", "."), value)
    return copied


@needs_verl
def test_verls_worker_runs_our_loop_with_a_reward_for_each_step(
    settings: Any, encoder: Encoder, make_problem: MakeProblem
) -> None:
    texts = ("[3]</answer>", "[1]</answer>", "[4]</answer>")
    (output,) = run_loop(settings, Policy(encoder, *texts), make_problem(4, positive=1))
    fields = output.as_dict()
    assert encoder.decode(fields["responses"].tolist()) == "[3]</answer><answer>[1]</answer><answer>[4]</answer>"
    assert fields["response_mask"].tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    assert fields["rm_scores"].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert fields["rollout_log_probs"].tolist() == [-0.5, -0.5, 0.0, -0.5, -0.5, 0.0, -0.5, -0.5]
    assert output.reward_score == 2.0
    assert output.extra_fields["turn_scores"] == [1.0, 0.0, 1.0]
    assert output.extra_fields["reward_extra_info"]["mrr"] == pytest.approx(1 / 3)
    assert output.extra_fields["max_global_steps"] == 3


@needs_verl
def test_verls_advantages_of_an_episode_are_ours(settings: Any, encoder: Encoder, make_problem: MakeProblem) -> None:
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return

    texts = ("[3]</answer>", "[1]</answer>", "[4]</answer>")
    (output,) = run_loop(settings, Policy(encoder, *texts), make_problem(4, positive=1))
    fields = output.as_dict()
    mask, rewards = fields["response_mask"].bool(), fields["rm_scores"]
    values = torch.linspace(0.1, 0.9, len(rewards))
    _, returns = compute_gae_advantage_return(rewards[None], values[None], mask[None].float(), 0.9, 0.8)
    _, ours = gae(rewards[mask], values[mask], 0.9, 0.8)
    assert torch.allclose(returns[0][mask], ours)


@needs_verl
def test_groups_are_compared_by_whole_episodes(settings: Any, encoder: Encoder, make_problem: MakeProblem) -> None:
    grouped = altered(settings, algorithm__adv_estimator="grpo", r1ranker__layout="relist")
    outputs = run_loop(grouped, Policy(encoder, "[3]</answer>", "[2]</answer>"), make_problem(3, positive=1))
    assert [output.as_dict()["rm_scores"].tolist() for output in outputs] == [[0.0, 0.0], [0.0, 2.0]]


@needs_verl
def test_training_rows_of_one_group_begin_alike(settings: Any, encoder: Encoder, make_problem: MakeProblem) -> None:
    sampled = altered(settings, r1ranker__ppo__episode_share=0.0)
    policy = Policy(encoder, "[1]</answer>", "[2]</answer>")
    outputs = [run_loop(sampled, policy, make_problem(6), TRAIN)[0] for _ in range(2)]
    assert outputs[0].prompt_ids == outputs[1].prompt_ids == policy.read[0]
    assert all(len(output.rewards) == 1 for output in outputs)
    assert "mrr" not in outputs[0].extra_fields["reward_extra_info"]


@needs_verl
def test_a_ranking_is_left_to_verls_reward(settings: Any, encoder: Encoder, make_problem: MakeProblem) -> None:
    direct, problem = altered(settings, r1ranker__design="dranker"), make_problem(3)
    policy = Policy(encoder, "[3] > [1] > [2]</answer>")
    (output,) = run_loop(direct, policy, problem)
    assert output.prompt_ids == encoder.encode(build_prompt(problem, (1, 2, 3), "dranker", think=False))
    assert encoder.decode(output.response_ids) == "[3] > [1] > [2]</answer>"
    assert (output.reward_score, output.extra_fields["truncated"]) == (None, False)
