"""How fast a generation goes: a bar while the prompt is read, tokens and bytes a second at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from ..runtime.families.weights import Weights
from ..runtime.generate.loop import Generation
from ..runtime.model import LM


@dataclass
class Watch(Generation):
    """A generation with a tqdm bar on stderr while its prompt is read; the bar shows after two seconds."""

    bar: Any = None

    def on_read(self, tokens: int) -> None:
        from tqdm import tqdm

        super().on_read(tokens)
        if self.bar is None:
            self.bar = tqdm(
                total=self.prompt_tokens, desc="reading", unit="token", unit_scale=True, file=sys.stderr,
                delay=2, dynamic_ncols=True, leave=False,
            )  # fmt: skip
        self.bar.update(tokens)
        if self.read >= self.prompt_tokens:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


def summary(watch: Generation, lm: LM) -> str:
    """One line: tokens a second of prompt and generation, and the memory traffic the steps achieved."""
    line = f"read {_rate(watch.read, watch.prefill_seconds)}; made {_rate(watch.made, watch.decode_seconds)}"
    if watch.steps and watch.decode_seconds and not lm.hybrid:  # a hybrid's step also reads a cache that grows
        moved = (weight_bytes(lm.weights) + 2 * state_bytes(lm)) * watch.steps
        line += f", {moved / watch.decode_seconds / 1e9:.1f} GB/s of weights and state"
    return line + ("; interrupted" if watch.interrupted else "")


def _rate(tokens: int, seconds: float) -> str:
    text = f"{tokens:,} token{'s' * (tokens != 1)} in {seconds:.2f} s"
    return text + (f" ({tokens / seconds:,.0f} a second)" if tokens and seconds else "")


def weight_bytes(weights: Weights) -> int:
    """What a decode step reads of the weights: every layer, its norm, the last norm and the head (one row of the
    embedding)."""
    found = [weights.layers, weights.norms, weights.norm, weights.norm_bias, weights.head]
    return sum(t.numel() * t.element_size() for t in _tensors(found))


def _tensors(value: object) -> Iterator[Tensor]:
    """Every tensor inside nested dataclasses and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def state_bytes(lm: LM) -> int:
    """The recurrent state of one sequence; a step reads and writes it once."""
    state = lm.new_state(1)
    return sum(t.numel() * t.element_size() for t in (state.conv, state.ssm))
