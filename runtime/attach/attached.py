"""A model with its mixers' forward replaced: one plan a call, resolved at the first mixer, read by all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..growth import Growth
from ..observer import Observer, ScanInputs
from ..plan import PLAIN, LayerPlan, Plan
from ..prefill import layer_plans, plan_at, plan_prompt
from ..reservoir import select
from ..sidecar import Sidecar
from ..state import State
from .families import Family
from .hosts import Memory
from .view import View

MARK = "_longscan_attached"


class Attached:
    """What `attach` returns: the model runs through our kernels until `detach()` (or the end of a `with` block).

    plan: of the last prompt read (a tuple where rows differ); None before the first
    positions: (B, K), the place in its prompt of each token of the last prompt that is still present; None before
    total_length: S of prompts that are given in several calls with one cache; None: each call is complete in itself
    observer: sees every layer's scan inputs, as in LM.prefill
    """

    def __init__(
        self, model: nn.Module, family: Family, sidecar: Sidecar | None, method: str, backend: str, filter_decode: bool
    ):
        self.model, self.family, self.backend = model, family, backend
        self.view = View(model, family, backend)
        self.sidecar: Sidecar | None = None
        self.read_with(sidecar, method, filter_decode)
        self.plan: Plan | tuple[Plan, ...] | None = None
        self.positions: Tensor | None = None
        self.total_length: float | None = None
        self.observer: Observer | None = None
        self._plans: list[LayerPlan] = []
        self._mask: Tensor | None = None
        self._protected = 1
        self._asked: dict[str, Any] = {}  # what the model's caller wants: logits_to_keep, labels
        self._kept: Tensor | None = None  # positions a mixer kept, until its block has gathered the residual stream
        self._undo: list[Callable[[], None]] = []
        self._replace()

    # -- in and out --------------------------------------------------------------------------------------------

    def _replace(self) -> None:
        for k, part in enumerate(self.view.parts):
            part.module.forward = torch.compiler.disable(partial(self._forward, k))
            self._undo.append(partial(delattr, part.module, "forward"))
            if self.family.decimates:
                self._undo.append(part.block.register_forward_hook(self._gather).remove)
        self._undo.append(self.model.register_forward_pre_hook(self._asks, with_kwargs=True).remove)
        vars(self.model)[MARK] = self
        self._undo.append(partial(vars(self.model).pop, MARK))

    def read_with(self, sidecar: Sidecar | None, method: str, filter_decode: bool) -> None:
        """What the next call reads with; the model stays attached."""
        if sidecar is None or sidecar is not self.sidecar:
            self._growth = None if sidecar is None else Growth(sidecar, self.view)
        self.sidecar, self.method, self.filter_decode = sidecar, method, filter_decode

    def detach(self) -> None:
        """Give the model its own forward back: the same functions, the same bits. A second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def __deepcopy__(self, memo: Any) -> Attached:
        raise ValueError("the copy of an attached model would run the original's layers; detach it before copying")

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    # -- one call of the model ---------------------------------------------------------------------------------

    def _asks(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._asked = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments

    def _forward(self, k: int, *args: Any, **kwargs: Any) -> Tensor:
        """The forward of the k-th mixer: (B, L, M) -> (B, L, M)."""
        module = self.view.parts[k].module
        if module.training and torch.is_grad_enabled():
            raise ValueError("an attached model is for inference; call model.eval(), or detach(model) before training")
        hidden, mask, memory = self.family.call(module, *args, **kwargs)
        with torch.no_grad():
            if k == 0:
                self._begin(hidden, mask, memory)
            return self._mix(k, hidden, memory)

    def _mix(self, k: int, hidden: Tensor, memory: Memory | None) -> Tensor:
        mixer, mask, plan = self.view.parts[k].mixer, self._mask, self._plans[k]
        steering = mixer.steering
        conv, ssm = (None, None) if memory is None else memory.read(mixer.width)
        inputs = mixer.inputs(hidden, conv, mask)
        if self.observer is not None:
            seen = ScanInputs(steering, plan, inputs.x, inputs.delta, inputs.B, inputs.C, mask)
            plan = self.observer.observe(k, seen) or plan
        index = None
        if ssm is not None and hidden.shape[1] == 1:
            ssm = ssm.to(torch.promote_types(torch.float32, hidden.dtype)).contiguous()
            y = mixer.step(inputs, steering, plan, ssm)
        else:
            if plan.keep is not None:
                score = steering.scores(inputs.delta, plan.score_weight, self.backend)
                index = select(score, plan.keep, self._protected)
            y, ssm = mixer.scan(inputs, steering, plan, mask, index, ssm)
        if memory is not None:
            memory.write(inputs.raw, ssm, mixer.width)
        out = mixer.out(y, inputs.z if index is None else _gather(inputs.z, index))
        return out if index is None else self._spread(out, index, hidden.shape[1])

    def _begin(self, hidden: Tensor, mask: Tensor | None, memory: Memory | None) -> None:
        """The first mixer of a call: which plan, for how many tokens of each row."""
        batch, L, _ = hidden.shape
        asked, self._asked, self._kept, self._mask = self._asked, {}, None, None
        state = _nothing_read(batch)
        fresh = memory is None or not memory.started()
        if memory is not None and not fresh:
            before = memory.reading()
            if before is None or before.batch != batch:
                raise ValueError(
                    "this cache was not filled by the attached model with as many rows; start with a new cache"
                )
            state = before
        if L == 1 and not fresh and state.total is None:  # a token that is decoded, not a piece of a prompt
            growth = self._growth if self.filter_decode else None
            self._plans = growth.layer_plans(state) if growth is not None else [PLAIN] * len(self.view.parts)
            state.length += 1
            return
        state, self._mask = state.clone(), _left_padding(mask)
        mask = self._mask
        new = torch.full_like(state.length, L) if mask is None else mask.sum(1).cpu()
        keep = asked.get("logits_to_keep", asked.get("num_last_tokens", 0))
        self._protected = max(1, keep if isinstance(keep, int) else L)
        self._decide(hidden, mask, state, fresh, (state.length + new).tolist(), asked)
        self._plans = layer_plans(state.plans, self.sidecar, self.view, self._protected)
        offsets = torch.arange(L).expand(batch, L) if mask is None else mask.cpu().long().cumsum(1) - 1
        positions = state.length[:, None] + offsets
        self.positions = positions if mask is None else positions.where(mask.cpu(), -1)
        state.length = state.length + new
        if state.total is not None and bool((state.length >= state.total).all()):
            state.total = None
        self.plan = state.plan
        if memory is not None:
            memory.remember(state)

    def _decide(
        self, hidden: Tensor, mask: Tensor | None, state: State, fresh: bool, reached: list[int], asked: dict[str, Any]
    ) -> None:
        """Set the state's plan; refuse what this call cannot decimate."""
        if mask is not None and any(plan_at(self.sidecar, n, self.method, fresh).decimate for n in set(reached)):
            raise ValueError(
                "rows of unequal length cannot be decimated in one call; give them one by one, or attach with "
                "method='filter'"
            )
        on_cpu = None if mask is None else mask.cpu()
        plan_prompt(self.sidecar, hidden, on_cpu, state, fresh, self.total_length, self.method, self._protected)
        if not any(plan.decimate for plan in state.plans):
            return
        if not self.family.decimates:
            raise ValueError(f"{self.family.name} cannot be decimated; attach with method='filter'")
        if asked.get("labels") is not None:
            raise ValueError("a decimated prompt has fewer logits than labels; attach with method='filter' for a loss")
        if state.total is not None and reached[0] < state.total:
            raise ValueError("a prompt that is decimated must be given in one call; or attach with method='filter'")

    # -- decimation: the mixer's output is spread over the whole sequence, the block's is gathered again ----------

    def _spread(self, out: Tensor, index: Tensor, L: int) -> Tensor:
        self._kept, self._mask = index, None
        if self.positions is not None:
            self.positions = self.positions.gather(1, index.cpu())
        whole = out.new_zeros(out.shape[0], L, out.shape[2])
        return whole.scatter_(1, index[:, :, None].expand_as(out), out)

    def _gather(self, block: nn.Module, args: Any, out: Any) -> Any:
        """A block's forward hook: after a decimating mixer, only the kept tokens go on."""
        index, self._kept = self._kept, None
        if index is None:
            return None
        if isinstance(out, Tensor):
            return _gather(out, index)
        return tuple(_gather(t, index) for t in out)


def _gather(t: Tensor, index: Tensor) -> Tensor:
    """(B, L, ...) -> (B, K, ...)."""
    index = index.view(*index.shape, *[1] * (t.dim() - 2))
    return t.gather(1, index.expand(-1, -1, *t.shape[2:]))


def _nothing_read(batch: int) -> State:
    """A reading: a State whose tensors live in the foreign model's cache. Lengths stay on the CPU."""
    empty = torch.empty(0, batch)
    return State(conv=empty, ssm=empty, length=torch.zeros(batch, dtype=torch.int64), plan=Plan("none", 0))


def _left_padding(mask: Tensor | None) -> Tensor | None:
    """A padding mask (B, L) bool, checked; None if nothing is padded."""
    if mask is None or bool(mask.all()):
        return None
    if bool((mask[:, 1:] < mask[:, :-1]).any()) or not bool(mask[:, -1].all()):
        raise ValueError("attention_mask must be left padding (0 ... 0 1 ... 1 in every row); pad on the left")
    return mask
