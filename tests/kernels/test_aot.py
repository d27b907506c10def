"""Every kernel compiled ahead of time for every target, without a GPU: it builds, and no register spills."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

# Compiled in a process of its own: here the interpreter is switched on, and jit functions cannot be compiled.
_SCRIPT = """
import json, sys
from longscan.kernels.triton_aot import compile_all
print(json.dumps(compile_all(sys.argv[1])))
"""


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request):
    import os

    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", _SCRIPT, request.param], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_all_kernels_compile_without_spills(compiled):
    mamba2 = {"ssd_states", "ssd_carry", "ssd_outputs", "ssd_token"}
    assert {row["kernel"] for row in compiled} == {"scan", "carry", "conv_silu", "scores", "step", *mamba2}
    for row in compiled:
        assert row["spill_bytes"] == 0, row
        assert 0 < row["registers"] <= 255 or row["target"].startswith("gfx"), row
        assert row["shared_bytes"] <= 48 * 1024, row
