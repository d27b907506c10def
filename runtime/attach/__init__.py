"""Models that are already in memory: filter and decimate in another library's model, and undo it.

from longscan.runtime import attach
with attach(model, "mamba-130m.longscan.safetensors"):
    model.generate(ids, max_new_tokens=64)

Inference only: no gradient passes through an attached model. Where decimation drops tokens, `model(ids).logits` has a
row for each token still present (`attached.positions`); logits_to_keep protects the last ones. Hybrids with
attention filter but never decimate: their attention layers and its caches need every token. The table: docs/attach.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..sidecar.plan import METHODS
from ..sidecar.sidecar import Sidecar
from .attached import MARK, Attached
from .families import family_of
from .identity import check_sidecar

__all__ = ["Attached", "attach", "detach"]


def attach(
    model: Any,
    sidecar: str | Path | Sidecar | None = None,
    *,
    method: str = "auto",
    filter_decode: bool | None = None,
    backend: str = "auto",
    checkpoint: str | None = None,
) -> Attached:
    """Run a foreign model's Mamba layers through our kernels, by the sidecar's plan for each prompt.

    model: transformers' Mamba, FalconMamba or Mamba2, its hybrids Zamba2, Bamba, Granite 4, Jamba, Falcon-H1 or
        Nemotron-H, or mamba_ssm's MambaLMHeadModel, also in PEFT's wrapper; it is changed in place, and its
        projections, norms, attention and caches stay its own
    sidecar: a file, a Hub id or a Sidecar; None is the plain model (with transformers' chunked Mamba-1 prefill mended)
    method: "auto" (the sidecar's choice at the prompt's length) or one to force, as in LM.prefill
    filter_decode: filter generated tokens too, with the sidecar's g at the length reached; False as published; None as
        the sidecar says, which is True unless a published recipe made it
    checkpoint: the folder or Hub id the model was loaded from, asked for only where the model is in half precision and
        does not say (mamba_ssm): the sidecar is checked against float32 values

    Raises ValueError for a model attach does not know, one that is attached already, or a method it cannot follow, and
    SidecarError for a sidecar that is malformed or made for another model.
    """
    model = _inside(model)
    family = family_of(model)
    if MARK in vars(model):
        raise ValueError("this model is attached already; detach(model) first")
    if method not in ("auto", *METHODS):
        raise ValueError(f"unknown method {method!r}; choose auto, {', '.join(METHODS)}")
    if sidecar is None and method not in ("auto", "none"):
        raise ValueError(f"method {method!r} needs a sidecar; attach(model, sidecar)")
    if method in ("decimate", "both") and not family.decimates:
        raise ValueError(f"{family.name} cannot be decimated; attach with method='filter'")
    if isinstance(sidecar, str | Path):
        sidecar = Sidecar.read(sidecar)
    if sidecar is not None:
        check_sidecar(sidecar, model, family, checkpoint)
    return Attached(model, family, sidecar, method, backend, filter_decode)


def detach(model: Any) -> None:
    """Give an attached model its own forward back: the same functions, the same bits.

    Raises ValueError if it is not attached.
    """
    model = _inside(model)
    if MARK not in vars(model):
        raise ValueError("this model is not attached; nothing to detach")
    vars(model)[MARK].detach()


def _inside(model: Any) -> Any:
    """The model itself where PEFT has wrapped it: its adapters lie in the projections, which stay the model's own."""
    return model.get_base_model() if type(model).__module__.startswith("peft.") else model
