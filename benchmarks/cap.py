"""A sidecar whose filter keeps some of a key's digits whatever S is: g capped by a quantile of delta on such digits.

    python benchmarks/cap.py SIDECAR OUT --quantile 0.7
    python benchmarks/travel.py OUT NAME=PATH ...   # how it reads and recalls, beside SIDECAR

delta is read at L by the plain model, on the digits of keys in passkey prompts (calibration's wordings and keys, its
bundled text); each filtered channel's g is at most that quantile, so that about 1 - quantile of them pass at any
length. --of numbers takes digits of other numbers in the same prompts, to tell whether it is the wording that helps.
Prints how much of delta's mass stands on line breaks and on the first four tokens of a prompt, by layer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from longscan.calibrate.texts.passkey import Salt
from longscan.calibrate.texts.prompts import DEPTHS, PasskeyTrials, passkey_trials
from longscan.calibrate.texts.sources import read_texts
from longscan.calibrate.texts.tokens import encode
from longscan.runtime import LM, load
from longscan.runtime.reading.observer import ScanInputs
from longscan.runtime.sidecar.sidecar import Sidecar

PROMPTS, NUMBERS = 16, 5  # prompts a depth; numbers beside the key in each


class Deltas:
    """delta of every layer: (B, L, D) each."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []

    def observe(self, _: int, inputs: ScanInputs) -> None:
        self.layers.append(inputs.weights.positive(inputs.delta))


def digits(trials: PasskeyTrials, lm: LM, of: str) -> Tensor:
    """Where the digits of the keys, or of other numbers, stand in each prompt: (B, L) bool, a byte-level model's."""
    found = torch.zeros(trials.prompts.shape, dtype=torch.bool)
    for row, (ids, key) in enumerate(zip(trials.prompts.tolist(), trials.keys)):
        text = lm.tokenizer.decode(ids)
        keyed = torch.zeros(len(ids), dtype=torch.bool)
        at = text.find(key)
        while at >= 0:
            keyed[at : at + len(key)] = True
            at = text.find(key, at + 1)
        every = torch.tensor([chr(token).isdigit() for token in ids])
        found[row] = keyed if of == "keys" else every & ~keyed
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sidecar", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--quantile", type=float, default=0.7)
    parser.add_argument("--of", choices=("keys", "numbers"), default="keys")
    args = parser.parse_args()
    lm, watch, side = load(args.model), Deltas(), Sidecar.read(args.sidecar)
    documents = encode(lm, read_texts("demo", role="run"))
    L = side.train_length
    trials = passkey_trials(lm, documents, L, DEPTHS * PROMPTS, "calibrate", 0, Salt(numbers=NUMBERS))
    lm.prefill(trials.prompts, method="none", observer=watch)
    at, breaks = digits(trials, lm, args.of), trials.prompts == ord("\n")
    for i, delta in enumerate(watch.layers):
        mass = delta.sum((0, 1))
        share = [float((part.sum((0, 1)) / mass).mean()) for part in (delta * breaks[..., None], delta[:, :4])]
        print(f"layer {i}: {share[0]:.1%} of the mass on line breaks, {share[1]:.1%} on the first four of {L} tokens")
    cap = torch.stack([delta[at].quantile(args.quantile, 0) for delta in watch.layers])  # (n_layer, D)
    tensors = dict(side.tensors)
    for name, table in side.tensors.items():
        if name.endswith((".thresholds", ".both")):
            tensors[name] = torch.where(table > cap, cap.to(table), table)
            print(f"{name}: {float((table > cap).sum() / (table > 0).sum()):.0%} of the thresholds capped")
    Sidecar(tensors, side.metadata).write(args.out)


if __name__ == "__main__":
    main()
