"""What our own commands write and read again: sidecars, recipes, journals, states, evaluations, documents of runs."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

import mutate
import torch
from shared import ROOT, checkpoints
from target import IDS, Target, Wrong, same

from longscan.runtime import LM, Sidecar


def sidecar(folder: Path, lm: LM) -> Target:
    """A sidecar of every method, then what inspect, report and push make of it, and a prompt read with it."""
    from longscan.calibrate.report.inspect import describe, describe_layer, render, render_layer
    from longscan.calibrate.report.page import render as page
    from longscan.calibrate.share.card import model_card
    from longscan.calibrate.sidecars import sidecar_from_bands

    side, path = checkpoints.make_sidecar(lm), folder / "x.longscan.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    band = (side.bands[0], {name.split(".")[-1]: t for name, t in side.tensors.items()})
    made = {"texts": "someone/books#train@text", "samples": 4, "seed": 0, "lengths": [64], "method": "auto", "tokens": 9,  # noqa: E501
            "texts_sha256": "ab", "layers": [{"mean_distance": 3.0 + i} for i in range(len(lm.weights.layers))],
            "device": "cpu", "dtype": "float32", "objective": "mixed"}  # fmt: skip
    scores = [{"length": 64, "method": m, "loss": loss, "passkeys": 0.5} for m, loss in (("none", 1.5), ("both", 1.25))]
    recipe = {"name": "x", "recall": {"numbers": 5, "distractors": 1, "share": 0.5}}
    sidecar_from_bands(lm, 16, [band], recipe=recipe, calibration=made, scores=scores).write(path)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = Sidecar.read(path)
        json.dumps(describe(found))
        render(describe(found))
        render_layer(describe_layer(found, 0))
        page(found, "x", data, [])
        model_card(found, "a/b", {}).encode()
        for length in (1, 17, 40, 64, 1000, math.inf):
            found.plan(length)
        found.check_model(lm.fingerprint, "x")
        other = lm.with_sidecar(found)
        if not bool(torch.isfinite(other.prefill(IDS).logits).all()):
            raise Wrong("logits that are no numbers")

    return Target(path.read_bytes(), mutate.safetensors, read)


def recipe(folder: Path) -> Target:
    """A recipe in YAML: every setting of the default one."""
    from longscan.calibrate.recipe.recipe import load_recipe, parse_recipe, to_json

    good = to_json(load_recipe("default")).encode()
    bombs = (
        b"a: &a [x, x]\nb: &b [*a, *a]\n" + b"".join(b"c%d: &c%d [*%s, *%s]\n" % (i, i, p, p) for i, p in zip(range(40), [b"b", *[b"c%d" % i for i in range(39)]])) + b"texts: *c39\n",  # noqa: E501
        b"texts: &a\n  run: *a\n", b"<<: {samples: 3}\nsamples: 4\n", b"? [a, b]\n: 1\n", b"samples: !!python/object/apply:os.system [x]\n",  # noqa: E501
        b"samples: 0x10\n", b"samples: 1_0\n", b"lengths: [4k, 1:30]\n", b"seed: 2026-01-01\n", b"!!set {a, b}\n", b"!!omap [a: 1]\n", b"samples: !!binary aGk=\n",  # noqa: E501
        b"samples: " + b"9" * 5000 + b"\n", b"[" * 3000, b"a: " * 1000, b"--- 1\n--- 2\n", b"%YAML 9.9\n---\n", b"\t\n", b"!!map [a]\n", b"!!timestamp x\n", b"!!int x\n", b"!!float x\n", b"!!bool x\n",  # noqa: E501
    )  # fmt: skip

    def change(data: bytes, draw: Random) -> bytes:
        return draw.choice(bombs) if draw.random() < 0.02 else mutate.text(data, draw)

    def read(data: bytes) -> None:
        (folder / "r.yaml").write_bytes(data)
        parsed = load_recipe(str(folder / "r.yaml"))
        if to_json(parse_recipe(to_json(parsed), "again")) != to_json(parsed):
            raise Wrong("the recipe it records reads back as another one")

    folder.mkdir(parents=True, exist_ok=True)
    return Target(good, change, read)


def journal(folder: Path) -> Target:
    """journal.sqlite: what it gives out must be what was put in, or nothing."""
    from longscan.calibrate.work.journal import NAME, Journal

    values = {f"key {i}": {"losses": [i + 0.5, 1e-17 * i], "right": [True], "probability": [0.25]} for i in range(30)}
    with closing(Journal(folder, "a run", True)) as made:
        for key, value in values.items():
            made.put(key, value)
    path = folder / NAME

    def change(data: bytes, draw: Random) -> bytes:
        if draw.random() < 0.5:
            return mutate.damage(data, draw)
        other = folder / "other.sqlite"
        other.write_bytes(data)
        with closing(sqlite3.connect(other)) as db:
            [row] = db.execute("SELECT rowid, value FROM scores ORDER BY random() LIMIT 1").fetchall()
            value = draw.choice(
                (
                    None,
                    1,
                    0.5,
                    b"\xff",
                    "",
                    "[" * 100_000,
                    mutate.damage(str(row[1]).encode(), draw).decode("utf-8", "replace"),
                )
            )
            db.execute("UPDATE scores SET value = ? WHERE rowid = ?", [value, row[0]])
            db.commit()
        return other.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with closing(Journal(folder, "a run", True)) as found:
            for key, value in values.items():
                if found.get(key) not in (None, value):
                    raise Wrong(f"the journal gives another value for {key}")
            found.put("new", 1)

    return Target(path.read_bytes(), change, read)


def journal_tensors(folder: Path) -> Target:
    """Tensors of a journal, likewise."""
    from longscan.calibrate.work.journal import Journal

    wanted = {"0.0": torch.rand(4, 8), "0.1": torch.arange(6, dtype=torch.int32), "0.2": torch.rand(3)}
    with closing(Journal(folder, "a run", True)) as made:
        made.put_tensors("measurements", wanted)
    [path] = folder.glob("*.part.safetensors")

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with closing(Journal(folder, "a run", True)) as kept:
            found = kept.tensors("measurements")
        if found is not None and (
            set(found) != set(wanted)
            or any(found[k].dtype != t.dtype or not torch.equal(found[k], t) for k, t in wanted.items())
        ):
            raise Wrong("the journal gives other tensors")

    return Target(path.read_bytes(), mutate.safetensors, read)


def state(folder: Path, lm: LM, total: float | None) -> Target:
    """A saved state, also of an unfinished prompt with tokens that wait for decimation."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "state"
    lm.prefill(IDS, total_length=total).state.save(path)
    rest = IDS[:, : (int(total) - IDS.shape[1]) if total else 7]
    wanted = lm.prefill(rest, state=lm.load_state(path)).logits

    def read(data: bytes) -> None:
        path.write_bytes(data)
        same(lm.prefill(rest, state=lm.load_state(path)).logits, wanted, "logits")

    return Target(path.read_bytes(), mutate.safetensors, read)


def evaluation(folder: Path) -> Target:
    """A document of `eval --json`, as `report --eval` reads it."""
    from longscan.calibrate.report.eval_figures import pictures, read_eval

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "eval.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        pictures([read_eval(path)], 256)

    made = json.loads((ROOT / "docs" / "demo" / "demo-passkey.json").read_bytes())
    small = json.dumps({**made, "rows": made["rows"][:6]})
    return Target(small.encode(), mutate.text, read)


def run_document(folder: Path, lm: LM) -> Target:
    """A document of `run --json`, as `report --run` shows it."""
    from longscan.calibrate.report.page import read_run, render

    folder.mkdir(parents=True, exist_ok=True)
    side, path = checkpoints.make_sidecar(lm), folder / "run.json"
    side.write(folder / "side")
    sidecar = (folder / "side").read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        render(side, "x", sidecar, [], run=read_run(path, sidecar))

    document = {"sha256": hashlib.sha256(sidecar).hexdigest(), "cost": 3.2, "seconds": 14.5, "tokens": 1000}
    return Target(json.dumps(document).encode(), mutate.text, read)
