"""What is trusted: no file runs code, the wheel holds our packages alone, a bug report holds no secret."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from longscan.calibrate.env import environment, render

ROOT = Path(__file__).parents[1]
SOURCES = [
    p for folder in ("kernels", "runtime", "engines", "calibrate", "recipes") for p in (ROOT / folder).rglob("*.py")
]
RUNS_CODE = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}


def dangers(source: str) -> list[str]:
    """Whatever in Python source would run code out of a file that it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.split(".")[0] in RUNS_CODE]
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name == "yaml.load" and ast.unparse(node.args[-1]) != "Loader":  # ours, a SafeLoader
            found.append("yaml.load")
        if name in ("eval", "exec", "yaml.unsafe_load", "yaml.full_load", "os.system"):
            found.append(name)
        if options.get("trust_remote_code", "False") != "False" or options.get("allow_pickle", "False") != "False":
            found.append(f"{name} trusts a file")
        if options.get("shell", "False") != "False":
            found.append(f"{name} in a shell")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_file_that_is_read_can_run_code(path):
    assert dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ["torch.load(p)", "torch.load(p, weights_only=False)", "import pickle", "from dill import load", "yaml.load(t, yaml.Loader)",  # noqa: E501
     "AutoModel.from_pretrained(p, trust_remote_code=True)", "np.load(p, allow_pickle=x)", "eval(t)", "run(c, shell=True)"],  # noqa: E501
)  # fmt: skip
def test_what_would_run_code_is_found(source):
    assert dangers(source)


def test_the_wheel_holds_every_package_and_nothing_else():
    """Its list is written by hand: a new folder that is left out breaks the installed package alone."""
    lines = (ROOT / "pyproject.toml").read_text().partition("packages = [")[2].partition("]")[0].split()
    listed = {line.strip('",') for line in lines}
    there = {
        ".".join(("longscan", *path.parent.relative_to(ROOT).parts))
        for folder in ("kernels", "runtime", "engines", "calibrate")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    data = {"longscan.recipes", "longscan.runtime.demo", "longscan.runtime.demo_mamba2", "longscan.calibrate.demo"}
    assert listed == there | data


def test_a_bug_report_names_nobody(monkeypatch):
    home = Path.home()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hf_secret@hub.example/x")
    monkeypatch.setenv("NUMBA_CACHE_DIR", f"{home}/cache")
    found = environment()
    said = json.dumps(found) + render(found)
    assert "hf_secret" not in said and "me:" not in said and "https://hub.example/x" in said
    assert f"{home}/" not in said and "~/cache" in said
