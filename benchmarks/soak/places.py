"""Disks that fill, folders that cannot be written, clocks that jump: one clear line, the old file, and it goes on.

Needs root, to mount small file systems in memory: `full` gives `run`, `report` and `push` one of every size up to
enough, so that each write in turn is the first that does not fit; `readonly` takes the right to write away between
kills; `clocks` lets the clock of the day jump within a run and the files' times between runs. `calls` needs no root: it
fails each call of a save in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import whole
from shared import borrowed, checkpoints, keep

from longscan.runtime import LM, load

IDS = torch.arange(40)[None]
ENOUGH = 64 << 20
REFUSED = ("Read-only file system", "cannot be written", "readonly database")
YEARS = 10 * 365 * 86400.0  # by which a clock is wrong, at most
CALLS = ("tempfile.mkstemp", "os.close", "pathlib.Path.write_bytes", "os.fsync", "os.chmod", "os.replace")


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes, in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def again(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def told(arguments: list[str], said: Path, clock: float = 0.0) -> str | None:
    """Run a command -> the one line it was refused with, None where it was not. Raises where it is another end."""
    said.unlink(missing_ok=True)
    [code] = whole.end(whole.start(arguments, said, clock=clock))
    lines = said.read_text().splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    if code == 0 and not errors:
        return None
    if code != 1 or len(errors) != 1 or ";" not in errors[0] or any("Traceback" in line for line in lines):
        raise AssertionError(f"{arguments[0]} ended with {code}: {lines[-5:]}")
    return errors[0]


def same(path: Path, *allowed: bytes) -> None:
    if path.read_bytes() not in allowed:
        raise AssertionError(f"{path.name} has bytes of neither")


def no_temporary(folder: Path) -> None:
    if left := [path.name for path in folder.rglob("*.tmp")]:
        raise AssertionError(f"left {left}")


class Scene:
    """A model, two sidecars of it, a hub; and what commands that nobody disturbs make of them."""

    def __init__(self, folder: Path, hub: Any, draw: random.Random) -> None:
        self.folder, self.hub, self.draw, self.said = folder, hub, draw, folder / "said"
        self.home = folder / "home"
        self.given = whole.calibration(folder / "model")
        self.lm: LM = load(folder / "model")
        self.sidecars = [folder / "one.st", folder / "two.st"]
        for layer, path in enumerate(self.sidecars):
            checkpoints.make_sidecar(self.lm, layer=layer).write(path)
        self.pushed = list(self.sidecars)
        self.wanted = self.made(folder / "whole" / "a.st")
        self.page = self.reported(folder / "whole")

    def run(self, out: Path, work: Path) -> list[str]:
        return [*self.given, "--out", str(out), "--workdir", str(work)]

    def report(self, folder: Path) -> list[str]:
        return ["report", str(self.sidecars[0]), "-o", str(folder / "r.html"), "--figures", str(folder / "figures")]

    def made(self, out: Path) -> bytes:
        out.parent.mkdir(exist_ok=True)
        assert told(self.run(out, out.with_name("work")), self.said) is None
        return out.read_bytes()

    def reported(self, folder: Path) -> bytes:
        assert told(self.report(folder), self.said) is None
        return (folder / "r.html").read_bytes()

    def push(self, clock: float = 0.0) -> str | None:
        """A sidecar that the repository does not hold, so that its card is fetched, too; never more than a commit."""
        self.pushed.reverse()
        repo = self.hub.repos.get("models/someone/x")
        before = len(repo.branches["main"]) if repo else 1  # "initial commit"
        line = told(["push", str(self.pushed[0]), "someone/x"], self.said, clock)
        commits = len(self.hub.repos["models/someone/x"].branches["main"]) - before
        if commits != (line is None):
            raise AssertionError(f"{commits} commits, and {line}")
        return line


def full(scene: Scene, cases: int) -> dict[str, int]:
    """Disks of every size."""
    place, found = scene.folder / "full", {"run": 0, "report": 0, "push": 0, "held": 0}
    spread = [4096 * (1 + k) for k in range(cases // 2)] + [4096 * (cases // 2 + 8 * k) for k in range(cases // 2)]
    for size in spread:
        with disk(place, size):
            line = told(scene.run(place / "a.st", place / "work"), scene.said)
            found["run"] += line is not None
            if line is not None:
                assert "space" in line or "full" in line, line
                assert not (place / "a.st").exists()
                no_temporary(place)
                again(place, f"size={ENOUGH}")
                assert told(scene.run(place / "a.st", place / "work"), scene.said) is None
            same(place / "a.st", scene.wanted)
        with disk(place, size):
            (place / "r.html").write_bytes(b"old")
            line = told(scene.report(place), scene.said)
            found["report"] += line is not None
            assert line is None or "space" in line, line
            same(place / "r.html", scene.page, *[b"old"] * (line is not None))
            no_temporary(place)
        shutil.rmtree(scene.home, ignore_errors=True)
        with disk(scene.home, size):
            found["push"] += scene.push() is not None
        found["held"] += 1
    return found


def readonly(scene: Scene, cases: int) -> dict[str, int]:
    """The right to write, taken away after a kill at a random moment and given back."""
    place, other, found = scene.folder / "readonly", scene.folder / "elsewhere", {"refused": 0}
    state = scene.lm.prefill(IDS).state
    for case in range(cases):
        shutil.rmtree(other, ignore_errors=True)
        other.mkdir()
        out, work = [(place, place), (place, other), (other, place)][case % 3]
        arguments = scene.run(out / "a.st", work / "work")
        with disk(place, ENOUGH):
            running = whole.start(arguments, scene.said)
            time.sleep(scene.draw.uniform(0.1, 2))
            running[0].kill()
            whole.end(running)
            shutil.rmtree(scene.home, ignore_errors=True)
            again(place, "ro")
            done = (out / "a.st").exists()
            for command in (arguments, scene.report(place)):
                line = told(command, scene.said)
                assert line is not None and any(why in line for why in REFUSED), line
                found["refused"] += 1
            try:
                state.save(place / "state")
                raise AssertionError("a state was saved")
            except OSError as error:
                assert error.errno == errno.EROFS and error.filename == str(place / "state")
            again(place, "rw")
            assert (out / "a.st").exists() == done
            assert told(arguments, scene.said) is None
            same(out / "a.st", scene.wanted)
        with disk(scene.home, ENOUGH):
            again(scene.home, "ro")
            found["refused"] += scene.push() is not None
    return {"cases": cases, **found}


def clocks(scene: Scene, cases: int) -> dict[str, int]:
    """A clock of the day that jumps at every look, and files that come from the future or from long ago."""
    place, kills = scene.folder / "clocks", 0
    place.mkdir()
    for _ in range(cases):
        shutil.rmtree(place)
        place.mkdir()
        arguments = scene.run(place / "a.st", place / "work")
        for _ in range(3):
            running = whole.start(arguments, scene.said, clock=scene.draw.uniform(-YEARS, YEARS))
            time.sleep(scene.draw.uniform(0.1, 1.5))
            running[0].kill()
            kills += whole.end(running) != [0]
            for path in (place, *place.rglob("*")):
                then = time.time() + scene.draw.uniform(-YEARS, YEARS)
                os.utime(path, (then, then))
        clock = scene.draw.uniform(-YEARS, YEARS)
        assert told(arguments, scene.said, clock) is None, scene.said.read_text()[-300:]
        same(place / "a.st", scene.wanted)
        assert told(scene.report(place), scene.said, clock) is None
        same(place / "r.html", scene.page)
        assert scene.push(clock) is None
    return {"cases": cases, "kills": kills}


def calls(scene: Scene) -> dict[str, int]:
    """Every call of a save that can fail for want of space: the old file stays, and nothing beside it."""
    path, lm = scene.folder / "calls" / "state", scene.lm
    path.parent.mkdir()
    lm.prefill(IDS).state.save(path)
    before, state = path.read_bytes(), lm.prefill(IDS[:, :9]).state
    for call in CALLS:
        with mock.patch(call, side_effect=OSError(errno.ENOSPC, "No space left on device")):
            try:
                state.save(path)
                raise AssertionError(f"saved though {call} failed")
            except OSError as error:
                assert error.errno == errno.ENOSPC and error.filename == str(path)
        same(path, before)
        assert [one.name for one in path.parent.iterdir()] == ["state"]
    return {"cases": len(CALLS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began, hub = time.monotonic(), borrowed("tests/hub.py").Hub()
    with tempfile.TemporaryDirectory() as name, hub:
        folder = Path(name)
        for key in [key for key in os.environ if key.startswith("HF_")]:
            del os.environ[key]
        os.environ |= hub.env(folder / "home")  # before the fork server starts
        scene = Scene(folder, hub, random.Random(options.seed))
        result: dict[str, Any] = {"calls": calls(scene)}
        for part in (clocks, readonly, full):
            result[part.__name__] = part(scene, options.cases)
            print(part.__name__, result[part.__name__], flush=True)
    keep(options.out, seed=options.seed, **result, seconds=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main()
