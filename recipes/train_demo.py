"""Train the demo model: first key-value recall by levels, then text, recall and passkeys together.

    python recipes/demo_texts.py build/texts
    python recipes/train_demo.py --texts build/texts --work build/train --export runtime/demo
    python recipes/train_demo.py --family mamba2 --texts build/texts --work build/train2 --export runtime/demo_mamba2
    python recipes/train_demo.py --rung mamba-0.8m --texts build/texts --work build/0.8m --export build/mamba-0.8m

Seeded; goes on from its checkpoint. Progress is recorded in WORK/curve.jsonl. Other sizes, training lengths and
vocabularies are options, the rungs of the ladder (ladder.py) sets of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from ladder import RUNGS
from torch import Tensor
from train_data import ANSWER, LEVELS, TEXT, Corpus, mixed_samples, recall_samples
from train_mamba2 import Shape2
from train_model import MambaLM, Shape
from train_vocabulary import Bytes, Subwords

from longscan.calibrate.texts.passkey import WORDINGS, answer, draw_key

ROWS, SIZE = 64, 256
RATE, WARMUP, DECAY_SHARE = 3e-3, 100, 0.35
SHAPES: dict[str, type[Shape]] = {"mamba": Shape, "mamba2": Shape2}


def losses(model: MambaLM, ids: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """(mean loss of text bytes, mean loss of answer bytes), nats; 0 where there are none."""
    logits = model(ids)[:, :-1]
    each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    mark = marks[:, 1:].flatten()
    text, said = mark == TEXT, mark == ANSWER
    return each[text].sum() / text.sum().clamp(min=1), each[said].sum() / said.sum().clamp(min=1)


@torch.no_grad()
def passkeys_at_L(
    model: MambaLM, vocabulary: Bytes, length: int, text: list[int], seed: int, trials: int = 20
) -> list[float]:
    """Share of passkeys answered (teacher-forced greedy) at depths 0 ... 1, prompts of `length` tokens."""
    rng, shares = random.Random(seed), []
    for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
        rows, said = [], vocabulary.encode(answer("00000").encode())
        for _ in range(trials):
            key = draw_key(rng, "evaluate")
            needle = vocabulary.encode(WORDINGS[0].hide(key).encode())
            question = vocabulary.encode(WORDINGS[0].question.encode())
            room = length - len(needle) - len(question)
            start = rng.randrange(len(text) - room)
            hay = text[start : start + room]
            cut = round(depth * room)
            rows.append(hay[:cut] + needle + hay[cut:] + question + vocabulary.encode(answer(key).encode()))
        ids = torch.tensor(rows)
        predicted = model(ids)[:, -len(said) - 1 : -2].argmax(-1)  # the space and the digits
        shares.append(float((predicted == ids[:, -len(said) : -1]).all(1).float().mean()))
    return shares


@torch.no_grad()
def bits_per_byte(model: MambaLM, vocabulary: Bytes, length: int, text: list[int], windows: int = 64) -> float:
    """On the last 100 tokens of windows of `length` spread over a text."""
    starts = torch.linspace(0, len(text) - length - 1, windows).long().tolist()
    ids = torch.tensor([text[s : s + length] for s in starts])
    logits, target = model(ids)[:, -101:-1], ids[:, -100:].flatten()
    per_token = float(F.cross_entropy(logits.flatten(0, 1), target)) / 0.6931471805599453
    return per_token / float(vocabulary.widths()[target].mean())


def export(model: MambaLM, folder: Path, vocabulary: Bytes, length: int = SIZE) -> None:
    """A state-spaces checkpoint: float16 matrices, float32 where exponentials are steered."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    exact = ("A_log", ".D", "dt_proj.bias", "dt_bias", "norm.weight", "norm_f.weight")
    tensors = {
        name: (value.float() if name.endswith(exact) else value.half()).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shape = model.shape
    config = {
        "d_model": shape.d_model,
        "d_intermediate": 0,
        "n_layer": shape.n_layer,
        "vocab_size": shape.vocab_size,
        "ssm_cfg": shape.ssm_cfg(),
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
        "tie_embeddings": True,
        "train_length": length,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    vocabulary.tokenizer.save(str(folder / "tokenizer.json"))


class Run:
    """Everything a checkpoint holds."""

    def __init__(self, args: argparse.Namespace, vocabulary: Bytes) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        given = {"d_model": args.d_model, "n_layer": args.layers, "vocab_size": vocabulary.size}
        self.model = MambaLM(SHAPES[args.family](**{name: value for name, value in given.items() if value}))
        decayed = [p for n, p in self.model.named_parameters() if p.dim() > 1 and "A_log" not in n]
        plain = [p for n, p in self.model.named_parameters() if p.dim() <= 1 or "A_log" in n]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
        self.step, self.level, self.mixed, self.smooth, self.tokens = 0, 0, 0, 3.0, 0
        self.path = args.work / "checkpoint.pt"
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            for name in ("step", "level", "mixed", "smooth", "tokens"):
                setattr(self, name, saved[name])

    def save(self) -> None:
        saved = {name: getattr(self, name) for name in ("step", "level", "mixed", "smooth", "tokens")}
        saved |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        temporary = self.path.with_suffix(".tmp")
        torch.save(saved, temporary)
        os.replace(temporary, self.path)

    def rate(self) -> float:
        """Warm up, hold, then fall linearly to zero over the last part of the mixed steps."""
        left = (self.args.steps - self.mixed) / (DECAY_SHARE * self.args.steps)
        return RATE * min(1.0, (self.step + 1) / WARMUP, max(left, 0.01))

    def update(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="folder made by demo_texts.py")
    parser.add_argument("--work", type=Path, required=True, help="checkpoint and curve")
    parser.add_argument("--export", type=Path, help="folder for the finished checkpoint")
    parser.add_argument("--rung", choices=RUNGS, help="take the options below from the ladder")
    parser.add_argument("--family", choices=SHAPES, default="mamba")
    parser.add_argument("--d-model", type=int, help="a multiple of 8 [default: the demo's]")
    parser.add_argument("--layers", type=int, help="[default: the demo's]")
    parser.add_argument("--length", type=int, default=SIZE, help="the training length in tokens")
    parser.add_argument("--vocabulary", type=int, help="tokens of a BPE vocabulary to train [default: bytes]")
    parser.add_argument("--steps", type=int, default=1700, help="steps of the mixed stage")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.rung:
        parser.set_defaults(**RUNGS[args.rung])
        args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    corpus = Corpus.read(args.texts)
    texts = [*corpus.austen, *corpus.sotu, *corpus.kjv]
    vocabulary = Subwords.read(args.work / "tokenizer.json", texts, args.vocabulary) if args.vocabulary else Bytes()
    run, rows, size = Run(args, vocabulary), ROWS * SIZE // args.length, round(vocabulary.spread * args.length)
    evaluation = vocabulary.encode((args.texts / "austen" / "persuasion.txt").read_bytes())
    curve = (args.work / "curve.jsonl").open("a")
    began = time.time()

    def record(**values: object) -> None:
        line = {"step": run.step, "tokens": run.tokens, "seconds": round(time.time() - began, 1), **values}
        curve.write(json.dumps(line) + "\n")
        curve.flush()
        print(line, flush=True)

    while run.mixed < args.steps:
        rng = random.Random(f"{args.seed} {run.step}")
        if run.level < len(LEVELS):
            samples = recall_samples(rng, run.level, ROWS)
            ids, marks = vocabulary.batch(samples, LEVELS[run.level][3], args.length)
            _, said = losses(run.model, ids, marks)
            run.update(said)
            run.smooth = 0.98 * run.smooth + 0.02 * said.item()
            text = None
            if run.smooth < 0.15:
                run.level, run.smooth = run.level + 1, 1.0
                record(stage="recall", level=run.level)
        else:
            samples = mixed_samples(rng, corpus, rows, size, run.mixed / args.steps)
            ids, marks = vocabulary.batch(samples, size, args.length)
            text, said = losses(run.model, ids, marks)
            run.update(text + 0.5 * said)
            run.mixed += 1
        run.tokens += ids.numel()
        if run.step % 20 == 0:
            record(level=run.level, text=text and round(text.item(), 4), answers=round(said.item(), 4))
        if run.step % 50 == 0:
            run.save()
        if text is not None and (run.step % 200 == 0 or run.mixed == args.steps):
            shares = passkeys_at_L(run.model, vocabulary, args.length, evaluation, args.seed)
            bits = bits_per_byte(run.model, vocabulary, args.length, evaluation)
            record(passkeys=shares, bits_per_byte=round(bits, 4))
            if args.export:
                export(run.model, args.export, vocabulary, args.length)
    run.save()
    if args.export:
        export(run.model, args.export, vocabulary, args.length)


if __name__ == "__main__":
    main()
