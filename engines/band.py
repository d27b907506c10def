"""One band of a sidecar for an engine whose layers do not know how long a prompt is: the filter at one length."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import raw_delta_cut
from ..runtime import CheckpointError, Sidecar, SidecarError
from ..runtime.checkpoint.config import delta_limit
from ..runtime.checkpoint.reader import read_tensors
from ..runtime.checkpoint.source import locate
from ..runtime.families.weights import STEERING, fingerprint

_EMBEDDING = re.compile(r"(^|\.)(embedding|embeddings|embed_tokens)\.weight$")
SKIP = -1e4  # raw delta whose softplus is 0, whatever a bias adds; float16 holds it


class Layer(NamedTuple):
    """What a checkpoint stores of one Mamba layer."""

    A_log: Tensor  # (channels,) in Mamba-2, (channels, N) in Mamba-1
    bias: Tensor  # (channels,), of delta


def cuts_at(sidecar: Sidecar, length: int) -> Tensor:
    """The filter's cut of every layer and channel, (n_layer, channels) float32; -inf where nothing is dropped.

    Raises ValueError where the filter does nothing at `length`, and SidecarError for a sidecar an engine cannot follow:
    one without a filter there, and one that leaves generated tokens alone, as engines mix them with prompts.
    """
    if not sidecar.filter_decode:
        raise SidecarError(
            "this sidecar does not filter generated tokens (filter_decode: false), which an engine cannot tell from a "
            "prompt's; calibrate without a published recipe"
        )
    if sidecar.plan(length, "filter").method == "none":
        raise ValueError(
            f"nothing is filtered at {length} tokens, within the model's training length of {sidecar.train_length}; "
            "give the length of the prompts to be read, or leave the filter off"
        )
    g = [sidecar.thresholds(layer, length) for layer in range(int(sidecar.metadata["n_layer"]))]
    return raw_delta_cut(torch.stack(g))


def stored_layers(model: str, revision: str | None = None) -> tuple[list[Layer], str]:
    """A checkpoint's Mamba layers in order, attention layers not counted, and its fingerprint: the one of `load`.

    model: a folder or a Hub id. Raises CheckpointError if it cannot be read or holds no Mamba layers.
    """
    source = locate(model, revision)
    # Of the others only the shape is asked for: one zero, seen as often as needed.
    found = read_tensors(source, lambda name, t: t.clone() if name.endswith(STEERING) else t.new_zeros(()).expand_as(t))
    mixers = {}
    for name in found:
        if at := re.search(r"\.layers\.(\d+)\.(.+\.)?A_log$", name):
            mixers[int(at[1])] = name.removesuffix("A_log")
    embedding = [t for name, t in found.items() if _EMBEDDING.search(name)]
    if not mixers or len(embedding) != 1:
        raise CheckpointError(f"{source.name}: found no Mamba layers with an embedding; give another checkpoint")
    ordered = [mixers[i] for i in sorted(mixers)]
    layers, named = [], {"backbone.embedding.weight": embedding[0]}
    for k, prefix in enumerate(ordered):
        steering = {name: found[prefix + name] for name in STEERING if prefix + name in found}
        named |= {f"backbone.layers.{k}.mixer.{name}": t for name, t in steering.items()}
        biases = [t for name, t in steering.items() if name != "A_log"]
        if len(biases) != 1:
            raise CheckpointError(f"{source.name}: {prefix}A_log stands without one bias of delta beside it")
        layers.append(Layer(steering["A_log"], biases[0]))
    in_proj = found.get(ordered[0] + "in_proj.weight")
    if in_proj is None:
        raise CheckpointError(f"{source.name}: no tensor {ordered[0]}in_proj.weight")
    named["backbone.layers.0.mixer.in_proj.weight"] = in_proj
    return layers, fingerprint(named, len(ordered))


def check_limit(sidecar: Sidecar, length: int, model: str, revision: str | None = None) -> None:
    """Raise ValueError where a model's limits of delta put our filter and an engine without them at odds.

    With delta raised to a floor first, g below the floor drops nothing and the cut on raw delta does; with delta
    lowered to a ceiling, g at or above it drops everything and the cut does not. At every other g both drop the same.
    """
    source = locate(model, revision)
    path = source.find("config.json")
    low, high = (0.0, float("inf")) if path is None else delta_limit(json.loads(path.read_text(encoding="utf-8")))
    for layer in range(int(sidecar.metadata["n_layer"])):
        g = sidecar.thresholds(layer, length)
        odd = g[((g > 0) & (g < low)) | (g >= high)]
        if len(odd):
            raise ValueError(
                f"{source.name} limits delta to ({low:g}, {high:g}), which this engine does not: with the sidecar's g "
                f"of {float(odd[0]):g} in Mamba layer {layer} at {length} tokens it would skip other tokens than were "
                "calibrated; read this model with longscan.runtime, or give a length whose g lies within the limits"
            )


def which_layer(layers: Sequence[Layer], A: Tensor, bias: Tensor, rank: int = 0, ranks: int = 1) -> int:
    """The layer that a mixer in an engine's memory is, by what it holds: engines number layers in ways of their own.

    A: its rows of -exp(A_log); bias: its bias of delta, in any dtype; rank, ranks: which of as many equal shards of
    the channels it holds. Raises CheckpointError where no layer, or more than one, has these values.
    """
    A, bias = A.detach().cpu().double(), bias.detach().cpu()
    rows = slice(rank * len(bias), (rank + 1) * len(bias))
    # A was exponentiated in float32 by some other exp; the bias was rounded to the engine's dtype, as it is here.
    same = [
        k
        for k, layer in enumerate(layers)
        if len(layer.bias) == ranks * len(bias)
        and A.shape == layer.A_log[rows].shape
        and torch.equal(layer.bias[rows].to(bias.dtype), bias)
        and torch.allclose(-torch.exp(layer.A_log[rows].double()), A, rtol=1e-5, atol=0)
    ]
    if len(same) != 1:
        found = "no Mamba layer" if not same else "more than one Mamba layer"
        raise CheckpointError(
            f"{found} of the checkpoint has the A and the bias of delta that this layer was loaded with; "
            "serve the checkpoint the sidecar was made for, with its own weights"
        )
    return same[0]


def drop(raw: Tensor, bias: Tensor, cut: Tensor) -> Tensor:
    """(..., channels) bool: the tokens that the filter skips. Added in float32, as the scans of engines add them."""
    return raw.float() + bias.float() <= cut
