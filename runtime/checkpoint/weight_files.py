"""Which files of a folder hold a model's weights: by their fixed names, whatever else lies beside them."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError, os_reason
from ..files import parse_json

SAFE, BIN, INDEX = "model.safetensors", "pytorch_model.bin", ".index.json"
_NO_MODEL = {"adapter_model": "an adapter, to be merged into its model", "longscan.safetensors": "a sidecar"}


def main_file(folder: Path, *names: str) -> Path | None:
    """The file to begin with: safetensors before `.bin`, one file before an index of shards. None if there is none."""
    order = names or (SAFE, SAFE + INDEX, BIN, BIN + INDEX)
    return next((folder / name for name in order if (folder / name).is_file()), None)


def weight_map(index: Path) -> dict[str, str]:
    """A shard index as tensor -> file. Raises CheckpointError unless it is one, with all files beside it."""
    try:
        found = dict(parse_json(index.read_text(encoding="utf-8"))["weight_map"])
    except OSError as error:
        raise CheckpointError(f"cannot read {index.name}: {os_reason(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index.name} is not a shard index; download the model again") from error
    strange = [str(name) for name in found.values() if not isinstance(name, str) or Path(name).name != name]
    if strange or not found:
        what = f"names {strange[0]!r}, outside the folder" if strange else "names no shards"
        raise CheckpointError(f"{index.name} {what}; download the model again")
    return found


def weight_files(folder: Path, name: str) -> tuple[list[Path], dict[str, str] | None]:
    """The files that hold the weights, and the index that lists them if there is one.

    Raises CheckpointError if there are none, or a shard is missing. `name`: of the model, for messages.
    """
    first = main_file(folder)
    if first is None:
        others = sorted(
            path.name for end in ("safetensors", "bin", "pt", "pth", "gguf") for path in folder.glob(f"*.{end}")
        )
        said = [
            next((f"{other} ({why})" for part, why in _NO_MODEL.items() if part in other), other) for other in others
        ]
        found = f" (found {', '.join(said)})" if said else ""
        raise CheckpointError(
            f"{name} has neither {SAFE} nor {BIN}{found}; give a folder with a checkpoint's weights under these names"
        )
    if not first.name.endswith(INDEX):
        return [first], None
    index = weight_map(first)
    paths = [folder / shard for shard in sorted(set(index.values()))]
    missing = [path.name for path in paths if not os.path.isfile(path)]  # False for a name that no file can have, too
    if missing:
        raise CheckpointError(f"{first.name}: shard missing: {', '.join(missing)}; download the model again")
    return paths, index
