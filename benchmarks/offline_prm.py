"""An offline implicit PRM on the embedded task: Best-of-16 by each training loss, five seeds.

python benchmarks/offline_prm.py [--out runs/offline-prm] [--seeds 0 1 2 3 4] [--losses ce dpo nca kto] [--json FILE]

For each seed: a new noisy demonstrator and its SFT model, 512 prompts x 4 labelled responses, an implicit PRM by each
loss from the same responses, and the choice among the same 16 responses to 200 held-out prompts. Prints the mean over
seeds with a 95 % bootstrap interval over seeds, and the difference to the baselines seed by seed. What is finished is
kept: call it again to go on.
"""

import argparse
import json
import shlex
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from openprime.cli import main as openprime
from openprime.evaluation.voting import bootstrap_interval

BASELINES = ("random", "majority vote", "reference log-probability", "oracle")
CHOICES = ("PRM", "PRM, mean of steps", "PRM, lowest step", "PRM-weighted vote")
HELD_OUT = ("pairwise_accuracy", "auc", "ece", "brier", "lowest_step_last")


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/offline-prm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--losses", nargs="+", default=["ce", "dpo", "nca", "kto"])
    parser.add_argument("--json", default="")
    args = parser.parse_args()
    found = {
        loss: [one(Path(args.out) / str(seed), seed, loss) for seed in args.seeds] for loss in args.losses
    }
    show(found)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def one(folder: Path, seed: int, loss: str) -> dict:
    """The PRM of one loss on one seed: accuracies of the choice among 16, and held-out measures."""
    sft, generated, prm, first, judged = (
        folder / name for name in ("sft", "generate", loss, "evaluate", f"evaluate-{loss}")
    )
    task = f"--data.task-seed {seed} --seed {seed}"
    if not (sft / "model").is_dir():
        run(f"sft configs/sft/tiny.yaml {task} --eval-data.task-seed {seed} --out {sft}")
    run(f"generate configs/generate/tiny.yaml --model {sft}/model {task} --out {generated}")
    if not (prm / "prm").is_dir():
        source = f"--model {sft}/model --data.source {generated}/responses.jsonl"
        run(f"prm configs/prm/tiny.yaml {source} --loss {loss} --seed {seed} --out {prm}")
    entry = folder / "clock.yaml"
    entry.write_text(
        f"data: {{source: 'task:clock', limit: 200, horizon: 8, task_seed: {seed}}}\nmax_response_tokens: 48\n",
        encoding="utf-8",
    )
    # All losses choose among the same responses: sampled once, then read again.
    choose = f"evaluate {sft}/model --benchmark {entry} --samples 16 --seed {seed}"
    run(f"{choose} --out {first}")
    run(f"{choose} --responses {first}/clock/responses.jsonl --prm {prm}/prm --out {judged}")
    table = read(judged / "results.json")["benchmarks"]["clock"]["best_of_n"]
    choices = {name: {n: row[n][0] for n in row} for name, row in table.items()}
    return {"seed": seed, "best_of_n": choices, "held_out": read(prm / "held_out.json")["end"]}


def run(command: str) -> None:
    """A command that must succeed; one that was interrupted goes on."""
    status = openprime([*shlex.split(command), "--resume"])
    if status:
        raise SystemExit(status)


def read(path: Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def show(found: dict[str, list[dict]]) -> None:
    """Best-of-16 by loss, and the held-out measures."""
    console = Console(width=120)
    seeds = len(next(iter(found.values())))
    table = Table(title=f"Best of 16, mean of {seeds} seeds (95 % interval over seeds)", title_justify="left")
    for heading in ("chosen by", *found):
        table.add_column(heading, justify="right")
    for name in (*BASELINES, *CHOICES):
        table.add_row(name, *(cell([r["best_of_n"][name]["16"] for r in rows]) for rows in found.values()))
    for other in ("majority vote", "reference log-probability"):
        table.add_row(
            f"PRM less {other}",
            *(
                cell([r["best_of_n"]["PRM"]["16"] - r["best_of_n"][other]["16"] for r in rows])
                for rows in found.values()
            ),
        )
    console.print(table)
    table = Table(title="Held-out measures of the PRM", title_justify="left")
    for heading in ("measure", *found):
        table.add_column(heading, justify="right")
    for name in HELD_OUT:
        table.add_row(name, *(cell([r["held_out"][name] for r in rows]) for rows in found.values()))
    console.print(table)


def cell(values: list[float]) -> str:
    """Mean and interval."""
    low, high = bootstrap_interval(values)
    return f"{np.mean(values):.3f} ({low:.3f}, {high:.3f})"


if __name__ == "__main__":
    main()
