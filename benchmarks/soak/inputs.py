"""Every file that a user can hand in, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from model_inputs import config, generation, pickled, shard_index, tokenizer, weights
from run_inputs import evaluation, journal, journal_tensors, recipe, run_document, sidecar, state
from shared import borrowed, checkpoints
from target import SMALL, Target
from text_inputs import jsonl, parquet, plain

from longscan.runtime import LM, load


def targets(folder: Path) -> dict[str, Callable[[], Target]]:
    """Makers of every target by name; each works in a folder of its own."""
    small = checkpoints.random_tensors(**SMALL)
    second = checkpoints.random_mamba2_tensors(**SMALL)

    def mamba1(at: Path) -> Path:
        return checkpoints.write_state_spaces(at, small, train_length=16)

    def mamba2(at: Path) -> Path:
        limits = {**checkpoints.MAMBA2, "dt_limit": [0.0, 10.0], "norm_before_gate": False}
        return checkpoints.write_state_spaces(at, second, ssm_cfg=limits, norm_epsilon=1e-5)

    def falcon(at: Path) -> Path:
        about = {
            "mixer_rms_eps": 1e-6,
            "layer_norm_epsilon": 1e-5,
            "state_size": 4,
            "use_bias": False,
            "train_length": 16,
        }
        return checkpoints.write_falcon(at, small, **about)

    def transformers(at: Path) -> Path:
        about = {"n_groups": 2, "time_step_limit": [0.0, {"__float__": "Infinity"}], "layer_norm_epsilon": 1e-5}
        return checkpoints.write_falcon(at, second, model_type="mamba2", tie_word_embeddings=True, **about)

    @functools.cache
    def lm() -> LM:
        return load(mamba1(folder / "lm"))

    def filtered() -> LM:
        return lm().with_sidecar(checkpoints.make_sidecar(lm()))

    P = functools.partial
    found: dict[str, Callable[[], Target]] = {}
    for make in (mamba1, mamba2, falcon, transformers):
        found[f"config {make.__name__}"] = P(config, folder / f"config-{make.__name__}", make)
    for make in (mamba1, mamba2):
        found[f"weights {make.__name__}"] = P(weights, folder / f"weights-{make.__name__}", make)
    for kind in borrowed("tests/tokenizer_kinds.py").KINDS:
        found[f"tokenizer {kind}"] = P(tokenizer, folder / f"tokenizer-{kind}", kind)
    for name, make in (("pickled weights", pickled), ("shard index", shard_index), ("generation config", generation),
                       ("recipe", recipe), ("journal", journal), ("journal tensors", journal_tensors),
                       ("text", plain), ("evaluation", evaluation)):  # fmt: skip
        found[name] = P(make, folder / name.replace(" ", "-"))
    found["sidecar"] = lambda: sidecar(folder / "sidecar", lm())
    found["run document"] = lambda: run_document(folder / "run-document", lm())
    found["state"] = lambda: state(folder / "state", filtered(), None)
    found["waiting state"] = lambda: state(folder / "waiting", filtered(), 60)
    found["jsonl"], found["jsonl.gz"] = P(jsonl, folder / "jsonl", False), P(jsonl, folder / "jsonl-gz", True)
    for packing in ("none", "snappy", "zstd"):
        found[f"parquet {packing}"] = P(parquet, folder / f"parquet-{packing}", packing)
    return found
