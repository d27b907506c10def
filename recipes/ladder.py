"""The ladder: models of one recipe that differ in size, family, training length or vocabulary.

A rung is what `train_demo.py --rung NAME` takes for its options' defaults; its name has the parameters in millions.
"""

from __future__ import annotations

RUNGS: dict[str, dict[str, object]] = {
    "mamba-0.05m": {"d_model": 32, "layers": 5},
    "mamba-0.2m": {"d_model": 64, "layers": 5},  # the demo
    "mamba-0.8m": {"d_model": 128, "layers": 7},
    "mamba-3m": {"d_model": 256, "layers": 7},
    "mamba-1.1m-subwords": {"d_model": 128, "layers": 7, "vocabulary": 2048},
    "mamba-4m-subwords": {"d_model": 256, "layers": 7, "vocabulary": 4096},
    "mamba-0.2m-1024": {"d_model": 64, "layers": 5, "length": 1024},
    "mamba2-0.05m": {"family": "mamba2", "d_model": 32, "layers": 4},
    "mamba2-0.14m": {"family": "mamba2", "d_model": 64, "layers": 4, "steps": 1100},  # the second demo
}
