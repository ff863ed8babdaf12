"""Benchmarks: every entry, how its items are asked, and its references and wrong answers from the command line."""

import base64
import json
import pickle
import zlib
from collections import Counter
from pathlib import Path

import pytest

from openprime.cli import main
from openprime.config import BenchmarkConfig
from openprime.data.chat import complete
from openprime.data.readers import read_questions
from openprime.evaluation.benchmarks import find_benchmark

ENTRIES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "benchmarks").iterdir())

# Entries


def test_the_benchmarks_of_the_field_are_there():
    wanted = ("gsm8k", "math-500", "aime-2024", "amc", "minerva", "olympiadbench", "humaneval", "mbpp")
    assert {*wanted, "leetcode", "livecodebench", "processbench", "clock", "programs"} <= set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_found_by_its_name_in_any_spelling(name: str):
    spellings = {name, name.upper(), name.replace("-", "_"), name.replace("-", ""), name.title()}
    for spelling in spellings:
        found, config = find_benchmark(spelling)
        assert found == name
        assert config.about
        assert config.data.source


@pytest.mark.parametrize("spelling", ["MATH500", "math_500", "Math 500", "MATH-500"])
def test_a_name_as_people_write_it(spelling: str):
    assert find_benchmark(spelling)[0] == "math-500"


@pytest.mark.parametrize(
    ("name", "near"), [("gsm8", "gsm8k"), ("olympiad-bench-2", "olympiadbench"), ("human_evil", "humaneval")]
)
def test_an_unknown_name_gets_the_nearest_one(name: str, near: str):
    with pytest.raises(
        ValueError, match=rf"no benchmark '{name}'; did you mean {near}\? There are: aime, aime-2024, "
    ):
        find_benchmark(name)


def test_a_name_like_no_other_gets_all():
    with pytest.raises(ValueError, match=r"no benchmark 'xyzzy'; there are: .*gsm8k.*; or name a YAML file"):
        find_benchmark("xyzzy")


def test_a_file_of_ones_own_is_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("my-set.yaml").write_text("data: {source: my.jsonl, prompt_field: q}\nmax_response_tokens: 5")
    name, config = find_benchmark("my-set.yaml")
    assert name == "my-set"
    assert (config.data.source, config.data.prompt_field, config.max_response_tokens) == ("my.jsonl", "q", 5)
    assert (config.data.split, config.data.too_long) == ("test", "error")  # the defaults of benchmarks
    Path("my-set.yaml").write_text("data: {sourse: my.jsonl}")
    with pytest.raises(
        ValueError, match=r"my-set\.yaml: unknown key data\.sourse; did you mean data\.source"
    ):
        find_benchmark("my-set.yaml")
    with pytest.raises(ValueError, match=r"other\.yaml: no such configuration file"):
        find_benchmark("other.yaml")


# Items in the fields of the public sets, and responses with what they come to


def boxed(answer: str) -> str:
    """A response of mathematics."""
    return rf"So it is $\boxed{{{answer}}}$."


def fenced(program: str) -> str:
    """A response of code."""
    return f"Here it is:\n```python\n{program}\n```\nDone."


UNKNOWN = ("I do not know.", "no_answer")
EMPTY = ("", "no_answer")

GSM8K = (
    {"question": "Ann has 16 eggs and eats 7.", "answer": "16 - 7 = <<16-7=9>>9 eggs.\n#### 9"},
    {"question": "How much is it in all?", "answer": "It costs $1,234.\n#### 1,234"},
)
GSM8K_RESPONSES = (
    [
        *((GSM8K[0]["answer"], "right"), (boxed("9"), "right"), ("9", "right"), ("#### 9.0", "right")),
        *(("#### 16", "wrong"), ("10", "wrong"), UNKNOWN, EMPTY),
    ],
    [
        *(
            (GSM8K[1]["answer"], "right"),
            (boxed("1234"), "right"),
            ("1,234", "right"),
            ("#### 1234", "right"),
        ),
        *((boxed("1"), "wrong"), ("123", "wrong"), UNKNOWN, ("\n \n", "no_answer")),
    ],
)

MATH = (
    {
        "problem": "What is half of $3/2$?",
        "solution": r"It is $\frac{3}{2}\cdot\frac12 = \boxed{\frac{3}{4}}$.",
        "answer": r"\frac{3}{4}",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "test/algebra/1.json",
    },
    {
        "problem": "Who wins?",
        "solution": r"$\boxed{\text{Evelyn}}$",
        "answer": r"\text{Evelyn}",
        "unique_id": "test/algebra/2.json",
    },
)
MATH_RESPONSES = (
    [
        *(
            (MATH[0]["solution"], "right"),
            (r"\frac{3}{4}", "right"),
            (boxed("0.75"), "right"),
            ("3/4", "right"),
        ),
        *((boxed("4/3"), "wrong"), UNKNOWN, (r"\boxed{3/4} or \boxed{4/3}", "wrong")),
    ],
    [
        *(
            (MATH[1]["solution"], "right"),
            (r"\text{Evelyn}", "right"),
            (boxed("Evelyn"), "right"),
            ("Evelyn", "right"),
        ),
        *((boxed("Evie"), "wrong"), UNKNOWN, EMPTY),
    ],
)
MATH_LOCAL = tuple({("expected_answer" if k == "answer" else k): v for k, v in row.items()} for row in MATH)

AIME = tuple(
    {
        "id": i,
        "problem": f"Find $n$ of {year}.",
        "solution": rf"\boxed{{{i}}}",
        "answer": f"{i:03}",
        "url": url,
    }
    for i, year in enumerate((2022, 2024, 2023, 2024))
    for url in [f"https://artofproblemsolving.com/wiki/index.php/{year}_AIME_I_Problems/Problem_{i}"]
)
AIME_RESPONSES = tuple(
    [(boxed(str(i)), "right"), (f"{i:03}", "right"), (boxed(str(i + 1)), "wrong"), UNKNOWN] for i in range(4)
)
AMC = tuple({"id": i, "problem": "What?", "answer": float(v), "url": "u"} for i, v in enumerate((142, -3)))
AMC_RESPONSES = tuple(
    [(boxed(f"{v}"), "right"), (f"{v}.0", "right"), (f"{v}", "right"), (boxed("7"), "wrong"), EMPTY]
    for v in (142, -3)
)
MINERVA = ({"question": "How long is it in cm?", "answer": "20"}, {"question": "Which?", "answer": r"2\pi"})
MINERVA_LOCAL = (
    {"problem": "How long is it?", "solution": r"Add. The length is \boxed{20} cm.", "type": "x", "idx": 0},
    {"problem": "Which?", "solution": r"It is $\boxed{2 \pi}$.", "type": "x", "idx": 1},
)
MINERVA_RESPONSES = (
    [(boxed("20"), "right"), ("20", "right"), (boxed("21"), "wrong"), UNKNOWN],
    [(boxed(r"2\pi"), "right"), (r"\pi \cdot 2", "right"), (boxed(r"\pi"), "wrong"), UNKNOWN],
)
OLYMPIAD = (
    {
        "id": 1,
        "question": "Find $x$.",
        "solution": ["Trivial."],
        "final_answer": ["$\\frac{1}{2}$"],
        "is_multiple_answer": False,
        "context": None,
    },
    {
        "id": 2,
        "question": "Find all $x$.",
        "solution": ["By hand."],
        "final_answer": ["$2$", "$-3$"],
        "context": None,
    },
)
OLYMPIAD_RESPONSES = (
    [(boxed("0.5"), "right"), ("1/2", "right"), (boxed("2"), "wrong"), UNKNOWN],
    [(boxed("2, -3"), "right"), (boxed("-3,2"), "right"), (boxed("2"), "wrong"), UNKNOWN],
)
HUMANEVAL = (
    {
        "task_id": "HumanEval/0",
        "prompt": 'def add(a: int, b: int) -> int:\n    """ Add.\n    >>> add(1, 2)\n    3\n    """\n',
        "canonical_solution": "    return a + b\n",
        "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"
        "    assert candidate(0, 0) == 0\n",
        "entry_point": "add",
    },
    {
        "task_id": "HumanEval/1",  # its tests are no data
        "prompt": 'def same(a: int) -> int:\n    """ The same. """\n',
        "canonical_solution": "    return a\n",
        "test": "def check(candidate):\n    import random\n    for i in range(9):\n        assert candidate(i) == i\n",
        "entry_point": "same",
    },
    {
        "task_id": "HumanEval/2",
        "prompt": 'def half(a: float) -> float:\n    """ Half. """\n',
        "canonical_solution": "    return a / 2\n",
        "test": "def check(candidate):\n    assert abs(candidate(3.0) - 1.5) < 1e-6\n"
        "    assert candidate(0.0) == 0.0\n",
        "entry_point": "half",
    },
)
HUMANEVAL_RESPONSES = tuple(
    [
        *((row["canonical_solution"], "right"), (row["prompt"] + row["canonical_solution"], "right")),
        *(
            (fenced(row["prompt"] + row["canonical_solution"]), "right"),
            (row["prompt"] + "    return 9\n", "wrong"),
        ),
        *((fenced(f"{row['prompt']}    raise OSError"), "crash"), UNKNOWN, EMPTY),
    ]
    for row in HUMANEVAL
)
MBPP = (
    {
        "source_file": "x.ipynb",
        "task_id": 2,
        "prompt": "Write a function to find the shared elements from the given two lists.",
        "code": "def shared(a, b):\n  return tuple(set(a) & set(b))",
        "test_imports": ["import math"],
        "test_list": [
            "assert set(shared((3, 4), (4, 5))) == set((4,))",
            "assert shared((1,), (2,)) == ()",
        ],
    },
)
MBPP_RESPONSES = (
    [
        *((MBPP[0]["code"], "right"), (fenced(str(MBPP[0]["code"])), "right")),
        *(
            (fenced("def shared(a, b):\n    return tuple(a)"), "wrong"),
            (fenced("#### 4\ndef other(): 1"), "crash"),
        ),
        *(("def shared(a, b) return", "no_answer"), EMPTY),
    ],
)
LEETCODE = (
    {
        "task_id": "two-sum",
        "question_id": 1,
        "prompt": "import collections\nfrom typing import *\n",
        "query": "You are an expert. Given a list, find two numbers that sum to the target.\n\nFormat: ...",
        "completion": "class Solution:\n    def twoSum(self, nums, target):\n        seen = {}\n        for i, n in "
        "enumerate(nums):\n            if target - n in seen:\n                return [seen[target - n], i]\n"
        "            seen[n] = i\n",
        "entry_point": "Solution().twoSum",
        "test": "def check(candidate):\n    assert candidate(nums = [3,3],target = 6) == [0, 1]\n"
        "    assert candidate(nums = [2,7,11,15],target = 9) == [0, 1]\n",
        "input_output": [{"input": "nums = [3,3],target = 6", "output": "[0, 1]"}],
    },
)
LEETCODE_RESPONSES = (
    [
        *((LEETCODE[0]["completion"], "right"), (fenced(str(LEETCODE[0]["completion"])), "right")),
        (fenced("class Solution:\n    def twoSum(self, nums, target):\n        return [0, 2]"), "wrong"),
        *((fenced("class Solution:\n    pass"), "crash"), UNKNOWN),
    ],
)


def packed(cases: list[dict]) -> str:
    """Private cases as LiveCodeBench packs them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


LIVECODEBENCH = (
    {
        "question_title": "Sum",
        "question_content": "Read two numbers and print their sum.",
        "starter_code": "",
        "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
        "private_test_cases": packed([{"input": "40 2\n", "output": "42\n", "testtype": "stdin"}]),
        "metadata": "{}",
        "platform": "atcoder",
    },
    {
        "question_title": "Twice",
        "question_content": "Return twice the number.",
        "starter_code": "class Solution:\n    def twice(self, n: int) -> int:\n        ",
        "public_test_cases": json.dumps([{"input": "1", "output": "2", "testtype": "functional"}]),
        "private_test_cases": packed([{"input": "21", "output": "42", "testtype": "functional"}]),
        "metadata": json.dumps({"func_name": "twice"}),
        "platform": "leetcode",
    },
)
LIVECODEBENCH_RESPONSES = (
    [
        *(
            (fenced("a, b = map(int, input().split())\nprint(a + b)"), "right"),
            ("print(sum(map(int, input().split())))", "right"),
        ),
        *((fenced("print(3)"), "wrong"), (fenced("print(input().split()[2])"), "crash"), UNKNOWN),
    ],
    [
        (fenced("class Solution:\n    def twice(self, n):\n        return 2 * n"), "right"),
        ("class Solution:\n    def twice(self, n):\n        return n + n", "right"),
        (
            fenced("class Solution:\n    def twice(self, n):\n        return 2"),
            "wrong",
        ),  # public cases alone pass
        *((fenced("class Solution:\n    def thrice(self, n):\n        return 2 * n"), "crash"), UNKNOWN),
    ],
)
PROGRAMS_RESPONSES = ([(fenced("print('x')"), "wrong"), UNKNOWN], [(fenced("print(1/0)"), "crash"), EMPTY])

Set = tuple[tuple[dict, ...], tuple[list[tuple[str, str]], ...]]
HUB: dict[str, Set] = {
    "gsm8k": (GSM8K, GSM8K_RESPONSES),
    "math-500": (MATH, MATH_RESPONSES),
    "aime-2024": (AIME, AIME_RESPONSES),
    "amc": (AMC, AMC_RESPONSES),
    "minerva": (MINERVA, MINERVA_RESPONSES),
    "olympiadbench": (OLYMPIAD, OLYMPIAD_RESPONSES),
    "humaneval": (HUMANEVAL, HUMANEVAL_RESPONSES),
    "mbpp": (MBPP, MBPP_RESPONSES),
    "leetcode": (LEETCODE, LEETCODE_RESPONSES),
    "livecodebench": (LIVECODEBENCH, LIVECODEBENCH_RESPONSES),
}
"""In the fields that the sets have on the hub."""
LOCAL: dict[str, Set] = {
    "math-500": (MATH_LOCAL, MATH_RESPONSES),
    "aime": (AIME, AIME_RESPONSES),
    "aime-2024": (AIME, AIME_RESPONSES[1::2]),  # of the chosen items alone
    "minerva": (MINERVA_LOCAL, MINERVA_RESPONSES),
}
"""In other fields of the same kind."""
KEPT = {"aime-2024": [1, 3], "humaneval": [0, 2]}


def evaluate(folder: Path, sets: dict[str, Set]) -> Path:
    """Judge the responses of all sets in one command."""
    names, data, responses = list(sets), [], []
    for name, (rows, recorded) in sets.items():
        data.append(folder / f"{name}.jsonl")
        data[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
        responses.append(folder / f"{name}-responses.jsonl")
        lines = ({"responses": [text for text, _ in texts]} for texts in recorded)
        responses[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = ["--benchmark", *names, "--data", *map(str, data), "--responses", *map(str, responses)]
    assert main(["evaluate", *args, "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets as they are on the hub."""
    return evaluate(tmp_path_factory.mktemp("hub"), HUB)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets in other fields."""
    return evaluate(tmp_path_factory.mktemp("local"), LOCAL)


def check_judged(out: Path, name: str, sets: dict[str, Set]) -> None:
    """Every outcome, every reason and what is made of them."""
    rows, recorded = sets[name]
    kept = KEPT.get(name, range(len(rows)))
    expected = [recorded[i] for i in kept] if len(recorded) == len(rows) else list(recorded)
    lines = [json.loads(line) for line in (out / name / "responses.jsonl").read_text().splitlines()]
    results = json.loads((out / "results.json").read_text())["benchmarks"][name]
    assert len(lines) == len(expected) == results["items"]
    for line, texts in zip(lines, expected, strict=True):
        found = [(r["outcome"], r["reason"]) for r in line["responses"]]
        assert found == [(float(reason == "right"), reason) for _, reason in texts]
    reasons = [reason for texts in expected for _, reason in texts]
    assert results["reasons"] == dict(Counter(reasons))
    assert results[f"avg@{len(expected[0])}"][0] == pytest.approx(reasons.count("right") / len(reasons))
    assert results["left_out"] == (1 if name == "humaneval" else 0)


@pytest.mark.parametrize("name", HUB)
def test_references_are_right_and_others_wrong_with_the_reason(hub: Path, name: str):
    check_judged(hub, name, HUB)


@pytest.mark.parametrize("name", LOCAL)
def test_in_other_fields_too(local: Path, name: str):
    check_judged(local, name, LOCAL)


def test_what_is_left_out_moves_no_other_item(hub: Path):
    """The second of three items has tests that are no data."""
    lines = [json.loads(line) for line in (hub / "humaneval" / "responses.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == [0, 2]
    for line, i in zip(lines, (0, 2), strict=True):
        assert str(HUMANEVAL[i]["prompt"]) in line["prompt"][0]["content"]


def test_votes_are_counted_where_there_are_answers(hub: Path):
    """Not of programs, whatever their comments look like."""
    results = json.loads((hub / "results.json").read_text())["benchmarks"]
    for name, result in results.items():
        code = find_benchmark(name)[1].data.verifier == "code"
        assert ("maj@k" in result) is ("majority vote" in result["best_of_n"]) is not code
    assert results["gsm8k"]["maj@k"]["8"][0] == 1.0


def test_every_set_is_in_the_table_and_on_the_page(hub: Path):
    page = (hub / "results.html").read_text()
    assert all(f"<tr><td>{name}<td>" in page for name in HUB)


def test_soft_outcomes_may_be_asked_for(tmp_path: Path):
    """The share of passed cases instead of all or nothing."""
    args = [
        "--benchmark",
        "livecodebench",
        "--data",
        str(tmp_path / "d.jsonl"),
        "--verify.code.score",
        "share",
    ]
    (tmp_path / "d.jsonl").write_text(json.dumps(LIVECODEBENCH[0]))
    (tmp_path / "r.jsonl").write_text(json.dumps({"responses": [fenced("print(3)"), fenced("print(4)")]}))
    out = str(tmp_path / "out")
    assert main(["evaluate", *args, "--responses", str(tmp_path / "r.jsonl"), "--out", out]) == 0
    (line,) = (tmp_path / "out" / "livecodebench" / "responses.jsonl").read_text().splitlines()
    found = [(r["outcome"], r["reason"]) for r in json.loads(line)["responses"]]
    assert found == [(0.5, "partial"), (0.0, "wrong")]
    results = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]["livecodebench"]
    assert results["avg@2"][0] == 0.25
    assert [values[0] for values in results["pass@k"].values()] == [0, 0]  # half is not passed
    assert [values[0] for values in results["best_of_n"]["oracle"].values()] == [0.25, 0.5]


# How items are asked

BOX = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
FENCE = (
    "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end."
)
ASKED = {
    "gsm8k": (GSM8K, "Ann has 16 eggs and eats 7." + BOX),
    "math-500": (MATH, "What is half of $3/2$?" + BOX),
    "aime": (AIME, "Find $n$ of 2022." + BOX),
    "aime-2024": (AIME, "Find $n$ of 2024." + BOX),
    "amc": (AMC, "What?" + BOX),
    "minerva": (MINERVA, "How long is it in cm?" + BOX),
    "olympiadbench": (OLYMPIAD, "Find $x$." + BOX),
    "humaneval": (
        HUMANEVAL,
        "Complete the following Python function.\n\n```python\n"
        'def add(a: int, b: int) -> int:\n    """ Add.\n    >>> add(1, 2)\n    3\n    """\n\n```' + FENCE,
    ),
    "mbpp": (
        MBPP,
        "Write a function to find the shared elements from the given two lists.\nThe program must pass these tests:\n\n"
        "assert set(shared((3, 4), (4, 5))) == set((4,))\nassert shared((1,), (2,)) == ()" + FENCE,
    ),
    "leetcode": (LEETCODE, f"{LEETCODE[0]['query']}" + FENCE),
    "livecodebench": (LIVECODEBENCH, "Read two numbers and print their sum." + FENCE),
}


def asked(config: BenchmarkConfig, rows: tuple[dict, ...], file: Path, **changes: str) -> list[list[dict]]:
    """The messages of each item."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = config.data.model_copy(update={"source": str(file), **changes})
    return [complete(p.messages, p.id, form, p.verifier) for p in read_questions(form)]


@pytest.mark.parametrize("name", ASKED)
def test_items_are_asked_as_the_published_recipe_does(tmp_path: Path, name: str):
    rows, expected = ASKED[name]
    first, *_ = asked(find_benchmark(name)[1], rows, tmp_path / "d.jsonl")
    assert first == [{"role": "user", "content": expected}]


def test_a_method_to_complete_is_shown(tmp_path: Path):
    _, second = asked(find_benchmark("livecodebench")[1], LIVECODEBENCH, tmp_path / "d.jsonl")
    shown = "Return twice the number.\n\nclass Solution:\n    def twice(self, n: int) -> int:"
    assert second == [{"role": "user", "content": shown + FENCE}]


def test_the_embedded_tasks_are_asked_as_their_models_learn_them():
    for name in ("clock", "programs"):
        entry = find_benchmark(name)[1].data
        assert (entry.template, entry.suffix, entry.system, entry.split) == ("none", "", "", "test")


@pytest.mark.parametrize(
    ("template", "system", "suffix"),
    [("none", False, ""), ("eurus", False, BOX), ("eurus-actions", True, BOX)],
)
def test_a_template_may_be_chosen(tmp_path: Path, template: str, system: bool, suffix: str):
    (chat, *_) = asked(find_benchmark("gsm8k")[1], GSM8K, tmp_path / "d.jsonl", template=template)
    assert chat[-1] == {"role": "user", "content": "Ann has 16 eggs and eats 7." + suffix}
    assert [m["role"] for m in chat] == ["system"] * system + ["user"]


def test_other_fields_are_named_with_those_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture):
    """The fields of each entry, against a file of another kind."""
    data, responses = tmp_path / "d.jsonl", tmp_path / "r.jsonl"
    data.write_text(json.dumps({"instruction": "Do it.", "reply": "Done."}) + "\n")
    responses.write_text(json.dumps({"responses": ["1"]}))
    missing = {
        "gsm8k": "no row has a field prompt or messages or question or problem",
        "aime-2024": "no row has a field url (data.where)",
        "mbpp": "no row has a field prompt (data.prompt_template)",
        "livecodebench": "no row has a field question_content (data.prompt_template)",
        "leetcode": "no row has a field query",
    }
    for name, message in missing.items():
        args = ["--benchmark", name, "--data", str(data), "--responses", str(responses)]
        assert main(["evaluate", *args, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "there are: instruction, reply" in said
        assert not (tmp_path / "out").exists()
