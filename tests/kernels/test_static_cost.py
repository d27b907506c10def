"""The issue slots of the sm_90 binaries, held to the committed table and to the project's targets."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from longscan.kernels.scan.triton_plan import _SLOTS, SCAN_CONFIGS, fits, plan_scan

from .cases import BENCHMARKS, load_benchmark

COMMITTED = json.loads((BENCHMARKS.parent / "docs" / "static_cost.json").read_text())
TABLE = {(row["name"], json.dumps(row["config"], sort_keys=True)): row for row in COMMITTED["kernels"]}
MAIN = ("selective_scan", "selective_scan:filtered", "selective_scan:states", "causal_conv1d", "token_scores")
MODEL = load_benchmark("issue_model")
TOLERANCE = 0.05  # compilers differ a little


@pytest.fixture(scope="module")
def counted():
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(BENCHMARKS / "static_cost.py"), "--json", "--only", *MAIN, "ssd_scan"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    return {row["name"]: row for row in (*found["kernels"], *found["ssd"])}


def test_the_targets_are_met(counted):
    main, filtered = counted["selective_scan"], counted["selective_scan:filtered"]
    assert main["config"]["SPLIT"] == 1
    assert main["slots"] <= 8.5 and main["mufu"] <= 1.3
    assert filtered["slots"] <= 1.02 * main["slots"]


def test_the_committed_table_is_true(counted):
    ssd = {row["name"]: row for row in COMMITTED["ssd"]}
    assert set(counted) == {*MAIN, *ssd} and len(ssd) == 4
    for name, row in counted.items():
        committed = ssd[name] if name in ssd else TABLE[name, json.dumps(row["config"], sort_keys=True)]
        assert set(row) == set(committed)
        assert row["target"] == "sm_90" and row["spill_bytes"] == 0
        for unit in set(row) - {"name", "target", "config", "registers", "spill_bytes", "warps"}:
            assert row[unit] == pytest.approx(committed[unit], rel=TOLERANCE, abs=0.02), (name, unit)


def test_nothing_is_faster_than_its_counts(counted):
    for row in counted.values():
        assert row["modelled"] >= row.get("slots", row.get("issue"))
    ssd = [row for row in counted.values() if "bound" in row]
    assert sum(row["bound"] for row in ssd) <= 1.35  # mamba2-1.3b, 65,536 tokens


def laps(lines, warps):
    return MODEL.clocks([MODEL.parse(line) for line in lines], warps)


def test_the_model_sees_schedule_and_occupancy():
    """A load used at once costs its latency over the warps there are; used later, its latency is filled."""
    load, use, other = "LDG.E R4, desc[UR4][R2.64]", "FADD R5, R4, 1", "FMUL R7, R8, R9"
    assert laps([load, use], 1) == pytest.approx(501, rel=0.01)
    assert laps([load, use], 4) == pytest.approx(501 / 4, rel=0.05)
    assert laps([load, use, *[other] * 600], 1) == pytest.approx(1101, rel=0.01)
    assert laps([load, *[other] * 600, use], 1) == pytest.approx(602, rel=0.01)
    assert laps(["MUFU.EX2 R4, R5"] * 10, 4) == pytest.approx(80, rel=0.05)  # the pipe binds, not latency
    assert laps(["FFMA R4, R5, R6, R4"] * 10, 1) == pytest.approx(40, rel=0.05)  # each waits for the one before
    copied = ["LDGSTS.E [R1], desc[UR4][R2.64]", "LDGDEPBAR"]
    waits = [laps([*copied, f"DEPBAR.LE SB0, {groups}", *[other] * 100], 1) for groups in ("0x0", "0x4")]
    assert waits[0] > 590 and waits[1] < 150


@pytest.mark.parametrize(
    ("line", "reads", "writes"),
    [
        ("@!P0 LDG.E.128 R8, desc[UR28][R30.64+0x7c]", {"R30", "R31", "UR28", "P0"}, {"R8", "R9", "R10", "R11"}),
        ("STG.E.64 [R2.64], R4", {"R2", "R3", "R4", "R5"}, set()),
        ("IADD3 R16, P1, R10.reuse, UR26, RZ", {"R10", "UR26"}, {"R16", "P1"}),
        ("IADD3.X R16, R95, UR27, RZ, P1, !PT", {"R95", "UR27", "P1"}, {"R16"}),
        ("ISETP.GE.U32.AND P0, PT, R16, UR33, PT", {"R16", "UR33"}, {"P0"}),
        ("SHFL.UP PT, R18, R17, 0x1, RZ", {"R17"}, {"R18"}),
        ("IMAD.WIDE.U32 R20, R26, 0x10, R86", {"R26", "R86", "R87"}, {"R20", "R21"}),
    ],
)
def test_what_an_instruction_waits_for(line, reads, writes):
    found = MODEL.parse(line)
    assert (set(found.reads), set(found.writes)) == (reads, writes)


def test_what_fits_a_multiprocessor():
    assert [MODEL.warps_resident(registers, 0, 1) for registers in (128, 129, 168, 32)] == [16, 15, 12, 32]
    assert MODEL.warps_resident(64, 100 * 1024, 4) == 8  # shared memory
    assert MODEL.parse("HMMA.16816.F32.BF16 R64, R60, R8, R64").macs == 2048


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
