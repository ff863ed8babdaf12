"""The command line: what it says, and the status it leaves with."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from openprime import __version__, cli
from openprime.commands import report as report_stage

HEAVY = ("torch", "transformers", "datasets", "numpy", "plotly")


def run(*args: str, **options) -> subprocess.CompletedProcess:
    """A program in a process of its own."""
    return subprocess.run(args, capture_output=True, text=True, timeout=120, check=False, **options)


def raising(error: BaseException):
    """A stage that fails."""

    def stage(config: object) -> None:
        raise error

    return stage


# Without torch


def test_help_and_bad_input_need_no_torch():
    """One process for all of them: each must leave its status without importing anything heavy."""
    program = f"""
import contextlib, io, json, sys
from openprime.cli import COMMANDS, main
def status(*argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(argv))
        except SystemExit as stop:
            code = stop.code
    return [code, out.getvalue(), err.getvalue()]
said = {{"help": status("--help"), "none": status(), "version": status("--version")}}
for stage in COMMANDS:
    said[stage] = status(stage, "--help")
said["flag"] = status("rl", "--steps", "0")
said["file"] = status("rl", "nowhere.yaml")
said["command"] = status("rll")
print(json.dumps([said, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    said, heavy = json.loads(done.stdout)
    assert heavy == []
    for name in ("help", "none", "version", *cli.COMMANDS):
        assert said[name][0] == 0
        assert said[name][2] == ""
    assert said["none"] == said["help"]
    assert said["version"][1] == f"openprime {__version__}\n"
    for stage in cli.COMMANDS:
        assert stage in said["help"][1]
        assert f"openprime {stage}" in said[stage][1]
    for setting in ("--prm.beta", "--advantage.process-weight", "--rollout.prompts", "--resume"):
        assert setting in said["rl"][1]
    assert "Reward a nat of log-ratio" in said["rl"][1]  # the docstrings are the help
    for name in ("flag", "file", "command"):
        assert said[name][0] == 2
        assert said[name][1] == ""
        assert "Traceback" not in said[name][2]


def test_module_and_program_are_the_same_command():
    done = run(sys.executable, "-m", "openprime", "rll")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "openprime: no command 'rll'; did you mean rl?\n"


# What a user does wrong


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("evalute", "did you mean evaluate?"),
        ("reprot", "did you mean report?"),
        ("zzzzz", "there are: demo, sft, rl"),
    ],
)
def test_an_unknown_command_is_told_the_nearest(capsys: pytest.CaptureFixture, command: str, hint: str):
    assert cli.main([command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"openprime: no command {command!r}; {hint}")


def test_bad_input_is_status_2_and_one_message_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown.yaml").write_text("prm: {lrr: 1}")
    (tmp_path / "broken.yaml").write_text("a: [")
    source = ["--data.source", "task:clock", "--out", "o"]
    model = ["--model", str(tmp_path / "nowhere")]
    cases: list[tuple[list[str], str]] = [
        (["rl", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["rl", "unknown.yaml"], "unknown.yaml: unknown key prm.lrr; did you mean prm.lr?"),
        (["rl", "broken.yaml"], "broken.yaml: not valid YAML"),
        (["rl", *source], "model is not set: put it into the YAML file or give --model"),
        (["sft", *source], "model is not set"),
        (["evaluate", "--benchmark", "clock", "--out", "o"], "model is not set"),
        (["rl", *model, "--out", "o"], "data.source is not set"),
        (["rl", *model, "--data.source", "task:clock"], "out is not set"),
        (["rl", *model, *source], str(tmp_path / "nowhere")),
        (["rl", *model, *source, "--data.verifier", "maths"], "no verifier 'maths'"),
        (["rl", *model, *source, "--data.verifier", "nowhere:score"], "no module nowhere"),
        (["rl", *model, *source, "--filter.low", "0.9"], "filter.low=0.9 is above filter.high=0.8"),
        (["evaluate", *model, "--benchmark", "clock", "--out", "o"], str(tmp_path / "nowhere")),
        (["report", "--out", "page.html"], "runs is not set"),
        (["report", "--runs", "nowhere", "--out", "page.html"], "nowhere: not a run's folder"),
    ]
    for args, message in cases:
        assert cli.main(args) == 2, args
        out, err = capsys.readouterr()
        assert out == "", args
        assert err.startswith("openprime: "), args
        assert message in err, args
        assert "Traceback" not in err, args
    assert not (tmp_path / "o").exists()  # nothing is begun that cannot go on
    assert not (tmp_path / "page.html").exists()


def test_an_unknown_device_is_bad_input(capsys: pytest.CaptureFixture):
    args = ["--model", "m", "--data.source", "task:clock", "--out", "o", "--device", "toaster"]
    try:
        status = cli.main(["rl", *args])
    except SystemExit as stop:  # where the schema refuses it
        status = stop.code
    assert status == 2
    err = capsys.readouterr().err
    assert "device" in err
    assert "cuda" in err
    assert "Traceback" not in err


# What goes wrong inside


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("a b c"), 2), (OSError("a b c"), 1), (RuntimeError("a b c"), 1)]
)
def test_errors_from_inside_libraries_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: Exception, status: int
):
    """A message of ours speaks for itself; a library's needs the place that it came from."""
    monkeypatch.setattr(report_stage, "report", raising(error))  # raised in this file, so not by the package
    assert cli.main(["report", "--runs", "r", "--out", "page.html"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert "test_cli.py" in err
    assert err.endswith("openprime: a b c\n")


def test_errors_of_builtins_that_our_code_calls_keep_their_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Python's and torch's own functions leave no frame, but what they say is no message to a user."""
    (tmp_path / "metrics.jsonl").touch()
    monkeypatch.setattr(report_stage, "escape", int)  # report.py calls it with the title
    assert cli.main(["report", "--runs", str(tmp_path), "--out", "page.html"]) != 0
    err = capsys.readouterr().err
    assert "invalid literal for int()" in err
    assert "Traceback" in err


def test_a_users_function_that_fails_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (tmp_path / "failing_on_import.py").write_text("raise ValueError('from my own file')\n")
    monkeypatch.chdir(tmp_path)
    args = ["--model", "m", "--data.source", "task:clock", "--out", "o"]
    assert cli.main(["rl", *args, "--data.verifier", "failing_on_import:score"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "failing_on_import.py" in err
    assert "openprime: the verifier failing_on_import:score does not load:" in err
    assert err.endswith("ValueError: from my own file\n\n")


def test_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(report_stage, "report", raising(KeyboardInterrupt()))
    assert cli.main(["report", "--runs", "r", "--out", "page.html"]) == 130
    assert capsys.readouterr().err == "openprime: interrupted\n"


def test_an_error_may_bring_its_own_status(monkeypatch: pytest.MonkeyPatch):
    from openprime.run.console import Interrupted

    for number in (signal.SIGTERM, signal.SIGINT):
        monkeypatch.setattr(report_stage, "report", raising(Interrupted(number)))
        assert cli.main(["report", "--runs", "r", "--out", "page.html"]) == 128 + number
