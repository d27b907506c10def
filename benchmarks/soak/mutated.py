"""Mutated inputs: each is read right or refused in one line of ours; no other error, no hang, no flood of memory.

    python benchmarks/soak/mutated.py --cases 100000 --out mutated.json

Cases run in a child process, which says where it is: a crash or a hang is counted for its case, and the rest goes on.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import inputs
import torch
from shared import keep
from target import Target, shown

from longscan.calibrate.errors import UserError
from longscan.runtime import CheckpointError, SidecarError

OURS = (UserError, CheckpointError, SidecarError)
SECONDS = 10.0
SLACK = 96 << 20  # bytes of memory beyond twice the file: what a process's allocators and libraries move by themselves
LIMIT = 8 << 30  # of the child's address space: a flood ends as an error, not as the machine's


def memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0


def attempt(target: Target, draw: random.Random) -> tuple[str, str, bytes]:
    """One case -> what came of it ("read", "refused" or "fault"), what was said, and the mutated file."""
    data = target.mutate(target.data, draw)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, began = memory("VmRSS"), time.monotonic()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            target.read(data)
        outcome, said = "read", ""
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        frames = [*traceback.walk_tb(error.__traceback__)]
        ours = [(f, line) for f, line in frames if f.f_globals.get("__name__", "").startswith("longscan.")]
        own = type(error) is ValueError and ours and ours[-1] == frames[-1]
        outcome = "refused" if isinstance(error, OURS) or own else "fault"
        if outcome == "refused" and (";" not in said or len(said.splitlines()) > 1) and type(error) is not UserError:
            outcome, said = "fault", f"not one line with a remedy: {said}"
        if outcome == "fault":
            frame, line = (ours or frames)[-1]
            said += f" [{Path(frame.f_code.co_filename).name}:{line}]"
    seconds, more = time.monotonic() - began, memory("VmHWM") - before
    if seconds > SECONDS:
        return "fault", f"took {seconds:.0f} s ({said})", data
    if more > 2 * len(data) + SLACK:
        return "fault", f"took {more >> 20} MiB for {len(data)} bytes ({said})", data
    return outcome, said, data


def work(name: str, folder: Path, seed: int, first: int, last: int, says: Connection) -> None:
    """Cases first ... last - 1 of a target."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write there past Python
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    target = inputs.targets(folder)[name]()
    target.read(target.data)  # which also warms up what is imported and compiled once
    for case in range(first, last):
        says.send(("at", case, "", ""))
        outcome, said, data = attempt(target, random.Random(f"{seed} {name} {case}"))
        says.send((outcome, case, said, shown(data) if outcome == "fault" else ""))
    says.send(("end", last, "", ""))


def soak(
    name: str, cases: int, seed: int, folder: Path, say: Any = print
) -> tuple[collections.Counter[str], list[dict[str, Any]]]:
    """All cases of a target -> counts of outcomes, and the faults."""
    context = multiprocessing.get_context("fork")
    counts: collections.Counter[str] = collections.Counter()
    faults: list[dict[str, Any]] = []
    case = 0
    while case < cases:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        here, there = context.Pipe()
        child = context.Process(target=work, args=(name, folder, seed, case, cases, there))
        child.start()
        there.close()
        ended = False
        with contextlib.suppress(EOFError):
            while here.poll(120 if case == 0 else 3 * SECONDS):
                outcome, at, said, data = here.recv()
                if outcome == "end":
                    ended = True
                    break
                case = at
                if outcome != "at":
                    counts[outcome] += 1
                    case += 1
                    if outcome == "fault":
                        faults.append({"target": name, "case": at, "said": said[:300], "file": data})
        if not ended:
            child.kill()
        child.join()
        if not ended:
            counts["fault"] += 1
            faults.append({"target": name, "case": case, "said": f"the process ended or hung (exit {child.exitcode})"})
            case += 1
    return counts, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="in all, dealt out evenly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[""], help="targets whose names begin so")
    parser.add_argument("--faults", type=Path, help="write every fault, with its file, here")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    names = [name for name in inputs.targets(folder) if name.startswith(tuple(options.only))]
    began, by_name, faults = time.monotonic(), {}, []
    for name in names:
        at = time.monotonic()
        counts, found = soak(name, -(-options.cases // len(names)), options.seed, folder)
        by_name[name] = dict(counts)
        faults += found
        print(f"{name:<24} {dict(counts)} in {time.monotonic() - at:.0f} s", file=sys.stderr, flush=True)
        kinds = collections.Counter(f["said"][:160] for f in found)
        for said, count in kinds.most_common(12):
            print(f"    {count:>6} x {said}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    total = sum((collections.Counter(c) for c in by_name.values()), collections.Counter())
    result = {"cases": sum(total.values()), **total, "seconds": round(time.monotonic() - began, 1), "targets": by_name}
    print(json.dumps(result, indent=1))
    if options.faults:
        options.faults.write_text(json.dumps(faults, indent=1))
    keep(options.out, seed=options.seed, **result)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
