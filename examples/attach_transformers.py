"""A transformers model already in memory: `attach` it to its sidecar, and use `generate` and pipelines as ever.

    python examples/attach_transformers.py --sidecar demo.longscan.safetensors [--model demo] [--pipeline]
        [--text FILE] [--characters N]

MODEL is what transformers' from_pretrained takes, or the bundled demo, which is put into transformers' classes here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import transformers
from load_sidecar import long_prompt
from safetensors.torch import load_file

import longscan.runtime
from longscan.runtime import attach


def from_transformers(name: str) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    if name != "demo":
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        return transformers.AutoModelForCausalLM.from_pretrained(name).eval(), tokenizer
    folder = Path(longscan.runtime.__file__).parent / "demo"
    said = json.loads((folder / "config.json").read_text())
    config = transformers.MambaConfig(
        vocab_size=said["vocab_size"], hidden_size=said["d_model"], num_hidden_layers=said["n_layer"],
        state_size=said["ssm_cfg"]["d_state"], bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.MambaForCausalLM(config)
    tensors = {n.replace("embedding.", "embeddings."): t for n, t in load_file(folder / "model.safetensors").items()}
    model.load_state_dict({**tensors, "lm_head.weight": tensors["backbone.embeddings.weight"]})
    return model.eval(), transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sidecar", required=True, help="a file or a Hub id")
    parser.add_argument("--pipeline", action="store_true", help="answer through transformers.pipeline")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--characters", type=int, default=4000)
    args = parser.parse_args()
    model, tokenizer = from_transformers(args.model)
    prompt = long_prompt(args.text, args.characters)

    def answer() -> str:
        if args.pipeline:
            pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
            said = pipe(prompt, max_new_tokens=8, do_sample=False, return_full_text=False)
            return str(said[0]["generated_text"])
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=8, do_sample=False)
        return str(tokenizer.decode(out[0, ids.shape[1] :]))

    print(f"{'plain':10}{answer()!r}")
    with attach(model, args.sidecar):
        print(f"{'filtered':10}{answer()!r}")


if __name__ == "__main__":
    main()
