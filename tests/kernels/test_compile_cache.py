"""Compiled loops on disk: taken while every file they were made from is the same, and no longer."""

from __future__ import annotations

import importlib
import sys

import pytest
from numba.core import config

from longscan.kernels.shared import cpu_compile

INNER = "from numba import njit\n\n\n@njit\ndef inner(x):\n    return x + {}\n"
OUTER = (
    "from longscan.kernels.shared.cpu_compile import compiled\nfrom cpu_inner import inner\n\n\n"
    "@compiled('f8(f8)')\ndef outer(x):\n    return inner(x)\n"
)


@pytest.fixture
def outer(tmp_path, monkeypatch):
    """Write the called file, import both anew as another process would, and give the loop."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(cpu_compile, "CACHE", True)
    (tmp_path / "cpu_outer.py").write_text(OUTER)

    def load(added: float):
        (tmp_path / "cpu_inner.py").write_text(INNER.format(added))
        monkeypatch.setattr(cpu_compile, "SOURCES", cpu_compile.sources(tmp_path))
        for name in ("cpu_inner", "cpu_outer"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return importlib.import_module("cpu_outer").outer

    return load


def test_a_change_in_a_called_file_is_compiled(outer):
    assert outer(1.0)(1.0) == 2.0
    again = outer(1.0)
    assert again(1.0) == 2.0 and sum(again.stats.cache_hits.values()) == 1
    changed = outer(9.0)
    assert changed(1.0) == 10.0 and not changed.stats.cache_hits
