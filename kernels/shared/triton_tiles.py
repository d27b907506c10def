"""Wide loads and stores taken apart in registers.

A program is one warp. It holds its data as tuples of (R, S) tiles, one value a thread: a tuple is a thread's registers,
and nothing crosses lanes. Memory is read and written as (R, S, V) tiles, V neighbours for each of the R x S threads;
halving takes such a tile apart and costs no instruction. (A tile of several rows of V would let Triton 3.6 lay the rows
over lanes, and pay for it with a trip through shared memory.)
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
    if V > 1:
        low, high = tl.split(tl.permute(tl.reshape(tile, (R, S, 2, V // 2)), (0, 1, 3, 2)))
        return unpack(low) + unpack(high)
    else:
        return (tl.reshape(tile, (R, S)),)


@triton.jit
def pack(tiles):
    """The inverse: V tiles (R, S) -> (R, S, V)."""
    V: tl.constexpr = len(tiles)
    R: tl.constexpr = tiles[0].shape[0]
    S: tl.constexpr = tiles[0].shape[1]
    if V > 1:
        both = tl.join(pack(tiles[: V // 2]), pack(tiles[V // 2 :]))  # (R, S, V/2, 2)
        return tl.reshape(tl.permute(both, (0, 1, 3, 2)), (R, S, V))
    else:
        return tl.reshape(tiles[0], (R, S, 1))


@triton.jit
def load(p, m, MASKED: tl.constexpr):
    """Pointers p (R, S, V) -> V float32 tiles (R, S); if MASKED, 0 where m is false."""
    if MASKED:
        tile = tl.load(p, mask=m, other=0.0)
    else:
        tile = tl.load(p)
    return unpack(tile.to(tl.float32))


@triton.jit
def load_run(p, m, COUNT: tl.constexpr, MASKED: tl.constexpr):
    """COUNT neighbours a thread, V at a time, of which p (R, S, V) is the first -> COUNT float32 tiles (R, S)."""
    tiles = ()
    for j in tl.static_range(COUNT // p.shape[2]):
        tiles = tiles + load(p + j * p.shape[2], m, MASKED)
    return tiles
