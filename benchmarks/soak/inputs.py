"""Every file that a user can hand in: how a good one is made, how it is mutated, what reading it must give.

A target's `read` either returns (read right), raises (refused, or a fault: the driver tells which), or raises Wrong.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import io
import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import mutate
import torch
from shared import BYTES, EVALUATION, ROOT, borrowed, checkpoints

from longscan.runtime import LM, Sidecar, load

IDS = torch.tensor([[(7 * k) % 60 for k in range(40)]])
SMALL = {"M": 16, "n_layer": 2, "V": 64, "N": 4}


class Wrong(Exception):
    """It was read, and what came out is not what the file says."""


@dataclass(frozen=True)
class Target:
    """data: the good file; mutate: (data, draw) -> bytes; read: what a user would do with it, given those bytes."""

    data: bytes
    mutate: Callable[[bytes, Random], bytes]
    read: Callable[[bytes], None]


def same(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    if not torch.equal(found, wanted):
        raise Wrong(f"{what}: other numbers were read than were written")


def strict(text: str | bytes) -> Any:
    """JSON in which every key is given once; ValueError otherwise."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


# What may change the numbers of a model whose weights stay as they are. Anything else that does is not understood.
ARITHMETIC = {"norm_epsilon", "layer_norm_epsilon", "mixer_rms_eps", "rms_norm", "residual_in_fp32", "time_step_limit",
              "dt_limit", "norm_before_gate", "rmsnorm", "ngroups", "n_groups", "model_type", "ssm_cfg"}  # fmt: skip


def config(folder: Path, make: Callable[[Path], Path]) -> Target:
    """config.json beside weights that stay as they are."""
    path = make(folder) / "config.json"
    good = path.read_bytes()
    wanted, values = load(folder).prefill(IDS).logits, json.loads(good)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        lm = load(folder)
        found = lm.prefill(IDS).logits
        said = strict(data)
        if lm.config.train_length is not None and not 0 < lm.config.train_length < math.inf:
            raise Wrong(f"a training length of {lm.config.train_length}")
        changed = {key for key in set(said) | set(values) if said.get(key) != values.get(key)}
        if not torch.equal(found, wanted) and not changed & ARITHMETIC:
            raise Wrong(f"other logits though only {sorted(changed)} changed")

    return Target(good, mutate.text, read)


def weights(folder: Path, make: Callable[[Path], Path]) -> Target:
    """model.safetensors, read as an independent reader of the format reads it."""
    path = make(folder) / "model.safetensors"
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}

    def read(data: bytes) -> None:
        path.write_bytes(data)
        lm = load(folder)
        size = int.from_bytes(data[:8], "little")
        header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
        for name, tensor in (("embedding", lm.weights.embedding), ("norm_f", lm.weights.norm)):
            entry = next(value for key, value in header.items() if key.startswith(f"backbone.{name}"))
            start, stop = entry["data_offsets"]
            raw = torch.frombuffer(bytearray(rest[start:stop]), dtype=kinds[entry["dtype"]]).reshape(entry["shape"])
            same(tensor, raw.float(), name)
        lm.prefill(IDS)

    return Target(path.read_bytes(), mutate.safetensors, read)


def pickled(folder: Path) -> Target:
    """pytorch_model.bin: damaged, or a dictionary of other things than tensors."""
    tensors = checkpoints.random_tensors(**SMALL)
    path = checkpoints.write_state_spaces(folder, tensors, pickled=True) / "pytorch_model.bin"
    good = path.read_bytes()

    def change(data: bytes, draw: Random) -> bytes:
        if draw.random() < 0.6:
            return mutate.damage(data, draw)
        name = draw.choice(list(tensors))
        t = tensors[name]
        other = draw.choice(
            (None, 1, "x", [t], {"a": t}, t.to_sparse(), t.int(), t.to(torch.complex64), t.bool(), t[:0], t.T, t[None],
             torch.nn.Parameter(t), t.flatten()[:1].expand(t.numel()).view(t.shape), t.new_zeros(1).expand(30_000, 20_000),  # noqa: E501
             t.new_zeros(1).expand(2**20, 2**20), t.to("meta"), t.double(), t.half(), t * math.nan, t * math.inf,
             torch.quantize_per_tensor(t, 0.1, 0, torch.qint8))
        )  # fmt: skip
        into = {**tensors, (draw.choice((name, name, name, "x", 1, None))): other}
        stream = io.BytesIO()
        torch.save(draw.choice((into, into, into, {"state_dict": into}, {"model": into, "step": 1}, [into])), stream)
        return stream.getvalue()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load(folder).prefill(IDS)

    return Target(good, change, read)


def shard_index(folder: Path) -> Target:
    """model.safetensors.index.json of two shards."""
    from safetensors.torch import save_file

    tensors = checkpoints.random_tensors(**SMALL)
    checkpoints.write_state_spaces(folder, tensors)
    wanted = load(folder).prefill(IDS).logits
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    path = folder / "model.safetensors.index.json"
    good = json.dumps({"metadata": {"total_size": 1}, "weight_map": {n: f for f, held in parts.items() for n in held}})

    def read(data: bytes) -> None:
        path.write_bytes(data)
        same(load(folder).prefill(IDS).logits, wanted, "logits")

    return Target(good.encode(), mutate.text, read)


def tokenizer(folder: Path, kind: str) -> Target:
    """tokenizer.json of one of the kinds in use, then a text there and back."""
    kinds = borrowed("tests/tokenizer_kinds.py").KINDS
    checkpoints.write_state_spaces(folder, checkpoints.random_tensors(M=8, n_layer=1, V=512, N=4))
    lm = load(folder)
    path = folder / "tokenizer.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        lm.__dict__.pop("tokenizer", None)
        for _ in lm.generate("It was a dark night, é", max_new_tokens=3):
            pass

    return Target(kinds[kind]().to_str().encode(), mutate.text, read)


def sidecar(folder: Path, lm: LM) -> Target:
    """A sidecar of every method, then what inspect, report and push make of it, and a prompt read with it."""
    from longscan.calibrate.report.inspect import describe, describe_layer, render, render_layer
    from longscan.calibrate.report.page import render as page
    from longscan.calibrate.share.card import model_card
    from longscan.calibrate.sidecars import assemble

    side, path = checkpoints.make_sidecar(lm), folder / "x.longscan.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    band = (side.bands[0], {name.split(".")[-1]: t for name, t in side.tensors.items()})
    made = {"texts": "someone/books#train@text", "samples": 4, "seed": 0, "lengths": [64], "method": "auto", "tokens": 9,  # noqa: E501
            "texts_sha256": "ab", "layers": [{"mean_distance": 3.0 + i} for i in range(len(lm.weights.layers))],
            "device": "cpu", "dtype": "float32", "objective": "mixed"}  # fmt: skip
    scores = [{"length": 64, "method": m, "loss": loss, "passkeys": 0.5} for m, loss in (("none", 1.5), ("both", 1.25))]
    recipe = {"name": "x", "recall": {"numbers": 5, "distractors": 1, "share": 0.5}}
    assemble(lm, 16, [band], recipe=recipe, calibration=made, scores=scores).write(path)

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


def _texts_of(path: Path) -> list[str]:
    from longscan.calibrate.texts.sources import read_texts

    return read_texts(str(path), role="run").documents


def jsonl(folder: Path, packed: bool) -> Target:
    """Lines of JSON, plain or compressed; each line's text as an independent reader finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("x.jsonl.gz" if packed else "x.jsonl")
    rows = [{"text": f"Line {i}, é\n", "id": i, "more": {"a": [i]}} for i in range(12)]

    def change(data: bytes, draw: Random) -> bytes:
        if packed and draw.random() < 0.5:
            return mutate.damage(data, draw)
        lines = (gzip.decompress(data) if packed else data).splitlines()
        at = draw.randrange(len(lines))
        lines[at] = mutate.text(lines[at], draw)
        made = b"\n".join(lines)
        return gzip.compress(made, 1) if packed else made

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = _texts_of(path)
        lines = (gzip.decompress(data) if packed else data).removeprefix(b"\xef\xbb\xbf").split(b"\n")
        said = [strict(line.removeprefix(b"\xef\xbb\xbf"))["text"] for line in lines if line.strip()]
        if found != [text for text in said if text is not None and text.strip()]:
            raise Wrong("other texts were read than the lines hold")

    good = "\n".join(map(json.dumps, rows)).encode()
    return Target(gzip.compress(good, 1) if packed else good, change, read)


def parquet(folder: Path, compression: str) -> Target:
    """A parquet file: its texts, or an error."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "x.parquet"
    texts = [f"Text {i} of a file of parquet, é" for i in range(50)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "id": list(range(50))}), path, compression=compression)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _texts_of(path)

    return Target(path.read_bytes(), mutate.damage, read)


def plain(folder: Path) -> Target:
    """A .txt file: the same text, or an error."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "x.txt"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if _texts_of(path) != [data.decode().removeprefix("\ufeff")]:
            raise Wrong("another text was read")

    return Target(EVALUATION.read_bytes()[:500] + "é ü 日本".encode(), mutate.damage, read)


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


def generation(folder: Path) -> Target:
    """generation_config.json: the ids that end a text."""
    checkpoints.write_state_spaces(folder, checkpoints.random_tensors(M=8, n_layer=1, V=512, N=4))
    shutil.copyfile(BYTES, folder / "tokenizer.json")

    def read(data: bytes) -> None:
        (folder / "generation_config.json").write_bytes(data)
        list(load(folder).generate("It was", max_new_tokens=3))

    return Target(b'{"eos_token_id": [0, 3], "temperature": 1.0, "transformers_version": "5"}', mutate.text, read)


def targets(folder: Path) -> dict[str, Callable[[], Target]]:
    """Makers of every target by name; each works in a folder of its own."""
    small = checkpoints.random_tensors(**SMALL)
    second = checkpoints.random_mamba2_tensors(**SMALL)

    def mamba1(at: Path) -> Path:
        return checkpoints.write_state_spaces(at, small, train_length=16)

    def mamba2(at: Path) -> Path:
        limits = {**checkpoints.MAMBA2, "dt_limit": [0.0, 10.0], "norm_before_gate": False}
        return checkpoints.write_state_spaces(at, second, ssm_cfg=limits, norm_epsilon=1e-5)

    def falcon(at: Path) -> Path:
        about = {
            "mixer_rms_eps": 1e-6,
            "layer_norm_epsilon": 1e-5,
            "state_size": 4,
            "use_bias": False,
            "train_length": 16,
        }
        return checkpoints.write_falcon(at, small, **about)

    def transformers(at: Path) -> Path:
        about = {"n_groups": 2, "time_step_limit": [0.0, {"__float__": "Infinity"}], "layer_norm_epsilon": 1e-5}
        return checkpoints.write_falcon(at, second, model_type="mamba2", tie_word_embeddings=True, **about)

    @functools.cache
    def lm() -> LM:
        return load(mamba1(folder / "lm"))

    def filtered() -> LM:
        return lm().with_sidecar(checkpoints.make_sidecar(lm()))

    P = functools.partial
    found: dict[str, Callable[[], Target]] = {}
    for make in (mamba1, mamba2, falcon, transformers):
        found[f"config {make.__name__}"] = P(config, folder / f"config-{make.__name__}", make)
    for make in (mamba1, mamba2):
        found[f"weights {make.__name__}"] = P(weights, folder / f"weights-{make.__name__}", make)
    for kind in borrowed("tests/tokenizer_kinds.py").KINDS:
        found[f"tokenizer {kind}"] = P(tokenizer, folder / f"tokenizer-{kind}", kind)
    for name, make in (("pickled weights", pickled), ("shard index", shard_index), ("generation config", generation),
                       ("recipe", recipe), ("journal", journal), ("journal tensors", journal_tensors),
                       ("text", plain), ("evaluation", evaluation)):  # fmt: skip
        found[name] = P(make, folder / name.replace(" ", "-"))
    found["sidecar"] = lambda: sidecar(folder / "sidecar", lm())
    found["run document"] = lambda: run_document(folder / "run-document", lm())
    found["state"] = lambda: state(folder / "state", filtered(), None)
    found["waiting state"] = lambda: state(folder / "waiting", filtered(), 60)
    found["jsonl"], found["jsonl.gz"] = P(jsonl, folder / "jsonl", False), P(jsonl, folder / "jsonl-gz", True)
    for packing in ("none", "snappy", "zstd"):
        found[f"parquet {packing}"] = P(parquet, folder / f"parquet-{packing}", packing)
    return found


def shown(data: bytes) -> str:
    """A mutated file for a report of a fault."""
    return base64.b64encode(data[:3000]).decode()
