"""Every number that any command takes, made absurd: a right answer or one line, in seconds. No traceback, no hang."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from longscan.calibrate.commands import cli
from longscan.runtime import load

from ..checkpoints import make_sidecar

ABSURD = ["0", "1", "-1", "1e-40", "1e30", "1000000000000", "nan", "inf"]
SECONDS = 10
EVAL = ["eval", "--model", "demo", "--texts", "book.txt", "--lengths", "300", "--windows", "1"]
GENERATE = ["generate", "--model", "demo", "--prompt", "It was", "--max-new-tokens", "4", "--stop", "e"]
SAMPLED = [*GENERATE, "--temperature", "1", "--seed", "0"]


@pytest.fixture(scope="module")
def commands(tiny_run, tmp_path_factory):
    """By command, ways to call it that end well."""
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "book.txt").write_text("hello world " * 2000)
    make_sidecar(load("demo"), 256, layer=3, keep=256).write(folder / "s.st")
    search = [*tiny_run, "--lengths", "128", "--samples", "1", "--out", "x.st", "--fresh"]
    return folder, {
        "run": [[*search, "--method", "filter"], [*search, "--method", "none", "--objective", "passkey"]],
        "eval": [EVAL, [*EVAL, "--protocol", "pg19"], [*EVAL, "--task", "passkey"]],
        "generate": [GENERATE, SAMPLED],
        "inspect": [["inspect", "s.st"]],
    }


def numbers(command: click.Command) -> Iterator[str]:
    for option in command.params:
        kinds = (click.types.IntParamType, click.types.FloatParamType)
        if isinstance(option.type, kinds) or option.name == "lengths":
            yield option.opts[-1]


def leaves(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from leaves(command)
        else:
            yield command


CASES = [(command.name, option) for command in leaves(cli) for option in numbers(command)]


def test_no_number_is_forgotten(commands):
    assert {name for name, _ in CASES} == set(commands[1])
    assert len(CASES) >= 16


class Slow(BaseException):
    pass


@pytest.mark.parametrize(("name", "option"), CASES)
def test_an_absurd_number_ends_in_an_answer_or_in_one_line(commands, monkeypatch, request, name, option):
    folder, ways = commands
    monkeypatch.chdir(folder)

    def too_slow(*_):
        raise Slow(f"{option} {value}: more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_slow)
    request.addfinalizer(lambda: signal.signal(signal.SIGALRM, before))
    for way in ways[name]:
        for value in ABSURD:
            signal.alarm(SECONDS)
            try:
                result = CliRunner().invoke(cli, [*way, option, value])
            finally:
                signal.alarm(0)
            assert result.exception is None or isinstance(result.exception, SystemExit), (value, result.exception)
            lines = result.stderr.splitlines()
            errors = [line for line in lines if line.startswith("Error: ")]
            if result.exit_code:
                assert len(errors) == 1 and result.stdout == "" and "Traceback" not in result.stderr, (value, lines)
                assert "weights are broken" not in errors[0], value  # nothing is wrong with the model
                assert any(word in errors[0] for word in (option, option.strip("-").split("-")[0])), (value, errors)
            else:
                assert result.stdout and not errors, (value, lines)


def test_a_length_no_text_holds_is_refused_before_anything_is_measured(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("longscan.calibrate.stages.measure.measured", None)
    for objective in ("mixed", "perplexity", "passkey"):
        out = ["--out", str(tmp_path / "x.st"), "--lengths", "128,1m", "--objective", objective]
        result = CliRunner().invoke(cli, [*tiny_run, *out])
        assert result.exit_code == 1 and "no text has" in result.stderr.replace("no document has", "no text has")
