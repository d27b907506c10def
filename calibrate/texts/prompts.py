"""Prompts of an exact length: running text with a key hidden in it, and a question at its end."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...runtime.checkpoint.tokenizer import inside_ids
from ...runtime.model import LM
from ..errors import UserError
from .passkey import PLAIN_HAYSTACK, Salt, Split, answer, draw_key, wordings

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class PasskeyTrials:
    """Prompts of one length: prompts (n, S) int64, answers (n, A) int64, keys one each.

    answers: A is the longest one's tokens, -1 follows the shorter: keys of five digits may differ in tokens
    ends: (n,) int64, where the text ends and the question begins
    """

    prompts: Tensor
    answers: Tensor
    ends: Tensor
    keys: tuple[str, ...]

    def part(self, start: int, stop: int) -> PasskeyTrials:
        """Trials start ... stop - 1."""
        at = slice(start, stop)
        return PasskeyTrials(self.prompts[at], self.answers[at], self.ends[at], self.keys[at])


def passkey_trials(
    lm: LM,
    documents: Sequence[Tensor],
    length: int,
    depths: Sequence[float],
    split: Split,
    seed: int,
    salt: Salt = PLAIN_HAYSTACK,
) -> PasskeyTrials:
    """One prompt of exactly `length` tokens for each entry of `depths`: a key hidden at that depth of running text.

    documents: token ids of the haystack's texts
    salt: what else is written into it, which does not change the key. Wordings are drawn from the split's. Everything
    is in the middle of a text: no BOS, and no space but the wording's own. Raises UserError if the length is too short
    to hold the task, or no document is long enough.
    """
    rng = random.Random(f"passkey {seed} {length} {split}")
    salts = [salt if salt.wanted(i) else PLAIN_HAYSTACK for i in range(len(depths))]

    def text(_: int, taken: int) -> list[int]:
        return haystack(documents, length, taken, rng, "passkey")

    return _trials(lm, text, length, depths, split, seed, rng, salts, 0)


def asked_windows(lm: LM, windows: Tensor, length: int, tail: int, texts: int, seed: int, salt: Salt) -> PasskeyTrials:
    """A key hidden in the last tokens of each window, and asked for after it: one reading gives loss and recall.

    windows: (n, longest) int64, of `texts` texts that take turns -> prompts (n, length). All end, before the question,
    with the window's last `tail` tokens, whatever the length; all that is hidden stands before these. Every text has
    its keys at all depths, and as many of its prompts salted.
    Raises UserError if the length is too short to hold the task.
    """
    rng = random.Random(f"passkey {seed} {length} calibrate")
    turns = [i // texts for i in range(len(windows))]
    depths = [DEPTHS[turn % len(DEPTHS)] for turn in turns]

    def text(i: int, taken: int) -> list[int]:
        room = length - taken
        if room <= tail:
            raise UserError(
                f"a window that is asked for a passkey needs more than {taken + tail} tokens, "
                f"asked for {length}; give longer --lengths"
            )
        return windows[i, windows.shape[1] - room :].tolist()

    salts = [salt if salt.wanted(turn) else PLAIN_HAYSTACK for turn in turns]
    return _trials(lm, text, length, depths, "calibrate", seed, rng, salts, tail)


def _trials(
    lm: LM,
    text: Callable[[int, int], list[int]],
    length: int,
    depths: Sequence[float],
    split: Split,
    seed: int,
    rng: random.Random,
    salts: Sequence[Salt],
    tail: int,
) -> PasskeyTrials:
    """text: (number of the prompt, tokens taken by what is asked) -> the tokens that fill up the rest of `length`"""

    def encode(said: str) -> list[int]:
        return inside_ids(lm.tokenizer, [said])[0]

    prompts: list[list[int]] = []
    answers: list[Tensor] = []
    keys: list[str] = []
    ends: list[int] = []
    for i, depth in enumerate(depths):
        wording = random.Random(f"wording {seed} {length} {i}").choice(wordings(split))
        key = draw_key(rng, split)
        needle, question = encode(wording.hide(key)), encode(wording.question)
        hay = text(i, len(needle) + len(question))
        written = salts[i].phrases(random.Random(f"salt {seed} {length} {split} {i}"), key, wording, split)
        phrases = inside_ids(lm.tokenizer, written) if written else []
        hidden = _hide(hay, needle, depth, phrases, random.Random(f"places {seed} {length} {i}"), tail)
        prompts.append(hidden + question)
        answers.append(torch.tensor(encode(answer(key))))
        ends.append(len(hidden))
        keys.append(key)
    padded = pad_sequence(answers, batch_first=True, padding_value=-1)
    return PasskeyTrials(torch.tensor(prompts), padded, torch.tensor(ends), tuple(keys))


def haystack(documents: Sequence[Tensor], length: int, taken: int, rng: random.Random, task: str) -> list[int]:
    """The length - taken tokens of running text of a prompt; raises UserError where there are none."""
    room = length - taken
    if room < 0:
        raise UserError(f"a {task} prompt needs at least {taken} tokens, asked for {length}; give longer --lengths")
    usable = [document for document in documents if len(document) >= room]
    if not usable:
        longest = max((len(document) for document in documents), default=0)
        raise UserError(
            f"no text has the {room} tokens a {task} prompt needs (longest: {longest}); "
            "give shorter --lengths or longer texts"
        )
    document = rng.choices(usable, [len(document) - room + 1 for document in usable])[0]
    start = rng.randrange(len(document) - room + 1)
    return document[start : start + room].tolist()


def _hide(
    text: list[int], needle: list[int], depth: float, phrases: list[list[int]], rng: random.Random, tail: int
) -> list[int]:
    """The needle at `depth` of a haystack as long as `text`, phrases at random places in it; nothing is cut apart.

    As many of the phrases as take no more than half the haystack are used; the text's start makes room for them. Its
    last `tail` tokens stay as they are.
    """
    text, end = text[: len(text) - tail], text[len(text) - tail :]
    used, left = [], len(text) // 2
    for phrase in phrases:
        if len(phrase) <= left:
            used.append(phrase)
            left -= len(phrase)
    text = text[sum(map(len, used)) :]
    place = round(depth * len(text))
    inserts = sorted([(rng.randrange(len(text) + 1), phrase) for phrase in used], key=lambda each: each[0])
    before = [each for each in inserts if each[0] < place]
    return insert(text, [*before, (place, needle), *inserts[len(before) :]]) + end


def insert(text: list[int], inserts: Sequence[tuple[int, list[int]]]) -> list[int]:
    """The text with (place in it, tokens) written in; places ascend."""
    found: list[int] = []
    last = 0
    for at, tokens in inserts:
        found += text[last:at] + tokens
        last = at
    return found + text[last:]
