"""The issue slots of the sm_90 binaries, held to the committed table and to the project's targets."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from longscan.kernels.scan.triton_plan import _SLOTS, SCAN_CONFIGS, fits, plan_scan

from .cases import BENCHMARKS

TABLE = {
    (row["name"], json.dumps(row["config"], sort_keys=True)): row
    for row in json.loads((BENCHMARKS.parent / "docs" / "static_cost.json").read_text())["kernels"]
}
MAIN = ("selective_scan", "selective_scan:filtered", "selective_scan:states", "causal_conv1d", "token_scores")
TOLERANCE = 0.05  # compilers differ a little


@pytest.fixture(scope="module")
def counted():
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(BENCHMARKS / "static_cost.py"), "--json", "--only", *MAIN]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {row["name"]: row for row in json.loads(done.stdout)["kernels"]}


def test_the_targets_are_met(counted):
    main, filtered = counted["selective_scan"], counted["selective_scan:filtered"]
    assert main["config"]["SPLIT"] == 1
    assert main["slots"] <= 8.5 and main["mufu"] <= 1.3
    assert filtered["slots"] <= 1.02 * main["slots"]


def test_the_committed_table_is_true(counted):
    assert set(counted) == set(MAIN)
    for name, row in counted.items():
        committed = TABLE[name, json.dumps(row["config"], sort_keys=True)]
        assert set(row) == {"name", "target", "config", "slots", "mufu", "fma", "memory", "registers", "spill_bytes"}
        assert row["target"] == "sm_90" and row["spill_bytes"] == 0
        for unit in ("slots", "mufu", "fma", "memory"):
            assert row[unit] == pytest.approx(committed[unit], rel=TOLERANCE, abs=0.02), (name, unit)


def test_the_plan_counts_with_the_table():
    unsplit = [row for (name, _), row in TABLE.items() if name == "selective_scan" and row["config"]["SPLIT"] == 1]
    by_channels = {row["config"]["CH"]: row["slots"] for row in unsplit}
    states = next(row["slots"] for (name, _), row in TABLE.items() if name == "selective_scan:states")
    assert {CH: both for CH, (both, _) in _SLOTS.items()} == pytest.approx(by_channels, rel=0.01)
    assert _SLOTS[2][1] == pytest.approx(states, rel=0.01)


def test_plans_fill_the_gpu_and_no_more():
    for channels in (1536, 4096, 5120):
        config, chunks = plan_scan(1, channels, 65536)
        warps = chunks * -(-channels // config.channels())
        assert chunks > 1 and warps >= 132 * 4 and fits(config, channels, 16)
        assert plan_scan(1, channels, 100)[1] == 1  # too short to cut
    assert plan_scan(64, 5120, 65536)[1] == 1  # rows and channels alone fill it
    assert plan_scan(1, 33, 4096)[0].CH == 1  # an odd number of channels
    assert (plan_scan(8, 4096, 8192)[0].CH, plan_scan(8, 4096, 8192)[1]) == (2, 4)  # timed: 3.4 ms, not 5.0
    assert all(fits(config, 64, 16) for config in SCAN_CONFIGS)
