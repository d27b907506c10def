"""What is wrong with a recipe, in one line: the key, what it holds, what to give; read off the recipe's JSON Schema."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

Node = Mapping[str, Any]  # of a JSON Schema
EXPECTED = "x-expected"  # says what to give where the schema's own keywords would say it badly


_SHORT = reprlib.Repr()  # a few aliases of YAML are a value too long for any memory to write out
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 3, 20, 20, 80, 80


class Unfit(ValueError):
    """Values that are right one by one and do not go together; the message is what to give."""


def refusal(error: ValidationError, values: object, schema: Node) -> str:
    """The first thing pydantic found wrong with `values`: "samples is 0; give a whole number from 1 to 100000"."""
    found = error.errors(include_url=False)[0]
    nodes, key, parts = list(_members(schema, schema)), "", list(found["loc"])
    unknown = parts.pop() if found["type"] in ("extra_forbidden", "invalid_key") or parts[-1:] == ["[key]"] else None
    if unknown == "[key]":  # of a mapping
        unknown = parts.pop()
    for part in parts:  # a part that is no key is the name of one of the types that a value may have
        if isinstance(values, Mapping) and part in values:
            key, values = f"{key}.{part}".lstrip("."), values[part]
        elif isinstance(values, (list, tuple)) and isinstance(part, int):
            key, values = f"{key}[{part}]", values[part]
        else:
            continue
        nodes = [member for node in nodes for below in _below(node, part) for member in _members(below, schema)]
    if unknown is not None:
        known = sorted(name for node in nodes for name in node.get("properties", ()))
        key = f"{key}.{unknown}".lstrip(".")
        if not known:
            return f"{key} is no name; give {_words({'type': 'string', 'minLength': 1})}"
        near = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.0) or known
        return f"unknown key {key}; did you mean {near[0]!r}? (known here: {', '.join(known)})"
    cause = found.get("ctx", {}).get("error")
    expected = str(cause) if isinstance(cause, Unfit) else ", or ".join(map(_words, nodes))
    shown = " ".join(_SHORT.repr(values).split())
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{key + ' is' if key else 'the file holds'} {shown}; give {expected}"


def _members(node: Node, schema: Node) -> Iterator[Node]:
    """The alternatives of a node, references followed."""
    if "$ref" in node:
        yield from _members(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    elif several := node.get("anyOf", node.get("allOf")):  # all of one: a reference, in pydantic before 2.9
        for member in several:
            yield from _members({**member, **{k: v for k, v in node.items() if k == EXPECTED}}, schema)
    else:
        yield node


def _below(node: Node, part: str | int) -> Sequence[Node]:
    inside = (node.get("properties", {}).get(part), node.get("additionalProperties"), node.get("items"))
    return [next(one for one in inside if one)] if any(inside) else []


def _words(node: Node) -> str:
    if EXPECTED in node:
        return str(node[EXPECTED])
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return f"one of {', '.join(node['enum'])}"
    if node["type"] == "array":
        return f"a list, each {_words(node['items'])}"
    if node["type"] == "integer":
        return f"a whole number from {node['minimum']} to {node.get('maximum', node.get('exclusiveMaximum', 0) - 1)}"
    if node["type"] == "number":
        bounds = {"exclusiveMinimum": "above", "exclusiveMaximum": "below", "maximum": "at most"}
        given = [f"{word} {node[key]:g}" for key, word in bounds.items() if key in node]
        return " ".join(["a number", " and ".join(given)]).strip()
    return {
        "object": "a mapping of keys to values",
        "string": "text that is not empty" if node.get("minLength") else "text",
        "boolean": "true or false",
        "null": "null",
    }[node["type"]]
