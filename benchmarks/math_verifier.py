"""The mathematics verifier beside math-verify called plainly: accuracy, false accepts, hostile input, speed.

python benchmarks/math_verifier.py [--quick] [--data FOLDER] [--pool N]
python benchmarks/math_verifier.py --cases FILE

FOLDER holds math-500.jsonl, aime-2022-2024.jsonl, amc-2022-2023.jsonl, gsm8k-test.jsonl and gsm8k-train.jsonl.
The pairs are math_pairs.jsonl beside this file. math-verify gets what its documentation shows: the reference
as `$...$`, the whole response, `verify(gold, answer)`, and its own time limits of 5 seconds each.

FILE has cases of your own, a JSON object a line: response, answer, expected (1 right, 0 wrong), why (the kind), if
you like prompt (the question) and got ("1.0 right": an earlier verdict). The table counts right verdicts by kind.
"""

import argparse
import contextlib
import json
import logging
import multiprocessing
import random
import re
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from math_verify import parse, verify
from rich.console import Console
from rich.table import Table

from openprime.types import Prompt
from openprime.verifiers import math
from openprime.verifiers.pool import Pool

FILES = {
    "MATH-500": ("math-500.jsonl", "expected_answer"),
    "AIME": ("aime-2022-2024.jsonl", "answer"),
    "AMC": ("amc-2022-2023.jsonl", "answer"),
    "GSM8K test": ("gsm8k-test.jsonl", "answer"),
    "GSM8K train": ("gsm8k-train.jsonl", "answer"),
}
HOSTILE = [
    *["9^{9^9}", "9^9^9", "2^{2^{2^{2^{2^{2}}}}}", "10^{10^{10}}", "9^{999999999}", "9^{-999999999}"],
    *["(((9^{999})^{999})^{999})^{999}", "1.0000001^{999999999}", r"9^{999\cdot 999\cdot 999}"],
    *["100000000!", "99999!!", r"\frac{1000000!}{999998!}", "(10^6)!", r"\Gamma(10^8)"],
    *[r"\binom{10000000}{5000000}", r"\binom{10^9}{10^5}", r"\dbinom{999999}{333333}"],
    *[r"\sum_{i=1}^{10^9} i^2", r"\prod_{i=1}^{999999} i", r"\int_0^{1} e^{x^2} \sin x dx"],
    *["(x+y+z+w)^{1000}", "(x+1)^{99999}", "((x+y)^{20}(z+w)^{20})^{20}", "(a+b+c+d+e+f+g+h)^{12}"],
    *[r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+x)^{20}", r"\sin^{20} x\cos^{20} x", r"\tan^{15}(x+y+z)"],
    *["x^{100000}=1", "x^{50}+x^{49}+3=0", r"x^{\frac{1}{97}}+x^{\frac{1}{89}}=3", "x^x+2^x=7"],
    *[r"\sqrt{" * n + "4" + "}" * n for n in (10, 100, 1000)],
    *["(" * n + "4" + ")" * n for n in (10, 60, 1000, 3000)],
    *["{" * n + "4" + "}" * n for n in (20, 60, 3000)],
    *[r"\frac{1}{1+" * n + "1" + "}" * n for n in (5, 10, 50)],
    *[
        "1+" * 3000 + "1",
        "1,2," * 3000 + "3",
        "x" * 5000,
        "9" * 5000,
        "-" * 5000 + "1",
        "_" * 3000,
        "^" * 3000,
    ],
    *["1/" * 500 + "1", "x^" * 500 + "2", "f(" * 200 + "x" + ")" * 200, "|" * 301, "a " * 3000, "1 " * 3000],
    *[
        r"\begin{pmatrix}" + r"1&2&3\\" * 300 + r"\end{pmatrix}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{99999}",
    ],
    *[r"\cup".join(["(1,2)"] * 500), r"\pm 1" * 300, r"\{" * 500 + "1" + r"\}" * 500, r"\text{" * 3000],
    *[
        r"\boxed{" * 20_000,
        r"\boxed{6}" * 20_000,
        "}" * 100_000,
        "{" * 100_000,
        "\\" * 100_001,
        " " * 100_000,
    ],
]
"""Answers that cost graders time; a reference of each kind is asked for each."""
GIVE_UP = 20.0
"""Seconds after which math-verify is killed."""
REFERENCES = ("5", r"\sqrt{5}+x")

Judge = Callable[[str, str, str], bool]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--quick", action="store_true", help="a sample of everything")
    parser.add_argument("--pool", type=int, default=0, metavar="N", help="also a pool of N workers")
    parser.add_argument(
        "--cases", type=Path, metavar="FILE", help="instead of all this, the cases of a file by kind"
    )
    args = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    if args.cases:
        by_kind(args.cases)
    else:
        everything(args)


def everything(args: argparse.Namespace) -> None:
    """Print accuracy, false accepts, hostile input and speed."""
    rng = random.Random(0)
    pairs = [
        json.loads(line)
        for line in Path(__file__).with_name("math_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    gold = {name: read(args.data / file, field) for name, (file, field) in FILES.items()}
    rows = [(q, a) for name in gold for q, a in gold[name]]
    hard = [row for name in ("MATH-500", "AIME", "AMC") for row in gold[name]]
    easy = [*gold["GSM8K test"], *gold["GSM8K train"]]
    changed = [(q, a, kind, text) for q, a in rows for kind, text in mutations(q, a, rng)]
    hostile = [(reference, text) for reference in REFERENCES for text in HOSTILE]
    if args.quick:
        pairs, rows = rng.sample(pairs, 60), rng.sample(rows, 60)
        changed, hostile = rng.sample(changed, 60), rng.sample(hostile, 60)
    few = (
        rng.sample(rows, min(len(rows), 60 if args.quick else 1000)),
        rng.sample(changed, min(len(changed), 2000)),
    )
    typical = [
        (q, a, answer)
        for q, a in [*hard, *rng.sample(easy, len(hard))]
        for answer in (a, *[text for _, text in mutations(q, a, rng)][:1])
    ]
    rng.shuffle(typical)
    math.warm_up()
    ours(REFERENCES[1], r"\sin x", "")
    table = Table("", "openprime", "math-verify", title="Mathematics: ours beside math-verify called plainly")
    for column in table.columns[1:]:
        column.justify = "right"

    both: list[tuple[Judge, list[Any], list[Any]]] = [(ours, rows, changed), (plain, *few)]
    cells = defaultdict(list)
    for judge, some_rows, some_changed in both:
        start = time.perf_counter()
        found = [(p, judge(p["answer"], p["prediction"], p.get("question", ""))) for p in pairs]
        right = [accepted for p, accepted in found if p["right"]]
        wrong = [accepted for p, accepted in found if not p["right"]]
        cells["pairs: accuracy"].append(
            f"{(sum(right) + len(wrong) - sum(wrong)) / len(found):.3f} of {len(found)}"
        )
        cells["pairs: right accepted"].append(f"{sum(right)} of {len(right)}")
        cells["pairs: wrong accepted"].append(f"{sum(wrong)} of {len(wrong)}")
        kept = sum(judge(a, a, q) for q, a in some_rows)
        cells["references against themselves: right"].append(f"{kept:,} of {len(some_rows):,}")
        accepted = defaultdict(list)
        for q, a, kind, text in some_changed:
            accepted["N% for N" if kind == "percent" else "changed"].append(judge(a, text, q))
        for kind in ("changed", "N% for N"):
            cells[f"{kind} references accepted"].append(f"{sum(accepted[kind]):,} of {len(accepted[kind]):,}")
        print(f"{judge.__name__}: {time.perf_counter() - start:.0f} s", flush=True)

    for judge, some in ((ours, typical), (plain, typical[: 100 if args.quick else 400])):
        for cached in (math._judge, math._parse, math.tidy, math.read, math.quantity):
            cached.cache_clear()
        start = time.perf_counter()
        for q, a, answer in some:
            judge(a, answer, q)
        cells["answers a second, one process"].append(f"{len(some) / (time.perf_counter() - start):,.0f}")
    for seconds in (hostile_ours(hostile), hostile_plain(hostile)):
        over = [sum(s > limit for s in seconds) for limit in (1, 5)]
        cells["hostile answers over 1 s"].append(f"{over[0]} of {len(seconds)}")
        cells["hostile answers over 5 s"].append(f"{over[1]} of {len(seconds)}")
        cells["slowest hostile answer, s"].append(f"{max(seconds):.1f}")

    if args.pool:
        cells[f"answers a second, a pool of {args.pool}"] = [f"{through_pool(typical, args.pool):,.0f}", ""]
    for name, values in cells.items():
        table.add_row(name, *values)
    Console(width=100).print(table)


def by_kind(file: Path) -> None:
    """Print how many cases of each kind have the right verdict, and which have a wrong one."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("kind", "math") == "math"]
    columns = ("cases", "earlier", "openprime", "last box", "math-verify")
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * len(columns))
    accepted = [0] * len(columns)
    for row in rows:
        prompt = Prompt("p", (), row.get("prompt") or "", row["answer"])
        verdicts = [
            row["expected"] == 1,
            str(row.get("got", "")).startswith("1"),
            *(
                math.verify_math(prompt, [row["response"]], place)[0].outcome == 1
                for place in ("auto", "last_box")
            ),
            verify(parse(f"${row['answer']}$"), parse(row["response"])),
        ]
        for kind in (row["why"].removeprefix("FA: ").removeprefix("FR: ").partition(":")[0], "all"):
            counts[kind] = [
                n + (v == bool(row["expected"])) for n, v in zip(counts[kind], verdicts, strict=True)
            ]
        accepted = [n + (v and not row["expected"]) for n, v in zip(accepted, verdicts, strict=True)]
        if verdicts[2] != bool(row["expected"]):
            print(f"not right: {row['response'][-80:]!r} for {row['answer']!r}, expected {row['expected']}")
    table = Table("kind", title=f"Right verdicts by kind, {file.name}")
    for column in columns:
        table.add_column(column, justify="right")
    for kind, numbers in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        table.add_row(kind, *map(str, numbers), end_section=kind == "all")
    table.add_row("wrong answers accepted", *map(str, accepted))
    Console(width=130).print(table)


def read(path: Path, field: str) -> list[tuple[str, str]]:
    """(question, reference) of every row of a file; of a worked solution what follows ####."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        (r.get("problem") or r["question"], str(r[field]).split("####")[-1].strip().removesuffix(".0"))
        for r in rows
    ]


def mutations(question: str, answer: str, rng: random.Random) -> list[tuple[str, str]]:
    """(kind, near miss) of a reference: for a number six, for anything else one number in it changed."""
    if re.fullmatch(r"-?\d+|-?\d{1,3}(,\d{3})+", answer):
        number = int(answer.replace(",", ""))
        digits = str(abs(number))
        i = rng.randrange(len(digits))
        swapped = digits[:i] + digits[i + 1 : i + 2] + digits[i] + digits[i + 2 :]
        found = {
            "off by one": str(number + rng.choice((-1, 1))),
            "last digit": digits[:-1] + str((int(digits[-1]) + rng.randint(1, 9)) % 10),
            "sign": str(-number),
            "close": str(Fraction(number) + 1) if abs(number) > 10**4 else f"{number}.0001",
            "swapped": swapped,
        }
        if number and "percent" not in question.lower() and "%" not in question:
            found["percent"] = rf"{number}\%"
        return [(kind, text) for kind, text in found.items() if "%" in text or Fraction(text) != number]
    numbers = list(re.finditer(r"\d+", answer))
    if not numbers:
        return []
    one = rng.choice(numbers)
    return [("inside", answer[: one.start()] + str(int(one[0]) + 1) + answer[one.end() :])]


def response(answer: str) -> str:
    """The answer as models write it."""
    return (
        f"We add both sides, simplify the sum, and find it.\n\nTherefore the answer is $\\boxed{{{answer}}}$."
    )


def ours(reference: str, answer: str, question: str) -> bool:
    """Whether the verifier says right."""
    return math.verify_math(Prompt("p", (), question, reference), [response(answer)])[0].outcome == 1.0


def plain(reference: str, answer: str, question: str) -> bool:
    """Whether math-verify says right."""
    return verify(parse(f"${reference}$"), parse(response(answer)))


def hostile_ours(hostile: Sequence[tuple[str, str]]) -> list[float]:
    """Seconds of each hostile answer, in a worker as in training."""
    with Pool(workers=1) as pool:
        verdicts = [pool.submit(Prompt("p", (), "", r), [response(text)])[0].result() for r, text in hostile]
    assert all(v.outcome == 0.0 for v in verdicts), "a hostile answer has another verdict than 0"
    return [v.seconds for v in verdicts]


def hostile_plain(hostile: Sequence[tuple[str, str]]) -> list[float]:
    """Seconds of each hostile answer, GIVE_UP where it had to be killed: its own limits do not always hold."""
    found, process = [], None
    for reference, text in hostile:
        if process is None:
            process = multiprocessing.get_context("spawn").Pool(1, limit_memory)
            process.apply(timed, (REFERENCES[1], r"\sin x"))
        try:
            found.append(process.apply_async(timed, (reference, text)).get(GIVE_UP))
        except multiprocessing.TimeoutError:
            found.append(GIVE_UP)
            process.terminate()
            process = None
    if process:
        process.terminate()
    return found


def limit_memory() -> None:
    """4 GiB for this process."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))


def timed(reference: str, text: str) -> float:
    """Seconds that math-verify takes."""
    start = time.perf_counter()
    with contextlib.suppress(RecursionError, MemoryError):
        plain(reference, text, "")
    return time.perf_counter() - start


def through_pool(typical: Sequence[tuple[str, str, str]], workers: int) -> float:
    """Answers a second through a pool whose workers have started."""
    with Pool(workers=workers) as pool:
        first = [pool.submit(Prompt("p", (), "", "5"), [response(str(i))])[0] for i in range(20 * workers)]
        for future in first:
            future.result()
        start = time.perf_counter()
        futures = [pool.submit(Prompt("p", (), q, a), [response(answer)])[0] for q, a, answer in typical]
        for future in futures:
            future.result()
        return len(typical) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
