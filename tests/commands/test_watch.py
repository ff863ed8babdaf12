"""`openprime watch`: what its server sends and refuses, and the page in a browser while a run goes on."""

import http.client
import json
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from openprime.cli import main
from openprime.commands.watch import serving
from openprime.config import WatchConfig
from support.page_html import Page
from support.sampled_runs import add_step, sampled_run
from support.tiny_runs import start


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return sampled_run(tmp_path / "a run", steps=2)


@pytest.fixture
def server(run: Path) -> Iterator[ThreadingHTTPServer]:
    with serving(WatchConfig(runs=(str(run),), port=0)) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def get(server: ThreadingHTTPServer, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    """(status, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path, headers={"Host": host})
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def test_serving__an_update_is_what_has_changed_since(server: ThreadingHTTPServer, run: Path):
    status, text = get(server, "/")
    assert status == 200
    (have,) = [str(attributes["data-version"]) for tag, attributes in Page(text).tags if tag == "body"]
    assert get(server, f"/update?have={quote(have)}") == (204, "")
    add_step(run, 3)
    status, text = get(server, f"/update?have={quote(have)}")
    changed = json.loads(text)
    assert status == 200
    assert [group["step"] for group in changed["samples"]["runs"][0]["groups"]] == [1, 2, 3]
    assert "3 of 8" in changed["parts"]
    assert get(server, f"/update?have={quote(changed['version'])}") == (204, "")
    (run / "metrics.jsonl").write_text("")  # a run begun anew
    assert get(server, f"/update?have={quote(changed['version'])}")[0] == 200
    shutil.rmtree(run)
    assert get(server, "/") == (503, f"{run}: not a run's folder: it has no metrics.jsonl")


def test_serving__other_sites_and_other_paths_are_refused(server: ThreadingHTTPServer):
    assert server.server_address[0] == "127.0.0.1"
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1.evil.example"):
        assert get(server, "/", host)[0] == 403
        assert get(server, "/update", host)[0] == 403
    assert get(server, "/", f"localhost:{server.server_port}")[0] == 200
    assert get(server, "/config.yaml")[0] == 404
    assert get(server, "/../config.yaml")[0] == 404


def test_watch__what_cannot_be_served_is_named(
    server: ThreadingHTTPServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(["watch", str(run), "--port", str(server.server_port)]) == 2
    assert capsys.readouterr().err.startswith(f"openprime: port: {server.server_port} cannot be used")
    assert main(["watch", str(run), str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"openprime: {tmp_path}: not a run's folder")


def test_watch__a_run_that_has_just_begun_is_served_until_ctrl_c(tmp_path: Path):
    run = sampled_run(tmp_path / "begun", steps=0)
    process = start(["watch", str(run), "--port", "0"])
    assert process.stdout is not None
    address = re.findall(r"127\.0\.0\.1:\d+", process.stdout.readline())[0]
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/")
    assert "begun" in connection.getresponse().read().decode()
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (0, "", "")


def test_page__follows_a_run_and_keeps_what_was_chosen(server: ThreadingHTTPServer, run: Path, browser: Any):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    figure = page.locator("[data-name='Accuracy of rollouts, before the filter']")
    figure.locator(".main-svg").first.wait_for()
    assert figure.get_attribute("aria-label").endswith("a run: 0.1 to 0.2")
    page.select_option("#order", "step")
    page.fill("#search", "step")
    page.click("[data-key='a run 2 0']")
    page.click("[data-pick='3']")
    add_step(run, 3)
    page.locator("[data-key='a run 3 0']").wait_for()
    assert page.locator("#count").inner_text() == "3 of 3 groups"
    assert figure.get_attribute("aria-label").endswith("a run: 0.1 to 0.3")
    assert figure.evaluate("place => place.data[0].x.length") == 3  # the drawing too
    assert page.locator("#live").inner_text().startswith("Live. Last change")
    assert page.locator("#group h3").inner_text() == "Step 2"
    assert page.locator("article.card").count() == 3
    assert page.input_value("#search") == "step"
    assert said == []
    page.close()
