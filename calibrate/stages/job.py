"""What stays the same during a run: the model, the recipe, what was asked for, and who shares the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...runtime.model import LM
from ..errors import UserError
from ..measure.measuring import tokens_a_batch
from ..recipe.recipe import Recipe
from ..search.scoring import Objective
from ..search.search import pivot_of
from ..work.processes import Processes
from .unfit import refuse_unfit

_FEW = 15  # windows are not halved
_JUDGED = 4  # times as many windows decide at a short length as are searched on, at most


@dataclass(frozen=True)
class Options:
    """What the command line says; the recipe has already been merged with it."""

    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    method: str
    objective: Objective
    samples: int
    seed: int
    train_length: int
    workdir: Path | None = None
    resume: bool = True


@dataclass(frozen=True)
class Job:
    """One run. lengths ascending; methods: the candidates allowed, "none" aside; lm has no sidecar."""

    lm: LM
    recipe: Recipe
    options: Options
    processes: Processes
    lengths: list[int]
    methods: list[str]

    @staticmethod
    def of(lm: LM, recipe: Recipe, options: Options, processes: Processes) -> Job:
        """Raises UserError where methods, lengths or recipe do not fit the model."""
        lm = lm.with_sidecar(None)
        lm.filter_decode = recipe.filter.decode  # candidates are read as the sidecar will be
        methods, lengths = allowed_methods(options.method, recipe, lm.hybrid), sorted(options.lengths)
        if lengths[0] <= options.train_length:
            raise UserError(
                f"length {lengths[0]} is not above the training length {options.train_length}; give longer --lengths"
            )
        if options.train_length < 2:
            raise UserError("a training length of 1 token leaves nothing to score; give a longer --train-length")
        job = Job(lm, recipe, options, processes, lengths, methods)
        if not job.searches and options.method == "scale":
            raise UserError(
                f"this recipe searches nothing and has no settings for --method {options.method}; give another --recipe"
            )
        refuse_unfit(lm, recipe, options.train_length, lengths, methods, job.searches)
        return job

    @property
    def L(self) -> int:
        """The training length."""
        return self.options.train_length

    @property
    def batch_tokens(self) -> int:
        return tokens_a_batch(self.recipe.measure.batch_tokens, self.lm)

    @property
    def searches(self) -> bool:
        """Whether there is anything to choose: what the recipe says outright is taken as it stands."""
        outright = self.options.method == "decimate" and not self.recipe.decimate.search
        return self.options.method != "none" and self.recipe.filter.fit != "published" and not outright

    @property
    def sweeps(self) -> bool:
        """Whether g is fitted sequentially as well, where the measured text is long enough."""
        filters = self.searches and bool({"filter", "both"} & set(self.methods))
        return filters and self.recipe.filter.g_fit != "stretched" and not self.lm.hybrid

    def searching(self, length: int) -> int:
        """Windows that candidates are compared on at a length: half of them beyond the pivot, where they cost most and
        only what was best there is compared."""
        samples = self.options.samples
        return max(samples // 2, min(samples, _FEW)) if length > pivot_of(self.lengths) else samples

    def judging(self, length: int) -> int:
        """Windows that decide at a length: more of short ones, which cost little and gain less."""
        return self.options.samples * min(_JUDGED, max(1, self.lengths[-1] // length // 2))


def allowed_methods(method: str, recipe: Recipe, hybrid: bool = False) -> list[str]:
    """Candidates that `--method` leaves; "none" is always one. The scale is one more where the recipe wants it.

    A hybrid is never decimated. Raises UserError if that is what was asked for.
    """
    if hybrid and method in ("decimate", "both"):
        raise UserError(
            "this model's attention layers need every token, so it cannot be decimated; "
            "give --method auto, filter or none"
        )
    three = ["filter"] if hybrid else ["filter", "decimate", "both"]
    some = {"auto": three + ["scale"] * recipe.scale.search, "both": three, "none": []}
    return some.get(method, [method])
