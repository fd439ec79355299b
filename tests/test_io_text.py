"""The one way to open a text file: every encoding, compression and line end gives the same lines, or an error."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from r1ranker.errors import DataError
from r1ranker.io.files import expanded
from r1ranker.io.text import finite, list_files, read_csv, read_lines, read_text


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue().to_pybytes())


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "zstd": zstd}


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_lines_have_numbers_and_lose_their_mark_and_ends_but_nothing_else(tmp_path: Path) -> None:
    content = "\ufeffone\r\ntwo\rstill two\n\n \nfive\u2028still five\x0c.\n\ufeffsix é".encode()
    lines = [(1, "one"), (2, "two\rstill two"), (5, "five\u2028still five\x0c."), (6, "six é")]
    assert list(read_lines(written(tmp_path / "x", content))) == lines


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_compression_is_known_by_content_whatever_the_name(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    joined = compress(b"\xef\xbb\xbfone\n") + compress(b"two\r\n")
    assert list(read_lines(written(tmp_path / "x.txt", joined))) == [(1, "one"), (2, "two")]
    assert list(read_lines(written(tmp_path / "x.gz", b"one\n"))) == [(1, "one")]


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_a_compressed_file_that_was_cut_off_is_never_a_shorter_one(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress("".join(f"line {i * i}\n" for i in range(400)).encode())
    for length in range(12, len(whole), 41):
        with pytest.raises(DataError, match=r"x: damaged or cut off after line \d"):
            list(read_lines(written(tmp_path / "x", whole[:length])))


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    for content in (b"one\ncaf\xe9 owls\n", gzip.compress(b"one\ncaf\xe9 owls\n")):
        for read in (read_lines, read_csv, lambda path: iter(read_text(path))):
            with pytest.raises(DataError, match=r"x:2: not UTF-8 .*save the file as UTF-8"):
                list(read(written(tmp_path / "x", content)))  # type: ignore[operator]
    assert list(read_lines(tmp_path / "x", "latin-1"))[1] == (2, "café owls")


def test_what_holds_nothing_or_is_no_file_is_a_fault(tmp_path: Path) -> None:
    for content in (b"", b"\n \r\n", b"\xef\xbb\xbf", gzip.compress(b"")):
        for read in (read_lines, read_csv):
            with pytest.raises(DataError, match="x: is empty"):
                list(read(written(tmp_path / "x", content)))
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match=r"cannot read .*: (Is a directory|No such file)"):
            list(read_lines(missing))


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "x", b"one")
    assert read_text(Path("~/x")) == "one\n"
    assert list_files(Path("~")) == [tmp_path / "x"]


def test_a_tilde_without_a_home_behind_it_is_a_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "~5 words", b"one")
    assert read_text(Path("~5 words")) == "one\n"
    assert expanded("~5 words // or more") == "~5 words // or more"


def test_csv_fields_may_be_long_and_hold_line_ends(tmp_path: Path) -> None:
    long = "x" * 200_000
    content = f'a,b\n"1\n2",{long}\n\n,\n"say ""hi""","3, 4"\n'
    rows = [(1, ["a", "b"]), (2, ["1\n2", long]), (6, ['say "hi"', "3, 4"])]
    assert list(read_csv(written(tmp_path / "x", content.encode()))) == rows


@pytest.mark.parametrize("row", ['"open,2', '"1"2,3', "1\r,2"])
def test_a_broken_csv_row_is_a_fault_of_its_line_and_swallows_no_others(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match=r"x:2: not CSV"):
        list(read_csv(written(tmp_path / "x", f"a,b\n{row}\n3,4\n".encode())))


def test_hidden_and_backup_files_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.csv.d").mkdir()
    for name in ("b.csv", "a.csv.gz", "c.txt", "._b.csv", ".b.csv", "b.csv~", "b.csv.bak", "#b.csv#"):
        written(tmp_path / name, b"1\n")
    assert [file.name for file in list_files(tmp_path)] == ["a.csv.gz", "b.csv", "c.txt"]
    assert [file.name for file in list_files(tmp_path, "*.csv")] == ["a.csv.gz", "b.csv"]
    with pytest.raises(DataError, match="cannot read the folder"):
        list_files(tmp_path / "none")


def test_numbers_are_finite() -> None:
    assert [finite(value, "x:1") for value in ("2.5", " -1e3 ", 4)] == [2.5, -1000.0, 4.0]
    for value in ("nan", "inf", "1e999", "", "1_0", "high", None, True, 10**400):
        with pytest.raises(DataError, match=r"x:1: .* is not a finite number"):
            finite(value, "x:1")
