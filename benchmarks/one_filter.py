"""One filter set by hand, all layers and stretched: how theta and the mass factor m act on kinds of text.

    python benchmarks/one_filter.py NAME=PATH[:GLOB] ... [--log-theta -4.6,-3,-1.6] [--mass 0.2] [--lengths 512,4096]

"novel" is the part of the bundled text that a calibration chooses on, half of its passkeys among other numbers; with
--apart none of them are, and all in a column "salted". The others are as travel.py takes them. Asked in calibration's
wordings, of keys that no evaluation asks for: these are texts to develop on. Prints one Markdown table: loss beside the
plain model's in nats, its standard error, passkeys answered.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import torch
from travel import BATCH, TAIL, documents

from longscan.calibrate.lengths import parse_lengths
from longscan.calibrate.measure.measuring import measure
from longscan.calibrate.recipe.recipe import Recall
from longscan.calibrate.search.candidates import FilterPick
from longscan.calibrate.search.tables import Tables, band_entry
from longscan.calibrate.search.tasks import passkey_answered, tail_losses
from longscan.calibrate.sidecars import sidecar_from_bands
from longscan.calibrate.texts.passkey import PLAIN_HAYSTACK, Salt
from longscan.calibrate.texts.prompts import DEPTHS, PasskeyTrials, passkey_trials
from longscan.calibrate.texts.sources import read_texts, split_documents
from longscan.calibrate.texts.tokens import encode
from longscan.calibrate.texts.windows import at_length, token_windows
from longscan.runtime import LM, load

MEASURED, HELD_OUT = 768, 0.25  # windows of L; as the demo's recipe has them


def filtered(lm: LM, tables: Tables, pick: FilterPick, length: int) -> LM:
    """The model with this filter at this length."""
    band = band_entry("filter", {length: pick}, None, [length], tables.train_length)
    tensors = tables.band([length], {length: pick}, None, None, only=True)
    return lm.with_sidecar(sidecar_from_bands(lm, tables.train_length, [(band, tensors)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*", metavar="NAME=PATH[:GLOB]")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--lengths", type=parse_lengths, default=[512, 4096, 16384])
    parser.add_argument("--log-theta", default="-4.6,-3,-2.5,-2,-1.5,-1,-0.6")
    parser.add_argument("--mass", default="0.2")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--passkeys", type=int, default=8, help="a depth, of which there are five")
    parser.add_argument("--apart", action="store_true", help="the novel's passkeys with and without other numbers")
    args = parser.parse_intermixed_args()
    lm = load(args.model)
    L, every = lm.config.train_length or args.lengths[0], tuple(range(len(lm.weights.layers)))
    own, held = split_documents(read_texts("demo", role="run"), HELD_OUT)
    layers = measure(lm, token_windows(encode(lm, own), L, MEASURED, tail=L, seed=0), BATCH)
    tables = Tables(layers, L, lambda *_: torch.empty(0))  # a stretched fit sweeps nothing
    salt = Salt(**Recall().model_dump())
    kinds = {"novel": (held, PLAIN_HAYSTACK if args.apart else salt)}
    if args.apart:
        kinds["salted"] = held, replace(salt, share=1.0)
    for given in args.texts:
        name, _, source = given.partition("=")
        kinds[name] = documents(source, args.lengths[-1]), PLAIN_HAYSTACK
    cells: dict[tuple[str, str], list[str]] = {}

    def read(one: LM, windows: torch.Tensor, trials: PasskeyTrials) -> tuple[torch.Tensor, float]:
        losses = tail_losses(one, windows, TAIL, "auto", BATCH)
        return losses, float(passkey_answered(one, trials, "auto", BATCH)[0].double().mean())

    for texts, salt in kinds.values():
        docs = encode(lm, texts)
        windows = token_windows(docs, args.lengths[-1], args.windows, tail=TAIL, seed=3)
        for length in args.lengths:
            depths = [depth for _ in range(args.passkeys) for depth in DEPTHS]
            asked = at_length(windows, length), passkey_trials(lm, docs, length, depths, "calibrate", 3, salt)
            plain, answered = read(lm, *asked)
            cells.setdefault(("plain", ""), []).append(f"{plain.mean():.3f}, {answered:.0%}")
            for theta in args.log_theta.split(","):
                for mass in args.mass.split(","):
                    pick = FilterPick(float(theta), every, min(1.0, float(mass) * L / length))
                    losses, answered = read(filtered(lm, tables, pick, length), *asked)
                    more = losses - plain
                    error = float(more.std()) / math.sqrt(len(more))
                    text = f"{more.mean():+.4f} ± {error:.4f}, {answered:.0%}"
                    cells.setdefault((f"e^{theta}", mass), []).append(text)
    print("| theta | m | " + " | ".join(f"{name}, {n}" for name in kinds for n in args.lengths) + " |")
    print("|---" * (2 + len(kinds) * len(args.lengths)) + "|")
    for (theta, mass), row in cells.items():
        print(f"| {theta} | {mass} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
