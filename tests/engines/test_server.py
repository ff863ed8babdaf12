"""vLLM servers: requests, weights, and servers that die, hang, or come back with other weights."""

import gzip
import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from openprime.config import ServerEngineConfig
from openprime.engines import common
from openprime.engines import server as module
from openprime.engines.common import prompt_seed
from openprime.engines.server import Server, ServerEngine, ServerFault
from openprime.types import EngineError, Group, Prompt, Sampling, StorageError, UserError
from support.fake_server import END, Fake
from support.tiny_runs import PYTHONPATH
from support.vllm_models import TOKENIZER, VOCABULARY, prompts_of

SAMPLING = Sampling(3, 20, 0.7)
Servers = Callable[..., Fake]


@pytest.fixture
def fake() -> Iterator[Servers]:
    """Starts servers, and stops them."""
    started: list[Fake] = []

    def start(**options) -> Fake:
        started.append(Fake(**options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.05)


def engine_of(folder: Path, *servers: Fake, timeout: float = 10.0, in_flight: bool = False) -> ServerEngine:
    urls = tuple(server.url for server in servers)
    config = ServerEngineConfig(urls=urls, timeout=timeout, in_flight=in_flight)
    (folder / "model").mkdir(exist_ok=True)
    name, weights = str(folder / "model"), folder / "weights"
    return ServerEngine(config, name, TOKENIZER, frozenset({END}), VOCABULARY, 12, 512, weights)


def ready(engine: ServerEngine, *servers: Fake) -> None:
    """Sample until every server has the weights, however busy this machine is."""
    while not all(server.asked for server in servers):
        engine.generate(numbered(8), SAMPLING, 0)
    for server in servers:
        server.asked.clear()


def numbered(count: int) -> list[Prompt]:
    """Prompts whose first token is their number."""
    return [Prompt(f"p{i}", (i, 7, 8), "", None) for i in range(count)]


def assert_right(groups: list[Group], prompts: list[Prompt], seed: int, version: int) -> None:
    """Every prompt has its own responses, in order, sampled with its own seed."""
    assert [group.prompt for group in groups] == prompts
    for i, group in enumerate(groups):
        assert group.policy_version == version
        expected = [(3 + i, 3 + prompt_seed(seed, i) % 50, 3 + k, END) for k in range(3)]
        assert [r.token_ids for r in group.responses] == expected
        assert [r.logprobs for r in group.responses] == [(-1.0, -2.0, -float(k), -4.0) for k in range(3)]
        assert not any(r.truncated for r in group.responses)


def test_generate__a_request_says_all_that_a_models_own_settings_would_fill_in(fake: Servers, tmp_path: Path):
    server = fake()
    engine = engine_of(tmp_path, server)
    engine.generate([*numbered(1), *prompts_of([500])], SAMPLING, 9)
    short, long = sorted(server.asked, key=lambda body: len(body["prompt"]))
    assert long["max_tokens"] == 12  # its prompt leaves no more of 512
    assert short == {
        "prompt": [0, 7, 8],
        "n": 3,
        "max_tokens": 20,
        "temperature": 0.7,
        "seed": prompt_seed(9, 0),
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": [END],
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
    }


def test_generate__spreads_prompts_and_hands_groups_over_as_they_end(fake: Servers, tmp_path: Path):
    servers = [fake(seconds=0.03), fake(seconds=0.03)]
    engine, prompts = engine_of(tmp_path, *servers), numbered(30)
    ready(engine, *servers)
    seen: list[Group] = []
    progress: list[int] = []
    groups = engine.generate(prompts, SAMPLING, 1, lambda: progress.append(len(seen)), seen.append)
    assert_right(groups, prompts, 1, 0)
    assert sorted(map(id, seen)) == sorted(map(id, groups))
    assert len(set(progress)) > 3
    counts = [len(server.asked) for server in servers]
    assert sum(counts) == 30
    assert min(counts) >= 8


def test_load__new_weights_are_taken_before_anything_is_sampled(fake: Servers, tmp_path: Path):
    servers = [fake(), fake()]
    engine, prompts = engine_of(tmp_path, *servers), numbered(8)
    engine.generate(prompts, SAMPLING, 1)
    assert [server.taken for server in servers] == [[str(tmp_path / "model")]] * 2
    weights = {"a.weight": torch.randn(5, 3), "b.weight": torch.randn(4).bfloat16()}
    for version in (1, 2, 3):
        engine.load(((name, tensor + version) for name, tensor in weights.items()), version)
    groups = engine.generate(prompts, SAMPLING, 1)
    assert_right(groups, prompts, 1, 3)
    for server in servers:
        assert len(server.taken) == 2
        (file,) = Path(server.taken[-1]).iterdir()
        got = load_file(file)
        assert set(got) == set(weights)
        assert all(torch.equal(got[name], weights[name] + 3) for name in weights)
    assert len(list((tmp_path / "weights").iterdir())) <= 2  # old ones are deleted


@pytest.mark.parametrize("in_flight", [False, True])
def test_load__in_flight_servers_take_new_weights_in_mid_response(
    fake: Servers, tmp_path: Path, in_flight: bool
):
    """Else they get them with the next call. A group has the version that its first tokens are from."""
    servers = [fake(), fake()]
    engine, prompts = engine_of(tmp_path, *servers, in_flight=in_flight), numbered(24)
    ready(engine, *servers)
    for server in servers:
        server.seconds = 0.1
    loaded: list[int] = []

    def load_once() -> None:
        if not loaded and all(server.asked for server in servers):
            loaded.append(sum(len(server.asked) for server in servers))
            engine.load([("a.weight", torch.ones(3))], 1)

    groups = engine.generate(prompts, SAMPLING, 1, load_once)
    versions = [group.policy_version for group in groups]
    assert 0 < loaded[0] < 24
    if in_flight:
        assert {server.version for server in servers} == {engine.source.tag}
        assert versions.count(0) >= loaded[0]
        assert versions.count(1) > 0
    else:
        assert {server.version for server in servers} == {f"{engine.name}-0"}
        assert versions == [0] * 24
    assert not any(server.paused for server in servers)
    assert engine.rejected == 0
    assert sum(len(server.asked) for server in servers) == len(prompts)  # none is answered anew
    later = engine.generate(prompts, SAMPLING, 1)
    assert_right(later, prompts, 1, 1)
    for group, other in zip(groups, later, strict=True):
        assert group.responses == other.responses
    assert [len(server.taken) for server in servers] == [2, 2]


def test_load__in_flight_no_folder_is_deleted_that_a_server_is_reading(fake: Servers, tmp_path: Path):
    """New weights come faster than servers take them."""
    server = fake(seconds=0.02)
    engine = engine_of(tmp_path, server, in_flight=True)
    real, versions = server.reply, itertools.count(1)

    def reply(path: str, body: dict | None) -> tuple[int, object]:
        if path == "/collective_rpc":
            time.sleep(0.05)
            assert body is not None
            assert Path(body["args"][0]).is_dir()
        return real(path, body)

    server.reply = reply

    def load() -> None:
        if (version := next(versions)) < 30:
            engine.load([("a.weight", torch.ones(3))], version)

    engine.generate(numbered(40), SAMPLING, 1, load)
    assert len(server.taken) > 2


def test_load__cuts_weights_into_files(fake: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common, "SHARD", 100)
    engine = engine_of(tmp_path, fake())
    weights = {f"w{i}": torch.randn(7) for i in range(9)}  # 28 bytes each
    engine.load(weights.items(), 1)
    files = list(Path(engine.source.path).iterdir())
    assert len(files) == 3
    together = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert all(torch.equal(together[name], weights[name]) for name in weights)


def test_load__what_cannot_be_written_is_a_storage_error(
    fake: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(tmp_path, fake())

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(common, "save_file", full)
    with pytest.raises(StorageError, match=r"could not be written to .*No space left.*: make room"):
        engine.load([("w", torch.ones(1))], 1)
    assert engine.source.version == 0
    assert_right(
        engine.generate(numbered(2), SAMPLING, 1), numbered(2), 1, 0
    )  # of the weights that are there


def test_generate__a_server_that_dies_in_mid_run_loses_nothing(
    fake: Servers, tmp_path: Path, capfd: pytest.CaptureFixture
):
    servers = [fake(seconds=0.05), fake(seconds=0.05)]
    engine, prompts = engine_of(tmp_path, *servers), numbered(40)
    ready(engine, *servers)
    seen: list[Group] = []

    def finished(group: Group) -> None:
        seen.append(group)
        if len(seen) == 10:
            servers[0].stop()

    groups = engine.generate(prompts, SAMPLING, 1, None, finished)
    assert_right(groups, prompts, 1, 0)
    assert len(seen) == len({group.prompt.id for group in seen}) == 40
    assert servers[0].url in capfd.readouterr().out
    again = engine.generate(prompts, SAMPLING, 1)  # and the next call goes on with what is left
    assert again == groups


def test_generate__a_server_that_comes_back_is_given_the_weights_again(fake: Servers, tmp_path: Path):
    servers = [fake(seconds=0.02), fake(seconds=0.02)]
    engine, prompts = engine_of(tmp_path, *servers, timeout=60.0), numbered(60)
    engine.load([("w", torch.ones(1))], 5)
    ready(engine, *servers)
    seen = 0

    def finished(_: Group) -> None:
        nonlocal seen
        seen += 1
        if seen == 8:
            servers[0].stop()
            servers[0].released.clear()
            servers[0].start()  # another process would be: without our weights
            servers[0].asked.clear()
            servers[1].broken = after  # or it would be done before

    def after(right: dict) -> dict:
        end = time.monotonic() + 30
        while not servers[0].asked and time.monotonic() < end:
            time.sleep(0.01)
        return right

    groups = engine.generate(prompts, SAMPLING, 1, None, finished)
    assert_right(groups, prompts, 1, 5)
    assert servers[0].asked
    assert servers[0].version == servers[1].version == engine.source.tag
    assert servers[0].taken == [engine.source.path] * 2


def test_generate__a_response_from_other_weights_is_thrown_away(fake: Servers, tmp_path: Path):
    """A server that was started anew between two requests, so fast that no request failed."""
    server = fake()
    engine, prompts = engine_of(tmp_path, server), numbered(6)
    engine.generate(prompts, SAMPLING, 1)
    server.version = "default"
    assert_right(engine.generate(prompts, SAMPLING, 1), prompts, 1, 0)
    assert len(server.taken) == 2
    assert server.version == engine.source.tag


@pytest.mark.parametrize(("fault", "timeout"), [({"hangs": True}, 0.5), ({"reason": "abort"}, 10.0)])
def test_generate__a_server_that_hangs_or_cuts_responses_short_is_left_for_another(
    fake: Servers, tmp_path: Path, fault: dict, timeout: float
):
    servers = [fake(), fake()]
    engine, prompts = engine_of(tmp_path, *servers), numbered(20)
    ready(engine, *servers)
    for name, value in fault.items():
        setattr(servers[0], name, value)
    engine.servers[0].timeout = timeout
    assert_right(engine.generate(prompts, SAMPLING, 1), prompts, 1, 0)
    assert servers[0].asked


def test_generate__a_prompt_that_no_server_survives_is_given_up(fake: Servers, tmp_path: Path):
    engine = engine_of(tmp_path, fake(reason="abort"), fake(reason="abort"))
    with pytest.raises(EngineError, match="3 times over one prompt"):
        engine.generate(numbered(4), SAMPLING, 1)


def test_generate__without_any_server_it_waits_and_then_gives_up(fake: Servers, tmp_path: Path):
    server = fake()
    engine, prompts = engine_of(tmp_path, server, timeout=30.0), numbered(6)
    server.stop()
    timer = threading.Timer(0.3, lambda: (server.released.clear(), server.start()))
    timer.start()
    assert_right(engine.generate(prompts, SAMPLING, 1), prompts, 1, 0)
    timer.join()
    server.stop()
    engine.timeout = 0.5
    with pytest.raises(EngineError, match="no vLLM server has answered"):
        engine.generate(prompts, SAMPLING, 1)
    server.released.clear()
    server.start()


def test_generate__an_interrupt_ends_what_is_under_way(fake: Servers, tmp_path: Path):
    server = fake(hangs=True)
    engine = engine_of(tmp_path, server, timeout=25)

    def check() -> None:
        if server.asked:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(numbered(8), SAMPLING, 1, check)
    assert server.asked
    assert not server.waited  # nobody stayed for an answer
    server.hangs = False
    assert_right(engine.generate(numbered(8), SAMPLING, 1), numbered(8), 1, 0)


def set_in(choice: int, key: str, value: object) -> Callable[[dict], object]:
    """The right answer, but for one value of a choice."""

    def change(answer: dict) -> dict:
        answer["choices"][choice][key] = value
        return answer

    return change


def tokens(*values: object) -> Callable[[dict], object]:
    return set_in(1, "token_ids", list(values))


def logprobs(*values: object) -> Callable[[dict], object]:
    return set_in(2, "logprobs", {"token_logprobs": list(values)})


def choices(change: Callable[[list], object]) -> Callable[[dict], object]:
    return lambda answer: {"choices": change(answer["choices"])}


def pieces(*parts: bytes, pause: float = 0.0) -> Callable[[dict], object]:
    """An answer as it goes over the wire, with a pause of so many seconds before each part but the first."""

    def send() -> Iterator[bytes]:
        yield parts[0]
        for part in parts[1:]:
            time.sleep(pause)
            yield part

    return lambda answer: send()


def status(line: str, body: bytes = b"", **headers: str) -> Callable[[dict], object]:
    named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return pieces(f"HTTP/1.1 {line}\r\n{named}\r\n".encode() + body)


WRONG = {
    # The choices
    "null": lambda answer: None,
    "a number": lambda answer: 3,
    "a text": lambda answer: "choices",
    "a list": lambda answer: answer["choices"],
    "no choices": lambda answer: {"object": "text_completion"},
    "choices null": choices(lambda found: None),
    "choices empty": choices(lambda found: []),
    "choices a table": choices(lambda found: {"0": found[0]}),
    "one choice less": choices(lambda found: found[1:]),
    "one choice more": choices(lambda found: [*found, found[0] | {"index": 3}]),
    "an index twice": set_in(0, "index", 0),
    "an index beyond": set_in(0, "index", 3),
    "an index below": set_in(2, "index", -1),
    "an index of text": set_in(0, "index", "2"),
    "an index of truth": choices(lambda found: [c | {"index": bool(c["index"])} for c in found]),
    "an index of a fraction": set_in(0, "index", 2.0),
    "an index of a list": set_in(0, "index", [2]),
    "no index": choices(lambda found: [{k: v for k, v in c.items() if k != "index"} for c in found]),
    "choices of null": choices(lambda found: [None] * 3),
    "choices within choices": choices(lambda found: [found, found, found]),
    "another prompt's": set_in(1, "prompt_token_ids", [9, 9, 9]),
    # The end
    "another end": set_in(0, "finish_reason", "abort"),
    "an end of null": set_in(0, "finish_reason", None),
    "an end of a list": set_in(0, "finish_reason", ["stop"]),
    "stopped without an end token": tokens(3, 4, 5, 6),
    "an end token before the end": tokens(3, END, 5, END),
    "cut before the limit": set_in(1, "finish_reason", "length"),
    # The tokens
    "no tokens": tokens(),
    "tokens of null": set_in(1, "token_ids", None),
    "tokens of text": set_in(1, "token_ids", "3 4 5"),
    "more tokens than asked for": set_in(1, "token_ids", [*[3] * 20, END]),
    "a token below": tokens(3, -1, 5, END),
    "a token beyond the vocabulary": tokens(3, VOCABULARY, 5, END),
    "a huge token": tokens(3, 10**40, 5, END),
    "a token of text": tokens(3, "4", 5, END),
    "a token of a fraction": tokens(3, 4.0, 5, END),
    "a token of truth": tokens(3, True, 5, END),
    "a token of null": tokens(3, None, 5, END),
    "a token of a list": tokens(3, [4], 5, END),
    # The log-probabilities
    "no log-probabilities": set_in(2, "logprobs", None),
    "log-probabilities of a list": set_in(2, "logprobs", [-1.0] * 4),
    "log-probabilities of another name": set_in(2, "logprobs", {"logprobs": [-1.0] * 4}),
    "too few log-probabilities": logprobs(-1.0, -1.0, -1.0),
    "too many log-probabilities": logprobs(*[-1.0] * 5),
    "nan": logprobs(-1.0, math.nan, -1.0, -1.0),
    "infinity": logprobs(-1.0, math.inf, -1.0, -1.0),
    "minus infinity": logprobs(-1.0, -math.inf, -1.0, -1.0),
    "above 0": logprobs(-1.0, 0.1, -1.0, -1.0),
    "a huge number below": logprobs(-1.0, -(10**400), -1.0, -1.0),
    "a log-probability of null": logprobs(-1.0, None, -1.0, -1.0),
    "a log-probability of text": logprobs(-1.0, "-1.0", -1.0, -1.0),
    "a log-probability of truth": logprobs(-1.0, False, -1.0, -1.0),
}
"""Completions that say something else than was asked for."""
UNREADABLE = {
    "nothing": lambda answer: b"",
    "truncated JSON": lambda answer: json.dumps(answer).encode()[:-20],
    "two answers": lambda answer: json.dumps(answer).encode() * 2,
    "no JSON": lambda answer: b"<html>busy</html>",
    "no text": lambda answer: b"\xff\xfe\x00\x80",
    "deeply nested": lambda answer: b"[" * 200_000 + b"]" * 200_000,
    "a number of 100,000 digits": lambda answer: b"1" * 100_000,
    "control characters": lambda answer: b"\x1b[2J\r\n\x00 gone",
    "a gzip bomb": lambda answer: gzip.compress(b" " * 50_000_000),
    "a gzip bomb with its header": status("200 OK", gzip.compress(b" " * 5_000_000), Content_Encoding="gzip"),
    "larger than any answer": lambda answer: b" " * 3_000_000,
    "500": status("500 Internal Server Error", b"an error\n  line 1\n", Content_Length="18"),
    "503 without a word": status("503 Busy"),
    "429": status("429 Too Many Requests", b"later", Content_Length="5"),
    "a redirect": status("302 Found", Location="http://127.0.0.1:9/"),
    "a redirect to itself": status("307 Again", Location="/v1/completions"),
    "an unknown status": status("999 What"),
    "no status": pieces(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "no answer at all": pieces(b""),
    "a header without an end": pieces(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000),
    "a thousand headers": pieces(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n"),
    "shorter than it says": status("200 OK", b'{"choices"', Content_Length="1000"),
    "a length below 0": status("200 OK", b"{}", Content_Length="-5"),
    "a length of text": status("200 OK", b"{}", Content_Length="many"),
    "chunks without a size": status("200 OK", b"zz\r\n{}", Transfer_Encoding="chunked"),
    "a chunk that ends early": status("200 OK", b"ffff\r\n{}", Transfer_Encoding="chunked"),
}
"""Answers that are none."""


def drip(start: bytes, part: bytes) -> Callable[[dict], object]:
    """An answer that goes on for a minute, some bytes at a time."""
    return pieces(start, *[part] * 600, pause=0.1)


SLOW = {
    "a body drips": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b" "),
    "a body without an end drips": drip(b"HTTP/1.1 200 OK\r\n\r\n", b" "),
    "chunks drip": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a header drips": drip(b"HTTP/1.1 200 OK\r\nA: ", b"x"),
    "headers drip": drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "a status drips": drip(b"HTTP/1.1 ", b"2"),
    "go on, go on": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
"""Answers that never end, though there is never a second without a byte."""
HOSTILE = WRONG | UNREADABLE | SLOW


def patience(engine: ServerEngine, name: str) -> None:
    """The first server's drips end soon; nothing else depends on how busy this machine is."""
    engine.servers[0].timeout = 0.5 if name in SLOW else 60.0


@pytest.mark.parametrize("name", HOSTILE)
def test_generate__an_answer_that_cannot_be_right_is_sampled_again_elsewhere(
    fake: Servers, tmp_path: Path, capfd: pytest.CaptureFixture, name: str
):
    hostile, right = fake(), fake()
    engine, prompts = engine_of(tmp_path, hostile, right, timeout=60.0), numbered(12)
    ready(engine, hostile, right)
    hostile.broken = HOSTILE[name]
    patience(engine, name)
    assert_right(engine.generate(prompts, SAMPLING, 1), prompts, 1, 0)
    assert hostile.asked
    said, errors = capfd.readouterr()
    assert "Traceback" not in said + errors
    lines = [line for line in said.splitlines() if line]
    assert lines
    assert all(line.startswith(hostile.url) and line.isprintable() for line in lines)
    if name in WRONG:
        assert engine.rejected == len(lines)
        assert lines[-1].endswith(f"(rejected answer {len(lines)})")
    elif name in SLOW:
        assert all("TimeoutError timed out" in line for line in lines)


@pytest.mark.parametrize("name", HOSTILE)
def test_generate__where_no_server_answers_rightly_the_run_ends_with_one_line(
    fake: Servers, tmp_path: Path, name: str
):
    engine = engine_of(tmp_path, fake(broken=HOSTILE[name]), timeout=60.0)
    patience(engine, name)
    with pytest.raises(EngineError, match=r"servers failed 3 times over one prompt: http://") as error:
        engine.generate(numbered(1), SAMPLING, 1)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
    assert ("TimeoutError timed out" in str(error.value)) == (name in SLOW)


@pytest.mark.parametrize(
    "broken",
    [
        lambda body: pieces(b"HTTP/1.1 200 OK\r\nA: ", *[b"x"] * 30, b"\r\n\r\n" + body, pause=0.02),
        lambda body: pieces(b"HTTP/1.1 200 OK\r\n", *[b"A: b\r\n"] * 30, b"\r\n" + body, pause=0.02),
        lambda body: pieces(b"HTTP/1.1 200 OK\r\n\r\n", *[b" "] * 30, body, pause=0.02),
    ],
    ids=["a header", "headers", "a body"],
)
def test_ask__an_answer_has_to_be_whole_by_its_time(fake: Servers, broken: Callable):
    """There is always another byte soon, and with more time the answer is right."""
    server = Server(fake(broken=broken(b'{"a": 1}')).url, timeout=0.2)
    body = {"prompt": [1], "max_tokens": 1, "seed": 1, "n": 1}
    with pytest.raises(ServerFault, match="TimeoutError timed out"):
        server.ask("POST", "/v1/completions", body)
    assert server.ask("POST", "/v1/completions", body, timeout=60.0) == {"a": 1}


@pytest.mark.parametrize("code", ["400 Bad", "401 Who", "403 No", "404 Gone", "422 What"])
def test_generate__a_refusal_ends_the_run_with_one_line(fake: Servers, tmp_path: Path, code: str):
    body = b'{"error":\r\n "\x1b[31mtoo\nlong"}' + b"x" * 5000
    engine = engine_of(
        tmp_path, fake(broken=status(code, body, Content_Length=str(len(body)))), fake(seconds=0.1)
    )
    with pytest.raises(EngineError, match=r"refused: \{|has no /v1/completions") as error:
        engine.generate(numbered(12), SAMPLING, 1)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_generate__what_an_answer_has_beside_is_no_fault(fake: Servers, tmp_path: Path):
    """More keys, responses in any order, a prompt said again, rounding above 0, whole numbers, an end at the limit."""

    def more(answer: dict) -> dict:
        for choice in answer["choices"]:
            choice |= {"text": None, "stop_reason": END, "prompt_logprobs": None}
            choice["logprobs"] |= {"tokens": [], "top_logprobs": None, "text_offset": [0]}
        first, second, third = answer["choices"]
        third["logprobs"]["token_logprobs"] = [-1, 1e-6, 0, -9999.0]
        second |= {"token_ids": [5] * 20, "finish_reason": "length"}
        second["logprobs"] = {"token_logprobs": [-0.5] * 20}
        first |= {"token_ids": [*[5] * 19, END], "finish_reason": "length", "prompt_token_ids": [0, 7, 8]}
        first["logprobs"] = {"token_logprobs": [-0.5] * 20}
        return {"id": "x", "usage": {"n": [1]}, "choices": [second, third, first]}

    engine = engine_of(tmp_path, fake(broken=more))
    (group,) = engine.generate(numbered(1), SAMPLING, 1)
    assert engine.rejected == 0
    assert group.responses[0].logprobs == (-1.0, 0.0, 0.0, -9999.0)
    assert [r.truncated for r in group.responses] == [False, True, False]
    assert [len(r.token_ids) for r in group.responses] == [4, 20, 20]


NONSENSE = [None, 3, "text", [], {}, {"success": 1, "weight_version": ["x"]}, b"", b"{", b"\xff"]


@pytest.mark.parametrize(
    "path",
    ["/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume", "/weight_info"],
)
@pytest.mark.parametrize("answer", NONSENSE, ids=repr)
def test_generate__nonsense_of_another_endpoint_is_a_fault_of_the_server(
    fake: Servers, tmp_path: Path, path: str, answer: object
):
    hostile, right = fake(), fake()
    engine = engine_of(tmp_path, hostile, right)
    hostile.elsewhere[path] = answer
    assert_right(engine.generate(numbered(4), SAMPLING, 1), numbered(4), 1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        *NONSENSE,
        {"vllm_config": None},
        {"vllm_config": {"model_config": [], "parallel_config": {}}},
        {"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs"}, "parallel_config": {}}},
        {
            "vllm_config": {
                "model_config": {"logprobs_mode": "processed_logprobs", "max_model_len": "many"},
                "parallel_config": {"worker_extension_cls": "x"},
            }
        },
    ],
    ids=repr,
)
def test_server_engine__what_is_no_vllm_server_is_no_server(fake: Servers, tmp_path: Path, answer: object):
    hostile = fake(elsewhere={"/server_info": answer})
    engine_of(tmp_path, hostile, fake())  # one is enough
    with pytest.raises(UserError, match=r"engine\.urls: no server answers: http://") as error:
        engine_of(tmp_path, hostile)
    assert str(error.value).isprintable()


def test_generate__an_interrupt_ends_an_answer_that_drips(fake: Servers, tmp_path: Path):
    server = fake(broken=SLOW["a body without an end drips"])
    engine = engine_of(tmp_path, server, timeout=60)
    ends: list[float] = []

    def check() -> None:
        if server.asked and ends and time.monotonic() > ends[0]:
            raise KeyboardInterrupt
        ends.append(time.monotonic() + 0.5)

    with pytest.raises(KeyboardInterrupt):
        engine.generate(numbered(4), SAMPLING, 1, check)
    assert time.monotonic() - ends[0] < 30  # it would go on for a minute


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logprobs_mode": "raw_logprobs"}, "raw_logprobs.*--logprobs-mode processed_logprobs"),
        ({"extension": ""}, "cannot take new weights.*--worker-extension-cls"),
        ({"max_model_len": 100}, "--max-model-len 512"),
    ],
)
def test_server_engine__a_server_that_was_started_otherwise_is_refused(
    fake: Servers, tmp_path: Path, options: dict, message: str
):
    with pytest.raises(UserError, match=message):
        engine_of(tmp_path, fake(), fake(**options))


def test_server_engine__no_server_at_all_is_an_error_at_the_start(fake: Servers, tmp_path: Path):
    first, second = fake(), fake()
    second.stop()
    engine_of(tmp_path, first, second)  # one is enough
    first.stop()
    with pytest.raises(UserError, match=r"no server answers.*VLLM_SERVER_DEV_MODE=1 vllm serve"):
        engine_of(tmp_path, first, second)
    for server in (first, second):
        server.start()


def test_server_engine__of_several_ranks_the_first_one_asks_writes_and_fails_for_all(tmp_path: Path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "support.server_ranks", str(tmp_path / "weights")]
    found = [str(Path(__file__).parents[1]), PYTHONPATH["PYTHONPATH"]]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, found))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert [path.name[8:] for path in sorted((tmp_path / "weights").glob("*-*"))] == ["-1", "-2"]
