"""What a token is said to occupy is what torch's tensors occupy."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longscan.runtime import load
from longscan.runtime.reading.chunks import bytes_a_token

from ..checkpoints import MAMBA2, random_mamba2_tensors, random_tensors, write_state_spaces


class Live(TorchDispatchMode):
    """The bytes of all storages made under it that are still alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.views, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                if storage._cdata not in self.views:
                    self.views[storage._cdata] = 0
                    self.now += storage.nbytes()
                self.views[storage._cdata] += 1
                weakref.finalize(t, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _gone(self, storage, size):
        self.views[storage] -= 1
        if not self.views[storage]:
            del self.views[storage]
            self.now -= size


def most(lm, tokens):
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with Live() as live:
        lm.prefill(ids, chunk=tokens)
    return live.most


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
def test_bytes_a_token_are_those_held(tmp_path, kind, dtype):
    if kind == "mamba1":
        folder = write_state_spaces(tmp_path, random_tensors(M=96, N=16))
    else:
        folder = write_state_spaces(
            tmp_path, random_mamba2_tensors(M=96, N=32, P=32), ssm_cfg={**MAMBA2, "headdim": 32}
        )
    lm = load(folder, dtype=dtype)
    held = (most(lm, 512) - most(lm, 256)) / 256
    assert bytes_a_token(lm.weights) == pytest.approx(held, rel=0.1)
