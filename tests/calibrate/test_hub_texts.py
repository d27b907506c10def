"""Calibration texts out of a Hub data set: the real `datasets`, streaming from the loopback hub."""

from __future__ import annotations

import io
import json

import pyarrow
import pyarrow.parquet as pq
import pytest

from longscan.runtime import Sidecar

from ..client import Client
from ..hub import Hub


def parquet(**columns) -> bytes:
    out = io.BytesIO()
    pq.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def jsonl(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        books = {
            f"data/{split}-00000-of-00001.parquet": parquet(id=[1, 2], text=[f"{split} one. " * 400, "two. " * 400])
            for split in ("train", "test")
        }
        hub.put("someone/books", books, kind="datasets")
        shards = {f"data/train-0000{k}-of-00002.parquet": parquet(text=[f"shard {k}. " * 300]) for k in range(2)}
        hub.put("someone/shards", shards, kind="datasets")
        stories = {"train.jsonl": jsonl({"plot": f"plot {k} " * 99, "story": f"story {k} " * 99} for k in range(3))}
        hub.put("someone/stories", stories, kind="datasets")
        hub.put("someone/closed", books, kind="datasets", private=True)
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with Client(hub.env(tmp_path_factory.mktemp("home"))) as client:
        yield client


def test_run_on_a_data_set(client, tmp_path):
    """Split and column are found, and written into the sidecar."""
    options = ("--lengths", 512, "--method", "none", "--out", tmp_path / "x.st")
    result = client.calibrate("run", "--model", "demo", "--texts", "someone/books", *options)
    assert result.code == 0, result.stderr
    made = json.loads(Sidecar.read(tmp_path / "x.st").metadata["calibration"])
    assert made["texts"] == "someone/books#train@text" and made["tokens"] == 400 * (len("train one. ") + len("two. "))


def test_evaluation_takes_another_split(client):
    name, first, _ = client.texts("someone/books", "eval", 10**6)
    assert name == "someone/books#test@text" and first.startswith("test one.")


def test_streaming_stops_where_it_has_enough(hub, client):
    hub.log.clear()
    name, text = client.texts("someone/shards", "run", 2000)
    assert name == "someone/shards#train@text" and text.startswith("shard 0.") and len(text) == 2000
    fetched = [line for line in hub.log if line.startswith("GET") and line.endswith(".parquet")]
    assert fetched and not any("train-00001" in line for line in fetched)


def test_jsonl_and_columns(client):
    assert client.texts("someone/stories@plot", "run", 10**6)[1].startswith("plot 0")
    [error] = client.texts("someone/stories", "run", 10**6)
    assert "plot" in error and "story" in error and "@" in error  # which of them cannot be told
    [error] = client.texts("someone/stories#dev@plot", "run", 10**6)
    assert "no split 'dev'; it has: train" in error


def test_private_and_missing_data_sets(hub, client, tmp_path):
    assert client.texts("someone/closed", "run", 10**6)[0] == "someone/closed#train@text"
    [error] = client.texts("someone/nowhere", "run", 10**6)
    assert "could not be read from the Hub" in error and "\n" not in error
    with Client(hub.env(tmp_path, token=None)) as stranger:
        assert "could not be read from the Hub" in stranger.texts("someone/closed", "run", 10**6)[0]


def test_a_dropped_connection_is_retried(hub, client):
    hub.inject("GET /lfs/", "drop")  # the shard itself, on the store it is redirected to
    assert client.texts("someone/shards", "run", 1000)[0] == "someone/shards#train@text"
    assert all(fault.times == 0 for fault in hub.faults)
