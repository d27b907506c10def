"""benchmarks/scale.py: the ladder's table is that of the rungs kept beside it."""

from __future__ import annotations

import json
from pathlib import Path

from ..kernels.cases import load_benchmark

SCALE = Path(__file__).parents[2] / "docs" / "scale"


def test_the_table_is_that_of_the_rungs_kept():
    scale = load_benchmark("scale")
    rungs = scale.kept()
    assert [rung["rung"] for rung in rungs if rung["rung"] == "mamba-0.2m"]
    assert scale.tables(rungs) == (SCALE / "table.md").read_text()
    rung = json.loads((SCALE / "mamba-0.2m.json").read_text())
    assert scale.picks(rung, 64) == ("filter", "0.46", "e^-3.0", "all", "stretched")
    rung["bands"][0]["method"] = "decimate"
    assert scale.picks(rung, 64) == ("decimate", "", "", "", "")
