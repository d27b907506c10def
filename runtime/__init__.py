"""Load a Mamba language model with its sidecar and read past the length it was trained at.

from longscan.runtime import load
lm = load("demo", "demo.longscan.safetensors")
for piece in lm.generate(text):
    print(piece, end="")
"""

from .attach import attach, detach
from .errors import CheckpointError, SidecarError
from .loading import load
from .model import LM
from .reading.prefill import Output
from .reading.state import State
from .sidecar.plan import Plan
from .sidecar.sidecar import Sidecar

__all__ = ["LM", "CheckpointError", "Output", "Plan", "Sidecar", "SidecarError", "State", "attach", "detach", "load"]
