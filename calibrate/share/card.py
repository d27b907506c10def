"""The model card of a pushed sidecar: written once, then updated between its markers only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...runtime.checkpoint.source import is_hub_id, is_known_anywhere
from ...runtime.sidecar.sidecar import Sidecar
from ..errors import UserError, first_line
from ..summary import Facts, command, headline, score_tables, sources, to_yaml, windows_judged

BEGIN, END = "<!-- longscan:begin (calibrate push rewrites this part) -->", "<!-- longscan:end -->"
TAGS = ("mamba", "long-context", "decimamba", "longmamba", "calibration")


def model_card(
    side: Sidecar, repo_id: str, figures: Mapping[str, str], licence: str | None = None, revision: str | None = None
) -> str:
    """The card of a new repository. `figures` are its images: file name -> title; revision: the branch it is on."""
    body = _body(side, repo_id, figures, None if revision == "main" else revision)
    return _join(_front(side, licence), f"\n# {repo_id.split('/')[-1]}\n\n{BEGIN}\n{body}{END}\n")


def merge(old: str | None, new: str) -> str:
    """The new card, or the old one with its marked part replaced (appended if it has none) and its head completed.

    Raises UserError where the old card's head is no YAML.
    """
    if old is None:
        return new
    new_head, new_text = _split(new)
    head, text = _split(old)
    part = new_text[new_text.index(BEGIN) : new_text.index(END) + len(END)]
    first, last = text.find(BEGIN.split(" (")[0]), text.find(END)
    if 0 <= first < last:
        text = text[:first] + part + text[last + len(END) :]
    else:
        text = text.rstrip() + f"\n\n{part}\n"
    tags = head.get("tags")
    merged = {**new_head, **head, **{key: new_head[key] for key in _OURS if key in new_head}}
    merged["tags"] = list(dict.fromkeys([*(tags if isinstance(tags, list) else []), *new_head["tags"]]))
    return _join(merged, text)


_OURS = ("base_model", "base_model_relation", "library_name")
_HEAD = re.compile(r"\s*---[ \t]*\r?\n(.*?\r?\n)??---[ \t]*(?:\r?\n|$)", re.S)  # as the Hub finds it


def _front(side: Sidecar, licence: str | None) -> dict[str, Any]:
    base = side.metadata["base_model"]
    head: dict[str, Any] = {}
    if is_hub_id(base):  # the Hub accepts no other names here
        head |= {"base_model": base, "base_model_relation": "adapter"}
    if licence:
        head["license"] = licence
    names = [re.split("[:#@]", source)[0] for source in sources(side)]
    if sets := list(filter(is_hub_id, names)):
        head["datasets"] = sets
    return {**head, "library_name": "longscan", "tags": list(TAGS)}


def _body(side: Sidecar, repo_id: str, figures: Mapping[str, str], branch: str | None) -> str:
    meta, made = side.metadata, Facts.of(side).calibration
    base, L = meta["base_model"], side.train_length
    linked = f"[{base}](https://huggingface.co/{base})" if is_hub_id(base) else f"`{base}`"
    if is_known_anywhere(base):
        loaded = f'load("{repo_id}")' if branch is None else f'load("{repo_id}", revision="{branch}")'
    else:
        loaded = f'load("path/to/{base}", "{repo_id}{"" if branch is None else f"@{branch}"}")'
    parts = [
        f"A LongScan sidecar: what lets {linked}, trained at {L:,} tokens, read further "
        "without retraining. It holds tables, no weights; the model itself is unchanged.",
        f'```python\nfrom longscan.runtime import load\nlm = {loaded}\nprint("".join(lm.generate(prompt)))\n```',
        "## Measured",
    ]
    if told := headline(side):
        parts.append(told)
    tables = score_tables(side)
    for title, header, rows in tables:
        lines = [f"**{title}**", "", _line(header), _line(["---"] * len(header)), *map(_line, rows)]
        parts.append("\n".join(lines))
    if tables:
        parts.append(
            f"Held-out text of the calibration ({made.get('texts')}, {windows_judged(side)}, "
            f"seed {made.get('seed')}, {made.get('device')}, {made.get('dtype')}), the same for every method at a "
            "length. \\* is what `auto` does at that length: another than plain only where better beyond doubt."
        )
    else:
        parts.append("Nothing was compared: the recipe fixes every setting.")
    parts += [f"![{title}]({name})" for name, title in figures.items()]
    parts += [
        "## How it was made",
        f"```\n{command(side)}\n```",
        f"with this repository's `recipe.yaml` (recipe `{Facts.of(side).recipe.get('name', '')}`), "
        f"{meta['producer']} {meta['producer_version']}; calibration text {made.get('texts')} "
        f"({made.get('tokens', 0):,} tokens, sha256 `{str(made.get('texts_sha256', ''))[:16]}`). Every setting "
        "and score is in `config.json`.",
        "## Limits",
        f"- Up to {L:,} tokens the model is read plainly: same bits as without the sidecar.\n"
        f"- Beyond the longest calibrated length ({max(n for b in side.bands for n in b.lengths):,}) its settings are "
        "extrapolated, unmeasured.\n"
        "- The sidecar fits this model only (its fingerprint is checked) and was chosen on the text above; measure on "
        f"your own with `calibrate eval`.\n{_generated(side)}",
    ]
    return "\n\n".join(parts) + "\n"


def _generated(side: Sidecar) -> str:
    """What happens to tokens after the prompt, and to those that are dropped from it, by the methods auto picks."""
    methods = {band.method for band in side.bands}
    said = []
    if methods & {"filter", "both", "scale"}:
        treated = "scaled" if "scale" in methods and not methods & {"filter", "both"} else "filtered"
        default = f"are {treated}, too" if side.filter_decode else f"are not {treated}"
        said.append(f"- Generated tokens {default}; `load(..., filter_decode={not side.filter_decode})` changes that.")
    if methods & {"decimate", "both"}:
        said.append("- Decimation drops tokens of the prompt for good.")
    return "\n".join(said)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("*", "\\*") for cell in cells) + " |"


def _split(card: str) -> tuple[dict[str, Any], str]:
    """The YAML head between --- lines, and the rest."""
    import yaml

    found = _HEAD.match(card)
    if found is None:
        return {}, card
    try:
        values = yaml.safe_load(found[1] or "") or {}
    except Exception as error:  # besides YAMLError whatever its constructors run into
        raise UserError(f"the head of the card on the Hub is no YAML ({first_line(error, 80)}); correct it") from error
    if not isinstance(values, dict):
        raise UserError("the head of the card on the Hub is no mapping; correct it")
    return values, card[found.end() :]


def _join(head: Mapping[str, Any], text: str) -> str:
    return f"---\n{to_yaml(head)}---\n{text}"
