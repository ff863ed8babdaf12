"""`openprime watch`: the page of `openprime report` from a server on loopback, which follows runs in progress."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from rich.console import Console

from openprime.commands.report import INSPECTOR, about, samples
from openprime.config import WatchConfig
from openprime.evaluation import page
from openprime.evaluation.runs import FILES, read_runs
from openprime.types import UserError

HOST = "127.0.0.1"


def watch(config: WatchConfig) -> None:
    """Serve the page until Ctrl-C."""
    config.check()
    with serving(config) as server:
        address = f"http://{HOST}:{server.server_port}/"
        Console().print(
            f"watching {', '.join(config.runs)} at {address}   (Ctrl-C ends it)", markup=False, soft_wrap=True
        )
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def serving(config: WatchConfig) -> ThreadingHTTPServer:
    """The server, not yet serving. Raises UserError for folders of another kind and a port that is taken."""
    live = Live(config.runs)
    try:
        return ThreadingHTTPServer((HOST, config.port), handler(live))
    except OSError as error:
        raise UserError(f"port: {config.port} cannot be used ({error}): choose another, or 0") from error


class Live:
    """The present state of runs, made anew when one of their files has changed."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        self.folders, self._lock = folders, threading.Lock()
        self._made: tuple[str, str, dict] | None = None
        self.now()

    def now(self) -> tuple[str, str, dict]:
        """(version, what is said of the runs as HTML, what the inspector shows)."""
        with self._lock:  # a browser may ask twice at a time
            runs = read_runs(self.folders, begun=False)
            version = str([stamp(run.path / name) for run in runs for name in FILES])
            if self._made is None or self._made[0] != version:
                self._made = version, "".join(about(runs)), samples(runs)
            return self._made


def stamp(path: Path) -> tuple[int, int]:
    """(time of the last change, size) of a file; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def handler(live: Live) -> type[BaseHTTPRequestHandler]:
    """What answers: the page, and what has changed since a version."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another site may have a name that leads here: it would read what is served to this browser.
            if self.headers.get("Host", "").rsplit(":", 1)[0] not in (HOST, "localhost"):
                return self.answer(403, "text/plain", f"ask for http://{HOST}")
            asked = urlsplit(self.path)
            if asked.path not in ("/", "/update"):
                return self.answer(404, "text/plain", "there is / alone")
            try:
                version, html, found = live.now()
            except UserError as error:  # a folder has been deleted
                return self.answer(503, "text/plain", str(error))
            if asked.path == "/":
                title = ", ".join(live.folders)
                status = "<p id=live role=status class=tag>Live.</p>"
                parts = [status, f"<div id=parts>{html}</div>", INSPECTOR, page.data("samples", found)]
                return self.answer(200, "text/html", page.document(title, parts, version))
            if parse_qs(asked.query).get("have") == [version]:
                return self.answer(204, "text/plain", "")
            changed = {"version": version, "parts": html, "samples": found}
            return self.answer(200, "application/json", json.dumps(changed))

        def answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode("utf-8", "replace")
            try:
                self.send_response(status)
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:  # the page was closed meanwhile
                pass

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the console is for people."""

    return Handler
