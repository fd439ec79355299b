"""The page of finished rankings, served to this machine alone or written into a folder.

    with served(page) as server: print(server.url); server.serve_forever()

In: a `Page` with its data. Out: a server on 127.0.0.1 that knows one address, or `index.html`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from r1ranker.errors import ConfigError
from r1ranker.io.files import write_whole
from r1ranker.serving.html import Page

HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """One page on a free port."""

    daemon_threads = True

    def __init__(self, page: Page) -> None:
        self.body, self.page_headers = page.html.encode(), page.headers
        super().__init__((HOST, 0), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"


@contextmanager
def served(page: Page) -> Iterator[Server]:
    """A server that listens; closed at the end."""
    server = Server(page)
    try:
        yield server
    finally:
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "r1ranker", ""

    def do_GET(self) -> None:
        """The page, for who names this machine: a name that another site made point here gets nothing."""
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self.send_error(421, "Misdirected Request")
        elif self.path.partition("?")[0] != "/":
            self.send_error(404)
        else:
            self.send_response(200)
            for name, value in self.server.page_headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal is the user's."""


def check_bundle(folder: Path, overwrite: bool) -> Path:
    """Where the page of a bundle goes. ConfigError rather than write over what is there."""
    path = folder / "index.html"
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; name another folder, or give --overwrite to replace it")
    return path


def write_bundle(page: Page, path: Path) -> None:
    """The page with all its data as one file: it opens without a server and without a network."""
    write_whole(path, page.html)
