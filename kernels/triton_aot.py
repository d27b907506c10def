"""Ahead-of-time compilation of every kernel, without a GPU: registers, spills and shared memory for tests and docs."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .triton_backend import CONV_CONFIG, SCAN_CONFIG, SCORES_CONFIG
from .triton_conv import conv_silu
from .triton_scan import carry, chunk_scan
from .triton_scores import scores

_INTS = re.compile(r"^s[xdBCzgs][_a-z]*$")
_FLOAT32 = {"A", "D", "bias", "threshold", "scale", "weight", "initial", "states", "last", "delta_sum", "out"}


def target(name: str) -> GPUTarget:
    """sm_90 -> CUDA 9.0; gfx942 -> HIP."""
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name[3:]), 32)
    return GPUTarget("hip", name, 64)


def _variants() -> Iterator[tuple[Any, dict[str, Any], int]]:
    everything = ("D", "Z", "BIAS", "THRESHOLD", "SCALE", "INDEX", "MASK", "INITIAL")
    scan = {k: v for k, v in SCAN_CONFIG.items() if k != "num_warps"}
    for N in (8, 16):
        for given in (everything, ("D", "Z", "BIAS", "INITIAL"), ("D", "Z", "BIAS", "THRESHOLD")):
            for state_only in (True, False):
                flags: dict[str, Any] = {f"HAS_{name}": name in given for name in everything}
                flags |= {"SOFTPLUS": True, "STATE_ONLY": state_only, "N": N, "BLOCK_N": N, **scan}
                yield chunk_scan, flags, SCAN_CONFIG["num_warps"]
        for initial in (True, False):
            yield carry, {"HAS_INITIAL": initial, "N": N, "BLOCK_N": N, **scan}, SCAN_CONFIG["num_warps"]
    for on in (True, False):
        tile = {k: v for k, v in CONV_CONFIG.items() if k != "num_warps"}
        yield conv_silu, {"HAS_BIAS": on, "HAS_BEFORE": on, "HAS_MASK": on, "W": 4, **tile}, CONV_CONFIG["num_warps"]
        tile = {k: v for k, v in SCORES_CONFIG.items() if k != "num_warps"}
        flags = {"HAS_BIAS": on, "SOFTPLUS": on, "HAS_MASK": on, "HAS_WEIGHT": on, **tile}
        yield scores, flags, SCORES_CONFIG["num_warps"]


def _signature(kernel: Any, constants: dict[str, Any]) -> dict[str, str]:
    """bf16 activations, float32 parameters and states, int64 strides: the types of a real launch."""
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif _INTS.match(name):
            types[name] = "i64"
        elif name in ("L", "steps", "channels", "chunks", "chunk_size"):
            types[name] = "i32"
        elif name == "index":
            types[name] = "*i64"
        elif name == "mask":
            types[name] = "*i1"
        else:
            types[name] = "*fp32" if name in _FLOAT32 else "*bf16"
    return types


def compile_all(name: str) -> list[dict[str, Any]]:
    """Compile every kernel and variant for a target; one row each."""
    rows = []
    for kernel, constants, warps in _variants():
        source = ASTSource(kernel, _signature(kernel, constants), constexprs=dict(constants))
        built = triton.compile(source, target=target(name), options={"num_warps": warps})
        registers, spills = _resources(built)
        rows.append(
            {
                "kernel": kernel.__name__,
                "target": name,
                "constants": {k: v for k, v in constants.items() if v},
                "registers": registers,
                "spill_bytes": spills,
                "shared_bytes": built.metadata.shared,
            }
        )
    return rows


def _resources(built: Any) -> tuple[int, int]:
    """(registers a thread, bytes spilled)."""
    if "amdgcn" in built.asm:
        text = built.asm["amdgcn"]
        found = {k: int(v) for k, v in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", text)}
        return found["vgpr_count"], 4 * (found["vgpr_spill_count"] + found["sgpr_spill_count"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]
