"""The one error a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: one line, "what is wrong; what to do".

    The command line prints it as `Error: ...` and exits with 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def first_line(error: BaseException, limit: int = 200) -> str:
    """A foreign error in one short line, never empty."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= limit else line[: limit - 3] + "..."
