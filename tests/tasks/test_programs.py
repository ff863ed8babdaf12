"""Small programs: the tests tell the truth, the noisy demonstrator errs as told."""

import json
import subprocess
import sys

import pytest

from openprime.config import DataConfig
from openprime.tasks import programs, rows

MEANING = {
    "add": "x + n",
    "subtract": "x - n",
    "times": "x * n",
    "remainder": "x - n * (x // n)",
    "share": "(x - x % n) // n",
    "at least": "x if x > n else n",
    "at most": "x if x < n else n",
    "negate": "0 - x",
    "absolute": "x if x > 0 else -x",
    "square": "x ** 2",
}
"""Each verb once more, in other terms."""


def made(limit: int = 200, horizon: int = 4, split: str = "train", seed: int = 0) -> list[dict]:
    return rows(DataConfig(source="task:programs", split=split, limit=limit, horizon=horizon, task_seed=seed))


def expected(prompt: str, x: int) -> int:
    """What the steps of a prompt make of a number."""
    for line in prompt.splitlines()[1:]:
        verb, _, number = line.rpartition(" ") if line[-1].isdigit() else (line, "", "0")
        x = eval(MEANING[verb], {"x": x, "n": int(number)})
    return x


@pytest.mark.parametrize("horizon", [2, 8, 32])
def test_rows__tests_are_what_the_steps_make_of_the_inputs(horizon: int):
    for row in made(50, horizon):
        tests = json.loads(row["answer"])
        assert len(set(tests["inputs"])) == programs.CASES
        assert [str(expected(row["prompt"], int(x))) for x in tests["inputs"]] == tests["outputs"]
        assert len(row["prompt"].splitlines()) == horizon + 1
        assert row["verifier"] == "code"


def test_rows__demonstrations_run_and_are_right_about_as_often_as_told():
    right = 0
    sample = made(200, 4)
    for row in sample:
        lines = row["response"].splitlines()
        assert (lines[0], lines[-1]) == ("```python", "```")
        tests = json.loads(row["answer"])
        program = "\n".join(lines[1:-1]).replace("int(input())", "int(given)").replace("print(x)", "")
        ends = []
        for given in tests["inputs"]:
            names: dict = {"given": given}
            exec(program, names)
            ends.append(str(names["x"]))
        right += ends == tests["outputs"]
    assert 0.2 < right / len(sample) < 0.65  # a wrong statement may do the same on six inputs
    program = "\n".join(sample[0]["response"].splitlines()[1:-1])
    done = subprocess.run([sys.executable, "-c", program], input="3\n", capture_output=True, text=True)
    assert done.returncode == 0
    int(done.stdout)


def test_rows__splits_share_no_prompt_and_rows_depend_on_their_number_alone():
    train = {row["prompt"] for row in made(1000, 2)}
    assert not train & {row["prompt"] for row in made(1000, 2, "test")}
    assert made(5) == made(50)[:5]
    assert made(5) != made(5, seed=1)


def test_misconceptions__half_are_wrong_under_greedy_decoding():
    for seed in range(5):
        flaws = programs.misconceptions(4, seed)
        above = sum(p > 0.5 for p in flaws.values())
        assert above in (len(flaws) // 2, -(-len(flaws) // 2))
        assert programs.misconceptions(4, seed) == flaws
    assert programs.misconceptions(4, 0) != programs.misconceptions(4, 1)
