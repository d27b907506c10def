"""How well a model reads: losses on the last tokens of windows, and passkeys answered. Used by search and by eval."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.checkpoint.tokenizer import inside_ids
from ...runtime.model import LM
from ...runtime.reading.state import State
from ..errors import UserError
from ..texts.passkey import PLAIN_HAYSTACK, Salt, Split, answer, draw_key, is_answered, wordings
from ..work.processes import ALONE, Processes
from .shared_layers import Read, read_all

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def tail_losses(
    lm: LM,
    windows: Tensor,
    tail: int,
    method: str,
    batch_tokens: int,
    *,
    processes: Processes = ALONE,
    read: Read = read_all,
) -> Tensor:
    """Mean loss (nats per token) on the last `tail` tokens of each window: (n, S) int64 -> (n,) float64.

    The last tail + 1 tokens are protected from decimation, as published. Each rank reads its share of the batches.
    """
    losses = torch.zeros(len(windows), dtype=torch.float64)
    rows = max(1, batch_tokens // windows.shape[1])
    for i, batch in processes.mine(windows.split(rows)):
        predicted = read(lm, batch, method, tail + 1)[0][:, :-1].double()
        target = batch[:, -tail:].to(predicted.device)
        loss = F.cross_entropy(predicted.flatten(0, 1), target.flatten(), reduction="none")
        losses[i * rows : i * rows + len(batch)] = loss.view(target.shape).mean(1).cpu()
    return processes.total(losses)


@dataclass(frozen=True)
class PasskeyTrials:
    """Prompts of one length: prompts (n, S) int64, answers (n, A) int64, keys and depths one each."""

    prompts: Tensor
    answers: Tensor
    keys: tuple[str, ...]
    depths: tuple[float, ...]

    def part(self, start: int, stop: int) -> PasskeyTrials:
        """Trials start ... stop - 1."""
        at = slice(start, stop)
        return PasskeyTrials(self.prompts[at], self.answers[at], self.keys[at], self.depths[at])


def passkey_trials(
    lm: LM,
    documents: Sequence[Tensor],
    length: int,
    depths: Sequence[float],
    split: Split,
    seed: int,
    salt: Salt = PLAIN_HAYSTACK,
    others: Sequence[Sequence[Tensor]] = (),
) -> PasskeyTrials:
    """One prompt of exactly `length` tokens for each entry of `depths`: a key hidden at that depth of running text.

    documents: token ids of the haystack's texts; others: those of further texts, which take turns, five prompts each
    salt: what else is written into it, which changes neither the key nor
    where its text is from. Wordings are drawn from the split's. Everything is in the middle of a text: no BOS, and no
    space but the wording's own. Raises UserError if the length is too short to hold the task, or no document is long
    enough.
    """
    rng, texts = random.Random(f"passkey {seed} {length} {split}"), [documents, *others]

    def encode(text: str) -> list[int]:
        return inside_ids(lm.tokenizer, [text])[0]

    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    keys: list[str] = []
    for i, depth in enumerate(depths):
        wording = random.Random(f"wording {seed} {length} {i}").choice(wordings(split))
        while True:  # keys whose answer has another number of tokens cannot share a batch
            key = draw_key(rng, split)
            answered = encode(answer(key))
            if not answers or len(answered) == len(answers[0]):
                break
        needle, question = encode(wording.hide(key)), encode(wording.question)
        text = haystack(texts[text_of_trial(i, len(texts))], length, len(needle) + len(question), rng, "passkey")
        phrases: list[list[int]] = []
        if salt.wanted(i):
            draw = random.Random(f"salt {seed} {length} {split} {i}")
            written = salt.phrases(draw, key, wording, split)
            phrases = inside_ids(lm.tokenizer, written) if written else []
        prompts.append(_hide(text, needle, depth, phrases, random.Random(f"places {seed} {length} {i}")) + question)
        answers.append(answered)
        keys.append(key)
    return PasskeyTrials(torch.tensor(prompts), torch.tensor(answers), tuple(keys), tuple(depths))


def text_of_trial(trial: int, texts: int) -> int:
    """Which of several texts a passkey's haystack is from: all depths of one, then of the next."""
    return trial // len(DEPTHS) % texts


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


def _hide(text: list[int], needle: list[int], depth: float, phrases: list[list[int]], rng: random.Random) -> list[int]:
    """The needle at `depth` of a haystack as long as `text`, phrases at random places in it; nothing is cut apart.

    As many of the phrases as take no more than half the haystack are used; the text's end makes room for them.
    """
    used, left = [], len(text) // 2
    for phrase in phrases:
        if len(phrase) <= left:
            used.append(phrase)
            left -= len(phrase)
    text = text[: len(text) - sum(map(len, used))]
    place = round(depth * len(text))
    inserts = sorted([(rng.randrange(len(text) + 1), phrase) for phrase in used], key=lambda each: each[0])
    before = [each for each in inserts if each[0] < place]
    return insert(text, [*before, (place, needle), *inserts[len(before) :]])


def insert(text: list[int], inserts: Sequence[tuple[int, list[int]]]) -> list[int]:
    """The text with (place in it, tokens) written in; places ascend."""
    found: list[int] = []
    last = 0
    for at, tokens in inserts:
        found += text[last:at] + tokens
        last = at
    return found + text[last:]


def passkey_answered(
    lm: LM,
    trials: PasskeyTrials,
    method: str,
    batch_tokens: int,
    *,
    processes: Processes = ALONE,
    read: Read = read_all,
) -> tuple[Tensor, Tensor]:
    """(answered (n,) bool, probability (n,) float64): greedy exact match, and the probability of the right answer.

    The prompt is prefilled with `method`; the answer is generated by steps. The probability is the teacher-forced
    product over the answer's tokens, a smooth companion to the exact match that ranks close candidates.
    """
    rows = max(1, batch_tokens // trials.prompts.shape[1])
    answered, probability = torch.zeros(2, len(trials.keys), dtype=torch.float64)
    for i, prompts in processes.mine(trials.prompts.split(rows)):
        part = slice(i * rows, i * rows + len(prompts))
        logits, state = read(lm, prompts, method, 1)
        logits, target = logits[:, -1], trials.answers[part].to(logits.device)
        texts = greedy(lm, logits, state.clone(), target.shape[1])
        answered[part] = torch.tensor([float(is_answered(text, key)) for text, key in zip(texts, trials.keys[part])])
        total = torch.zeros(len(target), dtype=torch.float64)
        for k in range(target.shape[1]):
            total += F.log_softmax(logits.double(), -1).gather(1, target[:, k : k + 1])[:, 0].cpu()
            if k + 1 < target.shape[1]:
                logits, state = lm.step(target[:, k], state)
        probability[part] = total.exp()
    return processes.total(answered) > 0, processes.total(probability)


def greedy(lm: LM, logits: Tensor, state: State, count: int) -> list[str]:
    """The texts of `count` tokens a row after logits (B, V); `state` goes on with them."""
    tokens = []
    for k in range(count):
        tokens.append(logits.argmax(-1))
        if k + 1 < count:
            logits, state = lm.step(tokens[-1], state)
    return lm.tokenizer.decode_batch(torch.stack(tokens, 1).tolist())
