"""Two recall tasks beside the passkey, after RULER's (arXiv 2404.06654): one key of several, and a chain of variables.

Both are for evaluation alone, and their digits are keys of the evaluation's split (`passkey`). What is hidden beside
what is asked for is of the same kind, so that finding something like it is not enough.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from .passkey import draw_key, is_answered

KEYS, CHAINS, LINKS = 4, 2, 3
LABELS = ("pass key", "secret number", "code for the door", "password", "magic number")  # things `passkey` speaks of


@dataclass(frozen=True)
class Asked:
    """One prompt's strings. chains: each in the order its texts stand in; what is asked for is in the first.

    answers: what the generated text has to hold; said: an answer as it would be written, the room to generate in
    """

    chains: tuple[tuple[str, ...], ...]
    question: str
    answers: tuple[str, ...]
    said: str

    def share_answered(self, text: str) -> float:
        """Of the answers, in a generated text: a key has to come first and whole, names may come in any order."""
        if len(self.answers) == 1:
            return float(is_answered(text, self.answers[0]))
        return sum(answer in text for answer in self.answers) / len(self.answers)


def ask(task: str, rng: random.Random) -> Asked:
    """Draw a prompt's strings; task: multikey or variables."""
    return {"multikey": _multikey, "variables": _variables}[task](rng)


def _keys(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw_key(rng, "evaluate")] = None
    return list(found)


def _multikey(rng: random.Random) -> Asked:
    """RULER's niah_multikey_1: four keys, each of another thing; one is asked for by what it is the key of."""
    labels, keys = rng.sample(LABELS, KEYS), _keys(rng, KEYS)
    needles = [f" The {label} is {key}. " for label, key in zip(labels, keys)]
    question = f" What is the {labels[0]}? The {labels[0]} is"
    return Asked(tuple((needle,) for needle in needles), question, (keys[0],), f" {keys[0]}.")


def _variables(rng: random.Random) -> Asked:
    """RULER's vt: chains of assignments, all after the one they refer to; which variables hold the first's value?"""
    names: dict[str, None] = {}
    while len(names) < CHAINS * LINKS:
        names["".join(rng.choices(string.ascii_uppercase, k=3))] = None
    each, values, chains = list(names), _keys(rng, CHAINS), []
    for i, value in enumerate(values):
        first, *others = mine = each[i * LINKS : (i + 1) * LINKS]
        links = [f" VAR {name} = VAR {before}. " for before, name in zip(mine, others)]
        chains.append((f" VAR {first} = {value}. ", *links))
    question = f" Find all variables that hold {values[0]}. The variables that hold {values[0]} are"
    return Asked(tuple(chains), question, tuple(each[:LINKS]), f" {', '.join(each[:LINKS])}.")
