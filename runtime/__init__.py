"""Load a Mamba language model with its sidecar and read past the length it was trained at.

from longscan.runtime import load
lm = load("demo", "demo.longscan.safetensors")
for piece in lm.generate(text):
    print(piece, end="")
"""

from .attach import attach, detach
from .errors import CheckpointError, SidecarError
from .model import LM, load
from .plan import Plan
from .prefill import Output
from .sidecar import Sidecar
from .state import State

__all__ = ["LM", "CheckpointError", "Output", "Plan", "Sidecar", "SidecarError", "State", "attach", "detach", "load"]
