"""The sidecar: what a calibration found, as one safetensors file.

A sidecar holds *bands* of lengths. Each band has a method and its own tables:

    bands.{b}.lengths      (K,) int64, ascending, all > train_length
    bands.{b}.thresholds   (K, n_layer, channels) float32, g(S); 0 = local channel, or nothing filtered
    bands.{b}.both         the same for method "both" where it was fitted for it (g_fit sequential)
    bands.{b}.scales       (K, n_layer, channels) float32 > 0, the factor on delta of method "scale"; 1 = untouched
    bands.{b}.keep         (n,) int64, tokens kept, one a decimating layer
    bands.{b}.layers       (n,) int64, the decimating layers, ascending
    bands.{b}.weights      (n, channels) float32, the score's channel weights

and an entry in the metadata's `policy`, canonical JSON, in which `filter_decode: false` leaves generated tokens alone
and `rotary` holds factors on a hybrid's rotary positions by calibrated length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint.source import SIDECAR_FILE, download, expand, is_hub_id, split_revision
from ..errors import CheckpointError, SidecarError, os_reason
from ..files import save_tensors
from .interpolation import Interpolation, look_up
from .plan import METHODS, Plan, Yarn
from .validation import RETIRED, check

SCHEMA, VERSION = "longscan.sidecar", "1"
# A band's tables that a method needs; and, where one is missing, what that is and how to get it.
_TABLES = {
    "none": (), "filter": ("thresholds",), "decimate": ("layers",), "both": ("thresholds", "layers"),
    "scale": ("scales",),
}  # fmt: skip
_REMEDIES = {
    "thresholds": ("filter", "filter or auto"), "layers": ("decimation", "decimate or auto"),
    "scales": ("scales", "scale"),
}  # fmt: skip


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class Band:
    """One entry of the policy: the calibrated lengths it serves and what it does there."""

    lengths: tuple[int, ...]  # calibrated lengths, ascending
    method: str  # what "auto" means here
    theta: float | None = None  # a channel is global if its decay exceeds theta; None: no filter
    log_theta: float | None = None  # the same where theta underflows a float
    mass: Mapping[str, float] = field(default_factory=dict)  # length -> m(S)
    g_fit: str = "stretched"
    interpolation: Interpolation = "log"
    start: int = 0  # g = 0 below this length (published tables)
    score: str = "all"  # how decimation's score weighs the channels

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "lengths": list(self.lengths), "mass": dict(self.mass)}


@dataclass(frozen=True)
class Sidecar:
    """Tensors and metadata of one calibration. Compare plans, not sidecars.

    metadata keys: format, schema, schema_version, producer, producer_version, base_model, base_model_revision,
    model_fingerprint, train_length, n_layer, channels, recipe, calibration, scores, policy.
    """

    tensors: Mapping[str, Tensor]
    metadata: dict[str, str]

    @staticmethod
    def read(path_or_repo: str | Path, revision: str | None = None) -> Sidecar:
        """Read and check a sidecar: a file, a folder or a Hub repository (`user/name`, `user/name@revision`) with one.

        Raises SidecarError naming the key, what was found, what was expected, and the remedy.
        """
        path = find_file(path_or_repo, revision)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except OSError as error:
            raise SidecarError(f"cannot read {path.name}: {os_reason(error)}") from error
        except SafetensorError as error:
            raise SidecarError(f"{path.name} is not a readable safetensors file ({error}); fetch it again") from error
        side = Sidecar(tensors, metadata)
        check(side.tensors, side.metadata)
        return side

    def write(self, path: str | Path) -> None:
        """Write the file (temporary name, then renamed). Raises SidecarError if invalid, OSError if it cannot."""
        check(self.tensors, self.metadata)
        save_tensors(Path(path), self.tensors, self.metadata)

    @cached_property
    def bands(self) -> tuple[Band, ...]:
        """The policy, in order of length."""
        entries = json.loads(self.metadata["policy"])["bands"]
        return tuple(
            Band(**{key: value for key, value in e.items() if key not in RETIRED} | {"lengths": tuple(e["lengths"])})
            for e in entries
        )

    @property
    def train_length(self) -> int:
        return int(self.metadata["train_length"])

    @cached_property
    def filter_decode(self) -> bool:
        """Whether generated tokens are filtered, too, unless the caller says otherwise; never by a published recipe."""
        return bool(json.loads(self.metadata["policy"]).get("filter_decode", True))

    @cached_property
    def rotary(self) -> dict[int, float]:
        """Factor on rotary positions by calibrated length; empty = none anywhere."""
        found = json.loads(self.metadata["policy"]).get("rotary", {})
        return {length: float(found[str(length)]) for length in sorted(map(int, found))}

    def check_rotary(self, has: bool) -> None:
        """Raise SidecarError for factors on rotary positions that a model does not have."""
        if self.rotary and not has:
            raise SidecarError(
                "policy.rotary: found factors on rotary positions, expected none: this model has no such positions, "
                "or its own config stretches them already; calibrate this model"
            )

    def _yarn(self, length: float) -> Yarn | None:
        """Log factor linear in log S, from 1 at the training length; beyond the last calibrated length that one's."""
        if not self.rotary:
            return None
        known = {self.train_length: 1.0, **self.rotary}
        table = torch.tensor(list(known.values()), dtype=torch.float64)[:, None]
        factor = float(look_up(list(known), table, length))
        return Yarn(factor, self.train_length) if factor > 1 else None

    def band(self, length: float) -> int:
        """Index of the band that serves a length; bands split at the log midpoints of the calibrated lengths."""
        for index, (low, high) in enumerate(zip(self.bands, self.bands[1:])):
            if length <= math.sqrt(low.lengths[-1] * high.lengths[0]):
                return index
        return len(self.bands) - 1

    def plan(self, length: float, method: str = "auto") -> Plan:
        """What to do with a prompt of `length` tokens. At or below the training length always "none".

        "auto" stretches rotary positions, too, where that was found better; a forced method is that method alone.

        Raises ValueError for an unknown method and SidecarError for one this sidecar holds no tables for.
        """
        if method not in ("auto", *METHODS):
            raise ValueError(f"unknown method {method!r}; choose auto, {', '.join(METHODS)}")
        if length <= self.train_length:
            return Plan("none", length)
        index = self.band(length)
        chosen = self.bands[index].method if method == "auto" else method
        extrapolated = length > self.bands[-1].lengths[-1]
        rotary = self._yarn(length) if method == "auto" else None
        if math.isinf(length):  # open-ended: nothing to rank yet, so nothing is dropped
            chosen = {"both": "filter", "decimate": "none"}.get(chosen, chosen)
        for name in _TABLES[chosen]:
            self._needed(index, name, length)
        keep = self.keep(index) if chosen in ("decimate", "both") else {}
        return Plan(chosen, length, keep, extrapolated, rotary)

    def table(self, band: int, name: str) -> Tensor | None:
        """A band's tensor, by the name without the prefix; None where the band has none of it."""
        return self.tensors.get(f"bands.{band}.{name}")

    def keep(self, band: int) -> dict[int, int]:
        """The tokens each decimating layer of a band keeps; empty where it holds no decimation."""
        layers, keep = self.table(band, "layers"), self.table(band, "keep")
        return {} if layers is None or keep is None else dict(zip(layers.tolist(), keep.tolist()))

    def _needed(self, band: int, name: str, length: float) -> Tensor:
        table = self.table(band, name)
        if table is None:
            what, how = _REMEDIES[name]
            raise SidecarError(f"this sidecar has no {what} at length {length}; calibrate with --method {how}")
        return table

    def thresholds(self, layer: int, length: float, method: str = "filter") -> Tensor:
        """g(S) of one layer: (channels,) float32, 0 where the channel is local.

        `length` is the number of tokens the scan sees; for a sequential fit of "both", the prompt's.
        """
        return self.thresholds_in(self.band(length), layer, length, method)

    def thresholds_in(self, band: int, layer: int, length: float, method: str = "filter") -> Tensor:
        """The same from a given band, for scans that decimation has made shorter than the band's prompts."""
        entry, name = self.bands[band], "both" if self.keyed_by_prompt(band, method) else "thresholds"
        g = self._row(band, name, layer, length, entry.interpolation)
        return torch.zeros_like(g) if length <= self.train_length or length < entry.start else g

    def scales(self, layer: int, length: float) -> Tensor:
        """Factor on delta of one layer for method "scale": (channels,) float32, 1 where delta is left as it is.

        Raises SidecarError if this sidecar has no scales at `length`.
        """
        scale = self._row(self.band(length), "scales", layer, length)
        return torch.ones_like(scale) if length <= self.train_length else scale

    def _row(self, band: int, name: str, layer: int, length: float, interpolation: Interpolation = "log") -> Tensor:
        table = self._needed(band, name, length)
        if not 0 <= layer < table.shape[1]:
            raise ValueError(f"layer {layer} is outside the model's {table.shape[1]} layers")
        return look_up(self.tensors[f"bands.{band}.lengths"].tolist(), table[:, layer], length, interpolation)

    def keyed_by_prompt(self, band: int, method: str) -> bool:
        """Whether g of a band is looked up at the prompt's length (sequential "both") or at the scan's."""
        return method == "both" and self.table(band, "both") is not None

    def score_weights(self, layer: int, length: float) -> Tensor:
        """Channel weights of decimation's score at a layer: (channels,) float32, 1 = the published norm."""
        band = self.band(length)
        layers = list(self.keep(band))
        if layer in layers:
            return self.tensors[f"bands.{band}.weights"][layers.index(layer)].clone()
        return torch.ones(int(self.metadata["channels"]), dtype=torch.float32)

    def check_model(self, fingerprint: str, name: str) -> None:
        """Raise SidecarError unless this sidecar was made for the model with that fingerprint."""
        if self.metadata["model_fingerprint"] != fingerprint:
            raise SidecarError(
                f"model_fingerprint: found {self.metadata['model_fingerprint'][:12]!r} (made for "
                f"{self.metadata['base_model']!r}), expected {fingerprint[:12]!r} of {name}; "
                "load the model it was made for, or calibrate this one"
            )


def filters_decode(sidecar: Sidecar | None, asked: bool | None) -> bool:
    """Whether generated tokens are filtered: as asked for, else (None) as the sidecar says."""
    return sidecar is not None and (sidecar.filter_decode if asked is None else asked)


def find_file(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """The sidecar's file, downloaded if need be; see Sidecar.read. Raises SidecarError if there is none."""
    path = expand(path_or_repo)
    if path.is_file():
        return path
    if path.is_dir():
        return _only(path, str(path_or_repo))
    repo, pinned = split_revision(str(path_or_repo))
    if not is_hub_id(repo) or repo.endswith(".safetensors"):
        raise SidecarError(
            f"no sidecar file {path_or_repo}; give a file made by `calibrate run`, or a Hub repository id"
        )
    try:
        folder = download(repo, pinned or revision, [SIDECAR_FILE, "*.longscan.safetensors"])
    except CheckpointError as error:
        raise SidecarError(str(error)) from error
    return _only(folder, repo)


def _only(folder: Path, name: str) -> Path:
    """The sidecar of a folder or a snapshot: `sidecar.safetensors`, else the one *.longscan.safetensors."""
    if (folder / SIDECAR_FILE).is_file():
        return folder / SIDECAR_FILE
    found = sorted(folder.glob("*.longscan.safetensors"))
    if len(found) != 1:
        raise SidecarError(
            f"{name} holds no {SIDECAR_FILE} and {len(found)} files *.longscan.safetensors, expected exactly one; "
            "give the file itself, or a repository that `calibrate push` made"
        )
    return found[0]
