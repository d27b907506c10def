"""What a calibration found, and how it is read at a length.

In: a safetensors file. Out: a `Sidecar` that was checked (`validation`), its plan and thresholds at any length
(`sidecar`, `interpolation`, `plan`), and its identity (`digest`).
"""

from .sidecar import Band, Sidecar, canonical, filters_decode, find_file

__all__ = ["Band", "Sidecar", "canonical", "filters_decode", "find_file"]
