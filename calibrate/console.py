"""What a person sees while waiting: progress on stderr, nothing where nobody looks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO, TypeVar

T = TypeVar("T")
_quiet = False


def hush() -> None:
    """Say nothing more: of the processes of one run, the first speaks for all."""
    global _quiet
    _quiet = True


class Careless:
    """A stream whose readers need not hear: what cannot be written (a full disk, a pipe that broke) is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
    """One line of log on stderr; that nobody can read it is no reason to end a run."""
    if not _quiet and sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def writable(stream: TextIO | None) -> bool:
    """Whether what was printed arrives; a stream that fails is closed off, so that the end of Python is silent."""
    if stream is None:
        return True
    try:
        stream.flush()
        return True
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()
        return False
