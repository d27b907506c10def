"""Tokens back to text as they come: no half characters, no half stop strings, constant work a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTEXT = 4  # tokens decoded again with the next one: decoders look at neighbours, and no character has more bytes
_HALF = "\ufffd"  # how a decoder shows a character whose last bytes are still to come


class TextStream:
    """The text of one sequence of tokens. The pieces put together are the decoder's text of all tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the last tokens
        self._given = 0  # characters of their text that were given out

    def push(self, token: int) -> str:
        """The text that has become certain with this token."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        # Longer rows of replacement characters are broken text, not a character to be completed.
        half = min(len(text) - len(text.rstrip(_HALF)), _CONTEXT)
        piece = self._up_to(text, len(text) - half)
        if not half and len(self._ids) > 4 * _CONTEXT:
            self._ids = self._ids[-_CONTEXT:]
            self._given = len(self._tokenizer.decode(self._ids))
        return piece

    def flush(self) -> str:
        """What is left at the end, half characters included."""
        text = self._tokenizer.decode(self._ids)
        return self._up_to(text, len(text))

    def _up_to(self, text: str, stop: int) -> str:
        piece = text[self._given : stop]
        self._given = max(self._given, stop)
        return piece


class StopCutter:
    """Passes text on up to the first stop string; holds back an end that may be the beginning of one."""

    def __init__(self, stops: Sequence[str]):
        if not all(stops):
            raise ValueError("a stop string is empty; give at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is certain with this piece; sets `stopped` when a stop string was completed."""
        text = self._held + piece
        cut = min((at for at in map(text.find, self._stops) if at >= 0), default=None)
        if cut is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        hold = max((n for s in self._stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held
