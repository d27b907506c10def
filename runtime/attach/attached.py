"""A model with its mixers' forward replaced: one plan a call, resolved at the first mixer, read by all."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..families.layer import Inputs
from ..reading.growth import Growth
from ..reading.observer import Observer, ScanInputs
from ..reading.padding import read_padding
from ..reading.plans import layer_plans, plan_at
from ..reading.prefill import plan_prompt
from ..reading.prompts import check_total
from ..reading.reservoir import gather, select
from ..reading.state import State
from ..sidecar.plan import PLAIN, Plan
from ..sidecar.sidecar import Sidecar, filters_decode
from .call import Call, Here, Settings
from .families import Family, backbone_of, rotary_of
from .gradient import without_gradient
from .hosts import Memory, memory_of, refuse_others, refuse_packed, refuse_spread, slot
from .rotary import Rotary
from .view import View

MARK = "_longscan_attached"
_NUMBERS = itertools.count(1)  # a cache knows by it who filled it: once detached, a model fills it untold


class Attached:
    """What `attach` returns: the model runs through our kernels until `detach()` (or the end of a `with` block).

    Threads may call one attached model at the same time. Each has its own plan, positions, total_length and observer:

    plan: of the last prompt read (a tuple where rows differ); None before the first
    positions: (B, K), the place in its prompt of each token of the last prompt that is still present; None before
    total_length: S of prompts that are given in several calls with one cache; None: each call is complete in itself
    observer: sees every layer's scan inputs, as in LM.prefill
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        sidecar: Sidecar | None,
        method: str,
        backend: str,
        filter_decode: bool | None,
    ):
        self.model, self.family, self.backend = model, family, backend
        self._number = next(_NUMBERS)
        mixers = [mixer for _, mixer in family.find(model)]
        refuse_spread(model, mixers)
        refuse_others(mixers)
        self.view = View(model, family)
        self.rotary = rotary_of(model, family)
        if sidecar is not None:
            sidecar.check_rotary(self.rotary is not None)
        growth = None if sidecar is None else Growth(sidecar, self.view)
        self.settings = Settings(sidecar, growth, method, filter_decode)
        self._here = Here()
        self._undo: list[Callable[[], None]] = []
        self._replace()

    @property
    def plan(self) -> Plan | tuple[Plan, ...] | None:
        return self._here.plan

    @property
    def positions(self) -> Tensor | None:
        return self._here.positions

    @property
    def total_length(self) -> float | None:
        return self._here.total_length

    @total_length.setter
    def total_length(self, tokens: float | None) -> None:
        check_total(tokens)
        if tokens is not None and math.isinf(tokens):
            raise ValueError("an attached model plans each prompt as a whole: give a finite total_length, or None")
        self._here.total_length = tokens

    @property
    def observer(self) -> Observer | None:
        return self._here.observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._here.observer = observer

    # -- in and out --------------------------------------------------------------------------------------------

    def _replace(self) -> None:
        for k, part in enumerate(self.view.parts):
            self._put(part.module, Forward(self, partial(self.forward, k)))
            if self.family.decimates:
                self._undo.append(part.block.register_forward_hook(self._gather).remove)
        self._listen(self.model)
        if self.rotary is not None:
            backbone = backbone_of(self.model)
            if backbone is not self.model:  # it may be called alone, and with a cache of its own
                self._listen(backbone)
            rotate = partial(self._rotate, Rotary(self.rotary, getattr(self.rotary, slot(self.rotary))))
            self._put(self.rotary, Forward(self, rotate))
        vars(self.model)[MARK] = self
        self._undo.append(partial(vars(self.model).pop, MARK))

    def _listen(self, model: nn.Module) -> None:
        """Note what `model` is called with. Not by a hook: PEFT 0.18 calls `forward`, which passes hooks by."""
        own = getattr(model, slot(model))

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._asks(model, inspect.signature(own).bind_partial(*args, **kwargs).arguments | kwargs)
            try:
                return own(*args, **kwargs)
            finally:  # a call that failed before its first mixer leaves nothing for the next
                self._here.begun, self._here.asked = None, {}

        listening = Forward(self, forward, compiled=True)
        functools.update_wrapper(listening, own)  # its signature, which `generate` reads
        self._put(model, listening)

    def _put(self, module: Any, forward: Forward) -> None:
        name = slot(module)
        self._undo.append(partial(_give_back, module, getattr(module, name)))
        setattr(module, name, forward)

    def detach(self) -> None:
        """Give the model its own forward back: the same functions, the same bits. A second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ValueError(
            "an attached model can be neither copied nor pickled (its copy would run the original's layers); "
            "detach(model) first, or save its state_dict()"
        )

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @contextmanager
    def reading(self, settings: Settings, total_length: float | None, observer: Observer | None) -> Iterator[None]:
        """Calls of this thread inside the block are read so."""
        here = self._here
        before = here.settings, here.total_length, here.observer
        here.settings, here.total_length, here.observer = settings, total_length, observer
        try:
            yield
        finally:
            here.settings, here.total_length, here.observer = before

    # -- one call of the model ---------------------------------------------------------------------------------

    def _asks(self, model: nn.Module, asked: dict[str, Any]) -> None:
        refuse_packed(asked)
        self._here.asked = asked if model is self.model else {**self._here.asked, **asked}

    def _rotate(self, rotary: Rotary, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The forward of the rotary embedding, which comes before any layer: the call's plan is decided here."""
        here = self._here
        with torch.no_grad():
            memory = memory_of(here.asked, self.view.parts[0].module)
            here.begun = call = self._begin(x, None, memory)
        return rotary(x, position_ids, [plan.rotary for plan in call.state.plans])

    def forward(self, k: int, *args: Any, **kwargs: Any) -> Tensor:
        """The forward of the k-th mixer: (B, L, M) -> (B, L, M)."""
        module = self.view.parts[k].module
        if module.training and torch.is_grad_enabled():
            raise ValueError("an attached model is for inference; call model.eval(), or detach(model) before training")
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # asked once a layer
            raise ValueError("a CUDA graph would freeze the filter at one length; run without (mamba_ssm: cg=False)")
        hidden, mask, memory = self.family.call(module, *args, **kwargs)
        with torch.no_grad():
            here = self._here
            if k == 0:
                call = self._begin(hidden, mask, memory) if here.begun is None else here.begun
                here.call, here.begun = call, None
                if memory is not None:
                    memory.remember(call.state)
            assert here.call is not None  # the first mixer of this thread's call began it
            call = here.call
            padding = call.padding
            out = self._mix(k, hidden if padding is None else padding.rolled(hidden), memory, call)
            out = out if padding is None else padding.back(out)
        wants = torch.is_grad_enabled() and (hidden.requires_grad or any(p.requires_grad for p in module.parameters()))
        return without_gradient(hidden, out) if wants else out

    def _mix(self, k: int, hidden: Tensor, memory: Memory | None, call: Call) -> Tensor:
        layer, mask, plan = self.view.parts[k].layer, call.mask, call.plans[k]
        mask = None if mask is None else mask.to(hidden.device)
        conv, ssm = (None, None) if memory is None else memory.read(layer.conv_shape[-1])
        if conv is None:
            conv = hidden.new_zeros(hidden.shape[0], *layer.conv_shape)
        if ssm is not None:
            ssm = ssm.to(torch.promote_types(torch.float32, hidden.dtype)).contiguous()
        if ssm is not None and hidden.shape[1] == 1 and mask is None and call.observer is None:
            conv = conv.clone()
            out = layer.step(hidden[:, 0], conv, ssm, plan, self.backend)[:, None]
            if memory is not None:
                memory.write(conv, ssm)
            return out
        inputs, conv = layer.inputs(hidden, conv, mask, self.backend)
        if call.observer is not None:
            plan = call.observer.observe(k, ScanInputs.of(layer, plan, inputs, mask)) or plan
        index = None
        if plan.keep is not None:
            score = layer.scores(inputs.delta, plan.score_weight, self.backend)
            index = select(score, plan.keep, call.protected)
            inputs, mask = Inputs(*(gather(t, index) for t in inputs)), None
        out, ssm = layer.scan(inputs, plan, mask, ssm, self.backend)
        if memory is not None:
            memory.write(conv, ssm)
        return out if index is None else self._spread(out, index, hidden.shape[1], call)

    def _begin(self, hidden: Tensor, mask: Tensor | None, memory: Memory | None) -> Call:
        """At the rotary embedding or the first mixer of a call: which plan, for how many tokens of each row."""
        batch, L, _ = hidden.shape
        here = self._here
        settings = self.settings if here.settings is None else here.settings
        call = Call(settings, here.total_length, here.observer, here.asked, _nothing_read(batch, self._number))
        here.asked = {}
        if mask is None:  # transformers hands none to its mixers where a token is decoded
            mask = call.asked.get("attention_mask")
        if isinstance(mask, Mapping):  # one for each kind of layer
            mask = mask.get("linear_attention")
        if isinstance(mask, Tensor):
            if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < L:
                raise ValueError(
                    f"attention_mask has shape {tuple(mask.shape)}; attach reads a padding mask ({batch}, tokens)"
                )
            call.padding = read_padding(mask[:, -L:].to(hidden.device))
        fresh = memory is None or not memory.started()
        if memory is not None and not fresh:
            before = memory.reading()
            if before is None or before.batch != batch or before.reader != self._number:
                raise ValueError(
                    "this cache was not filled by the attached model with as many rows; start with a new cache"
                )
            call.state = before
        state = call.state
        on_cpu = None if call.mask is None else call.mask.cpu()
        new = torch.full_like(state.length, L) if on_cpu is None else on_cpu.sum(1)
        if L == 1 and not fresh and state.total is None and settings.decoding is not False:  # no piece of a prompt
            growth = settings.growth if filters_decode(settings.sidecar, settings.filter_decode) else None
            call.plans = growth.layer_plans(state) if growth is not None else [PLAIN] * len(self.view.parts)
            state.length += new
            return call
        state = call.state = state.clone()
        keep = call.asked.get("logits_to_keep", call.asked.get("num_last_tokens", 0))
        call.protected = max(1, keep if isinstance(keep, int) else L)
        self._decide(hidden, on_cpu, state, fresh, (state.length + new).tolist(), call)
        call.plans = layer_plans(state.plans, settings.sidecar, self.view, call.protected)
        positions = state.length[:, None] + torch.arange(L).expand(batch, L)
        if on_cpu is not None and call.padding is not None:
            positions = state.length[:, None] + on_cpu.long().cumsum(1) - 1
            positions = call.padding.back(positions.where(on_cpu, -1))
        here.positions = positions
        state.length = state.length + new
        if state.total is not None and bool((state.length >= state.total).all()):
            state.total = None
        here.plan = state.plan
        return call

    def _decide(
        self, hidden: Tensor, mask: Tensor | None, state: State, fresh: bool, reached: list[int], call: Call
    ) -> None:
        """Set the state's plan; refuse what this call cannot decimate."""
        sidecar, method = call.settings.sidecar, call.settings.method
        if mask is not None and any(plan_at(sidecar, n, method, fresh).decimate for n in set(reached)):
            raise ValueError(
                "rows of unequal length cannot be decimated in one call; give them one by one, or attach with "
                "method='filter'"
            )
        before = state.plans
        plan_prompt(sidecar, hidden, mask, state, fresh, call.total_length, method, call.protected)
        if not fresh:  # the keys in the cache were rotated by its factor
            state.plan = _rotated_as(before, state.plans)
        if not any(plan.decimate for plan in state.plans):
            return
        if not self.family.decimates:
            raise ValueError(f"{self.family.name} cannot be decimated; attach with method='filter'")
        if call.asked.get("labels") is not None:
            raise ValueError("a decimated prompt has fewer logits than labels; attach with method='filter' for a loss")
        if state.total is not None and reached[0] < state.total:
            raise ValueError("a prompt that is decimated must be given in one call; or attach with method='filter'")

    # -- decimation: the mixer's output is spread over the whole sequence, the block's is gathered again ----------

    def _spread(self, out: Tensor, index: Tensor, L: int, call: Call) -> Tensor:
        call.kept, here = index, self._here
        if here.positions is not None:
            here.positions = here.positions.gather(1, index.cpu())
        whole = out.new_zeros(out.shape[0], L, out.shape[2])
        return whole.scatter_(1, index[:, :, None].expand_as(out), out)

    def _gather(self, block: nn.Module, args: Any, out: Any) -> Any:
        """A block's forward hook: after a decimating mixer, only the kept tokens go on."""
        call = self._here.call
        if call is None or call.kept is None:
            return None
        index, call.kept = call.kept, None
        if isinstance(out, Tensor):
            return gather(out, index)
        return tuple(gather(t, index) for t in out)


class Forward:
    """The forward of one module of an attached model. torch.compile leaves it alone, unless it may be compiled."""

    def __init__(self, attached: Attached, run: Callable[..., Any], *, compiled: bool = False):
        self._attached = attached
        self._run = run if compiled else torch.compiler.disable(run)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._attached.__reduce_ex__(protocol)


def _give_back(module: Any, own: Any) -> None:
    """Undo `_put`, though accelerate may have put its hooks on the module, or taken them off, since."""
    name = slot(module)
    if name == "forward" and getattr(own, "__func__", None) is type(module).forward:
        del module.forward
    else:
        setattr(module, name, own)


def _rotated_as(before: tuple[Plan, ...], plans: tuple[Plan, ...]) -> Plan | tuple[Plan, ...]:
    """`plans` (one, or one a row) with the rotary factors of those before."""
    rows = max(len(before), len(plans))
    pairs = zip(plans * (rows // len(plans)), before * (rows // len(before)))
    found = tuple(replace(plan, rotary=old.rotary) for plan, old in pairs)
    return found if len(set(found)) > 1 else found[0]


def _nothing_read(batch: int, reader: int) -> State:
    """A reading: a State whose tensors live in the foreign model's cache. Lengths stay on the CPU."""
    empty = torch.empty(0, batch)
    return State(empty, empty, torch.zeros(batch, dtype=torch.int64), Plan("none", 0), reader=reader)
