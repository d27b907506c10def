"""The GPU benchmark, small and in the interpreter: it runs, writes its tables, and refuses a wrong kernel."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

from .cases import BENCHMARKS, load_benchmark


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()[1:]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU")
def test_one_command_writes_tables_and_plot(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "kernels.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [r["kernel"] for r in rows(tmp_path / "kernels.csv")] == [
        "longscan", "longscan filtered", "sequential triton", "torch",
    ]  # fmt: skip
    assert all(float(r["error"]) < 1e-2 and float(r["median_ms"]) > 0 for r in rows(tmp_path / "kernels.csv"))
    assert [r["what"] for r in rows(tmp_path / "models.csv")] == [
        "prefill",
        "prefill keeping 20 from layer 1",
        "decode",
    ]
    assert (tmp_path / "kernels.png").stat().st_size > 0
    assert "mamba-ssm" in done.stderr  # the peer's absence is said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    done = subprocess.run([sys.executable, str(BENCHMARKS / "kernels.py")], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Error: no CUDA device") and done.stderr.count("\n") == 1


def test_a_wrong_kernel_has_no_speed(monkeypatch, capsys):
    bench = load_benchmark("kernels")
    case = bench.Case("130m", 4, 1, 5)

    def wrong(a, device):
        yield "off", a, lambda: 1.1 * bench.selective_scan(**a, backend="reference")[0]
        yield "nan", a, lambda: torch.full_like(a["x"], torch.nan)
        yield "right", a, lambda: bench.selective_scan(**a, backend="reference")[0]

    monkeypatch.setattr(bench, "kernels", wrong)
    assert [row["kernel"] for row in bench.measure(case, "cpu")] == ["right"]
    said = capsys.readouterr()
    assert said.err.count("no speed reported") == 2 and "off:" not in said.out


def test_what_llama_bench_prints_is_read(monkeypatch):
    """As llama.cpp's README shows its JSON: a prompt's speed first, then the generation's."""
    llama = load_benchmark("llama")
    printed = [{"n_prompt": 512, "n_gen": 0, "avg_ts": 7100.0}, {"n_prompt": 0, "n_gen": 128, "avg_ts": 118.9}]
    assert llama.parse(json.dumps(printed)) == 118.9
    monkeypatch.setattr(llama.shutil, "which", lambda name: None)
    assert llama.why_not() == "llama-bench is not on PATH"


def test_a_decode_step_is_told_beside_its_bounds():
    bench = load_benchmark("runtime_cpu")
    step = {"theirs": 0.08}
    for name, seconds in (("ours", 0.02), ("ours bfloat16", 0.01)):
        step |= {name: seconds, f"products of {name}": 2 * seconds, f"reading {name}": seconds / 2}
    lines = bench.decode_lines(step, {"bfloat16": 90.0})
    assert lines[0].startswith("step, float32: 20.0 ms, 50.0 tokens a second") and "llama.cpp" not in lines[0]
    assert "(50% of the step); llama.cpp 90.0 tokens a second" in lines[1]
    assert lines[2] == "step, float32: 4.00x as fast as transformers"
