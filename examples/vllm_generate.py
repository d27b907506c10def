"""Hide a pass key in a long text and ask vLLM for it, filtered by a sidecar and plain.

    python examples/vllm_generate.py --model MODEL --sidecar SIDECAR --text FILE --length 65536 [--tensor-parallel N]

MODEL is a Hub id or a folder that vLLM serves; the sidecar was calibrated for it (`calibrate run --model MODEL`). Needs
a GPU and vLLM (docs/engines.md names the version); LongScan is installed beside it, and vLLM finds the plug-in itself.
Each answer comes from a vLLM of its own: the filter is set for a whole process.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

QUESTION = " What is the pass key? The pass key is"


def answer(args: argparse.Namespace) -> str:
    """What the model says after `length` tokens of text with the key in their middle."""
    from vllm import LLM, SamplingParams

    llm = LLM(args.model, max_model_len=args.length + 64, tensor_parallel_size=args.tensor_parallel)
    tokenizer = llm.get_tokenizer()
    key = f" The pass key is {random.Random(args.seed).randrange(10_000, 100_000)}. Remember it."
    hidden, asked = (tokenizer.encode(text, add_special_tokens=False) for text in (key, QUESTION))
    room = args.length - len(hidden) - len(asked)
    text = tokenizer.encode(args.text.read_text(encoding="utf-8"), add_special_tokens=False)[:room]
    if len(text) < room:
        raise SystemExit(f"{args.text} has {len(text)} tokens, fewer than the {room} asked for; give a longer text")
    prompt = [*text[: room // 2], *hidden, *text[room // 2 :], *asked]
    out = llm.generate({"prompt_token_ids": prompt}, SamplingParams(temperature=0, max_tokens=12))
    return f"asked for {key.strip()!r}: {out[0].outputs[0].text!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sidecar", required=True)
    parser.add_argument("--text", type=Path, required=True, help="a long text of the model's kind")
    parser.add_argument("--length", type=int, required=True, help="tokens of the prompt, and the length filtered for")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(answer(args))
        return
    if "longscan" not in {plugin.name for plugin in entry_points(group="vllm.general_plugins")}:
        raise SystemExit("vLLM would not find LongScan here: pip install it, so that its entry point is known")
    wanted = {"LONGSCAN_SIDECAR": args.sidecar, "LONGSCAN_LENGTH": str(args.length)}
    plain = {name: value for name, value in os.environ.items() if name not in wanted}
    for name, environment in (("plain", plain), ("filtered", plain | wanted)):
        found = subprocess.run([sys.executable, *sys.argv, "--one"], env=environment, stdout=subprocess.PIPE, text=True)
        if found.returncode:
            raise SystemExit(f"{name}: vLLM stopped (above); this needs a GPU and the vLLM that docs/engines.md names")
        print(f"{name:10}{found.stdout.strip().splitlines()[-1]}")


if __name__ == "__main__":
    main()
