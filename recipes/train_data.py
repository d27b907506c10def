"""Training samples of the demo model: key-value recall, running text, recall across text, passkeys in text.

A sample is bytes with a weight a byte: 0 not predictable (random keys met for the first time), 1 text, 2 an answer.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longscan.calibrate.texts.passkey import WORDINGS, answer, draw_key

NONE, TEXT, ANSWER = 0, 1, 2
# letters in a key, digits in a value, pairs, bytes of a sample
LEVELS = ((1, 1, 3, 48), (1, 2, 3, 60), (2, 2, 3, 72), (2, 3, 4, 84), (3, 4, 4, 96), (3, 5, 4, 108))
Marked = list[tuple[bytes, int]]


@dataclass(frozen=True)
class Corpus:
    """Training texts by collection; Jane Austen's novels count for more than half."""

    austen: list[bytes]
    sotu: list[bytes]
    kjv: list[bytes]

    @staticmethod
    def read(folder: Path) -> Corpus:
        """The folder made by demo_texts.py. The calibration and evaluation novels are never read here."""
        held_out = {"northanger_abbey", "persuasion"}
        novels = [p for p in sorted((folder / "austen").glob("*.txt")) if p.stem not in held_out]
        messages = sorted((folder / "sotu").glob("*.txt"))
        return Corpus(
            [p.read_bytes() for p in novels], [p.read_bytes() for p in messages], [(folder / "kjv.txt").read_bytes()]
        )

    def slice(self, rng: random.Random, size: int) -> bytes:
        """`size` consecutive bytes of one document."""
        source = rng.choices((self.austen, self.sotu, self.kjv), (0.6, 0.25, 0.15))[0]
        while True:
            text = source[rng.randrange(len(source))] if source is not self.sotu else rng.choice(source)
            if len(text) > size:
                start = rng.randrange(len(text) - size)
                return text[start : start + size]


def pairs(rng: random.Random, letters: int, digits: int, count: int) -> dict[str, str]:
    found: dict[str, str] = {}
    while len(found) < count:
        key = "".join(rng.choices(string.ascii_lowercase, k=letters))
        found[key] = "".join(rng.choices(string.digits, k=digits))
    return found


def recall(rng: random.Random, level: int) -> Marked:
    """`k7 q2 m9 k7 m9 ...`: every pair once, then keys again at random, whose values are answers."""
    letters, digits, count, size = LEVELS[level]
    known = pairs(rng, letters, digits, count)
    keys = list(known)
    out: Marked = [(f"{k}{v} ".encode(), NONE) for k, v in known.items()]
    length = sum(len(b) for b, _ in out)
    while length < size:
        k = rng.choice(keys)
        out += [(k.encode(), NONE), (known[k].encode(), ANSWER), (b" ", NONE)]
        length += letters + digits + 1
    return out


def recall_in_text(rng: random.Random, corpus: Corpus, size: int) -> Marked:
    """Pairs, then text, then the keys again with their values as answers, until the window is full."""
    known = pairs(rng, rng.randint(2, 3), rng.randint(3, 5), rng.randint(1, 3))
    out: Marked = [(corpus.slice(rng, rng.randrange(4, 40)), TEXT)]
    out += [(f" {k}{v} ".encode(), NONE) for k, v in known.items()]
    used = sum(len(b) for b, _ in out)
    asked = rng.sample(list(known), len(known))
    for k in asked:
        tail = (len(k) + 8) * len(asked)
        gap = rng.randrange(4, max(5, (size - used - tail) // len(asked)))
        out += [(corpus.slice(rng, gap), TEXT), (f" {k}".encode(), NONE), (known[k].encode(), ANSWER), (b" ", NONE)]
        used += gap + len(k) + len(known[k]) + 2
    return [*out, (corpus.slice(rng, max(8, size - used)), TEXT)]


def passkey(rng: random.Random, corpus: Corpus, size: int, span: int) -> Marked:
    """One or two keys hidden in running text and asked for at the end of at most `span` bytes."""
    first = WORDINGS[0] if rng.random() < 0.5 else rng.choice(WORDINGS)
    chosen = [first]
    if rng.random() < 0.35:
        chosen.append(rng.choice([w for w in WORDINGS if w is not first]))
    keys = [draw_key(rng, "train") for _ in chosen]
    needles: list[Marked] = []
    for wording, key in zip(chosen, keys):
        before, middle, after = wording.needle.split("{key}")
        needles.append(
            [
                (before.encode(), TEXT),
                (key.encode(), NONE),
                (middle.encode(), TEXT),
                (key.encode(), ANSWER),
                (after.encode(), TEXT),
            ]
        )
    questions: list[Marked] = []
    for wording, key in zip(chosen, keys):
        said = answer(key).encode()
        questions.append([(wording.question.encode(), TEXT), (said, ANSWER)])
    order = rng.sample(range(len(chosen)), len(chosen))
    fixed = sum(len(b) for part in needles + questions for b, _ in part)
    # mostly the whole span, so that long distances are well represented
    room = max(0, span - fixed)
    room = room if rng.random() < 0.6 else rng.randrange(room + 1)
    cuts = sorted(rng.choice((0, room, rng.randrange(room + 1), rng.randrange(room + 1))) for _ in needles)
    text = corpus.slice(rng, room + size)
    out: Marked = []
    at = 0
    for cut, needle in zip(cuts, needles):
        out += [(text[at:cut], TEXT), *needle]
        at = cut
    out.append((text[at:room], TEXT))
    for i in order:
        out += questions[i]
    return [*out, (b" " + text[room:], TEXT)]


def tensors(samples: list[Marked], size: int) -> tuple[Tensor, Tensor]:
    """ids (B, size) int64 and marks (B, size) int64; longer samples are cut, shorter ones must not occur."""
    ids = np.zeros((len(samples), size), np.int64)
    marks = np.zeros((len(samples), size), np.int64)
    for row, sample in enumerate(samples):
        joined = b"".join(b for b, _ in sample)[:size]
        marked = b"".join(bytes([mark]) * len(b) for b, mark in sample)[:size]
        ids[row, : len(joined)] = np.frombuffer(joined, np.uint8)
        marks[row, : len(marked)] = np.frombuffer(marked, np.uint8)
    return torch.from_numpy(ids), torch.from_numpy(marks)


def recall_samples(rng: random.Random, level: int, rows: int) -> list[Marked]:
    """A batch of the curriculum; a quarter of the rows repeat earlier levels."""
    return [recall(rng, level if rng.random() < 0.75 else rng.randrange(level + 1)) for _ in range(rows)]


def mixed_samples(rng: random.Random, corpus: Corpus, rows: int, size: int, progress: float) -> list[Marked]:
    """Text, recall across text and passkeys, a third each; distances grow to the whole window over `progress`."""
    span = round(120 + (size - 120) * min(1.0, 2.5 * progress))
    samples: list[Marked] = []
    for row in range(rows):
        if row % 3 == 0:
            samples.append([(corpus.slice(rng, size), TEXT)])
        elif row % 3 == 1 and progress < 0.6:
            samples.append(recall_in_text(rng, corpus, size))
        elif row % 3 == 1 and rng.random() < 0.6:
            samples.append([(corpus.slice(rng, size), TEXT)])
        else:
            samples.append(passkey(rng, corpus, size, span))
    return samples
