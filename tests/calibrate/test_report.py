"""The report: its numbers against their definitions, and the page in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shlex
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from longscan.calibrate.commands import cli
from longscan.calibrate.errors import UserError
from longscan.calibrate.report.analyze import FLOOR, analyze, attention_map
from longscan.calibrate.report.figures import passkeys, pictures
from longscan.calibrate.report.plots import tokens
from longscan.calibrate.share.card import model_card
from longscan.calibrate.sidecars import sidecar_from_bands
from longscan.calibrate.stages.texts import recorded
from longscan.calibrate.summary import command, headline, score_tables
from longscan.calibrate.texts.sources import Texts
from longscan.runtime import load
from longscan.runtime.sidecar.sidecar import Sidecar

from ..browser import CHROMIUM, DRIVER, Browser
from ..checkpoints import make_sidecar, random_tensors, write_state_spaces

L = 256  # the demo's
SMALLEST_TEXT = 8 * 96 / 72  # CSS pixels of the 8 point text in a figure at its natural size


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def side():
    """For the demo model, with everything a calibration records."""
    lm = load("demo")
    made = make_sidecar(lm, L, layer=3, keep=L)
    band = (made.bands[0], {name.split(".")[-1]: t for name, t in made.tensors.items()})
    scores = [
        {"length": 4 * L, "method": method, "loss": loss, "passkeys": answered}
        for method, loss, answered in (("none", 1.3, 0.4), ("filter", 1.2, 0.9), ("both", 1.1, 1.0))
    ]
    calibration = {"texts": "demo", "layers": [{"mean_distance": 10.0 * (1 + i)} for i in range(5)], "tokens": 9}
    return sidecar_from_bands(lm, L, [band], recipe={"name": "<demo>"}, calibration=calibration, scores=scores)


@pytest.fixture(scope="module")
def path(side, tmp_path_factory):
    path = tmp_path_factory.mktemp("side") / "demo.longscan.safetensors"
    side.write(path)
    return path


@pytest.fixture(scope="module")
def evals(path, tmp_path_factory):
    """Documents of `calibrate eval --json`."""
    folder, found = tmp_path_factory.mktemp("evals"), []
    for task in ("perplexity", "passkey", "multikey"):
        result = call("eval", "--model", "demo", "--sidecar", path, "--task", task, "--lengths", f"{L},{4 * L}",
                      "--windows", 2 if task == "perplexity" else 1, "--methods", "none,both", "--json")  # fmt: skip
        found.append(folder / f"{task}.json")
        found[-1].write_text(result.stdout)
    return found


@pytest.fixture(scope="module")
def report(path, evals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    given = [part for file in evals for part in ("--eval", file)]
    result = call(
        "report", path, "-o", folder / "r.html", *given, "--analyze", "--figures", folder / "figures", "--json"
    )
    return folder, json.loads(result.stdout)


FROM_SIDECAR = ["perplexity", "passkeys", "mean-distance", "global-channels", "thresholds", "mass", "tokens"]
FROM_EVALS = ["eval-perplexity-1", "eval-passkeys-2", "eval-multikey-3"]
FROM_MODEL = [*(f"attention-{k}" for k in (1, 2, 3, 4)), "mean-distance-length", "mean-distance-relative",
              "sum-of-delta", "prefill-time"]  # fmt: skip


def test_the_page_holds_everything_itself(report):
    folder, document = report
    assert document["figures"] == FROM_SIDECAR + FROM_EVALS + FROM_MODEL
    page = (folder / "r.html").read_text()
    assert re.findall(r'<figure id="([^"]+)"', page) == document["figures"]
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "<script" not in page
    assert "&lt;demo&gt;" in page and "<demo>" not in page
    for text in ("3.669", "3.004 *", "calibrate run --model demo", "layer 3 keeps 256",
                 "At 1,024 tokens, 4 times the training length, auto does both: perplexity 3.67 becomes 3.00 and "
                 "passkeys answered 40% become 100%."):  # fmt: skip
        assert text in page, text
    for name in document["figures"]:
        assert (folder / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        drawn = (folder / "figures" / f"{name}.svg").read_bytes()
        assert drawn.rstrip().endswith(b"</svg>") and base64.b64encode(drawn).decode() in page


def test_cost_and_times_come_from_what_was_measured(path, evals, tmp_path):
    """A sidecar holds no times; what run and eval printed does."""
    call("report", path, "-o", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "Not measured: a sidecar holds no times" in page and "give --run the output" in page
    document = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "cost": 3.25, "seconds": 41.0, "tokens": 1234}
    (tmp_path / "run.json").write_text(json.dumps(document))
    found = json.loads(call("report", path, "-o", tmp_path / "b.html", "--eval", evals[0], "--run",
                            tmp_path / "run.json", "--json").stdout)  # fmt: skip
    page = (tmp_path / "b.html").read_text()
    assert found["figures"][-2:] == ["eval-perplexity-1", "eval-prefill-time"] and "Not measured" not in page
    assert "41 s; read 1,234 tokens, 3.2 times the held-out windows" in page
    (tmp_path / "run.json").write_text(json.dumps({**document, "sha256": "0"}))
    refused = call("report", path, "-o", tmp_path / "c.html", "--run", tmp_path / "run.json", code=1)
    assert "belongs to another sidecar" in refused.stderr
    refused = call("report", path, "-o", tmp_path / "c.html", "--run", evals[0], code=1)
    assert (
        "sha256: Field required; give what `calibrate run --json` printed" in refused.stderr
        and not (tmp_path / "c.html").exists()
    )


def test_an_evaluation_of_another_model_is_not_shown_as_this_ones(path, evals, tmp_path):
    document, changed = json.loads(evals[0].read_text()), tmp_path / "e.json"
    changed.write_text(json.dumps(document | {"model": "some/other", "model_fingerprint": "0" * 64}))
    refused = call("report", path, "-o", tmp_path / "r.html", "--eval", changed, code=1)
    assert "e.json was measured on another model (some/other, not demo); give this one's" in refused.stderr
    del document["model_fingerprint"]
    for name, said in (("some/other", True), ("me/Demo-hf", False)):  # what older versions printed has a name alone
        changed.write_text(json.dumps(document | {"model": name}))
        result = call("report", path, "-o", tmp_path / "r.html", "--eval", changed)
        assert (f"e.json was measured on {name}, the sidecar was made for demo" in result.stderr) == said


@pytest.mark.parametrize("rows", [slice(1), slice(None)])
def test_what_an_evaluation_has_no_number_for_is_left_out(path, evals, tmp_path, rows):
    document, changed = json.loads(evals[0].read_text()), tmp_path / "e.json"
    for row in document["rows"][rows]:
        row.update(value=None, seconds=None, stderr=None)
    changed.write_text(json.dumps(document))
    found = json.loads(call("report", path, "-o", tmp_path / "r.html", "--eval", changed, "--json").stdout)["figures"]
    assert "eval-perplexity-1" in found and ("eval-prefill-time" in found) == (rows == slice(1))


def test_the_same_sidecar_draws_the_same_bytes(path, tmp_path):
    for name in ("a", "b"):
        call("report", path, "-o", tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_figures_show_the_sidecars_numbers(side):
    found = {picture.name: picture.figure.axes[0] for picture in pictures(side)}
    lines = {line.get_label(): line for line in found["perplexity"].lines}
    assert lines["both"].get_ydata()[0] == pytest.approx(math.exp(1.1))
    assert lines["auto takes this"].get_ydata()[0] == pytest.approx(math.exp(1.1))
    assert [bar.get_height() for bar in found["mean-distance"].patches] == [10, 20, 30, 40, 50]
    dark = [bar.get_facecolor() for bar in found["mean-distance"].patches]
    assert dark[3] != dark[0] == dark[4]
    assert [bar.get_height() for bar in found["global-channels"].patches] == [50.0] * 5
    both = next(line for line in found["tokens"].lines if "both" in line.get_label())
    assert list(both.get_ydata()) == [65536] * 3 + [L + 1] * 3
    layer, channel = 0, int(side.thresholds(0, 4 * L).argmax())
    curve = next(c for c in found["thresholds"].lines if c.get_label() == f"layer {layer}, channel {channel}")
    assert curve.get_ydata()[-1] == pytest.approx(float(side.thresholds(0, curve.get_xdata()[-1])[channel]))


def test_without_data_there_is_no_figure(tmp_path):
    lm = load(write_state_spaces(tmp_path / "tiny", random_tensors()))
    side = make_sidecar(lm)
    assert [p.name for p in pictures(side)] == ["global-channels", "thresholds", "mass", "tokens"]
    side.write(tmp_path / "a.st")
    assert "does not record mean distances" in _page(tmp_path / "a.st", tmp_path)
    nothing = sidecar_from_bands(lm, 16, [(side.bands[0].__class__((64,), "none"), {})])
    assert [p.name for p in pictures(nothing)] == ["tokens"]
    nothing.write(tmp_path / "b.st")
    assert _page(tmp_path / "b.st", tmp_path).count("<figure") == 1


def _page(path, folder):
    call("report", path, "-o", folder / "x.html")
    return (folder / "x.html").read_text()


def test_attention_is_the_matrix_itself():
    g = torch.Generator().manual_seed(0)
    n, N = 40, 3
    delta, A = torch.rand(n, generator=g), -torch.rand(N, generator=g) * 2
    B, C = torch.randn(n, N, generator=g), torch.randn(n, N, generator=g)
    found = attention_map(delta, A, B, C, layer=0, channel=0, log_decay=0.0)
    assert found.queries.tolist() == list(range(n))  # short enough for one bin a token
    for i in range(n):
        decay = [torch.exp(A * delta[j + 1 : i + 1].sum()) for j in range(i + 1)]
        row = torch.stack([(C[i] * decay[j] * delta[j] * B[j]).sum().abs() for j in range(i + 1)])
        torch.testing.assert_close(found.strength[i, : i + 1], row / row.max(), rtol=1e-3, atol=1e-6)
        first = next(j for j in range(i + 1) if row[j] >= FLOOR * row.max())
        assert int(found.reach[i]) == i - first and (found.strength[i, i + 1 :] == 0).all()


def test_analysis_agrees_with_the_calibrations_measure(tmp_path):
    from longscan.calibrate.measure.measuring import measure

    lm = load(write_state_spaces(tmp_path / "tiny", random_tensors()))
    lm = load(tmp_path / "tiny", make_sidecar(lm))
    document = torch.randint(0, 64, (300,), generator=torch.Generator().manual_seed(1))
    found = analyze(lm, [document], [32, 4096], samples=2)
    starts = torch.stack([document[:16], document[128:144]])  # of the two long windows
    layers = measure(load(tmp_path / "tiny"), starts, 16)
    assert set(found.distances) == {8, 16, 32, 64, 128}
    wanted = [float(layer.reach().mean()) for layer in layers]
    assert found.distances[16] == pytest.approx(wanted, rel=1e-4)
    assert len(found.maps) == 4 and [m.length for m in found.maps] == [16, 128, 16, 128]
    assert found.maps[0].log_decay >= found.maps[2].log_decay
    assert {(n, method) for n, method, _ in found.times} == {(32, m) for m in ("none", "filter", "decimate", "both")}
    # the sum of delta of a window cannot pass the largest one before the training length, unless the text differs
    assert all(p is None or p > 8 for p in found.passed) and len(found.passed) == 3


def test_errors(path, tmp_path):
    (tmp_path / "bad.json").write_text('{"rows": [{"length": 3}]}')
    for arguments, message, code in (
        (["--eval", tmp_path / "bad.json"], "bad.json: rows.0.method: Field required; give what `calibrate eval", 1),
        (["--eval", tmp_path / "none.json"], "cannot read none.json", 1),
        (["--texts", "demo"], "are for --analyze", 2),
        (["--analyze", "--texts", tmp_path / "short.txt"], "the longest text has", 1),
        (["-o", "/nowhere/r.html"], "no folder", 1),
    ):
        (tmp_path / "short.txt").write_text("a few words")
        result = call("report", path, "-o", tmp_path / "r.html", *arguments, code=code)
        assert message in result.stderr.strip().splitlines()[-1] and "Traceback" not in result.output
    assert not (tmp_path / "r.html").exists()
    lm = load(write_state_spaces(tmp_path / "tiny", random_tensors()))
    make_sidecar(lm).write(tmp_path / "local.st")
    result = call("report", tmp_path / "local.st", "-o", tmp_path / "r.html", "--analyze", code=1)
    assert "give its folder with --model" in result.stderr


def test_lengths_read_as_people_write_them():
    assert [tokens(n) for n in (256, 1024, 1536, 65536, 5000, 1 << 20)] == ["256", "1k", "1.5k", "64k", "5000", "1M"]


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver")
def test_in_a_browser(report):
    folder, document = report
    with Browser() as browser:
        for width in (400, 1600):
            browser.open(folder / "r.html", width)
            assert browser.console() == []
            assert browser.run("return document.documentElement.scrollWidth") <= width
            images = browser.run(
                "return [...document.images].map(i => { const r = i.getBoundingClientRect(); return "
                "{id: i.parentElement.id, done: i.complete, natural: i.naturalWidth, left: r.left, right: r.right, "
                "width: r.width, height: r.height, shown: i.checkVisibility()} })"
            )
            assert [image["id"] for image in images] == document["figures"]
            for image in images:
                assert image["done"] and image["shown"] and image["natural"] > 0 and image["height"] > 100, image
                assert image["left"] >= 0 and image["right"] <= width, image
                assert SMALLEST_TEXT * image["width"] / image["natural"] >= 9.5, image
            cut = "return [...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth).length"
            assert browser.run(cut) == 0  # every table is seen whole
            columns = {round(image["left"]) for image in images}
            assert len(columns) == (1 if width == 400 else 3)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"loss": 1.3, "passkeys": 0.4}, {"passkeys": 1.0}], "auto does both: passkeys answered 40% become 100%."),
        ([{"loss": 1.3, "passkeys": 0.4}, {"loss": 1.3, "passkeys": None}], "does both: perplexity 3.67 becomes 3.67."),
        ([{"loss": None}, {"loss": 1.1}], "auto does both."),
    ],
)
def test_a_score_that_only_one_row_has_is_not_compared(path, tmp_path, rows, said):
    side = Sidecar.read(path)
    scores = [{"length": 4 * L, "method": method, **row} for method, row in zip(("none", "both"), rows)]
    side = replace(side, metadata={**side.metadata, "scores": json.dumps(scores)})
    assert (headline(side) or "").endswith(said)
    side.write(tmp_path / "x.st")
    call("report", tmp_path / "x.st", "-o", tmp_path / "r.html")


def test_a_share_that_is_not_there_is_no_number(path):
    side = Sidecar.read(path)
    recipe = json.loads(side.metadata["recipe"])
    lacking = replace(side, metadata={**side.metadata, "recipe": json.dumps(recipe | {"recall": {"numbers": 5}})})
    assert ", some of them among other numbers" in passkeys(lacking).caption
    wrong = json.dumps(recipe | {"recall": {"numbers": 5, "share": None}})
    with pytest.raises(UserError, match=r"the sidecar: recipe.recall.share: .*; fetch the file again"):
        passkeys(replace(side, metadata={**side.metadata, "recipe": wrong}))


@pytest.mark.parametrize(
    ("given", "names", "sources"),
    [
        (["books/a.txt", "b.txt"], ["a.txt", "b.txt"], ["a.txt", "b.txt"]),
        (["a, b.txt"], ["a, b.txt"], ["a, b.txt"]),
        (["-", "owner/books#train"], ["stdin", "owner/books#train@text"], ["-", "owner/books#train@text"]),
    ],
)
def test_the_command_names_every_text_for_itself(path, given, names, sources):
    side = Sidecar.read(path)
    record = recorded(given, [Texts(name, ["x"]) for name in names])
    assert record["texts"] == ", ".join(names)
    side = replace(side, metadata={**side.metadata, "calibration": json.dumps(record)})
    parts = shlex.split(command(side))
    assert [parts[i + 1] for i, part in enumerate(parts) if part == "--texts"] == sources
    assert ("datasets:\n- owner/books\n" in model_card(side, "me/x", {})) == ("-" in sources)


@pytest.mark.parametrize("key", ["cost", "seconds"])
def test_a_run_without_its_cost_is_refused(path, tmp_path, key):
    said = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "cost": 1.0, "seconds": 2.0, "tokens": 9}
    (tmp_path / "run.json").write_text(json.dumps(said | {key: None}))
    result = call("report", path, "-o", tmp_path / "r.html", "--run", tmp_path / "run.json", code=1)
    assert f"run.json: {key}: Input should be a valid number; give what `calibrate run --json`" in result.stderr


@pytest.mark.parametrize(
    ("recall", "said"), [({"numbers": 5, "distractors": 1}, True), ({"numbers": 0, "distractors": 0}, False)]
)
def test_what_the_scores_passkeys_were_hidden_in_is_said(path, recall, said):
    """A score among other numbers is not one of `calibrate eval`, and must not be read as one."""
    side = Sidecar.read(path)
    recipe = json.loads(side.metadata["recipe"]) | {"recall": {**recall, "share": 0.5}}
    side = replace(side, metadata={**side.metadata, "recipe": json.dumps(recipe)})
    for text in (headline(side), score_tables(side)[1][0], passkeys(side).caption):
        assert ("50% of them among other numbers" in text) == said
