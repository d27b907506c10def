"""The command, end to end: a random checkpoint in the layout of state-spaces/mamba-130m, and all that can go wrong."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from longscan.calibrate.commands import cli
from longscan.runtime import Sidecar, load
from longscan.runtime.checkpoint.source import BUNDLED

from ..checkpoints import random_tensors, write_state_spaces

DATA = Path(__file__).parents[1] / "data"
DEMO_TEXT = Path(__file__).parents[2] / "calibrate" / "demo" / "calibration.txt"


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """config.json and pytorch_model.bin as on the Hub, but over bytes: most of a search is spent on the vocabulary."""
    folder = tmp_path_factory.mktemp("tiny-mamba")
    write_state_spaces(folder, random_tensors(M=16, n_layer=2, V=256, N=16), pickled=True)
    shutil.copy(BUNDLED["demo"] / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """All as on the Hub, the GPT-NeoX tokenizer beside it."""
    folder = tmp_path_factory.mktemp("published")
    write_state_spaces(folder, random_tensors(M=16, n_layer=2, V=50280, N=16), pickled=True, vocab_size=50277)
    tokenizer = gzip.decompress((DATA / "gpt-neox-20b.json.gz").read_bytes())
    (folder / "tokenizer.json").write_bytes(tokenizer)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_text(DEMO_TEXT.read_text()[:60000])
    return path


@pytest.fixture(scope="module")
def calibrated(folder, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "tiny.longscan.safetensors"
    arguments = ("run", "--model", folder, "--texts", text, "--train-length", 64, "--lengths", "128,256")
    result = call(*arguments, "--samples", 4, "--out", out, "--json")
    return arguments, out, json.loads(result.stdout)


def test_run_writes_a_sidecar_and_one_document(calibrated, folder):
    _, out, document = calibrated
    side = Sidecar.read(out)
    assert document["sidecar"] == str(out) and document["train_length"] == 64 == side.train_length
    assert {"bands", "scores", "cost", "seconds", "tokens", "sha256"} <= set(document)
    assert side.metadata["base_model"] == folder.name
    assert [n for band in document["bands"] for n in band["lengths"]] == [128, 256]
    for method in ("none", "filter", "decimate", "both", "auto"):  # auto carries everything
        plan = side.plan(256, method)
        assert all(keep < 256 for keep in plan.decimate.values())
    assert sum(int((side.thresholds(i, 256) > 0).sum()) for i in range(2)) > 0
    assert 0 < document["cost"] < 40
    load(folder, out)


def test_a_plan_counts_what_the_run_reads_and_writes_nothing(tiny_run, whole_run, tmp_path):
    wanted = (*tiny_run, "--out", tmp_path / "planned.st", "--plan")
    planned = json.loads(call(*wanted, "--objective", "perplexity", "--json").stdout)  # as this model's run turns out
    assert planned["tokens"] == pytest.approx(whole_run.document["tokens"], rel=0.3)
    assert planned["lengths"] == [128, 256] and planned["searched"]["256"] == [8, 0]
    assert planned["seconds"] > 0 and planned["weights_bytes"] > 4 * 16 * 256
    assert "passkeys" in call(*wanted).stdout
    assert list(tmp_path.iterdir()) == []


def test_several_texts_take_turns(calibrated, folder, text, tmp_path):
    """The first is measured, all are chosen on; what they are called and how each was read is written down."""
    other, out = tmp_path / "messages.txt", tmp_path / "two.st"
    other.write_text("In the year 1845 we paid 3,000 dollars. " * 900)
    arguments = (*calibrated[0], "--texts", other, "--samples", 4, "--objective", "mixed", "--method", "filter")
    document = json.loads(call(*arguments, "--out", out, "--json").stdout)
    made = json.loads(Sidecar.read(out).metadata["calibration"])
    assert made["texts"] == "novel.txt, messages.txt" and len(made["texts_sha256"]) == 64
    novel, messages = document["scores"][0]["by_text"]
    assert novel["loss"] != messages["loss"] and sum((novel["loss"], messages["loss"])) / 2 == pytest.approx(
        document["scores"][0]["loss"], abs=1e-5
    )
    short = tmp_path / "short.txt"
    short.write_text("too short")
    result = call(*calibrated[0], "--texts", short, "--out", tmp_path / "no.st", code=1)
    assert result.stderr.startswith("Error: ") and not (tmp_path / "no.st").exists()


def test_the_same_seed_gives_the_same_bytes(calibrated, tmp_path):
    arguments, out, _ = calibrated
    again, resumed = tmp_path / out.name, tmp_path / "resumed" / out.name
    resumed.parent.mkdir()
    call(*arguments, "--samples", 4, "--out", again, "--fresh")
    assert again.read_bytes() == out.read_bytes()
    # from half a journal: the same bytes once more
    work = resumed.parent / "work"
    shutil.copytree(tmp_path / f"{out.name}.work", work)
    with closing(sqlite3.connect(work / "journal.sqlite", isolation_level=None)) as db:
        db.execute("DELETE FROM scores WHERE rowid % 2")
    result = call(*arguments, "--samples", 4, "--out", resumed, "--workdir", work)
    assert "going on from" in result.stderr
    assert resumed.read_bytes() == out.read_bytes()
    other = call(*arguments, "--samples", 3, "--method", "none", "--out", tmp_path / "other.st", "--workdir", work)
    assert "starting afresh" in other.stderr


def test_inspect(calibrated):
    _, out, document = calibrated
    found = json.loads(call("inspect", out, "--json").stdout)
    assert found["train_length"] == 64 and found["scores"] == document["scores"]
    assert "trained at 64 tokens" in call("inspect", out).stdout


def test_eval_perplexity_is_paired(calibrated, folder, text):
    _, out, _ = calibrated
    base = ("eval", "--model", folder, "--sidecar", out, "--texts", text, "--json")
    found = json.loads(call(*base, "--lengths", "64,256", "--windows", 3).stdout)
    assert {"model", "task", "unit", "rows", "machine"} <= set(found)
    rows = {(row["length"], row["method"]): row for row in found["rows"]}
    assert len(rows) == 10
    assert {rows[64, m]["value"] for m in ("none", "filter", "decimate", "both", "auto")} == {rows[64, "none"]["value"]}
    assert rows[64, "both"]["resolved_method"] == "none" and rows[256, "both"]["resolved_method"] == "both"
    assert rows[256, "none"]["value"] != rows[256, "filter"]["value"]
    for row in rows.values():
        assert row["windows"] == 3 and row["tokens"] == 3 * row["length"]
    # every length scores the same tokens: a window of 256 ends where that of 64 does
    alone = json.loads(call(*base, "--lengths", "64,256", "--windows", 3, "--methods", "none").stdout)
    assert [r["value"] for r in alone["rows"]] == [rows[64, "none"]["value"], rows[256, "none"]["value"]]
    # the error is that of the difference from the plain model, wherever and whether that is asked for
    for methods in ("filter", "filter,none"):
        again = json.loads(call(*base, "--lengths", "64,256", "--windows", 3, "--methods", methods).stdout)["rows"]
        assert [row["method"] for row in again] == methods.split(",") * 2
        assert [row["stderr"] for row in again] == [rows[row["length"], row["method"]]["stderr"] for row in again]
    pg19 = json.loads(call(*base, "--lengths", 256, "--windows", 3, "--methods", "none", "--protocol", "pg19").stdout)
    assert pg19["rows"][0]["value"] > 0 and pg19["protocol"] == "pg19"


def test_eval_passkey(calibrated, folder, text):
    _, out, _ = calibrated
    base = ("eval", "--model", folder, "--sidecar", out, "--texts", text, "--json")
    found = json.loads(call(*base, "--task", "passkey", "--lengths", 128, "--windows", 1).stdout)
    row = found["rows"][0]
    assert set(row["depths"]) == {"0.0", "0.25", "0.5", "0.75", "1.0"} and 0 <= row["value"] <= 1
    assert row["windows"] == 5


def test_generate(folder, calibrated, tmp_path):
    _, out, _ = calibrated
    (tmp_path / "prompt.txt").write_text("It is a truth " * 40)
    result = call("generate", "--model", folder, "--sidecar", out, "--prompt-file", tmp_path / "prompt.txt",
                  "--max-new-tokens", 4)  # fmt: skip
    assert len(result.stdout) > 1


@pytest.mark.parametrize(
    ("recipe", "method", "found"),
    [
        ("paper-longmamba", "filter", "filter"),
        ("paper-longmamba", "decimate", "decimate"),
        ("paper-longmamba", "both", "both"),
        ("paper-longmamba", "scale", None),
    ],
)
def test_published_settings_do_what_is_asked_or_say_that_they_cannot(published, text, tmp_path, recipe, method, found):
    out = tmp_path / "x.safetensors"
    result = call("run", "--model", published, "--texts", text, "--train-length", 64, "--lengths", 128, "--recipe",
                  recipe, "--method", method, "--out", out, code=0 if found else 1)  # fmt: skip
    if found:
        assert [band.method for band in Sidecar.read(out).bands] == [found]
    else:
        assert f"no settings for --method {method}" in result.stderr and not out.exists()


def test_a_decimation_that_is_not_searched_is_compared_with_the_others(folder, text, tmp_path):
    out, recipe = tmp_path / "one.st", tmp_path / "mine.yaml"
    recipe.write_text("decimate: {search: false}\nsamples: 4\n")
    given = ("--train-length", 64, "--lengths", 128, "--recipe", recipe, "--out", out)
    document = json.loads(call("run", "--model", folder, "--texts", text, *given, "--json").stdout)
    rows = {row["method"]: row for row in document["scores"]}
    assert set(rows) == {"none", "filter", "decimate", "both"}
    assert rows["decimate"]["decimate"] == rows["both"]["decimate"] == {"1": 64}
    side = Sidecar.read(out)
    assert side.plan(128, "both").decimate == {1: 64}
    assert any((side.thresholds(layer, 128) > 0).any() for layer in range(2))


def test_a_sweep_that_no_measured_document_is_long_enough_for_is_left_out(folder, text, tmp_path):
    """The last document is held out, and may be the only long one."""
    out, mix = tmp_path / "one.st", tmp_path / "mix"
    mix.mkdir()
    for name, size in (("a", 600), ("b", 40000)):
        (mix / f"{name}.txt").write_text(text.read_text()[:size])
    given = ("--train-length", 64, "--lengths", "128,1024", "--samples", 4, "--method", "filter", "--out", out)
    result = call("run", "--model", folder, "--texts", mix, *given)
    assert "left out: sequential fits of g at 1024" in result.stderr
    made = json.loads(Sidecar.read(out).metadata["calibration"])
    assert made["unswept"] == [1024] and [fit["length"] for fit in made["fits"]] == [128]


@pytest.mark.parametrize("recipe", ["paper-longmamba", "paper-decimamba"])
def test_published_recipes(published, text, tmp_path, recipe):
    out = tmp_path / "paper.st"
    call("run", "--model", published, "--texts", text, "--train-length", 64, "--recipe", recipe, "--out", out)
    side = Sidecar.read(out)
    if recipe == "paper-longmamba":
        assert not side.filter_decode
        assert side.plan(640).method == "filter"
        assert side.plan(640) == side.plan(640, "filter")
        # the table's start scales by L / 2000: 3000 x 64 / 2000 = 96
        assert all((side.thresholds(i, 95) == 0).all() for i in range(2))
        assert any((side.thresholds(i, 640) > 0).any() for i in range(2))
    else:
        assert side.plan(640).decimate == {1: 64} and (side.score_weights(1, 640) == 1).all()


def test_a_sidecar_of_the_folder_one_is_in_has_its_name(folder, text, tmp_path, monkeypatch):
    model = shutil.copytree(folder, tmp_path / "tiny")
    monkeypatch.chdir(model)
    call("run", "--model", ".", "--texts", text, "--train-length", 64, "--lengths", 128, "--method", "none")
    assert (model / "tiny.longscan.safetensors").is_file()


METHODS = {"none": {"none"}, "filter": {"none", "filter"}, "decimate": {"none", "decimate"}}


@pytest.mark.parametrize("method", METHODS)
def test_method_limits_the_candidates(folder, text, tmp_path, method):
    out = tmp_path / "one.st"
    call("run", "--model", folder, "--texts", text, "--train-length", 64, "--lengths", 128, "--samples", 2,
         "--method", method, "--out", out, "--json")  # fmt: skip
    side = Sidecar.read(out)
    assert side.plan(128).method in METHODS[method]
    if method != "none":
        assert side.plan(128, method).method == method


def test_the_seed_is_the_recipes_unless_given(folder, text, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("seed: 7\n")
    for options, seed in (((), 7), (("--seed", 0), 0)):
        call("run", "--model", folder, "--texts", text, "--train-length", 64, "--lengths", 128, "--method", "none",
             "--recipe", recipe, "--out", tmp_path / "one.st", *options)  # fmt: skip
        assert json.loads(Sidecar.read(tmp_path / "one.st").metadata["calibration"])["seed"] == seed


def _random_text(path, size):
    rng = random.Random(0)
    path.write_text(" ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(size)))
    return path


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--model", "/nowhere"], "no model folder", 1),
        (["--texts", "/nowhere.txt"], "nowhere.txt", 1),
        (["--texts", "EMPTY"], "empty", 1),
        (["--texts", "SHORT"], "tokens", 1),
        (["--lengths", "64"], "not above the training length 64", 1),
        (["--lengths", "many"], "many", 2),
        (["--recipe", "no-such"], "no-such", 1),
        (["--recipe", "BAD"], "colour", 1),
        (["--method", "magic"], "magic", 2),
        (["--device", "tpu9"], "device", 1),
        (["--dtype", "int8"], "dtype", 1),
        (["--out", "/nowhere/x.st"], "no folder", 1),
        (["--samples", "0"], "samples", 2),
    ],
)
def test_errors_are_one_line(folder, text, tmp_path, arguments, message, code):
    (tmp_path / "empty.txt").write_text("")
    _random_text(tmp_path / "short.txt", 20)
    (tmp_path / "bad.yaml").write_text("colour: red\n")
    named = {"EMPTY": tmp_path / "empty.txt", "SHORT": tmp_path / "short.txt", "BAD": tmp_path / "bad.yaml"}
    options = {
        "--model": folder, "--texts": text, "--train-length": 64, "--lengths": "128", "--samples": 2,
        "--out": tmp_path / "x.st",
    }  # fmt: skip
    options |= {k: named.get(v, v) for k, v in zip(arguments[::2], arguments[1::2])}
    result = call("run", *(part for pair in options.items() for part in pair), code=code)
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ") and message in line, result.stderr
    assert "Traceback" not in result.output and result.stdout == ""
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".st", ".tmp")]


def test_a_sidecar_of_another_model_is_refused(calibrated, text):
    _, out, _ = calibrated
    result = call("eval", "--model", "demo", "--sidecar", out, "--texts", text, code=1)
    assert "model_fingerprint" in result.stderr


def test_full_disk(folder, text, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longscan.runtime.files.os.fsync", full)
    result = call("run", "--model", folder, "--texts", text, "--train-length", 64, "--lengths", 128, "--method", "none",
                  "--out", tmp_path / "x.st", code=1)  # fmt: skip
    assert "No space left" in result.stderr and not list(tmp_path.glob("*.st"))


def test_generate_needs_one_prompt(folder):
    assert "either" in call("generate", "--model", folder, code=2).stderr
    assert "empty" in call("generate", "--model", folder, "--prompt", "", code=1).stderr
    assert "No such file" in call("generate", "--model", folder, "--prompt-file", "/nowhere", code=1).stderr


def test_control_c_ends_with_130(folder, text, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("longscan.calibrate.stages.measure.measured", interrupted)
    result = call("run", "--model", folder, "--texts", text, "--train-length", 64, "--lengths", 128,
                  "--out", tmp_path / "x.st", code=130)  # fmt: skip
    assert result.stderr.strip().splitlines()[-1].startswith("Error: interrupted")


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "longscan.calibrate", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "eval" in done.stdout and "run" in done.stdout


def test_out_of_memory_stops_with_advice_and_keeps_the_batch(folder, text, tmp_path, monkeypatch):
    from longscan.calibrate.search import shared_layers as prefix
    from longscan.runtime.reading import forward

    out, tokens = tmp_path / "a.safetensors", []

    def full(*arguments, **options):
        tokens.append(arguments[2].residual.shape[:2].numel())
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(prefix, "run_layers", full)
    arguments = ("run", "--model", folder, "--texts", text, "--train-length", 64, "--lengths", "128", "--samples", 4)
    result = call(*arguments, "--out", out, code=1)
    assert result.stderr.splitlines()[-1] == (
        "Error: out of memory; give a smaller measure.batch_tokens in the recipe, or shorter --lengths"
    )
    assert len(tokens) == 1 and not out.exists() and forward.run_layers is not full  # not tried again with less


@pytest.mark.parametrize("group", [(), ("recipes",)])
def test_a_group_without_a_command_shows_its_help(group):
    result = CliRunner().invoke(cli, list(group))
    assert result.output.startswith("Usage: ") and "Commands:" in result.output
