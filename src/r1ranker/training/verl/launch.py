"""Training by verl. In: a run's config and verl's own overrides. Out: the trained model's directory.

    launch(load_config(Path("paper")), ["trainer.nnodes=4", "trainer.n_gpus_per_node=8"])

It writes train.parquet, dev.parquet and verl.yaml to the run's folder, has verl check its whole config, and starts

    python -m verl.trainer.main_ppo --config-path RUN --config-name verl OVERRIDES

which goes on from the newest checkpoint when asked to resume. All machines need the folder at the same path.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoTokenizer

from r1ranker.backends.encoding import Encoder
from r1ranker.backends.models import resolve
from r1ranker.baselines.notes import load_splits
from r1ranker.errors import BackendError, ConfigError, DataError
from r1ranker.io.config import RunConfig
from r1ranker.io.provenance import write_provenance
from r1ranker.problem import Problem, first_by_task
from r1ranker.training.rollout import check_prompts
from r1ranker.training.start import rewarded
from r1ranker.training.verl.data import DEV, TRAIN, write_rows
from r1ranker.training.verl.settings import hydra_file, refuse

CONFIG_NAME = "verl"


def launch(config: RunConfig, overrides: Sequence[str] = (), *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train on a Ray cluster of GPUs; returns the directory of the last model, which loads like any other.

    overrides: hydra's, of any key of verl's config. Raises ConfigError for what verl cannot do, DataError without
    problems, BackendError without verl, its GPUs or vLLM, or when verl failed.
    """
    overrides = [*overrides, f"trainer.resume_mode={'auto' if resume else 'disable'}"]
    settings = prepare(config, overrides)
    out, kept = config.out.resolve(), Path(settings.trainer.default_local_dir)
    if any(kept.glob("*")) and not (resume or overwrite):
        raise ConfigError(f"{kept} holds checkpoints of a run: go on by --resume, or give --overwrite to begin anew")
    _need_gpus(settings, out)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-path", str(out), "--config-name", CONFIG_NAME]
    ended = subprocess.run([*command, *overrides], check=False).returncode
    if ended:
        raise BackendError(f"verl ended with code {ended}; its output above says why. Once mended, go on by --resume")
    return newest_model(Path(settings.trainer.default_local_dir))


def prepare(config: RunConfig, overrides: Sequence[str] = ()) -> Any:
    """All that needs no GPU: checks, data files, verl.yaml. Returns verl's whole config, which it has accepted."""
    _need_verl()
    refuse(config)
    splits = load_splits(config.data, config.scenarios)
    train = rewarded(config, splits["train"])
    dev = [p for p in first_by_task(splits["dev"], config.ppo.validate_problems) if len(p.candidates) > 1]
    for split, problems in {TRAIN: train, DEV: dev}.items():
        if not problems:
            raise DataError(f"no {split} problem has two candidates (to train on, a relevant one too): verl needs some")
    out = config.out.resolve()
    file = hydra_file(config, train, dev, out)
    _check_lengths(config, [*train, *dev], file)
    write_provenance(out, config.model_dump(mode="json"))
    write_rows(train, Path(file["data"]["train_files"]), TRAIN, config)
    write_rows(dev, Path(file["data"]["val_files"]), DEV, config)
    (out / f"{CONFIG_NAME}.yaml").write_text(yaml.safe_dump(file, sort_keys=False), encoding="utf-8")
    return composed(out, overrides)


def newest_model(checkpoints: Path) -> Path:
    """The model of the newest checkpoint, as verl keeps it for transformers."""
    newest = checkpoints / "latest_checkpointed_iteration.txt"
    if not newest.is_file():
        raise BackendError(f"verl left no checkpoint in {checkpoints}; trainer.save_freq must be above 0")
    return checkpoints / f"global_step_{newest.read_text().strip()}" / "actor" / "huggingface"


def composed(out: Path, overrides: Sequence[str]) -> Any:
    """verl's defaults, the file in the run's folder and the overrides, checked by verl. Raises ConfigError."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        with initialize_config_dir(str(out), version_base=None):
            settings = compose(CONFIG_NAME, overrides=list(overrides))
        validate_config(settings, need_reference_policy(settings), need_critic(settings))
    except (HydraException, AssertionError, ValueError) as error:
        raise ConfigError(f"verl refuses {out}/{CONFIG_NAME}.yaml with {list(overrides)}: {error}") from error
    if settings.actor_rollout_ref.rollout.name != "vllm":
        raise ConfigError("actor_rollout_ref.rollout.name must be vllm: answers end by its sampling parameters")
    if settings.r1ranker.design == "iranker" and settings.algorithm.adv_estimator not in ("gae", "grpo"):
        raise ConfigError("algorithm.adv_estimator must be gae or grpo: verl credits no other by episode")
    return settings


def _check_lengths(config: RunConfig, problems: Sequence[Problem], file: dict[str, Any]) -> None:
    """Raises ConfigError where a prompt, or what may follow on it, is too long; BackendError without a tokenizer."""
    path = resolve(config.model)
    try:
        tokenizer, shape = AutoTokenizer.from_pretrained(path), AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise BackendError(f"cannot read the tokenizer and config of {path!r}: {str(error).splitlines()[0]}") from error
    check_prompts(Encoder(tokenizer), problems, config)
    sequence = file["actor_rollout_ref"]["rollout"]["max_model_len"]
    if sequence > shape.max_position_embeddings:
        raise ConfigError(
            f"a prompt and its response may have {sequence} tokens and {config.model} reads "
            f"{shape.max_position_embeddings}: lower ppo.max_prompt_tokens or ppo.max_new_tokens, or use layout=relist"
        )


def _need_verl() -> None:
    try:
        import verl  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "training by verl needs verl 0.9, which pins older libraries: make an environment for it "
            "(python -m venv verl-env) and there pip install 'r1-ranker[verl]'"
        ) from error


def _need_gpus(settings: Any, out: Path) -> None:
    needed = settings.trainer.nnodes * settings.trainer.n_gpus_per_node
    there = _gpus(settings)
    ready = f"everything else is ready in {out}"
    if there < needed:
        raise BackendError(
            f"verl's workers need {needed} GPUs (trainer.nnodes * trainer.n_gpus_per_node) and there are {there}; "
            f"{ready}: run the same command on a machine that has them, or on one of a Ray cluster that has"
        )
    if importlib.util.find_spec("vllm") is None:
        raise BackendError(f"verl samples by vLLM, which is not installed: pip install 'verl[vllm,fsdp]'; {ready}")


def _gpus(settings: Any) -> int:
    """GPUs of the Ray cluster that this machine is part of; without one, of this machine."""
    import ray

    address = settings.ray_kwargs.ray_init.get("address") or "auto"
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError:
        return torch.cuda.device_count()
    try:
        return int(ray.cluster_resources().get("GPU", 0))
    finally:
        ray.shutdown()
