"""`load(model, sidecar)` -> LM: where the files are, which family they hold, and the sidecar that fits."""

from __future__ import annotations

from pathlib import Path

import torch

from .attach.hybrid import load_hybrid
from .checkpoint.config import ModelConfig, is_hybrid
from .checkpoint.source import Source, expand, is_hub_id, is_known_anywhere, locate
from .errors import CheckpointError
from .families.weights import read_weights
from .model import LM
from .sidecar.sidecar import Sidecar


def load(
    model: str | Path,
    sidecar: str | Path | Sidecar | None = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    backend: str = "auto",
    filter_decode: bool | None = None,
    cuda_graph: bool = True,
) -> LM:
    """Load a Mamba language model (Mamba-1, Mamba-2 or Falcon-Mamba; hybrids with attention through transformers) and,
    if given, its sidecar.

    model: `demo`, `demo-mamba2`, a local folder, or a Hub id, in the state-spaces or the transformers layout; or
        the Hub id of a sidecar that `calibrate push` made, alone: the model is then the one it was made for
    sidecar: a file, a Hub id (`user/name`, `user/name@revision`) or a Sidecar; None is the plain model
    device: auto, cpu, cuda or cuda:N; "spread" lays a hybrid's layers over all GPUs (accelerate's device_map="auto")
    revision: of the Hub repository `model`; of the sidecar's where the model is on disk
    dtype: "auto" is float32 on a CPU and bfloat16 on a GPU; the SSM state is float32 in both
    filter_decode: filter generated tokens too, with the sidecar's g at the length reached; False as published; None as
        the sidecar says, which is True unless a published recipe made it
    cuda_graph: replay decode steps on a GPU as a CUDA graph, which takes the launches out. False where other threads
        call torch.cuda.synchronize() or draw from the GPU's default generator: CUDA and torch refuse that while one
        is captured

    Raises CheckpointError (model files) and SidecarError (sidecar malformed, or made for another model).
    """
    spread = device == "spread"
    place = pick_device("auto" if spread else device)
    source = locate(str(model), revision)
    if source.is_sidecar():
        own = Sidecar.read(source.folder)
        source = _base_model(own, str(model))
        sidecar = own if sidecar is None else sidecar
    if revision is not None and not (is_hub_id(source.name) or _takes_revision(sidecar)):
        raise CheckpointError(f"{model} is not on the Hub, so it has no revision {revision!r}; leave out --revision")
    path = source.find("config.json")
    if path is None:
        raise CheckpointError(f"{model} has no config.json; give a folder with a Mamba checkpoint")
    lm = _load_plain(source, path, None if spread else place, pick_dtype(dtype, place), backend, filter_decode)
    lm.cuda_graph = cuda_graph
    if isinstance(sidecar, str | Path):
        sidecar = Sidecar.read(sidecar, None if is_hub_id(source.name) else revision)
    return lm if sidecar is None else lm.with_sidecar(sidecar)


def _takes_revision(sidecar: str | Path | Sidecar | None) -> bool:
    """Whether `revision` says something about a sidecar: one on the Hub that names none itself."""
    return isinstance(sidecar, str) and is_hub_id(sidecar) and not expand(sidecar).exists() and "@" not in sidecar


def _load_plain(
    source: Source,
    path: Path,
    device: torch.device | None,
    dtype: torch.dtype,
    backend: str,
    filter_decode: bool | None,
) -> LM:
    """The model without a sidecar. Hybrids with attention are read through transformers."""
    if is_hybrid(path):
        return load_hybrid(source, device, dtype, backend, filter_decode)
    if device is None:
        raise ValueError("device 'spread' is for hybrids, which transformers reads; use auto, cpu or cuda")
    config = ModelConfig.read(path)
    return LM(source, config, read_weights(source, config, device, dtype), None, backend, filter_decode)


def _base_model(sidecar: Sidecar, given: str) -> Source:
    """The model a sidecar was made for, from its metadata."""
    name, revision = sidecar.metadata["base_model"], sidecar.metadata["base_model_revision"]
    if not is_known_anywhere(name):
        raise CheckpointError(
            f"{given} is the sidecar of the local model {name!r}; load that model's folder with sidecar={given!r}"
        )
    return locate(name, revision or None)


def pick_device(device: str) -> torch.device:
    """ "auto" is the GPU if there is one. Raises ValueError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; use auto, cpu or cuda") from error
    if place.type == "meta":
        raise ValueError("device 'meta' holds no values; use auto, cpu or cuda")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"no CUDA device {place.index or 0} here; use --device cpu")
    return place


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """ "auto", a torch dtype or its name. Raises ValueError for anything but floats of 16 bits and more."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ValueError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return found
