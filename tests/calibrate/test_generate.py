"""`calibrate generate`: text on stdout, speeds on stderr, Ctrl-C keeps what was made."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from longscan.calibrate.commands import cli
from longscan.calibrate.speed import state_bytes, weight_bytes
from longscan.runtime import LM, load

PROMPT = "It is a truth universally acknowledged, that "


def call(*arguments, code=0, **more):
    result = CliRunner().invoke(cli, ["generate", "--model", "demo", *map(str, arguments)], **more)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def demo():
    return load("demo")


def test_streams_the_text_and_reports_speeds(demo, tmp_path):
    (tmp_path / "book.txt").write_text(PROMPT)
    result = call("--prompt-file", tmp_path / "book.txt", "--max-new-tokens", 20)
    assert result.stdout == "".join(demo.generate(PROMPT, 20)) + "\n"
    speed = r"[\d.]+ s \([\d,]+ a second\)"
    pattern = rf"read 45 tokens in {speed}; made 20 tokens in {speed}, [\d.]+ GB/s"
    assert re.search(pattern, result.stderr)
    assert call("--prompt-file", "-", "--max-new-tokens", 20, input=PROMPT).stdout == result.stdout


def test_every_option_arrives(demo):
    options = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 4}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    found = call("--prompt", PROMPT, "--max-new-tokens", 30, "--stop", "e", "--chunk", 7, *flags).stdout
    assert found == "".join(demo.generate(PROMPT, 30, stop="e", chunk=7, **options)) + "\n"


def test_control_c_keeps_what_was_made(demo, monkeypatch):
    step, calls = LM.step, iter(range(100))

    def interrupted(self, token, state):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return step(self, token, state)

    monkeypatch.setattr(LM, "step", interrupted)
    result = call("--prompt", PROMPT, code=130)
    monkeypatch.undo()
    assert result.stdout == "".join(demo.generate(PROMPT, 8)) + "\n"
    assert result.stderr.rstrip().endswith("interrupted")


@pytest.mark.parametrize("kind", ["demo", "demo-mamba2"])
def test_a_step_reads_each_weight_once(kind):
    """As float32 the bytes of the file's tensors, each counted once; the tied head is the embedding."""
    import torch
    from safetensors.torch import load_file

    lm = load(kind)
    assert lm.weights.head is lm.weights.embedding
    tensors = load_file(lm.source.find("model.safetensors"))
    stored = sum(tensor.numel() for name, tensor in tensors.items() if name != "lm_head.weight")
    assert weight_bytes(lm.weights) == 4 * stored
    state = lm.prefill(torch.tensor([[1]])).state
    assert state_bytes(lm) == 4 * (state.conv.numel() + state.ssm.numel())
