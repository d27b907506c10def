"""The short examples, as a new user runs them: every way in gives the same answers."""

from __future__ import annotations

import pytest

from longscan.runtime import load

from ..checkpoints import make_sidecar


def test_every_way_in_gives_one_answer(run, tmp_path):
    pytest.importorskip("transformers")
    sidecar = tmp_path / "demo.longscan.safetensors"
    make_sidecar(load("demo"), 256, share=20.0).write(sidecar)
    given = ("--sidecar", str(sidecar), "--characters", "1500")
    lines = run("load_sidecar.py", *given)
    assert [line.split()[0] for line in lines] == ["plain", "filtered"]
    assert lines[0][10:] != lines[1][10:]
    assert run("attach_transformers.py", *given) == lines
    assert run("attach_transformers.py", *given, "--pipeline") == lines
