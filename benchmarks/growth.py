"""Filtering while decoding: perplexity of teacher-forced text far past the training length, with and without it.

    python benchmarks/growth.py [--sidecar build/demo/demo.longscan.safetensors] [--tokens 131072] [--out FILE]
    python benchmarks/growth.py --generate 100000

Three stretches of the bundled evaluation novel are read as an open-ended sequence, each token given the filter of the
length reached so far: what `step` does with filter_decode=True. Without it, tokens are read unfiltered, as published.
That steps and open-ended passes are the same is checked on the first tokens. Perplexity per byte, by octave of the
position. --generate samples that many tokens instead (temperature 1) and prints, by octave, the perplexity of windows
of the generated text under the plain model with no other context, beside that of the novel itself.
"""

from __future__ import annotations

import argparse
import math
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from record import keep
from torch import Tensor

from longscan.runtime import LM, load

ROWS, CHECKED, PIECE = 3, 1024, 4096
SETTINGS = {"unfiltered": "none", "filtered": "filter"}


def losses(lm: LM, ids: Tensor, method: str) -> Tensor:
    """Nats of each token but the first (B, L - 1), the text read as an open-ended sequence."""
    state, found, before = None, [], None
    for piece in ids.split(PIECE, dim=1):
        out = lm.prefill(
            piece, state=state, method=method, total_length=math.inf if state is None else None, logits_to_keep=0
        )
        state = out.state
        logits = out.logits if before is None else torch.cat([before, out.logits], 1)
        targets = piece if before is not None else piece[:, 1:]
        found.append(F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none"))
        before = out.logits[:, -1:]
    return torch.cat(found, 1)


def check_steps(lm: LM, ids: Tensor, wanted: Tensor) -> None:
    """Read the first tokens one by one; end the run if that is not the same but for deltas within rounding of g."""
    state, found = lm.prefill(ids[:, :1], method="filter", total_length=math.inf).state, []
    for t in range(1, CHECKED):
        logits, state = lm.step(ids[:, t], state)
        found.append(F.cross_entropy(logits, ids[:, t + 1], reduction="none"))
    differences = (torch.stack(found, 1) - wanted[:, 1:CHECKED]).abs()
    if not (differences.median() < 1e-4 and differences.mean() < 1e-2):
        raise SystemExit(f"Error: steps and open-ended passes differ by {differences.mean():.1e}; nothing is reported")


def octaves(first: int, last: int) -> list[tuple[int, int]]:
    """[first, 2 first), [2 first, 4 first) ... up to `last`."""
    edges = [first]
    while edges[-1] < last:
        edges.append(min(2 * edges[-1], last))
    return [(0, first), *pairwise(edges)]


def generated(lm: LM, filtered: bool, prompt: Tensor, tokens: int) -> Tensor:
    """`tokens` sampled after each row of the prompt: (B, tokens)."""
    lm.filter_decode = filtered
    state, generator = lm.prefill(prompt, total_length=math.inf, method="filter").state, torch.Generator()
    generator.manual_seed(0)
    token, made = prompt[:, -1], []
    for _ in range(tokens):
        logits, state = lm.step(token, state)
        token = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        made.append(token)
    return torch.stack(made, 1)


def fresh_perplexity(plain: LM, text: Tensor, window: int) -> float:
    """Perplexity of the second halves of a text's windows, (B, L) -> one number; no context beyond the window."""
    windows = torch.cat(text[:, : text.shape[1] // window * window].split(window, dim=1))[:256]
    logits = plain.prefill(windows, logits_to_keep=0).logits[:, window // 2 : -1]
    return math.exp(F.cross_entropy(logits.flatten(0, 1), windows[:, window // 2 + 1 :].flatten()))


def teacher_forced(lm: LM, text: Tensor, out: Path | None, tokens: int) -> None:
    train_length = lm.sidecar.train_length
    starts = [k * (len(text) // ROWS) for k in range(ROWS)]
    ids = torch.stack([text[start : start + tokens] for start in starts])
    found = {name: losses(lm, ids, method) for name, method in SETTINGS.items()}
    check_steps(lm, ids, found["filtered"])
    rows = []
    print(f"{'position':>18}" + "".join(f"{name:>12}" for name in found))
    for first, last in octaves(train_length, tokens):
        part = {name: math.exp(nats[:, first : last - 1].mean()) for name, nats in found.items()}
        rows.append({"from": first, "to": last, **part})
        print(f"{first:>8} ...{last:>6}" + "".join(f"{value:>12.3f}" for value in part.values()), flush=True)
    keep(out, rows=rows, unit="perplexity per byte", stretches=ROWS)


def free_running(lm: LM, text: Tensor, out: Path | None, tokens: int) -> None:
    plain, L = load("demo"), lm.sidecar.train_length
    prompt = torch.stack([text[k * (len(text) // ROWS) :][:L] for k in range(ROWS)])
    made = {name: generated(lm, name == "filtered", prompt, tokens) for name in SETTINGS}
    rows = []
    print(f"the novel itself: {(novel := fresh_perplexity(plain, text[None], L)):.3f}")
    print(f"{'generated':>18}" + "".join(f"{name:>12}" for name in made))
    for first, last in octaves(16 * L, tokens):
        part = {name: fresh_perplexity(plain, found[:, first:last], L) for name, found in made.items()}
        rows.append({"from": first, "to": last, **part})
        print(f"{first:>8} ...{last:>6}" + "".join(f"{value:>12.3f}" for value in part.values()), flush=True)
    keep(out, rows=rows, unit="perplexity per byte of generated windows", novel=novel, rows_generated=ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sidecar", default="build/demo/demo.longscan.safetensors")
    parser.add_argument("--tokens", type=int, default=128 * 1024)
    parser.add_argument("--generate", type=int, metavar="TOKENS")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    args = parser.parse_args()
    lm = load("demo", args.sidecar)
    text = torch.tensor(list(files("longscan.calibrate").joinpath("demo/evaluation.txt").read_bytes()))
    if args.generate:
        free_running(lm, text, args.out, args.generate)
    else:
        teacher_forced(lm, text, args.out, args.tokens)


if __name__ == "__main__":
    main()
