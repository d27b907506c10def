"""A small Hub on the loopback interface that speaks what `huggingface_hub` really asks for, and can be made to fail.

    with Hub() as hub:                              # hub.env() points an unmodified client at it
        hub.inject("/commit/", "drop", times=1)     # the next commit loses its connection

Repositories live in memory: every branch is a list of commits, every commit a whole tree. Files above
`LFS_ABOVE` bytes, and *.safetensors, go through the LFS protocol, as on the real one. Private repositories answer
401 without a token that may read them; tokens write only to their own namespace.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS_ABOVE = 1 << 20
RELATIONS = ("adapter", "finetune", "merge", "quantized")
WRITER = "hf_writer"  # the token of the user "someone"


def blob_id(data: bytes) -> str:
    """git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Commit:
    id: str
    title: str
    files: dict[str, bytes]
    lfs: frozenset[str]  # paths stored through LFS


@dataclass
class Repo:
    """branches: name -> commits, newest last."""

    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, bytes], lfs: frozenset[str]) -> Commit:
        history = self.branches.setdefault(branch, [])
        names = [[title, branch, len(history)], sorted((path, blob_id(data)) for path, data in files.items())]
        history.append(Commit(hashlib.sha1(json.dumps(names).encode()).hexdigest(), title, files, lfs))
        return history[-1]

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for history in self.branches.values() for c in history if c.id == revision), None)


@dataclass
class Fault:
    """Requests whose "METHOD /path" contains `where` get `what`: an HTTP status (429 with Retry-After), "drop", "drop
    after", "slow", "cut" (the connection ends within the body), "short" (half a body that calls itself whole), "etag"
    (another one than the file's), or something to be called first."""

    where: str
    what: int | str | Callable[[], object]
    times: int
    seconds: float = 0.0


class Hub:
    """The server. Use it as a context manager; `repos` and `log` can be looked at while it runs."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}  # "models/someone/name" -> Repo
        self.lfs: dict[str, bytes] = {}
        self.tokens = {WRITER: "someone"}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.lock = threading.RLock()
        hub = self

        class Bound(_Handler):
            pass

        Bound.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a client that was killed is no news

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def env(self, home: Path, token: str | None = WRITER) -> dict[str, str]:
        """Environment of a client: this hub, its own cache, the plain LFS protocol."""
        changes = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                   "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}  # fmt: skip
        return changes | ({"HF_TOKEN": token} if token else {})

    def inject(self, where: str, what: int | str | Callable[[], object], times: int = 1, seconds: float = 0.0) -> None:
        self.faults.append(Fault(where, what, times, seconds))

    def put(self, name: str, files: dict[str, bytes], *, kind: str = "models", private: bool = False) -> Commit:
        """A repository as if someone else had pushed it."""
        repo = self.repos.setdefault(f"{kind}/{name}", Repo(private))
        old = repo.find("main")
        merged = (old.files if old else {}) | files
        return repo.commit("main", "files", merged, frozenset(p for p in merged if _is_lfs(p, len(merged[p]))))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        line = f"{self.command} {url.path}"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.log.append(line)
            fault = next((f for f in self.hub.faults if f.where in line and f.times > 0), None)
            if fault:
                fault.times -= 1
        if fault and fault.what == "drop":
            return self._hang_up()
        if fault and isinstance(fault.what, int):
            later = {"Retry-After": str(int(fault.seconds))} if fault.what == 429 else {}
            return self._answer(fault.what, {"error": "injected"}, **{"X-Error-Message": "injected", **later})
        if fault and fault.what == "slow":
            time.sleep(fault.seconds)
        if fault and callable(fault.what):
            fault.what()
        with self.hub.lock:
            status, payload, headers = self._route(unquote(url.path), parse_qs(url.query), body)
        if fault and fault.what == "drop after":
            return self._hang_up()
        if fault and fault.what == "etag":
            headers |= {name: f'"{"0" * 40}"' for name in ("ETag", "X-Linked-Etag") if name in headers}
        self._answer(status, payload, fault.what if fault and fault.what in ("cut", "short") else "", **headers)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, payload: object, spoilt: object = "", **headers: str) -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        if status == 206 or (status == 200 and self.headers.get("Range") and self.command == "GET"):
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            headers["Content-Range"] = f"bytes {first}-{last or len(data) - 1}/{len(data)}"
            status, data = 206, data[int(first) : int(last) + 1 if last else None]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        half = data[: len(data) // 2]
        self.send_header("Content-Length", str(len(half if spoilt == "short" and self.command != "HEAD" else data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(half if spoilt else data)
        if spoilt == "cut":
            self._hang_up()

    def _user(self) -> str | None:
        return self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, object, dict[str, str]]:
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/whoami-v2":
            user = self._user()
            return (200, {"name": user, "type": "user", "orgs": []}, {}) if user else (401, {"error": "no token"}, {})
        if path == "/api/validate-yaml":  # the client asks this of every card before it commits
            head = _card_data({"README.md": json.loads(body)["content"].encode()})
            wrong = [
                f"unknown relation {r}" for r in [head.get("base_model_relation", "adapter")] if r not in RELATIONS
            ]
            return 200, {"errors": [{"message": m} for m in wrong], "warnings": []}, {}
        if parts[0] == "lfs":
            return self._lfs_object(parts[1], body)
        if parts[0] == "api" and parts[1] in ("models", "datasets"):
            return self._api(f"{parts[1]}/{parts[2]}/{parts[3]}", parts[4:], query, body)
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(f"{kind}/{parts[0]}/{parts[1].removesuffix('.git')}", json.loads(body))
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve(f"{kind}/{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        return 404, {"error": f"no such page {path}"}, {}

    def _create(self, asked: dict[str, str]) -> tuple[int, object, dict[str, str]]:
        user = self._user()
        owner = asked.get("organization") or user
        if user is None:
            return 401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid credentials"}
        if owner != user:
            return 403, {"error": f"You don't have the rights to create a model under {owner}"}, {}
        name = f"{asked.get('type', 'model')}s/{owner}/{asked['name']}"
        url = f"{self.hub.url}/{owner}/{asked['name']}"
        if name in self.hub.repos:
            return 409, {"error": "You already created this repo", "url": url}, {}
        repo = Repo(asked.get("visibility") == "private" or asked.get("private") in (True, "true"))
        repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"}, frozenset())
        self.hub.repos[name] = repo
        return 200, {"url": url, "name": f"{owner}/{asked['name']}"}, {}

    def _find(self, name: str) -> tuple[Repo | None, tuple[int, object, dict[str, str]]]:
        repo = self.hub.repos.get(name)
        if repo is not None and not (repo.private and self._user() != name.split("/")[1]):
            return repo, (200, {}, {})
        code = 401 if self._user() is None else 404
        return None, (code, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def _api(self, name: str, rest: list[str], query: dict[str, list[str]], body: bytes):
        repo, refusal = self._find(name)
        if repo is None:
            return refusal
        what, revision = (rest[0], "/".join(rest[1:2]) or "main") if rest else ("revision", "main")
        if what in ("preupload", "commit", "branch") and self._user() != name.split("/")[1]:
            return 403, {"error": "no write access"}, {"X-Error-Message": "no write access"}
        if what == "branch":
            if revision in repo.branches:
                return 409, {"error": "Reference already exists"}, {}
            repo.branches[revision] = list(repo.branches["main"])
            return 200, {}, {}
        found = repo.find(revision)
        if found is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        if what == "revision":
            files = [{"rfilename": path} for path in sorted(found.files)]
            identity = name.split("/", 1)[1]
            return 200, {"_id": "0", "id": identity, "modelId": identity, "sha": found.id, "private": repo.private,
                         "siblings": files, "tags": [], "downloads": 0, "likes": 0, "gated": False,
                         "disabled": False, "cardData": _card_data(found.files)}, {}  # fmt: skip
        if what == "tree":
            under = "/".join(rest[2:])
            return 200, _tree(found, under, "true" in query.get("recursive", ["false"])[0].lower()), {}
        if what == "paths-info":
            form = parse_qs(body.decode()) if b"paths=" in body else json.loads(body)
            wanted = form["paths"] if isinstance(form["paths"], list) else [form["paths"]]
            return 200, [e for e in _tree(found, "", True) if e["path"] in wanted], {}
        if what == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if _is_lfs(f["path"], f["size"]) else "regular",
                 "shouldIgnore": False, "oid": _oid(found, f["path"])}
                for f in files
            ]  # fmt: skip
            return 200, {"files": modes}, {}
        if what == "commits":
            titles = [{"id": c.id, "title": c.title, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
                      for c in reversed(repo.branches.get(revision, [found]))]  # fmt: skip
            return 200, titles, {}
        if what == "commit":
            return self._commit(name, repo, revision, body)
        return 404, {"error": f"no such call {what}"}, {}

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> tuple[int, object, dict[str, str]]:
        if branch not in repo.branches:
            return 404, {"error": "no such branch"}, {"X-Error-Code": "RevisionNotFound"}
        entries = [json.loads(line) for line in body.splitlines()]
        header = entries[0]["value"]
        head = repo.branches[branch][-1]
        if header.get("parentCommit") not in (None, head.id):
            return 412, {"error": "The commit's parent is no longer the branch's head"}, {}
        files, lfs = dict(head.files), set(head.lfs)
        for entry in entries[1:]:
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    return 400, {"error": f"LFS object {value['oid']} was never uploaded"}, {}
                files[value["path"]] = self.hub.lfs[value["oid"]]
                lfs.add(value["path"])
        made = repo.commit(branch, header["summary"], files, frozenset(lfs))
        url = f"{self.hub.url}/{name.split('/', 1)[1]}/commit/{made.id}"
        return 200, {"success": True, "commitUrl": url, "commitOid": made.id}, {}

    def _batch(self, name: str, asked: dict) -> tuple[int, object, dict[str, str]]:
        repo, refusal = self._find(name)
        if repo is None:
            return refusal
        objects = []
        for item in asked["objects"]:
            if item["oid"] in self.hub.lfs:
                objects.append(item)
                continue
            place = f"{self.hub.url}/lfs/{item['oid']}"
            objects.append({**item, "actions": {"upload": {"href": place}, "verify": {"href": place + "/verify"}}})
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _lfs_object(self, oid: str, body: bytes) -> tuple[int, object, dict[str, str]]:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                return 400, {"error": "content does not match its name"}, {}
            self.hub.lfs[oid] = body
            return 200, {}, {"ETag": f'"{oid}"'}
        if self.command == "POST":
            return (200, {}, {}) if oid in self.hub.lfs else (404, {"error": "no object"}, {})
        return (200, self.hub.lfs[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _resolve(self, name: str, revision: str, path: str) -> tuple[int, object, dict[str, str]]:
        repo, refusal = self._find(name)
        if repo is None:
            return refusal
        found = repo.find(revision)
        if found is None:
            return 404, {}, {"X-Error-Code": "RevisionNotFound"}
        if path not in found.files:
            return 404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found.id}
        data = found.files[path]
        if path not in found.lfs:
            return 200, data, {"ETag": f'"{blob_id(data)}"', "X-Repo-Commit": found.id, "Accept-Ranges": "bytes"}
        oid = hashlib.sha256(data).hexdigest()
        self.hub.lfs[oid] = data
        place = f"http://localhost:{self.hub.server.server_port}/lfs/{oid}"  # another host, as the real one's store is
        return 302, b"", {"Location": place, "X-Repo-Commit": found.id, "X-Linked-Etag": f'"{oid}"',
                          "X-Linked-Size": str(len(data)), "ETag": f'"{blob_id(data)}"'}  # fmt: skip


def _oid(commit: Commit, path: str) -> str | None:
    """What a file is known by, so that the client need not send what is there."""
    data = commit.files.get(path)
    return None if data is None else hashlib.sha256(data).hexdigest() if path in commit.lfs else blob_id(data)


def _is_lfs(path: str, size: int) -> bool:
    return path.endswith((".safetensors", ".bin", ".parquet")) or size > LFS_ABOVE


def _tree(commit: Commit, under: str, recursive: bool) -> list[dict]:
    entries: dict[str, dict] = {}
    for path, data in sorted(commit.files.items()):
        if under and not path.startswith(under + "/"):
            continue
        inside = path[len(under) + 1 :] if under else path
        if "/" in inside:
            folder = (under + "/" if under else "") + inside.split("/")[0]
            entries.setdefault(folder, {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0})
            if not recursive:
                continue
        entry = {"type": "file", "path": path, "oid": blob_id(data), "size": len(data)}
        if path in commit.lfs:
            oid = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        entries[path] = entry
    return list(entries.values())


def _card_data(files: dict[str, bytes]) -> dict:
    import yaml

    text = files.get("README.md", b"").decode()
    return yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
