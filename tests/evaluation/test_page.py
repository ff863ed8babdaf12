"""Pages hold texts of models, data and folders: in a browser none of them runs, and the figures are drawn."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from openprime.cli import main
from openprime.evaluation import page
from support.page_html import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RAN = "document.title='RAN'"
EVIL = [
    f"<script>{RAN}</script>",
    f"</script><script>{RAN}</script>",
    f'<img src=HOST/a onerror="{RAN}">',
    f"\"'><img src=HOST/b onerror={RAN}>",
    f"<svg onload={RAN}><animate onbegin={RAN} attributeName=x dur=1s>",
    f"</td></table></pre></style></title><body onpageshow={RAN}>",
    f'<iframe srcdoc="<script>parent.{RAN}</script>"></iframe><iframe src="javascript:parent.{RAN}"></iframe>',
    f"<details open ontoggle={RAN}><input autofocus onfocus={RAN}>",
    f"<video><source onerror={RAN}></video><object data=HOST/c></object><embed src=HOST/d>",
    "<style>@import url(HOST/e);body{background:url(HOST/f)}</style><link rel=stylesheet href=HOST/g>",
    f"&lt;script&gt;{RAN}&lt;/script&gt; <!-- <script>{RAN}</script> --!> <![CDATA[",
    f"</div><div data-figure='[]' onclick={RAN}>\\u003cscript>\\x3cimg src=x onerror={RAN}>",
    f"<a href=javascript:{RAN} id=x>x</a><form action=HOST/h><base href=HOST/i/>",
]


class Host:
    """A server that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def host() -> Iterator[Host]:
    found = Host()
    yield found
    found.server.shutdown()
    found.server.server_close()


def seen(path: Path) -> str:
    """The page's document as the browser has it after some seconds."""
    assert CHROMIUM
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={path.parent / 'profile'}",
    ]
    command += ["--virtual-time-budget=8000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(folder: Path, host: str) -> list[str]:
    """A run and an evaluation with every evil text in every place that a text or a number can have; the flags."""
    run, evaluation = folder / "runs" / EVIL[2].replace("/", "\u2044"), folder / "evaluation"
    run.mkdir(parents=True)
    evil = [text.replace("HOST", host) for text in EVIL]
    rows: list[dict] = []
    for step in range(4):
        row: dict = {"step": step, "rollout/rollouts": 8 * step, "eval/greedy": step / 4, "time/step": 1.0}
        row |= {"rollout/accuracy": 0.5, "time/rollout": 0.5, "sft/loss": 0.1}
        rows.append(row | {f"eval/avg@{text}": 0.5 for text in evil})
    rows += [dict.fromkeys(rows[0], text) for text in evil]  # in the place of numbers
    rows += [{"step": text, "rollout/rollouts": text, "rollout/entropy": 1.0} for text in evil]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (run / "config.yaml").write_text(yaml.safe_dump({"seed": 0, **dict.fromkeys(evil, "".join(evil))}))
    alarm = [dict.fromkeys(("step", "alarm", "value", "says", "do"), text) for text in evil]
    (run / "alarms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alarm), encoding="utf-8")
    sampled = {"step": 1, "outcome": 1.0, "rewards": [0.5, -0.25]}
    samples = [
        sampled
        | {"prompt": [{"role": text, "content": text}], "answer": text, "reason": text, "tokens": [text, ""]}
        for text in evil
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples), encoding="utf-8")
    curve = {n: [0.5, 0.4, 0.6] for n in ("1", "2")}
    benchmarks = {}
    for i, text in enumerate(evil):
        name = f"{i} {text.replace('/', '∕')}"
        benchmarks[name] = {
            **{
                "items": text,
                "left_out": text,
                "samples": 2,
                "greedy": [0.5, 0.4, 0.6],
                "avg@2": [0.5, 0.4, 0.6],
            },
            **{"best_of_n": {"random": curve, "PRM": curve, text: curve}, "pass@k": curve, "maj@k": curve},
            "prm_ahead": {text: [0.1, 0.05, 0.15]},
        }
        response = {
            "text": text,
            "tokens": [text, ""],
            "rewards": [0.5, -0.25],
            "steps": [True],
            "reason": text,
        }
        responses = [response | {"outcome": 1.0}, response | {"outcome": 0.0}]
        line = {"prompt": [{"role": text, "content": text}], "answer": text, "responses": responses}
        (evaluation / name).mkdir(parents=True)
        (evaluation / name / "responses.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    results = {"model": "".join(evil), "prm": evil[0], "benchmarks": benchmarks}
    (evaluation / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return ["--runs", str(run), "--evaluation", str(evaluation), "--title", "".join(evil)]


@pytest.fixture
def report(tmp_path: Path, host: Host) -> Path:
    """A page about records that are full of evil."""
    out = tmp_path / "made" / "page.html"
    assert main(["report", "--out", str(out), *records(tmp_path, host.url)]) == 0
    return out


def test_write__every_text_of_the_records_is_text(report: Path, host: Host):
    made = Page(report.read_text(encoding="utf-8"))
    for text in EVIL:
        assert text.replace("HOST", host.url) in made.text
    known = "html meta title style body main h1 h2 p nav a section table tr th td br span div pre script"
    known += " button details summary label select option input ol"
    assert {tag for tag, _ in made.tags} == set(known.split())
    assert len(made.scripts) == 4  # plotly, the figures, the inspector, and its data
    names = {name for _, attributes in made.tags for name in attributes}
    known = "lang charset http-equiv content name class style title data-figure data-name data-run id href type role"
    known += " aria-label aria-labelledby aria-pressed scope tabindex value autocomplete"
    assert names == set(known.split())
    places = {attributes["id"] for _, attributes in made.tags if "id" in attributes}
    links = [attributes["href"] or "" for _, attributes in made.tags if "href" in attributes]
    assert {link[0] for link in links} == {"#"}
    assert {link[1:] for link in links} <= places


def test_write__the_policy_names_our_scripts_and_nothing_else(report: Path):
    made = Page(report.read_text(encoding="utf-8"))
    data, *scripts = made.scripts
    assert set(json.loads(data)) == {"runs", "left_out"}
    (rules,) = [a["content"] for tag, a in made.tags if tag == "meta" and "http-equiv" in a]
    sums = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{checksum}'" for checksum in sums)
    assert rules == (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    assert [tag for tag, _ in made.tags].index("meta") == 1  # before anything that it is about


def test_write__a_page_without_figures_runs_nothing_at_all(tmp_path: Path):
    page.write(tmp_path / "page.html", "t", [page.card("a", "b")])
    made = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "script-src 'none'" in str(made.tags)
    assert made.scripts == []


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_write__in_a_browser_nothing_of_the_records_runs_and_the_figures_are_drawn(report: Path, host: Host):
    document = seen(report)
    assert "<title>RAN" not in document
    assert f"<h1>{html.escape(EVIL[0], quote=False)}" in document
    assert document.count("data-key=") == len(EVIL)  # the groups of the inspector
    figures = document.count('data-figure="{')
    assert figures >= 5 + len(EVIL)
    assert document.count('class="main-svg"') >= 2 * figures
    assert host.asked == []


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("guarded", [True, False])
def test_policy__holds_where_a_text_is_not_escaped(tmp_path: Path, host: Host, guarded: bool):
    """As if it had been forgotten; without the policy the same page runs, and asks."""
    evil = [
        text.replace("HOST", host.url) for text in EVIL if "--!>" not in text and "data-figure" not in text
    ]
    path, line = tmp_path / "page.html", page.traces({"a": [(1, 2), (2, 3)]}, type="scatter")
    page.write(path, "t", [page.figure(line, "a figure", "x", "y"), *evil])
    if not guarded:
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub("<meta http-equiv.*?>", "", text, count=1), encoding="utf-8")
    document = seen(path)
    assert ("<title>RAN" in document) == (not guarded)
    assert bool(host.asked) == (not guarded)
    if guarded:
        assert "main-svg" in document


@pytest.mark.parametrize(
    "change",
    [
        {"benchmarks": []},
        {"benchmarks": {"x": None}},
        {"benchmarks": {"x": {"items": 1}}},
        {"benchmarks": {"x": {"items": 1, "left_out": 0, "greedy": ["a", "b", "c"]}}},
        {"benchmarks": {"x": {"items": 1, "left_out": 0, "greedy": [0.5]}}},
        {"benchmarks": {"x": {"items": 1, "left_out": 0, "samples": 1, "best_of_n": {}}}},
        {
            "benchmarks": {
                "x": {"items": 1, "left_out": 0, "samples": 1, "best_of_n": {"PRM": {"a": [1, 1, 1]}}}
            }
        },
        {"benchmarks": {"x": {"items": 1, "first_error": {"threshold 0": {}}}}},
        [1],
        "benchmarks",
        None,
    ],
    ids=repr,
)
def test_report__results_of_another_kind_are_named_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: object
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    results = {"model": "m", "prm": "p"} | change if isinstance(change, dict) else change
    (tmp_path / "results.json").write_text(json.dumps(results) if results else '{"benchmarks": ')
    args = [
        "--runs",
        str(tmp_path / "run"),
        "--evaluation",
        str(tmp_path),
        "--out",
        str(tmp_path / "page.html"),
    ]
    assert main(["report", *args]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"openprime: {tmp_path}: not ")
    assert said.count("\n") == 1
    assert not (tmp_path / "page.html").exists()
