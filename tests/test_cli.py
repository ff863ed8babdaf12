"""The command line: what it says, and the status it leaves with."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from openprime import __version__, cli
from openprime.config import find_config
from openprime.run.console import Interrupted
from openprime.types import RunError, StorageError, UserError
from support.tiny_runs import end, start, wait_for

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "numpy", "plotly")


def run(*args: str) -> subprocess.CompletedProcess:
    """A program in a process of its own."""
    return subprocess.run(args, capture_output=True, text=True, timeout=120, check=False)


# Without torch


def test_main__help_and_bad_input_need_no_torch():
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
said |= {{command: status(command, "--help") for command in COMMANDS}}
said["outcome"] = status("rl", "--algorithm", "outcome", "--engine.kind", "vllm", "--help")
said["flag"] = status("rl", "--steps", "0")
said["file"] = status("rl", "nowhere.yaml")
said["unset"] = status("rl")
said["command"] = status("rll")
print(json.dumps([said, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    said, heavy = json.loads(done.stdout)
    assert heavy == []
    for name in ("help", "none", "version", "outcome", *cli.COMMANDS):
        assert (said[name][0], said[name][2]) == (0, "")
    assert said["none"] == said["help"]
    assert said["version"][1] == f"openprime {__version__}\n"
    for command in cli.COMMANDS:
        assert command in said["help"][1]
        assert f"openprime {command}" in said[command][1]
    for words in (
        "--prm.beta",
        "--advantage.process-weight",
        "--rollout.prompts",
        "--resume",
        "Scale of the",
    ):
        assert words in said["rl"][1]  # the docstrings are the help
    assert "openprime rl --algorithm outcome --help" in " ".join(said["rl"][1].replace("│", " ").split())
    assert "--engine.gpu-memory" in said["outcome"][1]
    assert not any(
        words in said["outcome"][1] for words in ("--prm.", "--advantage.process", "--engine.urls")
    )
    for name in ("flag", "file", "unset", "command"):
        assert said[name][:2] == [2, ""]
        assert "Traceback" not in said[name][2]


def test_module_and_program_are_the_same_command():
    done = run(sys.executable, "-m", "openprime", "rll")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "openprime: no command 'rll'; did you mean rl?\n"


# Configurations and completion


def test_configs__every_file_with_what_it_says_of_itself(capsys: pytest.CaptureFixture):
    assert cli.main(["configs"]) == 0
    listed, _, last = capsys.readouterr().out.partition("\n\n")
    found = dict(line.split(maxsplit=1) for line in listed.splitlines())
    assert set(found) == {p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml")}
    assert found["configs/sft/tiny.yaml"].startswith("A model of 0.27 million parameters learns clock")
    assert found["configs/benchmarks/mbpp.yaml"].startswith(
        "Basic Python tasks, the sanitized part (Austin et al., "
    )
    for name, line in found.items():
        assert find_config(name).is_file()
        assert line.split()[0].strip(",:") in (ROOT / name).read_text()
    (folder,) = re.findall(r"The files are in (.+);", last)
    assert (Path(folder) / "sft" / "tiny.yaml").read_text() == (ROOT / "configs/sft/tiny.yaml").read_text()


ASKED = [
    (["r"], ["report", "rl"]),
    (["configs", ""], []),
    (["rl", "configs/rl/ti"], ["configs/rl/tiny-distill.yaml", "configs/rl/tiny.yaml"]),
    (["rl", "--filter.l"], ["--filter.low"]),
    (["rl", "configs/rl/tiny-distill.yaml", "--steps", "3", "--distill.prm-e"], ["--distill.prm-epochs"]),
    (["rl", "--distill."], []),  # another algorithm's
    (["rl", "--engine.kind", "server", "--engine.u"], ["--engine.urls"]),
    (["rl", "--algorithm", ""], ["distill", "outcome", "prime"]),
    (["rl", "--prm.lr", ""], []),  # a number: the shell proposes files
    (["ask", "a model", "a 'question'?", "--template", "eu"], ["eurus", "eurus-actions"]),
    (["rl", "nowhere.yaml", "--st"], []),
    (["rll", "--st"], []),
]


def test_completions__are_those_of_the_algorithm_engine_and_file_that_the_line_names():
    for words, proposed in ASKED:
        assert cli.completions(words) == proposed, words
    assert set(cli.completions([""])) == set(cli.COMMANDS)
    assert {"--benchmark", "--samples"} <= set(cli.completions(["evaluate", "-"]))
    assert "gsm8k" in cli.completions(["evaluate", "--benchmark", ""])


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_completion__in_a_shell():
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for words, proposed in (ASKED[4], ASKED[9], ASKED[11]):
        line = shlex.join(["openprime", *words])
        script = f"""
eval "$(openprime --completion)"
COMP_WORDS=({line}) COMP_CWORD={len(words)}
_openprime
printf '%s\n' "${{COMPREPLY[@]}}"
complete -p openprime"""
        done = subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PATH": path},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            *(proposed or [""]),
            "complete -o default -F _openprime openprime",
        ]


# What a user does wrong


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("evalute", "did you mean evaluate?"),
        ("reprot", "did you mean report?"),
        ("zzzzz", "there are: demo, sft, rl"),
    ],
)
def test_main__an_unknown_command_is_told_the_nearest(capsys: pytest.CaptureFixture, command: str, hint: str):
    assert cli.main([command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"openprime: no command {command!r}; {hint}")


def test_main__bad_input_is_status_2_and_one_message_on_stderr(
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
        (["evaluate", "--data.source", "x", "--out", "o"], "unknown key data.source; did you mean data?"),
        (["rl", *model, "--out", "o"], "data.source is not set"),
        (["rl", *model, "--data.source", "task:clock"], "out is not set"),
        (["rl", *model, *source], str(tmp_path / "nowhere")),
        (["rl", *model, *source, "--data.verifier", "maths"], "no verifier 'maths'"),
        (["rl", *model, *source, "--data.verifier", "nowhere:score"], "no module nowhere"),
        (["rl", *model, *source, "--filter.low", "0.9"], "filter.low=0.9 is above filter.high=0.8"),
        (
            ["rl", *model, *source, "--device", "toaster"],
            "device=toaster: no such device: set auto, cpu or cuda",
        ),
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


HELD_OUT = "--data.source task:clock --eval-data.source rows.jsonl --eval-data.verifier-field by --out o"


@pytest.mark.parametrize(
    "args",
    [
        "rl --model {model} --data.source rows.jsonl --data.verifier-field by --out o",
        f"rl --model {{model}} {HELD_OUT}",
        f"sft --model {{model}} {HELD_OUT}",
        "generate {model} --data.source rows.jsonl --data.verifier-field by --out o",
        "evaluate {model} --benchmark bench.yaml --out o",
        "evaluate --benchmark bench.yaml --responses answers.jsonl --out o",
        "verify rows.jsonl --out o.jsonl",
    ],
)
def test_main__no_row_has_code_imported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, args: str
):
    """Neither a module of the current folder nor one of the standard library."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text(
        "from pathlib import Path\nPath('sprung').touch()\ndef score(**_): return [1]\n"
    )
    (tmp_path / "bench.yaml").write_text("data: {source: rows.jsonl, verifier_field: by}")
    (tmp_path / "answers.jsonl").write_text('{"responses": ["4"]}\n' * 2)
    for name in ("trap:score", "os:system", "trap:score:", ":", "trap.x:score"):
        rows = [
            {"prompt": "q", "response": "4", "answer": "4", "by": n, "verifier": n} for n in ("math", name)
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert cli.main(args.format(model=model).split()) == 2
        said = capsys.readouterr().err
        assert f"{name!r} would be imported and run, which a row must not decide" in said
        assert "row 1, by" in said or "row 2, verifier" in said
        assert said.count("\n") == 1
    assert not (tmp_path / "sprung").exists()


# What goes wrong inside


@pytest.mark.parametrize(
    ("error", "status", "traced"),
    [
        (UserError("a b c"), 2, False),
        (RunError("a b c"), 1, False),
        (StorageError("a b c"), 1, False),
        (ValueError("a b c"), 2, True),
        (OSError("a b c"), 1, True),
        (RuntimeError("a b c"), 1, True),
        (PermissionError(13, "may not", "a b c"), 1, False),
        (MemoryError("a b c"), 1, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: a b c"), 1, False),
        (KeyboardInterrupt(), 130, False),
        (Interrupted(signal.SIGTERM), 128 + signal.SIGTERM, False),
        (Interrupted(signal.SIGINT), 128 + signal.SIGINT, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_main__an_error_s_status_and_a_traceback_where_it_is_not_one_of_ours(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: BaseException,
    status: int,
    traced: bool,
):
    """A message of ours speaks for itself; a library's needs the place that it came from."""

    def fail(config: object) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "openprime.failing", SimpleNamespace(fail=fail))
    monkeypatch.setitem(cli.COMMANDS, "report", ("ReportConfig", "failing:fail", ""))
    assert cli.main(["report", "--runs", "r", "--out", "page.html"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert ("Traceback" in err) == ("test_cli.py" in err) == traced
    if isinstance(error, KeyboardInterrupt):
        assert err == "openprime: interrupted\n"
    elif traced or isinstance(error, UserError | RunError | StorageError):
        assert err.endswith(f"openprime: {error}\n")
    else:
        assert err.startswith("openprime: ")
        assert str(error) in err
        assert err.count("\n") == 1


# Signals and other processes


SLOW = '{"response": "```python\\nimport time\\ntime.sleep(9)\\n```", "tests": {"inputs": ["1"], "outputs": ["2"]}}\n'
MANY = "--data.source task:clock --data.horizon 2 --data.limit 4000"
LONG = "--responses 16 --max-response-tokens 400"
WORK = {
    "plan": "plan {root}/configs/rl/tiny.yaml --architecture {model}",
    "verify": "verify slow.jsonl --out o.jsonl",
    "generate": f"generate {{model}} {MANY} {LONG} --out o",
    "ask": "ask {model} hello --max-response-tokens 100000",
    "score": "score judged.jsonl --prm {model} --reference {model} --out o",
    "evaluate": "evaluate {model} --benchmark clock --samples 500 --max-response-tokens 400 --out o",
    "prm": "prm --model {model} --data.source judged.jsonl --epochs 5 --out o",
    "sft": f"sft --model {{model}} {MANY} --epochs 99 --batch 4 --out o",
    "rl": f"rl --model {{model}} {MANY} --rollout.responses 16 --rollout.max-response-tokens 400 --out o",
    "report": "report --runs {model}/.. --out o.html",
    "watch": "watch {model}/.. --port 0",
    "data": "data --data.source many.jsonl --out o",
    "configs": "configs",
    "demo": "demo --out o",
}
"""Commands with work for minutes, but for those of SHORT."""
SHORT = ("plan", "ask", "report", "configs", "watch")
"""`watch` ends by Ctrl-C, and with status 0."""
MOMENTS = (0.05, 0.3, 1.0, 3.0, 6.0, 10.0)


def signalled(folder: Path, model: Path, command: str, number: signal.Signals, moment: float) -> None:
    """Start a command and send it a signal after so many seconds: it ends within seconds, and without a traceback."""
    judged = ({"prompt": f"q {i // 2}", "response": f"{i} " * 40, "outcome": i % 2} for i in range(20000))
    (folder / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    (folder / "slow.jsonl").write_text(SLOW * 500)
    many = ({"prompt": f"What is {i} + {i % 89}?", "answer": str(i + i % 89)} for i in range(200_000))
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    args = WORK[command].format(model=model, root=Path(__file__).parents[1]).split()
    process = start(args, folder, OMP_NUM_THREADS="1")
    time.sleep(moment)
    if process.poll() is not None:
        assert (process.returncode, command in SHORT) == (0, True), process.communicate()
        return
    process.send_signal(number)
    sent = time.monotonic()
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - sent < 30  # one or two on a machine of its own
    if moment < 1 and "Traceback" in said and ", in main\n" not in said:
        return  # Python itself was not there yet
    assert "Traceback" not in said
    ends = {128 + number, -number} | ({0} if command in SHORT else set())  # it may have been done just then
    assert process.returncode in ends, said


@pytest.mark.parametrize(("command", "moment"), [("verify", 5.0), ("generate", 6.0), ("plan", 0.3)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_main__a_signal_ends_a_command_within_seconds(
    model: Path, tmp_path: Path, command: str, number: signal.Signals, moment: float
):
    signalled(tmp_path, model, command, number, moment)


def test_main__signals_are_tried_on_every_command():
    assert set(WORK) == set(cli.COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", WORK)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_main__a_signal_ends_any_command_at_any_moment(
    model: Path, tmp_path: Path, command: str, number: signal.Signals
):
    for moment in MOMENTS:
        (tmp_path / str(moment)).mkdir()
        signalled(tmp_path / str(moment), model, command, number, moment)


SWALLOWS = """
import contextlib, io, os, signal
try:
    with contextlib.redirect_stderr(io.StringIO()):  # as while flags are read
        os.kill(os.getpid(), signal.SIGINT)
    print("going on")
except BaseException:
    raise ImportError("cannot load module more than once per process")
"""


def test_main__an_interrupt_while_libraries_are_imported_is_not_lost(tmp_path: Path):
    """numpy's import makes another error of it, others go on."""
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    program = f"""
import signal, sys
import openprime
from openprime import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
openprime.__path__.append({str(tmp_path)!r})
cli.COMMANDS["report"] = ("ReportConfig", "swallows:fail", "")
sys.exit(cli.main(["report", "--runs", "r", "--out", "page.html"]))
"""
    done = run(sys.executable, "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "openprime: interrupted\n")


def test_main__a_second_process_is_kept_out_of_a_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Until the first one ends, however it ends."""
    args = [*WORK["sft"].format(model=model).split()[:-1], str(tmp_path / "o")]
    first = start([*args, "--save-every", "1"])
    wait_for((tmp_path / "o" / "metrics.jsonl").exists, first)
    for flags in ([], ["--resume"]):
        assert cli.main([*args, *flags]) == 2
        said = capsys.readouterr().err
        assert f"o is being filled by another process (process {first.pid} on " in said
        assert said.count("\n") == 1
    end(first, signal.SIGKILL)
    few = ["0.001" if arg == "99" else arg for arg in args]
    assert cli.main([*few, "--resume"]) == 0


def test_main__a_users_function_that_fails_keeps_its_traceback(
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
