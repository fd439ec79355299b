"""The files of a test collection: which is what, and the texts they hold. In: a folder. Out: its `Collection`.

A file is known by its name, or by the user's word, and a run by its first line. What may be a first stage and is not
known as one is refused by name: a BM25 built in its place would be another first stage, without a word.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection as Names
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from r1ranker.datasets.rankllm import TEXT_KEYS, Request, requests_of, spaced
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.documents import identifier_of, parse_json, text_of
from r1ranker.io.files import at_home
from r1ranker.io.runs import is_own, looks_like_run
from r1ranker.io.text import MissingFileError, bare, list_files, read_lines

log = logging.getLogger(__name__)

ID_KEYS = ("_id", "id", "docid", "pid", "qid")
OTHER_IDS = re.compile(r"(query|topic|q|corpus|document|doc|passage|p)[-_]?(id|no)", re.IGNORECASE)
OTHER_TEXTS = re.compile(r"query|question|document", re.IGNORECASE)
"""Other names of identifiers and texts, where none of the usual ones is there."""
OTHERS = re.compile(
    r"(readme|licen[cs]e|copying|notice|provenance|citation|changelog|makefile).*"
    r"|.*\.(md|rst|pdf|html?|sh|py|ya?ml|toml|lock|md5|sha\d+|zip|tar|tgz|log|png|svg)"
    r"|.*\.(journal|failed|problems|traces)\.jsonl"
)
"""Names of files that hold neither texts, judgements nor rankings."""
ROLES = {
    "corpus": re.compile(r"(corpus|collection)\..*"),
    "run": re.compile(r"run.*|.*\.(run|trec|res)"),
    "qrels": re.compile(r".*qrels.*"),
    "topics": re.compile(r"(.*[^a-z])?(queries|topics)([^a-z].*)?"),
}
"""Names of files by role; what matches two has the first."""


class Document(NamedTuple):
    """A text with its title, where it has one."""

    title: str
    body: str

    @property
    def text(self) -> str:
        """What the model reads."""
        return f"{self.title} {self.body}".strip()


@dataclass(frozen=True, slots=True)
class Collection:
    """The files of a folder. requests: by file; a first stage that holds texts too."""

    qrels: Sequence[Path]
    corpus: Path | None
    topics: Path | None
    run: Path | None
    requests: Mapping[Path, Sequence[Request]]


def collection(
    folder: Path, *, run: str | None, qrels: Sequence[str], topics: str | None, corpus: str | None
) -> Collection:
    """The files of a folder by role; those that are named have theirs by the user's word."""
    names = {"run": [run] if run else [], "qrels": qrels, "topics": [topics] if topics else []}
    names["corpus"] = [corpus] if corpus else []
    named = {role: [_named(folder, role, name) for name in of_role] for role, of_role in names.items()}
    taken = {file for files in named.values() for file in files}
    found = _by_name(file for file in list_files(folder) if file not in taken)
    if (folder / "qrels").is_dir():
        found["qrels"] += [f for f in list_files(folder / "qrels") if not OTHERS.fullmatch(bare(f.name).lower())]
    files = {role: named[role] or found[role] for role in ROLES}
    if named["run"]:
        requests = _requests([file for file in named["run"] if bare(file.name).endswith((".json", ".jsonl"))])
        files["run"] = [] if requests else named["run"]
    else:
        requests = _requests(found["requests"])
        _check_known(folder, [*found["unknown"], *(file for file in found["requests"] if file not in requests)])
    firsts = [*files["run"], *requests]
    if requests and files["run"]:
        raise DataError(f"{_listed(folder, firsts)} are two first stages; {_word('run')}")
    one = {role: _one(folder, role, files[role]) for role in ("corpus", "topics", "run")}
    if one["corpus"] is None and not requests:
        raise MissingFileError(
            f"{folder}: has neither a corpus (corpus.jsonl, collection.tsv) nor a .json with requests"
        )
    told = ", ".join(file.name for file in firsts) or "BM25 over the whole corpus, since no run lies there"
    log.info("%s: the first stage is %s", folder, told)
    return Collection(files["qrels"], one["corpus"], one["topics"], one["run"], requests)


def _by_name(files: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {role: [] for role in (*ROLES, "requests", "unknown")}
    for file in files:
        name = bare(file.name).lower()
        if OTHERS.fullmatch(name):
            continue
        role = next((role for role, names in ROLES.items() if names.fullmatch(name)), "unknown")
        if role == "unknown" and name.endswith((".json", ".jsonl")):
            role = "requests"
        if role == "unknown" and looks_like_run(file):
            role = "run"
        if role == "run" and is_own(file):
            log.info("%s: is what this program ranked, and not taken for a first stage; %s", file, _word("run"))
            continue
        found[role].append(file)
    return found


def _requests(files: Iterable[Path]) -> dict[Path, list[Request]]:
    """Requests of the files that hold any."""
    return {file: requests for file in files if (requests := requests_of(file))}


def _named(folder: Path, role: str, name: str) -> Path:
    given = at_home(name)
    file = next((path for path in (folder / given, given) if path.is_file()), None)
    if file is None:
        there = ", ".join(file.name for file in list_files(folder)) or "no file"
        raise ConfigError(f"{role}={name}: no such file in {folder}, which holds {there}")
    return file


def _check_known(folder: Path, unknown: Sequence[Path]) -> None:
    if unknown:
        whose = "a first stage, queries, judgements or something else?"
        raise DataError(f"{_listed(folder, unknown)}: {whose} {_word('run')}, topics, qrels or corpus; or move it away")


def _one(folder: Path, role: str, files: Sequence[Path]) -> Path | None:
    """The file of a role; DataError when several could be it."""
    if len(files) > 1:
        kind = {"run": "run*", "topics": "queries*", "corpus": "corpus.*"}[role]
        raise DataError(f"{_listed(folder, files)} match {kind!r}; keep one of them, or {_word(role)}")
    return files[0] if files else None


def _listed(folder: Path, files: Iterable[Path]) -> str:
    return f"{folder}: {', '.join(file.name for file in files)}"


def _word(role: str) -> str:
    return f"name the one that is meant by the option {role} (-s data.0.options.{role}=FILE)"


def read_documents(file: Path, wanted: set[str] | None = None) -> dict[str, Document]:
    """The texts of a file by identifier, those `wanted` or all: JSON Lines, or an identifier, a tab and a text.

    An identifier that stands twice with two texts is a DataError.
    """
    known: dict[str, Document] = {}
    for number, identifier, document in _documents(file):
        if wanted is not None and identifier not in wanted:
            continue
        if known.setdefault(identifier, document) != document:
            raise DataError(f"{file}:{number}: {identifier!r} stands twice, with unequal texts; keep one of them")
    return known


def _documents(file: Path) -> Iterator[tuple[int, str, Document]]:
    columns: list[str] = []
    for number, line in read_lines(file):
        try:
            if line.lstrip().startswith("{"):
                yield number, *_record(parse_json(line))
            elif not columns and _is_header(line):
                columns = [name.strip().lower() for name in line.split("\t")]
            elif columns:
                fields = line.split("\t")
                if len(fields) != len(columns):
                    raise ValueError(f"{len(fields)} fields, and the header has {len(columns)}")
                yield number, *_record(dict(zip(columns, fields, strict=True)))
            else:
                identifier, tab, text = line.partition("\t")
                if not tab:
                    raise ValueError("write JSON Lines, or an identifier, a tab and a text")
                yield number, identifier_of(identifier, "the identifier"), Document("", spaced(text))
        except (ValueError, DataError) as error:
            what = f"expected an identifier and a text, found {line[:80]!r}"
            raise DataError(f"{file}:{number}: {what} ({error})") from error


def _is_header(line: str) -> bool:
    """Whether a line names its columns: one identifier, one text, perhaps a title."""
    names = [name.strip().lower() for name in line.split("\t")]
    named, said = _id_key(names), _text_key(names)
    return None not in (named, said) and {*names} - {named, said} <= {"title"} and len(names) == len({*names})


def _record(record: Mapping[str, object]) -> tuple[str, Document]:
    named, said = _id_key(record), _text_key(record)
    if named is None or said is None:
        raise ValueError(f"no field {'_id' if named is None else 'text'!r}")
    title, body = text_of(record.get("title"), "the title"), text_of(record[said], "the text")
    return identifier_of(record[named], "the identifier"), Document(spaced(title), spaced(body))


def _id_key(names: Names[str]) -> str | None:
    return next((key for key in ID_KEYS if key in names), None) or next(filter(OTHER_IDS.fullmatch, names), None)


def _text_key(names: Names[str]) -> str | None:
    others = list(filter(OTHER_TEXTS.fullmatch, names))
    return next((key for key in TEXT_KEYS if key in names), others[0] if len(others) == 1 else None)
