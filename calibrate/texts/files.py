"""Documents out of files: .txt and .md (one document a file), .jsonl and .parquet (one a row), each also .gz."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from ..errors import UserError, first_line

KINDS = (".txt", ".md", ".jsonl", ".parquet")
KINDS_TEXT = ".txt, .md, .jsonl or .parquet, each also .gz"


def kind_of(name: str) -> str | None:
    """The suffix that says how to read a file, without .gz; None for a file of another kind."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in KINDS else None


def has_columns(name: str) -> bool:
    return kind_of(name) in (".jsonl", ".parquet")


def files_in(folder: Path) -> list[Path]:
    """Every readable file below a folder, sorted by its name inside it; hidden files and folders are left out."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if kind_of(name) and not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_file(path: Path, column: str | None, max_bytes: int) -> Iterator[str]:
    """The documents of one file, lazily. No more than about `max_bytes` of a plain text are held.

    Raises:
        UserError: not readable, damaged, not UTF-8, a bad line or no such column.
    """
    kind = kind_of(path.name)
    if kind is None:
        raise UserError(f"{path.name} is not a text file this reads; give {KINDS_TEXT}")
    try:
        with _open(path) as handle:
            if kind == ".jsonl":
                yield from _jsonl(handle, path.name, column)
            elif kind == ".parquet":
                yield from _parquet(handle, path.name, column)
            else:
                yield read_plain(handle, path.name, max_bytes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path.name} is not a whole gzip file ({first_line(error)}); compress it again") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UserError(f"cannot read {path.name}: {reason}; check the file and its permissions") from error


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


def pick_column(fields: Mapping[str, bool], wanted: str | None, where: str) -> str:
    """Which field holds the text: the wanted one, else "text", else the only string field.

    `fields` says of every field whether it holds strings.

    Raises:
        UserError: no such field, or several and none is called "text".
    """
    names = ", ".join(fields) or "none"
    if wanted is not None:
        if wanted not in fields:
            raise UserError(f"{where} has no column {wanted!r}; its columns are: {names}")
        if not fields[wanted]:
            raise UserError(f"column {wanted!r} of {where} does not hold strings; its columns are: {names}")
        return wanted
    if fields.get("text"):
        return "text"
    strings = [name for name, is_string in fields.items() if is_string]
    if len(strings) == 1:
        return strings[0]
    raise UserError(f"{where} has no column 'text' (its columns are: {names}); say which one with SOURCE@column")


def _jsonl(handle: IO[bytes], where: str, column: str | None) -> Iterator[str]:
    picked: str | None = None
    for number, line in enumerate(handle, 1):
        if not line.strip():
            continue
        at = f"{where} line {number}"
        try:
            row = json.loads(_decode(line, at))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{at} is not JSON ({first_line(error, 80)}); write one JSON object a line") from error
        if not isinstance(row, dict):
            raise UserError(f'{at} is not a JSON object; write one object a line, such as {{"text": "..."}}')
        if picked is None:
            picked = pick_column({name: isinstance(value, str) for name, value in row.items()}, column, at)
        yield _string(row, picked, at)


def _string(row: Mapping[str, object], column: str, at: str) -> str:
    if column not in row:
        raise UserError(f"{at} has no field {column!r}; give every line that field or choose another with @column")
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"field {column!r} of {at} is not a string; choose another with @column")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"field {column!r} of {at} holds half a surrogate pair; write it as UTF-8") from error
    return value


def _parquet(handle: IO[bytes], where: str, column: str | None) -> Iterator[str]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError('reading .parquet needs pyarrow; run: pip install "longscan[calibrate]"') from error

    def is_string(kind: Any) -> bool:
        kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
        return bool(arrow.types.is_string(kind) or arrow.types.is_large_string(kind))

    with tempfile.TemporaryFile() as plain:  # parquet is read from its end; a gzip stream cannot seek there cheaply
        if isinstance(handle, gzip.GzipFile):
            shutil.copyfileobj(handle, plain)
            plain.seek(0)
        try:
            table = parquet.ParquetFile(plain if isinstance(handle, gzip.GzipFile) else handle)
            picked = pick_column({field.name: is_string(field.type) for field in table.schema_arrow}, column, where)
            for batch in table.iter_batches(batch_size=16, columns=[picked]):
                yield from (value or "" for value in batch.column(0).to_pylist())
        except (arrow.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{where} is not a readable parquet file ({first_line(error)}); write it again") from error
