"""Pushes to and loads from a hub on the loopback interface that fails at random.

A push must end in exactly one commit, or in one line and none; a load in the right tensors, or in one line. Every wait
of the client is cut short, so that its retries cost no time; nothing else of it is touched.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from shared import borrowed, checkpoints, keep

SIDECAR = "someone/side"
PUSHED = (
    "repos/create",
    "/preupload/",
    "/lfs/",
    "objects/batch",
    "/commit/",
    "/api/models/",
    "/commits/",
    "/resolve/",
    "validate-yaml",
)
LOADED = ("/resolve/", "GET /lfs/", "/api/models/", "HEAD ")
FAULTS = ("drop", "drop after", "cut", "short", "etag", 429, 429, 500, 502, 503, 504, 401, 403, 404, 409, 412)
RIGHT = ("done", "refused", "refused, then done")
TIMES = (1, 1, 1, 2, 3, 9)


def push_case(hub: Any, files: dict[str, bytes], draw: random.Random, case: int) -> str:
    """ "done", "refused", or what is wrong."""
    from longscan.calibrate.errors import UserError
    from longscan.calibrate.share.push import publish

    name = f"someone/p{case if draw.random() < 0.5 else case % 7}"
    sidecar = files["sidecar.safetensors"]
    mine = dict(files) | {"sidecar.safetensors": sidecar, "notes.json": str(case).encode()}
    with hub.lock:
        repo = hub.repos.get(f"models/{name}")
        before = len(repo.branches["main"]) if repo else 1  # "initial commit"
        theirs = [0]

    def moved() -> None:
        if f"models/{name}" in hub.repos:
            hub.put(name, {"theirs.txt": str(draw.random()).encode()})
            theirs[0] += 1

    for _ in range(draw.choice((1, 1, 2, 3))):
        what = moved if draw.random() < 0.15 else draw.choice(FAULTS)
        hub.inject(draw.choice(PUSHED), what, draw.choice(TIMES), seconds=1)
    try:
        made = publish(mine, name)
    except UserError as error:
        said, made = str(error), None
        if "\n" in said or ";" not in said:
            return f"not one line with a remedy: {said}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        hub.faults.clear()
    repo = hub.repos.get(f"models/{name}")
    commits = (len(repo.branches["main"]) if repo else before) - before - theirs[0]
    if made is None and "may be made or not" in said:  # then doing as it says must leave one
        publish(mine, name)
        again = len(repo.branches["main"]) - before - theirs[0]
        return "refused, then done" if again == 1 else f"{again} commits after: {said}"
    if made is None:
        return "refused" if commits == 0 else f"{commits} commits though it says: {said}"
    head = repo.find(made.commit)
    if commits != 1 or head is None or any(head.files.get(n) != d for n, d in mine.items() if n != "README.md"):
        return f"{commits} commits, or not of these files, though it says done"
    return "done"


def load_case(hub: Any, wanted: Any, model: Any, draw: random.Random, cache: Path) -> str:
    from longscan.runtime import CheckpointError, Sidecar, SidecarError, load

    if draw.random() < 0.7:
        shutil.rmtree(cache, ignore_errors=True)
    for _ in range(draw.choice((1, 1, 2, 3))):
        hub.inject(draw.choice(LOADED), draw.choice(FAULTS), draw.choice(TIMES), seconds=1)
    try:
        if draw.random() < 0.5:
            found, right = Sidecar.read(SIDECAR).tensors, wanted.tensors
        else:
            found, right = {"": load("someone/tiny").prefill(torch.arange(30)[None]).logits}, {"": model}
    except (CheckpointError, SidecarError) as error:
        return "refused" if "\n" not in str(error) and ";" in str(error) else f"not one line with a remedy: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        hub.faults.clear()
    same = set(found) == set(right) and all(torch.equal(found[n], t) for n, t in right.items())
    return "done" if same else "other tensors than the repository holds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="pushes, and as many loads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    assert "huggingface_hub" not in sys.modules  # it reads its settings when it is imported
    folder, began, sleep = Path(tempfile.mkdtemp()), time.monotonic(), time.sleep
    counts: dict[str, collections.Counter[str]] = {"push": collections.Counter(), "load": collections.Counter()}
    with borrowed("tests/hub.py").Hub() as hub:
        for name in [n for n in os.environ if n.startswith("HF_")]:
            del os.environ[name]
        os.environ.update(hub.env(folder / "home"))
        from longscan.calibrate.share.push import gather
        from longscan.runtime import load

        time.sleep = lambda seconds: sleep(min(seconds, 0.002))
        lm = load(checkpoints.write_state_spaces(folder / "tiny", checkpoints.random_tensors()))
        side = checkpoints.make_sidecar(lm)
        side.write(folder / "side.longscan.safetensors")
        files = gather(str(folder / "side.longscan.safetensors"), "someone/x")
        hub.put(SIDECAR, files)
        hub.put("someone/tiny", {path.name: path.read_bytes() for path in (folder / "tiny").iterdir()})
        logits = lm.prefill(torch.arange(30)[None]).logits
        cache = folder / "home" / "hub"
        for case in range(options.cases):
            draw = random.Random(f"{options.seed} {case}")
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                told = {"push": push_case(hub, files, draw, case), "load": load_case(hub, side, logits, draw, cache)}
            for kind, said in told.items():
                counts[kind][said[:200]] += 1
                if said not in RIGHT:
                    print(f"case {case}, {kind}: {said[:300]}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    result = {
        "cases": options.cases,
        **{kind: dict(c) for kind, c in counts.items()},
        "seconds": round(time.monotonic() - began, 1),
    }
    print(result)
    keep(options.out, seed=options.seed, **result)
    if any(said not in RIGHT for c in counts.values() for said in c):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
