"""The transformers backend against plain forward passes of a small real model."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from r1ranker.backends import loading, models
from r1ranker.backends.base import STOP, PromptError
from r1ranker.backends.padding import left_pad, positions
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import BackendError
from r1ranker.problem import Problem
from r1ranker.prompts import Prompt, build_prompt

MakeProblem = Callable[..., Problem]


def next_logits(backend: TransformersBackend, ids: list[int]) -> torch.Tensor:
    """One row, no padding, no mask."""
    with torch.no_grad():
        return backend.network(input_ids=torch.tensor([ids])).logits[0, -1].float()


def greedy(backend: TransformersBackend, ids: list[int], limit: int) -> list[int]:
    written: list[int] = []
    while len(written) < limit:
        written.append(int(next_logits(backend, ids + written).argmax()))
        text = backend.encoder.tokenizer.decode(written)
        if STOP in text or written[-1] == backend.encoder.tokenizer.eos_token_id:
            break
    return written


def prompts_of(make_problem: MakeProblem, sizes: list[int], think: bool = False) -> list[Prompt]:
    problems = [make_problem(n, qid=f"q{n}") for n in sizes]
    return [build_prompt(p, p.identifiers, "iranker", think=think) for p in problems]


def test_choice_equals_brute_force_over_the_identifiers(
    backend: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem = make_problem(13)
    pool = (2, 3, 10, 11, 13)
    prompt = build_prompt(problem, pool, "iranker", think=False)
    head = backend.encoder.encode(prompt)
    paths = {k: backend.encoder.encode_text(f"[{k}]") for k in pool}
    expected = {}
    for k, path in paths.items():
        expected[k] = 1.0
        for i, token in enumerate(path):
            allowed = sorted({p[i] for p in paths.values() if p[:i] == path[:i]})
            weights = next_logits(backend, head + path[:i])[allowed].softmax(-1)
            expected[k] *= float(weights[allowed.index(token)])
    (choice,) = backend.choose([prompt], [pool])
    assert choice.probabilities == pytest.approx(expected, abs=1e-5)
    assert list(choice.probabilities) == list(pool)
    assert sum(choice.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert max(expected.values()) > 1.5 / len(pool), "the model should prefer something, or the test says nothing"


def test_one_token_choice_reads_the_prompt_once(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    (prompt,) = prompts_of(make_problem, [5])
    (choice,) = tiny.choose([prompt], [(1, 2, 3, 4, 5)])
    assert choice.prompt_tokens == len(tiny.encoder.encode(prompt))
    assert choice.generated_tokens == 1


def test_a_prompt_is_read_once_however_many_tokens_its_identifiers_have(
    plain: TransformersBackend, make_problem: MakeProblem
) -> None:
    prompts = prompts_of(make_problem, [12, 23])
    pools = [tuple(range(1, 13)), tuple(range(1, 24))]
    for prompt, pool, choice in zip(prompts, pools, plain.choose(prompts, pools), strict=True):
        openings = plain.encoder.trie(pool).openings
        assert len(plain.encoder.trie(pool).branches) > 1
        assert choice.prompt_tokens == len(plain.encoder.encode(prompt)) + len(openings)


def test_a_pool_of_one_is_certain(backend: TransformersBackend, make_problem: MakeProblem) -> None:
    (choice,) = backend.choose(prompts_of(make_problem, [5]), [(4,)])
    assert choice.probabilities == {4: 1.0}


def test_choosing_in_a_batch_is_choosing_one_by_one(backend: TransformersBackend, make_problem: MakeProblem) -> None:
    sizes = [12, 2, 7, 20]
    prompts = prompts_of(make_problem, sizes)
    pools = [tuple(range(1, n + 1)) for n in sizes]
    together = backend.choose(prompts, pools)
    for prompt, pool, choice in zip(prompts, pools, together, strict=True):
        (alone,) = backend.choose([prompt], [pool])
        assert choice.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
        assert choice.prompt_tokens == alone.prompt_tokens


def test_positions_start_at_the_first_real_token() -> None:
    """Models with rotary positions cannot tell; models with absolute ones can."""
    ids, mask = left_pad([[5, 6, 7], [8]], pad_id=0, device=torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_small_batches_give_the_same_answers_in_the_same_order(
    tiny_dir: Path, tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    narrow = TransformersBackend(tiny.network, tiny.encoder.tokenizer, max_tokens=1)
    prompts = prompts_of(make_problem, [9, 2, 5], think=True)
    assert narrow.generate(prompts, max_new_tokens=5) == tiny.generate(prompts, max_new_tokens=5)


def test_greedy_generation_equals_an_argmax_loop(backend: TransformersBackend, make_problem: MakeProblem) -> None:
    prompts = prompts_of(make_problem, [3, 11, 6], think=True)
    generated = backend.generate_ids(prompts, max_new_tokens=10, temperature=0.0)
    for prompt, out in zip(prompts, generated, strict=True):
        assert out.prompt_ids == backend.encoder.encode(prompt)
        assert out.completion_ids == greedy(backend, out.prompt_ids, 10)


def forced(backend: TransformersBackend, *scripts: list[int]) -> TransformersBackend:
    """The backend over a network that writes `scripts[i]` after the i-th prompt by length; no two are as long."""
    network = copy.deepcopy(backend.network)
    plain_forward = network.forward
    starts: list[int] = []
    written = 0

    def forward(*args: object, **kwargs: object) -> object:
        nonlocal written
        out = plain_forward(*args, **kwargs)
        out.logits = torch.full_like(out.logits, -1e4)
        last = kwargs["position_ids"][:, -1].tolist()  # type: ignore[index]
        starts[:] = starts or last
        for row, position in enumerate(last):  # rows that have ended may be gone
            script = scripts[starts.index(position - written)]
            out.logits[row, :, script[min(written, len(script) - 1)]] = 0.0
        written += 1
        return out

    scripted = TransformersBackend(network, backend.encoder.tokenizer)  # which tries a few passes of its own first
    network.forward = forward
    return scripted


def test_generation_stops_behind_the_closing_answer_tag(
    backend: TransformersBackend, make_problem: MakeProblem
) -> None:
    script = backend.encoder.encode_text("<answer>[2]</answer> and more words")
    (out,) = forced(backend, script).generate(prompts_of(make_problem, [3]), max_new_tokens=len(script))
    assert out.text == "<answer>[2]</answer>"
    assert not out.truncated
    assert out.generated_tokens == len(backend.encoder.encode_text("<answer>[2]</answer>"))


def test_each_row_of_a_batch_ends_on_its_own(backend: TransformersBackend, make_problem: MakeProblem) -> None:
    texts = ["<answer>[2]</answer>", "<think>long</think>\n<answer>[1]</answer>", "no"]
    scripts = [backend.encoder.encode_text(text) for text in texts]
    scripts[2].append(backend.encoder.tokenizer.eos_token_id)
    outs = forced(backend, *scripts).generate_ids(
        prompts_of(make_problem, [2, 3, 4]), max_new_tokens=40, temperature=0.0
    )
    assert [out.completion_ids for out in outs] == scripts
    assert not any(out.truncated for out in outs)


def test_the_token_limit_is_reported_as_truncation(backend: TransformersBackend, make_problem: MakeProblem) -> None:
    script = backend.encoder.encode_text("<answer>[2]</answer>")
    (out,) = forced(backend, script).generate(prompts_of(make_problem, [3]), max_new_tokens=len(script) - 1)
    assert out.truncated
    assert out.generated_tokens == len(script) - 1
    assert STOP not in out.text


def test_a_model_that_ends_without_an_answer_is_not_truncated(
    backend: TransformersBackend, make_problem: MakeProblem
) -> None:
    tokenizer = backend.encoder.tokenizer
    script = [*backend.encoder.encode_text("no"), tokenizer.eos_token_id]
    (out,) = forced(backend, script).generate(prompts_of(make_problem, [3]), max_new_tokens=30)
    assert (out.text, out.truncated) == ("no", False)


def test_a_padding_token_that_the_model_writes_is_a_token_like_others(
    backend: TransformersBackend, make_problem: MakeProblem
) -> None:
    script = [backend.pad_id, *backend.encoder.encode_text("<answer>[2]</answer>")]
    (out,) = forced(backend, script).generate_ids(
        prompts_of(make_problem, [3]), max_new_tokens=len(script) + 5, temperature=0.0
    )
    assert out.completion_ids == script
    assert not out.truncated


def test_rows_that_end_early_carry_no_padding(tiny_dir: Path, make_problem: MakeProblem) -> None:
    backend = TransformersBackend.load(str(tiny_dir))
    torch.manual_seed(1)
    with torch.no_grad():  # tied embeddings: a long row for the closing tag is a high logit for it
        backend.network.model.norm.weight.fill_(0.3)
    outs = backend.generate_ids(prompts_of(make_problem, [3] * 60, think=True), max_new_tokens=12, temperature=3.0)
    stops = {backend.encoder.tokenizer.eos_token_id, *backend.encoder.encode_text(STOP)}
    early = [out for out in outs if len(out.completion_ids) < 12]
    assert early
    for out in outs:
        assert out.truncated == (out.completion_ids[-1] not in stops)
        assert not stops & set(out.completion_ids[:-1])
    assert all(not out.truncated for out in early)


def test_sampling_follows_the_models_own_distribution(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    draws = 1500
    (prompt,) = prompts_of(make_problem, [2], think=True)
    torch.manual_seed(0)
    outs = tiny.generate_ids([prompt] * draws, max_new_tokens=1, temperature=1.0)
    seen = Counter(out.completion_ids[0] for out in outs)
    expected = next_logits(tiny, tiny.encoder.encode(prompt)).softmax(-1) * draws
    common = [int(t) for t in expected.argsort(descending=True) if expected[t] >= 10]
    rest = draws - float(expected[common].sum())
    chi2 = sum((seen[t] - float(expected[t])) ** 2 / float(expected[t]) for t in common)
    chi2 += (draws - sum(seen[t] for t in common) - rest) ** 2 / rest
    degrees = len(common)
    assert degrees > 5
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5


def test_sampling_ignores_the_models_own_generation_defaults(
    tiny_dir: Path, tmp_path: Path, make_problem: MakeProblem
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_dir, directory)
    defaults = json.loads((directory / "generation_config.json").read_text())
    defaults |= {"do_sample": True, "top_k": 1, "top_p": 0.1, "temperature": 0.01, "repetition_penalty": 5.0}
    (directory / "generation_config.json").write_text(json.dumps(defaults))
    odd, usual = (TransformersBackend.load(str(d)) for d in (directory, tiny_dir))
    prompts = prompts_of(make_problem, [2] * 20, think=True)
    results = []
    for backend in (odd, usual):
        torch.manual_seed(0)
        sampled = backend.generate(prompts, max_new_tokens=4, temperature=1.0)
        results.append((sampled, backend.generate(prompts[:2], max_new_tokens=6)))
    assert results[0] == results[1]
    assert len({out.text for out in results[0][0]}) > 10


def test_no_prompts_cost_no_call(tiny: TransformersBackend) -> None:
    assert tiny.generate([]) == []
    assert tiny.choose([], []) == []


def test_a_prompt_beyond_the_context_is_refused_with_the_remedy(
    tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    prompts = prompts_of(make_problem, [3])
    room = tiny.network.config.max_position_embeddings - len(tiny.encoder.encode(prompts[0]))
    with pytest.raises(BackendError, match=r"cut the texts \(truncate\), show fewer"):
        tiny.generate(prompts, max_new_tokens=room + 1)
    long = build_prompt(make_problem(3, query="word " * 3000), (1, 2, 3), "iranker", think=False)
    with pytest.raises(BackendError, match=r"exceeds the context of 1536 tokens"):
        tiny.choose([long], [(1, 2, 3)])


def test_a_missing_directory_is_named() -> None:
    with pytest.raises(BackendError, match=r"no model directory at \./not/here"):
        TransformersBackend.load("./not/here")


@pytest.mark.parametrize(("kept", "message"), [("", "holds no config.json"), ("config.json", "holds no weights")])
def test_an_incomplete_directory_says_what_is_missing(tiny_dir: Path, tmp_path: Path, kept: str, message: str) -> None:
    if kept:
        shutil.copy(tiny_dir / kept, tmp_path / kept)
    with pytest.raises(BackendError, match=message):
        TransformersBackend.load(str(tmp_path))


def test_an_unreachable_hub_name_gives_the_remedies() -> None:
    with pytest.raises(BackendError, match=r"cannot load 'nobody/no-such-model'.*pass its directory.*--model nano"):
        TransformersBackend.load("nobody/no-such-model")


def test_a_damaged_model_directory_is_named(tiny_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dir, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "no-such-kind"}')
    with pytest.raises(BackendError, match=r"cannot load the model in .*model"):
        TransformersBackend.load(str(tmp_path / "model"))


def test_a_prompt_far_beyond_the_context_is_refused_without_being_read_to_its_end(tiny: TransformersBackend) -> None:
    prompt = Prompt("text good number " * 25_000)
    began = time.perf_counter()
    tiny.encoder.encode_text(prompt.text)
    whole = time.perf_counter() - began
    began = time.perf_counter()
    with pytest.raises(PromptError, match="a prompt of more than 1536 tokens plus 7 to generate exceeds the context"):
        tiny.generate([prompt], max_new_tokens=7)
    with pytest.raises(PromptError, match="a prompt of more than 1536 tokens"):
        tiny.choose([prompt], [(1, 2)])
    assert tiny.length(prompt) > 1536
    assert time.perf_counter() - began < whole / 2
    fits = Prompt("text good number " * 100)
    assert tiny.length(fits) == len(tiny.encoder.encode(fits))


def test_truncated_weights_are_a_backend_error(tiny_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dir, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackendError, match=r"cannot load the model in .*model"):
        TransformersBackend.load(str(tmp_path / "model"))


@pytest.mark.parametrize(("option", "message"), [({"dtype": "float99"}, "float99"), ({"device": "cuda"}, "no GPU")])
def test_impossible_device_and_dtype_are_refused(tiny_dir: Path, option: dict[str, str], message: str) -> None:
    if "device" in option and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendError, match=message):
        TransformersBackend.load(str(tiny_dir), **option)


def test_nano_names_a_directory_of_the_package() -> None:
    assert Path(models.resolve("nano")).parts[-2:] == ("r1ranker", "nano")
    assert models.resolve("org/model") == "org/model"


def test_threads_asked_for_win_over_one_thread_for_small_models(tiny_dir: Path) -> None:
    before = torch.get_num_threads()
    try:
        loading.load(str(tiny_dir), "cpu", threads=2)
        assert torch.get_num_threads() == 2
        loading.load(str(tiny_dir), "cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
