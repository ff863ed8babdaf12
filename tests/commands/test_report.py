"""`openprime report`: one page that needs nothing else and shows what it was given."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from openprime.cli import main
from support.tiny_runs import SFT, rl

EVIL = "<script>alert('prompt')</script><img src=http://example.org/x.png onerror=alert(1)>"


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside == "script" else self.texts).append(data)

    @property
    def text(self) -> str:
        """All text."""
        return "".join(self.texts)


def row(step: int, **numbers: float) -> dict:
    """Metrics of a step."""
    return {"step": step, "rollout/rollouts": 8.0 * step} | {
        k.replace("__", "/"): v for k, v in numbers.items()
    }


def fake_run(folder: Path, evaluated: bool = True) -> Path:
    """A run's records."""
    folder.mkdir(parents=True)
    rows = [row(0, **({"eval__greedy": 0.125} if evaluated else {}))]
    for step in (1, 2, 3):
        numbers = {"rollout__accuracy": 0.3, "time__rollout": 0.5, "time__policy": 0.25, "time__step": 0.75}
        rows.append(row(step, **numbers, **({"eval__greedy": 0.875} if evaluated and step == 3 else {})))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def fake_evaluation(folder: Path, prompt: object = EVIL, text: str = "+two four\n#### 4") -> Path:
    """An evaluation's results and responses: one with a PRM, one greedy alone, one of first errors."""
    (folder / "clock").mkdir(parents=True)
    curve = {n: [0.5, 0.4, 0.6] for n in ("1", "2", "4")}
    table = dict.fromkeys(("random", "majority vote", "PRM", "PRM, last step", "oracle"), curve)
    found = {"error_accuracy": 0.125, "correct_accuracy": None, "f1": None}
    results = {
        "model": "models/<b>evil</b>",
        "prm": "a [PRM]",
        "benchmarks": {
            "clock": {
                "items": 3,
                "left_out": 2,
                "samples": 4,
                "truncated": 0.25,
                "greedy": [0.375, 0.25, 0.5],
                "avg@4": [0.5, 0.4, 0.6],
                "pass@k": curve,
                "maj@k": curve,
                "best_of_n": table,
                "step_auc": 0.625,
            },
            "a <i>": {"items": 7, "left_out": 0, "samples": 0, "greedy": [0.75, 0.5, 1.0]},
            "processbench": {"items": 9, "first_error": {"threshold 0": found}, "lowest_step_last": None},
        },
    }
    (folder / "results.json").write_text(json.dumps(results))
    tokens = [*re.findall(r"\n|[^\S\n]*\S+", text), ""]

    def response(outcome: float, reason: str) -> dict:
        return {
            "text": text,
            "outcome": outcome,
            "reason": reason,
            "truncated": False,
            "tokens": tokens,
            "rewards": [0.25 - 0.125 * t for t in range(len(tokens))],
            "steps": [True, False],
        }

    line = {"prompt": prompt, "answer": "4", "responses": [response(1.0, "right"), response(0.0, "wrong")]}
    text = json.dumps(line, ensure_ascii=False) + "\n"
    for name in results["benchmarks"]:
        (folder / name).mkdir(exist_ok=True, parents=True)
        (folder / name / "responses.jsonl").write_text(text, encoding="utf-8")
    return folder


def page(tmp_path: Path, *args: str) -> Page:
    """The page of some runs."""
    out = tmp_path / "made" / "page.html"
    assert main(["report", "--out", str(out), *args]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]  # one file and nothing beside it
    return Page(out.read_text(encoding="utf-8"))


def drawn(made: Page) -> str:
    """Everything said or drawn, the plotting library apart."""
    return made.text + "".join(script for script in made.scripts if len(script) < 200_000)


@pytest.fixture
def whole(tmp_path: Path) -> Page:
    """A page with everything on it."""
    runs = [str(fake_run(tmp_path / "runs" / name)) for name in ("prime", "outcome-only")]
    evaluation = str(fake_evaluation(tmp_path / "best-of-n"))
    return page(tmp_path, "--runs", *runs, "--evaluation", evaluation, "--title", "Runs & <trials>")


def test_nothing_is_fetched(whole: Page):
    for tag, attributes in whole.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert name not in attributes, (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert "url(" not in (attributes.get("style") or "")


def test_what_is_written_is_shown_and_not_run(whole: Page):
    """A prompt, a title and a model's name are text, whatever they look like."""
    assert EVIL in whole.text
    assert "models/<b>evil</b>" in whole.text
    assert "a [PRM]" in whole.text
    assert "a <i>" in whole.text
    assert "Runs & <trials>" in whole.text
    assert not [tag for tag, _ in whole.tags if tag in ("trials", "img", "i")]
    assert not any("alert('prompt')" in script for script in whole.scripts)


def test_runs_are_named_with_their_numbers(whole: Page):
    for name in ("prime", "outcome-only"):
        assert name in whole.text
        assert f'"{name}"' in drawn(whole)  # in the figures as well
    assert "0.125 → 0.875" in whole.text
    assert "24" in whole.text  # rollouts
    assert "0.75" in whole.text  # seconds a step


def test_the_evaluation_is_shown(whole: Page):
    for name in ("random", "majority vote", "PRM", "oracle"):
        assert name in whole.text
    assert "0.40-0.60" in whole.text
    assert "0.625" in whole.text  # the area under the curve
    assert "0.750" in whole.text  # greedy alone
    assert "3-2" in whole.text  # three items and two that were left out
    assert "items that could not be judged" in whole.text
    assert "0.125" in whole.text  # first errors


def test_what_cannot_be_told_is_a_dash(whole: Page):
    cells = "".join(whole.texts)
    assert "0.125--" in cells  # no right solution, so no share of them and no F1
    assert "None" not in cells
    assert "nan" not in cells


def test_tokens_have_the_colour_of_their_reward(whole: Page):
    spans = [a for tag, a in whole.tags if tag == "span" and (a.get("class") or "").startswith("tok")]
    assert len(spans) == 2 * 6
    titles = [float(a["title"] or "") for a in spans]
    assert titles == [0.25, 0.125, 0.0, -0.125, -0.25, -0.375] * 2
    for attributes, reward in zip(spans, titles, strict=True):
        style = attributes["style"] or ""
        found = re.search(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", style)
        assert found, style
        red, _, blue, alpha = (float(part) for part in found.groups())
        assert alpha == pytest.approx(0.75 * abs(reward) / 0.375, abs=1e-3)
        if reward:
            assert (blue > red) == (reward > 0)


def test_a_wrong_step_is_marked(whole: Page):
    spans = [a for tag, a in whole.tags if tag == "span" and (a.get("class") or "").startswith("tok")]
    slips = ["slip" in (a["class"] or "") for a in spans]
    assert slips == [False, False, False, True, True, False] * 2  # the second line, not the end
    assert whole.text.count("∎") == 2  # which has a reward without a text


def test_the_wavy_line_is_explained_where_there_is_one(tmp_path: Path):
    evaluation = fake_evaluation(tmp_path / "e")
    path = evaluation / "clock" / "responses.jsonl"
    line = json.loads(path.read_text())
    for response in line["responses"]:
        del response["steps"]
    args = ["--runs", str(fake_run(tmp_path / "r")), "--evaluation", str(evaluation)]
    assert "A wavy line" in page(tmp_path, *args).text
    path.write_text(json.dumps(line))
    assert "A wavy line" not in page(tmp_path, *args).text


def test_chat_prompts_are_shown(tmp_path: Path):
    chat = [{"role": "system", "content": "be <i>brief</i>"}, {"role": "user", "content": "two & two?"}]
    evaluation = str(fake_evaluation(tmp_path / "e", prompt=chat))
    made = page(tmp_path, "--runs", str(fake_run(tmp_path / "r")), "--evaluation", evaluation)
    assert "be <i>brief</i>" in made.text
    assert "two & two?" in made.text


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0c", "</pre></div>", "\U0001f600"])
def test_any_character_may_stand_in_a_response(tmp_path: Path, odd: str):
    evaluation = str(fake_evaluation(tmp_path / "e", text=f"+two{odd} four\n#### 4"))
    made = page(tmp_path, "--runs", str(fake_run(tmp_path / "r")), "--evaluation", evaluation)
    assert f"+two{odd}" in made.text


@pytest.mark.parametrize("name", ["<script>x", "a & b", 'quote"quote', "</script><b>"])
def test_a_runs_name_is_text(tmp_path: Path, name: str):
    if "/" in name:
        name = name.replace("/", "\u2044")
    made = page(tmp_path, "--runs", str(fake_run(tmp_path / name)))
    assert name in made.text
    assert "b" not in [tag for tag, _ in made.tags]


def test_every_run_is_drawn(tmp_path: Path):
    """More runs than colours."""
    names = [f"run-{i}" for i in range(9)]
    made = page(tmp_path, "--runs", *[str(fake_run(tmp_path / name)) for name in names])
    figure = next(script for script in made.scripts if "Held-out accuracy, greedy" in script)
    for name in names:
        assert name in made.text
        assert f'"name":"{name}"' in figure.replace('": "', '":"')


def test_runs_of_the_same_folder_name_stay_apart(tmp_path: Path):
    runs = [fake_run(tmp_path / seed / "rl") for seed in ("seed0", "seed1")]
    made = page(tmp_path, "--runs", *map(str, runs))
    assert made.text.count("0.125 → 0.875") == 2


def test_a_run_without_an_evaluation_is_named_too(tmp_path: Path):
    made = page(tmp_path, "--runs", str(fake_run(tmp_path / "blind", evaluated=False)))
    assert "blind" in drawn(made)


def test_fine_tuning_runs_can_be_shown(tmp_path: Path):
    out = tmp_path / "tuned"
    assert main([*SFT, "--epochs", "0.2", "--out", str(out)]) == 0
    made = page(tmp_path, "--runs", str(out))
    assert "tuned" in drawn(made)


def test_real_runs_and_a_real_evaluation(model: Path, tmp_path: Path):
    one = rl(model, tmp_path / "prime")
    two = rl(model, tmp_path / "outcome-only", "--algorithm", "outcome", "--eval.samples", "2")
    out = tmp_path / "evaluation"
    (tmp_path / "mine.yaml").write_text(
        'data: {source: "task:clock", horizon: 2, limit: 6}\nmax_response_tokens: 16'
    )
    models = [str(model), "--prm", str(one / "prm"), "--samples", "4", "--out", str(out)]
    assert main(["evaluate", *models, "--benchmark", str(tmp_path / "mine.yaml")]) == 0
    made = page(tmp_path, "--runs", str(one), str(two), "--evaluation", str(out))
    for word in ("prime", "outcome-only", "Best of N: mine", "Held-out accuracy, greedy", "Seconds a step"):
        assert word in drawn(made)


def test_every_way_to_choose_is_drawn(tmp_path: Path):
    """Twelve of them, more than colours; those of one PRM but its sum at first only in the legend."""
    evaluation = fake_evaluation(tmp_path / "e")
    results = json.loads((evaluation / "results.json").read_text())
    curve = results["benchmarks"]["clock"]["best_of_n"]["PRM"]
    names = ["random", "majority vote", *(f"PRM, way {i}" for i in range(8)), "PRM-weighted vote", "oracle"]
    results["benchmarks"]["clock"]["best_of_n"] = dict.fromkeys(names, curve)
    (evaluation / "results.json").write_text(json.dumps(results))
    made = page(tmp_path, "--runs", str(fake_run(tmp_path / "r")), "--evaluation", str(evaluation))
    figure = next(script for script in made.scripts if "Accuracy of the chosen response" in script)
    for name in names:
        assert f'"name":"{name}"' in figure.replace('": "', '":"')
    assert figure.count("legendonly") == 8


def test_figures_of_other_commands_are_no_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "results.json").write_text('{"accuracy": 1}')
    args = ["--runs", str(fake_run(tmp_path / "r")), "--evaluation", str(tmp_path / "e")]
    assert main(["report", *args, "--out", str(tmp_path / "page.html")]) == 2
    assert "not an evaluation's folder: its results.json is of another command" in capsys.readouterr().err


@pytest.mark.parametrize("runs", [1, 2])
def test_the_axis_is_what_is_counted(tmp_path: Path, runs: int):
    """Fine-tuning has no rollouts."""
    (tmp_path / "tuned").mkdir()
    rows = [{"step": step, "sft/loss": 1.0 / step, "eval/greedy": 0.5} for step in (1, 2)]
    (tmp_path / "tuned" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    given = [str(tmp_path / "tuned"), str(fake_run(tmp_path / "prime"))][:runs]
    made = page(tmp_path, "--runs", *given)
    figure = next(script for script in made.scripts if "Held-out accuracy, greedy" in script)
    assert f'"text":"{"step" if runs == 1 else "rollouts"}"' in figure.replace('": "', '":"')


@pytest.mark.parametrize("missing", ["metrics.jsonl", "results.json", "responses.jsonl"])
def test_a_folder_of_the_wrong_kind_is_named(tmp_path: Path, capsys: pytest.CaptureFixture, missing: str):
    run, evaluation = fake_run(tmp_path / "r"), fake_evaluation(tmp_path / "e")
    folder = run if missing == "metrics.jsonl" else evaluation
    (folder / ("clock" if missing == "responses.jsonl" else "") / missing).unlink()
    args = ["--runs", str(run), "--evaluation", str(evaluation), "--out", str(tmp_path / "page.html")]
    assert main(["report", *args]) == 2
    err = capsys.readouterr().err
    assert str(folder) in err
    assert missing in err
    assert "Traceback" not in err
    assert not (tmp_path / "page.html").exists()
