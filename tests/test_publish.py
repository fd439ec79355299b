"""Publishing: the card says what is written down, a model that others would misread is refused, files arrive."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from typer.testing import CliRunner

from conftest import small_problem
from hub_server import TOKEN, Hub, hub_server
from r1ranker.cli import app
from r1ranker.errors import BackendError, ConfigError, DataError
from r1ranker.evaluation.results import read_results
from r1ranker.evaluation.systems import evaluate_systems, model_system
from r1ranker.io.config import RunConfig
from r1ranker.io.provenance import write_provenance
from r1ranker.training.logs import read_log
from r1ranker.training.ppo import train
from r1ranker.training.publish import MARK, check_model, model_card, push

PPO = {"steps": 2, "batch": 4, "minibatch": 4, "validate_every": 1, "validate_problems": 2, "critic": "head"}
SHORT = RunConfig().ppo.model_copy(update={"max_new_tokens": 4})
REPO = "lab/owl-ranker"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> Path:
    """A folder with a run (`run/model`) and its evaluation (`eval`), both really made."""
    root = tmp_path_factory.mktemp("finished")
    problems = [small_problem(4, positive=1 + i % 4, qid=f"q{i}", task=f"owl-{i % 2}") for i in range(6)]
    config = RunConfig.model_validate(
        {"model": str(tiny_dir), "think": False, "out": root / "run", "device": "cpu", "seed": 3, "ppo": PPO}
    )
    model = train(config, {"train": problems, "dev": problems})
    systems = ["random", model_system("mine", "iranker", str(model), config)]
    systems.append(model_system("base", "dranker", str(tiny_dir), config.model_copy(update={"ppo": SHORT})))
    settings = config.model_dump(mode="json")
    evaluate_systems(systems, problems, out=root / "eval", baseline="random", settings=settings)
    return root


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    """A copy of the trained model, its run's files around it."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run" / "model"


@pytest.fixture
def bare(tiny_dir: Path, tmp_path: Path) -> Path:
    """A model that lies by itself."""
    return shutil.copytree(tiny_dir, tmp_path / "alone" / "model")


def front(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    return dict(yaml.safe_load(text))


def cells(card: str) -> list[list[str]]:
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def rerun(directory: Path, **settings: Any) -> None:
    """Write the run's files again, as if it had had these settings."""
    config = RunConfig.model_validate({"think": False} | settings)
    write_provenance(directory.parent, config.model_dump(mode="json"))


def test_the_card_begins_with_what_the_hub_reads(model: Path) -> None:
    assert front(model_card(model, repo=REPO)) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reranking", "reinforcement-learning", "r1-ranker"],
    }


@pytest.mark.parametrize(
    ("began", "given", "expected"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", None, {"base_model": "Qwen/Qwen2.5-3B-Instruct"}),
        ("Qwen/Qwen2.5-3B-Instruct", "mit", {"base_model": "Qwen/Qwen2.5-3B-Instruct", "license": "mit"}),
        ("nano", None, {"license": "apache-2.0"}),
        ("smol-base", None, {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}),
        ("run/base", None, {}),
        ("./run", None, {}),
        ("runs/base/model", None, {}),
    ],
)
def test_base_and_licence_are_named_only_when_known(
    began: str, given: str | None, expected: dict[str, str], model: Path
) -> None:
    rerun(model, model=began)
    found = front(model_card(model, repo=REPO, license=given))
    assert {key: found[key] for key in ("base_model", "license") if key in found} == expected


def test_the_card_has_the_settings_of_the_run_and_where_it_got(model: Path) -> None:
    log = read_log(model.parent)
    best = max((row for row in log if "dev_mrr" in row), key=lambda row: row["dev_mrr"])
    settings = dict(row for row in cells(model_card(model, repo=REPO)) if len(row) == 2)
    assert (
        settings.items()
        >= {
            "design": "iranker",
            "layout": "relist",
            "think": "off",
            "data": "mini",
            "steps": "2",
            "tokens": f"{log[-1]['tokens']:,}",
            "kept": f"the model of step {best['step']}, dev MRR {best['dev_mrr']:.3f}",
            "seed": "3",
        }.items()
    )
    made = json.loads((model.parent / "provenance.json").read_text())
    assert f"transformers {made['versions']['transformers']}" in model_card(model, repo=REPO)


def test_the_card_has_every_task_and_system_of_the_evaluation(finished: Path, model: Path) -> None:
    card = model_card(finished / "run" / "model", finished / "eval", repo=REPO)
    table = {(row[0], row[1]): row[2:] for row in cells(card.split("## Results")[1])}
    order = [name.replace("\\", "") for name in table["task", "measure"]]
    assert set(order) == {"random", "mine", "base"}
    shown = [row for row in read_results(finished / "eval" / "results.json") if row.measure in ("MRR", "nDCG@10")]
    assert len(shown) == 3 * 3 * 2
    for row in shown:
        assert f"{row.value:.3f} " in table[row.task, row.measure][order.index(row.system)].strip("*") + " "
    assert "Split test, 6 queries of 2 tasks. Data: mini." in card
    assert "- `mine`: this model as iranker, think off" in card
    assert "- `base`: another model as dranker, think off" in card
    made = json.loads((finished / "eval" / "provenance.json").read_text())
    assert f"revision {made['revision']}" in card
    assert f"ir-measures {made['versions']['ir-measures']}" in card


def test_no_path_of_this_machine_is_published(finished: Path, tiny_dir: Path) -> None:
    card = model_card(finished / "run" / "model", finished / "eval", repo=REPO)
    assert str(finished) not in card
    assert str(tiny_dir) not in card


def test_what_is_not_written_down_is_left_out(bare: Path, finished: Path, model: Path) -> None:
    card = model_card(bare, repo=REPO)
    assert [line for line in card.splitlines() if line.startswith("#")] == ["# owl-ranker", "## Ranking with it"]
    assert "reinforcement" not in card
    for name in ("log.jsonl", "provenance.json"):
        (model.parent / name).unlink()
    settings = dict(row for row in cells(model_card(model, repo=REPO)) if len(row) == 2)
    assert settings["steps"] == "at most 2"
    assert not {"tokens", "kept", "trained from"} & set(settings)
    assert "versions" not in model_card(model, repo=REPO)

    partial = shutil.copytree(finished / "eval", model.parent / "partial")
    for name in ("provenance.json", "comparisons.json"):
        (partial / name).unlink()
    card = model_card(bare, partial, repo=REPO)
    assert "Split test, 6 queries of 2 tasks.\n" in card
    assert "versions" not in card and "p <" not in card


def test_a_folder_that_is_no_run_or_no_evaluation_is_named(bare: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the --out folder of a finished"):
        model_card(bare, tmp_path, repo=REPO)
    (bare.parent / "config.yaml").write_text("colour: red\n")
    with pytest.raises(ConfigError, match=r"unknown key 'colour'(.|\n)*move the model directory out of it"):
        model_card(bare, repo=REPO)
    (model.parent / "provenance.json").write_text("{")
    with pytest.raises(DataError, match=r"provenance\.json is not JSON"):
        model_card(model, repo=REPO)
    (model.parent / "provenance.json").write_text('{"time": "now", "time": "then"}')
    with pytest.raises(DataError, match=r"provenance\.json is not JSON \(key 'time' stands twice"):
        model_card(model, repo=REPO)


@pytest.mark.parametrize(
    "settings",
    [
        {"layout": "append"},
        {"ask": "best"},
        {"layout": "blocks", "ask": "best", "ppo": {"critic": "head"}},
        {"layout": "blocks", "design": "dranker", "ppo": {"critic": "head"}},
        {"think": True, "ppo": {"max_new_tokens": 6}},
        {"design": "dranker", "ppo": {"max_new_tokens": 6}},
    ],
)
def test_what_the_card_tells_to_do_ranks_as_the_model_was_trained_to(
    settings: dict[str, Any], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rerun(model, **settings)
    card = model_card(model, repo=REPO)
    assert ("think" in settings) == ("after a free thought" in card)
    shell, problem, snippet = (block.replace(REPO, str(model)) for block in re.findall(r"```\w*\n(.*?)```", card, re.S))

    exec(snippet, names := {})  # type: ignore[var-annotated]
    assert sorted(yaml.safe_load(capsys.readouterr().out.replace("(", "[").replace(")", "]"))) == ["d1", "d2"]
    ranker = names["ranker"]
    assert type(ranker).__name__ == ("DRanker" if "design" in settings else "IRanker")
    assert ranker.think == settings.get("think", False)
    assert getattr(ranker, "layout", None) in (settings.get("layout", "relist"), None)
    assert getattr(ranker, "ask", None) in (settings.get("ask", "worst"), None)

    (tmp_path / "problems.jsonl").write_text(problem)
    (command,) = [line for line in shell.splitlines() if line.startswith("r1ranker")]
    spoken = command.replace("problems.jsonl", str(tmp_path / "problems.jsonl"))
    spoken = spoken.replace("run.trec", str(tmp_path / "run.trec")) + f" --json {tmp_path / 'rank.json'}"
    result = CliRunner().invoke(app, shlex.split(spoken)[1:])
    assert result.exit_code == 0, result.output
    spec = json.loads((tmp_path / "rank.json").read_text())["spec"]
    wanted = {"design": "iranker", "layout": None, "ask": None, "think": False} | {  # None: as it was trained
        k: v for k, v in settings.items() if k != "ppo"
    }
    assert {key: spec[key] for key in wanted} == wanted


def spoil(model: Path, how: str) -> None:
    """Make a whole model one that must not go up."""
    weights, config = model / "model.safetensors", model / "config.json"
    match how:
        case "gone":
            shutil.rmtree(model)
        case "pickle":
            weights.rename(model / "pytorch_model.bin")
        case "code":
            (model / "modeling_owl.py").write_text("print('hoo')\n")
        case "auto_map":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoConfig": "owl.Owl"}}))
        case "tensor":
            tensors = load_file(weights)
            tensors.pop("model.layers.1.mlp.up_proj.weight")
            save_file(tensors, weights, metadata={"format": "pt"})
        case name:
            (model / name).unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("gone", "no model directory at"),
        ("config.json", "holds no config.json"),
        ("model.safetensors", "holds no weights"),
        ("tokenizer.json", "holds no tokenizer"),
        ("pickle", r"can run code: pytorch_model\.bin; remove"),
        ("code", r"can run code: modeling_owl\.py; remove"),
        ("auto_map", r"config\.json asks for custom code"),
        ("tensor", r"1 are missing, such as model\.layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_a_model_that_is_not_whole_or_brings_code_is_refused(how: str, message: str, bare: Path) -> None:
    check_model(bare)
    spoil(bare, how)
    with pytest.raises(BackendError, match=message):
        check_model(bare)


def test_a_tokenizer_that_others_would_read_differently_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    """Where a config says qwen2, Qwen2's own tokenizer is built around the vocabulary, without its lower case."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(**shape, **heads, bos_token_id=None, eos_token_id=1)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        BackendError, match=r"read in two ways: tokenizer\.json itself makes \d+ tokens .* Qwen2Tokenizer"
    ):
        check_model(tmp_path)


@pytest.mark.parametrize("name", ["owl", "lab/", "lab/owl/2", "lab/o wl", "lab/o--wl", "lab/owl.git", "-lab/owl", ""])
def test_a_name_that_cannot_be_on_the_hub_is_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give ORG/NAME"):
        push(tmp_path / "gone", name)


def test_a_card_of_ones_own_is_kept(model: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub library of the tests is offline, so a push ends after the card is written."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    card = model / "README.md"
    with pytest.raises(BackendError, match="unset HF_HUB_OFFLINE"):
        push(model, REPO)
    card.write_text(card.read_text() + "old")
    with pytest.raises(BackendError, match="unset HF_HUB_OFFLINE"):
        push(model, REPO)
    assert card.read_text() == model_card(model, repo=REPO)

    card.write_text(own := card.read_text().replace(MARK, "By hand."))
    with pytest.raises(BackendError, match="unset HF_HUB_OFFLINE"):
        push(model, REPO)
    assert card.read_text() == own
    with pytest.raises(ConfigError, match="a card of your own"):
        push(model, REPO, results=finished / "eval")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


PUSHES = """
import json, os, sys
from pathlib import Path
from r1ranker.errors import R1RankerError
from r1ranker.training.publish import push

for call in json.loads(sys.argv[1]):
    paths = {name: Path(call.pop(name)) for name in ("directory", "results") if name in call}
    os.environ["HF_TOKEN"] = call.pop("token")
    try:
        print("->", push(**paths, **call))
    except R1RankerError as error:
        print("->", type(error).__name__, " ".join(str(error).split()))
"""


def pushes(hub: Hub, home: Path, *calls: dict[str, Any]) -> list[str]:
    """What each push returned or said. In a process of its own: the hub library reads its settings on import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    given = json.dumps([{"token": TOKEN} | call for call in calls], default=str)
    done = subprocess.run(
        [sys.executable, "-c", PUSHES, given],
        env=kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("-> ") for line in done.stdout.splitlines() if line.startswith("-> ")]


def test_a_push_brings_the_directory_and_the_card_and_says_what_the_hub_refused(
    hub: Hub, finished: Path, model: Path, tmp_path: Path
) -> None:
    hub.files["lab/again"] = {".gitattributes": b"", "model-00001-of-00002.safetensors": b"old", "NOTES.md": b"kept"}
    hub.files["stranger/model"] = {}
    hub.files["lab/open"] = {}
    said = pushes(
        hub,
        tmp_path / "home",
        {"directory": model, "repo": REPO, "results": finished / "eval"},
        {"directory": model, "repo": "lab/secret", "private": True},
        {"directory": model, "repo": "lab/again"},
        {"directory": model, "repo": "lab/open", "private": True},
        {"directory": model, "repo": "stranger/model"},
        {"directory": model, "repo": "stranger/nothing"},
        {"directory": model, "repo": REPO, "token": "hf_other"},
        {"directory": model, "repo": REPO, "token": ""},
        {"directory": model, "repo": "lab/silence"},
    )
    assert said[:3] == [f"{hub.url}/{repo}" for repo in (REPO, "lab/secret", "lab/again")]
    sent = {path.name: path.read_bytes() for path in model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(sent)
    card = model_card(model, finished / "eval", repo=REPO).encode()
    assert hub.files[REPO] == sent | {"README.md": card, ".gitattributes": b""}
    card = model_card(model, repo="lab/again").encode()
    assert hub.files["lab/again"] == sent | {"README.md": card, ".gitattributes": b"", "NOTES.md": b"kept"}
    assert hub.private == {"lab/secret"}
    assert hub.files["lab/open"] == hub.files["stranger/model"] == {}
    for message, start in zip(
        said[3:],
        (
            "ConfigError lab/open exists and is public: make it private",
            r"BackendError the hub does not let you write to stranger/model \(.*not yours.*\); take a name of your own",
            r"BackendError the hub does not let you write to stranger/nothing \(.*rights.*\); take a name of your own",
            "BackendError the hub does not know the token .*`hf auth login`",
            "ConfigError no token for the hub: log in with `hf auth login`",
            rf"BackendError cannot reach the hub at {hub.url} .*`hf upload lab/silence model \.`",
        ),
        strict=True,
    ):
        assert re.match(start, message), message
