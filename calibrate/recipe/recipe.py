"""Recipes: every choice of a calibration, written down. `load_recipe("default")`, or the path of a YAML file.

Each setting below has its default and a line saying what it is; a recipe file names only what differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import UserError, first_line
from ..lengths import parse_length
from ..texts.sources import recorded_source
from .schema import (
    Refused,
    about,
    boolean,
    choice,
    either,
    integer,
    listing,
    mapping,
    number,
    optional,
    read,
    section,
    setting,
    text,
)

ScoreChannels = Literal["all", "global"]
SCORES: tuple[ScoreChannels, ...] = get_args(ScoreChannels)
FOLDER = Path(__file__).resolve().parents[2] / "recipes"  # the package longscan.recipes, on disk and installed alike


def _length(value: object) -> int:
    try:
        return parse_length(value)
    except UserError:
        raise Refused(value, "a number of tokens such as 4096 or 4k") from None


_seed = integer(0, 2**32 - 1)
_share = number(0, 1)
_positive = number(0)
_layers = listing(integer(0), "layer numbers", ordered=True)


@dataclass(frozen=True)
class TextSources:
    run: str = setting("emozilla/pg19#train@text", text, "SOURCE that `calibrate run` reads")
    eval: str = setting("emozilla/pg19#test@text", text, "SOURCE that `calibrate eval` reads; disjoint from run's")


@dataclass(frozen=True)
class Measure:
    windows: int = setting(64, integer(1), "windows of the training length in the measuring pass, at least")
    kept: int = setting(
        100, integer(0), "windows grow with S / L, to about so many kept tokens a channel at the last length"
    )
    batch_tokens: int = setting(16384, integer(1), "tokens a batch; fewer where d_inner > 4096")
    sweep_windows: int = setting(32, integer(1), "a sequential sweep reads so many training lengths of tokens")


@dataclass(frozen=True)
class Mass:
    """The mass factor m(S): how many times the training length's mass of delta is kept at length S."""

    law: tuple[float, ...] = setting(
        (0.1, 0.2, 0.4, 0.6), listing(_positive, "numbers above 0"), "candidates as multiples of S/L: m = law * S/L"
    )
    factors: tuple[float, ...] | None = setting(
        (0.06, 0.12, 0.25, 0.5, 1.0, 2.0),
        optional(listing(_positive, "numbers above 0")),
        "candidates for m itself, the same at every length",
    )


@dataclass(frozen=True)
class PublishedFilter:
    """A model's published row: its table and start are taken as they stand, never scaled."""

    theta: float = setting(1e-30, number(0, at_most=1), "the published threshold on the decay")
    clamp: float = setting(0.2, _share, "the published C")
    train_length: int | None = setting(None, optional(_length), "the L the row was published for")


@dataclass(frozen=True)
class Filter:
    theta: tuple[float, ...] = setting(
        (1e-30, 1e-10, 1e-5, 1e-2),
        listing(number(0, at_most=1), "numbers above 0 and at most 1"),
        "candidates: a channel is global where its decay over L tokens is above theta",
    )
    theta_quantiles: tuple[float, ...] = setting(
        (0.5, 0.8),
        listing(_share, "numbers above 0 and below 1", empty=True),
        "more candidates: quantiles of the measured log decays, so that some channel is always global",
    )
    fit: Literal["mass", "published"] = setting("mass", choice("mass", "published"), "how g(S) is found")
    mass: Mass = field(default=Mass(), metadata=about(section(Mass), "candidates for m(S); fit mass only"))
    g_fit: Literal["stretched", "sequential", "auto"] = setting(
        "auto",
        choice("stretched", "sequential", "auto"),
        "delta at S: as at L, or measured at S layer after layer; auto: what scores better; fit mass only",
    )
    clamp: float | None = setting(None, optional(_share), "the published C; null: delta is not clamped")
    aggregate: Literal["mean", "max"] = setting("mean", choice("mean", "max"), "g over sequences; fit published only")
    table: tuple[int, ...] | None = setting(
        None,
        optional(listing(_length, "lengths", ordered=True)),
        "lengths at which g is stored, besides the requested ones; null: the requested ones alone",
    )
    start: int | None = setting(None, optional(_length), "length the filter is active from; null: right above L")
    interpolate: bool = setting(True, boolean, "g between stored lengths: interpolated, or the nearest entry's")
    layers: Literal["all", "search"] | tuple[int, ...] = setting(
        "search", either(choice("all", "search"), _layers), "layers that are filtered"
    )
    decode: bool = setting(True, boolean, "filter generated tokens, too, unless the reader says otherwise")
    scale_from: int | None = setting(
        None,
        optional(_length),
        "the L that table and start are stated for; they scale for a model without a published row",
    )
    published: tuple[tuple[str, PublishedFilter], ...] = setting(
        (), mapping(section(PublishedFilter), "a mapping of models to rows"), "rows by model"
    )


@dataclass(frozen=True)
class PublishedDecimation:
    """A model's published row; its base is a number of tokens, never scaled."""

    layers: tuple[int, ...] = setting((0,), _layers, "decimating layers, counted from 0")
    base: int = setting(2000, _length, "L_base in tokens")
    beta: float = setting(0.5, number(0, at_most=1), "P_s = L_base * beta**s")
    train_length: int | None = setting(None, optional(_length), "the L the row was published for")


@dataclass(frozen=True)
class Decimate:
    search: bool = setting(True, boolean, "search the settings below; false: the published row or its fallback")
    first_layer: Literal["auto"] | tuple[int, ...] | None = setting(
        "auto",
        optional(either(choice("auto"), _layers)),
        "candidates; auto: those of the largest Mamba Mean Distance; null: floor(n_layer / 2)",
    )
    n_layers: tuple[int, ...] = setting((1,), listing(integer(1), "whole numbers"), "how many layers in a row decimate")
    base_factors: tuple[float, ...] = setting(
        (1.0, 2.0), listing(_positive, "numbers above 0"), "candidates for L_base as multiples of L"
    )
    base: int | None = setting(None, optional(_length), "L_base in tokens, instead of base_factors")
    beta: tuple[float, ...] = setting(
        (0.5, 1.0), listing(number(0, at_most=1), "numbers above 0 and at most 1"), "candidates: P_s = L_base * beta**s"
    )
    weights: tuple[ScoreChannels, ...] = setting(
        ("all", "global"),
        listing(choice(*SCORES), ", ".join(SCORES)),
        "how a token's score weighs the channels: as published, or by how far they reach (search/channels.py)",
    )
    scale_from: int | None = setting(
        None, optional(_length), "the L that base is stated for; a model without a published row scales it by L"
    )
    published: tuple[tuple[str, PublishedDecimation], ...] = setting(
        (), mapping(section(PublishedDecimation), "a mapping of models to rows"), "rows by model"
    )


@dataclass(frozen=True)
class Scale:
    """Delta scaling: UPI's (delta / n in the fifth of the channels that reach furthest; n = S / L) or MambaExtend's."""

    search: bool = setting(False, boolean, "measure this method as well; --method scale does in any case")
    powers: tuple[float, ...] = setting(
        (0.25, 0.5, 0.75, 1.0), listing(_positive, "numbers above 0"), "candidates: delta is multiplied by n**-power"
    )
    top: tuple[float, ...] = setting(
        (0.1, 0.2, 0.4), listing(_share, "numbers above 0 and below 1"), "candidates: share of the model's channels"
    )
    by_layer: bool = setting(False, boolean, "MambaExtend's form instead: all channels, one searched power a layer")


@dataclass(frozen=True)
class Recall:
    """Passkeys that candidates are compared on: some haystacks are salted, as other kinds of text are by themselves."""

    numbers: int = setting(5, integer(0, 1000), "numbers of up to four digits written into a salted haystack")
    distractors: int = setting(1, integer(0, 100), "other keys, in other wordings, in a salted haystack")
    share: float = setting(0.5, number(0, at_most=1), "share of the haystacks that are salted")


@dataclass(frozen=True)
class Policy:
    confidence: float = setting(
        0.95,
        number(0.5, 1),
        "a method is picked only if it is better with this confidence over all methods x lengths",
    )
    margin: float = setting(0.05, number(0, 1), "share of the passkeys a picked method may lose, at most, beyond doubt")
    bootstrap: int = setting(1000, integer(100, 1_000_000), "resamples behind that confidence, at least")

    def corrected(self, comparisons: int) -> float:
        """The confidence of one of so many comparisons (Bonferroni)."""
        return 1 - (1 - self.confidence) / max(1, comparisons)


@dataclass(frozen=True)
class Recipe:
    name: str = setting("default", text, "short name; the file's, unless it says otherwise")
    description: str = setting("", text, "one line")
    models: tuple[str, ...] = setting((), listing(text, "model ids", empty=True), "models whose own recipe this is")
    texts: TextSources = field(default=TextSources(), metadata=about(section(TextSources), "SOURCEs"))
    train_length: int | None = setting(None, optional(_length), "L; null: the model's config or --train-length says")
    lengths: tuple[int, ...] | None = setting(
        None, optional(listing(_length, "lengths", ordered=True)), "lengths to calibrate; or length_factors"
    )
    length_factors: tuple[float, ...] | None = setting(
        (2.0, 4.0, 8.0, 16.0, 32.0),
        optional(listing(number(1), "numbers above 1", ordered=True)),
        "lengths to calibrate as multiples of L",
    )
    samples: int = setting(16, integer(1, 100_000), "held-out windows a length")
    held_out: float = setting(0.25, _share, "share of the texts that candidates are compared on")
    seed: int = setting(0, _seed, "of every draw")
    objective: Literal["perplexity", "passkey", "mixed"] = setting(
        "mixed",
        choice("perplexity", "passkey", "mixed"),
        "what a pick must be no worse on; mixed: on neither, unless the plain model answers no passkeys even at L",
    )
    method: Literal["auto", "none", "filter", "decimate", "both", "scale"] = setting(
        "auto", choice("auto", "none", "filter", "decimate", "both", "scale"), "candidates; auto: all"
    )
    measure: Measure = field(default=Measure(), metadata=about(section(Measure), "the measuring pass"))
    filter: Filter = field(default=Filter(), metadata=about(section(Filter), "LongMamba's token filtering"))
    decimate: Decimate = field(default=Decimate(), metadata=about(section(Decimate), "DeciMamba's token decimation"))
    scale: Scale = field(default=Scale(), metadata=about(section(Scale), "delta scaling, the rival of both"))
    recall: Recall = field(default=Recall(), metadata=about(section(Recall), "the passkeys candidates are compared on"))
    policy: Policy = field(default=Policy(), metadata=about(section(Policy), "how the method of a length is picked"))

    def target_lengths(self, train_length: int) -> list[int]:
        """The lengths to calibrate, for a model trained at `train_length`."""
        if self.lengths is not None:
            return list(self.lengths)
        return sorted({round(factor * train_length) for factor in self.length_factors or ()})


def load_recipe(name_or_file: str) -> Recipe:
    """A recipe by short name (`recipe_names` lists them) or from a YAML file.

    Raises:
        UserError: no such recipe, not YAML, an unknown key, a wrong type or a value out of range.
    """
    path = Path(name_or_file)
    if re.fullmatch(r"[\w.-]+", name_or_file) and path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name_or_file}.yaml"
        if not path.is_file():
            raise UserError(
                f"there is no recipe {name_or_file!r}; give a YAML file or one of: {', '.join(recipe_names())}"
            )
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"cannot read recipe {path.name} ({reason}); give a YAML file or a recipe's name") from error
    return parse_recipe(content, path.stem)


def parse_recipe(content: str, name: str) -> Recipe:
    """A recipe from YAML text; `name` stands in where it names itself nothing.

    Raises:
        UserError: as `load_recipe`.
    """
    where = f"recipe {name}"
    values = _yaml(content, where)
    if values is None:
        values = {}
    if isinstance(values, Mapping):
        if values.get("lengths") is not None and values.get("length_factors") is not None:
            raise UserError(f"{where}: lengths and length_factors are both given; keep one of them")
        values = {"name": name, **values}
        if values.get("lengths") is not None:
            values["length_factors"] = None
        elif values.get("length_factors", ...) is None:
            del values["length_factors"]
    return read(Recipe, values, where)


def _yaml(content: str, where: str) -> object:
    try:
        import yaml
    except ImportError as error:
        raise UserError('recipes need PyYAML; run: pip install "longscan[calibrate]"') from error

    class Loader(yaml.SafeLoader):
        """Refuses a key given twice, of which YAML would silently keep the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise UserError(f"{where}: key {twice} is given twice; keep one of them")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(content, Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} is not YAML ({first_line(error, 120)}); correct that line") from error


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_for_model(model_id: str) -> str:
    """The name of the recipe that lists this model, else "default"."""
    for name in recipe_names():
        if _plain(model_id) in map(_plain, load_recipe(name).models):
            return name
    return "default"


def to_json(recipe: Recipe) -> str:
    """Canonical JSON: sorted keys, no spaces, every setting, no path of the machine; same recipe, same bytes."""
    values = asdict(recipe)
    values["texts"] = {role: recorded_source(source) for role, source in values["texts"].items()}
    for part in ("filter", "decimate"):
        values[part]["published"] = dict(values[part]["published"])
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(model_id: str) -> str:
    """Both layouts of one model are the same model: state-spaces/mamba-130m and state-spaces/mamba-130m-hf."""
    return model_id.casefold().removesuffix("-hf")
