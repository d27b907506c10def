"""Texts: lines of JSON, parquet, plain."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

import mutate
from shared import EVALUATION
from target import Target, Wrong, strict


def _texts_of(path: Path) -> list[str]:
    from longscan.calibrate.texts.sources import read_texts

    return read_texts(str(path), role="run").documents


def jsonl(folder: Path, packed: bool) -> Target:
    """Lines of JSON, plain or compressed; each line's text as an independent reader finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("x.jsonl.gz" if packed else "x.jsonl")
    rows = [{"text": f"Line {i}, é\n", "id": i, "more": {"a": [i]}} for i in range(12)]

    def change(data: bytes, draw: Random) -> bytes:
        if packed and draw.random() < 0.5:
            return mutate.damage(data, draw)
        lines = (gzip.decompress(data) if packed else data).splitlines()
        at = draw.randrange(len(lines))
        lines[at] = mutate.text(lines[at], draw)
        made = b"\n".join(lines)
        return gzip.compress(made, 1) if packed else made

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = _texts_of(path)
        lines = (gzip.decompress(data) if packed else data).removeprefix(b"\xef\xbb\xbf").split(b"\n")
        said = [strict(line.removeprefix(b"\xef\xbb\xbf"))["text"] for line in lines if line.strip()]
        if found != [text for text in said if text is not None and text.strip()]:
            raise Wrong("other texts were read than the lines hold")

    good = "\n".join(map(json.dumps, rows)).encode()
    return Target(gzip.compress(good, 1) if packed else good, change, read)


def parquet(folder: Path, compression: str) -> Target:
    """A parquet file: its texts, or an error."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "x.parquet"
    texts = [f"Text {i} of a file of parquet, é" for i in range(50)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "id": list(range(50))}), path, compression=compression)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _texts_of(path)

    return Target(path.read_bytes(), mutate.damage, read)


def plain(folder: Path) -> Target:
    """A .txt file: the same text, or an error."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "x.txt"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if _texts_of(path) != [data.decode().removeprefix("\ufeff")]:
            raise Wrong("another text was read")

    return Target(EVALUATION.read_bytes()[:500] + "é ü 日本".encode(), mutate.damage, read)
