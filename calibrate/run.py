"""`calibrate run`: texts -> measurements -> search -> policy -> sidecar."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime.checkpoint.tokenizer import plain_ids
from ..runtime.checkpoint.weight_files import weight_files
from ..runtime.model import LM
from ..runtime.sidecar.sidecar import Band, Sidecar, canonical
from .console import progress, say
from .errors import UserError
from .measure.measuring import LayerMeasurement, measured, tokens_a_batch
from .recipe.published import published_decimation, published_filter
from .recipe.recipe import Recipe, to_json
from .search.candidates import Candidate, DecimatePick, FilterPick
from .search.choice import bands, choose
from .search.recall import settle_objective
from .search.scoring import Objective, Scoring
from .search.search import Search, plain_scores
from .search.sequential import Sweeper
from .search.tables import Tables, band_entry
from .search.tasks import DEPTHS, PasskeyTrials, passkey_trials
from .sidecars import assemble, producer_version
from .texts.sources import Texts, read_texts, split_documents
from .texts.windows import token_windows
from .work.journal import Journal
from .work.processes import ALONE, Processes

_TOKENS_FOR_ONE = 30  # tokens at L for one that is kept: m is about 0.35, and what is kept about ten times the mean
_JUDGED = 4  # times as many windows decide at a short length as are searched on
_MOST_TAIL = 100  # target tokens a window, as in the published protocol


@dataclass(frozen=True)
class Options:
    """What the command line says; the recipe has already been merged with it."""

    texts: str
    lengths: tuple[int, ...]
    method: str
    objective: Objective
    samples: int
    seed: int
    train_length: int
    workdir: Path | None = None
    resume: bool = True


@dataclass(frozen=True)
class Calibration:
    """The sidecar and what `run --json` says about it."""

    sidecar: Sidecar
    bands: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    cost: float
    seconds: float
    tokens: int


def allowed_methods(method: str, recipe: Recipe, hybrid: bool = False) -> list[str]:
    """Candidates that `--method` leaves; "none" is always one. The scale is one more where the recipe wants it.

    A hybrid is never decimated. Raises UserError if that is what was asked for.
    """
    only_decimates = method in ("decimate", "both") or (recipe.filter.fit != "published" and not recipe.decimate.search)
    if hybrid and only_decimates:
        raise UserError(
            "this model's attention layers need every token, so it cannot be decimated; "
            "give --method auto, filter or none and a recipe that filters"
        )
    three = ["filter"] if hybrid else ["filter", "decimate", "both"]
    some = {"auto": three + ["scale"] * recipe.scale.search, "both": three, "none": []}
    return some.get(method, [method])


def encode(lm: LM, texts: Texts) -> list[Tensor]:
    """Token ids of each document, (T,) int64: without BOS, because windows begin in the middle of a text.

    Raises UserError where the model has no embedding for a token.
    """
    found = [torch.tensor(ids, dtype=torch.int64) for ids in plain_ids(lm.tokenizer, list(texts.documents))]
    largest = max((int(ids.max()) for ids in found if len(ids)), default=0)
    vocabulary = len(lm.weights.embedding)
    if largest >= vocabulary:
        raise UserError(
            f"the texts hold token {largest} and the model knows {vocabulary}; is this the model's own tokenizer.json?"
        )
    return found


def calibrate(lm: LM, recipe: Recipe, options: Options, processes: Processes = ALONE) -> Calibration:
    """Calibrate a model. Raises UserError with the remedy where texts, lengths and model do not fit together."""
    with ExitStack() as held:
        return _calibrate(lm, recipe, options, processes, held)


def _calibrate(lm: LM, recipe: Recipe, options: Options, processes: Processes, held: ExitStack) -> Calibration:
    """The same; the journal, and with it the work folder's lock, is `held`."""
    began = time.monotonic()
    lm = lm.with_sidecar(None)
    lm.filter_decode = recipe.filter.decode  # candidates are read as the sidecar will be
    L, lengths = options.train_length, sorted(options.lengths)
    allowed = allowed_methods(options.method, recipe, lm.hybrid)
    if lengths[0] <= L:
        raise UserError(f"length {lengths[0]} is not above the training length {L}; give longer --lengths")
    texts = read_texts(options.texts, role="run")
    fit_texts, held_out_texts = split_documents(texts, recipe.held_out)
    fit, held_out = encode(lm, fit_texts), encode(lm, held_out_texts)
    windows = token_windows(fit, L, _measuring_windows(recipe, L, lengths[-1]), tail=L, seed=options.seed)
    provenance = {
        "texts": texts.name,
        "texts_sha256": texts.sha256,
        "tokens": sum(map(len, fit)) + sum(map(len, held_out)),
        "windows": len(windows),
        "seed": options.seed,
        "lengths": lengths,
        "method": options.method,
        "objective": options.objective,
        "samples": options.samples,
        "device": lm.device.type,
        "dtype": str(lm.weights.embedding.dtype).removeprefix("torch."),
    }
    identity = canonical([*_identity(lm), provenance, to_json(recipe), L])
    journal = held.enter_context(closing(Journal(options.workdir, identity, options.resume, processes)))
    if journal.note:
        say(journal.note)
    finish = partial(_finish, lm, recipe, options, provenance, journal, began)
    if options.method == "none":
        return finish([(band_entry("none", {}, None, lengths, L), {})])
    published = _published_table(lm, recipe, options)
    batch_tokens = tokens_a_batch(recipe.measure.batch_tokens, 2 * lm.weights.embedding.shape[1])  # d_inner
    layers = measured(lm, windows, batch_tokens, published, journal, processes)
    provenance["layers"] = [{"mean_distance": round(float(layer.reach().mean()), 3)} for layer in layers]
    sweep_tokens = recipe.measure.sweep_windows * L
    sweeper = Sweeper(lm, layers, fit, sweep_tokens, batch_tokens, options.seed, journal, processes)
    tables = Tables(layers, L, sweeper)
    if recipe.filter.fit == "published" or not recipe.decimate.search:
        fixed = _published_band(lm, recipe, options, tables, published)
        return finish([fixed], tokens=windows.numel())

    objective, answered = settle_objective(
        lm, held_out, L, options.objective, options.seed, batch_tokens, journal, processes
    )
    provenance |= {"decided_by": objective, "passkeys_at_train_length": answered}
    scoring, judges = _scorings(lm, tables, held_out, batch_tokens, options, objective, journal, processes)
    plain_scores(scoring, lengths)
    search = Search(scoring, recipe, lengths, options.seed)
    picks = search.run(set(allowed))
    provenance["fits"] = sorted(search.fits, key=lambda fit: fit["length"])
    chosen: list[Candidate] = []
    scores: list[dict[str, Any]] = []
    for pick in progress(picks, "deciding on fresh text", unit="length"):
        judge = judges[pick.length]
        best, rows = choose(judge, pick, allowed, recipe.policy, options.seed, len(allowed) * len(lengths))
        chosen.append(best)
        scores += rows
    found = bands(tables, picks, chosen)
    judged = sum(judge.token_layers for judge in judges.values())
    spent = (scoring.token_layers + judged + sweeper.token_layers) / len(layers) + windows.numel()
    return finish(found, scores, int(spent), spent / _distinct_tokens(scoring, judges))


def _identity(lm: LM) -> list[Any]:
    """Which model, read by which version: the fingerprint does not cover all of it, so its files are looked at."""
    others = [path for name in ("config.json", "tokenizer.json") if (path := lm.source.find(name))]
    files = [path.stat() for path in [*weight_files(lm.source.folder, lm.source.name)[0], *others]]
    about = [[file.st_size, file.st_mtime_ns] for file in files]
    return [producer_version(), lm.source.name, lm.source.revision, lm.fingerprint, about]


def _scorings(
    lm: LM,
    tables: Tables,
    held_out: Sequence[Tensor],
    batch_tokens: int,
    options: Options,
    objective: Objective,
    journal: Journal,
    processes: Processes,
) -> tuple[Scoring, dict[int, Scoring]]:
    """Where candidates are searched, and by length where the winners are judged: windows and passkeys apart.

    Judging wants more of them, and short ones cost little: up to four times as many as are searched on.
    """
    lengths = sorted(options.lengths)
    tail = min(_MOST_TAIL, options.train_length // 2)
    more = {n: options.samples * min(_JUDGED, max(1, lengths[-1] // n)) for n in lengths}
    search_windows = judge_windows = None
    if objective != "passkey":
        count = options.samples + max(more.values())
        windows = token_windows(held_out, lengths[-1], count, tail=tail, seed=options.seed)
        searched = max(1, round(len(windows) * options.samples / count))
        search_windows, judge_windows = windows[:searched], windows[searched:]
        if not len(judge_windows):
            raise UserError("the held-out text has one window alone, to search or to decide on; give longer texts")

    def trials(samples: int, length: int, seed: int) -> PasskeyTrials:
        depths = [DEPTHS[i % len(DEPTHS)] for i in range(len(DEPTHS) * -(-samples // 4))]
        return passkey_trials(lm, held_out, length, depths, "calibrate", seed)

    def scoring(windows: Tensor | None, asked: dict[int, PasskeyTrials], purpose: str) -> Scoring:
        return Scoring(lm, tables, objective, windows, asked, tail, batch_tokens, journal, processes, purpose)

    recall = objective != "perplexity"
    search = scoring(search_windows, {n: trials(options.samples, n, options.seed) for n in lengths if recall}, "search")
    judges = {}
    for n in lengths:
        fresh = {n: trials(more[n], n, options.seed + 1)} if recall else {}
        judges[n] = scoring(None if judge_windows is None else judge_windows[: more[n]], fresh, "judge")
    return search, judges


def _measuring_windows(recipe: Recipe, L: int, longest: int) -> int:
    """So many that g at the longest length is read off enough tokens: a share m L / S of the mass, held by the largest.

    The published fit takes the sequences it was published with.
    """
    if recipe.filter.fit == "published":
        return recipe.measure.windows
    return max(recipe.measure.windows, math.ceil(recipe.measure.kept * _TOKENS_FOR_ONE * longest / L / L))


def _distinct_tokens(search: Scoring, judges: Mapping[int, Scoring]) -> int:
    """Tokens of the distinct windows at the lengths they are scored at: what looking at everything once costs."""
    return sum(sum(search.counts(1.0) + judge.counts(1.0)) * length for length, judge in judges.items())


def _published_table(lm: LM, recipe: Recipe, options: Options) -> tuple[tuple[int, ...], float | None] | None:
    if recipe.filter.fit != "published":
        return None
    settings = published_filter(recipe, lm.source.name, options.train_length)
    table = sorted({n for n in (*settings.table, *options.lengths) if n > options.train_length})
    return tuple(table), settings.clamp


def _published_band(
    lm: LM,
    recipe: Recipe,
    options: Options,
    tables: Tables,
    published: tuple[tuple[int, ...], float | None] | None,
) -> tuple[Band, Mapping[str, Tensor]]:
    """One band with the published settings and no search: what the papers would do to this model."""
    L, layers, tensors = options.train_length, tables.layers, {}
    filters: dict[int, FilterPick] = {}
    start, mass = 0, {}
    if published is not None:
        settings = published_filter(recipe, lm.source.name, L)
        log_theta = float(torch.tensor(settings.theta, dtype=torch.float64).log())
        start = settings.start
        tensors["lengths"] = torch.tensor(published[0])
        rows = []
        for layer in layers:
            each = layer.published
            g = each.mean(0) if recipe.filter.aggregate == "mean" else each.amax(0)
            rows.append(torch.where(layer.decay(recipe.filter.aggregate) > log_theta, g, 0.0))
        tensors["thresholds"] = torch.stack(rows, 1).float()
        mass = {str(n): _kept_mass(layers, tensors["thresholds"][k], n, L) for k, n in enumerate(published[0])}
        mass = {n: value for n, value in mass.items() if value > 0}
        filters = {n: FilterPick(log_theta, tuple(range(len(layers))), 1.0) for n in options.lengths}
    decimate = None
    if options.method in ("decimate", "both", "auto") and not lm.hybrid:
        row = published_decimation(recipe, lm.source.name, len(layers), L)
        decimate = DecimatePick(tuple(row.layers), row.base, row.beta, "all")
        tensors |= tables.band(options.lengths, {}, decimate, None)
    method = "both" if filters and decimate else "filter" if filters else "decimate"
    entry = band_entry(method, filters, decimate, options.lengths, L)
    changed = {**entry.__dict__, "mass": mass, "start": start if filters else 0}
    if filters:
        changed |= {"g_fit": "published", "interpolation": "log" if recipe.filter.interpolate else "nearest"}
    return Band(**changed), tensors


def _kept_mass(layers: Sequence[LayerMeasurement], g: Tensor, length: int, L: int) -> float:
    """Mean over filtered channels of the mass factor m = kept share x S / L that g (n_layer, D) amounts to."""
    shares = [layer.sketch.kept_share(g[i].to(layer.sketch.mass.device)).cpu() for i, layer in enumerate(layers)]
    joined = torch.cat([share[g[i] > 0] for i, share in enumerate(shares)]) * length / L
    return round(float(joined.mean()), 6) if len(joined) else 0.0


def _finish(
    lm: LM,
    recipe: Recipe,
    options: Options,
    provenance: dict[str, Any],
    journal: Journal,
    began: float,
    found: Sequence[tuple[Band, Mapping[str, Tensor]]],
    scores: Sequence[dict[str, Any]] = (),
    tokens: int = 0,
    cost: float = 0.0,
) -> Calibration:
    settings = json.loads(to_json(recipe))
    side = assemble(
        lm, options.train_length, found, recipe=settings, calibration=provenance, scores=list(scores),
        filter_decode=recipe.filter.decode,
    )  # fmt: skip
    summary = []
    for entry, tensors in found:
        keep = dict(zip(map(str, tensors["layers"].tolist()), tensors["keep"].tolist())) if "layers" in tensors else {}
        summary.append({**entry.to_json(), "decimation": keep})
    journal.finish()
    return Calibration(side, summary, list(scores), round(cost, 2), round(time.monotonic() - began, 1), tokens)
