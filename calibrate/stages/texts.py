"""First stage: texts -> tokens to measure on, to search on and to decide on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..console import say
from ..errors import UserError
from ..texts.sources import Texts, apart, read_texts, split_documents
from ..texts.tokens import Enough, encode
from ..texts.windows import longest_of, token_windows
from .job import Job

_TOKENS_FOR_ONE = 30  # tokens at L for one that is kept: m is about 0.35, and what is kept about ten times the mean
_MOST_TAIL = 100  # target tokens a window, as in the published protocol
_DOCUMENTS, _SPREAD = 64, 4  # windows are spread over so many documents at least, and so many times their own tokens


@dataclass(frozen=True)
class Tokens:
    """Token ids (T,) of each document, and windows of them.

    fit: documents to measure on, of the first text; held_out: to choose on, of every text
    windows: (n, L) of fit
    searched, judged: (n, longest) of held_out, apart from each other; none of them where nothing is searched
    tail: target tokens of these
    """

    fit: list[Tensor]
    held_out: list[list[Tensor]]
    windows: Tensor
    searched: Tensor
    judged: Tensor
    tail: int
    record: dict[str, Any]

    def first(self, windows: Tensor, count: int) -> Tensor:
        """So many of `searched` or `judged`, up to a whole turn: as many of every text."""
        texts = len(self.held_out)
        return windows[: math.ceil(count / texts) * texts]


def read(job: Job) -> Tokens:
    """Raises UserError where the texts are too few or too short, or not the model's.

    Of several texts the first is measured: what is filtered follows its distribution of delta. The others are there to
    choose on.
    """
    lm, options = job.lm, job.options
    texts = apart([read_texts(source, role="run") for source in options.texts])
    count, choosing, longest = _measuring_windows(job), _choosing_windows(job), job.lengths[-1]
    parts = [split_documents(each, job.recipe.held_out) for each in texts]
    fit = encode(lm, parts[0][0], Enough(min(count, _DOCUMENTS), longest, _SPREAD * count * job.L))
    enough = Enough(max(choosing, _DOCUMENTS), longest, choosing * longest)
    held_out = [encode(lm, part, enough) for _, part in parts]
    windows = token_windows(fit, job.L, count, tail=job.L, seed=options.seed)
    tail = min(_MOST_TAIL, job.L // 2)
    none = torch.empty(0, longest, dtype=torch.int64)
    searched, judged = _held_out_windows(job, held_out, choosing, tail) if job.searches else (none, none)
    unswept = _unswept(job, fit, texts[0].name)
    digests = [each.sha256 for each in texts]
    record = {
        **recorded(options.texts, texts),
        "texts_sha256": digests[0] if len(texts) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        "tokens": sum(map(len, [*fit, *chain(*held_out)])),
        "windows": len(windows),
        "seed": options.seed,
        "lengths": job.lengths,
        "method": options.method,
        "objective": options.objective,
        "samples": options.samples,
        "device": lm.device.type,
        "dtype": str(lm.weights.embedding.dtype).removeprefix("torch."),
    } | ({"unswept": unswept} if unswept else {})
    return Tokens(fit, held_out, windows, searched, judged, tail, record)


def _unswept(job: Job, fit: Sequence[Tensor], name: str) -> list[int]:
    """Lengths that no measured document has, so that nothing can be swept there; told. Raises UserError where g is to
    be fitted so alone."""
    most = longest_of(fit)
    short = [n for n in job.lengths if n > most] if job.sweeps else []
    if short and job.recipe.filter.g_fit == "sequential":
        raise UserError(
            f"filter.g_fit sequential reads {short[-1]} tokens and the longest measured document of {name} has {most}; "
            "give longer documents (the last ones are held out), shorter --lengths or g_fit: auto"
        )
    if short:
        left = ", ".join(map(str, short))
        say(f"{name}: the longest measured document has {most} tokens; left out: sequential fits of g at {left}")
    return short


def recorded(given: Sequence[str], texts: Sequence[Texts]) -> dict[str, Any]:
    """The texts' names in a row and, where these do not tell what each --texts was, the sources as a list."""
    names = ", ".join(each.name for each in texts)
    sources = ["-" if source == "-" else each.name for source, each in zip(given, texts)]
    return {"texts": names} if sources == names.split(", ") else {"texts": names, "sources": sources}


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


def _held_out_windows(job: Job, held_out: Sequence[list[Tensor]], count: int, tail: int) -> tuple[Tensor, Tensor]:
    """The texts take turns, and every text has as many."""
    each = -(-count // len(held_out))
    found = [
        token_windows(documents, job.lengths[-1], each, tail=tail, seed=job.options.seed) for documents in held_out
    ]
    turns = min(map(len, found))
    searched = max(1, round(turns * job.options.samples / count))
    if searched == turns:
        raise UserError("the held-out text has one window alone, to search or to decide on; give longer texts")
    windows = torch.stack([windows[:turns] for windows in found], 1)  # (turns, texts, longest)
    return windows[:searched].flatten(0, 1), windows[searched:].flatten(0, 1)
