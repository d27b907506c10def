"""Where candidates meet: held-out windows and passkeys per length, every score paired and paid for once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ...runtime.model import LM
from ...runtime.sidecar.sidecar import canonical
from ..console import progress, say
from ..sidecars import sidecar_from_bands
from ..texts.prompts import PasskeyTrials
from ..work.journal import Journal
from ..work.processes import ALONE, Processes
from .candidates import NONE, Candidate
from .shared_layers import SharedLayers, read_whole
from .tables import Tables, band_entry
from .tasks import read_and_ask, tail_losses

Objective = Literal["perplexity", "passkey", "mixed"]


@dataclass(frozen=True)
class Score:
    """A candidate at one length, over the windows seen so far. Higher `value` is better; no number is the worst."""

    losses: Tensor  # (n,) float64, nats per token; empty unless the objective needs it
    answered: Tensor  # (n,) float64 in [0, 1]: half exact match, half probability of the right answer; or empty
    exact: Tensor  # (n,) bool; or empty

    def __len__(self) -> int:
        """How many windows were read."""
        return max(len(self.losses), len(self.exact))

    def first(self, count: int) -> Score:
        """That of the first windows."""
        return Score(self.losses[:count], self.answered[:count], self.exact[:count])

    @property
    def value(self) -> float:
        """-loss (perplexity), share answered (passkey), or answered - loss (mixed)."""
        loss = float(self.losses.mean()) if len(self.losses) else 0.0
        answered = float(self.answered.mean()) if len(self.answered) else 0.0
        value = answered - loss
        return value if math.isfinite(value) else -math.inf


@dataclass
class Scoring:
    """Held-out data and the model.

    windows: (n, S) int64 by length S; for perplexity alone
    trials: those windows with a key to find, by length; for the other objectives. A mixed one takes the loss from them
    as well.
    """

    lm: LM
    tables: Tables
    objective: Objective
    windows: Mapping[int, Tensor]
    trials: Mapping[int, PasskeyTrials]
    tail: int
    batch_tokens: int
    journal: Journal
    processes: Processes = ALONE
    texts: int = 1  # windows take turns among so many
    shares: Mapping[int, float] = field(default_factory=dict)  # by length, of the filters that a sidecar will have
    purpose: str = "search"  # names these windows and trials in the journal
    token_layers: float = 0.0  # cost so far: tokens x layers processed
    _seen: dict[tuple[Candidate, int], Score] = field(default_factory=dict)

    def on(self, windows: Mapping[int, Tensor], trials: Mapping[int, PasskeyTrials], purpose: str) -> Scoring:
        """The same comparison on other data; nothing is seen yet."""
        return replace(self, windows=windows, trials=trials, purpose=purpose, token_layers=0.0, _seen={})

    @property
    def n_layer(self) -> int:
        return len(self.lm.weights.layers)

    def score(self, candidate: Candidate, length: int, share: float = 1.0, shared: SharedLayers | None = None) -> Score:
        """Score on the first `share` of the windows and trials; what was scored before is not run again."""
        seen, count = self._seen.get((candidate, length), _EMPTY), self.count(length, share)
        if count > len(seen):
            seen = self._seen[candidate, length] = self._more(candidate, length, seen, count, shared)
        return seen.first(count)

    def count(self, length: int, share: float = 1.0) -> int:
        """How many windows a share of those at a length is."""
        whole = len(self.trials[length].keys if self.trials else self.windows[length])
        return max(1, round(whole * share))

    def _more(self, candidate: Candidate, length: int, seen: Score, stop: int, shared: SharedLayers | None) -> Score:
        """Extend a score to the first `stop` windows; from the journal if it was paid for before."""
        start = len(seen)
        twice = self.objective == "mixed" and candidate.decimate is not None
        first = shared.stop if shared else 0
        self.token_layers += (1 + twice) * (stop - start) * length * candidate.layers_read(length, self.n_layer, first)
        what = asdict(candidate)
        if candidate.method == "both":
            what["shares"] = sorted(self._shares(candidate, length).items())
        key = canonical([self.purpose, self.objective, what, length, start, stop])
        found = self.journal.get(key)
        if found is None:
            found = self._read(candidate, length, start, stop, shared)
            self.journal.put(key, found)
        if not all(map(math.isfinite, [*found["losses"], *found["probability"]])):
            say(f"{candidate.method} at {length}: some scores are no numbers, so it ranks last")
        right = torch.tensor(found["right"], dtype=torch.bool)
        probability = torch.tensor(found["probability"], dtype=torch.float64)
        return Score(
            torch.cat([seen.losses, torch.tensor(found["losses"], dtype=torch.float64)]),
            torch.cat([seen.answered, (right.double() + probability) / 2]),
            torch.cat([seen.exact, right]),
        )

    def _read(
        self, candidate: Candidate, length: int, start: int, stop: int, shared: SharedLayers | None
    ) -> dict[str, list[float] | list[bool]]:
        """Run windows start ... stop - 1, for the journal."""
        lm, read = self._model(candidate, length), shared.read if shared else read_whole
        how = ("auto", self.batch_tokens)
        if not self.trials:
            windows = self.windows[length][start:stop]
            losses = tail_losses(lm, windows, self.tail, *how, processes=self.processes, read=read)
            return {"losses": losses.tolist(), "right": [], "probability": []}
        trials, tail = self.trials[length].part(start, stop), self.tail if self.objective == "mixed" else 0
        losses, right, probability = read_and_ask(
            lm, trials, tail, *how, decimates=candidate.decimate is not None, processes=self.processes, read=read
        )
        return {"losses": losses.tolist(), "right": right.tolist(), "probability": probability.tolist()}

    def halving(self, candidates: Sequence[Candidate], length: int, survivors: int = 1) -> list[Candidate]:
        """Successive halving over windows: all on a quarter, the better third on half, the best ones on all.

        What all candidates leave alone is computed once: the layers below the first that any of them touches.
        """
        left = list(dict.fromkeys(candidates))
        stop = min(candidate.untouched() for candidate in left)
        shared = SharedLayers(stop) if stop and len(left) > 1 and not self.lm.hybrid else None
        if shared:
            self.token_layers += stop * self.count(length) * length
        for share in (0.25, 0.5):
            left = self._rank(left, length, share, shared)[: max(survivors, -(-len(left) // 3))]
        return self._rank(left, length, 1.0, shared)[:survivors]

    def _rank(
        self, candidates: list[Candidate], length: int, share: float, shared: SharedLayers | None
    ) -> list[Candidate]:
        """Best first, those that read worse than the plain model last: no recall makes up for it. Ties: the earlier."""
        for candidate in progress(candidates, f"scoring candidates at {length}"):
            self.score(candidate, length, share, shared)
        value = {c: self.score(c, length, share).value for c in candidates}
        return sorted(candidates, key=lambda c: (self.reads_worse(c, length, share), -value[c]))

    def reads_worse(self, candidate: Candidate, length: int, share: float = 1.0) -> bool:
        """Than the plain model, by more than a standard error, where passkeys could make up for it.

        Of the more windows that decide later, that is about two, and refused.
        """
        score = self.score(candidate, length, share)
        more = score.losses - self.score(NONE, length, share).losses
        spread = len(score.exact) > 0 and len(more) > 1
        return spread and not float(more.mean()) <= float(more.std()) / math.sqrt(len(more))

    def _model(self, candidate: Candidate, length: int) -> LM:
        if candidate == NONE:
            return self.lm.with_sidecar(None)
        filters = {length: candidate.filter} if candidate.filter else {}
        L = self.tables.train_length
        band = band_entry(candidate.method, filters, candidate.decimate, [length], L)
        tensors = self.tables.band(
            [length], filters, candidate.decimate, candidate.scale, shares=self._shares(candidate, length), only=True
        )
        return self.lm.with_sidecar(
            sidecar_from_bands(self.lm, L, [(band, tensors)], rotary={length: candidate.rotary})
        )

    def _shares(self, candidate: Candidate, length: int) -> dict[int, float]:
        """The candidate's own share, and at shorter lengths those that g of scans which decimation shortens will follow
        in the sidecar."""
        own = {length: candidate.filter.share} if candidate.filter else {}
        return {n: share for n, share in self.shares.items() if n < length} | own


_NO_VALUES = torch.empty(0, dtype=torch.float64)
_EMPTY = Score(_NO_VALUES, _NO_VALUES, torch.empty(0, dtype=torch.bool))
