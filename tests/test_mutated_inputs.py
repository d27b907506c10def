"""A fast slice of benchmarks/soak/mutated.py: every kind of file that a user hands in, mutated, in seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak"
CASES = 25


@pytest.fixture(scope="module")
def soak():
    """The soak's modules, which are scripts beside each other."""
    sys.path.insert(0, str(SOAK))
    try:
        import inputs
        import mutated
    finally:
        sys.path.remove(str(SOAK))
    return inputs, mutated


@pytest.fixture(scope="module")
def targets(soak, tmp_path_factory):
    return soak[0].targets(tmp_path_factory.mktemp("soak"))


KINDS = [
    "config mamba1", "config mamba2", "config falcon", "config transformers", "weights mamba1", "weights mamba2",
    "tokenizer byte_level", "tokenizer byte_fallback", "tokenizer metaspace_fallback", "tokenizer metaspace",
    "tokenizer word_piece", "tokenizer words", "pickled weights", "shard index", "generation config", "recipe",
    "journal", "journal tensors", "text", "evaluation", "sidecar", "run document", "state", "waiting state", "jsonl",
    "jsonl.gz", "parquet none", "parquet snappy", "parquet zstd",
]  # fmt: skip


def test_every_kind_is_in_the_slice(targets):
    assert set(targets) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # of libraries that are given nonsense
def test_a_mutated_file_is_read_right_or_refused_in_one_line(targets, soak, kind):
    target = targets[kind]()
    target.read(target.data)
    found = [soak[1].attempt(target, Random(f"slice {kind} {case}")) for case in range(CASES)]
    assert [said for outcome, said, _ in found if outcome == "fault"] == []
