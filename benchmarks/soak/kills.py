"""SIGKILL at random moments of `State.save`, `run` alone and in three processes, `report` and `push`.

After each kill: every file is the old one or the new one, and what lies about does not grow. The same command again
then ends, locked out by nobody, with the bytes of one that nobody killed; a hub has one commit of it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import whole
from shared import borrowed, checkpoints, keep

from longscan.runtime import load
from longscan.runtime.reading.state import State

IDS = torch.arange(40)[None]
SHARES = {"states": 0.4, "alone": 0.24, "three": 0.12, "reports": 0.12, "pushes": 0.12}  # of all kills


def save_forever(states: list[State], path: Path) -> None:
    while True:
        for state in states:
            state.save(path)


def states(kills: int, draw: random.Random, folder: Path) -> dict[str, int]:
    """Kill a process that saves one state after another over the same file."""
    lm = load(checkpoints.write_state_spaces(folder / "tiny", checkpoints.random_tensors()))
    path = folder / "s" / "state"
    path.parent.mkdir()
    two = [lm.prefill(IDS[:, :n]).state for n in (20, 40)]
    two[0].save(path)
    wrong = left = 0
    for _ in range(kills):
        child = whole.FORKS.Process(target=save_forever, args=(two, path))
        child.start()
        time.sleep(draw.uniform(0.05, 0.25))
        kill([child], draw)
        try:
            wrong += int(lm.load_state(path).length) not in (20, 40)
        except ValueError:
            wrong += 1
        left = max(left, len(list(path.parent.iterdir())) - 1)
    return {"kills": kills, "wrong": wrong, "temporary_files_at_most": left}


def kill(processes: list[BaseProcess], draw: random.Random) -> int:
    """All at once, or one of several, upon which torchrun stops (SIGTERM) the others -> how many hung."""
    victims = processes if draw.random() < 0.5 else [draw.choice(processes)]
    for one in victims:
        one.kill()
    time.sleep(draw.uniform(0, 0.2))
    for one in processes:
        if one.is_alive() and one not in victims:
            os.kill(one.pid or 0, signal.SIGTERM)
    return whole.end(processes, 20).count(None)


class Killed:
    """A command killed at random moments, and what came of it."""

    def __init__(self, arguments: list[str], folder: Path, draw: random.Random, size: int = 1) -> None:
        self.arguments, self.folder, self.draw, self.size = arguments, folder, draw, size
        self.said = folder.with_name(f"{folder.name}.said")
        self.found = {"kills": 0, "ended": 0, "hung": 0, "wrong": 0, "temporary_files_at_most": 0}

    def strike(self, moment: Callable[[], float]) -> bool:
        """Start it and kill it at a moment, in seconds -> whether it had ended by then."""
        running = whole.start(self.arguments, self.said, self.size)
        until = time.monotonic() + moment()
        while any(one.is_alive() for one in running) and time.monotonic() < until:
            time.sleep(0.002)
        if not any(one.is_alive() for one in running):
            self.check([code for code in whole.end(running) if code])
            self.found["ended"] += 1
            return True
        self.found["hung"] += kill(running, self.draw)
        self.found["kills"] += 1
        left = sum(1 for path in self.folder.rglob("*") if path.suffix == ".tmp" or ".incomplete" in path.name)
        self.found["temporary_files_at_most"] = max(self.found["temporary_files_at_most"], left)
        return False

    def finish(self) -> None:
        self.check([code for code in whole.end(whole.start(self.arguments, self.said, self.size)) if code])
        self.found["ended"] += 1

    def check(self, wrong: object) -> None:
        self.found["wrong"] += bool(wrong)
        if wrong:
            print(f"{self.arguments[0]}: {wrong}; {self.last_words()}", flush=True)

    def last_words(self) -> str:
        return " | ".join(self.said.read_text().splitlines()[-3:])[-400:]


def runs(kills: int, size: int, draw: random.Random, folder: Path, given: list[str], wanted: bytes) -> dict[str, Any]:
    """`run`, killed within the time that it takes; it goes on until it has its sidecar, and begins anew."""
    work, out = folder / "work", folder / "a.safetensors"
    folder.mkdir()
    one = Killed([*given, "--out", str(out), "--workdir", str(work)], folder, draw, size)
    began = time.monotonic()
    one.finish()
    seconds = time.monotonic() - began
    while True:
        if out.exists():
            one.check(out.read_bytes() != wanted and "other bytes")
            out.unlink()
            shutil.rmtree(work)
        if one.found["kills"] == kills:
            break
        if not one.strike(lambda: draw.uniform(0, seconds)):
            one.check(out.exists() and out.read_bytes() != wanted and "a half sidecar")
    one.finish()
    one.check(out.read_bytes() != wanted and "other bytes")
    one.check("in use" in one.said.read_text() and "locked out")
    return {"processes": size, "seconds_whole": round(seconds, 1), **one.found}


def reports(kills: int, draw: random.Random, folder: Path, sidecars: list[Path]) -> dict[str, Any]:
    """`report` of one sidecar over that of another."""
    folder.mkdir()
    commands: list[list[str]] = []
    wanted: list[dict[str, bytes]] = []
    took = 0.0
    for sidecar in sidecars:
        commands.append(["report", str(sidecar), "-o", str(folder / "r.html"), "--figures", str(folder / "figures")])
        began = time.monotonic()
        whole.end(whole.start(commands[-1], folder.with_name("wanted.said")))
        took = time.monotonic() - began
        wanted.append(written(folder))
    one = Killed(commands[0], folder, draw)
    while one.found["kills"] < kills:
        one.arguments = draw.choice(commands)
        one.strike(lambda: draw.uniform(0.2, 1.1) * took)
        there = {
            path.name: path.read_bytes() for path in folder.rglob("*.*") if path.suffix in (".html", ".svg", ".png")
        }
        one.check([name for name, data in there.items() if all(data != files.get(name) for files in wanted)])
    for one.arguments, files in zip(commands, wanted):
        one.finish()
        one.check(written(folder) != files and "other files")
    return one.found


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


def pushes(kills: int, draw: random.Random, folder: Path, sidecar: Path, hub: Any) -> dict[str, Any]:
    """`push`, killed before any of its requests or between them; then once more."""
    folder.mkdir()
    one = Killed(["push", str(sidecar), "someone/whole"], folder, draw)
    one.finish()
    asked, commits = len(hub.log), {0: 0, 1: 0}
    while one.found["kills"] < kills:
        name = f"someone/p{one.found['kills']}-{one.found['ended']}"
        one.arguments = ["push", str(sidecar), name]
        before, wanted = len(hub.log), draw.randint(0, asked - 1)

        def reached(before: int = before, wanted: int = wanted) -> float:
            until = time.monotonic() + 20
            while len(hub.log) - before < wanted and time.monotonic() < until:
                time.sleep(0.001)
            return draw.uniform(0, 0.05) if wanted else draw.uniform(0, 1)

        one.strike(reached)
        repo = hub.repos.get(f"models/{name}")
        made = len(repo.branches["main"]) - 1 if repo else 0  # besides "initial commit"
        one.check(made not in commits and f"{made} commits")
        commits[min(made, 1)] += 1
        one.finish()
        made = len(hub.repos[f"models/{name}"].branches["main"]) - 1
        one.check(made != 1 and f"{made} commits in the end")
        there = hub.repos[f"models/{name}"].find("main").files
        one.check(there["sidecar.safetensors"] != sidecar.read_bytes() and "other bytes at the hub")
    return {**one.found, "requests_of_a_push": asked, "no_commit_when_killed": commits[0], "one_commit": commits[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="kills in all")
    parser.add_argument("--only", nargs="*", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began, hub = time.monotonic(), borrowed("tests/hub.py").Hub()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key in [key for key in os.environ if key.startswith("HF_")]:
            del os.environ[key]
        os.environ |= hub.env(folder / "pushes" / "home") | {"TMPDIR": name}  # before the server starts
        given, sidecars = (
            whole.calibration(folder / "model"),
            [folder / "whole.safetensors", folder / "other.safetensors"],
        )
        for seed, path in enumerate(sidecars):
            made = [*given, "--seed", str(seed), "--out", str(path), "--workdir", str(folder / "whole.work")]
            assert whole.end(whole.start(made, folder / "whole.said")) == [0], (folder / "whole.said").read_text()
        wanted = sidecars[0].read_bytes()
        plain = folder / "plain.st"  # of few figures, which a push draws first
        checkpoints.make_sidecar(load(folder / "model")).write(plain)
        draw = random.Random(options.seed)
        parts: dict[str, Callable[[int], dict[str, Any]]] = {
            "states": lambda kills: states(kills, draw, folder),
            "alone": lambda kills: runs(kills, 1, draw, folder / "alone", given, wanted),
            "three": lambda kills: runs(kills, 3, draw, folder / "three", given, wanted),
            "reports": lambda kills: reports(kills, draw, folder / "reports", sidecars),
            "pushes": lambda kills: pushes(kills, draw, folder / "pushes", plain, hub),
        }
        result = {}
        with hub:
            for part in options.only:
                result[part] = parts[part](round(options.cases * SHARES[part]))
                print(part, result[part], flush=True)
        left = [path.name for path in folder.iterdir() if path.name.startswith(("tmp", "longscan-"))]
        print(f"left in the folder for temporary files: {left}")
    kills = sum(one["kills"] for one in result.values())
    result |= {"kills": kills, "left_in_tmpdir": left, "seconds": round(time.monotonic() - began, 1)}
    keep(options.out, seed=options.seed, **result)
    if any(one["wrong"] or one.get("hung") for one in result.values() if isinstance(one, dict)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
