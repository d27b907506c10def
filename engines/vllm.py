"""vLLM's plug-in: its Mamba mixers with the filter of one length. Entry point `vllm.general_plugins`.

    LONGSCAN_SIDECAR=mamba2.longscan.safetensors LONGSCAN_LENGTH=65536 vllm serve ...

Nothing of vLLM's is changed but raw delta: where it, with its bias, is at or below the sidecar's cut, it becomes a
value whose softplus is 0, and the token leaves that channel's state as it is. vLLM's mixers do not know how long a
prompt is, so one length serves all requests. docs/engines.md says what is checked and what was run.
"""

# vLLM goes on without a plug-in it cannot import, and so unfiltered: whatever may fail is imported in `register`, whose
# errors stop it.
from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SIDECAR, LENGTH, CHECKPOINT = "LONGSCAN_SIDECAR", "LONGSCAN_LENGTH", "LONGSCAN_CHECKPOINT"
_CUT = "_longscan_cut"


def register() -> None:
    """Put the filter into vLLM's mixers, as the environment says; without LONGSCAN_SIDECAR do nothing.

    Runs in each of vLLM's processes. Raises ValueError for settings that make no sense or a vLLM whose mixers are not
    those known here, and SidecarError for a sidecar it cannot follow.
    """
    path, length = os.environ.get(SIDECAR, ""), os.environ.get(LENGTH, "")
    if not path and not length:
        return
    if not path or not length.isascii() or not length.isdigit():
        raise ValueError(
            f"{SIDECAR}={path!r}, {LENGTH}={length!r}: set one to a sidecar, the other to a number of tokens"
        )
    try:
        from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
        from vllm.model_executor.layers.mamba.mamba_mixer import MambaMixer
        from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
    except ImportError as error:
        raise ValueError(f"longscan cannot use this vLLM ({error}); install what docs/engines.md names") from error

    filters = Filters(path, int(length))
    for mixer, make in ((MambaMixer, filtered_mixer), (MambaMixer2, filtered_mixer2)):
        name = mixer.__name__
        if name in op_registry_oot:
            raise ValueError(f"another plug-in has replaced vLLM's {name}; leave one of the two out (VLLM_PLUGINS)")
        PluggableLayer.register_oot(make(mixer, filters), name=name)


class Filters:
    """The cuts of every layer, found for a mixer once its weights are there."""

    def __init__(self, path: str, length: int):
        from vllm.logger import init_logger

        from ..runtime import Sidecar
        from .band import cuts_at

        self._say = init_logger("vllm.longscan").info_once
        self._sidecar = Sidecar.read(path)
        self._length, self._cuts = length, cuts_at(self._sidecar, length)
        self._layers: list[Any] | None = None
        own = self._sidecar.plan(length)
        self._say(
            "LongScan: every request, whatever its length, is to be filtered as one of %d tokens by %s%s%s%s",
            length,
            path,
            "" if own.method == "filter" else f", whose own choice there is {own.method!r}",
            "; this is beyond its last calibrated length" if own.extrapolated else "",
            f"; its rotary factor of {own.rotary.factor:g} from {own.rotary.original} tokens on is left to vLLM's own "
            "settings (--hf-overrides)"
            if own.rotary
            else "",
        )

    def of(self, mixer: Any, A: Tensor, bias: Tensor) -> Tensor | None:
        """The cut (channels of this rank,) of a mixer on its device; None where nothing is dropped.

        Looked up at its first call: vLLM loads weights after it has built the layers. The first of all reads the
        checkpoint and refuses one the sidecar was not made for, with SidecarError; a mixer that holds other weights
        than the checkpoint's layers is refused with CheckpointError, one whose limits of delta matter with ValueError.
        """
        held = vars(mixer)
        if _CUT not in held:
            held[_CUT] = self._find(mixer, A, bias)
        found: Tensor | None = held[_CUT]
        return found

    def _find(self, mixer: Any, A: Tensor, bias: Tensor) -> Tensor | None:
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        from .band import check_limit, stored_layers, which_layer

        if self._layers is None:
            served = mixer.model_config
            name = os.environ.get(CHECKPOINT) or served.model
            revision = served.revision if name == served.model else None
            layers, found = stored_layers(name, revision)
            self._sidecar.check_model(found, name)
            check_limit(self._sidecar, self._length, name, revision)
            self._layers = layers
        rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        layer = which_layer(self._layers, A, bias, rank, ranks)
        cut = self._cuts[layer, rank * len(bias) : (rank + 1) * len(bias)]
        self._say("LongScan: the checkpoint is the sidecar's, and its Mamba layers are filtered")
        return cut.to(bias.device) if bool((cut > -float("inf")).any()) else None


def filtered_mixer(base: Any, filters: Filters) -> type:
    """vLLM's Mamba-1 mixer: raw delta is what `_ssm_transform` returns first, (channels of this rank, tokens)."""
    _check(base, "_ssm_transform", "x")

    class FilteredMambaMixer(base):
        def _ssm_transform(self, x: Tensor) -> tuple[Tensor, ...]:
            from .band import SKIP, drop

            raw, *others = super()._ssm_transform(x)
            bias = self.dt_proj.bias
            cut = filters.of(self, self.A, bias)
            if cut is not None:
                raw = raw.masked_fill(drop(raw.mT, bias, cut).mT, SKIP)
            return raw, *others

    return FilteredMambaMixer


def filtered_mixer2(base: Any, filters: Filters) -> type:
    """vLLM's Mamba-2 mixer: raw delta is the last columns of (tokens, in_proj's output), a head each.

    Written in place: nothing reads these columns afterwards but the scan, which is called from here.
    """
    _check(base, "conv_ssm_forward", "projected_states", "output")

    class FilteredMambaMixer2(base):
        def conv_ssm_forward(self, projected_states: Tensor, output: Tensor) -> Any:
            from .band import SKIP, drop

            cut = filters.of(self, self.A, self.dt_bias)
            if cut is not None:
                raw = projected_states[..., -self.dt_bias.shape[0] :]
                raw.masked_fill_(drop(raw, self.dt_bias, cut), SKIP)
            return super().conv_ssm_forward(projected_states, output)

    return FilteredMambaMixer2


def _check(base: Any, method: str, *parameters: str) -> None:
    """Raise ValueError for a vLLM whose mixers are built otherwise."""
    if list(inspect.signature(getattr(base, method, _check)).parameters) != ["self", *parameters]:
        raise ValueError(
            f"this vLLM's {base.__name__} has no {method}({', '.join(parameters)}), where longscan filters; "
            "install the vLLM that docs/engines.md names"
        )
