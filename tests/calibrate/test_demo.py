"""The demo models' promise: both jobs at L, an honest failure beyond it, and a calibration that repairs it."""

from __future__ import annotations

import json
import math

import pytest
from click.testing import CliRunner

from longscan.calibrate.commands import cli

MODELS = ["demo", "demo-mamba2"]


def call(*arguments):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("model", MODELS)
def test_both_jobs_at_the_training_length(model):
    text = call("eval", "--model", model, "--lengths", 256, "--windows", 256, "--json")
    assert math.log2(text["rows"][0]["value"]) <= 2.1
    keys = call("eval", "--model", model, "--lengths", 256, "--task", "passkey", "--json")
    assert min(keys["rows"][0]["depths"].values()) >= 0.99


FEW = """\
objective: mixed
filter:
  layers: all
  g_fit: stretched
  theta: [1.0e-2]
  theta_quantiles: [0.5]
  mass: {law: [0.2], factors: [0.25, 0.5, 1.0]}
"""


@pytest.mark.parametrize(
    ("model", "length", "method", "recipe", "windows"),
    [("demo", 1024, "auto", "", 64), ("demo-mamba2", 2048, "filter", FEW, 16)],
)
def test_a_quick_calibration_repairs_what_plain_loses(tmp_path, model, length, method, recipe, windows):
    """Where plain reads less than half of the keys; Mamba-2 is read slowly, so one filter of few is looked for."""
    out, given = tmp_path / "demo.st", ["--lengths", length, "--samples", 20, "--method", method]
    if recipe:
        (tmp_path / "few.yaml").write_text(recipe)
        given += ["--texts", "demo", "--recipe", tmp_path / "few.yaml"]
    document = call("run", "--model", model, *given, "--out", out, "--json")
    assert 0 < document["cost"] < 40
    base = ("eval", "--model", model, "--sidecar", out, "--lengths", length, "--methods", "none,auto", "--json")
    plain, auto = call(*base, "--task", "passkey", "--windows", 4)["rows"]
    assert plain["value"] < 0.5 and auto["value"] >= 0.95
    plain, auto = call(*base, "--windows", windows)["rows"]
    assert auto["value"] < plain["value"]
