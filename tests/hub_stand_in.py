"""A small stand-in for the model hub on loopback: the part of its interface that huggingface_hub calls."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the stand-in serves, and what it was asked for.

    Attributes:
        repositories: files by path, by repository.
        gated, cut: repositories that want a token; paths whose transfer breaks off half-way.
        broken: answer everything with this status (True: 500), 200 being the page of a captive portal.
        requests: "METHOD path" in order; `tokens` are the tokens that came with them.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    broken: bool | int = False
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def add(self, repository: str, folder: Path) -> None:
        """Serves the files of a folder."""
        files = (path for path in folder.rglob("*") if path.is_file())
        self.repositories[repository] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def fetched(self) -> list[str]:
        """The files that were downloaded, once each."""
        return sorted(
            {
                line.split("/resolve/")[1].split("/", 1)[1]
                for line in self.requests
                if "GET" in line[:3] and "/resolve/" in line
            }
        )


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, head: bool = False) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def send_json(self, content: Any, status: int = 200, **headers: str) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer()

    def answer(self, head: bool = False) -> None:
        path = self.noted()
        if self.hub.broken == 200:
            return self.send(200, b"<html>Please accept our terms.</html>")
        if self.hub.broken:
            return self.refuse(500 if self.hub.broken is True else self.hub.broken, "Broken")
        parts = path.split("/")
        if path.startswith("api/models/"):
            return self.describe("/".join(parts[2:4]), parts[4:])
        return self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), head)

    def noted(self) -> str:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.tokens.append((self.headers.get("Authorization") or "").removeprefix("Bearer ") or None)
        return unquote(urlsplit(self.path).path).strip("/")

    def known(self, repository: str, revision: str) -> bool:
        if repository not in self.hub.repositories:
            self.refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif repository in self.hub.gated and not self.headers.get("Authorization"):
            self.refuse(403, "GatedRepo")
        else:
            return True
        return False

    def describe(self, repository: str, rest: list[str]) -> None:
        if not self.known(repository, rest[1] if len(rest) > 1 else "main"):
            return None
        files = self.hub.repositories[repository]
        if rest[:1] == ["tree"]:
            return self.send_json(
                [{"type": "file", "oid": oid(b), "size": len(b), "path": p} for p, b in files.items()]
            )
        siblings = [{"rfilename": path} for path in files]
        self.send_json({"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        return None

    def file(self, repository: str, revision: str, path: str, head: bool) -> None:
        if not self.known(repository, revision):
            return None
        body = self.hub.repositories[repository].get(path)
        if body is None:
            return self.refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{oid(body)}"', "Accept-Ranges": "bytes"}
        if path in self.hub.cut and not head:
            self.send(200, body[: len(body) // 2], {**headers, "Content-Length": str(len(body))})
            self.close_connection = True
            return None
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start and not head:
            total = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self.send(206, body[start:], {**headers, "Content-Range": total})
        self.send(200, body, headers, head)
        return None

    def do_POST(self) -> None:
        path, body = self.noted(), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.broken:
            return self.refuse(500, "Broken")
        if not self.headers.get("Authorization"):
            return self.send_json({"error": "Invalid username or password."}, 401)
        parts = path.split("/")
        repository = "/".join(parts[2:4])
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'learner'}/{asked['name']}"
            self.hub.repositories.setdefault(name, {})
            return self.send_json({"url": f"{self.hub.url}/{name}", "id": name})
        if path == "api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if parts[4] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.send_json({"files": files})
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.hub.repositories[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.send_json(
            {"success": True, "commitUrl": f"{self.hub.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
        )
        return None


def oid(body: bytes) -> str:
    """The identity that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
