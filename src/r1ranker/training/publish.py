"""Publishing a trained model. In: a model directory and a finished evaluation. Out: a repository on the hub.

    push(Path("runs/iranker/model"), "org/name", results=Path("runs/eval"))

What goes up is the directory as it lies there, an ordinary transformers model, and a card. The card says only what
is written down: settings come from the run's folder around the model, the table from the evaluation. Nothing of
this package reads what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from r1ranker.backends.loading import load
from r1ranker.backends.models import NAMES, NANO, SMOL, SMOL_BASE, SOURCES, no_answer
from r1ranker.errors import BackendError, ConfigError, DataError
from r1ranker.evaluation.results import AVERAGE, Comparison, Row, read_results
from r1ranker.evaluation.table import markdown_table
from r1ranker.io.config import RunConfig, load_config
from r1ranker.io.documents import parse_json
from r1ranker.io.text import read_text
from r1ranker.training.logs import Kept, kept_of, read_log

PAPER = "https://arxiv.org/abs/2506.21638"
MARK = "<!-- Written by `r1ranker push`, and anew each time; delete this line to keep changes of your own. -->"
NAME = re.compile(r"\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
CODE = (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle")
"""Files that can run code when they are loaded; pickles are among them."""
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PROBE = "Which of the 12 fits Query 7B? [1] Barn Owls live 4 years. [20] It's NOT so: see 1984.\n<answer>[2]</answer>"
"""Capitals, digits, apostrophes, identifiers and tags: where tokenizers differ."""

_ABOUT = (
    f"A causal language model that ranks candidates in the way of [R1-Ranker]({PAPER}): "
    "it reads a query and numbered candidates, and answers with their identifiers."
)
_DESIGNS = {
    "iranker": "It was trained by reinforcement learning as an IRanker, which removes the worst candidate left, "
    "step by step{thought}.",
    "dranker": "It was trained by reinforcement learning as a DRanker, which writes the whole ranking in one "
    "answer{thought}.",
}
_USAGE = """## Ranking with it

```
pip install r1-ranker
r1ranker rank problems.jsonl --model {repo}{options} --out run.trec
```

A line of `problems.jsonl` is one problem:

```json
{{"qid": "q1", "task": "demo", "scenario": "passage", "query": "how long do barn owls live", "candidates": \
[{{"docid": "d1", "text": "A barn owl lives about four years."}}, {{"docid": "d2", "text": "Owls eat mice."}}]}}
```

The same from Python:

```python
from r1ranker import Candidate, {ranker}, Problem, TransformersBackend

problem = Problem(
    qid="q1", task="demo", scenario="passage", query="how long do barn owls live",
    candidates=(
        Candidate("d1", "A barn owl lives about four years."),
        Candidate("d2", "Owls eat mice."),
    ),
)
ranker = {ranker}(TransformersBackend.load("{repo}"){arguments})
print(ranker.rank(problem).docids)
```

`AutoModelForCausalLM` and `AutoTokenizer` of transformers load it too, without custom code."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run's folder holds around its model; log and origin are empty where it does not."""

    config: RunConfig
    log: list[dict[str, float]]
    kept: Kept | None
    origin: dict[str, Any]


def push(
    directory: Path, repo: str, *, results: Path | None = None, private: bool = False, license: str | None = None
) -> str:
    """Check the model, write its card to `<directory>/README.md`, and upload the directory; returns the address.

    A card of one's own (without the line `MARK`) is uploaded as it is. Weights that the repository had and the
    directory does not are removed there, since transformers might read them instead.

    Raises ConfigError for a name, a token or a card that cannot work, BackendError for a model that others could
    not load as it is loaded here, and for a hub that cannot be reached or refuses.
    """
    if not _is_repo(repo):
        raise ConfigError(f"{repo!r} cannot be a name on the hub: give ORG/NAME, of letters, digits, '-', '_' and '.'")
    if get_token() is None:
        raise ConfigError("no token for the hub: log in with `hf auth login`, or set HF_TOKEN to one that may write")
    check_model(directory)
    _write_card(directory, model_card(directory, results, repo=repo, license=license), results)
    api = HfApi()
    with _hub_errors(api.endpoint, repo, directory):
        api.create_repo(repo, private=private or None, exist_ok=True)  # None: the organisation's own default
        if private and not api.model_info(repo).private:
            raise ConfigError(f"{repo} exists and is public: make it private in its settings, or take another name")
        api.upload_folder(
            repo_id=repo, folder_path=directory, commit_message="Upload the model", delete_patterns=list(WEIGHTS)
        )
    return f"{api.endpoint}/{repo}"


def check_model(directory: Path) -> None:
    """Raises BackendError unless the directory is a whole transformers model that everyone reads as we do."""
    if not directory.is_dir():
        raise BackendError(f"no model directory at {directory}; give the folder that training wrote, <out>/model")
    _check_no_code(directory)
    if not any(found for pattern in TOKENIZERS for found in directory.glob(pattern)):
        raise BackendError(f"{directory} holds no tokenizer; save the model's own there (save_pretrained writes it)")
    _, tokenizer = load(str(directory.resolve()))
    _check_tokens(directory, tokenizer)


def model_card(directory: Path, results: Path | None = None, *, repo: str, license: str | None = None) -> str:
    """The card in Markdown, with the hub's YAML in front.

    results: folder of a finished `r1ranker evaluate`. license: an identifier of the hub's, such as apache-2.0;
    without one it is that of `nano` or of `smol` for what was trained from them, and else not stated.
    """
    run = _run_of(directory)
    about = [_ABOUT]
    if run:
        thought = " after a free thought" if run.config.think else ""
        about.append(_DESIGNS[run.config.design].format(thought=thought))
    parts = [
        _front(directory, run, license),
        f"{MARK}\n\n# {repo.split('/')[-1]}",
        " ".join(about),
        _usage(repo, run.config if run else None),
        _training(directory, run) if run else "",
        _results(directory, results) if results else "",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _front(directory: Path, run: _Run | None, license: str | None) -> str:
    model = run.config.model if run else ""
    ours = {NANO: "", SMOL: SOURCES[SMOL_BASE].repo, SMOL_BASE: SOURCES[SMOL_BASE].repo}  # all of one licence
    known: dict[str, Any] = {
        "license": license or ("apache-2.0" if model in ours else None),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reranking", *(["reinforcement-learning"] if run else []), "r1-ranker"],
        "base_model": ours.get(model, model if _on_hub(model, directory) else ""),
    }
    return f"---\n{yaml.safe_dump({key: v for key, v in known.items() if v}, sort_keys=False)}---"


def _usage(repo: str, config: RunConfig | None) -> str:
    """How to rank as the model was trained to; without a config by the defaults of the command line."""
    ranker = "DRanker" if config and config.design == "dranker" else "IRanker"
    options, arguments = "", f", think={bool(config and config.think)}"
    if ranker == "DRanker":
        options += " --design dranker"
    # Lists are written in one layout, or in blocks.
    if config and (ranker == "IRanker" or config.layout == "blocks"):
        way = {key: value for key, value in config.way.items() if value != RunConfig.model_fields[key].default}
        way = {key: value for key, value in way.items() if key != "ask" or ranker == "IRanker"}
        options += "".join(f" --{key} {value}" for key, value in way.items())
        arguments += "".join(f', {key}="{value}"' for key, value in way.items())
    if config and config.think:
        options += " --think"
    if config and (config.think or ranker == "DRanker"):
        options += f" --max-new-tokens {config.ppo.max_new_tokens}"
        arguments += f", max_new_tokens={config.ppo.max_new_tokens}"
    return _USAGE.format(repo=repo, ranker=ranker, options=options, arguments=arguments)


def _training(directory: Path, run: _Run) -> str:
    config, ppo, last = run.config, run.config.ppo, run.log[-1] if run.log else {}
    limits = {"step": f"at most {ppo.steps:,}", "tokens": f"at most {ppo.token_budget:,}" if ppo.token_budget else ""}
    done = {name: f"{last[name]:,.0f}" if name in last else limit for name, limit in limits.items()}
    settings = {
        "trained from": config.model if config.model in NAMES or _on_hub(config.model, directory) else "",
        "design": config.design,
        "layout": config.layout if config.design == "iranker" else "",
        "think": "on" if config.think else "off",
        "data": ", ".join(dict.fromkeys(source.source for source in config.data)),
        "reward": ppo.reward,
        "advantages": ppo.estimator,
        "steps": done["step"],
        "tokens": done["tokens"],
        "kept": f"the model of step {run.kept.step:,}, dev MRR {run.kept.score:.3f}"
        if run.kept and run.kept.score is not None
        else "",
        "seed": str(config.seed),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in settings.items() if value)
    return f"## Training\n\n| setting | |\n| --- | --- |\n{table}\n\n{_origin(run.origin)}"


def _results(directory: Path, results: Path) -> str:
    rows = read_results(results / "results.json") if (results / "results.json").is_file() else []
    if not rows:
        raise ConfigError(f"{results} holds no results; give the --out folder of a finished `r1ranker evaluate`")
    origin = _json(results / "provenance.json", {})
    comparisons = [Comparison(**one) for one in _json(results / "comparisons.json", [])]
    parts = [
        f"## Results\n\nSplit {rows[0].split}, {_counts(rows)}.{_sources(origin)}",
        markdown_table(rows, comparisons),
        "\n".join(_system(one, directory) for one in origin.get("systems", []) if "spec" in one),
        _origin(origin),
    ]
    return "\n\n".join(part.strip() for part in parts if part)


def _counts(rows: Sequence[Row]) -> str:
    sizes = {row.task: row.n for row in rows if row.measure == "MRR" and row.task != AVERAGE}
    return f"{sum(sizes.values()):,} queries of {len(sizes)} tasks"


def _sources(origin: Mapping[str, Any]) -> str:
    sources = dict.fromkeys(source["source"] for source in origin.get("settings", {}).get("data", []))
    return f" Data: {', '.join(sources)}." if sources else ""


def _system(described: Mapping[str, Any], directory: Path) -> str:
    """One line on a system that is a model. Directories other than this one are not named: they are somebody's own."""
    spec = described["spec"]
    model = spec["model"]
    if Path(model).resolve() == directory.resolve():
        model = "this model"
    elif model not in NAMES and not _on_hub(model, directory):
        model = "another model"
    layout = f", layout {spec['layout']}" if spec["design"] == "iranker" and spec["layout"] else ""
    return f"- `{described['name']}`: {model} as {spec['design']}{layout}, think {'on' if spec['think'] else 'off'}"


def _origin(origin: Mapping[str, Any]) -> str:
    versions = [f"{name} {version}" for name, version in origin.get("versions", {}).items() if version]
    known = {"Made": origin.get("time"), "revision": origin.get("revision"), "versions": ", ".join(versions)}
    return "; ".join(f"{name} {value}" for name, value in known.items() if value)


def _run_of(directory: Path) -> _Run | None:
    """What is known of the run whose `model` the directory is; None where no config.yaml lies beside it."""
    out = directory.resolve().parent
    if not (out / "config.yaml").is_file():
        return None
    try:
        config = load_config(out / "config.yaml")
    except ConfigError as error:
        raise ConfigError(f"{error}\nIf this is not a run's folder, move the model directory out of it") from error
    return _Run(config, read_log(out), kept_of(out), _json(out / "provenance.json", {}))


def _json(path: Path, default: Any) -> Any:
    try:
        return parse_json(read_text(path)) if path.is_file() else default
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); repair it, or remove it to publish without it") from error


def _is_repo(name: str) -> bool:
    """ORG/NAME as the hub allows it; a name of one's own without ORG is not taken, as it could be a folder."""
    return bool(NAME.fullmatch(name)) and not re.search(r"--|\.\.|\.git$", name)


def _on_hub(model: str, directory: Path) -> bool:
    """Whether a name is org/name on the hub. It is not where `org` is a folder, seen from here or around the run."""
    places = (Path(), *directory.resolve().parents)
    return _is_repo(model) and not any((place / model.split("/")[0]).exists() for place in places)


def _check_no_code(directory: Path) -> None:
    code = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.suffix in CODE)
    if code:
        raise BackendError(
            f"{directory} holds files that can run code: {', '.join(code)}; remove them (weights go in *.safetensors)"
        )
    for path in directory.glob("*config.json"):
        if "auto_map" in _json(path, {}):
            raise BackendError(f"{path} asks for custom code (auto_map); only models that transformers knows go up")


def _check_tokens(directory: Path, tokenizer: Any) -> None:
    """AutoTokenizer may build its model type's own tokenizer around a vocabulary that was made for another."""
    ours = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    theirs = AutoTokenizer.from_pretrained(directory)
    others = {"AutoTokenizer": theirs(PROBE, add_special_tokens=False)["input_ids"]}
    if (directory / "tokenizer.json").is_file():
        written = Tokenizer.from_file(str(directory / "tokenizer.json"))
        written.no_padding()
        written.no_truncation()
        others["tokenizer.json itself"] = written.encode(PROBE, add_special_tokens=False).ids
    for name, ids in others.items():
        if ids != ours:
            raise BackendError(
                f"the tokenizer in {directory} is read in two ways: {name} makes {len(ids)} tokens of a text of which "
                f"{type(tokenizer).__name__}, chosen by the model's type, makes {len(ours)}. Others would not read as "
                "the model was taught; warm-start it anew with this version, which makes networks of a type that "
                "keeps the tokenizer as it was saved"
            )


def _write_card(directory: Path, card: str, results: Path | None) -> None:
    path = directory / "README.md"
    if path.is_file() and MARK not in read_text(path):
        if results:
            raise ConfigError(f"{path} is a card of your own and would not show {results}; remove one of the two")
        return
    path.write_text(card, encoding="utf-8")


@contextmanager
def _hub_errors(endpoint: str, repo: str, directory: Path) -> Iterator[None]:
    """What goes wrong at the hub becomes a BackendError with the remedy."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise BackendError("the hub library is told to stay offline; unset HF_HUB_OFFLINE to publish") from error
    except HfHubHTTPError as error:
        raise BackendError(_refused(repo, error)) from error
    except (no_answer(), OSError) as error:
        elsewhere = f"or copy {directory} to a machine that has one and run `hf upload {repo} {directory.name} .` there"
        raise BackendError(
            f"cannot reach the hub at {endpoint} ({error}); try again with a network (HF_ENDPOINT names another hub), "
            f"{elsewhere}"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"the upload to {repo} failed ({error}); run the same command again to go on") from error


def _refused(repo: str, error: HfHubHTTPError) -> str:
    status, said = error.response.status_code, error.server_message or str(error).splitlines()[0]
    if status == 401:
        return f"the hub does not know the token ({said}); log in with `hf auth login`, or set HF_TOKEN to a valid one"
    if status in (403, 404):
        return (
            f"the hub does not let you write to {repo} ({said}); take a name of your own account or of an organisation "
            "you belong to, and a token that may write there"
        )
    return f"the hub refused {repo} with status {status} ({said}); run the same command again once that is settled"
