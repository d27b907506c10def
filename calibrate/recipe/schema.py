"""Strict reading of plain data (YAML) into frozen dataclasses.

A check takes a value and returns it in its final type, or raises `Refused` with what was expected. `setting` makes a
dataclass field with a default, a check and a line of documentation; `read` walks a mapping through the fields.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from typing import Any, TypeVar

from ..errors import UserError

Check = Callable[[object], Any]
T = TypeVar("T")


class Refused(Exception):
    """A value is not what a key takes: which key below (may be empty), what was found, what was expected."""

    def __init__(self, found: object, expected: str, key: str = "") -> None:
        super().__init__(expected)
        self.found, self.expected, self.key = found, expected, key


def setting(default: Any, check: Check, doc: str) -> Any:
    """A dataclass field that `read` can fill."""
    return field(default=default, metadata=about(check, doc))


def about(check: Check, doc: str) -> dict[str, Any]:
    """What a field says of itself to `read` and to the reader."""
    return {"check": check, "doc": doc}


def read(cls: type[T], values: object, where: str) -> T:
    """An instance of `cls` from a mapping. `where` starts every message.

    Raises:
        UserError: an unknown key, a wrong type or a value out of range; names the key, what was found and expected.
    """
    try:
        return section(cls)(values)
    except Refused as error:
        key = f"{error.key} is " if error.key else "the file holds "
        raise UserError(f"{where}: {key}{_shown(error.found)}; give {error.expected}") from None
    except _Unknown as error:
        near = difflib.get_close_matches(error.key.rpartition(".")[2], error.known, n=1, cutoff=0.0)
        raise UserError(
            f"{where}: unknown key {error.key}; did you mean {near[0] if near else error.known[0]!r}? "
            f"(known here: {', '.join(error.known)})"
        ) from None


class _Unknown(Exception):
    def __init__(self, key: str, known: list[str]) -> None:
        super().__init__(key)
        self.key, self.known = key, known


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _below(name: object, check: Check, value: object, mark: str = ".") -> Any:
    """Run a check and put this key in front of the one it complains about."""
    try:
        return check(value)
    except Refused as error:
        raise Refused(error.found, error.expected, _join(str(name), error.key, mark)) from None
    except _Unknown as error:
        raise _Unknown(_join(str(name), error.key, mark), error.known) from None


def _join(name: str, rest: str, mark: str) -> str:
    return name + (("" if rest.startswith("[") else mark) + rest if rest else "")


def section(cls: type[T]) -> Check:
    """A nested mapping, read into a dataclass."""

    def check(value: object) -> T:
        if not isinstance(value, Mapping):
            raise Refused(value, "a mapping of keys to values")
        known = {entry.name: entry for entry in fields(cls)}  # type: ignore[arg-type]
        for key in value:
            if key not in known:
                raise _Unknown(str(key), sorted(known))
        return cls(**{key: _below(key, known[key].metadata["check"], item) for key, item in value.items()})

    return check


def mapping(item: Check, what: str) -> Check:
    """Any string keys, one kind of value -> a tuple of pairs, sorted by key (dataclasses stay hashable)."""

    def check(value: object) -> tuple[tuple[str, Any], ...]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise Refused(value, what)
        return tuple((key, _below(key, item, value[key])) for key in sorted(value))

    return check


def text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Refused(value, "text that is not empty")
    return value.strip()


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise Refused(value, "true or false")
    return value


def choice(*names: str) -> Check:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise Refused(value, names[0] if len(names) == 1 else f"one of {', '.join(names)}")
        return value

    return check


def integer(least: int, most: int = 1 << 62) -> Check:
    expected = f"a whole number of at least {least}" if most == 1 << 62 else f"a whole number from {least} to {most}"

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Refused(value, expected)
        return value

    return check


def number(above: float = -math.inf, below: float = math.inf, *, at_most: float = math.inf) -> Check:
    """A finite number. Strings are taken too: YAML 1.1 reads 1e-30 as one."""
    bounds = [f"above {above:g}"] * (above > -math.inf) + [f"below {below:g}"] * (below < math.inf)
    bounds += [f"at most {at_most:g}"] * (at_most < math.inf)
    expected = " ".join(["a number", " and ".join(bounds)]).strip()

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise Refused(value, expected)
        try:
            found = float(value)
        except (ValueError, OverflowError):
            raise Refused(value, expected) from None
        if not (math.isfinite(found) and above < found < below and found <= at_most):
            raise Refused(value, expected)
        return found

    return check


def listing(item: Check, what: str, *, empty: bool = False, ordered: bool = False) -> Check:
    """A list -> a tuple; each value once, in rising order where `ordered`."""

    def check(value: object) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not (value or empty):
            raise Refused(value, f"a list of {what}")
        found = tuple(_below(f"[{i}]", item, entry) for i, entry in enumerate(value))
        if len(set(found)) != len(found):
            raise Refused(value, f"a list of {what}, each once")
        if ordered and list(found) != sorted(found):
            raise Refused(value, f"a list of {what} in rising order")
        return found

    return check


def optional(item: Check) -> Check:
    def check(value: object) -> Any:
        try:
            return None if value is None else item(value)
        except Refused as error:
            raise Refused(error.found, f"{error.expected}, or null", error.key) from None

    return check


def either(*checks: Check) -> Check:
    """The first check that takes the value."""

    def check(value: object) -> Any:
        expected: list[str] = []
        for one in checks:
            try:
                return one(value)
            except Refused as error:
                expected.append(error.expected)
        raise Refused(value, _or(expected))

    return check


def _or(parts: Iterable[str]) -> str:
    return ", or ".join(parts)
