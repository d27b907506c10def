"""Which field of a row holds its text. What a file does not settle is refused, never guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from ...runtime.files import holds_half
from ..errors import UserError

Row = tuple[str, Mapping[str, object]]  # where it stands, its fields
NULL = "null rows"


def pick_column(fields: Mapping[str, bool | None], wanted: str | None, where: str) -> str | None:
    """Which field holds the text: the wanted one, else "text", else the only string field.

    `fields` says of every field whether it holds strings; None: nothing but nulls so far. The answer is None where
    only further rows can tell.

    Raises:
        UserError: no such field, or it cannot be told.
    """
    names = ", ".join(fields) or "none"
    if wanted is not None:
        if wanted not in fields:
            raise UserError(f"{where} has no column {wanted!r}; its columns are: {names}")
        if fields[wanted] is False:
            raise UserError(f"column {wanted!r} of {where} does not hold strings; its columns are: {names}")
        return wanted
    if "text" in fields:
        if fields["text"] is False:
            raise UserError(
                f"column 'text' of {where} does not hold strings (its columns are: {names}); "
                "say which one with SOURCE@column"
            )
        return "text"
    strings = [name for name, holds in fields.items() if holds]
    if len(strings) == 1:
        return strings[0]
    if not strings and None in fields.values():
        return None
    raise UserError(f"{where} has no column 'text' (its columns are: {names}); say which one with SOURCE@column")


def choose_column(rows: Iterator[Row], wanted: str | None) -> tuple[str | None, list[Row]]:
    """The column, and the rows that were read to find it: the first, and more only while all their fields are null.

    Raises:
        UserError: as `pick_column`.
    """
    held: list[Row] = []
    for at, row in rows:
        held.append((at, row))
        kinds = {name: None if value is None else isinstance(value, str) for name, value in row.items()}
        column = pick_column(kinds, wanted, at)
        if column is not None:
            return column, held
    return None, held


def texts_in(rows: Iterable[Row], column: str, wanted: str | None, left: Counter[str]) -> Iterator[str]:
    """The text of each row; nulls are counted in `left`.

    Raises:
        UserError: a row without the field, or with another string field where the column was to be the only one.
    """
    for at, row in rows:
        others = [name for name, value in row.items() if name != column and isinstance(value, str)]
        if wanted is None and column != "text" and others:
            raise UserError(f"{at} holds strings in {others[0]!r} besides {column!r}; say which one with SOURCE@column")
        if column not in row:
            raise UserError(f"{at} has no field {column!r}; give every line that field or choose another with @column")
        value = row[column]
        if value is None:
            left[NULL] += 1
            continue
        if not isinstance(value, str):
            raise UserError(f"field {column!r} of {at} is not a string; choose another with @column")
        if holds_half(value):
            raise UserError(f"field {column!r} of {at} holds half a surrogate pair; write it as UTF-8")
        yield value


def note_columns(fields: Iterable[str], column: str, wanted: str | None, left: Counter[str]) -> None:
    """Count the columns that are not read, unless one was asked for by name."""
    if wanted is None:
        left.update(f"column {name!r}" for name in fields if name != column)
