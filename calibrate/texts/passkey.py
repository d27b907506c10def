"""The passkey task: five digits hidden in running text, asked for at the end.

Keys are split three ways by their value modulo five, so that a key met in training or in calibration is never one
that is evaluated on. The first wording is the one measured; the others are there so that a model trained on the
task learns the task and not one sentence, and that a calibration picks for the task. This module imports nothing but
the standard library: the training recipe uses it too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "calibrate", "evaluate"]
_RESIDUES: dict[str, tuple[int, ...]] = {"train": (0, 1, 2), "calibrate": (3,), "evaluate": (4,)}
DIGITS = 5


@dataclass(frozen=True)
class Wording:
    """Needle, question and the answer's lead-in space; `{key}` stands for the five digits."""

    needle: str
    question: str

    def hide(self, key: str) -> str:
        return self.needle.format(key=key)


WORDINGS: tuple[Wording, ...] = (
    Wording(
        " The pass key is {key}. Remember it. {key} is the pass key. ",
        " What is the pass key? The pass key is",
    ),
    Wording(
        " Remember this: the secret number is {key}. The number is {key}. ",
        " What was the secret number? The secret number is",
    ),
    Wording(
        " Here is the code for the door: {key}. Do not forget {key}. ",
        " Which code opens the door? The code for the door is",
    ),
    Wording(
        " My password is {key}, and I shall ask for {key} later. ",
        " What is my password? My password is",
    ),
    Wording(
        " Note that the magic number is {key}. Keep {key} in mind. ",
        " Tell me the magic number. The magic number is",
    ),
)


def wordings(split: Split) -> tuple[Wording, ...]:
    """Those a split asks in: calibration in all but the first, so that no wording evaluated was picked for."""
    return {"train": WORDINGS, "calibrate": WORDINGS[1:], "evaluate": WORDINGS[:1]}[split]


# What salts a haystack: phrases as they stand in any prose, with a number of one to four digits, so never a key.
PHRASES: tuple[str, ...] = (
    " on page {number},",
    ", in the year {number}",
    " for {number} dollars",
    " number {number} ",
    " some {number} of them,",
    ", at no. {number},",
    " ({number})",
    " {number}. ",
)


@dataclass(frozen=True)
class Salt:
    """What is written into the haystack of a prompt, besides the key: numbers, and keys that are not asked for.

    Both are counts a prompt: how many a model can tell a key from does not grow with the text.
    share: of the prompts that are salted, spread evenly over them
    """

    numbers: int = 0
    distractors: int = 0
    share: float = 1.0

    def wanted(self, prompt: int) -> bool:
        """Whether the prompt of that number is a salted one."""
        return int((prompt + 1) * self.share) > int(prompt * self.share)

    def phrases(self, rng: random.Random, key: str, asked: Wording, split: Split) -> list[str]:
        """The texts to write into the haystack, in random order: never `key`, another split's, nor what is `asked`."""
        found = []
        for _ in range(self.numbers):
            digits = rng.randrange(1, DIGITS)
            found.append(rng.choice(PHRASES).format(number=rng.randrange(10 ** (digits - 1), 10**digits)))
        for _ in range(self.distractors):
            wording, other = rng.choice([wording for wording in WORDINGS if wording != asked]), key
            while other == key:
                other = draw_key(rng, split)
            found.append(wording.hide(other))
        rng.shuffle(found)
        return found


PLAIN_HAYSTACK = Salt()


def draw_key(rng: random.Random, split: Split) -> str:
    """A uniform five-digit key (leading zeros allowed) of the given split."""
    while True:
        value = rng.randrange(10**DIGITS)
        if value % 5 in _RESIDUES[split]:
            return f"{value:0{DIGITS}d}"


def answer(key: str) -> str:
    """The text that continues the question: a space, the digits, a full stop."""
    return f" {key}."


def is_answered(text: str, key: str) -> bool:
    """Exact match: the generated text starts, after white space, with exactly the key and no further digit."""
    text = text.lstrip()
    return text.startswith(key) and not text[DIGITS : DIGITS + 1].isdigit()
