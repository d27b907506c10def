"""First stage: texts -> tokens to measure on, to search on and to decide on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..search.tasks import DEPTHS, passkey_trials
from ..texts.sources import read_texts, split_documents
from ..texts.tokens import Enough, encode
from ..texts.windows import token_windows
from .job import Job

_TOKENS_FOR_ONE = 30  # tokens at L for one that is kept: m is about 0.35, and what is kept about ten times the mean
_MOST_TAIL = 100  # target tokens a window, as in the published protocol
_DOCUMENTS, _SPREAD = 64, 4  # windows are spread over so many documents at least, and so many times their own tokens


@dataclass(frozen=True)
class Tokens:
    """Token ids (T,) of each document, and windows of them.

    fit, held_out: documents to measure on and to choose on
    windows: (n, L) of fit
    searched, judged: (n, longest) of held_out, apart from each other; None where no window is scored
    tail: target tokens of these
    """

    fit: list[Tensor]
    held_out: list[Tensor]
    windows: Tensor
    searched: Tensor | None
    judged: Tensor | None
    tail: int
    record: dict[str, Any]


def read(job: Job) -> Tokens:
    """Raises UserError where the texts are too few or too short, or not the model's."""
    lm, options = job.lm, job.options
    texts = read_texts(options.texts, role="run")
    to_fit, to_choose = split_documents(texts, job.recipe.held_out)
    count, choosing, longest = _measuring_windows(job), _choosing_windows(job), job.lengths[-1]
    fit = encode(lm, to_fit, Enough(min(count, _DOCUMENTS), longest, _SPREAD * count * job.L))
    held_out = encode(lm, to_choose, Enough(max(choosing, _DOCUMENTS), longest, choosing * longest))
    windows = token_windows(fit, job.L, count, tail=job.L, seed=options.seed)
    tail = min(_MOST_TAIL, job.L // 2)
    scored = job.searches and options.objective != "passkey"
    if job.searches and not scored:  # refuse what no text can hold before hours of measuring, not after
        for length in (job.lengths[0], job.lengths[-1]):
            passkey_trials(lm, held_out, length, DEPTHS[:1], "calibrate", options.seed)
    searched, judged = _held_out_windows(job, held_out, choosing, tail) if scored else (None, None)
    record = {
        "texts": texts.name,
        "texts_sha256": texts.sha256,
        "tokens": sum(map(len, fit)) + sum(map(len, held_out)),
        "windows": len(windows),
        "seed": options.seed,
        "lengths": job.lengths,
        "method": options.method,
        "objective": options.objective,
        "samples": options.samples,
        "device": lm.device.type,
        "dtype": str(lm.weights.embedding.dtype).removeprefix("torch."),
    }
    return Tokens(fit, held_out, windows, searched, judged, tail, record)


def _measuring_windows(job: Job) -> int:
    """So many that g at the longest length is read off enough tokens: a share m L / S of the mass, held by the largest.

    The published fit takes the sequences it was published with.
    """
    measure = job.recipe.measure
    if job.recipe.filter.fit == "published":
        return measure.windows
    return max(measure.windows, math.ceil(measure.kept * _TOKENS_FOR_ONE * job.lengths[-1] / job.L / job.L))


def _choosing_windows(job: Job) -> int:
    """To search on, and to decide on, which wants more of them."""
    return job.options.samples + max(map(job.judging, job.lengths))


def _held_out_windows(job: Job, held_out: Sequence[Tensor], count: int, tail: int) -> tuple[Tensor, Tensor]:
    windows = token_windows(held_out, job.lengths[-1], count, tail=tail, seed=job.options.seed)
    searched = max(1, round(len(windows) * job.options.samples / count))
    if searched == len(windows):
        raise UserError("the held-out text has one window alone, to search or to decide on; give longer texts")
    return windows[:searched], windows[searched:]
