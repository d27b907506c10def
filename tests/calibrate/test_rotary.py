"""The factor on rotary positions: the last thing a calibration of a hybrid with rotary attention settles."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from longscan.calibrate.commands import cli
from longscan.calibrate.recipe.recipe import Policy
from longscan.calibrate.search import choice
from longscan.calibrate.search.candidates import NONE, Candidate, FilterPick
from longscan.runtime import Sidecar, load
from longscan.runtime.checkpoint.source import BUNDLED

from ..runtime.attach.models import build, publish
from .conftest import DEMO_TEXT
from .test_policy import score

FILTER = Candidate(FilterPick(-5.0, (0,), 0.5))


class Made:
    """Scores by rotary factor."""

    texts = 1
    tables = SimpleNamespace(train_length=64)

    def __init__(self, **values):
        self.values, self.tried = {float(k[1:]): v for k, v in values.items()}, []

    def score(self, candidate, length):
        return score(self.values.get(candidate.rotary, 3.0)) if candidate != NONE else score(4.0)

    def halving(self, candidates, length):
        self.tried = [each.rotary for each in candidates]
        return sorted(candidates, key=lambda each: self.score(each, length).losses.mean())[:1]


def settled(search, judge, held=FILTER, length=256, multiples=(0.5, 1.0, 2.0)):
    return choice.stretch(search, judge, held, length, Policy(), 0, 1, multiples)


def test_the_best_factor_of_the_search_is_taken_if_it_is_better_on_other_text():
    search, better, worse = Made(x4=1.0, x8=2.0), Made(x1=2.0, x4=1.5), Made(x1=2.0, x4=2.5, x8=1.0)
    best, (row,) = settled(search, better)
    assert search.tried == [2.0, 4.0, 8.0] and best.rotary == 4.0 and best.filter == FILTER.filter
    assert row["method"] == "filter+yarn" and row["rotary"] == 4.0 and row["loss"] == 1.5
    assert row["loss_difference"] == [-2.5, -2.5]  # from the plain model
    best, (row,) = settled(search, worse)
    assert best == FILTER and row["loss"] == 2.5


def test_factors_of_one_and_less_are_none():
    search = Made(x1=2.0, x2=1.0)
    assert settled(search, search, length=128)[0].rotary == 2.0 and search.tried == [2.0, 4.0]
    assert settled(search, search, length=128, multiples=(0.5,)) == (FILTER, [])


RECIPE = """\
samples: 4
length_factors: [4]
objective: perplexity
measure: {windows: 4, kept: 8, batch_tokens: 256}
filter: {theta: [1.0e-2], theta_quantiles: [0.5], mass: {law: [0.5]}, layers: all}
rotary: {factors: [0.5]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model over bytes, its recipe and a text."""
    pytest.importorskip("transformers")
    folder = publish(build("bamba", vocab_size=256), tmp_path_factory.mktemp("tiny-bamba"))
    shutil.copy(BUNDLED["demo"] / "tokenizer.json", folder)
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "novel.txt").write_text(DEMO_TEXT.read_text()[:20000])
    return folder


def call(*arguments):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_from_the_search_to_the_sidecars_reader(folder, monkeypatch):
    """Random weights read no better with a factor: here whatever is tried last is taken."""
    monkeypatch.setattr(choice, "_takes_over", lambda *_: True)
    out, text = folder / "out.safetensors", ("--texts", folder / "novel.txt")
    run = ("run", "--model", folder, *text, "--recipe", folder / "tiny.yaml", "--train-length", 64)
    document = json.loads(call(*run, "--out", out, "--json"))
    row = document["scores"][-1]
    assert row["method"] == "filter+yarn" and row["rotary"] == 2.0
    side = Sidecar.read(out)
    assert side.rotary == {256: 2.0} and side.plan(256).rotary.factor == 2.0
    said = call("inspect", out)
    assert "auto does filter+yarn: " in said and "rotary positions (auto): 2 at 256" in said
    more = (*text, "--lengths", 256, "--windows", 2, "--json")
    rows = {r["method"]: r for r in json.loads(call("eval", "--model", folder, "--sidecar", out, *more))["rows"]}
    assert rows["auto"]["rotary"] == 2.0 and rows["auto"]["value"] != rows["filter"]["value"]
    ids = torch.randint(0, 256, (1, 256))
    lm = load(folder, side)
    assert lm.prefill(ids).plan.rotary.factor == 2.0 and lm.prefill(ids, method="none").plan.rotary is None
