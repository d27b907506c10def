"""How a scan is laid out on the GPU: what a thread holds, and into how many chunks time is cut."""

from __future__ import annotations

from dataclasses import dataclass

from ..shared.triton_launch import LANES

PROCESSORS = 132  # of an H100 or H200
REGISTERS = 128  # a thread may take at most: 16 warps then fit a multiprocessor, four a scheduler
WARPS = 16
LEAST_CHUNK = 128  # steps; below, starting a chunk costs more than it wins


@dataclass(frozen=True)
class ScanConfig:
    """CH channels a group of SPLIT threads."""

    CH: int = 2
    SPLIT: int = 1

    def channels(self, lanes: int = LANES) -> int:
        """Channels a program owns."""
        return lanes // self.SPLIT * self.CH


# What a GPU chooses between. benchmarks/static_cost.py counts each, the tests compile each.
SCAN_CONFIGS = (ScanConfig(), ScanConfig(CH=1), ScanConfig(CH=1, SPLIT=2))
# Issue slots per (token, channel, state) of the full and of the state-only pass, from docs/static_cost.json.
_SLOTS = {2: (8.4, 5.8), 1: (8.3, 6.2)}
# What a slot takes beside two channels', timed where each fills the GPU (H100, D 4096, batch 8, 8192 tokens: 4.96 ms
# with one channel in 2 chunks, 3.42 with two in 4): every thread loads B and C, here for half as many channels.
_SLOWER = {2: 1.0, 1: 1.6}


def fits(config: ScanConfig, channels: int, N: int) -> bool:
    """Whether the configuration can run these sizes: whole groups of channels, at most 16 states a thread."""
    return channels % config.CH == 0 and config.SPLIT <= N <= 16 * config.SPLIT


def plan_scan(
    batch: int, channels: int, steps: int, N: int = 16, lanes: int = LANES, processors: int = PROCESSORS
) -> tuple[ScanConfig, int]:
    """(configuration, number of chunks) of the least work a warp, times the waves of warps that the GPU needs.

    A second chunk makes the scan two passes, of which the first leaves out y. One channel a thread instead of two costs
    a little more work and makes twice the programs; where warps are 64 wide there is no other way. Chunks fill one
    wave: a few programs more would be a second.
    """
    full = WARPS * processors
    best: tuple[float, ScanConfig, int] | None = None
    for CH, (both, states) in _SLOTS.items():
        config = ScanConfig(CH, SPLIT=max(1, N // 16))
        if channels % CH or (
            CH > 1 and lanes > LANES
        ):  # AMD: the state-only pass of two channels spills scalar registers
            continue
        columns = batch * -(-channels // config.channels(lanes))
        for chunks in {1, max(1, min(full // columns, steps // LEAST_CHUNK))}:
            work = _SLOWER[CH] * CH * (both + states * (chunks - 1) / chunks) / chunks
            cost = work * -(-columns * chunks // full)
            if best is None or (cost, chunks) < (best[0], best[2]):
                best = cost, config, chunks
    assert best is not None  # one channel a thread always fits
    return best[1], best[2]
