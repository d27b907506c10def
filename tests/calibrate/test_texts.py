"""Sources are read whole and in order, named without paths, and refused in one line that says what to do."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longscan.calibrate.errors import UserError
from longscan.calibrate.lengths import parse_length, parse_lengths
from longscan.calibrate.texts import sources as module
from longscan.calibrate.texts.sources import Texts, read_texts, recorded_source, split_documents


def refused(source: str, *parts: str, max_bytes: int | None = None) -> None:
    with pytest.raises(UserError) as caught:
        read_texts(source, role="run", max_bytes=max_bytes)
    message = str(caught.value)
    assert "\n" not in message and "; " in message, message
    for part in parts:
        assert part in message, message


def test_plain_files_and_gz(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\n")
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"# two"))
    assert read_texts(str(tmp_path / "a.txt"), role="run").documents == ["café\r\n"]
    assert read_texts(str(tmp_path / "b.md.gz"), role="run").documents == ["# two"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_rows(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix else bytes
    lines = [{"id": 1, "text": "one", "note": "x"}, {"id": 2, "text": None}, {"id": 3, "text": "three", "note": "z"}]
    jsonl = tmp_path / f"a.jsonl{suffix}"
    jsonl.write_bytes(pack("\n\n".join(map(json.dumps, lines)).encode()))
    table = io.BytesIO()
    pq.write_table(pa.table({"n": [1, 2], "book": ["eins", "zwei"]}), table)
    parquet = tmp_path / f"b.parquet{suffix}"
    parquet.write_bytes(pack(table.getvalue()))
    assert read_texts(str(jsonl), role="run").documents == ["one", "three"]
    assert read_texts(str(parquet), role="run").documents == ["eins", "zwei"]
    assert read_texts(f"{parquet}@book", role="run").name == f"b.parquet{suffix}@book"
    refused(f"{parquet}@n", "'n'", "does not hold strings")
    refused(f"{parquet}@title", "'title'", "n, book")
    refused(f"{jsonl}@note", "line 3", "'note'")


def test_which_field() -> None:
    from longscan.calibrate.texts.files import pick_column

    assert pick_column({"a": True, "text": True}, None, "x") == "text"
    assert pick_column({"a": True, "n": False}, None, "x") == "a"
    with pytest.raises(UserError, match="a, b"):
        pick_column({"a": True, "b": True}, None, "x")


def test_folder_is_sorted_recursive_and_named_without_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    (folder / "c.txt").write_text("last")
    (folder / "b" / "x.txt").write_text("middle")
    (folder / "a.jsonl").write_text('{"text": "first"}\n{"text": "  "}\n')
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\xff")
    found = read_texts(str(folder), role="run")
    assert found.documents == ["first", "middle", "last"]
    assert found.name == "books" and not found.truncated


def test_a_name_on_disk_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "set").mkdir()
    (tmp_path / "owner" / "set" / "a@b.txt").write_text("here")
    assert read_texts("owner/set", role="run").documents == ["here"]
    assert read_texts("owner/set/a@b.txt", role="run").name == "a@b.txt"
    refused("owner/set#train", "no configs and splits")
    refused("owner/other", "pip install")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe")))
    assert read_texts("-", role="run") == Texts("stdin", ["from a pipe"])


def test_demo_differs_by_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEMO", tmp_path)
    refused("demo", "calibration.txt", "install")
    (tmp_path / "calibration.txt").write_text("to calibrate on")
    (tmp_path / "evaluation.txt").write_text("to evaluate on")
    assert read_texts("demo", role="run").documents == ["to calibrate on"]
    assert read_texts("demo", role="eval").documents == ["to evaluate on"]


def test_the_limit_cuts_at_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 10)
    (tmp_path / "b.txt").write_text("never reached")
    cut = read_texts(str(tmp_path), role="run", max_bytes=5)
    assert cut.documents == ["éé"] and cut.truncated
    whole = read_texts(str(tmp_path / "a.txt"), role="run", max_bytes=20)
    assert whole.documents == ["é" * 10] and not whole.truncated
    assert read_texts(str(tmp_path), role="run", max_bytes=20).truncated


def test_sha256_is_over_documents_with_their_lengths() -> None:
    data = b"".join(len(part).to_bytes(8, "little") + part for part in ("é".encode(), b"b"))
    assert Texts("x", ["é", "b"]).sha256 == hashlib.sha256(data).hexdigest()
    assert Texts("x", ["éb"]).sha256 != Texts("x", ["é", "b"]).sha256 == Texts("y", ["é", "b"]).sha256


def test_errors_say_what_to_do_in_one_line(tmp_path: Path) -> None:
    files: dict[str, bytes] = {
        "latin.txt": b"caf\xe9",
        "empty.txt": b" \n",
        "torn.jsonl": b'{"text": "a"}\n{"text": \n',
        "list.jsonl": b"[1]\n",
        "half.jsonl": b'{"text": "\\ud800"}\n',
        "not.parquet": b"PAR0",
        "not.txt.gz": b"plain",
        "cut.txt.gz": gzip.compress(b"x" * 1000)[:-9],
        "a.pdf": b"%PDF",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "nothing").mkdir()
    here = str(tmp_path) + "/"
    refused(here + "latin.txt", "latin.txt", "UTF-8", "byte 3", "iconv")
    refused(here + "empty.txt", "empty.txt", "no text")
    refused(here + "torn.jsonl", "torn.jsonl line 2", "JSON")
    refused(here + "list.jsonl", "line 1", "object")
    refused(here + "half.jsonl", "line 1", "surrogate")
    refused(here + "not.parquet", "not.parquet", "parquet")
    refused(here + "not.txt.gz", "gzip")
    refused(here + "cut.txt.gz", "gzip")
    refused(here + "a.pdf", "a.pdf", ".jsonl")
    refused(here + "nothing", "nothing", "no texts")
    refused(here + "gone.txt", "no file or folder")
    refused("gone.txt", "no file or folder")
    refused(here + "empty.txt@text", "no columns")
    refused("", "no texts")


class FakeHub:
    """As much of `datasets` as is used."""

    def __init__(self, splits: dict[str, list[dict[str, object]]] | Exception) -> None:
        self.splits, self.calls = splits, list[tuple[object, ...]]()

    def load_dataset(self, name: str, config: str | None, streaming: bool) -> dict[str, list[dict[str, object]]]:
        self.calls.append((name, config, streaming))
        if isinstance(self.splits, Exception):
            raise self.splits
        return self.splits


def test_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, list[dict[str, object]]] = {
        "train": [{"body": "t1", "n": 1}, {"body": None, "n": 2}, {"body": "t2", "n": 3}],
        "test": [{"body": "e1", "n": 1}],
    }
    hub = FakeHub(rows)
    monkeypatch.setitem(sys.modules, "datasets", hub)  # type: ignore[arg-type]
    run = read_texts("owner/set:big", role="run")
    assert (run.name, run.documents) == ("owner/set:big#train@body", ["t1", "t2"])
    assert hub.calls == [("owner/set", "big", True)]
    assert read_texts("owner/set", role="eval").documents == ["e1"]
    assert read_texts("owner/set#train@body", role="eval").documents == ["t1", "t2"]
    assert read_texts("owner/set", role="run", max_bytes=2).truncated
    refused("owner/set#dev", "'dev'", "train, test")
    refused("owner/set@title", "'title'", "body, n")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(ConnectionError("no\nroute")))  # type: ignore[arg-type]
    refused("owner/set", "owner/set", "no route", "--texts")


def test_recorded_source_holds_no_path() -> None:
    for source in ("demo", "-", "emozilla/pg19#test@text", "wikitext:wikitext-2-raw-v1"):
        assert recorded_source(source) == source
    assert recorded_source("/home/me/books/a.jsonl@body") == "a.jsonl@body"
    assert recorded_source("../books/") == "books"
    assert recorded_source("~/a/b.txt") == "b.txt"


def test_split_by_document_holds_the_last_ones_out() -> None:
    texts = Texts("x", [letter * size for letter, size in zip("abcdef", (10, 40, 20, 20, 6, 4))])
    train, held = split_documents(texts, 0.25)
    assert train.documents + held.documents == texts.documents
    assert [len(document) for document in held.documents] == [20, 6, 4]
    first, last = split_documents(Texts("x", ["a", "b" * 99]), 0.25)
    assert (len(first.documents), len(last.documents)) == (1, 1)


def test_a_repeated_document_is_on_one_side_only() -> None:
    train, held = split_documents(Texts("x", ["same text", "other one", "same text", "third one"]), 0.5)
    assert not set(train.documents) & set(held.documents)


def test_a_single_document_is_cut_once_at_white_space() -> None:
    document = "word " * 1000
    train, held = split_documents(Texts("x", [document]), 0.25)
    assert train.documents[0] + held.documents[0] == document
    assert held.documents[0].startswith("word") and len(held.documents[0]) == pytest.approx(1250, abs=5)
    dense = "é" * 400
    assert [len(side.documents[0]) for side in split_documents(Texts("x", [dense]), 0.25)] == [300, 100]
    with pytest.raises(UserError, match="too short"):
        split_documents(Texts("x", ["a"]))


def test_lengths_as_people_write_them() -> None:
    assert [parse_length(value) for value in (4096, "4096", "4k", "64K", " 1m ")] == [4096, 4096, 4096, 65536, 1 << 20]
    assert parse_lengths("8k, 4k,8192") == [4096, 8192]
    for junk in ("0", "-4k", "4.5k", "k", "4kk", "", "٤", 0, -1, True, 2.0, "9" * 30):
        with pytest.raises(UserError, match="; write"):
            parse_length(junk)
    for junk in ("", ",", "4k,x"):
        with pytest.raises(UserError):
            parse_lengths(junk)
