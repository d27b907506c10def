"""The sidecar: round trip, look-ups, and every refusal."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from longscan.runtime import Plan, Sidecar, SidecarError, load
from longscan.runtime.sidecar.interpolation import look_up

from ..checkpoints import make_sidecar, random_tensors, write_state_spaces


def test_round_trip_and_stable_bytes(sidecar, tmp_path):
    sidecar.write(tmp_path / "a")
    again = Sidecar.read(tmp_path / "a")
    again.write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert again.metadata == sidecar.metadata and set(again.tensors) == set(sidecar.tensors)
    assert again.metadata["schema"] == "longscan.sidecar" and again.metadata["schema_version"] == "1"
    assert all(isinstance(value, str) for value in again.metadata.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_plans(sidecar):
    assert sidecar.plan(16) == Plan("none", 16) == sidecar.plan(16, "both")
    assert sidecar.plan(17) == Plan("both", 17, {1: 30})
    assert sidecar.plan(1000, "filter") == Plan("filter", 1000)
    assert sidecar.plan(1000, "decimate").scan_lengths(3, 1) == [1000, 31, 31]
    with pytest.raises(ValueError, match="unknown method"):
        sidecar.plan(100, "magic")


def test_thresholds_interpolate_in_log_log(sidecar):
    low, high = sidecar.tensors["bands.0.thresholds"][:, 2]
    middle = round((17 * 64) ** 0.5)
    g = sidecar.thresholds(2, middle)
    weight = torch.log(torch.tensor(middle / 17)) / torch.log(torch.tensor(64 / 17))
    wanted = torch.exp((1 - weight) * low[1::2].log() + weight * high[1::2].log())
    torch.testing.assert_close(g[1::2], wanted)
    assert (g[::2] == 0).all() and g.dtype == torch.float32
    assert (sidecar.thresholds(2, 16) == 0).all()
    assert torch.equal(sidecar.thresholds(2, 17), low) and torch.equal(sidecar.thresholds(2, 64), high)


def test_beyond_the_last_row_it_holds_and_the_plan_says_so(sidecar):
    high = sidecar.tensors["bands.0.thresholds"][-1, 2]
    for length in (65, 4096, math.inf):
        assert torch.equal(sidecar.thresholds(2, length), high)
    assert sidecar.plan(65, "filter").extrapolated and not sidecar.plan(64, "filter").extrapolated
    assert sidecar.plan(65, "filter") == Plan("filter", 65)  # the flag is a remark, not a setting


def test_look_up_rules():
    table = torch.tensor([[0.0, 1.0], [0.0, 4.0], [2.0, 0.0]])
    at = [10, 20, 40]
    assert look_up(at, table, 30).tolist() == [0.0, 4.0]  # a stored 0 stays 0 up to the next entry; no log of 0
    assert look_up(at, table, 40).tolist() == [2.0, 0.0]
    assert look_up(at, table, 14, "nearest").tolist() == [0.0, 1.0]
    assert look_up(at, table, 15, "nearest").tolist() == [0.0, 1.0]
    assert look_up(at, table, 16, "nearest").tolist() == [0.0, 4.0]
    assert look_up(at, table, 5).tolist() == [0.0, 1.0] and look_up(at, table, 99).tolist() == [2.0, 0.0]
    assert look_up(at, table, 99, "nearest").tolist() == [2.0, 0.0]
    assert look_up(at[:2], table[:2] + 1, 40).tolist() == [1.0, 5.0]  # the last row holds: no line goes on


def test_score_weights(sidecar):
    assert torch.equal(sidecar.score_weights(1, 64), sidecar.tensors["bands.0.weights"][0])
    assert (sidecar.score_weights(0, 64) == 1).all()


def test_another_models_sidecar_is_refused(tmp_path, sidecar):
    other = write_state_spaces(tmp_path / "other", random_tensors(seed=3))
    with pytest.raises(SidecarError, match=r"model_fingerprint: found .* expected .*; load the model"):
        load(other, sidecar)
    lines = replace(sidecar, metadata={**sidecar.metadata, "model_fingerprint": "a\nb", "base_model": "c\u2028d"})
    with pytest.raises(SidecarError, match=r"found 'a\\nb' \(made for 'c\\u2028d'\)"):
        load(other, lines)


def _change(sidecar, what):
    tensors, metadata = dict(sidecar.tensors), dict(sidecar.metadata)
    policy = json.loads(metadata["policy"])
    band = policy["bands"][0]
    if what == "version":
        metadata["schema_version"] = "2"
    elif what == "schema":
        metadata["schema"] = "something"
    elif what == "nan":
        tensors["bands.0.thresholds"] = torch.full_like(tensors["bands.0.thresholds"], torch.nan)
    elif what == "negative":
        tensors["bands.0.weights"] = -tensors["bands.0.weights"]
    elif what == "shape":
        tensors["bands.0.thresholds"] = tensors["bands.0.thresholds"][:, :2].clone()
    elif what == "order":
        tensors["bands.0.lengths"] = torch.tensor([64, 17])
    elif what == "too short":
        band["lengths"] = [8]
    elif what == "extra":
        tensors["bands.7.lengths"] = torch.tensor([1])
    elif what == "gone":
        del tensors["bands.0.thresholds"]
    elif what == "key":
        del metadata["base_model"]
    elif what == "method":
        band["method"] = "magic"
    elif what == "decode":
        policy["filter_decode"] = "no"
    elif what == "policy":
        policy["soften"] = True
    elif what == "train_length":
        metadata["train_length"] = "-4"
    elif what == "endless train_length":
        metadata["train_length"] = "9" * 5000
    elif what == "length beyond floats":
        band["lengths"] = [10**400]
    elif what == "log_theta":
        band["log_theta"] = {}
    elif what == "half":
        metadata["recipe"] = r'{"name": "\ud800"}'
    elif what == "nested":
        metadata["scores"] = "[" * 10**5
    metadata["policy"] = json.dumps(policy)
    return Sidecar(tensors, metadata)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("version", "schema_version.*upgrade"),
        ("schema", "schema: found"),
        ("nan", "bands.0.thresholds.*NaN"),
        ("negative", "bands.0.weights"),
        ("shape", r"bands.0.thresholds: found .*\(2, 2, 48\), expected .*\(2, 3, 48\)"),
        ("order", "bands.0.lengths"),
        ("too short", "lengths"),
        ("extra", "bands.7.lengths"),
        ("gone", "bands.0.thresholds"),
        ("key", "base_model"),
        ("method", "method"),
        ("decode", "policy"),
        ("policy", "soften"),
        ("train_length", "train_length"),
        ("endless train_length", "train_length"),
        ("length beyond floats", "policy.bands.0.lengths"),
        ("log_theta", "policy.bands.0.log_theta"),
        ("half", "recipe: found .*half a surrogate pair"),
        ("nested", "scores: found .*nested more than 100 levels"),
    ],
)
def test_refusals_name_the_key(sidecar, what, message, tmp_path):
    broken = _change(sidecar, what)
    with pytest.raises(SidecarError, match=message) as caught:
        broken.write(tmp_path / "x")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_unreadable_files(tmp_path, sidecar):
    sidecar.write(tmp_path / "a")
    (tmp_path / "cut").write_bytes((tmp_path / "a").read_bytes()[:-40])
    with pytest.raises(SidecarError, match="not a readable"):
        Sidecar.read(tmp_path / "cut")
    with pytest.raises(SidecarError, match="no sidecar file"):
        Sidecar.read(tmp_path / "none.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path, sidecar, monkeypatch):
    path = tmp_path / "a"
    sidecar.write(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="space"):
        sidecar.write(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_missing_tables_say_what_to_do(plain):
    side = make_sidecar(plain)
    tensors = {k: v for k, v in side.tensors.items() if k.split(".")[-1] not in ("layers", "keep", "weights")}
    metadata = {**side.metadata, "policy": side.metadata["policy"].replace('"both"', '"filter"')}
    filter_only = Sidecar(tensors, metadata)
    assert filter_only.plan(64) == Plan("filter", 64)
    with pytest.raises(SidecarError, match="calibrate with --method"):
        filter_only.plan(64, "decimate")
