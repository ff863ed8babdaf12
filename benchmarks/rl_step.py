"""Where the seconds of an RL step go: PRIME and its outcome-only control, one after the other.

openprime sft configs/sft/tiny.yaml && python benchmarks/rl_step.py --model runs/tiny/sft/model [--steps 10]
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from openprime.cli import main as openprime

PHASES = ("rollout", "verify", "reference", "prm", "policy", "step")


def main() -> None:
    """Run both and print the medians over steps, the first one left out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--config", default="configs/rl/tiny.yaml")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in {"PRIME": [], "outcome-only": ["--advantage.process-weight", "0"]}.items():
            out = Path(folder) / name
            command = [
                "rl",
                args.config,
                "--model",
                args.model,
                "--steps",
                str(args.steps),
                "--out",
                str(out),
            ]
            status = openprime([*command, "--eval-data.source", "", *flags])
            if status:
                raise SystemExit(status)
            rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
            table[name] = {p: statistics.median(r.get(f"time/{p}", 0.0) for r in rows) for p in PHASES}
            table[name]["tok/s"] = statistics.median(r["rollout/tokens_per_second"] for r in rows)
            table[name]["tokens"] = statistics.median(r["rollout/tokens"] for r in rows)
    print(f"\n{'median seconds':16}" + "".join(f"{p:>11}" for p in (*PHASES, "tok/s", "tokens")))
    for name, row in table.items():
        seconds = "".join(f"{row[p]:11.3f}" for p in PHASES)
        print(f"{name:16}{seconds}{row['tok/s']:11,.0f}{row['tokens']:11,.0f}")
    print(f"PRIME / outcome-only: {table['PRIME']['step'] / table['outcome-only']['step']:.2f}")


if __name__ == "__main__":
    main()
