"""A small real server with the few addresses of the Hugging Face hub that a push and a download need.

    with hub_server() as hub:
        ...  # HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN
        hub.files["lab/owl-ranker"]["config.json"]

A request whose body holds "silence" gets no answer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, COMMIT = "hf_test", "0" * 40


@dataclass
class Hub:
    """What is on it. `TOKEN` may write to `lab/`; the rest is others'.

    files: content by repository and path; a repository is there when it has an entry.
    stated: sha256 by repository and path, where it says another one than that of the content.
    """

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    stated: dict[str, dict[str, str]] = field(default_factory=dict)

    def answer(self, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """(status, JSON) of one request; a body means POST."""
        parts = path.partition("?")[0].split("/")[2:]
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if parts == ["validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if parts == ["repos", "create"]:
            return self.create(json.loads(body))
        repo, action = "/".join(parts[1:3]), (parts[3:] or ["info"])[0]
        if repo not in self.files:
            return 404, {"error": "Repository not found"}
        if body and not repo.startswith("lab/"):
            return 403, {"error": "Forbidden: not yours"}
        return 200, getattr(self, action)(repo, body)

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "lab":
            return 403, {"error": "You don't have the rights to create a model there"}
        if repo in self.files:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.files[repo] = {".gitattributes": b""}
        self.private |= {repo} if asked.get("visibility") == "private" or asked.get("private") else set()
        return 200, {"url": f"{self.url}/{repo}"}

    def info(self, repo: str, _: bytes) -> dict[str, Any]:
        files = self.files[repo].items()
        siblings = [{"rfilename": path, "size": len(of), "lfs": self.large(repo, path)} for path, of in files]
        return {"id": repo, "modelId": repo, "private": repo in self.private, "sha": COMMIT, "siblings": siblings}

    revision = info

    def large(self, repo: str, path: str) -> dict[str, Any] | None:
        """What the hub keeps of a large file, which weights are."""
        content = self.files[repo][path]
        known = self.stated.get(repo, {}).get(path) or hashlib.sha256(content).hexdigest()
        return {"size": len(content), "sha256": known, "pointerSize": 1} if path.endswith(".safetensors") else None

    def tree(self, repo: str, _: bytes) -> list[dict[str, Any]]:
        return [{"type": "file", "path": path, "size": 1, "oid": COMMIT} for path in self.files[repo]]

    def preupload(self, _: str, body: bytes) -> dict[str, Any]:
        modes = {"uploadMode": "regular", "shouldIgnore": False}
        return {"files": [{"path": file["path"], **modes} for file in json.loads(body)["files"]]}

    def commit(self, repo: str, body: bytes) -> dict[str, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.files[repo][value["path"]]
        return {"commitUrl": f"{self.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub that answers as long as the context."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if b"silence" in body:
                return  # the line is cut without an answer
            status, content = hub.answer(self.path, self.headers["Authorization"] or "", body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            if self.path.startswith("/api/"):
                return self.do_POST()
            _, owner, name, _, _, path = self.path.split("/", 5)  # /OWNER/NAME/resolve/COMMIT/PATH
            content = hub.files[f"{owner}/{name}"][path]
            self.send_response(200)
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            return None if self.command == "HEAD" else self.wfile.write(content) and None

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
