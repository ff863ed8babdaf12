"""`openprime report`: one page that needs nothing else and shows what it was given."""

import json
import re
from html import escape
from pathlib import Path

import pytest

from openprime.cli import main
from support.page_html import Page
from support.sampled_runs import sampled_run
from support.tiny_runs import rl

EVIL = "<script>alert('prompt')</script><img src=http://example.org/x.png onerror=alert(1)>"


def fake_run(folder: Path, evaluated: bool = True) -> Path:
    """A run's records: three steps of eight rollouts, held-out accuracy at the start and the end."""
    folder.mkdir(parents=True)
    rows: list[dict] = [{"step": step, "rollout/rollouts": 8.0 * step} for step in range(4)]
    for row in rows[1:]:
        row |= {"rollout/accuracy": 0.3, "time/rollout": 0.5, "time/policy": 0.25, "time/step": 0.75}
    if evaluated:
        rows[0]["eval/greedy"], rows[3]["eval/greedy"] = 0.125, 0.875
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def fake_evaluation(folder: Path, prompt: str = EVIL, text: str = "+two four\n#### 4") -> Path:
    """An evaluation's results and responses: one with a PRM, one greedy alone, one of first errors."""
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
    tokens = [*re.findall(r"\n|[^\S\n]*\S+", text), ""]

    rewards = [0.25 - 0.125 * t for t in range(len(tokens))]
    response = {"text": text, "tokens": tokens, "rewards": rewards, "steps": [True, False]}
    judged = [response | {"outcome": 1.0, "reason": "right"}, response | {"outcome": 0.0, "reason": "wrong"}]
    chat = [{"role": "system", "content": "be <i>brief</i>"}, {"role": "user", "content": prompt}]
    line = json.dumps({"prompt": chat, "answer": "4", "responses": judged}, ensure_ascii=False)
    for name in results["benchmarks"]:
        (folder / name).mkdir(parents=True)
        (folder / name / "responses.jsonl").write_text(line + "\n", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def page(tmp_path: Path, *args: str) -> Page:
    """The page of some runs."""
    out = tmp_path / "made" / "page.html"
    assert main(["report", *args, "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]  # one file and nothing beside it
    return Page(out.read_text(encoding="utf-8"))


def figure(made: Page, title: str) -> str:
    """The data of a figure."""
    found = [attributes.get("data-figure") or "" for _, attributes in made.tags]
    (data,) = [json.loads(data) for data in found if title in data]
    return json.dumps(data, separators=(",", ":"))


def drawn(made: Page, title: str) -> list[str]:
    """The names of a figure's lines or bars."""
    return [json.loads(name) for name in re.findall(r'"name":("(?:[^"\\]|\\.)*")', figure(made, title))]


@pytest.fixture
def whole(tmp_path: Path) -> Page:
    """A page with everything on it."""
    runs = [str(fake_run(tmp_path / "runs" / name)) for name in ("prime", "outcome-only")]
    evaluation = str(fake_evaluation(tmp_path / "best-of-n"))
    return page(tmp_path, "--runs", *runs, "--evaluation", evaluation, "--title", "Runs & <trials>")


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(fake_run(tmp_path / "r"))


def test_report__nothing_is_fetched(whole: Page):
    for tag, attributes in whole.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        for name in ("src", "srcset", "data", "poster", "action"):
            assert name not in attributes, (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")  # a part of the page
        assert not [name for name in attributes if name.startswith("on")]
        assert "url(" not in (attributes.get("style") or "")


def test_report__what_is_written_is_shown_and_not_run(whole: Page):
    """A prompt, a title and a model's name are text, whatever they look like."""
    for text in (EVIL, "be <i>brief</i>", "models/<b>evil</b>", "a [PRM]", "a <i>", "Runs & <trials>"):
        assert text in whole.text
    assert not {tag for tag, _ in whole.tags} & {"trials", "img", "i"}
    assert len(whole.scripts) == 2  # plotly, and what draws
    assert not any("alert('prompt')" in script for script in whole.scripts)


def test_report__names_runs_with_their_numbers(whole: Page):
    assert drawn(whole, "Held-out accuracy, greedy") == ["prime", "outcome-only"]
    for name in ("prime", "outcome-only"):
        assert name in whole.text
        assert f'"{name}"' in figure(whole, "Seconds a step")
    for number in ("0.125 → 0.875", "24", "0.75"):  # accuracy, rollouts, seconds a step
        assert number in whole.text


def test_report__shows_the_evaluation(whole: Page):
    for name in ("random", "majority vote", "PRM", "oracle", "items that could not be judged"):
        assert name in whole.text
    assert "0.40-0.60" in whole.text
    assert "0.625" in whole.text  # the area under the curve
    assert "0.750" in whole.text  # greedy alone
    assert "3-2" in whole.text  # three items and two that were left out
    assert "0.125--" in whole.text  # first errors: no right solution, so no share of them and no F1
    assert "None" not in whole.text
    assert "nan" not in whole.text


def test_report__tokens_have_the_colour_of_their_reward_and_wrong_steps_a_wavy_line(whole: Page):
    spans = [a for tag, a in whole.tags if tag == "span" and (a.get("class") or "").startswith("tok")]
    rewards = [float(a["title"] or "") for a in spans]
    assert rewards == [0.25, 0.125, 0.0, -0.125, -0.25, -0.375] * 2
    for attributes, reward in zip(spans, rewards, strict=True):
        mix = 0.75 * abs(reward) / 0.375  # of blue or red over the page
        full = "37,99,235" if reward > 0 else "220,38,38"
        assert attributes["style"] == f"background:rgba({full},{mix:.3f})"
    slips = ["slip" in (a["class"] or "") for a in spans]
    assert slips == [False, False, False, True, True, False] * 2  # the second line, not the end
    assert whole.text.count("∎") == 2  # which has a reward without a text


def test_report__wavy_line_is_explained_where_there_is_one(tmp_path: Path, run: str):
    evaluation = fake_evaluation(tmp_path / "e")
    path = evaluation / "clock" / "responses.jsonl"
    assert "A wavy line" in page(tmp_path, "--runs", run, "--evaluation", str(evaluation)).text
    path.write_text(path.read_text().replace('"steps"', '"of another kind"'))
    assert "A wavy line" not in page(tmp_path, "--runs", run, "--evaluation", str(evaluation)).text


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0c", "</pre></div>", "\U0001f600"])
def test_report__any_character_may_stand_in_a_prompt_or_a_response(tmp_path: Path, run: str, odd: str):
    evaluation = fake_evaluation(tmp_path / "e", f"two{odd} & two?", f"+two{odd} four\n#### 4")
    made = page(tmp_path, "--runs", run, "--evaluation", str(evaluation))
    assert f"two{odd} & two?" in made.text
    assert f"+two{odd}" in made.text


@pytest.mark.parametrize("name", ["<script>x", "a & b", 'quote"quote', "<\u2044script><b>"])
def test_report__run_name_is_text(tmp_path: Path, name: str):
    """In figures too: plotly takes <b> and &amp; for markup, so both are escaped."""
    made = page(tmp_path, "--runs", str(fake_run(tmp_path / name)))
    assert name in made.text
    assert "b" not in [tag for tag, _ in made.tags]
    assert drawn(made, "Held-out accuracy, greedy") == [escape(name, quote=False)]


def test_report__every_run_is_drawn(tmp_path: Path):
    """More runs than colours; one without an evaluation, two of the same folder name."""
    folders = [f"run-{i}" for i in range(8)] + ["seed0/rl", "seed1/rl"]
    runs = [str(fake_run(tmp_path / name)) for name in folders]
    made = page(tmp_path, "--runs", *runs, str(fake_run(tmp_path / "blind", evaluated=False)))
    assert made.text.count("0.125 → 0.875") == 10
    names = [*folders[:8], *runs[8:], "blind"]
    assert drawn(made, "Accuracy of rollouts") == names
    assert drawn(made, "Held-out accuracy, greedy") == names[:-1]


def test_report__real_runs_and_a_real_evaluation(model: Path, tmp_path: Path):
    one = rl(model, tmp_path / "prime")
    two = rl(model, tmp_path / "outcome-only", "--algorithm", "outcome", "--eval.samples", "2")
    out = tmp_path / "evaluation"
    (tmp_path / "mine.yaml").write_text(
        'data: {source: "task:clock", horizon: 2, limit: 6}\nmax_response_tokens: 16'
    )
    models = [str(model), "--prm", str(one / "prm"), "--samples", "4", "--out", str(out)]
    assert main(["evaluate", *models, "--benchmark", str(tmp_path / "mine.yaml")]) == 0
    made = page(tmp_path, "--runs", str(one), str(two), str(model.parent), "--evaluation", str(out))
    assert "Best of N: mine" in made.text
    assert drawn(made, "Held-out accuracy, greedy") == ["prime", "outcome-only", "sft"]
    for title in ("Loss on demonstrations", "Held-out accuracy, sampled", "Seconds a step"):
        figure(made, title)


def test_report__every_way_to_choose_is_drawn(tmp_path: Path, run: str):
    """Twelve of them, more than colours; those of one PRM but its sum at first only in the legend."""
    evaluation = fake_evaluation(tmp_path / "e")
    results = json.loads((evaluation / "results.json").read_text())
    curve = results["benchmarks"]["clock"]["best_of_n"]["PRM"]
    names = ["random", "majority vote", *(f"PRM, way {i}" for i in range(8)), "PRM-weighted vote", "oracle"]
    results["benchmarks"]["clock"]["best_of_n"] = dict.fromkeys(names, curve)
    (evaluation / "results.json").write_text(json.dumps(results))
    made = page(tmp_path, "--runs", run, "--evaluation", str(evaluation))
    assert drawn(made, "Accuracy of the chosen response") == names
    assert figure(made, "Accuracy of the chosen response").count("legendonly") == 8


@pytest.mark.parametrize("runs", [1, 2])
def test_report__axis_is_what_is_counted(tmp_path: Path, run: str, runs: int):
    """Fine-tuning has no rollouts."""
    (tmp_path / "tuned").mkdir()
    rows = [{"step": step, "sft/loss": 1.0 / step, "eval/greedy": 0.5} for step in (1, 2)]
    (tmp_path / "tuned" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = page(tmp_path, "--runs", *[str(tmp_path / "tuned"), run][:runs])
    axis = "step" if runs == 1 else "rollouts"
    assert f'"text":"{axis}"' in figure(made, "Held-out accuracy, greedy")


@pytest.mark.parametrize("missing", ["metrics.jsonl", "results.json", "clock/responses.jsonl", "benchmarks"])
def test_report__folder_of_the_wrong_kind_is_named(
    tmp_path: Path, run: str, capsys: pytest.CaptureFixture, missing: str
):
    evaluation = fake_evaluation(tmp_path / "e")
    folder = Path(run) if missing == "metrics.jsonl" else evaluation
    if missing == "benchmarks":
        (folder / "results.json").write_text('{"accuracy": 1}')
    else:
        (folder / missing).unlink()
    args = ["--runs", run, "--evaluation", str(evaluation), "--out", str(tmp_path / "page.html")]
    assert main(["report", *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"openprime: {folder}: not a")
    assert missing in err
    assert not (tmp_path / "page.html").exists()


def test_report__seeds_are_one_line_with_a_band_and_differences_are_listed(tmp_path: Path):
    made = page(
        tmp_path,
        *(str(sampled_run(tmp_path / f"prime-seed{seed}", seed=seed)) for seed in range(3)),
        str(sampled_run(tmp_path / "outcome", algorithm="outcome")),
    )
    assert drawn(made, "Accuracy of rollouts") == ["prime (3 seeds)", "outcome"]
    assert figure(made, "Accuracy of rollouts").count('"fill":"toself"') == 1
    assert "algorithm-outcome" in made.text  # a row of the table of settings
    assert "No samples" not in made.text


def test_report__alarms_say_what_to_do(tmp_path: Path):
    run = sampled_run(tmp_path / "r")
    assert "None has fired." not in page(tmp_path, str(run)).text  # nobody has looked
    alarm = {
        "step": 3,
        "alarm": "filter-starving",
        "value": 0.125,
        "says": "12% <pass>",
        "do": "take easier prompts",
    }
    (run / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    made = page(tmp_path, str(run))
    for text in ("filter-starving", "0.125", "12% <pass>", "take easier prompts"):
        assert text in made.text
    (run / "alarms.jsonl").unlink()
    (run / "metrics.jsonl").write_text('{"step": 1, "alarm/filter-starving": 0.0}\n')
    assert "None has fired." in page(tmp_path, str(run)).text


def test_report__phases_keep_their_colour(tmp_path: Path):
    """Where one of them has no such number too."""
    run = sampled_run(tmp_path / "r")
    row = {"step": 4, "time/rollout": 1.0, "time/prm": 2.0, "speed/prm_tflops": 0.5, "time/step": 3.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    made = page(tmp_path, str(run))
    colours = [re.findall(r'"color":"(#......)"', figure(made, title)) for title in ("Seconds", "Model FLOP")]
    assert (len(colours[0]), len(colours[1])) == (2, 1)
    assert colours[0][1] == colours[1][0]


def test_report__two_hundred_responses_stay_below_ten_megabytes(tmp_path: Path):
    """Of 800 tokens each: what does not fit is left out, and said."""
    run = sampled_run(tmp_path / "r", steps=1)
    rows = (run / "samples.jsonl").read_text().splitlines()
    longer = json.loads(rows[0])
    for key in ("tokens", "rewards", "returns", "advantages", "logprobs"):
        longer[key] = longer[key] * 200
    (run / "samples.jsonl").write_text(
        "".join(json.dumps(longer | {"step": step}) + "\n" for step in range(50) for _ in range(8))
    )
    out = tmp_path / "made.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert out.stat().st_size < 10e6
    assert "groups are left out, evenly" in out.read_text(encoding="utf-8")
