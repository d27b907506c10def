"""`calibrate diff`: where two sidecars differ, in what they say and in what they do."""

from __future__ import annotations

import json
from typing import Any

from ...runtime.errors import SidecarError
from ...runtime.sidecar.plan import Plan
from ...runtime.sidecar.sidecar import Sidecar
from ..summary import calibrated_lengths

_PARTS = ("recipe", "calibration", "scores", "policy")  # JSON


def compare(a: Sidecar, b: Sidecar) -> dict[str, Any]:
    """`equal` (same metadata and tensors), and what differs: metadata values, plans by length, tensors."""
    metadata: dict[str, Any] = {}
    for key in sorted(set(a.metadata) | set(b.metadata)):
        left, right = a.metadata.get(key), b.metadata.get(key)
        if left != right:
            if key in _PARTS and left is not None and right is not None:
                metadata |= _leaves(key, json.loads(left), json.loads(right))
            else:
                metadata[key] = [left, right]
    plans = []
    for length in sorted({*calibrated_lengths(a), *calibrated_lengths(b)}):
        for method in ("auto", "filter", "decimate", "both"):
            left_plan, right_plan = _plan(a, length, method), _plan(b, length, method)
            if left_plan != right_plan:
                plans.append({"length": length, "method": method, "a": left_plan, "b": right_plan})
    tensors = [found for name in sorted(set(a.tensors) | set(b.tensors)) if (found := _tensor(a, b, name))]
    equal = not (metadata or tensors)
    return {
        "equal": equal,
        "same_model": a.metadata["model_fingerprint"] == b.metadata["model_fingerprint"],
        "metadata": metadata,
        "plans": plans,
        "tensors": tensors,
    }


def _leaves(path: str, left: Any, right: Any) -> dict[str, list[Any]]:
    """The values of two JSON documents that differ, by their path."""
    if left == right:
        return {}
    if isinstance(left, dict) and isinstance(right, dict):
        pairs = [(key, left.get(key), right.get(key)) for key in sorted(set(left) | set(right))]
    elif (
        isinstance(left, list) and isinstance(right, list) and len(left) == len(right) and path != "calibration.lengths"
    ):
        pairs = [(str(k), l, r) for k, (l, r) in enumerate(zip(left, right))]
    else:
        return {path: [left, right]}
    found: dict[str, list[Any]] = {}
    for key, l, r in pairs:
        found |= _leaves(f"{path}.{key}", l, r)
    return found


def _plan(side: Sidecar, length: int, method: str) -> str | None:
    """A plan in words; None where the sidecar has no tables for the method."""
    try:
        plan: Plan = side.plan(length, method)
    except SidecarError:
        return None
    keep = ", ".join(f"layer {layer} keeps {n}" for layer, n in sorted(plan.decimate.items()))
    stretched = f", rotary factor {plan.rotary.factor:g}" if plan.rotary else ""
    return plan.method + (f" ({keep})" if keep else "") + stretched


def _tensor(a: Sidecar, b: Sidecar, name: str) -> dict[str, Any] | None:
    left, right = a.tensors.get(name), b.tensors.get(name)
    if left is None or right is None:
        return {"name": name, "only_in": "b" if left is None else "a"}
    if left.shape != right.shape:
        return {"name": name, "shapes": [list(left.shape), list(right.shape)]}
    different = left != right
    if not different.any():
        return None
    return {
        "name": name,
        "values": left.numel(),
        "different": int(different.sum()),
        "largest_difference": float((left.double() - right.double()).abs().max()),
        "one_side_zero": int(((left == 0) != (right == 0)).sum()),
    }


def render(found: dict[str, Any]) -> str:
    """For people."""
    if found["equal"]:
        return "the sidecars are equal"
    lines = [] if found["same_model"] else ["made for different models"]
    if found["plans"]:
        lines.append("what they do:")
        lines += [f"  {p['length']:>9} {p['method']:<9} {p['a'] or '-'} | {p['b'] or '-'}" for p in found["plans"]]
    if found["tensors"]:
        lines.append("tables:")
    for t in found["tensors"]:
        if "only_in" in t:
            lines.append(f"  {t['name']}: only in {t['only_in'].upper()}")
        elif "shapes" in t:
            lines.append(f"  {t['name']}: shape {t['shapes'][0]} | {t['shapes'][1]}")
        else:
            lines.append(
                f"  {t['name']}: {t['different']} of {t['values']} values differ, by at most "
                f"{t['largest_difference']:.3g}; {t['one_side_zero']} are 0 on one side only"
            )
    if found["metadata"]:
        lines.append("metadata:")
    for key, (left, right) in found["metadata"].items():
        lines.append(f"  {key}: {_short(left)} | {_short(right)}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
