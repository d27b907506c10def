"""Where candidates meet: held-out windows and passkeys per length, every score paired and paid for once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..runtime.model import LM
from .assemble import assemble, with_sidecar
from .measure import LayerMeasurement
from .picks import NONE, Candidate, band_entry, band_tensors
from .score import PasskeyTrials, passkey_answered, tail_losses

Objective = Literal["perplexity", "passkey", "mixed"]


@dataclass(frozen=True)
class Score:
    """A candidate at one length, over the windows seen so far. Higher `value` is better."""

    losses: Tensor  # (n,) float64, nats per token; empty unless the objective needs it
    answered: Tensor  # (k,) float64 in [0, 1]: half exact match, half probability of the right answer
    exact: Tensor  # (k,) bool

    @property
    def value(self) -> float:
        """-loss (perplexity), share answered (passkey), or answered - loss (mixed)."""
        loss = float(self.losses.mean()) if len(self.losses) else 0.0
        answered = float(self.answered.mean()) if len(self.answered) else 0.0
        return answered - loss


@dataclass
class Arena:
    """Held-out data and the model. windows: (n, longest) int64, of which a length S reads the last S tokens."""

    lm: LM
    layers: Sequence[LayerMeasurement]
    train_length: int
    objective: Objective
    windows: Tensor | None
    trials: dict[int, PasskeyTrials]
    tail: int
    batch_tokens: int
    token_layers: int = 0  # cost so far: tokens x layers processed
    _seen: dict[tuple[Candidate, int], Score] = field(default_factory=dict)

    def score(self, candidate: Candidate, length: int, share: float = 1.0) -> Score:
        """Score on the first `share` of the windows and trials; what was scored before is not run again."""
        seen = self._seen.get((candidate, length), _EMPTY)
        lm = self._model(candidate, length)
        losses, answered, exact = seen.losses, seen.answered, seen.exact
        if self.windows is not None:
            wanted = _part(len(self.windows), share)
            if wanted > len(losses):
                new = self.windows[len(losses) : wanted, -length:]
                losses = torch.cat([losses, tail_losses(lm, new, self.tail, candidate.method, self.batch_tokens)])
                self._pay(new.numel())
        if self.trials:
            all_trials = self.trials[length]
            wanted = _part(len(all_trials.keys), share)
            if wanted > len(exact):
                part = slice(len(exact), wanted)
                new_trials = PasskeyTrials(
                    all_trials.prompts[part], all_trials.answers[part], all_trials.keys[part], all_trials.depths[part]
                )
                right, probability = passkey_answered(lm, new_trials, candidate.method, self.batch_tokens)
                exact = torch.cat([exact, right])
                answered = torch.cat([answered, (right.double() + probability) / 2])
                self._pay(new_trials.prompts.numel())
        result = Score(losses, answered, exact)
        self._seen[candidate, length] = result
        return result

    def best(self, candidates: Sequence[Candidate], length: int, share: float = 1.0) -> Candidate:
        """The candidate with the highest value; the earlier one on a tie."""
        return max(dict.fromkeys(candidates), key=lambda c: self.score(c, length, share).value)

    def halving(self, candidates: Sequence[Candidate], length: int, survivors: int = 1) -> list[Candidate]:
        """Successive halving over windows: all on a quarter, the better third on half, the best ones on all."""
        left = list(dict.fromkeys(candidates))
        for share in (0.25, 0.5):
            left = self._rank(left, length, share)[: max(survivors, -(-len(left) // 3))]
        return self._rank(left, length, 1.0)[:survivors]

    def _rank(self, candidates: list[Candidate], length: int, share: float) -> list[Candidate]:
        return sorted(candidates, key=lambda c: -_first(self.score(c, length, share), self, share).value)

    def _model(self, candidate: Candidate, length: int) -> LM:
        if candidate == NONE:
            return with_sidecar(self.lm, None)
        filters = {length: candidate.filter} if candidate.filter else {}
        band = band_entry(candidate.method, filters, candidate.decimate, [length], self.train_length)
        tensors = band_tensors(self.layers, filters, candidate.decimate, self.train_length)
        return with_sidecar(self.lm, assemble(self.lm, self.train_length, [(band, tensors)]))

    def _pay(self, tokens: int) -> None:
        self.token_layers += tokens * len(self.layers)


_EMPTY = Score(torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.bool))


def _part(count: int, share: float) -> int:
    return max(1, round(count * share))


def _first(score: Score, arena: Arena, share: float) -> Score:
    """Compare candidates on the same windows, also those that were scored on more before."""
    n = _part(len(arena.windows), share) if arena.windows is not None else 0
    some = next(iter(arena.trials.values()), None)
    k = _part(len(some.keys), share) if some is not None else 0
    return Score(score.losses[:n], score.answered[:k], score.exact[:k])
