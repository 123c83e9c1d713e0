"""A stand-in for the Hugging Face Hub on 127.0.0.1: what a push asks for, and no more.

It speaks what `huggingface_hub` says when it creates a repository and uploads a folder without Xet: create,
validate-yaml, preupload, the LFS batch, one PUT per large file, commit. Any other request is answered with 404 and
kept in `unknown`.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LocalHub(ThreadingHTTPServer):
    """One hub; `files` is what the commits left in each repository."""

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.token = token
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: list[str] = []
        self.cards: list[str] = []
        self.stored: dict[str, bytes] = {}  # large files by their SHA-256
        self.unknown: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        self.files.setdefault(name, {})
        return {"url": f"{self.url}/{name}", "name": name, "id": name}

    def preupload(self, asked: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"path": file["path"], "shouldIgnore": False, "uploadMode": self.way(file["path"])}
            for file in asked["files"]
        ]
        return {"files": files}

    def way(self, path: str) -> str:
        return "lfs" if path.endswith((".safetensors", ".bin", ".parquet")) else "regular"

    def batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.url}/stored/{one['oid']}"}}}
            for one in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                self.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repository][value["path"]] = self.stored[value["oid"]]
        return {"commitUrl": f"{self.url}/{repository}/commit/1", "commitOid": "0" * 40}


class _Answer(BaseHTTPRequestHandler):
    server: LocalHub

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._send(401, {"error": "no token"})
        path, hub = self.path.partition("?")[0], self.server
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._send(200, hub.create(json.loads(body)))
        if path == "/api/validate-yaml":
            hub.cards.append(json.loads(body)["content"])
            return self._send(200, {"warnings": [], "errors": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._send(200, hub.batch(json.loads(body)))
        if path.startswith("/api/models/") and parts[4] == "preupload":
            return self._send(200, hub.preupload(json.loads(body)))
        if path.startswith("/api/models/") and parts[4] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            return self._send(200, hub.commit("/".join(parts[2:4]), lines))
        return self._unknown()

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.rpartition("/")[2]
        right = hashlib.sha256(body).hexdigest() == oid
        if right:
            self.server.stored[oid] = body
        self._send(200 if right else 400, {})

    def do_GET(self) -> None:
        self._unknown()

    do_HEAD = do_GET

    def _unknown(self) -> None:
        self.server.unknown.append(f"{self.command} {self.path}")
        self._send(404, {"error": "not known"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = b"" if self.command == "HEAD" else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def local_hub(token: str) -> Iterator[LocalHub]:
    hub = LocalHub(token)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
