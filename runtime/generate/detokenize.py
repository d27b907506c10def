"""Tokens back to text as they come: no half characters, no half stop strings, constant work a token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..checkpoint.tokenizer import decoded, special_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTEXT = 8  # tokens decoded again with the next one: decoders look at neighbours, and no character has more bytes
_HALF = "\ufffd"  # how a decoder of bytes shows one character whose last bytes are still to come


class TextStream:
    """What a sequence of tokens adds to the text of the tokens before it.

    The pieces put together are what decode(before + tokens) has beyond its beginning in common with decode(before):
    special tokens are not shown, nor are ids the tokenizer does not know. (The library's DecodeStream raises on a byte
    that spoils a character already given out, and keeps broken text at the end to itself.)
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._special = set(special_ids(tokenizer).values())
        self._ids: list[int] = []  # the last tokens that are shown
        for token in reversed(before):
            if len(self._ids) >= _CONTEXT and not self._is_byte(self._ids[-1]):
                break
            if self._is_shown(token):
                self._ids.append(token)
        self._ids.reverse()
        self._given = decoded(tokenizer, self._ids)  # of their text, what needs no saying any more

    def push(self, token: int) -> str:
        """The text that has become certain with this token."""
        if not self._is_shown(token):
            return ""
        self._ids.append(token)
        if self._is_byte(token):
            return ""
        text = decoded(self._tokenizer, self._ids)
        half = text.endswith(_HALF)
        piece = self._beyond(text[: len(text) - half])
        if len(self._ids) > 4 * _CONTEXT:
            self._ids = self._ids[-_CONTEXT:]
            text = decoded(self._tokenizer, self._ids)
            self._given = text[: len(text) - half]
        return piece

    def flush(self) -> str:
        """What is left at the end, half characters included."""
        return self._beyond(decoded(self._tokenizer, self._ids))

    def _beyond(self, text: str) -> str:
        if self._given.startswith(text):
            return ""
        common = self._given
        while not text.startswith(common):  # what came before ended in half a character
            common = common[:-1]
        self._given = text
        return text[len(common) :]

    def _is_shown(self, token: int) -> bool:
        return token not in self._special and self._tokenizer.id_to_token(token) is not None

    def _is_byte(self, token: int) -> bool:
        """Whether it is a byte such as <0x0A>. The decoder judges a whole row of them at once: one that is no UTF-8
        spoils all its neighbours, so nothing is certain before the row ends."""
        name = self._tokenizer.id_to_token(token) or ""
        return len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def special_stops(stops: Iterable[str], special: Mapping[str, int]) -> set[int]:
    """The ids of special tokens that stop strings begin with: they are never seen in the text.

    Raises ValueError where a special token comes later in a stop string.
    """
    found = set()
    for stop in stops:
        inside = [token for token in special if token and token in stop]
        first = max((token for token in inside if stop.startswith(token)), key=len, default=None)
        if first is not None:
            found.add(special[first])
        elif inside:
            raise ValueError(
                f"the stop string {stop!r} has the special token {inside[0]} after other text, and text does not show "
                "special tokens; give the text and the token as two stop strings"
            )
    return found


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
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:  # the one complete first, wherever tokens begin; of those, the one that begins first
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        hold = max((n for s in self._stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held
