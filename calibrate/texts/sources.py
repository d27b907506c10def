"""Texts to calibrate and to evaluate on: where they come from, what names them, how they are split.

A SOURCE is `demo`, a file, a folder, `-` (standard input) or a data set on the Hub, `name[:config][#split][@column]`.
What is on disk wins over the Hub. Nothing recorded holds a path of the machine.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from ..console import say
from ..errors import UserError
from .files import KINDS_TEXT, files_in, has_columns, kind_of, read_file, read_plain, standard_input
from .hub import HubSource, parse_hub_source, stream_hub

Role = Literal["run", "eval"]
LOCAL_LIMIT = 256 << 20
STREAM_LIMIT = 64 << 20
DEMO = Path(__file__).parents[1] / "demo"
_DEMO_FILES = {"run": "calibration.txt", "eval": "evaluation.txt"}


@dataclass(frozen=True)
class Texts:
    """Documents and where they came from. `truncated`: the source held more than was asked for."""

    name: str
    documents: list[str]
    truncated: bool = False

    @cached_property
    def sha256(self) -> str:
        """Hex digest over the documents in order, each as its UTF-8 length (8 bytes, little-endian) and itself."""
        digest = hashlib.sha256()
        for document in self.documents:
            data = document.encode()
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return digest.hexdigest()

    @property
    def characters(self) -> int:
        return sum(map(len, self.documents))


def read_texts(source: str, *, role: Role, max_bytes: int | None = None) -> Texts:
    """Read a SOURCE, up to `max_bytes` of UTF-8 (the last document is cut there); blank documents are left out.

    Whatever is left out is said in one line on stderr.

    Raises:
        UserError: the source is missing, empty, unreadable, not UTF-8, or its column cannot be told.
    """
    if not source.strip():
        raise UserError("no texts given; name a file, a folder, - or a Hub data set with --texts")
    if max_bytes is not None and max_bytes < 1:
        raise UserError(f"a limit of {max_bytes} bytes leaves no text; give a larger one")
    local, left = max_bytes or LOCAL_LIMIT, Counter[str]()
    if source == "demo":
        return _gather("demo", _demo(role, local, left), local, left)
    if source == "-":
        return _gather("stdin", iter([read_plain(standard_input(), "standard input", local)]), local, left)
    path, column = _on_disk(source)
    if path is not None:
        name = path.resolve().name + (f"@{column}" if column else "")
        return _gather(name, _read_path(path, column, local, left), local, left)
    hub, documents = stream_hub(_hub_source(source), role, left)
    return _gather(str(hub), documents, max_bytes or STREAM_LIMIT, left)


def recorded_source(source: str) -> str:
    """A SOURCE as it may be written into a sidecar: a Hub name stays as it is, of a path only its last part is kept."""
    if source in ("demo", "-") or (parse_hub_source(source) and not _looks_like_path(source)):
        return source
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1] or "texts"


def apart(sources: Sequence[Texts]) -> list[Texts]:
    """Each source without the documents that an earlier one holds: parted on its own, it may put them on another side.

    Raises:
        UserError: nothing is left of a source.
    """
    seen: set[str] = set()
    found = []
    for texts in sources:
        kept = [document for document in texts.documents if document not in seen]
        if not kept:
            raise UserError(f"{texts.name} holds nothing that an earlier text does not hold; leave that --texts out")
        if len(kept) < len(texts.documents):
            say(f"{texts.name}: left out: documents of an earlier text ({len(texts.documents) - len(kept)})")
        seen.update(kept)
        found.append(replace(texts, documents=kept))
    return found


def split_documents(texts: Texts, held_out: float = 0.25) -> tuple[Texts, Texts]:
    """Texts to measure on and texts to choose on, about `held_out` of all characters in the second.

    Several documents are split between documents, the last ones held out; a single one is cut once, at white space
    where there is some near, its last part held out. A document that occurs twice counts once, so that it
    cannot be on both sides.

    Raises:
        UserError: a single document too short to cut.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie between 0 and 1, not {held_out}")
    documents = list(dict.fromkeys(texts.documents))
    if len(documents) < len(texts.documents):
        say(f"{texts.name}: left out: repeated documents ({len(texts.documents) - len(documents)})")
    if len(documents) == 1:
        first, last = _cut(documents[0], held_out, texts.name)
        return replace(texts, documents=[first]), replace(texts, documents=[last])
    sizes = [len(document) for document in documents]
    cut = _balanced(sizes, held_out * sum(sizes))
    return replace(texts, documents=documents[:cut]), replace(texts, documents=documents[cut:])


def _balanced(sizes: list[int], wanted: float) -> int:
    """The index, at least one document on each side, from which the sizes add up to nearest what is wanted."""
    best, best_gap, tail = len(sizes) - 1, float("inf"), 0
    for cut in range(len(sizes) - 1, 0, -1):
        tail += sizes[cut]
        if abs(tail - wanted) < best_gap:
            best, best_gap = cut, abs(tail - wanted)
    return best


def _cut(document: str, held_out: float, name: str) -> tuple[str, str]:
    at = min(max(round(len(document) * (1 - held_out)), 1), len(document) - 1)
    nearest = max((match.end() for match in re.finditer(r"\s", document[max(0, at - 1000) : at])), default=0)
    at = max(0, at - 1000) + nearest if nearest else at
    first, last = document[:at], document[at:]
    if not first.strip() or not last.strip():
        raise UserError(f"{name} is too short to hold a part of it out; give a longer text with --texts")
    return first, last


def _demo(role: Role, max_bytes: int, left: Counter[str]) -> Iterator[str]:
    for name in (_DEMO_FILES[role], _DEMO_FILES[role] + ".gz"):
        if (DEMO / name).is_file():
            return read_file(DEMO / name, None, max_bytes, left)
    name = _DEMO_FILES[role]
    raise UserError(f"the bundled text {name} is missing; install longscan again or name a file with --texts")


def _on_disk(source: str) -> tuple[Path | None, str | None]:
    """The path a source names and its column; (None, None) where there is nothing of that name."""
    head, _, column = source.rpartition("@")
    for name, wanted in ((source, None), (head, column or None)):
        try:
            path = Path(name).expanduser()
            if name and path.exists():
                return path, wanted
        except (OSError, ValueError, RuntimeError):  # a name no file system takes, a ~user nobody is
            continue
    return None, None


def _read_path(path: Path, column: str | None, max_bytes: int, left: Counter[str]) -> Iterator[str]:
    name = path.resolve().name
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{name} is neither a file nor a folder; pipe it in and give - as the source")
    files = files_in(path, left) if path.is_dir() else [path]
    if not files:
        raise UserError(f"folder {name} holds no texts{_found(left)}; put files in it ({KINDS_TEXT})")
    if column and not any(has_columns(file.name) for file in files):
        raise UserError(f"{name} has no columns; leave out @{column}")
    for file in files:
        yield from read_file(file, column if has_columns(file.name) else None, max_bytes, left)


def _looks_like_path(source: str) -> bool:
    bare = source.partition("@")[0]
    return bare.startswith(("/", ".", "~")) or "\\" in bare or bare.count("/") > 1 or kind_of(bare) is not None


def _hub_source(source: str) -> HubSource:
    hub = parse_hub_source(source)
    if hub is None or _looks_like_path(source):
        raise UserError(f"there is no file or folder {source!r}; check the path, or name a Hub data set (owner/name)")
    if (hub.config or hub.split) and Path(hub.name).exists():
        raise UserError(f"{hub.name} is on disk, where there are no configs and splits; give {hub.name!r} alone")
    return hub


def _gather(name: str, documents: Iterable[str], max_bytes: int, skipped: Counter[str]) -> Texts:
    kept: list[str] = []
    left, truncated = max_bytes, False
    for document in documents:
        if not document.strip():
            skipped["blank documents"] += 1
            continue
        if left == 0:
            truncated = True
            break
        data = document.encode()
        if len(data) > left:
            document, truncated = data[:left].decode(errors="ignore"), True
        if document.strip():
            kept.append(document)
        left -= min(len(data), left)
        if truncated:
            break
    if not kept:
        raise UserError(f"{name} holds no text{_found(skipped)}; give a source that is not empty")
    parts = [f"all beyond the first {max_bytes:,} bytes"] * truncated + _listed(skipped)
    if parts:
        say(f"{name}: documents ({len(kept)}); left out: {', '.join(parts)}")
    return Texts(name, kept, truncated)


def _listed(skipped: Counter[str]) -> list[str]:
    return [f"{label} ({n:,})" for label, n in skipped.items() if n]


def _found(skipped: Counter[str]) -> str:
    parts = ", ".join(_listed(skipped))
    return f" (found: {parts})" if parts else ""
