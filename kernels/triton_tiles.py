"""Wide loads and stores taken apart in registers.

A program is one warp. It holds its data as tuples of (R, S) tiles, one value a thread: a tuple is a thread's registers,
and nothing crosses lanes. Rows are read and written as (T, R, S, V) tiles: T rows of V neighbours, all in one thread,
for each of the R x S threads. Halving takes such a tile apart; it costs no instruction.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unpack(tile):
    """(T, R, S, V) -> T V tiles (R, S), in the order t V + v."""
    T: tl.constexpr = tile.shape[0]
    R: tl.constexpr = tile.shape[1]
    S: tl.constexpr = tile.shape[2]
    V: tl.constexpr = tile.shape[3]
    if T > 1:
        low, high = tl.split(tl.permute(tl.reshape(tile, (2, T // 2, R, S, V)), (1, 2, 3, 4, 0)))
        return unpack(low) + unpack(high)
    elif V > 1:
        low, high = tl.split(tl.permute(tl.reshape(tile, (T, R, S, 2, V // 2)), (0, 1, 2, 4, 3)))
        return unpack(low) + unpack(high)
    else:
        return (tl.reshape(tile, (R, S)),)


@triton.jit
def pack(tiles, T: tl.constexpr, V: tl.constexpr):
    """The inverse: T V tiles (R, S) -> (T, R, S, V)."""
    R: tl.constexpr = tiles[0].shape[0]
    S: tl.constexpr = tiles[0].shape[1]
    half: tl.constexpr = T * V // 2
    if T > 1:
        both = tl.join(pack(tiles[:half], T // 2, V), pack(tiles[half:], T // 2, V))  # (T/2, R, S, V, 2)
        return tl.reshape(tl.permute(both, (4, 0, 1, 2, 3)), (T, R, S, V))
    elif V > 1:
        both = tl.join(pack(tiles[:half], T, V // 2), pack(tiles[half:], T, V // 2))  # (T, R, S, V/2, 2)
        return tl.reshape(tl.permute(both, (0, 1, 2, 4, 3)), (T, R, S, V))
    else:
        return tl.reshape(tiles[0], (1, R, S, 1))


@triton.jit
def load(p, m, MASKED: tl.constexpr):
    """Pointers p (T, R, S, V) -> T V float32 tiles (R, S); if MASKED, 0 where m is false."""
    if MASKED:
        tile = tl.load(p, mask=m, other=0.0)
    else:
        tile = tl.load(p)
    return unpack(tile.to(tl.float32))
