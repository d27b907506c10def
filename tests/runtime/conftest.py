from __future__ import annotations

import pytest
import torch

from longscan.runtime import load

from ..checkpoints import make_sidecar, random_tensors, write_state_spaces


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_state_spaces(tmp_path_factory.mktemp("model"), random_tensors())


@pytest.fixture(scope="session")
def plain(folder):
    return load(folder)


@pytest.fixture(scope="session")
def sidecar(plain):
    return make_sidecar(plain)


@pytest.fixture(scope="session")
def lm(folder, sidecar):
    return load(folder, sidecar)


@pytest.fixture(scope="session")
def ids():
    return torch.randint(0, 64, (2, 64), generator=torch.Generator().manual_seed(2))
