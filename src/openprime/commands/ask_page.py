"""`openprime ask --serve`: a page on loopback that shows answers and their rewards as they come."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from openprime.commands.answers import Answerer, Answerers, Stream, pieces_of
from openprime.evaluation import page
from openprime.types import RunError, UserError

HOST = "127.0.0.1"
LONGEST = 2**20
"""Bytes of a question."""
SOONEST, SCORING_SHARE = 0.3, 3
"""An answer is scored while it is written, but not within so many seconds, nor so many times what scoring took."""

Send = Callable[..., None]
"""Sends an event: keys and values."""


class Stopped(Exception):
    """The answer is not wanted any further."""


def serve(answerers: Answerers) -> None:
    """Serve the page until Ctrl-C."""
    desk = Desk(answerers)
    with serving(desk) as server:
        print(f"ask at http://{HOST}:{server.server_port}/   (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
        desk.close()


def serving(desk: "Desk") -> ThreadingHTTPServer:
    """The server, not yet serving. Raises UserError for a port that is taken."""
    port = desk.answerers.config.port
    try:
        server = ThreadingHTTPServer((HOST, port), handler(desk))
    except OSError as error:
        raise UserError(f"port: {port} cannot be used ({error}): choose another, or 0") from error
    server.daemon_threads = True
    return server


def document(answerers: Answerers) -> str:
    """The page."""
    panes = [{"model": pane.model, "prm": pane.prm} for pane in answerers.panes]
    script, style = (
        Path(__file__).with_name(f"ask.{kind}").read_text(encoding="utf-8") for kind in ("js", "css")
    )
    names = " and ".join(f"<code>{escape(name)}</code>" for name in answerers.models)
    return f"""<!doctype html><html lang=en><meta charset=utf-8>{page.policy([script], live=True)}
<meta name=viewport content="width=device-width, initial-scale=1"><title>Ask</title><style>{style}</style>
<main data-panes="{escape(json.dumps(panes))}"><h1>Ask {names}</h1>
<form id=ask><label for=question>Question</label>
<textarea id=question rows=3 autofocus required aria-describedby=keys></textarea>
<div><button>Ask</button> <button type=button id=stop disabled>Stop</button>
<span class=tag id=keys>Enter asks, Shift+Enter begins a line, Escape stops.</span></div></form>
<div id=asked></div></main><script>{script}</script></html>
"""


class Desk:
    """Takes one question at a time."""

    def __init__(self, answerers: Answerers) -> None:
        self.answerers, self.page = answerers, document(answerers).encode()
        self.stop = threading.Event()
        """Set: the present answer is to end."""
        self.closed = False
        self._turn, self._number = threading.Lock(), 0
        self._answering: threading.Thread | None = None

    def ask(self, question: str, send: Send) -> None:
        """Answer a question; `send` gets events and raises ConnectionError when nobody listens any more."""
        with self._own_turn(send):
            seed = self.answerers.config.seed + self._number
            self._number += 1
            for answerer, places in self.answerers.by_model():
                try:
                    self._answer(answerer, places, question, seed, send)
                except (UserError, RunError) as error:
                    send(panes=places, error=str(error))

    def close(self) -> None:
        """End the present answer, and wait for it: a process that ends meanwhile would abort within the model."""
        self.closed = True
        self._turn.acquire(timeout=60)
        if self._answering is not None:
            self._answering.join(timeout=60)

    @contextmanager
    def _own_turn(self, send: Send) -> Iterator[None]:
        while not self._turn.acquire(timeout=1):
            send(panes=[*range(len(self.answerers.panes))], state="waits for another question's answer")
        try:
            self.stop.clear()
            self._answering = threading.current_thread()
            yield
        finally:
            self._turn.release()

    def _answer(self, answerer: Answerer, places: list[int], question: str, seed: int, send: Send) -> None:
        """The events of one model's answer, in the panes that show it."""
        prompt_ids = answerer.encode(question)
        send(panes=places, state=f"reads the question, {len(prompt_ids)} tokens")
        scored_at, took = time.perf_counter(), 0.0

        def say(text: str) -> None:
            nonlocal scored_at, took
            send(panes=places, text=text, state=f"writes: {stream.rate}")
            if self.closed:
                raise ConnectionAbortedError
            if self.stop.is_set():
                raise Stopped
            begun = time.perf_counter()
            if stream.whole and begun - scored_at > max(SOONEST, SCORING_SHARE * took):
                self._score(answerer, places, prompt_ids, stream.token_ids, send)
                scored_at = time.perf_counter()
                took = scored_at - begun
                stream.begun += took  # it is not the writer's time

        stream = Stream(answerer.tokenizer, say)
        with suppress(Stopped):
            answerer.answer(prompt_ids, seed, stream)
        done = f"{stream.rate}{answerer.ending(prompt_ids, stream.token_ids)}"
        send(panes=places, state=f"{done}; is scored")
        self._score(answerer, places, prompt_ids, stream.token_ids, send)
        send(panes=places, state=done, done=True)

    def _score(
        self, answerer: Answerer, places: list[int], prompt_ids: list[int], token_ids: list[int], send: Send
    ) -> None:
        """Send the rewards of what there is of an answer."""
        for place in places:
            if score := self.answerers.score(place, prompt_ids, token_ids):
                send(
                    panes=[place],
                    pieces=pieces_of(score, token_ids, answerer.tokenizer),
                    steps=list(zip(score.steps, score.step_rewards, strict=True)),
                    reward=score.reward,
                    probability=score.probability,
                )


def handler(desk: Desk) -> type[BaseHTTPRequestHandler]:
    """What answers: the page, questions with a stream of events, one JSON object a line, and the wish to stop."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.refused() or self.path != "/":
                self.begin(403 if self.refused() else 404, "text/plain")
                return
            self.begin(200, "text/html")
            self.wfile.write(desk.page)

        def do_POST(self) -> None:
            asked = self.read()
            if asked is None:
                self.begin(403 if self.refused() else 400, "text/plain")
            elif self.path == "/stop":
                desk.stop.set()
                self.begin(204, "text/plain")
            elif self.path == "/ask" and (question := str(asked.get("question", ""))).strip():
                self.begin(200, "application/x-ndjson")
                with suppress(ConnectionError):  # the page was closed
                    desk.ask(question.encode(errors="replace").decode(), self.send)
            else:
                self.begin(400, "text/plain")

        def read(self) -> dict[str, Any] | None:
            """The object that was sent; None for anything else."""
            size = self.headers.get("Content-Length", "")
            # A form of another site cannot send this type, nor a script of it without asking first.
            plain = self.headers.get("Content-Type") != "application/json"
            if not size.isdecimal():
                return None
            # Read even if it is refused: who is still sending would see a broken connection instead of the answer.
            body = self.rfile.read(min(int(size), 2 * LONGEST))
            if self.refused() or plain or int(size) > LONGEST:
                return None
            try:
                sent = json.loads(body)
            except ValueError:
                return None
            return sent if isinstance(sent, dict) else None

        def refused(self) -> bool:
            """Another site may have a name that leads here: it would read what is served to this browser."""
            return self.headers.get("Host", "").rsplit(":", 1)[0] not in (HOST, "localhost")

        def begin(self, status: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
            self.end_headers()

        def send(self, **event: Any) -> None:
            self.wfile.write(json.dumps(event).encode() + b"\n")
            self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the console is for people."""

    return Handler
