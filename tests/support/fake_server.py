"""A server with the endpoints of vLLM that the engine uses. Its responses tell prompt, seed, server and weights."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

END = 2


@dataclass
class Fake:
    """A server and what was done to it."""

    extension: str = "openprime.engines.vllm_worker.Weights"
    logprobs_mode: str = "processed_logprobs"
    max_model_len: int = 512
    seconds: float = 0.0
    """Time that a completion takes."""
    hangs: bool = False
    """Completions do not come back."""
    reason: str = "stop"
    broken: Callable[[dict], object] | None = None
    """Makes another answer from the right completion: a value for JSON, bytes of a body, or pieces with the header."""
    elsewhere: dict[str, object] = field(default_factory=dict)
    """Answers of other endpoints, instead of the right ones."""
    weights: str = "default"
    version: str = "default"
    taken: list[str] = field(default_factory=list)
    """Paths of weights, in order."""
    asked: list[dict] = field(default_factory=list)
    """Completions, in order."""
    resets: int = 0
    paused: bool = False
    waited: int = 0
    """Completions that hung to their end."""

    def __post_init__(self) -> None:
        self.released = threading.Event()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before; with the weights that vLLM would be started with."""
        self.weights = self.version = "default"
        self.paused = False
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "null"))

            def answer(self, body: dict | None) -> None:
                status, found = fake.reply(self.path.split("?")[0], body)
                if isinstance(found, Iterator):
                    for piece in found:
                        self.wfile.write(piece)
                        self.wfile.flush()
                    return
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            request_queue_size = 64
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """No longer listen; what is under way is answered with an error."""
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def reply(self, path: str, body: dict | None) -> tuple[int, object]:
        if path in ("/pause", "/resume"):
            self.paused = path == "/pause"
        if path in self.elsewhere:
            return 200, self.elsewhere[path]
        if path in ("/pause", "/resume"):
            return 200, {"status": "done"}
        if path == "/server_info":
            model = {"logprobs_mode": self.logprobs_mode, "max_model_len": self.max_model_len}
            parallel = {"worker_extension_cls": self.extension}
            return 200, {"vllm_config": {"model_config": model, "parallel_config": parallel}}
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/reset_prefix_cache":
            self.resets += 1
            return 200, {"success": True}
        assert body is not None
        if path == "/collective_rpc":
            assert body["method"] == "take_weights"
            assert self.paused  # no token is sampled from half of them
            (self.weights,) = body["args"]
            self.taken.append(self.weights)
            return 200, {"results": [None]}
        if path == "/update_weight_version":
            assert self.resets == len(self.taken)  # never a version with the cache of another
            self.version = body["new_version"]
            return 200, {"success": True}
        assert path == "/v1/completions"
        self.asked.append(body)
        if self.hangs:
            self.released.wait(30)
            self.waited += 1
        end = time.monotonic() + self.seconds
        while (self.paused or time.monotonic() < end) and not self.released.is_set():
            time.sleep(0.001)
        if self.released.is_set():
            return 500, {"error": "dead"}
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len:
            return 400, {"error": "this model's maximum context length is smaller"}
        choices = [
            {
                "index": i,
                "finish_reason": self.reason,
                "token_ids": [3 + body["prompt"][0], 3 + body["seed"] % 50, 3 + i, END],
                "logprobs": {"token_logprobs": [-1.0, -2.0, -float(i), -4.0]},
            }
            for i in range(body["n"])
        ]
        answer = {"choices": choices[::-1]}
        return 200, self.broken(answer) if self.broken else answer
