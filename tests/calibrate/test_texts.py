"""Sources are read whole and in order, named without paths, and refused in one line that says what to do."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longscan.calibrate.errors import UserError
from longscan.calibrate.lengths import parse_length, parse_lengths
from longscan.calibrate.texts import sources as module
from longscan.calibrate.texts.sources import Texts, apart, read_texts, recorded_source, split_documents
from longscan.calibrate.texts.tokens import Enough, encode
from longscan.runtime import load


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
    from longscan.calibrate.texts.columns import pick_column

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
        "twice.jsonl": b'{"text": "a", "text": "b"}\n',
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
    refused(here + "twice.jsonl", "line 1", "'text' is given twice")
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
    monkeypatch.setitem(sys.modules, "datasets", hub)
    run = read_texts("owner/set:big", role="run")
    assert (run.name, run.documents) == ("owner/set:big#train@body", ["t1", "t2"])
    assert hub.calls == [("owner/set", "big", True)]
    assert read_texts("owner/set", role="eval").documents == ["e1"]
    assert read_texts("owner/set#train@body", role="eval").documents == ["t1", "t2"]
    assert read_texts("owner/set", role="run", max_bytes=2).truncated
    refused("owner/set#dev", "'dev'", "train, test")
    refused("owner/set@title", "'title'", "body, n")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(ConnectionError("no\nroute")))
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


def test_a_document_of_two_sources_belongs_to_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = Texts("one", ["a", "b", "b"]), Texts("two", ["c", "a", "b", "d"])
    assert [texts.documents for texts in apart([one, two])] == [["a", "b", "b"], ["c", "d"]]
    assert capsys.readouterr().err == "two: left out: documents of an earlier text (2)\n"
    with pytest.raises(UserError, match="one holds nothing that an earlier text does not hold; leave that --texts out"):
        apart([one, two, one])


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


def write_jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_null_leaves_the_column_undecided(tmp_path: Path) -> None:
    """As in parquet, whose schema says what a column of nulls would hold."""
    rows = [{"text": None, "url": "u"}] * 50 + [{"text": "one", "url": "u"}, {"text": None, "url": "v"}]
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    assert read_texts(path, role="run").documents == read_texts(path + "@text", role="run").documents == ["one"]
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in ("text", "url")}), table)
    assert read_texts(str(table), role="run").documents == ["one"]
    body = write_jsonl(tmp_path / "b.jsonl", {"body": None, "n": 1}, {"body": "two", "n": 2})
    assert read_texts(body, role="run").documents == ["two"]


def test_a_column_of_nulls_is_no_reason_to_read_another(tmp_path: Path) -> None:
    for name, rows in (("a", [{"text": None, "url": "u"}] * 3), ("b", [{"body": None}] * 3)):
        refused(write_jsonl(tmp_path / f"{name}.jsonl", *rows), "no text", "null rows (3)")
        pq.write_table(pa.table({key: [row[key] for row in rows] for key in rows[0]}), tmp_path / f"{name}.parquet")
        refused(str(tmp_path / f"{name}.parquet"), "no text", "null rows (3)")


def test_rows_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    def jsonl(*rows: object) -> str:
        return write_jsonl(tmp_path / "a.jsonl", *rows)

    refused(jsonl({"url": "u"}, {"text": "one", "url": "v"}), "line 2", "'text' besides 'url'", "@column")
    refused(jsonl({"title": None, "body": "b"}, {"title": "t", "body": "c"}), "line 2", "'title' besides 'body'")
    refused(jsonl({"text": "one"}, {"url": "v"}), "line 2 has no field 'text'")
    refused(jsonl({"title": None}, {"body": "b"}), "line 1 has no field 'body'")
    refused(jsonl({"text": ["a", "b"], "url": "u"}), "'text'", "does not hold strings", "url")
    refused(jsonl({"text": None}, {"text": {"nested": "x"}}), "line 2 is not a string")
    refused(jsonl({"url": "u"}, {"text": "one", "url": "v"}) + "@text", "no column 'text'", "url")
    pq.write_table(pa.table({"text": [b"bytes"], "url": ["u"]}), tmp_path / "a.parquet")
    refused(str(tmp_path / "a.parquet"), "'text'", "does not hold strings")


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", {"text": "one", "id": 1}, {"text": None, "id": 2}, {"text": " ", "id": 3})
    (folder / "b.txt").write_text("two")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "picture.png").write_bytes(b"")
    (folder / "more.pdf").write_bytes(b"")
    os.mkfifo(folder / "pipe.txt")
    assert read_texts(str(folder), role="run").documents == ["one", "two"]
    [line] = capsys.readouterr().err.splitlines()
    parts = ["hidden files and folders (1)", "files of another kind (2)", "devices and pipes (1)", "null rows (1)",
             "blank documents (1)", "column 'id' (1)"]  # fmt: skip
    assert line.startswith("books: documents (2); left out: ") and all(part in line for part in parts), line
    read_texts(str(folder / "a.jsonl") + "@text", role="run")
    assert "column" not in capsys.readouterr().err  # one was asked for
    read_texts(str(folder / "b.txt"), role="run", max_bytes=2)
    assert "all beyond the first 2 bytes" in capsys.readouterr().err
    read_texts(str(folder / "b.txt"), role="run")
    assert capsys.readouterr().err == ""
    split_documents(Texts("x", ["one", "two", "one"]))
    assert capsys.readouterr().err == "x: left out: repeated documents (1)\n"


def test_links_are_followed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, elsewhere = tmp_path / "books", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.txt").write_text("linked")
    (folder / "b").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(folder)
    assert read_texts(str(folder), role="run").documents == ["linked"]
    assert "folders linked twice (1)" in capsys.readouterr().err
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    refused(str(folder), "gone.txt", "No such file")


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused(str(tmp_path), "cannot list folder closed", "Permission denied", "permissions")


def test_nulls_of_a_hub_data_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows: dict[str, list[dict[str, object]]] = {
        "train": [{"text": None, "url": "u"}, {"text": "one", "url": "u"}],
        "odd": [{"text": "one"}, {"text": 2}],
        "none": [{"body": None}, {"body": None}],
    }
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(rows))
    found = read_texts("owner/set", role="run")
    assert (found.name, found.documents) == ("owner/set#train@text", ["one"])
    assert "null rows (1)" in capsys.readouterr().err
    refused("owner/set#odd", "row 2", "is not a string")
    refused("owner/set#none", "only nulls")


def test_no_more_documents_are_encoded_than_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    lm = load("demo")
    texts = Texts("letters", ["a" * 100 if i % 2 else "b" for i in range(100)])
    assert len(encode(lm, texts)) == 100 and capsys.readouterr().err == ""
    found = encode(lm, texts, Enough(documents=10, length=50, tokens=900))
    assert [len(ids) for ids in found[:4]] == [1, 100, 1, 100] and len(found) == 32  # two parts of sixteen
    assert "letters: 32 of 100 documents are enough here" in capsys.readouterr().err
    assert len(encode(lm, texts, Enough(documents=10, length=50, tokens=1700))) == 48
    assert len(encode(lm, texts, Enough(documents=10, length=500, tokens=1))) == 100  # none is as long
