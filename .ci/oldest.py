"""Pins of the oldest versions that pyproject.toml declares: `python .ci/oldest.py EXTRA ... > constraints.txt`.

torch is left out: of its oldest version there is no build without CUDA's gigabytes.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
wanted = project["dependencies"] + [one for extra in sys.argv[1:] for one in project["optional-dependencies"][extra]]
for requirement in wanted:
    found = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
    if found and found[1] != "torch":
        print(f"{found[1]}=={found[2]}")
