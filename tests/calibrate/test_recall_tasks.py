"""The multi-key and the variables task: exact lengths, depths, keys of the evaluation's split, what counts as right."""

from __future__ import annotations

import random
import re

import pytest
import torch

from longscan.calibrate.errors import UserError
from longscan.calibrate.evaluate.evaluate import Request, evaluate
from longscan.calibrate.evaluate.recall import recall_trials
from longscan.calibrate.texts.prompts import DEPTHS
from longscan.calibrate.texts.recall_tasks import ask
from longscan.runtime import load

TASKS = ("multikey", "variables")
TEXT = [torch.tensor(list(b"no figures here, " * 400))]


def prompts(task, length, seed=0):
    found = recall_trials(load("demo"), TEXT, length, DEPTHS, task, seed)
    assert found.prompts.shape == (len(DEPTHS), length)
    return found, [bytes(row.tolist()).decode() for row in found.prompts]


@pytest.mark.parametrize("length", [256, 1000])
@pytest.mark.parametrize("task", TASKS)
def test_every_text_is_hidden_once_the_asked_one_at_its_depth(task, length):
    found, texts = prompts(task, length)
    assert texts == prompts(task, length)[1] and texts != prompts(task, length, seed=1)[1]
    for text, asked, depth in zip(texts, found.asked, DEPTHS):
        assert text.endswith(asked.question)
        body = text.removesuffix(asked.question)
        for chain in asked.chains:
            places = [body.index(part) for part in chain]
            assert all(body.count(part) == 1 for part in chain) and places == sorted(places)
        for part in [part for chain in asked.chains for part in chain]:
            before, body = body, body.replace(part, "", 1)
            if part == asked.chains[0][0]:
                outside = re.sub(r"( VAR [^.]*\. )|( The [^.]*\. )", "", before[: before.index(part)])
        assert outside == body[: len(outside)] and len(outside) == round(depth * len(body))


@pytest.mark.parametrize("task", TASKS)
def test_keys_are_the_evaluations_and_another_thing_does_not_answer(task):
    for seed in range(50):
        asked = ask(task, random.Random(seed))
        numbers = re.findall(r"\d+", " ".join(part for chain in asked.chains for part in chain))
        assert len(set(numbers)) == len(numbers) and all(len(n) == 5 and int(n) % 5 == 4 for n in numbers)
        assert asked.share_answered(asked.said + " And") == 1
        others = " ".join(part for chain in asked.chains[1:] for part in chain)
        assert asked.share_answered(others) == 0
    variables = ask("variables", random.Random(0))
    assert variables.share_answered(f" {variables.answers[1]} and XYZW") == pytest.approx(1 / 3)


def test_a_length_that_cannot_hold_the_task_is_refused():
    with pytest.raises(UserError, match=r"a variables prompt needs at least \d+ tokens, asked for 128"):
        prompts("variables", 128)


def test_the_plain_demo_tells_keys_apart_at_L():
    rows = evaluate(load("demo"), TEXT, Request("multikey", (256,), ("none",), 8, "paired", 0, 16384))["rows"]
    assert rows[0]["value"] > 0.25 and rows[0]["windows"] == 40 and set(rows[0]["depths"]) == set(map(str, DEPTHS))
