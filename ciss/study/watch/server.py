"""`ciss watch`: serves one page on the loopback address until Ctrl-C.

The server answers two addresses and opens no file by a name from a request. It refuses requests that name another host:
a page of another address, open in the same browser, could otherwise read the answers.
"""

import secrets
import signal
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from ciss import config, paths
from ciss.config import ConfigError
from ciss.study.watch import page
from ciss.study.watch.overview import Overview, Row

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
FRESH_SECONDS = 1.0  # for so long several windows get the same state
PATHS = ("/", "/content")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Watcher(ThreadingHTTPServer):
    """The server of one parameter file. Raises ConfigError for a file that cannot be read, and OSError for a port."""

    daemon_threads = True

    def __init__(self, config_file: str, port: int):
        if (paths.project() / config_file).is_dir():
            raise ConfigError(f"{config_file}: a folder. Name a parameter file: --config params.yaml")
        self.file = config_file
        self.lock = threading.Lock()
        self.read_at, self.changed = float("-inf"), None
        self.overview = Overview(config.load(config_file))
        super().__init__((ADDRESS, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"

    def content(self, chosen: str) -> str:
        """The content of the page now. `chosen`: the run whose curves it shows."""
        try:
            return page.content(self.rows(), chosen)
        except ConfigError as error:
            return page.problem(str(error))

    def rows(self) -> list[Row]:
        """The state of the runs, read at most every FRESH_SECONDS. Reads a changed parameter file again."""
        with self.lock:
            if time.monotonic() - self.read_at >= FRESH_SECONDS:
                try:
                    changed = (paths.project() / self.file).stat().st_mtime_ns
                except OSError:
                    raise ConfigError(f"{self.file}: there is no such file any more.") from None
                if changed != self.changed:
                    self.overview = Overview(config.load(self.file))
                    self.changed = changed
                self.state = self.overview.rows()
                self.read_at = time.monotonic()
            return self.state


class Handler(BaseHTTPRequestHandler):
    server: Watcher

    def do_GET(self) -> None:
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        parts = urlsplit(self.path)
        if name not in HOSTS:
            self.send_error(HTTPStatus.FORBIDDEN, f"open {self.server.url}")
        elif parts.path not in PATHS:
            self.send_error(HTTPStatus.NOT_FOUND)
        elif parts.path == "/":
            nonce = secrets.token_urlsafe(16)
            self._answer(page.frame(self.server.file, nonce), nonce)
        else:
            self._answer(self.server.content(parse_qs(parts.query).get("run", [""])[0]))

    def _answer(self, text: str, nonce: str = "") -> None:
        script = f"script-src 'nonce-{nonce}'; " if nonce else ""
        policy = f"default-src 'none'; {script}style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Prints nothing for a request."""


def end(*_) -> None:
    """Handles the first signal to end as Ctrl-C, and ignores further ones: they would interrupt Python's own end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(config_file: str, port: int) -> None:
    """Serves the page until Ctrl-C or SIGTERM. Exits with a message if it cannot."""
    for number in SIGNALS:  # also Ctrl-C: a shell lets its background jobs ignore it
        signal.signal(number, end)
    try:
        server = Watcher(config_file, port)
    except (ConfigError, FileNotFoundError) as error:  # outside a project, too
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: port {port} of {ADDRESS}: {error.strerror}. Choose another one: --port N")
    except KeyboardInterrupt:
        return
    with server:
        try:
            print(f"{config_file}: open {server.url} in a browser on this machine. Ctrl-C ends it.", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nEnded. Trainings go on.", flush=True)
