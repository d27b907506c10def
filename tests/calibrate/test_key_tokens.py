"""Keys of several token counts in one cell (GPT-NeoX): any key is asked for, and each is scored as it is alone."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from longscan.calibrate.evaluate import recall
from longscan.calibrate.search.tasks import passkey_answered
from longscan.calibrate.texts.passkey import DIGITS, WORDINGS, Salt, answer
from longscan.calibrate.texts.prompts import DEPTHS, PasskeyTrials, asked_windows, passkey_trials

from ..tiny_run import DEMO_TEXT

NEOX = Path(__file__).parents[1] / "data" / "gpt-neox-20b.json.gz"
RESIDUE = {"calibrate": 3, "evaluate": 4}
LENGTHS, TAIL = (300, 512, 1024, 2048), 40
SALT = Salt(numbers=5, distractors=1, share=0.5)


@dataclass
class Told:
    """Which rows a Teller reads, and how many tokens after their prompts it has read."""

    rows: Tensor
    read: int = 0

    def clone(self) -> Told:
        return Told(self.rows, self.read)


class Teller:
    """A model whose logits are a table's, (n, T, V), whatever it reads: of a prompt's row, which is all it holds."""

    def __init__(self, tokenizer: Tokenizer, table: Tensor) -> None:
        self.tokenizer, self.table = tokenizer, table

    def read(self, _, prompts: Tensor, *__) -> tuple[Tensor, Told]:
        state = Told(prompts[:, 0])
        return self.table[state.rows, :1], state

    def step(self, token: Tensor, state: Told) -> tuple[Tensor, Told]:
        assert bool((token >= 0).all()) and len(token) == len(state.rows)
        state.read += 1
        return self.table[state.rows, state.read], state


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_buffer(gzip.decompress(NEOX.read_bytes()))


@pytest.fixture(scope="module")
def lm(tokenizer):
    return SimpleNamespace(tokenizer=tokenizer)


@pytest.fixture(scope="module")
def text(tokenizer):
    return torch.tensor(tokenizer.encode(DEMO_TEXT.read_text()[:80_000], add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def asked(lm, text):
    """(length, seed, split, salt) -> 100 prompts."""

    def prompts(length, seed, split, salt) -> PasskeyTrials:
        if split == "calibrate":
            windows = text.unfold(0, max(LENGTHS), 100)[:100]
            return asked_windows(lm, windows, length, TAIL, 1, seed, salt)
        return passkey_trials(lm, [text], length, DEPTHS * 20, split, seed, salt)

    return prompts


@pytest.mark.parametrize("split", RESIDUE)
def test_keys_are_of_the_splits_kinds_at_every_length_and_seed(tokenizer, asked, split):
    """Kinds: by the tokens of the answer, and whether a zero leads."""
    every = [f"{value:0{DIGITS}d}" for value in range(RESIDUE[split], 10**DIGITS, 5)]
    counts = torch.tensor([len(each.ids) for each in tokenizer.encode_batch([answer(key) for key in every])])
    for length in LENGTHS:
        for seed in range(2):
            trials = asked(length, seed, split, Salt())
            mine = (trials.answers >= 0).sum(1)
            assert mine.max() == trials.answers.shape[1]
            found = [mine == 3, mine == 4, torch.tensor([key[0] == "0" for key in trials.keys])]
            for kind, of_all in zip(found, [counts == 3, counts == 4, torch.arange(len(every)) < len(every) // 10]):
                share = float(of_all.double().mean())
                assert abs(float(kind.double().mean()) - share) < 4 * (share * (1 - share) / len(kind)) ** 0.5


@pytest.mark.parametrize("salt", [Salt(), SALT], ids=["plain", "salted"])
@pytest.mark.parametrize("split", RESIDUE)
def test_prompts_have_the_length_whatever_the_key(tokenizer, asked, split, salt):
    for length in LENGTHS:
        trials = asked(length, 0, split, salt)
        assert trials.prompts.shape == (100, length) and len({int((row >= 0).sum()) for row in trials.answers}) > 1
        texts = tokenizer.decode_batch(trials.prompts.tolist())
        for prompt, end, row, key, text in zip(trials.prompts, trials.ends, trials.answers, trials.keys, texts):
            (wording,) = [each for each in WORDINGS if text.endswith(each.question)]
            assert text.count(wording.hide(key)) == 1 and tokenizer.decode(prompt[end:].tolist()) == wording.question
            said = row[row >= 0].tolist()
            assert tokenizer.decode(said) == answer(key) and row.tolist() == said + [-1] * (len(row) - len(said))


def rows_of(trials: PasskeyTrials) -> PasskeyTrials:
    """The same answers, asked of a Teller."""
    return PasskeyTrials(torch.arange(len(trials.keys))[:, None], trials.answers, trials.ends, trials.keys)


def test_an_answers_probability_is_that_of_its_own_tokens(tokenizer, asked):
    trials = rows_of(asked(300, 0, "evaluate", Salt()).part(0, 20))
    table = torch.randn(20, 5, tokenizer.get_vocab_size(), generator=torch.Generator().manual_seed(0)) * 3
    teller = Teller(tokenizer, table)
    found = passkey_answered(teller, trials, "none", 20, read=teller.read)[1]
    for i, key in enumerate(trials.keys):
        ids = tokenizer.encode(answer(key)).ids
        wanted = sum(table[i, k].double().log_softmax(-1)[token] for k, token in enumerate(ids)).exp()
        assert found[i] == pytest.approx(float(wanted), rel=1e-12)
    table[0, int((trials.answers[0] >= 0).sum()) :] = torch.nan  # what follows an answer is nobody's
    assert passkey_answered(teller, trials, "none", 20, read=teller.read)[1].equal(found)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_row_is_answered_or_not_whoever_shares_its_batch(tokenizer, asked, late):
    """Each row says line breaks, and then its key: one leaves room for it in its own answer's tokens, two do not."""
    trials = rows_of(asked(300, 0, "evaluate", Salt()).part(0, 30))
    teller = Teller(tokenizer, torch.zeros(len(trials.keys), 8, tokenizer.get_vocab_size()))
    for said, row in zip(teller.table, trials.answers):
        ids = [tokenizer.token_to_id("Ċ")] * late + row[row >= 0].tolist()
        said[torch.arange(len(ids)), ids] = 1
    together = passkey_answered(teller, trials, "none", 30, read=teller.read)
    alone = passkey_answered(teller, trials, "none", 1, read=teller.read)
    assert together[0].equal(alone[0]) and bool((together[0] == (late < 2)).all())
    assert together[1].equal(alone[1])


@pytest.mark.parametrize("task", ["multikey", "variables"])
def test_the_recall_tasks_give_each_prompt_its_own_room(tokenizer, lm, text, task, monkeypatch):
    trials = recall.recall_trials(lm, [text], 300, DEPTHS * 8, task, 0)
    assert trials.prompts.shape == (40, 300)
    said = [each.ids for each in tokenizer.encode_batch([asked.said for asked in trials.asked])]
    assert trials.tokens == tuple(map(len, said)) and len(set(trials.tokens)) > 1
    teller = Teller(tokenizer, torch.zeros(40, 40, tokenizer.get_vocab_size()))
    monkeypatch.setattr(recall, "read_all", teller.read)
    rows = recall.Trials(torch.arange(40)[:, None], trials.asked, trials.tokens)
    for late, right in ((0, 1.0), (2, 0.0)):  # two line breaks, and the last of what is asked for is cut
        teller.table.zero_()
        for table, ids in zip(teller.table, said):
            ids = [tokenizer.token_to_id("Ċ")] * late + ids
            table[torch.arange(len(ids)), ids] = 1
        together, alone = (recall.share_answered(teller, rows, "none", batch) for batch in (40, 1))
        assert together.equal(alone) and bool(((together == 1) == right).all())
