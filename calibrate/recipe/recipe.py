"""Recipes: every choice of a calibration, written down. `load_recipe("default")`, or the path of a YAML file.

Each setting below has its range, its default and a line saying what it is; a recipe file names only what differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from ..errors import UserError, first_line
from ..lengths import parse_length
from ..texts.sources import recorded_source
from .refused import EXPECTED, Unfit, refusal

T = TypeVar("T")
ScoreChannels = Literal["all", "global"]
SCORES: tuple[ScoreChannels, ...] = get_args(ScoreChannels)
FOLDER = Path(__file__).resolve().parents[2] / "recipes"  # the package longscan.recipes, on disk and installed alike


def _length(value: object) -> int:
    try:
        return parse_length(value)
    except UserError as error:
        raise ValueError(str(error)) from None


def _plain_number(value: object) -> object:
    """Strings are numbers, too: YAML 1.1 reads 1e-30 as one. Nothing else is."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    return value


def _listed(value: object) -> object:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return value


def _once(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) != len(values):
        raise Unfit("a list that holds each once")
    return values


def _rising(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(values):
        raise Unfit("a list in rising order")
    return values


Line = Annotated[str, StringConstraints(strict=True, strip_whitespace=True)]
Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]
Count = Annotated[StrictInt, Field(ge=1, le=1 << 62)]
Index = Annotated[StrictInt, Field(ge=0, le=1 << 62)]
_NUMBER = BeforeValidator(_plain_number)  # after the bounds: pydantic shows only those right beside float in the schema
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), _NUMBER]
UpToOne = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _NUMBER]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), _NUMBER]  # neither none nor all
Factor = Annotated[float, Field(gt=1, allow_inf_nan=False), _NUMBER]
Confidence = Annotated[float, Field(gt=0.5, le=0.999, allow_inf_nan=False), _NUMBER]  # that a bootstrap can tell
_LENGTH = {"type": ["integer", "string"], EXPECTED: "a number of tokens such as 4096 or 4k"}
Length = Annotated[int, BeforeValidator(_length), WithJsonSchema(_LENGTH)]
Several = Annotated[tuple[T, ...], BeforeValidator(_listed), AfterValidator(_once)]  # a list, maybe empty
Some = Annotated[Several[T], Field(min_length=1)]
Rising = Annotated[Some[T], AfterValidator(_rising)]
Layers = Annotated[Rising[Index], Field(json_schema_extra={EXPECTED: "a list of layer numbers, in rising order"})]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextSources(Section):
    run: Text = Field("emozilla/pg19#train@text", description="SOURCE that `calibrate run` reads")
    eval: Text = Field("emozilla/pg19#test@text", description="SOURCE that `calibrate eval` reads; disjoint from run's")


class Measure(Section):
    windows: Count = Field(64, description="windows of the training length in the measuring pass, at least")
    kept: Index = Field(
        100, description="windows grow with S / L, to about so many kept tokens a channel at the last length"
    )
    batch_tokens: Count = Field(16384, description="tokens a batch; fewer where d_inner > 4096")
    sweep_windows: Count = Field(32, description="a sequential sweep reads so many training lengths of tokens")


class Mass(Section):
    """The mass factor m(S): how many times the training length's mass of delta is kept at length S."""

    law: Some[Positive] = Field((0.1, 0.2, 0.4, 0.6), description="candidates as multiples of S/L: m = law * S/L")
    factors: Some[Positive] | None = Field(
        (0.06, 0.12, 0.25, 0.5, 1.0, 2.0), description="candidates for m itself, the same at every length"
    )


class PublishedFilter(Section):
    """A model's published row: its table and start are taken as they stand, never scaled."""

    theta: UpToOne = Field(1e-30, description="the published threshold on the decay")
    clamp: Share = Field(0.2, description="the published C")
    train_length: Length | None = Field(None, description="the L the row was published for")


_OF_ONE_FIT = {  # keys of a filter that the other fit does not read
    "published": ("clamp", "aggregate", "table", "start", "interpolate", "scale_from"),
    "mass": ("mass", "g_fit", "layers"),
}


class Filter(Section):
    theta: Some[UpToOne] = Field(
        (1e-30, 1e-10, 1e-05, 0.01),
        description="candidates: a channel is global where its decay over L tokens is above theta",
    )
    theta_quantiles: Several[Share] = Field(
        (0.5, 0.8),
        description="more candidates: quantiles of the measured log decays, so that some channel is always global",
    )
    fit: Literal["mass", "published"] = Field("mass", description="how g(S) is found")
    mass: Mass = Field(Mass(), description="candidates for m(S); fit mass only")
    g_fit: Literal["stretched", "sequential", "auto"] = Field(
        "auto",
        description="delta at S: as at L, or measured at S layer after layer; auto: what scores better; fit mass only",
    )
    clamp: Share | None = Field(None, description="the published C; null: delta is not clamped; fit published only")
    aggregate: Literal["mean", "max"] = Field("mean", description="g over sequences; fit published only")
    table: Rising[Length] | None = Field(
        None,
        description="lengths at which g is stored, besides the requested ones; null: these alone; fit published only",
    )
    start: Length | None = Field(
        None, description="length the filter is active from; null: right above L; fit published only"
    )
    interpolate: StrictBool = Field(
        True, description="g between stored lengths: interpolated, or the nearest entry's; fit published only"
    )
    layers: Literal["all", "search"] | Layers = Field(
        "search", description="layers that are filtered; fit published: all of them"
    )
    decode: StrictBool = Field(True, description="filter generated tokens, too, unless the reader says otherwise")
    scale_from: Length | None = Field(
        None,
        description="the L that table and start are stated for; they scale for a model without a published row; "
        "fit published only",
    )
    published: dict[Text, PublishedFilter] = Field({}, description="rows by model")

    @model_validator(mode="after")
    def _read_by_its_fit(self) -> Filter:
        """The sidecar keeps the recipe: a setting that nothing reads would be a claim that is not true."""
        fit = "mass" if self.fit == "published" else "published"
        default = {key: field.default for key, field in type(self).model_fields.items()}
        unread = [key for key in _OF_ONE_FIT[fit] if getattr(self, key) not in (default[key], "all")]
        if unread:
            raise Unfit(f"fit: {fit}, which alone reads {', '.join(unread)}, or leave that out")
        return self


class PublishedDecimation(Section):
    """A model's published row; its base is a number of tokens, never scaled."""

    layers: Layers = Field((0,), description="decimating layers, counted from 0")
    base: Length = Field(2000, description="L_base in tokens")
    beta: UpToOne = Field(0.5, description="P_s = L_base * beta**s")
    train_length: Length | None = Field(None, description="the L the row was published for")


class Decimate(Section):
    search: StrictBool = Field(True, description="search the settings below; false: the published row or its fallback")
    first_layer: Literal["auto"] | Layers | None = Field(
        "auto", description="candidates; auto: those of the largest Mamba Mean Distance; null: floor(n_layer / 2)"
    )
    n_layers: Some[Count] = Field((1,), description="how many layers in a row decimate")
    base_factors: Some[Positive] = Field((1.0, 2.0), description="candidates for L_base as multiples of L")
    base: Length | None = Field(None, description="L_base in tokens, instead of base_factors")
    beta: Some[UpToOne] = Field((0.5, 1.0), description="candidates: P_s = L_base * beta**s")
    weights: Some[ScoreChannels] = Field(
        ("all", "global"),
        description="how a token's score weighs the channels: as published, or by reach (search/channels.py)",
    )
    scale_from: Length | None = Field(
        None, description="the L that base is stated for; a model without a published row scales it by L"
    )
    published: dict[Text, PublishedDecimation] = Field({}, description="rows by model")


class Scale(Section):
    """Delta scaling. UPI's: delta / n in the fifth of the channels that reach furthest; n = S / L."""

    search: StrictBool = Field(False, description="measure this method as well; --method scale does in any case")
    powers: Some[Positive] = Field((0.25, 0.5, 0.75, 1.0), description="candidates: delta is multiplied by n**-power")
    top: Some[Share] = Field((0.1, 0.2, 0.4), description="candidates: share of the model's channels")


class Rotary(Section):
    """YaRN's factor on the rotary positions of a hybrid's attention, beside the method a length was given."""

    factors: Several[Positive] = Field(
        (0.5, 1.0, 2.0), description="candidates as multiples of S/L, those above 1; empty: none is tried"
    )


class Recall(Section):
    """Passkeys that candidates are compared on: some haystacks are salted, as other kinds of text are by themselves."""

    numbers: StrictInt = Field(
        5, ge=0, le=1000, description="numbers of up to four digits written into a salted haystack"
    )
    distractors: StrictInt = Field(1, ge=0, le=100, description="other keys, in other wordings, in a salted haystack")
    share: UpToOne = Field(0.5, description="share of the haystacks that are salted")


class Policy(Section):
    confidence: Confidence = Field(
        0.95, description="a method is picked only if it is better with this confidence over all methods x lengths"
    )
    margin: Share = Field(0.05, description="share of the passkeys a picked method may lose, at most, beyond doubt")
    loss_margin: Positive = Field(
        0.005, description="a method is refused that reads worse by more nats a token than this, beyond doubt"
    )
    bootstrap: StrictInt = Field(1000, ge=100, le=1000000, description="resamples behind that confidence, at least")

    def corrected(self, comparisons: int) -> float:
        """The confidence of one of so many comparisons (Bonferroni)."""
        return 1 - (1 - self.confidence) / max(1, comparisons)


class Recipe(Section):
    name: Text = Field("default", description="short name; the file's, unless it says otherwise")
    description: Line = Field("", description="one line, maybe empty")
    models: Several[Text] = Field((), description="models whose own recipe this is")
    texts: TextSources = Field(TextSources(), description="SOURCEs")
    train_length: Length | None = Field(None, description="L; null: the model's config or --train-length says")
    lengths: Rising[Length] | None = Field(None, description="lengths to calibrate; or length_factors")
    length_factors: Rising[Factor] | None = Field(
        (2.0, 4.0, 8.0, 16.0, 32.0), description="lengths to calibrate as multiples of L"
    )
    samples: StrictInt = Field(
        30,
        ge=1,
        le=100000,
        description="held-out windows a length, half beyond the middle one; each is asked for a passkey unless "
        "perplexity decides",
    )
    held_out: Share = Field(0.25, description="share of the texts that candidates are compared on")
    seed: StrictInt = Field(0, ge=0, lt=2**32, description="of every draw")
    objective: Literal["perplexity", "passkey", "mixed"] = Field(
        "mixed",
        description="what a pick must be no worse on; mixed: neither, unless the plain model answers no passkeys at L",
    )
    method: Literal["auto", "none", "filter", "decimate", "both", "scale"] = Field(
        "auto", description="candidates; auto: all"
    )
    measure: Measure = Field(Measure(), description="the measuring pass")
    filter: Filter = Field(Filter(), description="LongMamba's token filtering")
    decimate: Decimate = Field(Decimate(), description="DeciMamba's token decimation")
    scale: Scale = Field(Scale(), description="delta scaling, the rival of both")
    rotary: Rotary = Field(Rotary(), description="rotary positions, of the models that have them")
    recall: Recall = Field(Recall(), description="the passkeys candidates are compared on")
    policy: Policy = Field(Policy(), description="how the method of a length is picked")

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
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {refusal(error, values, json_schema())}") from None


def json_schema() -> dict[str, Any]:
    """What a recipe may hold, as JSON Schema."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


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
    except UserError:
        raise
    except Exception as error:  # besides YAMLError whatever its constructors run into: `!!bool x` a KeyError
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
    values = recipe.model_dump()
    values["texts"] = {role: recorded_source(source) for role, source in values["texts"].items()}
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(model_id: str) -> str:
    """Both layouts of one model are the same model: state-spaces/mamba-130m and state-spaces/mamba-130m-hf."""
    return model_id.casefold().removesuffix("-hf")
