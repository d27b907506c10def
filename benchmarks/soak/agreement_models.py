"""Random tiny models of every family, as checkpoints: what agreement.py reads in every way."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import borrowed, checkpoints

OWN = ("state-spaces mamba1", "state-spaces mamba2")  # layouts that transformers does not read
VOCABULARY = 64


@dataclass(frozen=True)
class Family:
    """name: of its architecture. transformers: it runs there, too, so that it can be attached to."""

    name: str
    transformers: bool
    hybrid: bool


def families() -> list[Family]:
    models = borrowed("tests/runtime/attach/models.py")
    found = [Family(name, False, False) for name in OWN]
    return found + [Family(name, True, name in models.HYBRIDS) for name in models.FAMILIES]


def build(family: Family, draw: random.Random, folder: Path) -> Path:
    """A checkpoint of random shape and values."""
    return _transformers(family.name, draw, folder) if family.transformers else _state_spaces(family, draw, folder)


def _state_spaces(family: Family, draw: random.Random, folder: Path) -> Path:
    shape: dict[str, int] = {
        "M": 8 * draw.randint(1, 4),
        "n_layer": draw.randint(1, 4),
        "V": VOCABULARY,
        "N": draw.choice((1, 4, 8, 16)),
        "seed": draw.randrange(1000),
    }
    if family.name == "state-spaces mamba1":
        return checkpoints.write_state_spaces(folder, checkpoints.random_tensors(**shape))
    tensors = checkpoints.random_mamba2_tensors(**shape, P=8, G=1)
    return checkpoints.write_state_spaces(folder, tensors, ssm_cfg={"layer": "Mamba2", "headdim": 8})


def _transformers(name: str, draw: random.Random, folder: Path) -> Path:
    """The family's tiny model of the tests, with another state size, chunk size (of its own scan) and values."""
    import transformers

    models = borrowed("tests/runtime/attach/models.py")
    config = models.build(name, VOCABULARY).config
    drawn: dict[str, Any] = {"state_size": draw.choice((1, 4, 8, 16)), "chunk_size": draw.choice((4, 16, 64))}
    drawn |= {"d_state": drawn["state_size"], "ssm_state_size": drawn["state_size"]}
    for key, value in drawn.items():
        for known in (key, f"mamba_{key}"):
            if hasattr(config, known):
                setattr(config, known, value)
    model = models.lively(transformers.AutoModelForCausalLM.from_config(config), draw.randrange(1000))
    if name in models.HYBRIDS:
        published: Path = models.publish(model, folder)
        return published
    model.save_pretrained(folder)
    return folder
