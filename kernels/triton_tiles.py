"""Wide loads and stores taken apart in registers.

A program is one warp. It holds its data as tuples of (LANES, SPLIT) tiles, one value a thread: a tuple is a thread's
registers, and nothing crosses lanes. Rows are read as (LANES, SPLIT, V) tiles, V values side by side in one thread,
and halved until V tiles are left.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unpack(tile):
    """(R, S, V) -> V tiles (R, S)."""
    R: tl.constexpr = tile.shape[0]
    S: tl.constexpr = tile.shape[1]
    V: tl.constexpr = tile.shape[2]
    if V == 1:
        return (tl.reshape(tile, (R, S)),)
    else:
        low, high = tl.split(tl.permute(tl.reshape(tile, (R, S, 2, V // 2)), (0, 1, 3, 2)))
        return unpack(low) + unpack(high)


@triton.jit
def pack(tiles, V: tl.constexpr):
    """V tiles (R, S) -> (R, S, V)."""
    R: tl.constexpr = tiles[0].shape[0]
    S: tl.constexpr = tiles[0].shape[1]
    if V == 1:
        return tl.reshape(tiles[0], (R, S, 1))
    else:
        both = tl.join(pack(tiles[: V // 2], V // 2), pack(tiles[V // 2 :], V // 2))  # (R, S, V/2, 2)
        return tl.reshape(tl.permute(both, (0, 1, 3, 2)), (R, S, V))


@triton.jit
def load_row(p, count: tl.constexpr, V: tl.constexpr, m, MASKED: tl.constexpr):
    """`count` neighbours from p (R, S, 1) on, V a load -> `count` float32 tiles (R, S).

    m (R, S, 1): which threads read, if MASKED; the others get 0.
    """
    values = ()
    for j in tl.static_range(0, count, V):
        o = j + tl.arange(0, V)[None, None, :]
        if MASKED:
            tile = tl.load(p + o, mask=m, other=0.0)
        else:
            tile = tl.load(p + o)
        values = values + unpack(tile.to(tl.float32))
    return values
