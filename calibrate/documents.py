"""Our own JSON that comes back from outside: what must hold of it before anything is drawn or said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..runtime.errors import os_reason
from ..runtime.files import parse_json
from .errors import UserError, first_line

Count = Annotated[int, Field(ge=0, lt=2**53)]


def _drawable(value: float) -> float:
    if 1e15 < abs(value) < math.inf:
        raise ValueError("too large")
    return value


Drawn = Annotated[float, AfterValidator(_drawable)]
Number = Drawn | None  # NaN or infinite where a model gave none


class Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Row(Document):
    """Of an evaluation."""

    length: Annotated[int, Field(ge=1, lt=2**53)]
    method: str
    value: Number
    windows: Annotated[int, Field(ge=1, lt=2**53)]
    seconds: Number
    tokens: Count
    stderr: Number = None
    depths: dict[Annotated[str, StringConstraints(pattern=r"^\d(\.\d{1,9})?$")], Number] | None = None


class Evaluation(Document):
    """What `calibrate eval --json` prints."""

    rows: Annotated[list[Row], Field(min_length=1)]
    model: str | None = None
    model_fingerprint: str | None = None
    task: str = "perplexity"
    unit: str = ""
    machine: dict[str, Any] = {}


class Run(Document):
    """What `calibrate run --json` prints, as far as the report shows it."""

    sha256: str
    cost: Drawn
    seconds: Drawn
    tokens: Count


class Score(Document):
    length: Annotated[int, Field(ge=1, lt=2**53)]
    method: str
    windows: Count | None = None
    loss: Number = None
    passkeys: Number = None


class Calibration(Document):
    tokens: Count = 0
    lengths: list[Count] = []
    texts: str | None = None
    sources: list[str] = []


class Recall(Document):
    share: Drawn = 0.0


class Recipe(Document):
    recall: Recall = Recall()


class Said(Document):
    """The JSON parts of a sidecar's metadata."""

    calibration: Calibration
    recipe: Recipe
    scores: list[Score]


def read_document(path: Path, kind: type[Document], option: str, made_by: str) -> dict[str, Any]:
    """A JSON file of which `kind` holds. Raises UserError saying what does not."""
    remedy = f"give what `calibrate {made_by} --json` printed"
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path.name} of {option}: {os_reason(error)}") from error
    except ValueError as error:
        raise UserError(f"{path.name} is not JSON ({first_line(error, 80)}); {remedy}") from error
    return check(document, kind, path.name, remedy)


def check(document: Any, kind: type[Document], where: str, remedy: str) -> dict[str, Any]:
    """The same with what it may leave out. Raises UserError naming the first value of which `kind` does not hold."""
    try:
        return kind.model_validate(document).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the document"
        raise UserError(f"{where}: {key}: {first['msg']}; {remedy}") from None
