"""GSM8K's short problems: rows whose solution has at most two calculations, without the calculator's annotations.

    python benchmarks/gsm8k_short.py [--train gsm8k-train.jsonl --test gsm8k-test.jsonl] [--out runs/smollm2/data]

Reads openai/gsm8k from the hub, or files with the same fields (one JSON object a line: question, answer), and writes
them, in their order, as sft.jsonl (1,600 rows), rl.jsonl (the other 979 of the training set) and test.jsonl (422). An
annotation is what stands in << >> behind a calculation's sign of equality; a model that learns from it writes every
result twice.
"""

import argparse
import json
import re
from pathlib import Path

from datasets import load_dataset

ANNOTATION = re.compile(r"<<[^<>]*>>")
CALCULATIONS = 2
DEMONSTRATIONS = 1600


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--train", default="")
    parser.add_argument("--test", default="")
    parser.add_argument("--out", default="runs/smollm2/data")
    args = parser.parse_args()
    train, test = short_rows("train", args.train), short_rows("test", args.test)
    parts = {"sft": train[:DEMONSTRATIONS], "rl": train[DEMONSTRATIONS:], "test": test}
    Path(args.out).mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        path = Path(args.out) / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows):,} rows")


def short_rows(split: str, file: str) -> list[dict]:
    """The short problems of a split, from the hub or from a file."""
    if file:
        rows = load_dataset("json", data_files=file, split="train")
    else:
        rows = load_dataset("openai/gsm8k", "main", split=split)
    short = [row for row in rows if 1 <= len(ANNOTATION.findall(row["answer"])) <= CALCULATIONS]
    return [row | {"answer": ANNOTATION.sub("", row["answer"])} for row in short]


if __name__ == "__main__":
    main()
