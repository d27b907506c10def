"""Threads that share one LM, and threads that share one attached model: every answer is the one it gets alone."""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from shared import borrowed, checkpoints, keep

from longscan.runtime import attach, load

THREADS = 8
Ask = Callable[[int], torch.Tensor]


def of_lm(folder: Path) -> Ask:
    """Prompt `n` by a method and a chunk of its own, then two steps -> logits."""
    lm = load(checkpoints.write_state_spaces(folder, checkpoints.random_tensors()))
    lm = lm.with_sidecar(checkpoints.make_sidecar(lm))

    def ask(n: int) -> torch.Tensor:
        draw = random.Random(n)
        rows, length = draw.randint(1, 3), draw.randint(1, 150)
        ids = torch.tensor([[draw.randrange(64) for _ in range(length)] for _ in range(rows)])
        method = draw.choice(("auto", "none", "filter", "decimate", "both"))
        out = lm.prefill(ids, method=method, chunk=draw.choice((None, 7, 40)))
        found = [out.logits[:, -1]]
        for _ in range(2):
            logits, _ = lm.step(ids[:, 0], out.state)
            found.append(logits)
        return torch.stack(found)

    return ask


def of_attached(folder: Path) -> Ask:
    """Prompt `n` through transformers' own model, filtered, and three tokens after it."""
    model = borrowed("tests/runtime/attach/models.py").build("mamba")
    model.save_pretrained(folder)
    attach(model, checkpoints.make_sidecar(load(folder)), method="filter")

    def ask(n: int) -> torch.Tensor:
        draw = random.Random(n)
        ids = torch.tensor([[draw.randrange(60) for _ in range(draw.randint(20, 120))]])
        with torch.inference_mode():
            return model.generate(
                ids, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
            ).logits[-1]

    return ask


def soak(ask: Ask, seconds: float, prompts: int) -> dict[str, int]:
    """Every thread asks in an order of its own -> answers, and how many differ from the sequential ones."""
    alone = [ask(n) for n in range(prompts)]
    found, until = {"answers": 0, "differ": 0, "errors": 0}, time.monotonic() + seconds
    lock = threading.Lock()

    def work(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < until:
            n = draw.randrange(prompts)
            try:
                kind = "answers" if torch.equal(ask(n), alone[n]) else "differ"
            except Exception as error:
                print(f"{type(error).__name__}: {error}")
                kind = "errors"
            with lock:
                found[kind] += 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="a model")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asks = {"load": of_lm(Path(folder) / "a"), "attach": of_attached(Path(folder) / "b")}
        found = {name: soak(ask, options.seconds, options.prompts) for name, ask in asks.items()}
    print(found)
    keep(options.out, threads=THREADS, **found)
    if any(one["differ"] or one["errors"] or not one["answers"] for one in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
