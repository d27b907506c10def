"""Ahead-of-time compilation of every kernel, without a GPU: for the tests, and for benchmarks/static_cost.py.

python -m longscan.kernels.aot sm_90      one JSON list: registers, spills and shared memory of each variant
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .conv.triton import CONV_CONFIG
from .conv.triton import STEP_CONFIG as CONV_STEP_CONFIG
from .conv.triton_kernel import conv_silu, conv_step
from .norm.triton import GATED_CONFIG, INNER_CONFIG, NORM_CONFIG
from .norm.triton_kernel import gated_rms, inner_rms, rms
from .scan.triton import CARRY_CONFIG, STEP_CONFIG
from .scan.triton_kernel import carry, scan
from .scan.triton_plan import REGISTERS, SCAN_CONFIGS, ScanConfig
from .scan.triton_step import step
from .scores.triton import SCORES_CONFIG
from .scores.triton_kernel import scores
from .shared.triton_launch import FUSED, LANES
from .sketch.triton import SKETCH_CONFIG, sketch
from .ssd.triton import CARRY_CONFIG as SSD_CARRY_CONFIG
from .ssd.triton import (
    CHUNK,
    OUTPUTS_CONFIG,
    PAIRS_CONFIG,
    TOKEN_CONFIG,
    pairs_products,
    products,
    states_config,
    states_products,
    tile,
)
from .ssd.triton_kernel import ssd_carry, ssd_outputs, ssd_pairs, ssd_states, ssd_token

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
OPTIONS = ("D", "Z", "BIAS", "THRESHOLD", "SCALE", "INDEX", "MASK", "INITIAL")
PLAIN = ("D", "Z", "BIAS")

# The types of a real launch: bf16 activations, float32 parameters and states, strides that fit 32 bits.
_FLOAT32 = {
    "A", "BC", "D", "bias", "threshold", "scale", "weight", "initial", "state", "states", "pairs", "last", "delta_sum",
    "out", "columns", "kept", "whole", "part", "total",
}  # fmt: skip
_OTHER = {
    "index": "*i64", "mask": "*i1", "top": "*i32", "shift": "*i32", "counts": "*i32", "mass": "*i64",
    "low": "fp32", "high": "fp32", "epsilon": "fp32",
}  # fmt: skip
_INT32 = re.compile(
    r"^(s[xdzgBCDs]_[btdghw]|L|steps|channels|chunks|chunk_size|heads|shared|groups|M|rank|rest|s[xza])$"
)
# Tensors and rows start at multiples of 16 bytes and elements; these, and what a kernel does not specialise, anywhere.
_ANY = {"ss_d", "ss_w", "heads", "shared", "groups", "low", "high", "epsilon"}


@dataclass(frozen=True)
class Variant:
    """One kernel with its compile-time constants. `units`: (token, channel, state)s a thread does in its inner loop, or
    in all where `loop` is false; without states, (token, channel)s."""

    name: str  # public function[:variant]
    kernel: Any
    constants: dict[str, Any]
    warps: int
    units: float
    loop: bool = True
    stages: int = 0  # 0: the target's default, as in a launch that names none
    activations: str = "bf16"
    registers: int = 0  # the most a thread may take, on NVIDIA's chips; 0: any

    @property
    def config(self) -> dict[str, Any]:
        """The constants a GPU would tune."""
        tuned = ("CH", "SPLIT", "UNROLL", "BLOCK_T", "BLOCK_D")
        return {k: v for k, v in self.constants.items() if k in tuned} | {"num_warps": self.warps}


def scan_variant(
    name: str, config: ScanConfig, given: tuple[str, ...] = PLAIN, N: int = 16, lanes: int = LANES, even: bool = True
) -> Variant:
    """The scan with these options; the state-only pass where the name says :states."""
    flags: dict[str, Any] = {f"HAS_{option}": option in given for option in OPTIONS}
    flags |= {"SOFTPLUS": True, "STATE_ONLY": name.endswith(":states"), "EVEN": even, "N": N, "LANES": lanes}
    return Variant(name, scan, flags | asdict(config), 1, config.CH * N / config.SPLIT, registers=REGISTERS)


def _tile(name: str, kernel: Any, config: dict[str, int], flags: dict[str, Any], units: int, loop: bool) -> Variant:
    constants = flags | {k: v for k, v in config.items() if k != "num_warps"}
    return Variant(name, kernel, constants, config["num_warps"], units / (LANES * config["num_warps"]), loop)


def variants(lanes: int = LANES) -> Iterator[Variant]:
    """Every kernel; the scan in every configuration, and with every option in one."""
    main = SCAN_CONFIGS[0]
    for config in SCAN_CONFIGS:
        yield scan_variant("selective_scan", config, lanes=lanes)
    yield scan_variant("selective_scan:filtered", main, (*PLAIN, "THRESHOLD"), lanes=lanes)
    yield scan_variant("selective_scan:states", main if lanes == LANES else SCAN_CONFIGS[1], lanes=lanes)
    yield scan_variant("selective_scan:all", ScanConfig(CH=1), OPTIONS, N=8, lanes=lanes, even=False)
    yield _tile("inner_rms_norm", inner_rms, INNER_CONFIG, {"BLOCK": 256}, 256, False)
    grid = {"UNIT": 2.0**36, "HEAD": 6, "SEGMENTS": 7, "ROOM": 512}
    yield _tile("sketch", sketch, SKETCH_CONFIG, grid, SKETCH_CONFIG["BLOCK_T"], True)
    for on in (True, False):
        name, wide = "add_rms_norm" if on else "rms_norm", {"BLOCK": 4096}
        yield _tile(name, rms, NORM_CONFIG, {"HAS_ADDED": on} | wide, 4096, False)
        flags = {"HAS_WEIGHT": True, "GATE_LAST": on} | wide
        yield _tile("gated_rms_norm" + (":gate_last" if on else ""), gated_rms, GATED_CONFIG, flags, 4096, False)
        flags = {"HAS_BIAS": on, "W": 4}
        one = CONV_STEP_CONFIG["BLOCK_D"]
        yield _tile("causal_conv1d_step" + ("" if on else ":bare"), conv_step, CONV_STEP_CONFIG, flags, one, False)
        carried = {"HAS_INITIAL": on, "N": 16}
        yield _tile("selective_scan:carry", carry, CARRY_CONFIG, carried, CARRY_CONFIG["BLOCK_D"] * 16, True)
        kind = "" if on else ":bare"
        names = ("HAS_D", "HAS_Z", "HAS_BIAS", "HAS_THRESHOLD", "HAS_SCALE")
        flags = dict.fromkeys(names, on) | {"SOFTPLUS": True, "N": 16, "BLOCK_N": 16}
        yield _tile("selective_step" + kind, step, STEP_CONFIG, flags, STEP_CONFIG["BLOCK_D"] * 16, False)
        wide = {"EVEN": True, "CH": 4, "LANES": lanes}
        flags = {"HAS_BIAS": on, "HAS_BEFORE": on, "HAS_MASK": on, "W": 4} | wide
        yield _tile("causal_conv1d" + kind, conv_silu, CONV_CONFIG, flags, CONV_CONFIG["UNROLL"] * 4 * LANES, True)
        flags = {"HAS_BIAS": on, "SOFTPLUS": on, "HAS_MASK": on, "HAS_WEIGHT": on} | wide
        yield _tile("token_scores" + kind, scores, SCORES_CONFIG, flags, SCORES_CONFIG["UNROLL"] * 4 * LANES, True)


def ssd_variants(cuda: bool = True) -> Iterator[Variant]:
    """Mamba-2's kernels at the published sizes (64 channels a head, 128 states), others, and with every option."""

    def pair(kind: str, given: tuple[str, ...], P: int = 64, N: int = 128, dtype: str = "bf16") -> Iterator[Variant]:
        every = given == OPTIONS
        flags: dict[str, Any] = {f"HAS_{option}": option in given for option in OPTIONS}
        flags |= {"SOFTPLUS": True, "D_WIDE": every, "LIMITED": every}
        torch_dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
        flags |= products(P, N, torch_dtype, cuda)
        for name, kernel, config, sizes in (
            ("states", ssd_states, states_config(N), states_products(flags)),
            ("pairs", ssd_pairs, PAIRS_CONFIG, pairs_products(flags, torch_dtype)),
            ("outputs", ssd_outputs, OUTPUTS_CONFIG, flags),
        ):
            used = {k: v for k, v in sizes.items() if k in kernel.arg_names}
            block = used["Q"] * used.get("BLOCK_P", 1) * N / LANES
            warps, stages = config["num_warps"], config["num_stages"]
            yield Variant(f"ssd_scan:{name}{kind}", kernel, used, warps, block / warps, name != "pairs", stages, dtype)

    yield from pair("", PLAIN)
    yield from pair(":filtered", (*PLAIN, "THRESHOLD"))
    yield from pair(":256", PLAIN, N=256)
    yield from pair(":float32", PLAIN, dtype="fp32")
    yield from pair(":256:float32", PLAIN, N=256, dtype="fp32")
    yield from pair(":all", OPTIONS, P=48, N=16)
    for on in (True, False):
        kind = "" if on else ":bare"
        flags = {"HAS_INITIAL": on, "P": 64, "N": 128, "CHUNK": CHUNK, **SSD_CARRY_CONFIG}
        del flags["num_warps"]
        yield Variant("ssd_scan:carry" + kind, ssd_carry, flags, SSD_CARRY_CONFIG["num_warps"], 4)
        flags = dict.fromkeys(("HAS_D", "HAS_Z", "HAS_BIAS", "HAS_THRESHOLD", "HAS_SCALE", "LIMITED", "D_WIDE"), on)
        flags |= {"SOFTPLUS": True, **tile(64, 128)}
        yield Variant("ssd_step" + kind, ssd_token, flags, TOKEN_CONFIG["num_warps"], 64, loop=False)


def _signature(
    kernel: Any, constants: dict[str, Any], activations: str
) -> tuple[dict[str, str], dict[tuple[int], list[list[Any]]]]:
    types, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
            continue
        if _INT32.match(name):
            types[name] = "i32"
        else:
            types[name] = _OTHER.get(name, "*fp32" if name in _FLOAT32 else f"*{activations}")
        if name not in _ANY and not kernel.params[i].do_not_specialize:
            aligned[(i,)] = [["tt.divisibility", 16]]
    return types, aligned


def build(variant: Variant, name: str) -> Any:
    """The compiled kernel for sm_80, sm_90, ... or gfx942."""
    types, aligned = _signature(variant.kernel, variant.constants, variant.activations)
    source = ASTSource(variant.kernel, types, constexprs=dict(variant.constants), attrs=aligned)
    cuda = name.startswith("sm_")
    target = GPUTarget("cuda", int(name[3:]), 32) if cuda else GPUTarget("hip", name, 64)
    options = {"num_warps": variant.warps, **FUSED}
    if variant.stages:
        options["num_stages"] = variant.stages
    if cuda and variant.registers:
        options["maxnreg"] = variant.registers
    return triton.compile(source, target=target, options=options)


def tool(name: str, cubin: bytes, *options: str) -> str:
    """What cuobjdump or nvdisasm, which Triton's wheel ships, prints about a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
        return subprocess.run([path, *options, file.name], capture_output=True, text=True, check=True).stdout


def resources(built: Any) -> dict[str, int]:
    """registers a thread, spill_bytes a thread, shared_bytes a program."""
    if "amdgcn" in built.asm:
        text = built.asm["amdgcn"]
        found = {k: int(v) for k, v in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", text)}
        registers, spills = found["vgpr_count"], 4 * (found["vgpr_spill_count"] + found["sgpr_spill_count"])
    else:
        usage = re.findall(r"(REG|STACK|LOCAL):(\d+)", tool("cuobjdump", built.asm["cubin"], "-res-usage"))
        counts = {k: int(v) for k, v in usage}
        registers, spills = counts["REG"], counts["STACK"] + counts["LOCAL"]
    return {"registers": registers, "spill_bytes": spills, "shared_bytes": built.metadata.shared}


def compile_all(name: str) -> list[dict[str, Any]]:
    """Compile every kernel and variant for a target; one row each."""
    rows = []
    cuda = name.startswith("sm_")
    for variant in (*variants(LANES if cuda else 64), *ssd_variants(cuda)):
        row = {"name": variant.name, "kernel": variant.kernel.__name__, "target": name, "config": variant.config}
        rows.append(row | resources(build(variant, name)))
    return rows


if __name__ == "__main__":
    print(json.dumps(compile_all(sys.argv[1])))
