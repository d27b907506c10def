"""Every shipped recipe loads; every mistake in one is refused by name; the papers' settings are the papers'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longscan.calibrate.errors import UserError
from longscan.calibrate.recipe.published import published_decimation, published_filter, recipe_train_length
from longscan.calibrate.recipe.recipe import (
    Recipe,
    load_recipe,
    parse_recipe,
    recipe_for_model,
    recipe_names,
    to_json,
)
from longscan.calibrate.summary import to_yaml

NAMES = ["default", "demo", *(f"mamba-{size}" for size in ("1.4b", "130m", "2.8b", "370m", "790m"))]
NAMES += [f"mamba2-{size}" for size in ("1.3b", "130m", "2.7b", "370m", "780m")]
NAMES += ["bamba-9b", *(f"falcon-h1-{size}" for size in ("0.5b", "128k", "256k")), "jamba", "nemotron-h-8k"]
NAMES += ["granite-4.0-h", "granite-4.0-h-1b", "granite-4.0-h-350m"]
NAMES += ["falcon-mamba-7b", "zamba2-1.2b", "paper-decimamba", "paper-longmamba"]


def test_the_shipped_recipes() -> None:
    assert recipe_names() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    assert (recipe.lengths is None) != (recipe.length_factors is None)
    values = json.loads(to_json(recipe))
    assert list(values) == sorted(Recipe.model_fields)
    assert recipe == load_recipe(name) and to_json(recipe) == to_json(load_recipe(name))
    if name.startswith(("mamba-", "mamba2-")):
        assert recipe.train_length == 2048 and recipe.target_lengths(2048) == [1024 * k for k in (4, 8, 16, 32, 64)]
        assert recipe_for_model(f"state-spaces/{name}") == recipe_for_model(f"state-spaces/{name}-hf") == name


def test_recipe_for_model() -> None:
    assert recipe_for_model("demo") == recipe_for_model("demo-mamba2") == "demo"
    assert recipe_for_model("someone/else") == "default"
    assert recipe_for_model("tiiuae/falcon-mamba-7b") == "falcon-mamba-7b"
    assert load_recipe("falcon-mamba-7b").train_length == 8192
    assert recipe_for_model("Zyphra/Zamba2-1.2B") == "zamba2-1.2b"
    zamba2 = load_recipe("zamba2-1.2b")
    assert (zamba2.train_length, zamba2.method) == (4000, "filter")


@pytest.mark.parametrize(
    ("model", "name", "train_length"),
    [
        ("nvidia/Nemotron-H-8B-Base-8K", "nemotron-h-8k", 8192),
        ("ibm-fms/Bamba-9B", "bamba-9b", 4096),
        ("tiiuae/Falcon-H1-0.5B-Base", "falcon-h1-0.5b", 4096),
        ("tiiuae/Falcon-H1-1.5B-Deep-Instruct", "falcon-h1-128k", 131072),
        ("tiiuae/Falcon-H1-34B-Instruct", "falcon-h1-256k", 262144),
        ("ibm-granite/granite-4.0-h-tiny", "granite-4.0-h", 524288),
        ("ibm-granite/granite-4.0-h-1b", "granite-4.0-h-1b", 131072),
        ("ibm-granite/granite-4.0-h-350m-base", "granite-4.0-h-350m", 32768),
        ("ai21labs/Jamba-v0.1", "jamba", 262144),
    ],
)
def test_hybrids_are_filtered_from_what_their_makers_trained_at(model: str, name: str, train_length: int) -> None:
    recipe = load_recipe(name)
    assert recipe_for_model(model) == name and (recipe.train_length, recipe.method) == (train_length, "filter")
    assert all(length > train_length for length in recipe.target_lengths(train_length))


def test_an_empty_recipe_is_the_defaults() -> None:
    assert parse_recipe("", "default") == Recipe()


@pytest.mark.parametrize("content", ["", "lengths: [512]\nmethod: filter", "length_factors: [2]\ndescription: ''"])
def test_what_is_written_out_is_read_back(content: str) -> None:
    recipe = parse_recipe(content, "mine")
    assert parse_recipe(to_yaml(json.loads(to_json(recipe))), "back") == recipe


# A list of 2**40 names, which is small until somebody writes it out.
BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 41)), "models: *a40"])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("samlpes: 3", ["unknown key samlpes", "'samples'"]),
        ("filter: {mass: {lwa: [1]}}", ["unknown key filter.mass.lwa", "'law'"]),
        ("decimate: {published: {m: {layer: [1]}}}", ["decimate.published.m.layer", "'layers'"]),
        ("1: 2", ["unknown key 1"]),
        ("samples: three", ["samples is 'three'", "a whole number from 1 to 100000"]),
        ("samples: true", ["samples is True", "whole number"]),
        ("samples: 2.0", ["samples is 2.0", "whole number"]),
        ("samples: 0", ["samples is 0", "from 1 to 100000"]),
        ("held_out: 1", ["held_out is 1", "below 1"]),
        ("filter: {clamp: .nan}", ["filter.clamp is nan", "a number above 0 and below 1", "null"]),
        ("filter: {mass: {law: [1, -1]}}", ["filter.mass.law[1] is -1", "above 0"]),
        ("filter: {theta: [0]}", ["filter.theta[0] is 0", "above 0"]),
        ("filter: {theta: []}", ["filter.theta is []", "a list"]),
        ("filter: {theta: 1e-30}", ["filter.theta is '1e-30'", "a list"]),
        ("filter: {theta: [1e-3, 0.001]}", ["filter.theta", "each once"]),
        ("filter: {table: [2k, 1k]}", ["filter.table", "rising"]),
        ("filter: {layers: some}", ["filter.layers is 'some'", "all, search", "list of layer numbers"]),
        ("filter: 3", ["filter is 3", "mapping"]),
        ("filter: {clamp: 0.2}", ["filter is {'clamp': 0.2}", "give fit: published", "reads clamp"]),
        ("filter: {aggregate: max, start: 3k}", ["fit: published", "reads aggregate, start"]),
        ("filter: {interpolate: false}", ["fit: published", "reads interpolate"]),
        ("filter: {table: [1k], scale_from: 2k}", ["fit: published", "reads table, scale_from"]),
        ("filter: {fit: published, layers: [2]}", ["fit: mass", "reads layers"]),
        ("filter: {fit: published, g_fit: stretched}", ["fit: mass", "reads g_fit"]),
        ("policy: {confidence: 0.999999}", ["policy.confidence is 0.999999", "above 0.5 and at most 0.999"]),
        ("decimate: {beta: [1.5]}", ["decimate.beta[0] is 1.5", "at most 1"]),
        ("decimate: {weights: [local]}", ["decimate.weights[0] is 'local'", "all, global"]),
        ("lengths: [4k, 0]", ["lengths[1] is 0", "4096 or 4k"]),
        ("lengths: [4k]\nlength_factors: [2]", ["lengths and length_factors", "keep one"]),
        ("length_factors: [1]", ["length_factors[0] is 1", "above 1"]),
        ("method: fliter", ["method is 'fliter'", "decimate, both"]),
        ("name: ''", ["name is ''", "text that is not empty"]),
        ("description: 3", ["description is 3; give text"]),
        ("seed: 1\nseed: 2", ["seed is given twice"]),
        ("- a", ["['a']", "a mapping"]),
        ("a: [", ["not YAML", "line 1"]),
        ("samples: !!bool x", ["not YAML"]),
        (BOMB, ["models[0] is [[[[...], [...]]"]),
        ("!!python/object:os.system {}", ["not YAML"]),
    ],
)
def test_mistakes_are_refused_by_name(content: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(content, "mine")
    message = str(caught.value)
    assert message.startswith("recipe mine") and "\n" not in message and ";" in message
    for part in parts:
        assert part in message, message


def test_settings_that_the_fit_does_not_read_may_stand_at_their_defaults() -> None:
    parse_recipe("filter: {interpolate: true, clamp: null, aggregate: mean}", "mine")
    parse_recipe("filter: {fit: published, layers: all, g_fit: auto}", "mine")


def test_numbers_as_yaml_reads_them() -> None:
    recipe = parse_recipe("filter: {theta: [1e-30, 1.0e-5, 1]}\nlengths: [4k, 5000, '64k']", "mine")
    assert recipe.filter.theta == (1e-30, 1e-5, 1.0)
    assert recipe.lengths == (4096, 5000, 65536) and recipe.length_factors is None
    assert '"theta":[1e-30,1e-05,1.0]' in to_json(recipe)


def test_files_and_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("texts: {run: /home/me/books/a.jsonl@body}\n")
    recipe = load_recipe(str(path))
    assert recipe.name == "mine" and recipe.texts.run == "/home/me/books/a.jsonl@body"
    assert "/home" not in to_json(recipe) and '"run":"a.jsonl@body"' in to_json(recipe)
    gone = str(tmp_path / "no.yaml")
    for missing, part in (("nosuch", "paper-longmamba"), (gone, "no.yaml"), (str(tmp_path), "cannot")):
        with pytest.raises(UserError, match=part):
            load_recipe(missing)


def test_longmamba_as_published() -> None:
    recipe = load_recipe("paper-longmamba")
    assert (recipe.method, recipe.filter.fit, recipe.measure.windows) == ("filter", "published", 5)
    assert recipe.filter.aggregate == "mean" and not recipe.filter.interpolate
    thousands = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 30, 36, 44, 54, 64, 80, 96, 120, 144, 168, 192)
    row = published_filter(recipe, "state-spaces/mamba-1.4b-hf", 2048)
    assert (row.theta, row.clamp, row.start) == (1e-30, 0.2, 3000)
    assert row.table == tuple(1000 * k for k in thousands), "a published row is never scaled"
    for model, theta, L in (("state-spaces/mamba2-1.3b", 5e-2, 2000), ("Zyphra/Zamba2-1.2B", 1e-5, 4000)):
        found = published_filter(recipe, model, 2048)
        assert (found.theta, found.clamp, found.table) == (theta, 0.05, row.table)
        assert recipe_train_length(recipe, model) == L
    other = published_filter(recipe, "demo", 256)
    assert (other.theta, other.clamp, other.start) == (1e-30, 0.2, 384)
    assert other.table == tuple(128 * k for k in thousands)
    assert recipe_train_length(recipe, "state-spaces/mamba-1.4b") == 2000
    assert recipe_train_length(recipe, "demo") is None


def test_decimamba_as_published() -> None:
    recipe = load_recipe("paper-decimamba")
    assert (recipe.method, recipe.decimate.search, recipe.decimate.weights) == ("decimate", False, ("all",))
    rows = {"130m": ((12,), 2000, 0.5), "1.4b": ((12,), 4000, 1.0), "2.8b": ((22,), 4000, 1.0)}
    for size, expected in rows.items():
        row = published_decimation(recipe, f"state-spaces/mamba-{size}", 99, 256)
        assert (row.layers, row.base, row.beta) == expected
    row = published_decimation(recipe, "demo", 5, 256)
    assert (row.layers, row.base, row.beta) == ((2,), 256, 0.5)
