"""What a model says is refused where it is nothing: weights that are no numbers, or not those of the network."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from r1ranker.backends.base import Choice
from r1ranker.backends.encoding import IdentifierTrie
from r1ranker.backends.loading import check_finite, end_ids, load
from r1ranker.backends.sampling import pick
from r1ranker.backends.transformers_ import TransformersBackend, identifier_probabilities
from r1ranker.errors import BackendError, NotFiniteError
from r1ranker.problem import Problem
from r1ranker.prompts import build_prompt

MakeProblem = Callable[..., Problem]
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def changed(directory: Path, to: Path, change: Change) -> str:
    shutil.copytree(directory, to)
    weights = to / "model.safetensors"
    save_file(change(load_file(weights)), weights, metadata={"format": "pt"})
    return str(to)


def spoilt(value: float) -> Change:
    return lambda w: {k: torch.full_like(v, value) if k == "model.norm.weight" else v for k, v in w.items()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, tiny_dir: Path, tmp_path: Path) -> None:
    path = changed(tiny_dir, tmp_path / "spoilt", spoilt(value))
    with pytest.raises(NotFiniteError, match=rf"the weights of {path} in float32 are not finite.*model\.norm\.weight"):
        load(path)


def test_large_weights_are_numbers() -> None:
    check_finite({"w": torch.full((4,), 3e38)}, "the weights")
    check_finite(
        {"w": torch.full((9000,), 60000.0, dtype=torch.float16), "n": torch.ones(2, dtype=torch.long)}, "these"
    )


def test_weights_that_overflow_in_the_dtype_asked_for_are_refused(tiny_dir: Path, tmp_path: Path) -> None:
    path = changed(tiny_dir, tmp_path / "large", spoilt(1e6))
    load(path)
    with pytest.raises(NotFiniteError, match="in float16 are not finite"):
        load(path, dtype="float16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {f"module.{k}": v for k, v in w.items()},
            r"are missing, such as .* belong to no part.*module\.model",
        ),
        (lambda w: {k: v for k, v in w.items() if ".layers.1." not in k}, r"are missing, such as model\.layers\.1\."),
        (lambda w: w | {"model.layers.7.mlp.up_proj.weight": torch.ones(2)}, r"1 belong to no part.*model\.layers\.7"),
        (lambda w: w | {"model.norm.weight": torch.ones(3)}, "cannot load the model in"),
    ],
)
def test_weights_that_are_not_those_of_the_network_are_refused(
    change: Change, message: str, tiny_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=message):
        load(changed(tiny_dir, tmp_path / "other", change))


def test_tied_weights_and_what_older_releases_saved_beside_are_fine(tiny_dir: Path, tmp_path: Path) -> None:
    assert "lm_head.weight" not in load_file(tiny_dir / "model.safetensors")
    beside = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "v_head.summary.weight": torch.ones(4)}
    load(changed(tiny_dir, tmp_path / "older", lambda w: w | beside))


@pytest.mark.parametrize("broken", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_damaged_files_are_a_backend_error(broken: str, tiny_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dir, tmp_path / "damaged")
    (tmp_path / "damaged" / broken).write_text('{"half": ')
    with pytest.raises(BackendError, match="cannot load the model in"):
        load(str(tmp_path / "damaged"))


def test_a_tokenizer_of_another_model_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_dir)
    network.resize_token_embeddings(300)
    shutil.copytree(tiny_dir, tmp_path / "small")
    network.save_pretrained(tmp_path / "small")
    with pytest.raises(BackendError, match="and the network 300: they do not belong together"):
        load(str(tmp_path / "small"))


def test_an_added_token_without_an_embedding_is_named_when_it_is_written(
    tiny_dir: Path, make_problem: MakeProblem
) -> None:
    network, tokenizer = load(str(tiny_dir))
    tokenizer.add_special_tokens({"bos_token": "<begin>", "pad_token": "<nothing>"})
    backend = TransformersBackend(network, tokenizer)
    prompt = build_prompt(make_problem(3), (1, 2, 3), "iranker", think=False)
    with pytest.raises(BackendError, match="no embedding of '<begin>'"):
        backend.choose([prompt], [(1, 2, 3)])
    tokenizer.bos_token = None
    without = TransformersBackend(network, tokenizer)
    (choice,) = without.choose([prompt], [(1, 2, 3)])
    assert sum(choice.probabilities.values()) == pytest.approx(1)


def test_a_tokenizer_without_an_end_ends_at_the_answer_or_the_limit(tiny_dir: Path, make_problem: MakeProblem) -> None:
    network, tokenizer = load(str(tiny_dir))
    network.config.eos_token_id = network.generation_config.eos_token_id = None
    tokenizer.eos_token = tokenizer.pad_token = None
    prompts = [build_prompt(make_problem(n), tuple(range(1, n + 1)), "iranker") for n in (3, 5)]
    said = TransformersBackend(network, tokenizer).generate(prompts, max_new_tokens=4)
    assert all(one.truncated and one.generated_tokens == 4 for one in said)


def test_end_tokens_of_a_generation_config_end_a_completion(tiny_dir: Path, make_problem: MakeProblem) -> None:
    network, tokenizer = load(str(tiny_dir))
    prompts = [build_prompt(make_problem(3), (1, 2, 3), "iranker")]
    (whole,) = TransformersBackend(network, tokenizer).generate_ids(prompts, max_new_tokens=6, temperature=0.0)
    network.generation_config._from_model_config = False
    network.generation_config.eos_token_id = [tokenizer.eos_token_id, whole.completion_ids[2]]
    (cut,) = TransformersBackend(network, tokenizer).generate_ids(prompts, max_new_tokens=6, temperature=0.0)
    end = whole.completion_ids.index(whole.completion_ids[2]) + 1
    assert (cut.completion_ids, cut.truncated) == (whole.completion_ids[:end], False)


def test_the_end_that_a_configuration_has_by_default_counts_only_where_there_is_no_other(
    tiny: TransformersBackend,
) -> None:
    class Settings:
        eos_token_id = 7

    tokenizer = tiny.encoder.tokenizer
    assert end_ids(tokenizer, Settings()) == [tokenizer.eos_token_id]
    assert end_ids(tokenizer, None, Settings()) == sorted({7, tokenizer.eos_token_id})


def test_probabilities_that_are_no_numbers_are_no_choice() -> None:
    trie = IdentifierTrie({1: (5,), 2: (6,)}, {(): (5, 6)})
    with pytest.raises(NotFiniteError, match=r"that of \[1\] is nan"):
        Choice(identifier_probabilities(trie, {(): {5: math.nan, 6: math.nan}}), 1, 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_token_is_picked_by_logits_that_are_no_numbers(temperature: float, bad: float) -> None:
    with pytest.raises(NotFiniteError):
        pick(torch.tensor([[0.0, 1.0], [0.0, bad]]), temperature)


@pytest.mark.parametrize("kept", [True, False])
def test_a_network_that_goes_wrong_after_it_was_loaded_says_so(
    kept: bool, tiny_dir: Path, make_problem: MakeProblem
) -> None:
    backend = TransformersBackend.load(str(tiny_dir))
    backend._prefixes = backend._prefixes if kept else None
    with torch.no_grad():
        backend.network.model.norm.weight[0] = math.nan
    prompt = build_prompt(make_problem(3), (1, 2, 3), "iranker", think=False)
    with pytest.raises(NotFiniteError):
        backend.choose([prompt], [(1, 2, 3)])
    with pytest.raises(NotFiniteError):
        backend.generate([prompt], max_new_tokens=2)
