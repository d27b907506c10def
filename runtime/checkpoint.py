"""A checkpoint's files -> tensors by their state-spaces names. Nothing from the files is ever executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError
from .source import Source

_SAFE, _BIN = "model.safetensors", "pytorch_model.bin"


def read_tensors(source: Source, convert: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """Every tensor of the checkpoint, sharded or not, each passed through `convert` as it is read.

    At most one tensor of a safetensors file exists twice; `.bin` files are mapped, and read with weights_only. Names
    are those of the state-spaces layout. Raises CheckpointError on missing, truncated or malformed files and on values
    that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(source):
        for name, tensor in _read_file(path):
            name = "backbone.embedding.weight" if name == "backbone.embeddings.weight" else name
            if not tensor.is_floating_point():
                raise CheckpointError(f"{path.name}: {name} holds {tensor.dtype}, expected floats; download it again")
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{path.name}: {name} holds NaN or infinite values; download the model again")
            tensors[name] = convert(name, tensor)
    return tensors


def weight_files(source: Source) -> list[Path]:
    """The files that hold the weights; safetensors before `.bin`, one file before an index of shards."""
    single = source.find(_SAFE)
    if single:
        return [single]
    index = source.find(_SAFE + ".index.json")
    if index:
        return _shards(index)
    single = source.find(_BIN)
    if single:
        return [single]
    index = source.find(_BIN + ".index.json")
    if index:
        return _shards(index)
    raise CheckpointError(f"{source.name} has neither {_SAFE} nor {_BIN}; give a folder with a checkpoint's weights")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index.name} is not a shard index; download the model again") from error
    paths = [index.parent / name for name in names if isinstance(name, str) and Path(name).name == name]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or len(paths) != len(names):
        found = ", ".join(missing) or "names outside the folder"
        raise CheckpointError(f"{index.name}: shard missing: {found}; download the model again")
    return paths


def _read_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
            for name in names:  # opened anew for each: an open file keeps every page that was read of it resident
                with safe_open(path, framework="pt") as file:
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path.name} is not a readable safetensors file ({error}); download it again"
            ) from error
        return
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # weights_only raises UnpicklingError, RuntimeError, EOFError and others
        first = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path.name} cannot be read with weights_only ({first}); download it again, or convert it to safetensors"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path.name} is not a dictionary of tensors; give a state-spaces checkpoint")
    yield from loaded.items()
