"""Every kernel and configuration compiled ahead of time for every target, without a GPU: it builds, nothing spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from longscan.kernels.scan.triton_plan import SCAN_CONFIGS

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def compile_for(target):
    return run("-m", "longscan.kernels.aot", target)


def run(*arguments):
    """In a process of its own: here the interpreter is switched on, and jit functions cannot be compiled."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def compiled():
    """target -> rows; two targets at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(TARGETS, pool.map(compile_for, TARGETS)))


@pytest.mark.parametrize("target", TARGETS)
def test_all_kernels_compile_without_spills(compiled, target):
    rows = compiled[target]
    mamba1, mamba2 = {"scan", "carry", "step"}, {"ssd_states", "ssd_carry", "ssd_pairs", "ssd_outputs", "ssd_token"}
    assert {row["kernel"] for row in rows} == mamba1 | mamba2 | {"conv_silu", "conv_step", "scores", "sketch"} | {
        "rms", "gated_rms", "inner_rms",
    }  # fmt: skip
    for row in rows:
        assert row["spill_bytes"] == 0, row
        assert 0 < row["registers"] <= 255 or target.startswith("gfx"), row
        assert row["shared_bytes"] <= 48 * 1024, row


@pytest.mark.parametrize("target", TARGETS)
def test_every_configuration_is_among_them(compiled, target):
    found = [row["config"] for row in compiled[target] if row["name"] == "selective_scan"]
    assert found == [{**vars(config), "num_warps": 1} for config in SCAN_CONFIGS]


@pytest.fixture(scope="module")
def launched():
    return run(str(Path(__file__).with_name("launches.py")))


@pytest.mark.parametrize("kind", ["all", "bare"])
def test_arguments_of_one_compile(launched, kind):
    """A launch hands an integer of 1 to the compiler as a constant, which the interpreter never shows."""
    mamba1 = ["scan", "step", "conv_silu", "scores"]
    mamba2 = ["ssd_states", "ssd_carry", "ssd_pairs", "ssd_outputs", "ssd_token"]
    assert launched[f"one channel, {kind}"] == launched[f"one of everything, {kind}"] == mamba1
    assert launched[f"one head of one channel, {kind}"] == mamba2
    assert launched["one feature"] == ["rms", "gated_rms", "inner_rms", "conv_step"]
    assert launched["strides of 1"] == mamba1 and launched["one head"] == mamba2
    assert {"scan", "carry"} <= set(launched["two chunks of one channel"]) and launched["one value"] == ["sketch"]


def test_one_binary_serves_every_length(launched):
    first, *others = (kernels for name, kernels in launched.items() if name.endswith(" tokens"))
    assert len(first) >= 5 and others == [[]] * 6
