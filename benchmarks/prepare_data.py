"""`openprime data` on a synthetic file: how many of the planted faults it finds, how long it takes, how much memory.

python benchmarks/prepare_data.py --rows 400000 --out FOLDER
"""

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

NAMES = "Ana Ben Chloe Dmitri Esra Farid Grete Hugo Ines Jun Kofi Lena Marek Nadia Omar Priya Quentin Rosa"
THINGS = (
    "apples bolts candles drums eggs feathers gloves hats inks jars kites lamps maps nets oars pens quilts ropes "
    "urns vases wheels yams zithers books coins dolls flags rings"
)
PLACES = "market harbour school garden station library mill theatre bakery museum farm island castle workshop"
CLAUSES = (
    "{a} buys {n} {x} at the {p} and {m} {y} from {b}",
    "on the way to the {p} {a} loses {n} of the {x} that {b} had packed",
    "every {x} costs {n} cents more than {m} {y} did before {a} left the {p}",
    "{b} trades {n} {x} for {m} {y} with a friend of {a} behind the {p}",
    "the {p} holds {n} shelves with {m} {x} each, half of which belong to {a}",
    "after {n} days {a} and {b} have painted {m} {x} and broken some {y}",
    "for each {y} in the {p} there are {n} {x} that nobody but {b} has counted",
    "{a} is {n} years older than {b}, whose {x} weigh {m} grams like the {y}",
    "a train with {n} wagons of {x} passes the {p} where {b} waits for {m} {y}",
    "{b} pours {n} litres over the {x} while {a} stacks {m} {y} near the {p}",
    "one in {n} {x} from the {p} is damp, so {a} returns {m} {y} to {b}",
    "the mayor gives {a} {n} medals and {b} {m} {x} for saving the {y} of the {p}",
)
ASKED = (
    "How many {x} does {a} have?",
    "Find the number of {y}.",
    "What does {b} pay for the {x}?",
    "How long is it?",
)
PLANTED = {
    "figure": 0.02,
    "proof": 0.02,
    "no_reference": 0.01,
    "unparsable": 0.02,
    "choice": 0.01,
    "opened": 0.03,
    "duplicate": 0.05,
    "near_duplicate": 0.05,
    "variant": 0.05,
}
"""Shares of the rows. A variant is an earlier question with other numbers and another answer, which is kept."""


def question(rng: random.Random) -> str:
    """A question of three clauses, unlike all others."""

    def filled(form: str) -> str:
        (a, b), (x, y) = rng.sample(NAMES.split(), 2), rng.sample(THINGS.split(), 2)
        return form.format(
            a=a, b=b, x=x, y=y, p=rng.choice(PLACES.split()), n=rng.randint(2, 999), m=rng.randint(2, 999)
        )

    clauses = [filled(form) for form in rng.sample(CLAUSES, 3)]
    return ". ".join(clause[0].upper() + clause[1:] for clause in clauses) + ". " + filled(rng.choice(ASKED))


def reworded(text: str, rng: random.Random) -> str:
    """The same question but for one word."""
    words = text.split(" ")
    at = rng.randrange(len(words))
    return " ".join([*words[:at], "really", *words[at:]])


def renumbered(text: str, rng: random.Random) -> str:
    """The same question with other numbers in one place."""
    words = text.split(" ")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    words[rng.choice(numbers)] = str(rng.randint(1000, 9999))
    return " ".join(words)


def write(path: Path, rows: int, seed: int = 0) -> Counter:
    """Write the rows; returns how many of each kind."""
    rng, kinds = random.Random(seed), Counter()
    names, shares = list(PLANTED), list(PLANTED.values())
    earlier: list[tuple[str, str]] = []
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            kind = (
                rng.choices([*names, "kept"], [*shares, 1 - sum(shares)])[0]
                if len(earlier) >= 100
                else "kept"
            )
            kinds[kind] += 1
            text, answer = (
                question(rng),
                str(rng.choice((rng.randint(1, 999), f"{rng.randint(1, 9)}/{rng.randint(11, 19)}"))),
            )
            if kind in ("duplicate", "near_duplicate", "variant"):
                text, answer = rng.choice(earlier)
            if kind == "figure":
                text = f"As shown in the figure below, {text}"
            elif kind == "proof":
                text = f"{text} Prove that the number is even."
            elif kind == "no_reference":
                answer = rng.choice(("", " ", "null"))
            elif kind == "unparsable":
                answer = rng.choice(
                    (r"\frac{3}{", "it holds for all of them because every second one was sold twice")
                )
            elif kind == "choice":
                text = f"{text} Which of the following is true? (A) it is even (B) it is odd (C) it is prime"
                answer = "B"
            elif kind == "opened":
                text, answer = (
                    f"{text} (A) {answer} (B) {rng.randint(1000, 1999)} (C) {rng.randint(2000, 2999)}",
                    "A",
                )
            elif kind == "near_duplicate":
                text = reworded(text, rng)
            elif kind == "variant":
                text, answer = renumbered(text, rng), str(rng.randint(1000, 9999999))
            elif kind == "kept" and len(earlier) < 100_000:
                earlier.append((text, answer))
            file.write(json.dumps({"kind": kind, "problem": text, "answer": answer, "number": i}) + "\n")
    return kinds


def main() -> None:
    """Make the file, run the command, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "rows.jsonl"
    kinds = write(path, given.rows)
    print(f"{given.rows:,} rows, {path.stat().st_size / 2**20:.0f} MiB", flush=True)
    command = [
        sys.executable,
        "-m",
        "openprime",
        "data",
        "--data.source",
        str(path),
        "--out",
        str(given.out / "prepared"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    folder = given.out / "prepared"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    became: dict[str, Counter] = {kind: Counter() for kind in kinds}
    with (folder / "dropped.jsonl").open(encoding="utf-8") as dropped, path.open(encoding="utf-8") as rows:
        lost = {row["origin"]: row["reason"] for row in map(json.loads, dropped)}
        for i, row in enumerate(map(json.loads, rows)):
            became[row["kind"]][lost.get(f"rows.jsonl:{i}", "kept")] += 1
    print(f"{'planted':<16}{'rows':>9}  what became of them")
    for kind, counts in became.items():
        print(
            f"{kind:<16}{kinds[kind]:>9,}  " + ", ".join(f"{name} {n:,}" for name, n in counts.most_common())
        )
    print(", ".join(f"{name} {report[name]}" for name in ("seconds", "cpu_seconds", "peak_mib")))


if __name__ == "__main__":
    main()
