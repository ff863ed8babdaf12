"""Configurations at random: each is refused in a line, or begins; none ends in a traceback.

    python benchmarks/fuzz_config.py --count 500 --seed 0                  in this process, without a model
    python benchmarks/fuzz_config.py --count 60 --model runs/sft/model    each begun, in a process of its own

Keys and values of every command at random: out of range, of another type, infinite, endless, too many at once,
misspelt, as YAML or as flags. With `--model` values are of the right type, and what is still at work after so
many seconds gets a signal and has to end.
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from openprime import config as schemas
from openprime.cli import COMMANDS, main
from openprime.config.reading import TAGS, keys_of

NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    2**31,
    2**63,
    10**30,
    -(10**30),
    0.5,
    1e-308,
    1e300,
    math.inf,
    -math.inf,
    math.nan,
    1e-9,
]
TEXTS = [
    "",
    " ",
    "a",
    "new",
    "task:clock",
    "task:",
    "gym:",
    "gym:x",
    "auto",
    "cuda",
    "cpu",
    "none",
    "code",
    "math",
]
TEXTS += [
    "x" * 5000,
    "a\0b",
    "\ud800",
    "../..",
    "/",
    "/dev/null",
    "a\nb",
    "\x1b[31m",
    "1e30",
    "true",
    "null",
    "{",
    "a:b",
    "Ω",
]
OTHERS: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [1],
    ["a", "b"],
    {"a": 1},
    {1: 2},
    {"a": {"b": {"c": []}}},
]
RAW = [
    "[",
    "{",
    "- a",
    "\t",
    "&a [*a]",
    "!!set {a}",
    "!mine x",
    "2020-01-01",
    "? [a]\n: b",
    "<<: x",
    "1_000",
    "0x10",
    "'",
]
GIVEN = {"data": {"source": "task:clock", "limit": 8, "horizon": 2}, "steps": 1}
SMALL = {"rollout": {"prompts": 2, "responses": 2, "max_response_tokens": 4}, "eval_data": {"source": ""}}


MILD: dict[type, list[Any]] = {
    bool: [True, False],
    int: [0, 1, 2, 3, 5, 17, 64, 260, 1000],
    float: [0.0, 1e-6, 0.01, 0.5, 0.99, 1.0, 2.0, 100.0],
    str: [
        *TEXTS[:14],
        "bfloat16",
        "ce",
        "dpo",
        "kto",
        "nca",
        "steps",
        "released",
        "step",
        "policy",
        "never",
        "newline",
    ],
}


def value(draw: random.Random, default: Any = None) -> Any:
    """Anything; or what may fit in the place of a default."""
    if type(default) in MILD:
        return draw.choice(MILD[type(default)])
    return draw.choice(draw.choice([NUMBERS, TEXTS, OTHERS]))


def put(values: dict[str, Any], path: str, what: Any) -> None:
    """Set a dotted key."""
    *parents, name = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            return
    values[name] = what


def flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) pairs."""
    pairs: list[tuple[str, Any]] = []
    for key, what in values.items():
        pairs += flatten(what, f"{prefix}{key}.") if isinstance(what, dict) else [(prefix + key, what)]
    return pairs


def made(draw: random.Random, folder: Path, model: str) -> list[str]:
    """The arguments of a command, its file written."""
    command = draw.choice(
        ["sft", "rl", "rl", "prm", "generate", "score", "evaluate", "ask", "verify", "report", "plan"]
    )
    schema = getattr(schemas, COMMANDS[command][0])
    tags = TAGS | {
        "algorithm": draw.choice(list(schemas.ALGORITHMS)),
        "engine.kind": draw.choice(["transformers", "server"]),
    }
    keys = keys_of(schema, tags)
    told_tags = tags if "engine" in schema.model_fields else TAGS
    values: dict[str, Any] = {}
    for key, what in (GIVEN | (SMALL if command == "rl" else {})).items():
        if key in keys or f"{key}.source" in keys or f"{key}.prompts" in keys:
            values[key] = json.loads(json.dumps(what))
    rows = str(folder / "rows.jsonl")
    judged = ({"prompt": f"q {i}", "response": f"a {i}", "answer": "1", "outcome": i % 2} for i in range(40))
    Path(rows).write_text("".join(json.dumps(row) + "\n" for row in judged), encoding="utf-8")
    if command == "prm":
        values["data"]["source"] = rows
    places = {
        "model": model,
        "out": str(folder / "out"),
        "prm": model,
        "reference": model,
        "file": rows,
        "config": "configs/rl/tiny.yaml",
    }
    places |= {"benchmark": ["clock"], "runs": [str(folder)], "question": "1+1?", "max_response_tokens": 4}
    values |= {key: what for key, what in places.items() if key in keys}
    if command == "rl":
        values["algorithm"] = tags["algorithm"]
    mild = Path(model).is_dir()
    defaults = dict(flatten(schemas.build(schema, {}, told_tags).model_dump())) if mild else {}
    for _ in range(draw.randint(1, 3)):
        key = draw.choice(keys)
        if not mild and draw.random() < 0.15:
            key = draw.choice(
                [key + "x", key[:-1], key.replace(".", ""), key.split(".")[0], draw.choice(TEXTS) or "a"]
            )
        if draw.random() < 0.4:  # a flag
            told = value(draw, defaults.get(key))
            values.setdefault("", []).append(f"--{key.replace('_', '-')}={told}")
        else:
            put(values, key, value(draw, defaults.get(key)))
    flags = [flag.replace("\0", "") for flag in values.pop("", [])]
    try:
        text = yaml.safe_dump(values, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError):
        text = yaml.safe_dump(values)
    if not mild and draw.random() < 0.15:
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice(RAW) + text[place:]
    path = folder / "my.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return [command, str(path), *(flag.encode("utf-8", "replace").decode() for flag in flags)]


def here(args: list[str]) -> tuple[str, str]:
    """(what became of it, what was said) in this process."""
    out, err = io.StringIO(), io.StringIO()
    folder = Path(args[1]).parent
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(folder):
        try:
            status: Any = main(args)
        except SystemExit as stop:
            status = stop.code
        except BaseException as error:  # noqa: BLE001 - that there is none is what is measured
            return "an exception", f"{type(error).__name__}: {error}"
    return judged(status, err.getvalue())


def begun(args: list[str], seconds: float) -> tuple[str, str]:
    """The same in a process of its own, which gets a signal after so many seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "openprime", *args],
        stdin=subprocess.DEVNULL,
        cwd=Path(args[1]).parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        return judged(process.returncode if process.wait(seconds) else 0, process.communicate()[1])
    except subprocess.TimeoutExpired:
        process.send_signal(random.choice([signal.SIGINT, signal.SIGTERM]))
        sent = time.monotonic()
    try:
        said = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return "a signal did not end it", process.communicate()[1]
    kind = "ended by a signal" if time.monotonic() - sent < 15 else "a signal ended it late"
    return ("a traceback", said) if "Traceback" in said else (kind, said)


def judged(status: Any, said: str) -> tuple[str, str]:
    """What became of a command, by its status and what it said."""
    lines = [line for line in said.splitlines() if line and not line.startswith("note: ")]
    if "Traceback" in said or status not in (0, 1, 2):
        return "a traceback", said
    if status == 0:
        return "done", said
    ours = [line for line in lines if line.startswith("openprime: ")]
    return ("refused in a line" if len(lines) == len(ours) == 1 else "refused in a line for each fault"), said


def run() -> int:
    """Count what becomes of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="")
    parser.add_argument("--seconds", type=float, default=20.0)
    told = parser.parse_args()
    counts: Counter[str] = Counter()
    os.environ["HF_HUB_OFFLINE"] = "1"
    for number in range(told.count):
        with tempfile.TemporaryDirectory() as folder:
            args = made(
                random.Random(f"{told.seed}-{number}"),
                Path(folder),
                str(Path(told.model).resolve()) if told.model else "/nowhere/model",
            )
            kind, said = begun(args, told.seconds) if told.model else here(args)
            counts[kind] += 1
            if kind not in (
                "done",
                "refused in a line",
                "refused in a line for each fault",
                "ended by a signal",
            ):
                print(
                    f"{number}: {kind}: {args}\n{Path(args[1]).read_text(errors='replace')[:600]}\n{said[-1500:]}"
                )
    print(
        f"{told.count} configurations: "
        + ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
    )
    return int(any("traceback" in kind or "exception" in kind or "not end" in kind for kind in counts))


if __name__ == "__main__":
    sys.exit(run())
