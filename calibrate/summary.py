"""What a sidecar's metadata says of itself, in the words the card, the report and `inspect` share."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime.sidecar.sidecar import Sidecar
from .documents import Said, check

# In the order they are shown; methods a later version adds come after.
ORDER = ("none", "scale", "filter", "decimate", "both", "auto")
LABELS = {"none": "plain", "auto": "auto (chosen)"}


def perplexity(loss: float) -> float:
    """Of nats a token; never so large that it is no float."""
    return math.exp(min(loss, 700.0))


def label(method: str) -> str:
    return LABELS.get(method, method)


def ordered(methods: Sequence[str]) -> list[str]:
    """Each once, in the order of ORDER."""
    found = dict.fromkeys(methods)
    return [m for m in ORDER if m in found] + [m for m in found if m not in ORDER]


@dataclass(frozen=True)
class Facts:
    """The JSON parts of the metadata, parsed. `of` raises UserError where they are not what a calibration writes."""

    calibration: Mapping[str, Any]
    recipe: Mapping[str, Any]
    scores: Sequence[Mapping[str, Any]]

    @staticmethod
    def of(side: Sidecar) -> Facts:
        parts = {name: json.loads(side.metadata[name]) for name in ("calibration", "recipe", "scores")}
        check(parts, Said, "the sidecar", "fetch the file again, or calibrate again")
        return Facts(**parts)


def taken(side: Sidecar, length: int) -> str:
    """What auto does at a length, by the name its row of the scores has."""
    plan = side.plan(length)
    return plan.method + ("+yarn" if plan.rotary else "")


def calibrated_lengths(side: Sidecar) -> list[int]:
    return [length for band in side.bands for length in band.lengths]


def mean_distances(side: Sidecar) -> list[float] | None:
    """Of each layer, in tokens, as the calibration measured it; None where the sidecar does not record it."""
    layers = Facts.of(side).calibration.get("layers")
    if not isinstance(layers, list) or len(layers) != int(side.metadata["n_layer"]):
        return None
    values = [layer.get("mean_distance") for layer in layers if isinstance(layer, dict)]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return numbers if len(numbers) == len(layers) else None


def filtered_channels(side: Sidecar, length: float) -> list[int] | None:
    """How many channels of each layer the filter thins out at a length; None without a filter there."""
    if side.table(side.band(length), "thresholds") is None:
        return None
    return [int((side.thresholds(layer, length) > 0).sum()) for layer in range(int(side.metadata["n_layer"]))]


def kept_mass(side: Sidecar, length: int) -> float | None:
    """m(S) at a calibrated length: the mass of delta a filtered channel keeps, over that at the training length."""
    return side.bands[side.band(length)].mass.get(str(length))


def command(side: Sidecar) -> str:
    """The `calibrate run` that made the sidecar; recipe.yaml is the recipe in its metadata."""
    meta, made = side.metadata, Facts.of(side).calibration
    parts = ["calibrate", "run", "--model", meta["base_model"]]
    if meta["base_model_revision"]:
        parts += ["--revision", meta["base_model_revision"]]
    parts += ["--recipe", "recipe.yaml"]
    if made.get("lengths"):
        parts += ["--lengths", ",".join(map(str, made["lengths"]))]
    parts += ["--train-length", str(side.train_length)]
    parts += [part for source in sources(side) for part in ("--texts", source)]
    for key in ("method", "objective", "samples", "seed", "device", "dtype"):
        if made.get(key) is not None:
            parts += [f"--{key}", str(made[key])]
    return shlex.join(parts)


def sources(side: Sidecar) -> list[str]:
    """What each --texts of the calibration named, of a path its last part."""
    made = Facts.of(side).calibration
    return list(made.get("sources") or (made["texts"].split(", ") if made.get("texts") else []))


def haystacks(side: Sidecar) -> str:
    """What to add where the scores' passkeys were harder than an evaluation's: ", 50% of them among other numbers"."""
    recall = Facts.of(side).recipe.get("recall", {})
    salted = any(recall.get(key) for key in ("numbers", "distractors"))
    share = f"{recall['share']:.0%}" if "share" in recall else "some"
    return f", {share} of them among other numbers" if salted else ""


def windows_judged(side: Sidecar) -> str:
    """How many held-out windows the scores are of: "30 to 120 windows a length"; an older sidecar does not say."""
    read = sorted({row["windows"] for row in Facts.of(side).scores if row.get("windows") is not None})
    if not read:
        return "windows"
    return f"{read[0]}{f' to {read[-1]}' * (len(read) > 1)} windows a length"


def to_yaml(values: Mapping[str, Any]) -> str:
    """In the order given; of a recipe, what `--recipe` reads back."""
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def headline(side: Sidecar) -> str | None:
    """What "auto" is worth at the longest length that was scored, in a sentence; None where nothing was searched."""
    scores = Facts.of(side).scores
    if not scores:
        return None
    length = max(row["length"] for row in scores)
    chosen = taken(side, length)
    where = f"At {length:,} tokens, {length / side.train_length:g} times the training length,"
    rows = {row["method"]: row for row in scores if row["length"] == length}
    if chosen not in rows or "none" not in rows or chosen == "none":
        return f"{where} auto reads plainly: nothing that was tried is better beyond doubt."
    gains = []
    two = rows["none"], rows[chosen]
    losses, answered = ([row[key] for row in two if row.get(key) is not None] for key in ("loss", "passkeys"))
    if len(losses) == 2:
        gains.append("perplexity {:.2f} becomes {:.2f}".format(*map(perplexity, losses)))
    if len(answered) == 2:
        gains.append("passkeys answered {:.0%} become {:.0%}".format(*answered) + haystacks(side))
    return f"{where} auto does {chosen}{': ' * bool(gains)}{' and '.join(gains)}."


def scores_of(side: Sidecar, key: str) -> tuple[list[int], dict[str, dict[int, float]]]:
    """(lengths, method -> length -> value) of the calibration's held-out scores; key: loss or passkeys."""
    rows = [row for row in Facts.of(side).scores if row.get(key) is not None]
    found: dict[str, dict[int, float]] = {m: {} for m in ordered([row["method"] for row in rows])}
    for row in rows:
        found[row["method"]][row["length"]] = row[key]
    return sorted({row["length"] for row in rows}), found


def score_tables(side: Sidecar) -> list[tuple[str, list[str], list[list[str]]]]:
    """The held-out scores of the calibration as (title, header, rows): perplexity and passkeys, length x method.

    The method "auto" takes at a length is marked with a star. Empty where nothing was searched.
    """
    tables = []
    titles = {"loss": "Perplexity per token, lower is better", "passkeys": f"Passkeys answered{haystacks(side)}"}
    for key, title in titles.items():
        lengths, found = scores_of(side, key)
        rows = []
        for length in lengths:
            chosen = taken(side, length)
            line = [f"{length:,} ({length / side.train_length:g}x)"]
            for method, by_length in found.items():
                value = by_length.get(length)
                text = "" if value is None else f"{perplexity(value):.3f}" if key == "loss" else f"{value:.0%}"
                line.append(text + (" *" if method == chosen and text else ""))
            rows.append(line)
        if rows:
            tables.append((title, ["tokens read", *map(label, found)], rows))
    return tables
