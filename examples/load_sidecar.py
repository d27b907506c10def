"""A model and its sidecar, read by LongScan itself: hide a pass key in a long text and ask for it.

    python examples/load_sidecar.py --sidecar demo.longscan.safetensors [--model demo] [--text FILE] [--characters N]

The sidecar is what `calibrate run --model MODEL` writes (`make demo` leaves one in build/demo).
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

from longscan.runtime import load

KEY, QUESTION = " The pass key is 59173. Remember it.", " What is the pass key? The pass key is"


def long_prompt(text: Path | None, characters: int) -> str:
    """So many characters of a text, by default the demo's novel, with the key in their middle."""
    source = files("longscan.calibrate").joinpath("demo/evaluation.txt") if text is None else text
    whole = source.read_text(encoding="utf-8")[:characters]
    return whole[: len(whole) // 2] + KEY + whole[len(whole) // 2 :] + QUESTION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, a folder or a Hub id")
    parser.add_argument("--sidecar", required=True, help="a file or a Hub id")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--characters", type=int, default=4000)
    args = parser.parse_args()
    prompt = long_prompt(args.text, args.characters)
    for name, lm in (("plain", load(args.model)), ("filtered", load(args.model, args.sidecar))):
        print(f"{name:10}{''.join(lm.generate(prompt, max_new_tokens=8))!r}")


if __name__ == "__main__":
    main()
