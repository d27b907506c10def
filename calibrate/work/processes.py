"""The processes that share a run. Whole batches are dealt out, so results do not depend on how many they are.

Every rank walks through the same search and sees the same scores; only the batches are divided. Results are combined by
sums over tensors in which every entry was filled by exactly one rank, which is exact, and by merging sketches.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...runtime.files import runs
from ..errors import UserError

T = TypeVar("T")
_PATIENCE = timedelta(hours=6)  # for a rank that still works; one that died closes its connections at once
_MARKER = "longscan-failed-"  # then the run, its port, and the number of the process that launched it
LOST = "a process of this run was lost; run the same command again to go on from its journal"


@dataclass(frozen=True)
class Processes:
    """rank of size processes; Processes() is one alone."""

    rank: int = 0
    size: int = 1

    def mine(self, batches: Sequence[T]) -> Iterator[tuple[int, T]]:
        """The batches this rank computes, with their numbers."""
        return ((i, batch) for i, batch in enumerate(batches) if i % self.size == self.rank)

    def total(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """The same tensor of every rank, in order of rank; all have one shape."""
        if self.size == 1:
            return [values]
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values.contiguous())
        return found

    def spread(self, values: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Rank 0's tensor, on every rank; the others give None."""
        found = torch.empty(shape, dtype=dtype) if values is None else values.contiguous()
        if self.size > 1:
            dist.broadcast(found, src=0)
        return found

    def agree(self, value: Any) -> Any:
        """What rank 0 has."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


ALONE = Processes()


def join(device: str) -> tuple[Processes, str]:
    """The processes torchrun started this process in, and the device of this rank; alone if there is none.

    Raises UserError if the other processes cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE, device
    if device == "spread":
        raise UserError("--device spread gives one process all GPUs; start it without torchrun")
    rank = int(os.environ["RANK"])
    if device == "auto" and torch.cuda.is_available():
        device = "cuda"
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot reach the other processes ({error}); start them with torchrun") from error
    _end_when_stopped()
    return Processes(rank, size), device


def leave() -> None:
    """Part from the other processes when all is done: torch's threads may abort one that just ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end(code: int) -> NoReturn:
    """End this process. One that has not left the others waits neither for them nor for torch's threads."""
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _end_when_stopped() -> None:
    """torchrun stops the others (SIGTERM) when one of its processes dies: say so, even if a collective is waiting.

    Python runs signal handlers between two of its own instructions, which a wait for a lost GPU never reaches; the byte
    that wakes this thread is written by the C handler at once.
    """
    waiting, written = os.pipe()
    os.set_blocking(written, False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)

    def watch() -> None:
        while os.read(waiting, 1) != bytes([signal.SIGTERM]):
            pass  # another signal, which Python handles itself
        complain(LOST)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def is_loss(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())


def complain(message: str) -> None:
    """One `Error:` line on stderr; of several processes on a machine only the first to fail prints its own."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not _is_first_to_fail(Path(tempfile.gettempdir())):
        return
    # With its end in one write: under torchrun, which buffers nothing, another process may write between two.
    print(f"Error: {message}\n", end="", file=sys.stderr, flush=True)


def _is_first_to_fail(folder: Path) -> bool:
    """Whether no other process of this run has left its marker; those of launchers that have ended are removed."""
    run = f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ.get('MASTER_PORT', '0')}-{os.getppid()}"
    try:
        for old in folder.glob(f"{_MARKER}*"):
            if not runs(old.name.rsplit("-", 1)[1]):
                with suppress(OSError):  # another user's, or removed just now
                    old.unlink()
        os.close(os.open(folder / f"{_MARKER}{run}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError:
        pass  # no place for the marker: better said twice than not at all
    return True
