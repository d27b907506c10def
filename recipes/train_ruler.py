"""Fine-tune a trained rung of bytes on RULER's needles at its training length: does a task of others carry to 64 L?

    python recipes/train_ruler.py --rung mamba-0.2m-1024 --texts build/texts --trained build/1024 \
        --work build/1024-ruler --export build/mamba-0.2m-1024-ruler

Half of a batch are prompts in RULER's own wording (niah_single_1 and niah_multikey_2, arXiv 2404.06654) of at most L
bytes, with words of the training texts for keys; the other half are what the rung was trained on last. --trained is the
--work folder of train_demo.py. Seeded; goes on from its checkpoint; progress is recorded in WORK/curve.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from pathlib import Path

import torch
from ladder import RUNGS
from train_data import ANSWER, NONE, TEXT, Corpus, Marked, mixed_samples, tensors
from train_demo import ROWS, SIZE, Run, bits_per_byte, export, losses, passkeys_at_L
from train_vocabulary import Bytes

TOP_RATE, WARMUP = 1e-3, 20
OPENING = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n"
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
QUESTION = (
    "\nWhat is the special magic number for {key} mentioned in the provided text? "
    "The special magic number for {key} mentioned in the provided text is"
)


def words(corpus: Corpus) -> list[str]:
    """What keys are made of, two at a time."""
    return sorted({word.decode() for novel in corpus.austen for word in re.findall(rb"\b[a-z]{4,10}\b", novel)})


def needle(key: str, value: str) -> Marked:
    before = f"One of the special magic numbers for {key} is: ".encode()
    return [(before, TEXT), (value.encode(), NONE), (b".", TEXT)]


def prompt(rng: random.Random, known: list[str], size: int, *, several: bool) -> Marked:
    """Up to `size` bytes: one needle among FILLER, or a text of needles alone of which one is asked for."""

    def pair() -> tuple[str, str]:
        return "-".join(rng.sample(known, 2)), str(rng.randrange(10**6, 10**7))

    key, value = pair()
    question = QUESTION.format(key=key).encode()
    lines = [needle(key, value)]
    room = size - len(OPENING) - len(question) - len(value) - 1
    room = room if rng.random() < 0.6 else rng.randrange(room + 1)
    room -= sum(len(part) for part, _ in lines[0])
    while True:
        other = needle(*pair()) if several else [(FILLER.encode(), TEXT)]
        room -= 1 + sum(len(part) for part, _ in other)
        if room < 0:
            break
        lines.insert(rng.randrange(len(lines) + 1), other)
    out: Marked = [(OPENING.encode(), TEXT)]
    for i, line in enumerate(lines):
        out += [(b"\n", TEXT), *line] if i else line
    return [*out, (question, TEXT), (f" {value}".encode(), ANSWER)]


def ruler_samples(rng: random.Random, corpus: Corpus, known: list[str], rows: int, size: int) -> list[Marked]:
    """Prompts of both kinds, half and half, running text behind them up to `size` bytes."""
    samples = [prompt(rng, known, size, several=row % 2 > 0) for row in range(rows)]
    return [[*sample, (b". " + corpus.slice(rng, size), TEXT)] for sample in samples]


@torch.no_grad()
def needles_found(run: Run, known: list[str], length: int, seed: int, trials: int = 40) -> dict[str, float]:
    """Share of the numbers answered whole (teacher-forced greedy) by kind, prompts of at most `length` bytes."""
    rng, shares = random.Random(f"evaluate {seed}"), {}
    for kind in ("single", "multikey"):
        samples = [prompt(rng, known, length, several=kind == "multikey") for _ in range(trials)]
        ids, marks = tensors([[*sample, (b"\0" * length, NONE)] for sample in samples], length)
        right = run.model(ids)[:, :-1].argmax(-1) == ids[:, 1:]
        shares[kind] = float((right | (marks[:, 1:] != ANSWER)).all(1).float().mean())
    return shares


class Tuning(Run):
    """A run whose weights start from another's."""

    def __init__(self, args: argparse.Namespace, vocabulary: Bytes) -> None:
        super().__init__(args, vocabulary)
        if not self.path.exists():
            self.model.load_state_dict(torch.load(args.trained / "checkpoint.pt", weights_only=True)["model"])

    def rate(self) -> float:
        """Warm up, then fall linearly to zero."""
        return TOP_RATE * min((self.mixed + 1) / WARMUP, 1 - self.mixed / self.args.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_bytes = [rung for rung, said in RUNGS.items() if "vocabulary" not in said]
    parser.add_argument("--rung", choices=of_bytes, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="folder made by demo_texts.py")
    parser.add_argument("--trained", type=Path, required=True, help="the rung's own --work folder")
    parser.add_argument("--work", type=Path, required=True, help="checkpoint and curve")
    parser.add_argument("--export", type=Path, required=True, help="folder for the finished checkpoint")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(family="mamba", length=SIZE, d_model=None, layers=None)
    args = parser.parse_args()
    parser.set_defaults(**{name: said for name, said in RUNGS[args.rung].items() if name != "steps"})
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    corpus, vocabulary = Corpus.read(args.texts), Bytes()
    known, run, rows = words(corpus), Tuning(args, vocabulary), ROWS * SIZE // args.length
    evaluation = vocabulary.encode((args.texts / "austen" / "persuasion.txt").read_bytes())
    began = time.time()
    with (args.work / "curve.jsonl").open("a") as curve:

        def record(**values: object) -> None:
            line = json.dumps({"step": run.step, "seconds": round(time.time() - began, 1), **values})
            print(line, file=curve, flush=True)
            print(line, flush=True)

        while run.mixed < args.steps:
            rng = random.Random(f"ruler {args.seed} {run.step}")
            samples = mixed_samples(rng, corpus, rows // 2, args.length, 1.0)
            samples += ruler_samples(rng, corpus, known, rows - rows // 2, args.length)
            text, said = losses(run.model, *tensors(samples, args.length))
            run.update(text + 0.5 * said)
            run.mixed += 1
            if run.step % 20 == 0:
                record(text=round(text.item(), 4), answers=round(said.item(), 4))
            if run.step % 50 == 0:
                run.save()
            if run.step % 100 == 0 or run.mixed == args.steps:
                bits = round(bits_per_byte(run.model, vocabulary, args.length, evaluation), 4)
                passkeys = passkeys_at_L(run.model, vocabulary, args.length, evaluation, args.seed)
                record(needles=needles_found(run, known, args.length, args.seed), passkeys=passkeys, bits_per_byte=bits)
    run.save()
    export(run.model, args.export, vocabulary, args.length)


if __name__ == "__main__":
    main()
