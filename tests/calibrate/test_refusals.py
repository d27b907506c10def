"""What is given wrongly is refused in one truthful line; what cannot be printed ends quietly. No traceback, ever."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from longscan.calibrate.commands import cli

from ..checkpoints import make_sidecar

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from longscan.runtime import load

    folder = tmp_path_factory.mktemp("place")
    (folder / "dir").mkdir()
    (folder / "empty").write_bytes(b"")
    (folder / "book.txt").write_text("hello world " * 2000)
    make_sidecar(load("demo"), 256, layer=3, keep=256).write(folder / "s.st")
    return folder


RUN = ["run", "--model", "demo", "--texts", "book.txt", "--out", "x.st", "--method", "none", "--lengths", "512"]
EVAL = ["eval", "--model", "demo", "--texts", "book.txt", "--lengths", "300", "--windows", "1"]
GENERATE = ["generate", "--model", "demo", "--prompt", "abc", "--max-new-tokens", "2"]
HUGE = str(10**30)
CASES = [
    ([*RUN, "--model", " "], 1, "no model folder"),
    ([*RUN, "--model", "book.txt"], 1, "is a file; give the folder"),
    ([*RUN, "--texts", "dir"], 1, "holds no texts"),
    ([*RUN, "--texts", "a/b"], 1, "could not be read from the Hub"),
    ([*RUN, "--recipe", "./dir"], 1, "Is a directory"),
    ([*RUN, "--out", "dir"], 2, "is a directory"),
    ([*RUN, "--out", "none/x.st"], 1, "no folder none"),
    ([*RUN, "--workdir", "book.txt"], 2, "is a file"),
    ([*RUN, "--workdir", "book.txt/x"], 1, "Not a directory"),
    ([*RUN, "--workdir="], 1, "--workdir is empty"),
    ([*RUN, "--lengths", "0"], 2, "'0' is out of range"),
    ([*RUN, "--lengths", "1e9"], 2, "'1e9' is not a length"),
    ([*RUN, "--samples", "0"], 2, "--samples"),
    ([*RUN, "--train-length", "0"], 2, "--train-length"),
    ([*RUN, "--train-length", HUGE], 1, "not above the training length"),
    ([*RUN, "--seed", "-1"], 2, "--seed"),
    ([*RUN, "--seed", HUGE], 2, "--seed"),
    ([*RUN, "--revision", "main"], 1, "no revision 'main'; leave out --revision"),
    ([*RUN, "--device", "meta"], 1, "device 'meta'"),
    ([*RUN, "--dtype", "float8_e4m3fn"], 1, "unknown dtype"),
    ([*EVAL, "--texts", "book.txt", "--texts", "b.txt"], 2, "book.txt, b.txt: this reads one text, and only run takes"),
    ([*EVAL, "--task", "passkey", "--protocol", "pg19"], 2, "pg19 is for --task perplexity, not for passkey"),
    ([*EVAL, "--methods", ","], 2, "unknown method ''"),
    ([*EVAL, "--methods", "filter"], 1, "needs a sidecar"),
    ([*EVAL, "--sidecar", "dir"], 1, "dir holds no sidecar"),
    ([*EVAL, "--sidecar", "s.st", "--revision", "v"], 1, "no revision 'v'"),
    ([*GENERATE, "--sidecar", ""], 1, "--sidecar is empty"),
    ([*GENERATE, "--stop", ""], 1, "--stop is empty"),
    ([*GENERATE, "--temperature", "nan"], 2, "nan is not a finite number"),
    ([*GENERATE, "--top-p", "nan"], 2, "nan is not a finite number"),
    ([*GENERATE, "--min-p", "nan"], 2, "nan is not a finite number"),
    ([*GENERATE, "--repetition-penalty", "inf"], 2, "inf is not in the range"),
    ([*GENERATE, "--seed", HUGE], 2, "--seed"),
    ([*GENERATE, "--stop", "caf\udce9"], 2, r"caf\udce9 is not UTF-8"),
    ([*RUN, "--out", "caf\udce9.st"], 2, "is not UTF-8"),
    (["generate", "--model", "demo", "--prompt-file", "dir"], 1, "dir: Is a directory; give a file"),
    (["inspect", "empty"], 1, "not a readable safetensors file"),
    (["inspect", "~nosuchuser/x"], 1, "no sidecar file"),
    (["inspect", "a/b", "--json"], 1, "cannot fetch a/b"),
    (["inspect", "s.st", "--layer", "-1"], 1, "no layer -1"),
    (["report", "s.st", "-o", "dir"], 2, "is a directory"),
    (["report", "s.st", "-o", "a" * 300], 1, "File name too long; give a shorter name"),
    (["report", "s.st", "--device", "bogus"], 2, "are for --analyze; give --analyze too"),
    (["report", "s.st", "--dtype", "nonsense"], 2, "are for --analyze; give --analyze too"),
    (["report", "s.st", "--analyze", "--texts", "a", "--texts", "b"], 2, "a, b: this reads one text"),
    (["report", "s.st", "--eval", "dir"], 1, "dir of --eval: Is a directory"),
    (["report", "s.st", "--figures", "book.txt/x"], 1, "book.txt/x: Not a directory"),
    (["push", "s.st", "a b/c", "--dry-run"], 2, "no repository id"),
    (["recipes", "show", "a/b.yaml"], 1, "No such file"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), CASES)
def test_one_line(place, monkeypatch, arguments, code, message):
    monkeypatch.chdir(place)
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and message in errors[0], result.stderr
    assert "space" not in errors[0]
    assert result.exit_code == code and result.stdout == ""


RECIPES = [
    ("filter: {layers: [2, 77]}", "auto", "filter.layers names layer 77 and the model has layers 0 to 4"),
    ("filter: {layers: [99], g_fit: stretched}", "filter", "filter.layers names layer 99"),
    ("filter: {theta: [1.0], theta_quantiles: []}", "filter", "no channel's decay is above any filter.theta"),
    ("filter: {theta: [1.0], fit: published}", "filter", "no channel's decay is above filter.theta 1"),
    ("decimate: {first_layer: [99]}", "decimate", "decimate.first_layer names layer 99"),
    ("decimate: {search: false, first_layer: [12], base: 500}", "decimate", "decimate.first_layer names layer 12"),
    ("decimate: {published: {demo: {layers: [2, 9]}}}", "decimate", "decimate.published names layer 9"),
    ("decimate: {base: 8k}", "auto", "keeps 8192 tokens at least, which are no fewer than 512"),
    ("decimate: {base_factors: [2]}", "decimate", "keeps 512 tokens at least, which are no fewer than 512"),
    ("decimate: {search: false, base: 8k}", "decimate", "keeps 8192 tokens at least, which are no fewer than 512"),
    ("decimate: {search: false, base: 8k}", "auto", "keeps 8192 tokens at least, which are no fewer than 512"),
    ("filter: {fit: published}", "scale", "no settings for --method scale"),
    ("filter: {g_fit: sequential}", "filter", "the longest measured document of books has 300; give longer"),
]


@pytest.mark.parametrize(("recipe", "method", "message"), RECIPES)
def test_a_recipe_that_the_model_or_the_lengths_do_not_fit(place, monkeypatch, recipe, method, message):
    monkeypatch.chdir(place)
    Path("mine.yaml").write_text(recipe)
    Path("books").mkdir(exist_ok=True)
    for name, size in (("a", 300), ("b", 30000)):
        Path("books", f"{name}.txt").write_text(("hello world " * 3000)[:size])
    given = ["run", "--model", "demo", "--texts", "books", "--out", "x.st", "--samples", "2", "--lengths", "512"]
    result = CliRunner().invoke(cli, [*given, "--recipe", "mine.yaml", "--method", method, "--plan"])
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1, result.exception
    assert result.stdout == "" and message in result.stderr.splitlines()[-1], result.stderr


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "check its permissions"),
        (errno.EROFS, "choose a place that can be written"),
        (errno.EMFILE, "ulimit"),
        (errno.EIO, "check the disk"),
    ],
)
def test_only_a_full_disk_needs_space(place, monkeypatch, number, advice):
    """The system names no file where writing fails; the line does."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.chdir(place)
    monkeypatch.setattr("longscan.runtime.files.os.fsync", refuse)
    result = CliRunner().invoke(cli, [*RUN, "--out", "y.st", "--fresh", "--workdir", "work"])
    assert result.exit_code == 1 and not Path("y.st").exists()
    assert result.stderr.splitlines()[-1].startswith(f"Error: y.st: {os.strerror(number)}; "), result.stderr
    assert advice in result.stderr and ("space" in result.stderr.splitlines()[-1]) == (advice == "free some space")


def shell(script: str) -> subprocess.CompletedProcess[str]:
    """In bash, `calibrate` being the command; only what a real process can show."""
    start = f'calibrate() {{ "{sys.executable}" -m longscan.calibrate "$@"; }}; set -o pipefail; '
    return subprocess.run(["bash", "-c", start + script], capture_output=True, text=True)


STREAMS = [
    ("calibrate recipes show default | true", 141, ""),
    ("calibrate recipes list > /dev/full", 1, "Error: standard output: No space left on device; free some space"),
    ("calibrate --help > /dev/full", 1, "Error: standard output: No space left on device; free some space"),
    ("calibrate recipes list >&-", 1, "Error: standard output is closed"),
    ("calibrate recipes show nope 2>&-", 1, ""),
    ("calibrate run --model demo --samples 0 2> /dev/full", 2, ""),
    ("calibrate generate --model demo --prompt-file - <&-", 1, "Error: standard input is closed"),
    (r"calibrate generate --model demo --prompt $'caf\xe9'", 2, r"Error: argument caf\udce9 is not UTF-8 text"),
]


@pytest.fixture(scope="module")
def shells():
    """All of them by their script, as many at a time as there are cores: each imports torch."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {script: pool.submit(shell, script) for script, _, _ in STREAMS}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(("script", "code", "message"), STREAMS)
def test_streams(shells, script, code, message):
    done = shells[script].result()
    assert done.returncode == code and done.stdout == ""
    assert done.stderr.startswith(message) and done.stderr.count("\n") == bool(message), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_progress_that_cannot_be_written_ends_no_run(monkeypatch):
    from tqdm import tqdm

    from longscan.calibrate import cli as module

    done = []
    monkeypatch.setattr(
        "longscan.calibrate.commands.cli", lambda **_: done.extend(tqdm("ab", file=sys.stderr, mininterval=0))
    )
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        module.main()
    assert done == ["a", "b"]


def test_control_c_before_anything_is_imported(monkeypatch):
    import builtins

    from longscan.calibrate import cli as module

    real = builtins.__import__

    def interrupted(name, globals=None, locals=None, fromlist=(), level=0):
        if name == "commands" and level == 1:
            raise KeyboardInterrupt
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 130


def test_without_a_place_for_compiled_loops(tmp_path):
    """A read-only installation and no home: the loops compile for this process, and `env` says so."""
    package = tmp_path / "kernels"
    shutil.copytree(ROOT / "kernels", package, ignore=shutil.ignore_patterns("__pycache__"))
    for room in (package, *(path for path in package.iterdir() if path.is_dir())):
        (room / "__pycache__").write_bytes(b"")  # no folder can be made here, even by root
    code = (
        "import logging, sys; logging.basicConfig()\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, kernels, kernels.shared.cpu_cache as place\n"
        "print(place.CACHE, place.cache_folder(), kernels.token_scores(torch.ones(1, 2, 4), backend='cpu').shape)\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    env |= {"HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "False None torch.Size([1, 2])\n", done.stderr[-2000:]
    assert "set NUMBA_CACHE_DIR" in done.stderr


def test_env_tells_the_truth(monkeypatch):
    from longscan.calibrate import env
    from longscan.kernels.shared import cpu_cache

    monkeypatch.setattr(cpu_cache, "cache_folder", lambda: None)
    real = env.import_module

    def broken(name):
        if name == "triton":
            raise OSError("libcuda.so.1: cannot open\nshared object file")
        return real(name)

    monkeypatch.setattr(env, "import_module", broken)
    found = env.environment()
    assert found["cpu"]["numba_cache"] is None and found["cpu"]["numba_threads"] >= 1
    assert found["backends"]["triton"].startswith("fails: libcuda.so.1: cannot open shared")
    assert found["backends"]["cpu"] == "ready"
    assert found["auto"]["cpu"].startswith("cpu: ")
    assert "none: every process compiles; set NUMBA_CACHE_DIR" in env.render(found)
