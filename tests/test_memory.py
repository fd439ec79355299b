"""LoRA, bfloat16 and recomputation: the same training in less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.datasets import mini
from r1ranker.errors import ConfigError
from r1ranker.io.config import RunConfig, validated
from r1ranker.problem import Splits
from r1ranker.training.checkpoint import checkpoints
from r1ranker.training.learner import new_learner
from r1ranker.training.memory import add_lora, plain_state, recomputing, without_lora
from r1ranker.training.ppo import train

IDS = torch.arange(1, 13)[None]


def logits(network: Any) -> torch.Tensor:
    return network(input_ids=IDS).logits.detach()


@pytest.fixture
def network(tiny: TransformersBackend) -> Any:
    return copy.deepcopy(tiny.network)


@pytest.fixture
def adapted(network: Any) -> Any:
    """With adapters that say something: fresh ones are 0."""
    pytest.importorskip("peft")
    add_lora(network, 2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return network


def test_adapters_alone_are_trained_and_begin_at_the_model(network: Any) -> None:
    pytest.importorskip("peft")
    before = logits(network)
    add_lora(network, 2)
    assert torch.equal(logits(network), before)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_adapters_stay_in_float32_where_the_rest_is_kept_in_the_narrower_dtype_of_its_passes(network: Any) -> None:
    pytest.importorskip("peft")
    add_lora(network, 2, torch.bfloat16)
    kinds = {("lora_" in name, parameter.dtype) for name, parameter in network.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    merged = plain_state(network, torch.float32)
    assert {value.dtype for value in merged.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern")
def test_a_mixture_of_experts_is_refused_by_name() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    mixture = MixtralConfig(vocab_size=50, num_key_value_heads=1, num_local_experts=2, **shape)
    with pytest.raises(ConfigError, match=r"linear layers alone, and model\.layers\.0\.mlp.* mixture of experts"):
        add_lora(MixtralForCausalLM(mixture), 2)


def test_without_adapters_the_network_is_the_reference(tiny: TransformersBackend, adapted: Any) -> None:
    assert not torch.allclose(logits(adapted), logits(tiny.network))
    with without_lora(adapted):
        assert torch.equal(logits(adapted), logits(tiny.network))
    assert not torch.allclose(logits(adapted), logits(tiny.network))


def test_an_adapted_network_is_saved_as_an_ordinary_model(adapted: Any, tmp_path: Path) -> None:
    said = logits(adapted)
    adapted.save_pretrained(tmp_path, state_dict=plain_state(adapted, torch.float32))
    assert not (tmp_path / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded), said, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(adapted), said)


def test_recomputation_gives_the_same_gradients_and_leaves_no_trace(network: Any) -> None:
    gradients = []
    for again in (False, True):
        network.zero_grad(set_to_none=True)
        if again:
            with recomputing(network):
                network(input_ids=IDS).logits.square().mean().backward()
        else:
            network(input_ids=IDS).logits.square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)
    assert not any("forward" in vars(module) for module in network.modules())


def config(out: Path, model: Path, **settings: Any) -> RunConfig:
    ppo = {"steps": 2, "batch": 4, "minibatch": 4, "validate_every": 1, "validate_problems": 1, "critic": "head"}
    known = {"model": str(model), "think": False, "data": [{"source": "mini"}], "out": str(out), "device": "cpu"}
    return validated(known | {"dtype": settings.pop("dtype", "auto"), "ppo": ppo | settings}, "test")


@pytest.fixture(scope="module")
def few() -> Splits:
    return mini.load(limit=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapted_layer_says_what_pefts_own_says(adapted: Any, dtype: torch.dtype) -> None:
    layers = [module for module in adapted.modules() if hasattr(module, "lora_A")]
    x = torch.randn(3, 5, layers[0].in_features) / 4  # what comes out is below 4, whose last bit is within the bound
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        ours = layers[0](x)
        theirs = type(layers[0]).forward(layers[0], x)
    torch.testing.assert_close(ours, theirs, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)


def test_lora_training_changes_the_model_only_where_there_are_adapters(
    tiny_dir: Path, few: Splits, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    model = train(config(tmp_path / "run", tiny_dir, lora=2, actor_lr=0.05, recompute=True), few)
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny_dir, model))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.endswith("proj.weight") for name in changed)
    resumed = config(tmp_path / "run", tiny_dir, lora=2, actor_lr=0.05, recompute=True, steps=3)
    train(resumed, few, resume=True)


def test_in_bfloat16_weights_keep_steps_smaller_than_its_last_bit(tiny_dir: Path, few: Splits, tmp_path: Path) -> None:
    settings = config(tmp_path / "run", tiny_dir, dtype="bfloat16", actor_lr=1e-6)
    learner = new_learner(settings)
    assert next(learner.policy.parameters()).dtype == torch.float32
    assert next(learner.reference.parameters()).dtype == torch.bfloat16
    with learner.passes():
        assert learner.policy(input_ids=IDS).logits.dtype == torch.bfloat16
    model = train(settings, few)
    checkpoint = torch.load(checkpoints(tmp_path / "run")[-1], weights_only=True)
    before = AutoModelForCausalLM.from_pretrained(tiny_dir).state_dict()
    assert any(not torch.equal(before[name], value) for name, value in checkpoint["policy"].items())
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(model).parameters()} == {torch.bfloat16}
