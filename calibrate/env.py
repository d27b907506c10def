"""`calibrate env`: what a bug report needs, and nothing that identifies anyone."""

from __future__ import annotations

import os
import platform
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from ..kernels.shared.dispatch import BACKENDS, _choose
from .errors import first_line

_PACKAGES = (
    "longscan", "torch", "numpy", "numba", "triton", "safetensors", "huggingface-hub", "tokenizers", "datasets",
    "click", "matplotlib", "PyYAML", "pydantic", "transformers", "mamba-ssm", "lm-eval",
)  # fmt: skip
_SETTINGS = (
    "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "TRITON_INTERPRET", "HF_ENDPOINT", "HF_HUB_OFFLINE", "NUMBA_CACHE_DIR",
)  # fmt: skip
_NEEDS = {"cpu": "numba", "triton": "triton"}
_NO_CACHE = "none: every process compiles; set NUMBA_CACHE_DIR"


def environment() -> dict[str, Any]:
    """Versions (None: not installed), devices, backends and the settings that change results or speed."""
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {"name": _cpu(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), **_numba()},
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "backends": {name: _backend(name) for name in BACKENDS},
        "auto": {
            place: ": ".join(_choose(place, torch.float32)) for place in ["cpu"] + ["cuda"] * torch.cuda.is_available()
        },
        "settings": {  # addresses without a name and password
            name: re.sub("//[^/@]*@", "//", _home_hidden(os.environ[name]) or "")
            for name in _SETTINGS
            if name in os.environ
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def _gpu(index: int) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(index)
    return {
        "name": found.name,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "capability": f"{found.major}.{found.minor}",
    }


def _numba() -> dict[str, Any]:
    """Its threads (None: it cannot be imported), and where its compiled loops are kept (None: nowhere)."""
    if _backend("cpu") != "ready":  # whose line says why
        return {"numba_threads": None, "numba_cache": None}
    import numba

    from ..kernels.shared.cpu_cache import cache_folder

    return {"numba_threads": numba.get_num_threads(), "numba_cache": _home_hidden(cache_folder())}


def _home_hidden(path: str | None) -> str | None:
    """A path that can be shown: nothing that identifies anyone."""
    home = os.path.expanduser("~")
    return "~" + path.removeprefix(home) if path and home != "/" and path.startswith(home + os.sep) else path


def _backend(name: str) -> str:
    """Whether it can run, found out by importing what it needs."""
    needs = _NEEDS.get(name)
    if needs and not find_spec(needs):
        return f"missing; pip install {needs}"
    try:
        if needs:
            import_module(needs)
    except Exception as error:  # wrong versions beside each other raise anything
        return f"fails: {first_line(error, 120)}"
    if name == "triton" and not torch.cuda.is_available():
        return "installed, no GPU"
    return "ready"


def render(found: dict[str, Any]) -> str:
    """For people: paste it into a bug report."""
    lines = [f"{name:<18}{value or '-'}" for name, value in found["packages"].items()]
    cpu = found["cpu"]
    lines += [
        f"{'python':<18}{found['python']}",
        f"{'system':<18}{found['system']}",
        f"{'cpu':<18}{cpu['name']}, {cpu['cores']} cores, threads: torch {cpu['torch_threads']}, "
        f"numba {cpu['numba_threads'] or '-'}",
        f"{'numba cache':<18}{cpu['numba_cache'] or (_NO_CACHE if cpu['numba_threads'] else '-')}",
        f"{'cuda / hip':<18}{found['cuda'] or '-'} / {found['hip'] or '-'}",
    ]
    lines += [f"{'gpu':<18}{g['name']}, {g['memory_gib']} GiB, sm {g['capability']}" for g in found["gpus"]] or [
        "gpu               -"
    ]
    lines += [f"{'backend ' + name:<18}{state}" for name, state in found["backends"].items()]
    lines += [f"{'auto on ' + device:<18}{choice}" for device, choice in found["auto"].items()]
    lines += [f"{name}={value}" for name, value in found["settings"].items()]
    return "\n".join(lines)
