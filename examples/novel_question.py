"""Hide a pass key in a whole novel, read the novel in one go, and ask for the key.

    python examples/novel_question.py [--sidecar demo.longscan.safetensors] [--depth 0.5] [--key 31337]

The bundled model was trained at 256 bytes; the bundled novel has 467 thousand. Without --sidecar, one is calibrated
first on another novel (a few minutes; kept in build/demo) - `make demo` leaves the same file there. The answer is
generated three times: by the plain model, by the calibrated one, and once more from a state saved after the novel, to
show that a book is read only once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import torch

from longscan.calibrate.passkey import WORDINGS, is_answered
from longscan.runtime import LM, load

WORDING = WORDINGS[0]
CALIBRATED = Path("build/demo/demo.longscan.safetensors")


def novel() -> str:
    """The bundled evaluation text; the model was neither trained nor calibrated on it."""
    return files("longscan.calibrate").joinpath("demo/evaluation.txt").read_text(encoding="utf-8")


def hide(text: str, key: str, depth: float) -> str:
    """The text with the key's sentence at a share `depth` of its length."""
    at = round(depth * len(text))
    return text[:at] + WORDING.hide(key) + text[at:]


def ask(lm: LM, text: str, state_file: Path) -> tuple[str, str]:
    """Read the text, then ask twice: from the state in memory, and from the same state saved and loaded."""
    ids = torch.tensor([lm.tokenizer.encode(text).ids])
    state = lm.prefill(ids).state
    state.save(state_file)
    answers = ["".join(lm.generate(WORDING.question, 7, state=s)) for s in (state, lm.load_state(state_file))]
    return answers[0], answers[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sidecar", type=Path)
    parser.add_argument("--depth", type=float, default=0.5, help="where the key hides, 0 ... 1")
    parser.add_argument("--key", default="31337", help="five digits")
    parser.add_argument("--characters", type=int, help="read only the first so many characters of the novel")
    args = parser.parse_args()
    sidecar = args.sidecar or CALIBRATED
    if args.sidecar is None and not sidecar.exists():
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "longscan.calibrate", "run", "--model", "demo", "--out", str(sidecar)]
        subprocess.run(command, check=True)
    text = hide(novel()[: args.characters], args.key, args.depth)
    print(f"{len(text.encode()):,} bytes of novel, the key {args.key} at {args.depth:.0%} of them.")
    with tempfile.TemporaryDirectory() as folder:
        for name, lm in (("plain", load("demo")), ("calibrated", load("demo", sidecar))):
            first, again = ask(lm, text, Path(folder) / "novel.safetensors")
            verdict = "right" if is_answered(first, args.key) else "wrong"
            print(f"{name:11}{WORDING.question.strip()}{first!r}: {verdict}; from the saved state {again!r}")


if __name__ == "__main__":
    main()
