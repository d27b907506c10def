"""Commands that only look: inspect, diff, recipes, env, completion."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from longscan.calibrate.commands import cli
from longscan.calibrate.recipe.recipe import load_recipe, recipe_names
from longscan.calibrate.sidecars import sidecar_from_bands
from longscan.runtime import Sidecar, load

from ..checkpoints import make_sidecar, random_tensors, write_state_spaces


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load(write_state_spaces(tmp_path_factory.mktemp("m") / "tiny", random_tensors(), train_length=16))


@pytest.fixture
def side(lm):
    return make_sidecar(lm)


@pytest.fixture
def path(side, tmp_path):
    side.write(tmp_path / "a.st")
    return tmp_path / "a.st"


def with_distances(lm, side):
    band = (side.bands[0], {name.split(".")[-1]: t for name, t in side.tensors.items()})
    return sidecar_from_bands(lm, 16, [band], calibration={"layers": [{"mean_distance": 2.5 * i} for i in range(3)]})


def test_layers_at_a_glance(lm, side, path, tmp_path):
    found = json.loads(call("inspect", path, "--json").stdout)["by_layer"]
    assert [at["length"] for at in found] == [64]
    rows = found[0]["layers"]
    assert [row["global_channels"] for row in rows] == [int((side.thresholds(i, 64) > 0).sum()) for i in range(3)]
    assert [row["keep"] for row in rows] == [None, 30, None] and {row["kept_mass"] for row in rows} == {2.0}
    assert {row["mean_distance"] for row in rows} == {None}
    lines = call("inspect", path).stdout.splitlines()
    assert lines[-4].split() == ["0", "24", "(50%)", "-", "all", "2.00"] and "does not record" in lines[-1]
    with_distances(lm, side).write(tmp_path / "b.st")
    lines = call("inspect", tmp_path / "b.st").stdout.splitlines()
    assert lines[-2].split() == ["1", "24", "(50%)", "2", "30", "2.00"]


def test_many_lengths_stay_apart_from_their_method(side, tmp_path):
    policy = json.loads(side.metadata["policy"])
    policy["bands"][0]["lengths"] = [64 * 2**k for k in range(8)]
    Sidecar(side.tensors, {**side.metadata, "policy": json.dumps(policy)}).write(tmp_path / "many.st")
    lines = call("inspect", tmp_path / "many.st").stdout.splitlines()
    assert any(line.split()[:2] == ["64,128,256,512,1024,2048,4096,8192", "both"] for line in lines)


def test_one_layer(side, path):
    found = json.loads(call("inspect", path, "--layer", 1, "--json").stdout)
    [band] = found["bands"]
    g = side.tensors["bands.0.thresholds"][1, 1]
    assert band["keep"] == 30 and band["channels"] == list(range(1, 48, 2))
    assert band["filter"][1]["g"][2] == pytest.approx(float(g[g > 0].median()), rel=0.2)
    assert band["filter"][1]["g"][4] == pytest.approx(float(g.max()))
    text = call("inspect", path, "--layer", 1).stdout
    assert "decimation keeps 30 tokens" in text and "channels: 1 3 5" in text
    assert "no layer 3; the model has layers 0 to 2" in call("inspect", path, "--layer", 3, code=1).stderr


def test_diff(lm, side, path, tmp_path):
    assert call("diff", path, path).stdout == "the sidecars are equal\n"
    assert json.loads(call("diff", path, path, "--json").stdout)["equal"] is True
    table = side.tensors["bands.0.thresholds"].clone()
    table[1, 2, 1] += 0.5
    changed = {**side.tensors, "bands.0.thresholds": table, "bands.0.keep": torch.tensor([40])}
    Sidecar(changed, {**side.metadata, "recipe": '{"samples":3}'}).write(tmp_path / "b.st")
    found = json.loads(call("diff", path, tmp_path / "b.st", "--json").stdout)
    tensors = {t["name"]: t for t in found["tensors"]}
    assert found["same_model"] and not found["equal"] and set(tensors) == {"bands.0.keep", "bands.0.thresholds"}
    assert tensors["bands.0.thresholds"]["different"] == 1
    assert tensors["bands.0.thresholds"]["largest_difference"] == pytest.approx(0.5)
    assert found["metadata"] == {"recipe.samples": [None, 3]}
    assert {"length": 64, "method": "auto", "a": "both (layer 1 keeps 30)", "b": "both (layer 1 keeps 40)"} in found[
        "plans"
    ]
    text = call("diff", path, tmp_path / "b.st").stdout
    assert "1 of 288 values differ" in text and "recipe.samples: null | 3" in text
    small = {"lengths": torch.tensor([17]), "thresholds": table[:1]}
    sidecar_from_bands(lm, 16, [(side.bands[0].__class__((64,), "filter"), small)]).write(tmp_path / "c.st")
    text = call("diff", path, tmp_path / "c.st").stdout
    assert "bands.0.keep: only in A" in text and "shape [2, 3, 48] | [1, 3, 48]" in text


def test_recipes(tmp_path):
    rows = json.loads(call("recipes", "list", "--json").stdout)
    assert [row["name"] for row in rows] == recipe_names() and all(row["description"] for row in rows)
    assert "paper-longmamba" in call("recipes", "list").stdout
    for name in recipe_names():  # what is shown reads back as the same recipe: the card's command depends on it
        (tmp_path / "shown.yaml").write_text(call("recipes", "show", name).stdout)
        assert load_recipe(str(tmp_path / "shown.yaml")) == load_recipe(name)
    schema = json.loads(call("recipes", "schema").stdout)
    assert set(schema["properties"]) == set(json.loads(call("recipes", "show", "default", "--json").stdout))
    for section in (schema, *schema["$defs"].values()):
        assert section["additionalProperties"] is False and all(
            p["description"] for p in section["properties"].values()
        )
    assert "no recipe 'nothing'" in call("recipes", "show", "nothing", code=1).stderr


def test_env():
    found = json.loads(call("env", "--json").stdout)
    assert found["packages"]["torch"] == torch.__version__ and found["backends"]["reference"] == "ready"
    assert found["packages"]["click"] in call("env").stdout


def test_completion_and_version():
    def run(**env):
        return CliRunner().invoke(cli, [], env=env, prog_name="calibrate").stdout

    assert "calibrate" in run(_CALIBRATE_COMPLETE="bash_source")
    completed = run(_CALIBRATE_COMPLETE="bash_complete", COMP_WORDS="calibrate recipes show paper-l", COMP_CWORD="3")
    assert completed == "plain,paper-longmamba\n"
    assert "version" in call("--version").stdout
