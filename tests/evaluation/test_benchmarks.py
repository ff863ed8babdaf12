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


def test_find_benchmark__those_of_the_field_are_there():
    wanted = ("gsm8k", "math-500", "aime-2024", "amc", "minerva", "olympiadbench", "humaneval", "mbpp")
    assert {*wanted, "leetcode", "livecodebench", "processbench", "clock", "programs"} <= set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_find_benchmark__in_any_spelling(name: str):
    for spelling in {name, name.upper(), name.replace("-", "_"), name.replace("-", " "), name.title()}:
        found, config = find_benchmark(spelling)
        assert found == name
        assert config.about
        assert config.data.source
    assert find_benchmark("MATH500")[0] == "math-500"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8", r"no benchmark 'gsm8'; did you mean gsm8k\? There are: aime, aime-2024, "),
        ("olympiad-bench-2", r"did you mean olympiadbench\?"),
        ("human_evil", r"did you mean humaneval\?"),
        ("xyzzy", r"no benchmark 'xyzzy'; there are: .*gsm8k.*; or name a YAML file"),
    ],
)
def test_find_benchmark__an_unknown_name(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        find_benchmark(name)


def test_find_benchmark__a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


NOTHING = ["I do not know.", ""]


def come_to(right: list[str], **others: list[str]) -> list[tuple[str, str]]:
    """Responses with the reason of each verdict; among them two that hold no answer."""
    found = {"right": right, **others, "no_answer": [*others.get("no_answer", []), *NOTHING]}
    return [(text, reason) for reason, texts in found.items() for text in texts]


GSM8K = (
    {"question": "Ann has 16 eggs and eats 7.", "answer": "16 - 7 = <<16-7=9>>9 eggs.\n#### 9"},
    {"question": "How much is it in all?", "answer": "It costs $1,234.\n#### 1,234"},
)
GSM8K_RESPONSES = (
    come_to([GSM8K[0]["answer"], boxed("9"), "9", "#### 9.0"], wrong=["#### 16", "10"]),
    come_to([GSM8K[1]["answer"], boxed("1234"), "1,234", "#### 1234"], wrong=[boxed("1"), "123"]),
)

MATH = (
    {
        "problem": "What is half of $3/2$?",
        "solution": r"It is $\frac{3}{2}\cdot\frac12 = \boxed{\frac{3}{4}}$.",
        "answer": r"\frac{3}{4}",
        "subject": "Algebra",
        "level": 1,
    },
    {"problem": "Who wins?", "solution": r"$\boxed{\text{Evelyn}}$", "answer": r"\text{Evelyn}"},
)
MATH_RESPONSES = (
    come_to(
        [str(MATH[0]["solution"]), r"\frac{3}{4}", boxed("0.75"), "3/4"],
        wrong=[boxed("4/3"), r"\boxed{3/4} or \boxed{4/3}"],
    ),
    come_to(
        [str(MATH[1]["solution"]), r"\text{Evelyn}", boxed("Evelyn"), "Evelyn"], wrong=[boxed("Evie"), "x"]
    ),
)
MATH_LOCAL = tuple({("expected_answer" if k == "answer" else k): v for k, v in row.items()} for row in MATH)

AIME = tuple(
    {"id": i, "problem": f"Find $n$ of {year}.", "solution": boxed(str(i)), "answer": f"{i:03}", "url": url}
    for i, year in enumerate((2022, 2024, 2023, 2024))
    for url in [f"https://artofproblemsolving.com/wiki/index.php/{year}_AIME_I_Problems/Problem_{i}"]
)
AIME_RESPONSES = tuple(come_to([boxed(str(i)), f"{i:03}"], wrong=[boxed(str(i + 1))]) for i in range(4))
AMC = tuple({"id": i, "problem": "What?", "answer": float(v), "url": "u"} for i, v in enumerate((142, -3)))
AMC_RESPONSES = tuple(come_to([boxed(f"{v}"), f"{v}.0", f"{v}"], wrong=[boxed("7")]) for v in (142, -3))
MINERVA = ({"question": "How long is it in cm?", "answer": "20"}, {"question": "Which?", "answer": r"2\pi"})
MINERVA_LOCAL = (
    {"problem": "How long is it?", "solution": r"Add. The length is \boxed{20} cm.", "type": "x", "idx": 0},
    {"problem": "Which?", "solution": r"It is $\boxed{2 \pi}$.", "type": "x", "idx": 1},
)
MINERVA_RESPONSES = (
    come_to([boxed("20"), "20"], wrong=[boxed("21")]),
    come_to([boxed(r"2\pi"), r"\pi \cdot 2"], wrong=[boxed(r"\pi")]),
)
OLYMPIAD = (
    {"question": "Find $x$.", "solution": ["Trivial."], "final_answer": ["$\\frac{1}{2}$"], "context": None},
    {"question": "Find all $x$.", "solution": ["By hand."], "final_answer": ["$2$", "$-3$"], "context": None},
)
OLYMPIAD_RESPONSES = (
    come_to([boxed("0.5"), "1/2"], wrong=[boxed("2")]),
    come_to([boxed("2, -3"), boxed("-3,2")], wrong=[boxed("2")]),
)
HUMANEVAL = (
    {
        "prompt": 'def add(a: int, b: int) -> int:\n    """ Add.\n    >>> add(1, 2)\n    3\n    """\n',
        "canonical_solution": "    return a + b\n",
        "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"
        "    assert candidate(0, 0) == 0\n",
        "entry_point": "add",
    },
    {
        "prompt": 'def same(a: int) -> int:\n    """ The same. """\n',  # its tests are no data
        "canonical_solution": "    return a\n",
        "test": "def check(candidate):\n    import random\n    for i in range(9):\n        assert candidate(i) == i\n",
        "entry_point": "same",
    },
    {
        "prompt": 'def half(a: float) -> float:\n    """ Half. """\n',
        "canonical_solution": "    return a / 2\n",
        "test": "def check(candidate):\n    assert abs(candidate(3.0) - 1.5) < 1e-6\n"
        "    assert candidate(0.0) == 0.0\n",
        "entry_point": "half",
    },
)
HUMANEVAL_RESPONSES = tuple(
    come_to(
        [row["canonical_solution"], complete_one, fenced(complete_one)],
        wrong=[row["prompt"] + "    return 9\n"],
        crash=[fenced(f"{row['prompt']}    raise OSError")],
    )
    for row in HUMANEVAL
    for complete_one in [row["prompt"] + row["canonical_solution"]]
)
SHARED = "def shared(a, b):\n  return tuple(set(a) & set(b))"
MBPP = (
    {
        "prompt": "Write a function to find the shared elements from the given two lists.",
        "code": SHARED,
        "test_imports": ["import math"],
        "test_list": ["assert set(shared((3, 4), (4, 5))) == set((4,))", "assert shared((1,), (2,)) == ()"],
    },
)
MBPP_RESPONSES = (
    come_to(
        [SHARED, fenced(SHARED)],
        wrong=[fenced("def shared(a, b):\n    return tuple(a)")],
        crash=[fenced("#### 4\ndef other(): 1")],
        no_answer=["def shared(a, b) return"],
    ),
)
TWO_SUM = (
    "class Solution:\n    def twoSum(self, nums, target):\n        seen = {}\n        for i, n in enumerate(nums):\n"
    "            if target - n in seen:\n                return [seen[target - n], i]\n            seen[n] = i\n"
)
LEETCODE = (
    {
        "prompt": "import collections\nfrom typing import *\n",
        "query": "You are an expert. Given a list, find two numbers that sum to the target.\n\nFormat: ...",
        "completion": TWO_SUM,
        "entry_point": "Solution().twoSum",
        "test": "def check(candidate):\n    assert candidate(nums = [3,3],target = 6) == [0, 1]\n"
        "    assert candidate(nums = [2,7,11,15],target = 9) == [0, 1]\n",
        "input_output": [{"input": "nums = [3,3],target = 6", "output": "[0, 1]"}],
    },
)
LEETCODE_RESPONSES = (
    come_to(
        [TWO_SUM, fenced(TWO_SUM)],
        wrong=[fenced("class Solution:\n    def twoSum(self, nums, target):\n        return [0, 2]")],
        crash=[fenced("class Solution:\n    pass")],
    ),
)


def cases(given: str, expected: str, kind: str) -> list[dict]:
    """A case of LiveCodeBench."""
    return [{"input": given, "output": expected, "testtype": kind}]


def packed(found: list[dict]) -> str:
    """Private cases as LiveCodeBench packs them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(found)))).decode()


LIVECODEBENCH = (
    {
        "question_content": "Read two numbers and print their sum.",
        "starter_code": "",
        "public_test_cases": json.dumps(cases("1 2\n", "3\n", "stdin")),
        "private_test_cases": packed(cases("40 2\n", "42\n", "stdin")),
        "metadata": "{}",
    },
    {
        "question_content": "Return twice the number.",
        "starter_code": "class Solution:\n    def twice(self, n: int) -> int:\n        ",
        "public_test_cases": json.dumps(cases("1", "2", "functional")),
        "private_test_cases": packed(cases("21", "42", "functional")),
        "metadata": json.dumps({"func_name": "twice"}),
    },
)
TWICE = "class Solution:\n    def twice(self, n):\n        return "
LIVECODEBENCH_RESPONSES = (
    come_to(
        [
            fenced("a, b = map(int, input().split())\nprint(a + b)"),
            "print(sum(map(int, input().split())))",
        ],
        wrong=[fenced("print(3)")],
        crash=[fenced("print(input().split()[2])")],
    ),
    come_to(
        [fenced(f"{TWICE}2 * n"), f"{TWICE}n + n"],
        wrong=[fenced(f"{TWICE}2")],  # public cases alone pass
        crash=[fenced(f"{TWICE}2 * n".replace("twice", "thrice"))],
    ),
)

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
def test_benchmark__references_are_right_and_others_wrong_with_the_reason(hub: Path, name: str):
    check_judged(hub, name, HUB)


@pytest.mark.parametrize("name", LOCAL)
def test_benchmark__in_other_fields_too(local: Path, name: str):
    check_judged(local, name, LOCAL)


def test_benchmark__what_is_left_out_moves_no_other_item(hub: Path):
    """The second of three items has tests that are no data."""
    lines = [json.loads(line) for line in (hub / "humaneval" / "responses.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == [0, 2]
    for line, i in zip(lines, (0, 2), strict=True):
        assert str(HUMANEVAL[i]["prompt"]) in line["prompt"][0]["content"]


def test_benchmark__votes_are_counted_where_there_are_answers(hub: Path):
    """Not of programs, whatever their comments look like."""
    results = json.loads((hub / "results.json").read_text())["benchmarks"]
    for name, result in results.items():
        code = find_benchmark(name)[1].data.verifier == "code"
        assert ("maj@k" in result) is ("majority vote" in result["best_of_n"]) is not code
    assert results["gsm8k"]["maj@k"]["8"][0] == 1.0


def test_benchmark__is_in_the_table_and_on_the_page(hub: Path):
    page = (hub / "results.html").read_text()
    assert all(f"<tr><th scope=row>{name}<td>" in page for name in HUB)


def test_benchmark__outcomes_may_be_shares_of_passed_cases(tmp_path: Path):
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
def test_benchmark__items_are_asked_as_the_published_recipe_does(tmp_path: Path, name: str):
    rows, expected = ASKED[name]
    first, *others = asked(find_benchmark(name)[1], rows, tmp_path / "d.jsonl")
    assert first == [{"role": "user", "content": expected}]
    if name == "livecodebench":  # a method to complete is shown
        shown = "Return twice the number.\n\nclass Solution:\n    def twice(self, n: int) -> int:"
        assert others == [[{"role": "user", "content": shown + FENCE}]]


def test_benchmark__embedded_tasks_are_asked_as_their_models_learn_them():
    for name in ("clock", "programs"):
        entry = find_benchmark(name)[1].data
        assert (entry.template, entry.suffix, entry.system, entry.split) == ("none", "", "", "test")


@pytest.mark.parametrize(
    ("template", "system", "suffix"),
    [("none", False, ""), ("eurus", False, BOX), ("eurus-actions", True, BOX)],
)
def test_benchmark__a_template_may_be_chosen(tmp_path: Path, template: str, system: bool, suffix: str):
    (chat, *_) = asked(find_benchmark("gsm8k")[1], GSM8K, tmp_path / "d.jsonl", template=template)
    assert chat[-1] == {"role": "user", "content": "Ann has 16 eggs and eats 7." + suffix}
    assert [m["role"] for m in chat] == ["system"] * system + ["user"]


def test_benchmark__missing_fields_are_named_with_those_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
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
