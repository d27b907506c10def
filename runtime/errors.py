"""The two things that can be wrong with a downloaded file. Messages say what is wrong, then what to do, in one line."""

from __future__ import annotations

import errno

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "check the path",
    errno.ENOENT: "check the path",
    errno.ELOOP: "check the links",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.EIO: "check the disk",
}


class CheckpointError(Exception):
    """A model folder or repository cannot be read as a Mamba language model."""


class SidecarError(Exception):
    """A sidecar is malformed, or belongs to another model."""


def os_reason(error: OSError) -> str:
    """What the system says and what to do: "Permission denied; check its permissions, or choose another place"."""
    said = error.strerror or " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, ConnectionError | TimeoutError):
        return f"{said}; check the connection"
    return f"{said}; {_REMEDIES.get(error.errno or 0, 'check it and try again')}"
