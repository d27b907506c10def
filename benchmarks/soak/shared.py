"""What the soaks share: modules of benchmarks/ and tests/ by their file, so that no folder of theirs is on the path.

(A bare `kernels` on the path, as beside them, would be taken for Hugging Face's package of that name.)
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def borrowed(path: str) -> ModuleType:
    """The module in a file of the checkout."""
    name = "soak_" + path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


checkpoints = borrowed("tests/checkpoints.py")
keep = borrowed("benchmarks/record.py").keep
EVALUATION = ROOT / "calibrate" / "demo" / "evaluation.txt"
BYTES = ROOT / "runtime" / "demo" / "tokenizer.json"  # a byte-level tokenizer
