"""Talking to the Hub: what is tried again, and what an error means to the person who pushes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TypeVar

from ..console import say
from ..errors import UserError, first_line

T = TypeVar("T")
WAITS = (1.0, 3.0)  # seconds before the second and the third try


def retried(step: Callable[[], T], what: str) -> T:
    """Run a step again after a lost connection or a server's error, three times in all; other errors pass at once."""
    for wait in WAITS:
        try:
            return step()
        except Exception as error:
            if not transient(error):
                raise
            say(f"{what}: {_short(error)}; trying again in {wait:g} s")
            time.sleep(wait)
    return step()


def status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of huggingface_hub, looking through what it was raised from."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def transient(error: BaseException) -> bool:
    """Whether trying again can help."""
    code = status(error)
    return code in (429, 500, 502, 503, 504) if code is not None else lost(error)


def lost(error: BaseException | None) -> bool:
    """Whether the connection failed, in any of the HTTP libraries that versions of huggingface_hub are built on."""
    while error is not None:
        modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
        if modules & {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}:
            return True
        if isinstance(error, json.JSONDecodeError):  # an answer that was cut short
            return True
        if isinstance(error, ConnectionError | TimeoutError):
            return type(error).__name__ != "OfflineModeIsEnabled"
        error = error.__cause__
    return False


def unanswered(error: BaseException) -> bool:
    """Whether the Hub gave no answer or refused one: lost, offline, an HTTP error, a name it does not take."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return status(error) is not None or lost(error) or bool(names & {"OfflineModeIsEnabled", "HFValidationError"})


def explain(error: Exception, repo: str) -> UserError:
    """What went wrong with a push and what to do, in one line. Nothing was committed."""
    if isinstance(error, UserError):
        return error
    code = status(error)
    if code == 401:
        return UserError("the Hub does not accept the token (401); run `hf auth login` again, or renew HF_TOKEN")
    if code == 403:
        return UserError(
            f"the token may not write to {repo} (403); push under your own name, or use a token with write access"
        )
    if code in (409, 412):
        return UserError(f"{repo} was changed by someone else meanwhile ({code}); run the same command again")
    if code is not None and code >= 500:
        return UserError(f"the Hub answers {code} and nothing was committed to {repo}; run the same command later")
    if code == 429:
        return UserError("the Hub asks to slow down (429) and nothing was committed; run the same command later")
    if type(error).__name__ == "OfflineModeIsEnabled":
        return UserError("huggingface_hub is in offline mode; unset HF_HUB_OFFLINE to push")
    if type(error).__name__ == "HFValidationError":
        return UserError(f"{repo!r} is no valid repository id; give user/name")
    if code is None and lost(error):
        return UserError(
            f"the connection to the Hub was lost ({_short(error)}) and nothing was committed to {repo}; "
            "check the network and run the same command again"
        )
    return UserError(f"the Hub refused to take {repo} ({_short(error)}); check the name and the token's rights")


def _short(error: BaseException) -> str:
    code = status(error)
    return f"HTTP {code}" if code is not None else first_line(error, 120)
