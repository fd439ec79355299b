"""One YAML file and its overrides: what is accepted, and what a refusal says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from r1ranker.errors import ConfigError
from r1ranker.io.config import PPOConfig, RunConfig, load_config


def test_without_a_file_the_defaults_are_the_papers() -> None:
    ppo = load_config(None).ppo
    assert (ppo.gamma, ppo.lam, ppo.clip, ppo.value_clip, ppo.epochs) == (1.0, 1.0, 0.2, 0.5, 1)
    assert (ppo.kl, ppo.entropy, ppo.actor_lr, ppo.critic_lr) == (0.001, 0.001, 1e-6, 2e-6)
    assert (ppo.batch, ppo.minibatch, ppo.max_prompt_tokens, ppo.max_new_tokens) == (64, 32, 1400, 1024)
    assert load_config(None).model == "Qwen/Qwen2.5-3B-Instruct"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("ppo.steps=7", ("ppo", "steps"), 7),
        ("ppo.actor_lr=1e-5", ("ppo", "actor_lr"), 1e-5),
        ("think=false", ("think",), False),
        ("out=runs/x y", ("out",), Path("runs/x y")),
        ("model=a=b", ("model",), "a=b"),
        ("ppo.token_budget=null", ("ppo", "token_budget"), None),
        ("warmstart.scratch.hidden=64", ("warmstart", "scratch", "hidden"), 64),
        ("ppo={steps: 3}", ("ppo", "steps"), 3),
    ],
)
def test_any_key_can_be_overridden(override: str, path: tuple[str, ...], value: object) -> None:
    found: object = load_config(None, [override])
    for name in path:
        found = getattr(found, name)
    assert found == value


def test_lists_are_overridden_by_number(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: [{source: mini, limit: 5}]\n")
    config = load_config(file, ["data.0.limit=2", "data.1.source=lastfm", "data.1.path=here", "data.1.options.size=3"])
    first, second = config.data
    assert (first.source, first.limit) == ("mini", 2)
    assert (second.source, second.path, second.options) == ("lastfm", Path("here"), {"size": 3})
    assert load_config(None, ["data.0.source=mini", "data.0.limit=2"]).data[0].limit == 2


def test_overrides_leave_the_rest_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\nppo:\n  steps: 9\n  batch: 4\n")
    config = load_config(file, ["ppo.steps=1"])
    assert (config.seed, config.ppo.steps, config.ppo.batch) == (3, 1, 4)


def test_a_later_override_wins() -> None:
    assert load_config(None, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.stepz=3", r"command line: unknown key 'ppo.stepz'; did you mean 'ppo.steps'\?"),
        ("data.0.sorce=mini", r"unknown key 'data.0.sorce'; did you mean 'data.0.source'\?"),
        ("warmstart.hiden=8", r"did you mean 'warmstart\.scratch\.hidden'\?"),
        ("steps=3", r"unknown key 'steps'; did you mean '(ppo|warmstart).steps'\?"),
        ("warmstart.scratch.hiden=3", r"did you mean 'warmstart.scratch.hidden'\?"),
        ("lam=1", r"unknown key 'lam'; did you mean 'ppo.lam'\?"),
        ("zzzzzz=1", r"unknown key 'zzzzzz'; known keys: .*ppo.steps"),
        ("ppo.steps=many", r"ppo.steps: Input should be a valid integer"),
        ("ppo.steps=0", r"ppo.steps: .*greater than or equal to 1"),
        ("ppo.episode_share=1.5", r"ppo.episode_share: .*less than or equal to 1"),
        ("ppo.largest_pool=1", r"ppo.largest_pool: .*greater than or equal to 2"),
        ("think=maybe", r"think: Input should be a valid boolean"),
        ("design=listwise", r"design: Input should be 'dranker' or 'iranker'"),
        ("layout=table", r"layout: Input should be 'relist', 'append' or 'blocks'"),
        ("data.3.source=mini", r"data.3.source: '3' cannot stand there; lists are counted from 0"),
        ("seed.x=1", r"seed"),
        ("ppo.steps", r"'ppo.steps': settings are given as key=value"),
        ("ppo.steps=[1", r"'ppo.steps=\[1': '\[1' is not a YAML value"),
        ("ppo.steps={a: b: c}", r"is not a YAML value"),
    ],
)
def test_a_refusal_names_the_key_and_the_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


BOUNDED = {
    "ppo": (
        "steps=0 token_budget=0 token_budget=-5 batch=0 minibatch=0 epochs=0 group=0 actor_lr=0 actor_lr=-0.001 "
        "critic_lr=0 warmup=-1 gamma=-1 gamma=2 lam=-1 lam=2 clip=0 clip=-1 clip=1 value_clip=0 kl=-1 entropy=-1 "
        "max_grad_norm=0 max_prompt_tokens=0 max_new_tokens=0 micro_tokens=0 validate_every=0 validate_problems=-1 "
        "checkpoint_every=0 keep=0 lora=0 actor_lr=.inf kl=.nan clip=.nan"
    ),
    "warmstart": "steps=0 batch=0 lr=0 lr=-1 lr=.inf warmup=-1 log_every=0 think_share=2 pointwise=-1 pointing=-1",
    "warmstart.scratch": "vocab=10 hidden=0 layers=0 heads=0 context=0 identifiers=-1",
    "data.0": "limit=0 limit=-2",
}


@pytest.mark.parametrize("override", [f"{part}.{key}" for part, keys in BOUNDED.items() for key in keys.split()])
def test_numbers_outside_their_sense_are_refused_by_their_key(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0].replace(".", r"\.")):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["warmstart.scratch.hidden=30", "warmstart.scratch.heads=4"], "hidden=30 must be a multiple of twice heads=4"),
        (["warmstart.scratch.vocab=300", "warmstart.scratch.identifiers=50"], "vocab=300 leaves no room"),
        (["ppo.group=9", "ppo.batch=8"], "batch=8 does not hold whole groups of 9"),
        (["layout=relist", "readout=identifier"], "readout=identifier is of layout blocks"),
        (["layout=append", "query=last"], "query=last is of layout blocks"),
        (["dtype=int8"], "dtype"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo: {steps: [\n", r"run.yaml is not YAML"),
        (
            "seed: 1\nppo:\n  steps: 2\n  steps: 3\n",
            r"run.yaml is not YAML: line 4: key 'steps' already stands on line 3",
        ),
        ("data: {source: mini}\n", r"run.yaml: data: must be a list: \[a, b\]"),
        ("ppo: [1]\n", r"run.yaml: ppo: must hold keys and values"),
        ("ppo: {kl: .nan}\n", r"run.yaml: ppo.kl: Input should be a finite number"),
        ("ppo: {actor_lr: .inf}\n", r"run.yaml: ppo.actor_lr: Input should be a finite number"),
        ("seed: 2001-99-99\n", r"run.yaml is not YAML: month"),
        ("- a\n- b\n", r"run.yaml must hold keys and values, not a list"),
        ("ppo: {step: 3}\nsed: 1\n", r"(?s)run.yaml: unknown key 'ppo.step'.*run.yaml: unknown key 'sed'"),
    ],
)
def test_faults_of_a_file_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_a_config_is_utf8_in_any_locale_and_faults_of_its_bytes_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes("\ufeffmodel: modèle\r\n".encode())
    script = "import pathlib, sys; from r1ranker.io.config import load_config\n"
    script += "print(ascii(load_config(pathlib.Path(sys.argv[1])).model))"
    ascii_only = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True, env=ascii_only)
    assert done.stdout == "'mod\\xe8le'\n", done.stderr
    file.write_bytes(b"seed: 1\nmodel: mod\xe8le\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:2: not UTF-8"):
        load_config(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*gone.yaml: No such file"):
        load_config(tmp_path / "gone.yaml")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("")
    assert load_config(tmp_path / "run.yaml") == RunConfig()


def test_a_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    overrides = ["data.0.source=movielens", "data.0.path=ml-1m", "data.1.source=mini", "warmstart.scratch.vocab=500"]
    config = load_config(None, [*overrides, "ppo.token_budget=1000", "ppo.actor_lr=3e-7", "out=runs/y"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    assert load_config(file) == config


def test_a_config_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        PPOConfig().steps = 3  # type: ignore[misc]
