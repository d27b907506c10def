"""An evaluation's rows as a table: lengths down, methods across."""

from __future__ import annotations

from typing import Any


def render(document: dict[str, Any], train_length: int | None) -> str:
    """Plain text, aligned; "auto" says what it resolved to."""
    rows = document["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["length"], row["method"]): row for row in rows}
    title = f"{document['task']} ({document['unit']}), {rows[0]['windows']} windows"
    lines = [title, f"{'length':>12} " + "".join(f"{m:>18}" for m in methods)]
    for length in dict.fromkeys(row["length"] for row in rows):
        times = f" ({length / train_length:g}x)" if train_length else ""
        line = f"{str(length) + times:>12} "
        for method in methods:
            row = cells[length, method]
            text = f"{row['value']:.3f}" if document["task"] == "perplexity" else f"{row['value']:.0%}"
            line += f"{text + (' ' + row['resolved_method'] if method == 'auto' else ''):>18}"
        lines.append(line)
    return "\n".join(lines)
