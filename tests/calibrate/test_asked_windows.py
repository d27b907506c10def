"""One reading gives loss and recall: the same targets at every length, and what separate readings give."""

from __future__ import annotations

import pytest
import torch

from longscan.calibrate.errors import UserError
from longscan.calibrate.search.candidates import Candidate, DecimatePick
from longscan.calibrate.search.tasks import passkey_answered, read_and_ask, tail_losses
from longscan.calibrate.sidecars import sidecar_from_bands
from longscan.calibrate.texts.passkey import PLAIN_HAYSTACK, WORDINGS, Salt
from longscan.calibrate.texts.prompts import DEPTHS, PasskeyTrials, asked_windows
from longscan.runtime import load
from longscan.runtime.sidecar.sidecar import Band

from ..tiny_run import DEMO_TEXT

TAIL, LONGEST = 40, 1024


@pytest.fixture(scope="module")
def model():
    return load("demo")


@pytest.fixture(scope="module")
def windows():
    text = DEMO_TEXT.read_bytes()
    return torch.stack([torch.tensor(list(text[at : at + LONGEST])) for at in range(5000, 65000, 3000)])


def ask(model, windows, length, texts=1, seed=0, salt=PLAIN_HAYSTACK) -> tuple[PasskeyTrials, list[str]]:
    trials = asked_windows(model, windows, length, TAIL, texts, seed, salt)
    assert trials.prompts.shape == (len(windows), length)
    return trials, [bytes(row.tolist()).decode(errors="replace") for row in trials.prompts]


@pytest.mark.parametrize("salt", [PLAIN_HAYSTACK, Salt(numbers=5, distractors=1)])
def test_targets_are_the_windows_last_tokens_at_every_length(model, windows, salt):
    for length in (300, 512, LONGEST):
        trials, prompts = ask(model, windows, length, salt=salt)
        for i, (prompt, key) in enumerate(zip(prompts, trials.keys)):
            assert trials.prompts[i, trials.ends[i] - TAIL : trials.ends[i]].equal(windows[i, -TAIL:])
            (asked,) = [wording for wording in WORDINGS if prompt.endswith(wording.question)]
            assert prompt.count(asked.hide(key)) == 1


def test_every_text_has_keys_at_all_depths_and_as_many_salted(model, windows):
    salt = Salt(numbers=3, share=0.5)
    _, plain = ask(model, windows, 512, texts=2)
    trials, salted = ask(model, windows, 512, texts=2, salt=salt)
    differ = [a != b for a, b in zip(plain, salted)]
    assert differ[0::2] == differ[1::2] == [False, True] * 5
    for text in (0, 1):
        for turn, prompt in enumerate(plain[text::2]):
            at = prompt.index(trials.keys[2 * turn + text]) / (512 - TAIL)
            assert at == pytest.approx(DEPTHS[turn % 5], abs=0.25)


def test_the_same_seed_gives_the_same_prompts(model, windows):
    assert ask(model, windows, 512)[1] == ask(model, windows, 512)[1] != ask(model, windows, 512, seed=1)[1]


def test_a_window_that_cannot_hold_the_task_is_refused(model, windows):
    with pytest.raises(UserError, match=r"needs more than \d+ tokens, asked for 140"):
        asked_windows(model, windows, 140, TAIL, 1, 0, PLAIN_HAYSTACK)


def test_one_reading_is_what_two_give(model, windows):
    trials, _ = ask(model, windows[:6], 512)
    losses, answered, probability = read_and_ask(model, trials, TAIL, "none", 1500)
    right, chance = passkey_answered(model, trials, "none", 1500)
    assert answered.equal(right) and torch.allclose(probability, chance, rtol=1e-6)
    alone = [
        tail_losses(model, trials.prompts[i : i + 1, : trials.ends[i]], TAIL, "none", 1500) for i in range(len(right))
    ]
    assert torch.allclose(losses, torch.cat(alone), rtol=1e-5)


def test_a_decimated_question_is_asked_as_a_user_asks_it(model, windows):
    """Its tokens may go, those of a loss may not."""
    trials, _ = ask(model, windows[:4], 512)
    pick = DecimatePick((1,), 16, 1.0, "all")
    tensors = {
        "layers": torch.tensor([1]),
        "keep": torch.tensor(pick.keep()),
        "weights": torch.ones(1, model.weights.channels),
    }
    lm = model.with_sidecar(sidecar_from_bands(model, 256, [(Band((512,), "decimate"), tensors)]))
    assert Candidate(decimate=pick).layers_read(512, 5, 0) == pytest.approx(2 + 3 * pick.keep()[0] / 512)
    losses, answered, probability = read_and_ask(lm, trials, TAIL, "auto", 4096, decimates=True)
    right, chance = passkey_answered(lm, trials, "auto", 4096)
    assert answered.equal(right) and probability.equal(chance)
    once = read_and_ask(lm, trials, TAIL, "auto", 4096)
    assert once[0].equal(losses) and not once[2].equal(chance)
