"""`openprime ask`: what is said, in which colours, and how a session goes."""

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer

from openprime.cli import main
from openprime.commands import answers
from openprime.commands import ask as module
from openprime.data.chat import SYSTEM
from openprime.data.steps import token_texts
from openprime.engines.transformers import TransformersEngine
from openprime.models.hub import end_tokens, load_model, load_tokenizer
from openprime.models.lm import LM
from openprime.models.placement import Placement
from openprime.models.tiny import build_model, build_tokenizer
from openprime.prime.prm import ImplicitPRM, Score
from openprime.types import Group, Prompt, Response, Sampling
from support.page_html import Page
from support.tiny_prm import greedy_tokens, save_prm, token_rewards
from support.tiny_runs import PYTHONPATH

QUESTIONS = ("Start four\n+seven = ?\n*three = ?", "Start nine\n+one = ?\n+two = ?", "What?")
MATH = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
CODE = (
    "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end."
)
LIMIT = 40


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch):
    """Whatever terminal the tests run on."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def prm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prm(model, tmp_path_factory.mktemp("ask") / "prm")


def ask(model: Path, question: str, *flags: str) -> int:
    return main(["ask", str(model), question, "--max-response-tokens", str(LIMIT), *flags])


def rendered(model: Path, *messages: tuple[str, str]) -> list[int]:
    """The tokens of a chat of (role, content)."""
    chat = [{"role": role, "content": content} for role, content in messages]
    tokenizer = AutoTokenizer.from_pretrained(model)
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def greedy(model: Path, question: str, limit: int = LIMIT) -> tuple[Prompt, Response]:
    """The engine's greedy answer."""
    tokenizer, policy = load_tokenizer(str(model)), load_model(str(model))
    prompt = Prompt("q", tuple(rendered(model, ("user", question))), question, None)
    engine = TransformersEngine(policy, Placement(), tokenizer, end_tokens(policy, tokenizer))
    (group,) = engine.generate([prompt], Sampling(1, limit, 0.0), 0)
    return prompt, group.responses[0]


def scored(prm: Path, model: Path, question: str, tokens: int = LIMIT) -> tuple[Response, Score]:
    """The greedy answer, or its first tokens, with its rewards."""
    prompt, response = greedy(model, question)
    response = replace(response, token_ids=response.token_ids[:tokens])
    scorer = ImplicitPRM.from_pretrained(str(prm), device="cpu")
    ((score,),) = scorer.score_sampled([Group(prompt, (response,), 0)])
    return response, score


# The answer


@pytest.mark.parametrize(("question", "limit"), [*((q, LIMIT) for q in QUESTIONS), (QUESTIONS[0], 3)])
def test_ask__streams_the_greedy_answer_of_the_engine(
    model: Path, capsys: pytest.CaptureFixture, question: str, limit: int
):
    assert main(["ask", str(model), question, "--max-response-tokens", str(limit)]) == 0
    _, response = greedy(model, question, limit)
    text, last, _ = capsys.readouterr().out.rsplit("\n", 2)
    assert text == response.text
    assert response.truncated == (limit == 3)
    cut = ", cut at --max-response-tokens" if response.truncated else ""
    assert re.fullmatch(rf"{len(response.token_ids)} tokens, [\d,]+ tokens/s{cut}", last)


def sampled(model: Path, question: str, temperature: float, seed: int) -> str:
    """Plain sampling by transformers and torch alone."""
    tokenizer, policy = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    ids = rendered(model, ("user", question))
    begin = len(ids)
    torch.manual_seed(seed)
    while len(ids) < begin + LIMIT and (len(ids) == begin or ids[-1] != tokenizer.eos_token_id):
        with torch.no_grad():
            logits = policy(torch.tensor([ids])).logits[0, -1].float()
        ids.append(int(torch.multinomial((logits / temperature).softmax(-1), 1)))
    return tokenizer.decode(ids[begin:], skip_special_tokens=True)


def test_ask__samples_from_the_whole_distribution_whatever_the_model_says(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """A model's own generation_config.json would cut or bend it."""
    bent = Path(shutil.copytree(model, tmp_path / "bent"))
    own = json.loads((bent / "generation_config.json").read_text())
    own |= {"top_k": 1, "top_p": 0.1, "temperature": 0.01, "repetition_penalty": 5.0, "do_sample": True}
    (bent / "generation_config.json").write_text(json.dumps(own))
    expected = [sampled(model, QUESTIONS[0], 1.5, seed) for seed in range(3)]
    assert len(set(expected)) == 3
    for seed, text in enumerate(expected):
        assert ask(bent, QUESTIONS[0], "--temperature", "1.5", "--seed", str(seed)) == 0
        assert capsys.readouterr().out.rsplit("\n", 2)[0] == text
    assert ask(bent, QUESTIONS[0]) == 0
    assert capsys.readouterr().out.rsplit("\n", 2)[0] == greedy(model, QUESTIONS[0])[1].text


# The prompt


def test_ask__asks_as_the_model_was_trained_else_as_published(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[list[int]] = []
    monkeypatch.setattr(module.Stream, "put", lambda self, value: asked.append(value.flatten().tolist()))
    other = Path(shutil.copytree(model, tmp_path / "other"))
    (other / "prompt_format.json").write_text(json.dumps({"system": "Be brief.", "suffix": " Box it."}))
    unknown = Path(shutil.copytree(model, tmp_path / "unknown"))
    (unknown / "prompt_format.json").unlink()
    for folder, flags, *messages in (
        (model, [], ("user", "q")),  # openprime sft wrote its prompt_format.json
        (other, [], ("system", "Be brief."), ("user", "q Box it.")),
        (other, ["--template", "none"], ("user", "q")),
        (unknown, [], ("user", "q" + MATH)),
        (unknown, ["--kind", "code"], ("user", "q" + CODE)),
        (unknown, ["--template", "none"], ("user", "q")),
        (unknown, ["--template", "eurus-actions"], ("system", SYSTEM), ("user", "q" + MATH)),
    ):
        assert ask(folder, "q", *flags) == 0
        assert asked[0] == rendered(model, *messages)  # then token by token
        asked.clear()
    (unknown / "chat_template.jinja").unlink()
    assert ask(unknown, "q") == 0
    assert asked[0] == AutoTokenizer.from_pretrained(model)("q" + MATH)["input_ids"]


# Rewards, in numbers


@pytest.mark.parametrize("question", QUESTIONS)
def test_ask__without_colours_every_step_has_its_number(
    model: Path, prm: Path, capsys: pytest.CaptureFixture, question: str
):
    assert ask(model, question, "--prm", str(prm)) == 0
    response, score = scored(prm, model, question)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.startswith(response.text + "\n\n")
    lines = out.removeprefix(response.text + "\n\n").splitlines()
    steps = [line.split("  ", 1) for line in (line.lstrip() for line in lines[:-2])]
    assert [text for _, text in steps] == [step.rstrip() for step in score.steps]
    assert [float(number) for number, _ in steps] == pytest.approx(score.step_rewards, abs=1e-4)
    odds = 2.718281828459045**score.reward
    total = f"reward {score.reward:+.4f}, probability of being right {odds / (1 + odds):.3f}"
    assert lines[-2] == total


def test_ask__another_reference_gives_other_rewards(model: Path, prm: Path, capsys: pytest.CaptureFixture):
    assert ask(model, QUESTIONS[0], "--prm", str(prm), "--reference", str(prm)) == 0
    assert "reward +0.0000, probability of being right 0.500" in capsys.readouterr().out


# Rewards, in colours


Shown = tuple[Score, list[module.Piece]]


@pytest.fixture
def answer(model: Path, prm: Path) -> Shown:
    """The rewards of a whole answer."""
    response, score = scored(prm, model, QUESTIONS[0])
    assert not response.truncated
    return score, module.pieces_of(score, response.token_ids, load_tokenizer(str(model)))


def drawn(answer: Shown, colours: str | None, **settings) -> str:
    """What a terminal of this kind gets."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=colours, width=90, **settings)  # type: ignore
    module.show(*answer, console)
    return file.getvalue()


def backgrounds(line: Text) -> list[tuple[str, str]]:
    """The letters of a line, each with its background."""
    found = []
    for span in line.spans:
        assert not isinstance(span.style, str)
        back = span.style.bgcolor
        colour = back.get_truecolor().hex if back is not None and not back.is_default else ""
        found += [(letter, colour) for letter in line.plain[span.start : span.end]]
    return found


def mixed(share: float) -> str:
    """White, and three quarters of blue or red at the most."""
    mix = 0.75 * min(1.0, abs(share))
    full = (37, 99, 235) if share > 0 else (220, 38, 38)
    return "#" + "".join(f"{round((1 - mix) * 255 + mix * channel):02x}" for channel in full)


def test_show__tokens_have_the_colour_of_their_reward(answer: Shown):
    score, _ = answer
    *steps, total, legend = (Text.from_ansi(line) for line in drawn(answer, "truecolor").splitlines())
    largest = float(np.percentile(np.abs(score.token_rewards), 99, method="higher"))
    tokens = list(zip(score.tokens, score.token_rewards, score.step_of_token, strict=True))
    for step, line in enumerate(steps):
        wanted = [
            (letter, mixed(reward / largest))
            for token, reward, owner in tokens
            for letter in (token or "<|im_end|>").replace("\n", "⏎")
            if owner == step
        ]
        letters = backgrounds(line)
        assert letters[: len(wanted)] == wanted
        assert {colour for _, colour in letters[len(wanted) :]} <= {"#ffffff", ""}
        assert float(line.plain.split()[-1]) == pytest.approx(score.step_rewards[step], abs=1e-4)
    assert total.plain.startswith(f"reward {score.reward:+.4f}, probability of being right 0.")
    assert legend.plain.startswith(f"reward of a token {-largest:+.3f}")
    assert legend.plain.endswith(f"{largest:+.3f} and beyond")
    bar = [colour for _, colour in backgrounds(legend) if colour]
    assert (bar[0], bar[len(bar) // 2], bar[-1]) == (mixed(-1), "#ffffff", mixed(1))


def test_show__few_colours_tell_the_signs_apart_and_no_colours_are_numbers(answer: Shown):
    assert len({module.colour(share, few=True) for share in (-1, -0.5, 0, 0.5, 1)}) == 5
    few = drawn(answer, "standard")
    assert re.search(r"\x1b\[[\d;]*4[14]m", few)  # red or blue
    assert not re.search("48;[25];", few)
    assert f"{answer[0].step_rewards[0]:+.4f}" in few
    for text in (drawn(answer, None), drawn(answer, "truecolor", no_color=True)):
        assert "\x1b[" not in text


def test_pieces_of__character_of_several_tokens_has_the_sum_of_their_rewards(tmp_path: Path):
    tokenizer = build_tokenizer(["a b"] * 5, 280)
    scorer = ImplicitPRM(*(LM(build_model(tokenizer, 16, 1, 2, 64, seed)) for seed in (1, 2)), 0.3, tokenizer)
    ids = [*tokenizer("a😀\n\nb\x1b[2J\n")["input_ids"], tokenizer.eos_token_id]

    def pieces(ids: list[int]) -> Shown:
        (score,) = scorer.score_tokens([[5, 6]], [ids], [token_texts(tokenizer, ids)])
        return score, module.pieces_of(score, ids, tokenizer)

    score, made = pieces(ids)
    assert [piece.text for piece in made][:5] == ["a", "😀", "\n", "\n", "b"]
    assert "".join(piece.text for piece in made) == "a😀\n\nb\x1b[2J\n<|im_end|>"
    assert made[1].reward == pytest.approx(sum(score.token_rewards[1:5]))
    assert sum(piece.reward for piece in made) == pytest.approx(score.reward)
    lines = Text.from_ansi(drawn((score, made), "truecolor")).plain.splitlines()
    assert [line.split("  ")[0].rstrip() for line in lines[:2]] == ["a😀⏎⏎", "b␛[2J⏎<|im_end|>"]
    score, cut = pieces(ids[:3])  # within the character
    assert sum(piece.reward for piece in cut) == pytest.approx(score.reward)


def test_write__answer_does_not_steer_the_terminal(capsys: pytest.CaptureFixture):
    module.write("a\x1b[2J\r\x07\tb\n")
    assert capsys.readouterr().out == "a␛[2J␍␇\tb\n"


def test_stream__every_character_is_said_when_its_last_token_comes():
    """Also where no space ever comes, and characters of several tokens."""
    tokenizer = build_tokenizer(["a b"] * 5, 280)
    ids = tokenizer("ababababaa😀aé\n\nx y")["input_ids"]
    said: list[str] = []
    stream = module.Stream(tokenizer, said.append)
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for end, token in enumerate(ids, 1):
        stream.put(torch.tensor([token]))
        so_far = tokenizer.decode(ids[:end])
        assert "".join(said) == so_far.rstrip("\ufffd")
        assert stream.whole == (not so_far.endswith("\ufffd"))
    stream.end()
    assert "".join(said) == stream.text == "ababababaa😀aé\n\nx y"


def test_stream__bytes_that_are_no_character_do_not_hold_back_the_rest():
    tokenizer = build_tokenizer(["a b"] * 5, 280)
    begin = tokenizer("😀")["input_ids"][0]  # of four bytes
    said: list[str] = []
    stream = module.Stream(tokenizer, said.append)
    stream.put(torch.tensor([[1]]))
    for _ in range(12):
        stream.put(torch.tensor([begin]))
    assert 8 <= len("".join(said)) <= 12
    stream.put(torch.tensor(tokenizer("a")["input_ids"]))
    stream.end()
    assert "".join(said) == "\ufffd" * 12 + "a"


# Beside each other


def test_ask__two_prms_judge_one_answer(
    model: Path, prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "page.html"
    flags = ["--prm", str(prm), "--beside.prm", str(prm), "--beside.reference", str(prm), "--page", str(out)]
    assert ask(model, QUESTIONS[0], *flags) == 0
    said = capsys.readouterr().out
    response, score = scored(prm, model, QUESTIONS[0])
    assert said.startswith(response.text + "\n\n")
    assert f"\n{prm}: reward {score.reward:+.4f}, " in said
    assert f"\n{prm}: reward +0.0000, probability of being right 0.500\n" in said
    assert said.count("tokens/s") == 1
    assert Page(out.read_text(encoding="utf-8")).text.count("probability of being right") == 2


def test_ask__two_models_answer_one_question(
    model: Path, prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert ask(model, QUESTIONS[0], "--beside.model", str(prm), "--prm", str(prm)) == 0
    said = capsys.readouterr().out
    first, second = said.split(f"{prm}:\n")
    for part, name in ((first.removeprefix(f"{model}:\n"), model), (second, prm)):
        tokenizer = load_tokenizer(str(name))
        ids = rendered(model, ("user", QUESTIONS[0]))
        if name == prm:  # not trained here: asked as published
            ids = rendered(prm, ("user", QUESTIONS[0] + MATH))
        tokens = greedy_tokens(name, ids, LIMIT)
        assert part.startswith(str(tokenizer.decode(tokens, skip_special_tokens=True)) + "\n\n")
        rewards = token_rewards(prm, model, ids, tokens)
        assert float(re.findall(r"^reward (\S+),", part, re.MULTILINE)[0]) == pytest.approx(
            sum(rewards), abs=1e-3
        )


# The page


def test_page__has_question_tokens_steps_and_totals(
    model: Path, prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "made" / "answer.html"
    assert ask(model, QUESTIONS[0], "--prm", str(prm), "--page", str(out)) == 0
    assert f"written: {out}\n" in capsys.readouterr().out
    page = Page(out.read_text(encoding="utf-8"))
    _, score = scored(prm, model, QUESTIONS[0])
    titles = [float(attributes["title"] or 0) for _, attributes in page.tags if "title" in attributes]
    assert titles == pytest.approx(score.token_rewards, abs=1e-4)
    for text in (QUESTIONS[0], str(model), str(prm), "<|im_end|>", f"score {score.reward:+.3f}"):
        assert text in page.text
    bars = [a["style"] or "" for tag, a in page.tags if tag == "div" and "style" in a]
    longest = max(map(abs, score.step_rewards))
    for bar, reward, step in zip(bars, score.step_rewards, score.steps, strict=True):
        assert f"{reward:+.4f}" in page.text
        assert step.strip() in page.text
        left, width = (float(number) for number in re.findall(r"([\d.]+)%", bar))
        assert width == pytest.approx(50 * abs(reward) / longest, abs=0.1)
        assert left == pytest.approx(50 if reward > 0 else 50 - width, abs=0.1)
        assert ("rgba(37,99,235" in bar) == (reward > 0)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href"} & set(attributes)


def test_page__without_a_prm_and_what_is_written_is_shown(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evil = "<script>alert(1)</script> 1 < 2 & 3"
    monkeypatch.chdir(tmp_path)
    assert ask(model, evil, "--page", "answer.html") == 0
    page = Page((tmp_path / "answer.html").read_text(encoding="utf-8"))
    assert evil in page.text
    assert "script" not in [tag for tag, _ in page.tags]
    assert greedy(model, evil)[1].text in page.text


# A session


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """What a user types; then the input ends."""
    typed = iter(lines)

    def read(prompt: str) -> str:
        print(prompt, end="")
        if (line := next(typed, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)


@pytest.mark.parametrize("end", [(), ("",), ("  ", "never read")])
def test_session__answers_each_question_on_its_own(
    model: Path, prm: Path, tmp_path: Path, monkeypatch, capsys, end: tuple[str, ...]
):
    type_in(monkeypatch, *QUESTIONS, *end)
    out = tmp_path / "page.html"
    assert ask(model, "", "--prm", str(prm), "--page", str(out)) == 0
    said = capsys.readouterr().out
    page = Page(out.read_text(encoding="utf-8"))
    for question in QUESTIONS:
        assert f"> {greedy(model, question)[1].text}\n\n" in said
        assert question in page.text
    assert said.count("> ") == 4
    assert said.count("tokens/s") == 3
    assert page.text.count("probability of being right") == 3


def interrupting(after: int) -> Callable:
    """Ctrl-C at a token of the first answer."""
    put, calls = module.Stream.put, count(1)

    def interrupted(self: module.Stream, value: torch.Tensor) -> None:
        put(self, value)
        if next(calls) == after:
            signal.raise_signal(signal.SIGINT)

    return interrupted


def test_interrupt__stops_the_answer_and_not_the_session(
    model: Path, prm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    type_in(monkeypatch, QUESTIONS[2], QUESTIONS[0])
    monkeypatch.setattr(module.Stream, "put", interrupting(5))  # the prompt and four tokens
    assert ask(model, "", "--prm", str(prm)) == 0
    said = capsys.readouterr().out
    assert f"reward {scored(prm, model, QUESTIONS[2], 4)[1].reward:+.4f}" in said
    assert re.search(r"^4 tokens, [\d,]+ tokens/s, stopped$", said, re.MULTILINE)
    assert f"> {greedy(model, QUESTIONS[0])[1].text}\n" in said


def test_interrupt__before_a_token_and_of_a_single_question(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    type_in(monkeypatch, QUESTIONS[0])
    with monkeypatch.context() as patched:
        patched.setattr(module.Stream, "put", interrupting(1))
        assert ask(model, "") == 0
    assert "tokens/s" not in capsys.readouterr().out
    monkeypatch.setattr(module.Stream, "put", interrupting(3))
    assert ask(model, QUESTIONS[0]) == 130
    assert capsys.readouterr().err == "openprime: interrupted\n"


def test_session__in_a_terminal(model: Path, prm: Path):
    """A whole session through a pseudo-terminal: pasted lines are one question, colours, Ctrl-D leaves."""
    ours, theirs = pty.openpty()
    terminal = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "90"}
    flags = ["--prm", str(prm), "--max-response-tokens", str(LIMIT)]
    args = [sys.executable, "-m", "openprime", "ask", str(model), *flags]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(args, env=os.environ | PYTHONPATH | terminal, **streams)
    os.close(theirs)
    heard = b""

    def wait_for(text: str) -> str:
        nonlocal heard
        end = time.monotonic() + 120
        while text.encode() not in heard:
            assert time.monotonic() < end, heard
            if select.select([ours], [], [], 0.2)[0]:
                heard += os.read(ours, 4096)
        before, _, heard = heard.partition(text.encode())
        return before.decode()

    try:
        said = wait_for("> ")
        assert " loading /" in said  # the model
        assert " loading the PRM /" in said
        assert "an empty line leaves" in said
        assert "\x1b[?2004h" in said  # asks the terminal to mark what is pasted
        os.write(ours, b"\x1b[200~" + QUESTIONS[0].encode() + b"\x1b[201~\r")
        said = wait_for("tokens/s").replace("\r\n", "\n")
        assert greedy(model, QUESTIONS[0])[1].text in Text.from_ansi(said).plain
        assert "48;2;" in said
        wait_for("> ")
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# What a user does wrong


def test_ask__what_does_not_fit_is_refused_before_anything_long(
    model: Path, prm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(answers, "load_model", lambda *args: pytest.fail("loads a model"))
    other = tmp_path / "other"
    scorer = ImplicitPRM.from_pretrained(str(prm), device="cpu")
    scorer.save_pretrained(other, build_tokenizer(["quite another text"] * 5, 300), str(other))
    nowhere = tmp_path / "nowhere"
    cases = [
        ([str(nowhere), "q"], f"{nowhere}: no tokenizer"),
        ([str(model), "q", "--prm", str(nowhere)], f"{nowhere}: not an implicit PRM"),
        ([str(model), "q", "--prm", str(other)], f"the vocabulary of {other}"),
        ([str(model), "q", "--prm", str(prm), "--reference", str(other)], f"the vocabulary of {prm}"),
        ([str(model), "q", "--reference", str(model)], "give --prm as well"),
        ([str(model), "q", "--beside.reference", str(model)], "give --beside.prm as well"),
        ([str(model), "q", "--beside.prm", str(prm)], "give --prm or --beside.model as well"),
        ([str(model), "q", "--beside.model", str(nowhere)], f"{nowhere}: no tokenizer"),
        ([str(model), "q", "--prm", str(prm), "--beside.prm", str(other)], f"the vocabulary of {other}"),
        ([str(model), "q", "--serve"], "leave the question and --page out"),
        ([str(model), "--serve", "--page", "p.html"], "leave the question and --page out"),
        ([str(model), "q", "--page", str(tmp_path)], f"page: {tmp_path} is a folder: name a file"),
        ([str(model), "q", "--device", "toaster"], "device=toaster"),
        ([], "model is not set"),
    ]
    for args, message in cases:
        assert main(["ask", *args]) == 2, args
        out, err = capsys.readouterr()
        assert out == "", args
        assert message in err, args
        assert "Traceback" not in err, args
