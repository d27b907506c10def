"""Whether recall can be asked of a model at all: does it answer passkeys at the length it was trained at?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...runtime.model import LM
from ..console import say
from ..errors import UserError
from ..texts.prompts import DEPTHS, passkey_trials
from ..work.journal import Journal
from ..work.processes import Processes
from .scoring import Objective
from .tasks import passkey_answered

_TRIALS = 4  # a depth
_ENOUGH = 0.5  # of them answered; a model that cannot at L tells nothing about filters by failing beyond it


def settle_objective(
    lm: LM,
    documents: Sequence[Tensor],
    train_length: int,
    asked: Objective,
    seed: int,
    batch_tokens: int,
    journal: Journal,
    processes: Processes,
) -> tuple[Objective, float | None]:
    """What decides, and the share of passkeys the plain model answers at L (None where none could be asked).

    A mixed objective becomes perplexity for a model that answers fewer than half of them, and the user is told.
    """
    if asked == "perplexity":
        say("objective perplexity: recall is not measured, and a better perplexity can go with no recall at all")
        return asked, None
    try:
        depths = [depth for depth in DEPTHS for _ in range(_TRIALS)]
        trials = passkey_trials(lm, documents, train_length, depths, "calibrate", seed)
    except UserError as error:
        answered, reason = None, f"no passkey fits into the training length ({error})"
    else:
        answered = journal.get("passkeys at L")
        if answered is None:
            right, _ = passkey_answered(lm, trials, "none", batch_tokens, processes=processes)
            answered = float(right.double().mean())
            journal.put("passkeys at L", answered)
        reason = f"the plain model answers {answered:.0%} of passkeys at its training length"
    if answered is not None and answered >= _ENOUGH:
        return asked, answered
    if asked == "passkey":
        say(f"warning: {reason}; there may be nothing to keep beyond it")
        return asked, answered
    say(f"warning: {reason}, so perplexity alone decides and recall is unmeasured")
    return "perplexity", answered
