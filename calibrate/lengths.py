"""Lengths in tokens, as people write them: 4096, 4k (= 4096), 64k, 1m."""

from __future__ import annotations

import re

from .errors import UserError

_LENGTH = re.compile(r"([0-9]+)([km]?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}
MAX_LENGTH = 1 << 40


def parse_length(value: object) -> int:
    """One length in tokens; k is 1024 of them, m 1048576. Raises UserError where it is no whole number above zero."""
    found = _LENGTH.fullmatch(str(value).strip())
    if isinstance(value, bool) or not isinstance(value, (str, int)) or found is None or len(found[1]) > 15:
        raise UserError(f"{value!r} is not a length; write a whole number of tokens such as 4096 or 4k")
    length = int(found[1]) * _UNITS[found[2].lower()]
    if not 0 < length <= MAX_LENGTH:
        raise UserError(f"length {value!r} is out of range; write a number of tokens from 1 to {MAX_LENGTH}")
    return length


def parse_lengths(value: str) -> list[int]:
    """Lengths between commas, sorted, each once: "8k,4k" -> [4096, 8192]. Raises UserError as above, or for none."""
    parts = [part for part in value.split(",") if part.strip()]
    if not parts:
        raise UserError("no lengths given; write them between commas, such as 4k,8k,16k")
    return sorted({parse_length(part) for part in parts})
