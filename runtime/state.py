"""Everything a Mamba remembers between calls."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import save_tensors
from .plan import Plan


@dataclass
class State:
    """Recurrent state of B sequences. Its size does not depend on how much was read.

    conv: (n_layer, B, D, W-1), the last inputs of each convolution, oldest first, in the model's dtype
    ssm: (n_layer, B, D, N) float32 (float64 for a float64 model)
    length: (B,) int64, tokens read so far
    plan: the plan of the last prefill; a tuple where rows differ
    total: the `total_length` promised to an unfinished prompt, else None
    protected: r of that prompt
    fingerprint: of the model the state belongs to
    """

    conv: Tensor
    ssm: Tensor
    length: Tensor
    plan: Plan | tuple[Plan, ...]
    total: float | None = None
    protected: int = 1
    fingerprint: str = ""

    @property
    def batch(self) -> int:
        return self.length.shape[0]

    def clone(self) -> State:
        """An independent copy: continue one prompt in several ways."""
        return replace(self, conv=self.conv.clone(), ssm=self.ssm.clone(), length=self.length.clone())

    def save(self, path: str | Path) -> None:
        """Write the state as safetensors (temporary name, then renamed)."""
        plans = self.plan if isinstance(self.plan, tuple) else (self.plan,)
        meta = {
            "schema": "longscan.state",
            "plans": json.dumps([[p.method, p.length, sorted(p.decimate.items())] for p in plans]),
            "total": json.dumps(self.total),
            "protected": str(self.protected),
            "model_fingerprint": self.fingerprint,
        }
        save_tensors(Path(path), {"conv": self.conv, "ssm": self.ssm, "length": self.length}, meta)


def read_state(path: str | Path, fingerprint: str, device: torch.device) -> State:
    """Read a saved state. Raises ValueError if the file is no state or belongs to another model."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable state file ({error}); save the state again") from error
    if meta.get("schema") != "longscan.state" or set(tensors) != {"conv", "ssm", "length"}:
        raise ValueError(f"{path} holds no saved state; give a file written by State.save")
    if meta.get("model_fingerprint") != fingerprint:
        raise ValueError(f"{path} was saved by another model; load the model it belongs to")
    plans = tuple(Plan(m, s, {int(k): int(v) for k, v in kept}) for m, s, kept in json.loads(meta["plans"]))
    plan = plans[0] if len(plans) == 1 else plans
    total, protected = json.loads(meta["total"]), int(meta["protected"])
    return State(**tensors, plan=plan, total=total, protected=protected, fingerprint=fingerprint)
