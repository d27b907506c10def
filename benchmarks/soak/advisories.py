"""Known weaknesses of the packages installed here, without a connection: pip-audit with a copy of PyPI's advisories.

    pip install pip-audit  # its command may be anywhere on PATH
    git clone https://github.com/pypa/advisory-database advisories
    python benchmarks/soak/advisories.py advisories [--out FILE]

The folder's files are in OSV's schema; they are served as OSV's service would on the loopback interface, and pip-audit
asks there about every distribution this interpreter sees. With a connection, `pip-audit` alone does as well.
Ends with 1 where a weakness is known, and fails where a planted one is not found.
"""

from __future__ import annotations

import argparse
import json
import site
import subprocess
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from shared import keep

PLANTED = ("torch", "1.13.0")  # PYSEC-2022-43015; if this is not found, nothing would be


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Advisories by package."""
    found = defaultdict(list)
    for file in sorted(folder.glob("vulns/*/*.yaml")):
        advisory = yaml.load(file.read_text(), yaml.BaseLoader)  # dates stay the strings that JSON wants
        for package in {canonicalize_name(each["package"]["name"]) for each in advisory["affected"]}:
            found[package].append(advisory)
    return found


def affects(advisory: dict[str, Any], package: str, version: str) -> bool:
    """OSV's rule: listed, or within a range of versions."""
    for each in advisory["affected"]:
        if canonicalize_name(each["package"]["name"]) != package:
            continue
        ranges = [one["events"] for one in each.get("ranges", []) if one["type"] == "ECOSYSTEM"]
        if version in each.get("versions", ()) or any(_within(Version(version), events) for events in ranges):
            return True
    return False


def _within(version: Version, events: list[dict[str, str]]) -> bool:
    inside = False
    for kind, at in sorted((next(iter(event.items())) for event in events), key=lambda event: _version(event[1])):
        if kind == "introduced" and version >= _version(at):
            inside = True
        elif (kind == "fixed" and version >= _version(at)) or (kind == "last_affected" and version > _version(at)):
            inside = False
    return inside


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def serve(advisories: dict[str, list[dict[str, Any]]]) -> ThreadingHTTPServer:
    """OSV's `v1/query` on the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            package, version = canonicalize_name(asked["package"]["name"]), asked["version"]
            known = [each for each in advisories.get(package, []) if affects(each, package, version)]
            body = json.dumps({"vulns": known} if known else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def audit(url: str, *arguments: str) -> dict[str, Any]:
    """pip-audit's document."""
    command = ["pip-audit", "-s", "osv", "--osv-url", url, "-f", "json", "--progress-spinner", "off", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(done.stderr.strip() or "pip-audit said nothing")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("advisories", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    advisories = read(args.advisories)
    if not any(affects(each, *PLANTED) for each in advisories.get(PLANTED[0], [])):
        raise SystemExit(f"{args.advisories} does not know {' '.join(PLANTED)}; give a copy of pypa/advisory-database")
    server = serve(advisories)
    url = f"http://127.0.0.1:{server.server_address[1]}/v1/query"
    found = audit(url, "--path", *site.getsitepackages()[:1])
    audited = [each for each in found["dependencies"] if "vulns" in each]
    weak = {f"{each['name']} {each['version']}": each["vulns"] for each in audited if each["vulns"]}
    skipped = [each["name"] for each in found["dependencies"] if "vulns" not in each]
    number = len({each["id"] for known in advisories.values() for each in known})
    print(f"{len(audited)} packages audited by {number} advisories, {len(weak)} with a known weakness")
    print(f"not audited: {', '.join(skipped) or 'none'}")
    for name, vulns in weak.items():
        print(f"{name}: {', '.join(each['id'] for each in vulns)}")
    keep(args.out, audited=len(audited), advisories=number, weak=weak, skipped=skipped)
    raise SystemExit(bool(weak))


if __name__ == "__main__":
    main()
