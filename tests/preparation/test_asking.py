"""Endpoints that are slow to come, refuse, or give fewer responses than were asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from openprime.config import PrepareConfig
from openprime.preparation.asking import Answers, Asker, make_asker
from openprime.types import RunError, UserError
from support.fake_endpoint import Endpoint

CHATS = [[{"role": "user", "content": f"question {i}"}] for i in range(12)]
Served = Callable[..., Endpoint]


def asker(endpoint: Endpoint, folder: Path, **settings) -> Asker:
    config = PrepareConfig(endpoint=endpoint.url, sequences=4, max_response_tokens=50, **settings)
    return make_asker(config, folder, Console(quiet=True))


def nothing() -> None:
    pass


def number(body: dict) -> str:
    return body["messages"][0]["content"].split()[1]


def test_ask__answers_stand_at_their_questions_and_are_kept(served: Served, tmp_path: Path):
    endpoint = served(lambda body: [f"{number(body)}-{i}" for i in range(body["n"])])
    one = asker(endpoint, tmp_path)
    expected = [[f"{i}-0", f"{i}-1"] for i in range(12)]
    assert one.ask(CHATS, 2, nothing) == expected
    assert one.ask(CHATS, 2, nothing) == expected
    assert asker(endpoint, tmp_path).ask(CHATS, 2, nothing) == expected
    assert len(endpoint.asked) == 12
    assert asker(endpoint, tmp_path, temperature=0.5).ask(CHATS[:1], 2, nothing) == expected[:1]
    assert len(endpoint.asked) == 13  # asked in another way


def test_ask__a_server_that_gives_one_response_is_asked_again_with_other_seeds(
    served: Served, tmp_path: Path
):
    endpoint = served(lambda body: [str(body["seed"])])
    (texts,) = asker(endpoint, tmp_path).ask(CHATS[:1], 3, nothing)
    assert len(set(texts)) == 3
    assert [body["n"] for body in endpoint.asked] == [3, 2, 1]


def test_ask__a_server_that_is_gone_for_a_moment_is_waited_for(served: Served, tmp_path: Path):
    endpoint = served(lambda body: (503, "busy") if len(endpoint.asked) < 4 else ["yes"])
    assert asker(endpoint, tmp_path).ask(CHATS[:2], 1, nothing) == [["yes"], ["yes"]]


def test_ask__a_server_that_stays_away_ends_the_run(served: Served, tmp_path: Path):
    endpoint = served(lambda body: (503, "busy"))
    with pytest.raises(RunError, match=r"status 503.*go on with --resume"):
        asker(endpoint, tmp_path, timeout=0.5).ask(CHATS[:2], 1, nothing)


def test_ask__a_question_that_is_refused_has_no_answer(served: Served, tmp_path: Path):
    endpoint = served(lambda body: (400, "too long") if number(body) == "1" else ["yes"])
    assert asker(endpoint, tmp_path).ask(CHATS[:3], 1, nothing) == [["yes"], [], ["yes"]]


@pytest.mark.parametrize("status", [400, 404])
def test_ask__a_server_that_refuses_everything_ends_the_run(served: Served, tmp_path: Path, status: int):
    endpoint = served(lambda body: (status, "what is temperature?"))
    with pytest.raises(UserError, match="what is temperature"):
        asker(endpoint, tmp_path).ask(CHATS, 1, nothing)


def test_endpoint__wants_a_key_and_a_model_that_it_has(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    endpoint = served(lambda body: ["yes"], key="secret")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        asker(endpoint, tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert asker(endpoint, tmp_path).ask(CHATS[:1], 1, nothing) == [["yes"]]
    with pytest.raises(UserError, match="no model 'mine'; it has a-model"):
        asker(endpoint, tmp_path, model="mine")


def test_ask__an_interrupt_hangs_up_and_keeps_what_came(served: Served, tmp_path: Path):
    endpoint = served(lambda body: ["yes"])

    def stop() -> None:
        raise KeyboardInterrupt

    one = asker(endpoint, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        one.ask(CHATS, 1, stop)
    kept = Answers(tmp_path / "answers.jsonl")
    assert kept.places == one.answers.places
    assert [kept.texts(key) for key in kept.places] == [["yes"]] * len(kept.places)
    before = len(kept.places)
    assert asker(endpoint, tmp_path).ask(CHATS, 1, nothing) == [["yes"]] * 12
    assert len(Answers(tmp_path / "answers.jsonl").places) == 12 > before


def test_answers__a_line_that_a_kill_left_half_written_is_cut_off(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"key": "a", "texts": ["1"]}\nbroken\n{"key": "b", "texts": ["2"]}\n{"key": "c", "tex')
    answers = Answers(path)
    answers.add("d", ["ü"])
    for found in (answers, Answers(path)):
        assert {key: found.texts(key) for key in found.places} == {"a": ["1"], "b": ["2"], "d": ["ü"]}
