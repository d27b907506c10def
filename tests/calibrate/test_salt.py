"""Salted haystacks: exact lengths, the same by seed, nothing cut apart, and never a key of another split."""

from __future__ import annotations

import random
import re

import pytest
import torch

from longscan.calibrate.texts.passkey import DIGITS, WORDINGS, Salt, wordings
from longscan.calibrate.texts.prompts import DEPTHS, passkey_trials
from longscan.runtime import load

SALT = Salt(numbers=5, distractors=1)


@pytest.fixture(scope="module")
def model():
    return load("demo")


@pytest.fixture(scope="module")
def documents():
    return [torch.tensor(list(b"no figures here, " * 400))]


def texts(model, documents, salt, length=1024, seed=0, split="calibrate"):
    found = passkey_trials(model, documents, length, DEPTHS, split, seed, salt)
    assert found.prompts.shape == (len(DEPTHS), length)
    return found, [bytes(row.tolist()).decode() for row in found.prompts]


def test_same_seed_same_salt(model, documents):
    _, first = texts(model, documents, SALT)
    assert first == texts(model, documents, SALT)[1]
    assert first != texts(model, documents, SALT, seed=1)[1]


@pytest.mark.parametrize("length", [256, 1000, 1024])
def test_the_key_and_the_depth_are_those_of_the_plain_prompt(model, documents, length):
    plain, _ = texts(model, documents, Salt(), length)
    salted, prompts = texts(model, documents, SALT, length)
    assert plain.keys == salted.keys and not torch.equal(plain.prompts, salted.prompts)
    for prompt, key, depth in zip(prompts, salted.keys, DEPTHS):
        (asked,) = [wording for wording in WORDINGS if prompt.endswith(wording.question)]
        needle = asked.hide(key)
        assert prompt.count(needle) == 1 and bytes(plain.prompts[DEPTHS.index(depth)].tolist()).decode().count(needle)
        assert abs(prompt.index(needle) / (length - len(needle) - len(asked.question)) - depth) < 0.35
        assert depth or prompt.startswith(needle)


@pytest.mark.parametrize(("split", "asked"), [("calibrate", WORDINGS[1:]), ("evaluate", WORDINGS[:1])])
def test_no_wording_that_is_evaluated_was_calibrated_with(model, documents, split, asked):
    found = passkey_trials(model, documents, 512, DEPTHS * 8, split, 0)
    assert wordings(split) == asked
    questions = {bytes(row.tolist()).decode()[-30:] for row in found.prompts}
    assert questions == {wording.question[-30:] for wording in asked}


@pytest.mark.parametrize(("split", "residues"), [("calibrate", {3}), ("evaluate", {4}), ("train", {0, 1, 2})])
def test_distractors_are_of_the_split_and_never_the_key(split, residues):
    key = {"calibrate": "00003", "evaluate": "00004", "train": "00000"}[split]
    for seed in range(300):
        for phrase in Salt(distractors=2).phrases(random.Random(seed), key, WORDINGS[2], split):
            (other,) = set(re.findall(r"\d{5}", phrase))
            assert other != key and int(other) % 5 in residues and phrase != WORDINGS[2].hide(other)


def test_a_key_drawn_again_is_not_a_distractor(monkeypatch):
    drawn = iter(["00003", "00003", "00008"])
    monkeypatch.setattr("longscan.calibrate.texts.passkey.draw_key", lambda *_: next(drawn))
    (phrase,) = Salt(distractors=1).phrases(random.Random(0), "00003", WORDINGS[0], "calibrate")
    assert "00008" in phrase


@pytest.mark.parametrize("length", [1024, 4096])
def test_numbers_are_as_many_as_asked_for_and_shorter_than_keys(model, documents, length):
    _, prompts = texts(model, documents, Salt(numbers=8), length)
    for prompt in prompts:
        numbers = [n for n in re.findall(r"\d+", prompt) if len(n) < DIGITS]
        assert len(numbers) == 8 and len(re.findall(r"\d{5,}", prompt)) == 2  # the key, twice


@pytest.mark.parametrize(("share", "wanted"), [(1.0, [1, 1, 1, 1]), (0.5, [0, 1, 0, 1]), (0.25, [0, 0, 0, 1])])
def test_the_salted_ones_are_spread_evenly(share, wanted):
    assert [Salt(share=share).wanted(i) for i in range(4)] == list(map(bool, wanted))


def test_a_haystack_too_short_for_its_salt_keeps_half_of_its_text(model, documents):
    _, prompts = texts(model, documents, Salt(numbers=200), length=512)
    for prompt in prompts:
        assert prompt.count("figures") + prompt.count("here") >= 4
