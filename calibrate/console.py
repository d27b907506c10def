"""What a person sees while waiting: progress on stderr, nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")
_quiet = False


def hush() -> None:
    """Say nothing more: of the processes of one run, the first speaks for all."""
    global _quiet
    _quiet = True


def progress(items: Sequence[T], label: str, unit: str = "it") -> Iterable[T]:
    """A tqdm bar with ETA on stderr once the loop has lasted two seconds."""
    from tqdm import tqdm

    return tqdm(
        items,
        desc=label,
        unit=unit,
        file=sys.stderr,
        disable=_quiet,
        delay=2,
        mininterval=1,
        dynamic_ncols=True,
        leave=False,
    )


def say(text: str) -> None:
    """One line of log on stderr."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)
