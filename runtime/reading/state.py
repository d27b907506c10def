"""Everything a Mamba remembers between calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..decode.graph import StepGraph
from ..errors import os_reason
from ..files import parse_json, read_sealed, save_sealed
from ..sidecar.plan import Plan
from .reservoir import Tokens, concatenate


@dataclass
class State:
    """Recurrent state of B sequences. Its size does not depend on how much was read.

    conv: (n_layer, B, D, W-1), the last inputs of each convolution, oldest first, in the model's dtype; Mamba-2
        convolves B and C too: (n_layer, B, H P + 2 G N, W-1)
    ssm: (n_layer, B, D, N), Mamba-2 (n_layer, B, H, P, N), float32 (float64 for a float64 model)
    length: (B,) int64, tokens read so far; on the CPU, so that nobody waits for a GPU to know it
    plan: the plan of the last prefill; a tuple where rows differ
    total: the `total_length` promised to an unfinished prompt (math.inf: open-ended), else None
    protected: r of that prompt
    method: what the last prefill was asked for, "auto" or a forced method
    reservoirs: by decimating layer, the tokens of an unfinished prompt that may still survive, in pieces
    fingerprint, sidecar: of the model the state belongs to, and of the sidecar it was read with ("" = none)
    reader: the number of the attached model that fills the cache this belongs to; 0 = none, the runtime's own state
    """

    conv: Tensor
    ssm: Tensor
    length: Tensor
    plan: Plan | tuple[Plan, ...]
    total: float | None = None
    protected: int = 1
    method: str = "auto"
    reservoirs: dict[int, tuple[Tokens, ...]] = field(default_factory=dict)
    fingerprint: str = ""
    sidecar: str = ""
    reader: int = 0
    graph: StepGraph | None = field(default=None, init=False, compare=False, repr=False)  # of its steps; no copy has it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "graph": None}

    @property
    def batch(self) -> int:
        return self.length.shape[0]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """One plan for all rows, or one a row."""
        return self.plan if isinstance(self.plan, tuple) else (self.plan,)

    def clone(self) -> State:
        """An independent copy: continue one prompt in several ways."""
        # Reservoirs are replaced, never written into: the copy may share their tensors.
        return replace(
            self,
            conv=self.conv.clone(),
            ssm=self.ssm.clone(),
            length=self.length.clone(),
            reservoirs=dict(self.reservoirs),
        )

    def rows(self, index: Sequence[int]) -> State:
        """An independent copy of some rows of the batch, in the given order."""
        picked = torch.tensor(list(index), dtype=torch.int64)
        at = picked.to(self.conv.device)
        plan = tuple(self.plan[i] for i in index) if isinstance(self.plan, tuple) else self.plan
        waiting = {layer: tuple(piece.rows(at) for piece in pieces) for layer, pieces in self.reservoirs.items()}
        return replace(
            self, conv=self.conv[:, at], ssm=self.ssm[:, at], length=self.length[picked], plan=plan, reservoirs=waiting
        )

    def save(self, path: str | Path) -> None:
        """Write the state as safetensors (temporary name, then renamed)."""
        meta = {
            "schema": "longscan.state",
            "plans": json.dumps([[p.method, p.length, sorted(p.decimate.items())] for p in self.plans]),
            "total": json.dumps(self.total),
            "protected": str(self.protected),
            "method": self.method,
            "length": json.dumps(self.length.tolist()),
            "model_fingerprint": self.fingerprint,
            "sidecar_sha256": self.sidecar,
        }
        tensors = {"conv": self.conv, "ssm": self.ssm, "length": self.length}
        for layer, pieces in self.reservoirs.items():
            waiting = concatenate(pieces)._asdict()
            tensors |= {f"reservoirs.{layer}.{name}": t for name, t in waiting.items()}
        save_sealed(Path(path), tensors, meta)


def check_kind(state: object, kind: type) -> None:
    """Refuse a state that another kind of model made: a hybrid's holds a cache of attention, ours does not."""
    if not isinstance(state, kind):
        raise ValueError(f"the state is a {type(state).__name__}; this model goes on from a {kind.__name__} of its own")


def check_origin(state: State, fingerprint: str, sidecar: str) -> None:
    """Refuse a state of another model's, and a prompt of which another sidecar has read a part."""
    if state.fingerprint != fingerprint:
        raise ValueError("the state was made by another model; go on with the model that made it")
    if state.sidecar != sidecar and state.total is not None:
        raise ValueError("the state's prompt was begun with another sidecar, or none; read it to its end with that one")


class Draft:
    """What a pass makes of a state, kept aside until it is through: one that fails has changed nothing.

    Nothing is copied but what would be in any case, the new states into the old ones' place.
    """

    def __init__(self, state: State):
        self._state = state
        self._conv: dict[int, Tensor] = {}
        self._ssm: dict[int, Tensor] = {}
        self.reservoirs = dict(state.reservoirs)

    def conv(self, i: int) -> Tensor:
        """Layer i's, as the pass has left it."""
        return self._conv[i] if i in self._conv else self._state.conv[i]

    def ssm(self, i: int) -> Tensor:
        return self._ssm[i] if i in self._ssm else self._state.ssm[i]

    def convolved(self, i: int, conv: Tensor) -> None:
        """Layer i's from now on."""
        self._conv[i] = conv

    def scanned(self, i: int, ssm: Tensor) -> None:
        self._ssm[i] = ssm

    def commit(self) -> None:
        for i, conv in self._conv.items():
            self._state.conv[i] = conv
        for i, ssm in self._ssm.items():
            self._state.ssm[i] = ssm
        self._state.reservoirs = self.reservoirs


def read_state(path: str | Path, fingerprint: str, sidecar: str, device: torch.device) -> State:
    """Read a saved state. Raises ValueError if the file is no state, or belongs to another model or sidecar."""
    try:
        read, meta = read_sealed(Path(path))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {os_reason(error)}") from error
    tensors = {name: tensor.to(device) for name, tensor in read.items()}
    if meta.get("schema") != "longscan.state":
        raise ValueError(f"{path} holds no saved state; give a file written by State.save")
    if meta.get("model_fingerprint") != fingerprint:
        raise ValueError(f"{path} was saved by another model; load the model it belongs to")
    if meta.get("sidecar_sha256") != sidecar:
        saved = (meta.get("sidecar_sha256") or "none")[:12]
        raise ValueError(
            f"{path} was saved with another sidecar (sha256 {saved}, loaded: {(sidecar or 'none')[:12]}); "
            "load the model with the sidecar it was saved with"
        )
    try:
        plans = tuple(Plan(m, s, {int(k): int(v) for k, v in kept}) for m, s, kept in parse_json(meta["plans"]))
        return State(
            conv=tensors["conv"],
            ssm=tensors["ssm"],
            length=tensors["length"].cpu(),
            plan=plans[0] if len(plans) == 1 else plans,
            total=parse_json(meta["total"]),
            protected=int(meta["protected"]),
            method=meta["method"],
            reservoirs=_reservoirs(tensors),
            fingerprint=fingerprint,
            sidecar=sidecar,
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a complete state ({error!r}); save the state again") from error


def _reservoirs(tensors: dict[str, Tensor]) -> dict[int, tuple[Tokens, ...]]:
    layers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("reservoirs.")})
    return {i: (Tokens(*(tensors[f"reservoirs.{i}.{name}"] for name in Tokens._fields)),) for i in layers}
