"""Documents out of a data set on the Hugging Face Hub, streamed: `name[:config][#split][@column]`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from ..errors import UserError, first_line
from .columns import choose_column, note_columns, texts_in

_HUB = re.compile(
    r"(?P<name>[\w][\w.-]*(?:/[\w][\w.-]*)?)(?::(?P<config>[^#@:]+))?(?:#(?P<split>[^#@:]+))?(?:@(?P<column>[^@]+))?",
    re.ASCII,
)
# Where the source names no split. What is evaluated on should not be what was calibrated on.
_SPLITS = {"run": ("train",), "eval": ("test", "validation")}


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hub; what is None is chosen when it is opened."""

    name: str
    config: str | None = None
    split: str | None = None
    column: str | None = None

    def __str__(self) -> str:
        marks = ((":", self.config), ("#", self.split), ("@", self.column))
        return self.name + "".join(mark + part for mark, part in marks if part)


def parse_hub_source(source: str) -> HubSource | None:
    """The parts of `name[:config][#split][@column]`; None where it cannot be the name of a data set."""
    found = _HUB.fullmatch(source)
    return HubSource(**found.groupdict()) if found else None


def stream_hub(source: HubSource, role: str, left: Counter[str]) -> tuple[HubSource, Iterator[str]]:
    """The source with its split and column filled in, and its documents, lazily.

    Null rows and columns that are not read are counted in `left`.

    Raises:
        UserError: `datasets` is not installed, the Hub or the data set cannot be read, no such split or column.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError('data sets of the Hub need `datasets`; run: pip install "longscan[calibrate]"') from error
    try:
        splits = datasets.load_dataset(source.name, source.config, streaming=True)
    except Exception as error:  # the client raises errors of a dozen kinds, all meaning the same here
        raise _unreadable(source, error) from error
    if source.split is not None and source.split not in splits:
        raise UserError(f"data set {source.name} has no split {source.split!r}; it has: {', '.join(splits)}")
    split = source.split or next((name for name in _SPLITS[role] if name in splits), next(iter(splits)))
    rows = ((f"row {n} of data set {source.name}", row) for n, row in enumerate(_rows(source, splits[split]), 1))
    column, held = choose_column(rows, source.column)
    if not held:
        raise UserError(f"split {split!r} of data set {source.name} is empty; choose another with #split")
    if column is None:
        raise UserError(f"split {split!r} of data set {source.name} holds only nulls; choose another with #split")
    note_columns(held[-1][1], column, source.column, left)
    found = HubSource(source.name, source.config, split, column)
    return found, texts_in(chain(held, rows), column, source.column, left)


def _rows(source: HubSource, split: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
    try:
        yield from split
    except Exception as error:
        raise _unreadable(source, error) from error


def _unreadable(source: HubSource, error: Exception) -> UserError:
    return UserError(
        f"{source.name} is no file or folder here and could not be read from the Hub ({first_line(error, 160)}); "
        "check the name and the connection, or give a local file with --texts"
    )
