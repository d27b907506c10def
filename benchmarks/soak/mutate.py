"""Seeded mutations of bytes, JSON (which YAML reads, too) and safetensors files."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, 10**6, 2**31, 2**32 + 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(2**63), 0.5,  # noqa: E501
           2.5, 1e-5, 1e-30, 1e308, -0.0, float("nan"), float("inf"), float("-inf"))  # fmt: skip
VALUES = (None, True, False, "", " ", "0", "x", "nan", "é", "\ud800", "\x00", "a" * 300, "../x", "/", "..", [], {}, [0], [[]],  # noqa: E501
          {"": 0}, ["x", 1], {"a": {"b": []}}, *NUMBERS)  # fmt: skip


class Twice(dict):
    """An object with one key given twice, the second time with another value."""

    def __init__(self, values: dict[str, Any], key: str, other: Any) -> None:
        super().__init__(values)
        self.key, self.other = key, other


def dumps(value: Any) -> str:
    """JSON as json.dumps writes it, Twice as it is."""
    if isinstance(value, dict):
        pairs = [*value.items(), *([(value.key, value.other)] if isinstance(value, Twice) else [])]
        return "{" + ",".join(f"{json.dumps(str(k))}:{dumps(v)}" for k, v in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(dumps, value)) + "]"
    return str(value) if type(value) is int and abs(value) > 10**300 else json.dumps(value)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inside in items for place in places(inside, (*at, key)))]


def document(value: Any, draw: Random) -> Any:
    """The same document with one to three changes."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        everywhere = places(value)
        path = draw.choice(everywhere)
        if not path:
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        key, other = path[-1], copy.deepcopy(draw.choice(VALUES))
        kind = draw.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(draw.choice(VALUES[:14])) if draw.random() < 0.5 else str(key) + "x"] = other
        elif kind == 2:  # a value from elsewhere in it
            other = value
            for step in draw.choice(everywhere):
                other = (
                    other[step]
                    if isinstance(other, list | dict)
                    and step in (other if isinstance(other, dict) else range(len(other)))
                    else other
                )
            holder[key] = copy.deepcopy(other)
        elif kind == 3 and isinstance(holder[key], int | float):
            try:
                holder[key] = draw.choice(
                    (holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 2, str(holder[key]))
                )
            except OverflowError:
                holder[key] = other
        elif (
            kind == 4
            and isinstance(holder, dict)
            and not isinstance(holder, Twice)
            and len(path) == 1
            and len(holder) > 0
        ):
            value = Twice(holder, key, other)
        elif kind == 5 and isinstance(holder[key], list) and holder[key]:
            holder[key] = holder[key] * 2 if draw.random() < 0.5 else holder[key][:-1]
        else:
            holder[key] = other
    return value


def text(data: bytes, draw: Random) -> bytes:
    """JSON or other text with structure: the document changed, or its text damaged or nested too deeply."""
    if draw.random() < 0.7:
        try:
            return dumps(document(json.loads(data), draw)).encode("utf-8", "surrogatepass")
        except ValueError:
            pass
    if draw.random() < 0.1:
        deep = draw.choice((50, 900, 3000, 100_000))
        return draw.choice((b"[" * deep, b"[" * deep + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep))
    return damage(data, draw)


def damage(data: bytes, draw: Random) -> bytes:
    """Bytes flipped, cut, doubled, zeroed, moved or put in."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(found) + 1)
        size = draw.choice((1, 1, 2, 4, 8, 64, 512))
        kind = draw.randrange(7)
        if kind == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at : at + size] = draw.randbytes(min(size, len(found) - at))
        elif kind == 2:
            found = found[:at]
        elif kind == 3:
            found[at:at] = found[at : at + size]
        elif kind == 4:
            found[at : at + size] = bytes([draw.choice((0, 255))]) * min(size, len(found) - at)
        elif kind == 5:
            del found[at : at + size]
        else:
            found[at:at] = draw.choice(
                (b"\x00", b"\xff\xfe", b'"', b"}", b"[", b"\n", b"NaN", b"1e999", b"\xed\xa0\x80", b"-")
            )
    return bytes(found)


def safetensors(data: bytes, draw: Random) -> bytes:
    """A safetensors file whose header was changed as a document, or whose bytes were."""
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = draw.randrange(10)
    if kind < 3:
        near = 8 + size + 64 if draw.random() < 0.7 else len(data)  # the header and the first values, or anywhere
        return damage(data[:near], draw) + data[near:]
    if kind == 3:  # values no number should have
        at, wide = (
            draw.randrange(max(1, len(rest) - 4)) & ~3,
            draw.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff" * 4, b"\x00\x00\x00\x80")),
        )
        rest = rest[:at] + wide + rest[at + 4 :]
    elif kind == 4:  # one tensor's description
        name = draw.choice([n for n in header if n != "__metadata__"])
        entry = header[name]
        part = draw.randrange(3)
        if part == 0:
            entry["dtype"] = draw.choice(
                (
                    "F16",
                    "BF16",
                    "F64",
                    "I64",
                    "I32",
                    "U8",
                    "BOOL",
                    "F8_E4M3",
                    "F8_E5M2",
                    "U16",
                    "C64",
                    "F4",
                    "F6_E2M3",
                    "I8",
                    "X",
                    "",
                )
            )
        elif part == 1:
            shape = entry["shape"]
            entry["shape"] = draw.choice(
                (
                    [*shape, 1],
                    shape[::-1],
                    shape[1:],
                    [1, *shape],
                    [*shape[:-1], 0],
                    [2**40, *shape],
                    [-1],
                    [2**63],
                    [0, 2**62],
                    [int_product(shape)],
                )
            )
        else:
            start, stop = entry["data_offsets"]
            entry["data_offsets"] = draw.choice(
                (
                    [stop, start],
                    [start, stop + 4],
                    [start - 4, stop],
                    [start, start],
                    [0, stop - start],
                    [start, 2**60],
                    [2**63, 2**64 - 1],
                )
            )
    elif kind == 5:  # two tensors change places or names
        names = [n for n in header if n != "__metadata__"]
        one, other = draw.choice(names), draw.choice(names)
        header[one], header[other] = header[other], header[one]
    elif kind == 6 and isinstance(header.get("__metadata__"), dict):  # a document inside the metadata
        key = draw.choice(list(header["__metadata__"]))
        header["__metadata__"][key] = text(header["__metadata__"][key].encode(), draw).decode("utf-8", "replace")
    else:
        header = document(header, draw)
    written = dumps(header).encode("utf-8", "surrogatepass")
    return len(written).to_bytes(8, "little") + written + rest


def int_product(shape: list[int]) -> int:
    found = 1
    for one in shape:
        found *= one
    return found
