"""An OpenAI-compatible endpoint whose answers a test writes."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "a-model"


@dataclass
class Endpoint:
    """A server; `reply` makes the texts of a chat completion, or a status and a text, from the request."""

    reply: Callable[[dict], list[str] | tuple[int, str]]
    key: str = ""
    """Without it requests are refused."""
    asked: list[dict] = field(default_factory=list)
    """Chat completions that were asked for, in order."""
    answered: list[dict] = field(default_factory=list)
    """Those that were answered, in order."""

    def __post_init__(self) -> None:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def send(self, status: int, value: object) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def allowed(self) -> bool:
                if endpoint.key and self.headers["Authorization"] != f"Bearer {endpoint.key}":
                    self.send(401, {"error": "no such key"})
                    return False
                return True

            def do_GET(self) -> None:
                if self.allowed():
                    assert self.path == "/v1/models"
                    self.send(200, {"data": [{"id": MODEL}]})

            def do_POST(self) -> None:
                if not self.allowed():
                    return
                assert self.path == "/v1/chat/completions"
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(body)
                found = endpoint.reply(body)
                if isinstance(found, tuple):
                    self.send(found[0], {"error": found[1]})
                    return
                choices = [{"index": i, "message": {"content": text}} for i, text in enumerate(found)]
                self.send(200, {"choices": choices})
                endpoint.answered.append(body)

        class Server(ThreadingHTTPServer):
            request_queue_size = 64
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        """Its address, as far as /v1."""
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def stop(self) -> None:
        """No longer listen."""
        self.server.shutdown()
        self.server.server_close()
