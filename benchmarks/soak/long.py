"""A stream of millions of tokens through the demo, filtered and open-ended: flat memory, and equal when interrupted.

The stream is read twice, in the same random pieces. The second reading is saved to a file and loaded again into a new
model at random points; every piece's logits must have the same bits as in the first.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from shared import EVALUATION as TEXT
from shared import keep

from longscan.runtime import LM, load


def resident() -> int:
    """Bytes of this process in memory now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))


def pieces(lm: LM, tokens: int, seed: int) -> Iterator[torch.Tensor]:
    """The evaluation text over and over, `tokens` in all, in pieces of 1 to 60,000 tokens."""
    ids = torch.tensor(lm.tokenizer.encode(TEXT.read_text(encoding="utf-8")).ids)
    draw, at = random.Random(seed), 0
    while at < tokens:
        size = min(draw.randint(1, 60_000), tokens - at)
        yield ids[torch.arange(at, at + size) % len(ids)][None]
        at += size


def read(sidecar: Path, tokens: int, seed: int, saves: int) -> tuple[list[str], list[int], list[int]]:
    """Digests of each piece's last logits, resident bytes after each, and where the state was saved and loaded."""
    lm, state, found, memory, saved = load("demo", sidecar), None, [], [], []
    draw, at = random.Random(seed + 1), 0
    with tempfile.TemporaryDirectory() as folder:
        for piece in pieces(lm, tokens, seed):
            out = lm.prefill(piece, state=state, total_length=math.inf, method="filter")
            state, at = out.state, at + piece.shape[1]
            found.append(hashlib.sha256(out.logits.numpy().tobytes()).hexdigest())
            memory.append(resident())
            if draw.random() < saves * piece.shape[1] / tokens:
                state.save(Path(folder) / "state")
                lm = load("demo", sidecar)
                state = lm.load_state(Path(folder) / "state")
                saved.append(at)
    return found, memory, saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sidecar", type=Path, required=True, help="of the demo: calibrate run --model demo")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--saves", type=int, default=50, help="how often the second reading is saved, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    whole, memory, _ = read(options.sidecar, options.tokens, options.seed, 0)
    again, later, saved = read(options.sidecar, options.tokens, options.seed, options.saves)
    differ = [i for i, (a, b) in enumerate(zip(whole, again)) if a != b]
    settled = memory[len(memory) // 10 :]
    result = {
        "tokens": options.tokens,
        "pieces": len(whole),
        "saved_and_loaded": len(saved),
        "pieces_that_differ": len(differ),
        "resident_mib_after_a_tenth": settled[0] >> 20,
        "resident_mib_most": max(settled) >> 20,
        "resident_mib_most_when_interrupted": max(later) >> 20,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(result)
    keep(options.out, **result)
    if differ:
        raise SystemExit(f"Error: {len(differ)} pieces differ, the first is {differ[0]}")


if __name__ == "__main__":
    main()
