"""The report of a training that still runs, served on this machine only.

    with WatchServer(LivePage("runs/mine", ReportOptions(skip_bad=True)), port=8765) as server:
        server.serve_forever()

The page is built when a browser asks for it and the rollout files have changed since; rebuilds take at most a
tenth of the time. `/` is the page, `/changed` its version; there is nothing else. A request must name this
machine as its host, because a stranger's web page could otherwise point a name of its own at 127.0.0.1 and
read the report (DNS rebinding). The port may be another one, as it is behind `ssh -L 9000:127.0.0.1:8765`.
"""

import errno
import hashlib
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lambda_grpo.errors import InputError
from lambda_grpo.report.content import ReportOptions, report_content
from lambda_grpo.report.page import render, render_waiting
from lambda_grpo.rollouts.paths import find_runs

ADDRESS = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")

_PAUSE = 3.0  # seconds between two rebuilds, at least
_PAUSE_PER_SECOND = 9.0  # and for each second that the last one took
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the page holds the rest of its policy
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def version_of(run: Path) -> str:
    """A text that changes when a rollout file of the run comes, goes or changes."""
    seen = hashlib.sha256()
    try:
        for found in find_runs([run]):
            for file in found.files:
                try:
                    stat = file.stat()
                except FileNotFoundError:  # the run has just removed it
                    continue
                seen.update(
                    f"{file}\0{stat.st_ino} {stat.st_size} {stat.st_mtime_ns}\0".encode(errors="replace")
                )
    except (InputError, OSError):
        return "none"
    return seen.hexdigest()[:16]


class LivePage:
    """The report of a run as it is now.

    Args:
        run: what `lambda-grpo report` reads. It may go and come back.
        options: of the report; without `skip_bad`, one half-written file leaves nothing to show.
        pause: seconds between two rebuilds, at least.
    """

    def __init__(self, run: str | Path, options: ReportOptions, pause: float = _PAUSE) -> None:
        self.run, self.options, self.pause = Path(run), options, pause
        self._building = threading.Lock()
        self._page, self._version = b"", ""
        self._due = 0.0  # when the page may be built again

    def version(self) -> str:
        """The version of the page that `page` would return now."""
        return self._version if time.monotonic() < self._due else version_of(self.run)

    def page(self) -> bytes:
        """The page in UTF-8, built anew if the run has changed and the pause is over."""
        with self._building:
            version = self.version()
            if version != self._version:
                started = time.monotonic()
                self._page = self._built(version).encode()
                ended = time.monotonic()
                self._version = version
                self._due = ended + max(self.pause, _PAUSE_PER_SECOND * (ended - started))
            return self._page

    def _built(self, version: str) -> str:
        try:
            return render(report_content([self.run], self.options), version)
        except (InputError, OSError) as error:  # no rollouts yet, or no longer
            return render_waiting(str(error), version)


class WatchServer(ThreadingHTTPServer):
    """Serves a page on 127.0.0.1; `port` 0 takes a free one.

    Raises:
        InputError: the port cannot be had.
    """

    def __init__(self, live: LivePage, port: int) -> None:
        self.live = live
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is in use" if error.errno == errno.EADDRINUSE else "is not open to you"
            raise InputError(
                f"--port: port {port} of {ADDRESS} {why}: name another one, or --port 0 for any that is free"
            ) from error

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    server_version, sys_version = "lambda-grpo", ""
    timeout = 10  # seconds for a request to arrive

    def do_GET(self) -> None:
        if self._host() not in HOSTS:
            self._answer(
                HTTPStatus.FORBIDDEN, b"This server answers requests to 127.0.0.1 or localhost only.\n"
            )
        elif self.path == "/":
            self._answer(HTTPStatus.OK, self.server.live.page(), "text/html")
        elif self.path == "/changed":
            self._answer(HTTPStatus.OK, self.server.live.version().encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"There is nothing here: the report is at /\n")

    do_HEAD = do_GET

    def _host(self) -> str:
        """The host that the request names, without its port; empty unless it names exactly one."""
        hosts = self.headers.get_all("Host", [])
        return hosts[0].strip().lower().rsplit(":", 1)[0] if len(hosts) == 1 else ""

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: an open page asks every few seconds."""
