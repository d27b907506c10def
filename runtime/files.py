"""Files appear whole or not at all: written under a temporary name, then renamed. What they hold is read strictly."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_HALF = re.compile("[\ud800-\udfff]")
_DEEPEST = 100  # levels of JSON: what is made of it calls itself once or more a level


def holds_half(text: str) -> bool:
    """Whether it holds half a surrogate pair, as escapes such as "\\ud800" make them: there is no UTF-8 for it."""
    return _HALF.search(text) is not None


def parse_json(text: str | bytes, *, halves: bool = False) -> Any:
    """JSON in which no object holds a key twice, of which json.loads would silently keep the last.

    halves: allow texts that hold half a surrogate pair

    Raises ValueError saying what is wrong with it, which may be that it nests too deeply.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
        return found

    def check(value: Any, levels: int) -> None:
        if levels > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} levels deep")
        if isinstance(value, str) and not halves and holds_half(value):
            raise ValueError("a text holds half a surrogate pair")
        inside = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
        for one in inside:
            check(one, levels + 1)

    try:
        found = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} levels deep") from None
    check(found, 0)
    return found


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` on success, remove it on any failure.

    What processes of this machine that were killed here left of the same file is removed, too.
    Raises OSError naming `path`, which the system's own does not do when it fails to write.
    """
    temporary = None
    try:
        mine = f".{path.name}.{socket.gethostname()}-"
        for old in path.parent.glob(f"{glob.escape(mine)}*.tmp"):
            if not runs(old.name[len(mine) :].split("-")[0]):
                old.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{mine}{os.getpid()}-", suffix=".tmp", dir=path.parent or ".")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would make a shared folder's sidecar unreadable
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def runs(pid: str) -> bool:
    """Whether the process of that number lives, or may."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):  # another user's, or no number of a process
        return True
    return True


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file with deterministic bytes: sorted names, sorted metadata. Raises OSError."""
    from safetensors.torch import save

    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    data = _sort_metadata(save(ordered, dict(metadata)))
    with replacing(path) as temporary:
        temporary.write_bytes(data)


_SEAL = "contents_sha256"


def save_sealed(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The same with the digest of its contents among the metadata, for `read_sealed`. Raises OSError."""
    save_tensors(path, tensors, {**metadata, _SEAL: digest_of(metadata, tensors)})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata that `save_sealed` wrote. Raises OSError, and ValueError unless they are what was saved."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable file of saved tensors ({error}); make it again") from error
    if metadata.pop(_SEAL, None) != digest_of(metadata, tensors):
        raise ValueError(f"{path} is not what was saved: damaged, or another file; make it again")
    return tensors, metadata


def digest_of(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over canonical metadata and tensors, 64 hex digits. Equal for equal contents."""
    found = hashlib.sha256(
        json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _sort_metadata(data: bytes) -> bytes:
    """The library writes metadata in a hash map's order, which differs from run to run; sort the header's keys."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to eight bytes
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
