"""The two things that can be wrong with a downloaded file. Messages say what is wrong, then what to do, in one line."""

from __future__ import annotations


class CheckpointError(Exception):
    """A model folder or repository cannot be read as a Mamba language model."""


class SidecarError(Exception):
    """A sidecar is malformed, or belongs to another model."""
