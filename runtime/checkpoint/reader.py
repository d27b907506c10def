"""A checkpoint's files -> tensors by their state-spaces names. Nothing from the files is ever executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, os_reason
from .source import Source
from .weight_files import weight_files

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # float8 and integers come with scales
_INSIDE = ("state_dict", "model_state_dict", "model")  # where a training loop puts the weights in its own dictionary


def read_tensors(
    source: Source, convert: Callable[[str, Tensor], Tensor], wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """Every wanted tensor of the checkpoint, sharded or not, each passed through `convert` as it is read.

    At most one tensor of a safetensors file exists twice; `.bin` files are mapped where their format allows it, and
    read with weights_only. Names are those of the state-spaces layout; gradients are not asked for. Raises
    CheckpointError on missing, truncated or malformed files, on tensors stored twice or named by the index and stored
    nowhere, and on values that are not floats, not finite, or too large for what `convert` makes of them.
    """
    tensors: dict[str, Tensor] = {}
    holders: dict[str, str] = {}  # name -> file
    paths, index = weight_files(source.folder, source.name)
    for path in paths:
        for stored, given in _read_file(path, wanted):
            name = "backbone.embedding.weight" if stored == "backbone.embeddings.weight" else stored
            if name in holders:
                raise CheckpointError(
                    f"{name} is stored twice, in {holders[name]} and in {path.name}; download the model again"
                )
            holders[name] = path.name
            tensor = given.detach()  # a Parameter would ask for gradients ever after
            if tensor.dtype not in _FLOATS or tensor.layout != torch.strided:
                kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
                raise CheckpointError(
                    f"{path.name}: {name} holds {kind}, expected float32, float16 or bfloat16; "
                    "give the unquantised model"
                )
            if tensor.is_meta or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
                raise CheckpointError(f"{path.name}: {name} is stored without all its values; save it by clone()")
            tensors[name] = convert(name, tensor)
            if not torch.isfinite(tensors[name]).all():
                if torch.isfinite(tensor).all():
                    kind = str(tensors[name].dtype).removeprefix("torch.")
                    raise CheckpointError(
                        f"{name} has values too large for {kind}; load with dtype bfloat16 or float32"
                    )
                raise CheckpointError(f"{path.name}: {name} holds NaN or infinite values; download the model again")
    known = {"backbone.embedding.weight" if n == "backbone.embeddings.weight" else n for n in index or ()}
    if lost := sorted(name for name in known - set(holders) if wanted(name)):
        raise CheckpointError(f"the shard index names {lost[0]}, which no shard holds; download the model again")
    return tensors


def _read_file(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                names = list(filter(wanted, file.keys()))
            for name in names:  # opened anew for each: an open file keeps every page that was read of it resident
                with safe_open(path, framework="pt") as file:
                    yield name, file.get_tensor(name)
        except OSError as error:
            raise CheckpointError(f"cannot read {path.name}: {os_reason(error)}") from error
        except SafetensorError as error:
            raise CheckpointError(
                f"{path.name} is not a readable safetensors file ({error}); download it again"
            ) from error
        return
    try:
        with path.open("rb") as file:
            mapped = file.read(4) == b"PK\x03\x04"  # a zip archive; torch before 1.6 wrote another format
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {os_reason(error)}") from error
    except Exception as error:  # weights_only raises UnpicklingError, RuntimeError, EOFError and others
        first = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path.name} cannot be read with weights_only ({first}); download it again, or convert it to safetensors"
        ) from error
    yield from ((name, tensor) for name, tensor in _tensors(loaded, path.name).items() if wanted(name))


def _tensors(loaded: Any, name: str) -> dict[str, Tensor]:
    """What torch.load gave as a dictionary of tensors. Raises CheckpointError saying what else it is."""
    if isinstance(loaded, dict) and len(loaded) == 1 and isinstance(loaded.get(only := next(iter(loaded))), dict):
        loaded = loaded[only] if only in _INSIDE else loaded
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{name} holds a {type(loaded).__name__}, expected a dictionary of tensors; give a state-spaces one"
        )
    strange = [key for key, value in loaded.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        other = strange[0]
        inside = next((key for key in _INSIDE if isinstance(loaded.get(key), dict)), None)
        remedy = f"save what it holds under {inside!r} by itself" if inside else "give a state-spaces checkpoint"
        raise CheckpointError(
            f"{name} is not a dictionary of tensors: {other!r} is a {type(loaded[other]).__name__}; {remedy}"
        )
    return loaded
