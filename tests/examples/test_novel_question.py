"""The novel example, on a beginning short enough for the model to answer by itself."""

from __future__ import annotations

from longscan.runtime import load

from ..checkpoints import make_sidecar


def test_keys_are_found_and_states_saved(run, tmp_path):
    sidecar = tmp_path / "demo.longscan.safetensors"
    make_sidecar(load("demo"), 256).write(sidecar)
    given = ("novel_question.py", "--sidecar", str(sidecar), "--depths", "0.1,0.6", "--characters")
    lines = run(*given, "100")
    assert sum(line.endswith("right") for line in lines) == 4  # both models, both keys: within the training length
    assert sum(line.endswith("saved state: the same") for line in lines) == 2
    longer = run(*given, "3000")  # far beyond it this sidecar, made at random, is no help
    assert sum(line.endswith("saved state: the same") for line in longer) == 2
    assert any(line.endswith("wrong") for line in longer)
