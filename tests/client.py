"""A process in which `calibrate` runs with an unmodified huggingface_hub, one command a line of standard input.

The client library reads HF_ENDPOINT and its kin when it is imported; hence a process of its own. It is kept for many
commands because importing torch takes longer than the tests. Time is short in it: what anyone waits for before trying
again is a hundredth of what it says, and the figures of a sidecar that is pushed again are not drawn again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class Result:
    code: int
    stdout: str
    stderr: str


class Client:
    """Use as a context manager. env: added to this process's environment."""

    def __init__(self, env: dict[str, str]) -> None:
        full = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | env
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=full
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def calibrate(self, *arguments: object, token: str | None = "hf_writer") -> Result:
        return Result(**self.ask(command=[str(a) for a in arguments], token=token))

    def logits(self, model: str, sidecar: str | None, ids: list[int], **options: str) -> list[float] | str:
        """Last logits of `load(model, sidecar, **options).prefill([ids])`, or the error's text."""
        return self.ask(load=[model, sidecar], options=options, ids=ids)

    def texts(self, source: str, role: str, max_bytes: int) -> list[str]:
        """[name, first document, ...] of `read_texts`, or the error's text alone."""
        return self.ask(texts=source, role=role, max_bytes=max_bytes)


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    sleep, time.sleep = time.sleep, lambda seconds: sleep(seconds / 100)
    draw_once()
    for line in sys.stdin:
        request = json.loads(line)
        answer = command if "command" in request else logits if "load" in request else texts
        print(json.dumps(answer(request)), file=answers, flush=True)


def draw_once() -> None:
    from longscan.calibrate.share import push

    draw, drawn = push.pictures, {}

    def pictures(side):
        said = json.dumps(side.metadata)
        if said not in drawn:
            drawn[said] = [SimpleNamespace(**vars(one), render=cache(one.render)) for one in draw(side)]
        return drawn[said]

    push.pictures = pictures


def command(request: dict[str, Any]) -> dict[str, Any]:
    from click.testing import CliRunner

    from longscan.calibrate.commands import cli

    os.environ.pop("HF_TOKEN", None)
    if request["token"]:
        os.environ["HF_TOKEN"] = request["token"]
    result = CliRunner().invoke(cli, request["command"])
    return {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}


def logits(request: dict[str, Any]) -> Any:
    import torch

    from longscan.runtime import CheckpointError, SidecarError, load

    model, sidecar = request["load"]
    try:
        lm = load(model, sidecar, device="cpu", **request["options"])
    except (CheckpointError, SidecarError) as error:
        return f"{type(error).__name__}: {error}"
    return lm.prefill(torch.tensor([request["ids"]])).logits[0, -1].tolist()


def texts(request: dict[str, Any]) -> list[str]:
    from longscan.calibrate.errors import UserError
    from longscan.calibrate.texts.sources import read_texts

    try:
        found = read_texts(request["texts"], role=request["role"], max_bytes=request["max_bytes"])
    except UserError as error:
        return [str(error)]
    return [found.name, *found.documents]


if __name__ == "__main__":
    main()
