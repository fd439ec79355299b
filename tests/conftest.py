"""What the tests share: small problems, and real models of a few thousand parameters. No network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from fault_server import FaultServer
from quick_runs import quick_config
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.datasets import mini
from r1ranker.io.config import RunConfig, ScratchConfig
from r1ranker.problem import Candidate, Problem, Splits
from r1ranker.prompts import NO_THOUGHT, build_prompt
from r1ranker.training import scratch
from serving_server import Server, hashed, running

torch.set_num_threads(1)

MakeProblem = Callable[..., Problem]
SHAPE = ScratchConfig(vocab=400, hidden=32, layers=2, heads=2, context=1536)


def small_problem(n: int = 4, *, positive: int = 1, qid: str = "q1", task: str = "toy", **fields: object) -> Problem:
    """A passage problem of n short candidates, one of them relevant."""
    texts = [f"text {'good' if k == positive else 'bad'} number {k}" for k in range(1, n + 1)]
    values: dict[str, object] = {
        "scenario": "passage",
        "query": f"what is {qid}",
        "candidates": tuple(Candidate(f"d{k}", text) for k, text in enumerate(texts, 1)),
        "gains": {f"d{positive}": 1},
    } | fields
    return Problem(qid=qid, task=task, **values)  # type: ignore[arg-type]


@pytest.fixture(autouse=True, scope="session")
def no_model_of_your_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a developer has fetched would change what is tested."""
    os.environ["R1RANKER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def make_problem() -> MakeProblem:
    return small_problem


@pytest.fixture(scope="session")
def mini_splits() -> Splits:
    return mini.load(limit=2)


def save_model(directory: Path, problems: list[Problem], shape: ScratchConfig) -> Path:
    """A network with random weights, large enough that predictions are far from uniform."""
    texts = [f"{build_prompt(p, p.identifiers, 'iranker').text}\n{NO_THOUGHT} fits least </answer>" for p in problems]
    tokenizer = scratch.train_tokenizer(texts, shape)
    network = scratch.new_network(tokenizer, shape, seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_bert(directory: Path, outputs: int | None = None) -> str:
    """A BERT of a few thousand random weights; with a number of outputs, a classifier of pairs."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

    directory.mkdir()
    signs = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (directory / "vocab.txt").write_text("\n".join([*signs, *(f"##{sign}" for sign in signs[5:])]))
    tokenizer = BertTokenizerFast(str(directory / "vocab.txt"), model_max_length=64)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, num_labels=outputs or 1, **shape)
    network = BertModel(config) if outputs is None else BertForSequenceClassification(config)
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def corpus(mini_splits: Splits) -> list[Problem]:
    return [*mini_splits["dev"], *(small_problem(n, qid=f"q{n}") for n in range(2, 21))]


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory, corpus: list[Problem]) -> Path:
    """A model whose tags and identifiers [1]..[20] are one token each."""
    return save_model(tmp_path_factory.mktemp("tiny"), corpus, SHAPE)


@pytest.fixture(scope="session")
def plain_dir(tmp_path_factory: pytest.TempPathFactory, corpus: list[Problem]) -> Path:
    """A model whose tags and identifiers are several tokens each, as in most models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "TAGS", ())
        return save_model(tmp_path_factory.mktemp("plain"), corpus, SHAPE.model_copy(update={"identifiers": 0}))


@pytest.fixture(scope="session")
def tiny(tiny_dir: Path) -> TransformersBackend:
    return TransformersBackend.load(str(tiny_dir))


@pytest.fixture(scope="session")
def plain(plain_dir: Path) -> TransformersBackend:
    return TransformersBackend.load(str(plain_dir))


@pytest.fixture(params=["tiny", "plain"])
def backend(request: pytest.FixtureRequest) -> TransformersBackend:
    """Both kinds of tokenizer, one after the other."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def problems() -> list[Problem]:
    """A dozen, of three to five candidates."""
    return [small_problem(n, positive=1 + n % 3, qid=f"q{n}-{i}") for i in range(4) for n in (3, 4, 5)]


@pytest.fixture
def config(tiny_dir: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Makes a run of a few steps from the keys that it changes."""
    return partial(quick_config, model=str(tiny_dir), out=str(tmp_path / "run"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with keys, small limits, the embedded model, and endpoints that hang or refuse."""
    refusing = FaultServer(refuse=401, message="the secret of the endpoint")
    with FaultServer(delay=600) as hangs, FaultServer(delay=0.8) as delays, refusing as refuses:
        settings = {
            "rankers": {
                "nano": {"model": "nano", "design": "iranker"},
                "direct": {"model": "nano", "design": "dranker"},
                "best": {"model": "nano", "ask": "best"},
                "short": {"model": "nano", "design": "iranker", "truncate": 120},
                "slow": {"model": "m", "base_urls": [hangs.base_url], "concurrency": 1},
                "steady": {"model": "m", "base_urls": [delays.base_url], "design": "iranker"},
                "refused": {"model": "m", "base_urls": [refuses.base_url]},
            },
            "keys": [
                {"name": "team-a", "sha256": hashed("key-a")},
                {"name": "team-b", "sha256": hashed("key-b"), "models": ["direct"]},
            ],
            "limits": {
                "body_bytes": 100_000,
                "header_bytes": 4096,
                "documents": 60,
                "characters": 1000,
                "all_characters": 20_000,
                "queue": 24,
                "deadline_s": 60,
            },
        }
        with running(tmp_path_factory.mktemp("served"), settings, "key-a") as server:
            yield server
