"""Documents out of files: .txt and .md (one document a file), .jsonl and .parquet (one a row), each also .gz."""

from __future__ import annotations

import codecs
import gzip
import os
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

from ...runtime.errors import os_reason
from ...runtime.files import parse_json
from ..errors import UserError, first_line
from .columns import NULL, Row, choose_column, note_columns, pick_column, texts_in

KINDS = (".txt", ".md", ".jsonl", ".parquet")
KINDS_TEXT = ".txt, .md, .jsonl or .parquet, each also .gz"


def kind_of(name: str) -> str | None:
    """The suffix that says how to read a file, without .gz; None for a file of another kind."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in KINDS else None


def has_columns(name: str) -> bool:
    return kind_of(name) in (".jsonl", ".parquet")


def files_in(folder: Path, left: Counter[str]) -> list[Path]:
    """Every readable file below a folder, sorted by its name inside it; links are followed, each folder once.

    What is hidden, of another kind, or no regular file is counted in `left`.

    Raises:
        UserError: a folder below cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list folder {Path(error.filename).name}: {os_reason(error)}")

    found, seen = [], set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            left["folders linked twice"] += 1
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        left["hidden files and folders"] += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(root, name) for name in names if not name.startswith(".")):
            if kind_of(path.name) is None:
                left["files of another kind"] += 1
            elif path.exists() and not path.is_file():
                left["devices and pipes"] += 1
            else:
                found.append(path)  # a link to nothing, too: reading it says so
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_file(path: Path, column: str | None, max_bytes: int, left: Counter[str]) -> Iterator[str]:
    """The documents of one file, lazily. No more than about `max_bytes` of a plain text are held.

    Null rows and columns that are not read are counted in `left`.

    Raises:
        UserError: not readable, damaged, not UTF-8, a bad line or no such column.
    """
    kind = kind_of(path.name)
    if kind is None:
        raise UserError(f"{path.name} is not a text file this reads; give {KINDS_TEXT}")
    try:
        with _open(path) as handle:
            if kind == ".jsonl":
                yield from _jsonl(handle, path.name, column, left)
            elif kind == ".parquet":
                yield from _parquet(handle, path.name, column, left)
            else:
                yield read_plain(handle, path.name, max_bytes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path.name} is not a whole gzip file ({first_line(error)}); compress it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {os_reason(error)}") from error


def standard_input() -> IO[bytes]:
    """Standard input as bytes. Raises UserError where it was closed."""
    if sys.stdin is None:
        raise UserError("standard input is closed; pipe a text in, or name a file")
    return sys.stdin.buffer


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def read_plain(handle: IO[bytes], where: str, max_bytes: int) -> str:
    """At most `max_bytes` of UTF-8 text (a few bytes more, so that the caller sees there was more)."""
    data = handle.read(max_bytes + 4)
    whole = len(data) < max_bytes + 4
    return _decode(data, where, whole)


def _decode(data: bytes, where: str, whole: bool = True) -> str:
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=whole)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text (byte {error.start}); convert it, for example with iconv -t utf-8"
        ) from error


def _jsonl(handle: IO[bytes], where: str, wanted: str | None, left: Counter[str]) -> Iterator[str]:
    rows = _rows(handle, where)
    column, held = choose_column(rows, wanted)
    if column is None:
        left[NULL] += len(held)
        return
    note_columns(held[-1][1], column, wanted, left)
    yield from texts_in(chain(held, rows), column, wanted, left)


def _rows(handle: IO[bytes], where: str) -> Iterator[Row]:
    for number, line in enumerate(handle, 1):
        if not line.strip():
            continue
        at = f"{where} line {number}"
        try:
            row = parse_json(_decode(line, at), halves=True)  # columns that are not read may hold anything
        except ValueError as error:
            raise UserError(f"{at} is not JSON ({first_line(error, 80)}); write one JSON object a line") from error
        if not isinstance(row, dict):
            raise UserError(f'{at} is not a JSON object; write one object a line, such as {{"text": "..."}}')
        yield at, row


def _parquet(handle: IO[bytes], where: str, wanted: str | None, left: Counter[str]) -> Iterator[str]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError('reading .parquet needs pyarrow; run: pip install "longscan[calibrate]"') from error

    def is_string(kind: Any) -> bool | None:
        kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
        return None if arrow.types.is_null(kind) else str(kind) in ("string", "large_string", "string_view")

    with tempfile.TemporaryFile() as plain:  # parquet is read from its end; a gzip stream cannot seek there cheaply
        if isinstance(handle, gzip.GzipFile):
            shutil.copyfileobj(handle, plain)
            plain.seek(0)
        try:
            table = parquet.ParquetFile(plain if isinstance(handle, gzip.GzipFile) else handle)
            kinds = {field.name: is_string(field.type) for field in table.schema_arrow}
            column = pick_column(kinds, wanted, where)
            if column is None:
                left[NULL] += table.metadata.num_rows
                return
            note_columns(kinds, column, wanted, left)
            for batch in table.iter_batches(batch_size=16, columns=[column]):
                values = batch.column(0).to_pylist()
                left[NULL] += values.count(None)
                yield from (value for value in values if value is not None)
        except (arrow.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{where} is not a readable parquet file ({first_line(error)}); write it again") from error
