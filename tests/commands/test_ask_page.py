"""`openprime ask --serve`: what the page's server sends and refuses, and the page in a browser."""

import http.client
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from copy import copy
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from openprime.commands import ask_page
from openprime.commands.answers import Answerer, Answerers, Stream, pieces_of
from openprime.config import AskConfig
from openprime.models.hub import load_tokenizer
from openprime.models.placement import Placement
from openprime.types import UserError
from support.tiny_prm import greedy_tokens, save_prm, token_rewards
from support.tiny_runs import start

QUESTION = "Start four\n+seven = ?\n*three = ?"
LIMIT = 40
Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def prm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prm(model, tmp_path_factory.mktemp("ask") / "prm")


@pytest.fixture(scope="module")
def answerers(model: Path, prm: Path) -> Answerers:
    """One model and two PRMs, of which the second has itself as reference: its rewards are 0."""
    beside = {"prm": str(prm), "reference": str(prm)}
    config = AskConfig.model_validate(
        {"model": str(model), "prm": str(prm), "beside": beside, "max_response_tokens": LIMIT, "port": 0}
    )
    made = Answerers(config)
    made.load(Placement(torch.device("cpu")), lambda text: None)
    return made


@pytest.fixture
def server(answerers: Answerers) -> Iterator[ThreadingHTTPServer]:
    with ask_page.serving(ask_page.Desk(answerers)) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def ask(desk: ask_page.Desk, question: str) -> Events:
    events: Events = []
    desk.ask(question, lambda **event: events.append(event))
    return events


def of(place: int, events: Events) -> Events:
    return [event for event in events if place in event["panes"]]


def post(server: ThreadingHTTPServer, path: str, body: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, body, {"Content-Type": "application/json"} | named)
    return connection.getresponse()


def greedy(model: Path) -> tuple[list[int], list[int], str]:
    """The prompt, the greedy answer's tokens and their text, by transformers alone."""
    tokenizer = load_tokenizer(str(model))
    chat = [{"role": "user", "content": QUESTION}]
    ids: list[int] = list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))  # type: ignore
    tokens = greedy_tokens(model, ids, LIMIT)
    return ids, tokens, str(tokenizer.decode(tokens, skip_special_tokens=True))


# What is sent


def test_serving__an_answer_and_its_rewards_come_as_lines(
    model: Path, prm: Path, server: ThreadingHTTPServer
):
    reply = post(server, "/ask", json.dumps({"question": QUESTION}))
    events = [json.loads(line) for line in reply.read().splitlines()]
    ids, tokens, text = greedy(model)
    expected = token_rewards(prm, model, ids, tokens)
    for place, rewards in ((0, expected), (1, [0.0] * len(expected))):
        own = of(place, events)
        assert "".join(event.get("text", "") for event in own) == text
        assert own[0]["state"] == f"reads the question, {len(ids)} tokens"
        scored = [event for event in own if "pieces" in event][-1]
        assert [reward for _, reward, _ in scored["pieces"]] == pytest.approx(rewards, abs=1e-4)
        assert "".join(piece for piece, _, _ in scored["pieces"]) == text + "<|im_end|>"
        assert "".join(step for step, _ in scored["steps"]) == text
        assert sum(reward for _, reward in scored["steps"]) == pytest.approx(scored["reward"])
        assert (own[-1]["done"], scored["probability"] == 0.5) == (True, place == 1)
        assert re.fullmatch(rf"{len(tokens)} tokens, [\d,]+ tokens/s", own[-1]["state"])


def test_desk__rewards_come_while_the_answer_is_written(
    answerers: Answerers, monkeypatch: pytest.MonkeyPatch
):
    """Here after every token; those of the tokens before it do not change."""
    monkeypatch.setattr(ask_page, "SOONEST", 0)
    monkeypatch.setattr(ask_page, "SCORING_SHARE", 0)
    events = of(0, ask(ask_page.Desk(answerers), QUESTION))
    scored = [event["pieces"] for event in events if "pieces" in event]
    assert len(scored) >= 4
    for number, pieces in enumerate(scored[:-1], 1):
        assert [piece.text for piece in pieces] == [piece.text for piece in scored[-1][:number]]
        rewards = [piece.reward for piece in scored[-1][:number]]
        assert [piece.reward for piece in pieces] == pytest.approx(rewards, abs=1e-4)
    kinds = ["pieces" if "pieces" in event else "text" for event in events if "done" not in event]
    assert kinds[1:5] == ["text", "pieces", "text", "pieces"]


def test_desk__two_models_answer_one_after_the_other(model: Path, prm: Path):
    config = AskConfig.model_validate(
        {"model": str(model), "beside": {"model": str(prm)}, "max_response_tokens": 5}
    )
    answerers = Answerers(config)
    answerers.load(Placement(torch.device("cpu")), lambda text: None)
    events = ask(ask_page.Desk(answerers), QUESTION)
    panes = [event["panes"] for event in events]
    assert panes == sorted(panes)
    assert {place for (place,) in panes} == {0, 1}
    assert not any("pieces" in event for event in events)  # there is no PRM
    assert [event["state"].split("tokens/s")[1] for event in events if "done" in event] == [
        ", cut at --max-response-tokens"
    ] * 2


def test_desk__stops_when_asked_and_scores_what_there_is(answerers: Answerers):
    desk, events = ask_page.Desk(answerers), []

    def send(**event: Any) -> None:
        events.append(event)
        if sum("text" in event for event in events) == 2:
            desk.stop.set()

    desk.ask(QUESTION, send)
    assert events[-1]["state"].endswith(", stopped")
    assert [len(event["pieces"]) for event in events if "pieces" in event][-1] == 2
    assert "stopped" not in ask(desk, QUESTION)[-1]["state"]  # the next one is whole


def test_desk__goes_on_when_nobody_listens_any_more_and_says_that_a_question_waits(answerers: Answerers):
    desk = ask_page.Desk(answerers)

    def closed(**event: Any) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        desk.ask(QUESTION, closed)
    desk._turn.acquire()
    events: Events = []
    asking = threading.Thread(target=lambda: desk.ask(QUESTION, lambda **event: events.append(event)))
    asking.start()
    while not events:
        time.sleep(0.05)
    desk._turn.release()
    asking.join(timeout=120)
    assert events[0] == {"panes": [0, 1], "state": "waits for another question's answer"}
    assert events[-1]["done"]


def test_desk__a_question_that_does_not_fit_is_named(answerers: Answerers, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Answerer, question: str) -> list[int]:
        raise UserError(f"{question}: ask a shorter one")

    monkeypatch.setattr(Answerer, "encode", refuse)
    assert ask(ask_page.Desk(answerers), QUESTION) == [
        {"panes": [0, 1], "error": f"{QUESTION}: ask a shorter one"}
    ]


def test_serve__ctrl_c_ends_an_answer_and_the_server(model: Path):
    """Within an answer of endless length; not by the abort of a process whose model is at work."""
    flags = ["--temperature", "50", "--max-response-tokens", "100000", "--port", "0", "--serve"]
    process = start(["ask", str(model), *flags])
    assert process.stdout is not None
    address = re.findall(r"127\.0\.0\.1:\d+", process.stdout.readline())[0]
    connection = http.client.HTTPConnection(address, timeout=120)
    connection.request("POST", "/ask", json.dumps({"question": "q"}), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    for _ in range(5):
        assert b"panes" in reply.readline()
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "")
    assert "terminate" not in said
    assert "Traceback" not in said


# What is refused


def test_serving__other_sites_and_other_bodies_are_refused(server: ThreadingHTTPServer):
    question = json.dumps({"question": QUESTION})
    assert server.server_address[0] == "127.0.0.1"
    for status, path, body, headers in (
        (403, "/ask", question, {"Host": "evil.example"}),
        (403, "/stop", "{}", {"Host": f"evil.example:{server.server_port}"}),
        (400, "/ask", question, {"Content_Type": "text/plain"}),  # what a form of another site can send
        (400, "/ask", question, {"Content_Length": "-1"}),
        (400, "/ask", "[1", {}),
        (400, "/ask", "[1]", {}),
        (400, "/ask", '{"question": " "}', {}),
        (400, "/ask", "x" * (ask_page.LONGEST + 1), {}),
        (400, "/other", question, {}),
        (204, "/stop", "{}", {"Host": f"localhost:{server.server_port}"}),
    ):
        assert post(server, path, body, **headers).status == status, (path, body[:30], headers)
    for path, host, status in (("/", "evil.example", 403), ("/x", "127.0.0.1", 404), ("/", "127.0.0.1", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.request("GET", path, headers={"Host": host})
        reply = connection.getresponse()
        assert reply.status == status
        assert reply.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert bool(reply.read()) == (status == 200)


def test_serving__a_port_that_is_taken_is_named(server: ThreadingHTTPServer, answerers: Answerers):
    answerers = copy(answerers)
    answerers.config = answerers.config.model_copy(update={"port": server.server_port})
    with pytest.raises(ValueError, match=f"port: {server.server_port} cannot be used"):
        ask_page.serving(ask_page.Desk(answerers))


# In a browser


EVIL = "<script>document.title='RAN'</script><img src=x onerror=\"document.title='RAN'\"> &amp; 1 < 2\n</pre>#### 3"


def test_page__in_a_browser(
    answerers: Answerers, server: ThreadingHTTPServer, browser: Any, monkeypatch: pytest.MonkeyPatch
):
    """An evil question and an evil answer, held back in its middle; keys, a pointer, Escape; a phone; in the dark."""
    tokenizer, held = load_tokenizer(answerers.config.model), threading.Event()
    ids = [*tokenizer(EVIL)["input_ids"], tokenizer.eos_token_id]
    monkeypatch.setattr(ask_page, "SOONEST", 0)

    def answer(self: Answerer, prompt_ids: list[int], seed: int, stream: Stream) -> None:
        stream.put(torch.tensor([prompt_ids]))
        for count, token in enumerate(ids):
            stream.put(torch.tensor([token]))
            if count == len(ids) // 2:
                held.wait(timeout=120)
        stream.end()

    monkeypatch.setattr(Answerer, "answer", answer)
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    page.wait_for_selector("#question:focus")
    page.keyboard.type(EVIL.split("\n")[0])
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("?")
    page.keyboard.press("Enter")
    page.wait_for_selector("article .tok")
    assert page.is_enabled("#stop")
    shown = page.locator("article .tokens").all()
    assert [EVIL.startswith(one.inner_text().replace("⏎", "")) for one in shown] == [True, True]  # half of it
    held.set()
    page.wait_for_selector("#stop[disabled]")
    assert page.locator("article h2").inner_text() == EVIL.split("\n")[0] + "\n?"
    for one in shown:
        assert one.inner_text().replace("⏎", "") == EVIL + "<|im_end|>"
    assert page.title() == "Ask"
    assert page.locator("main img, main script").count() == 0

    (prompt_ids,) = {tuple(answerers.models[answerers.config.model].encode(EVIL.split("\n")[0] + "\n?"))}
    score = answerers.score(0, list(prompt_ids), ids)
    assert score is not None
    pieces = pieces_of(score, ids, tokenizer)
    tokens = shown[0].locator(".tok")
    assert tokens.count() == len(pieces)
    for place in (0, 3, 7):
        colour = tokens.nth(place).evaluate("token => token.style.backgroundColor")
        assert colour.startswith("rgba(37" if pieces[place].reward > 0 else "rgba(220")
    readout = page.locator("article .readout").first
    shown[0].focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    number = f"{pieces[2].reward:+.4f}".replace("-", "−")
    assert readout.inner_text().startswith(
        f"token 3 of {len(pieces)} {json.dumps(pieces[2].text)} {number} its step "
    )
    tokens.nth(5).hover()
    assert readout.inner_text().startswith("token 6 of")
    assert page.locator("article .steps").first.locator("tr").count() == len(score.steps)

    first, second = (section.bounding_box() for section in page.locator("article .card").all())
    assert first["y"] == second["y"]  # side by side
    page.set_viewport_size({"width": 390, "height": 800})
    first, second = (section.bounding_box() for section in page.locator("article .card").all())
    assert first["x"] == second["x"]  # one below the other
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    assert (light, page.evaluate(ground)) == ("rgb(255, 255, 255)", "rgb(11, 18, 32)")

    held.clear()
    page.focus("#question")
    page.keyboard.press("Enter")
    page.wait_for_selector("article:nth-child(2)")  # the new one is the first
    page.wait_for_selector("article:first-child .tok")
    page.keyboard.press("Escape")
    page.wait_for_timeout(200)
    held.set()
    page.wait_for_selector("#stop[disabled]")
    assert page.locator("article .card .tag[role=status]").first.inner_text().endswith(", stopped")
    assert said == []
    page.close()
