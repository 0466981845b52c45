"""The part of the Hugging Face hub's HTTP API that its client asks for, on 127.0.0.1."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"
LARGE = 10_000  # bytes, from which a file goes to the storage of large ones


@dataclass
class Repository:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    def sha(self, number: int | None = None) -> str:
        number = len(self.commits) - 1 if number is None else number
        return hashlib.sha1(str(number).encode()).hexdigest()

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a branch or a commit."""
        if revision == "main":
            return self.sha(), self.commits[-1]
        found = [n for n in range(len(self.commits)) if self.sha(n) == revision]
        return (revision, self.commits[found[0]]) if found else None


@dataclass
class Hub:
    """What the stand-in holds, and what was asked of it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)  # sha256 -> a large file
    stored: list[str] = field(default_factory=list)  # sha256 of each that was sent
    fetched: list[str] = field(default_factory=list)  # names of files
    cards: list[str] = field(default_factory=list)
    failing: list[str] = field(default_factory=list)  # parts of addresses that fail from now on


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        if any(part in path for part in self.hub.failing):
            self._send(403, {"error": "the stand-in fails"})
        elif method in ("POST", "PUT"):
            self._write(method, path, body)
        elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._described(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(found[1], found[2])
        elif found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(method, *found.groups())
        else:
            self._send(404, {"error": f"no {path}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _write(self, method: str, path: str, body: bytes) -> None:
        hub = self.hub
        if method == "PUT":
            name = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == name
            hub.storage[name] = body
            hub.stored.append(name)
            self._send(200, {})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            assert asked["type"] == "dataset"
            known = name in hub.repositories
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            hub.repositories.setdefault(name, Repository(private))
            self._send(409 if known else 200, {"url": f"{hub.url}/datasets/{name}"})
        elif path == "/api/validate-yaml":
            hub.cards.append(json.loads(body)["content"])
            self._send(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            self._send(200, {"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body)["objects"])
        elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._send(404, {"error": f"no {path}"})

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        answered = []
        for item in objects:
            upload = {"href": f"{self.hub.url}/storage/{item['oid']}"}
            there = item["oid"] in self.hub.storage
            answered.append(item | ({} if there else {"actions": {"upload": upload}}))
        self._send(200, {"transfer": "basic", "objects": answered})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.commits[-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.storage[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits.append(files)
        url = f"{self.hub.url}/datasets/{name}/commit/{repository.sha()}"
        self._send(200, {"commitUrl": url, "commitOid": repository.sha()})

    def _known(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.hub.repositories.get(name)
        found = None if repository is None else repository.files(revision)
        if found is None:
            code = "RepoNotFound" if repository is None else "RevisionNotFound"
            self._send(404, {"error": "not found"}, {"X-Error-Code": code})
        return found

    def _described(self, name: str, revision: str) -> None:
        if found := self._known(name, revision):
            sha, files = found
            siblings = [{"rfilename": path} for path in files]
            self._send(200, {"id": name, "sha": sha, "siblings": siblings})

    def _tree(self, name: str, revision: str) -> None:
        if found := self._known(name, revision):
            listed = [
                {
                    "type": "file",
                    "path": path,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for path, data in found[1].items()
            ]
            self._send(200, listed)

    def _file(self, method: str, name: str, revision: str, path: str) -> None:
        if not (found := self._known(name, revision)):
            return
        sha, files = found
        if path not in files:
            self._send(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        data, status = files[path], 200
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if (wanted := self.headers.get("Range")) and method == "GET":
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        if method == "GET":
            self.hub.fetched.append(path)
        self._send(status, data, headers, method)

    def _send(
        self, status: int, body: Any, headers: dict[str, str] | None = None, method: str = "GET"
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(data)


@contextmanager
def serving() -> Iterator[Hub]:
    """A stand-in that answers as long as the block lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
