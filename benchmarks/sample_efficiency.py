"""How many rollouts PRIME saves: real `openprime rl` runs against the outcome-only baseline.

python benchmarks/sample_efficiency.py [--settings clock-8] [--methods distill ...] [--seeds 0 1 2 3 4]
    [--lrs 4e-4 8e-4] [--batches 32 128] [--select 100] [--responses 4] [--out runs/sample-efficiency] [--quick]

A seed is a new noisy demonstrator, SFT model and run. Every method of a seed starts from the same SFT model and, where
it needs an offline PRM, from the same labelled responses, which are counted. Rollouts are counted before the filter;
each is verified once, so they are the verifier calls too. Two protocols: `equal`, the same learning rate of the
policy for all whose name says nothing else, and with --lrs and --batches `tuned`: each method at the best point of the
grid on the seeds of --select, reported on --seeds. Prints how many times fewer rollouts than the baseline an accuracy
needs, with 95 % bootstrap intervals over seeds, and how many times fewer seconds of steps, which says something where
all runs had the machine alike; writes results.json and results.html into --out.

The baseline is the first of --methods: outcome rewards alone with every rollout used four times (`policy.epochs: 4`),
which needs far fewer rollouts than one use of each, or eight times. Most methods below do so too, and say so.

--responses K samples K responses to a prompt instead of 4, and to 4 / K as many prompts, so that a step has as many
rollouts and a run as many steps. The prompts of --batches, and those that are shown, are what they are at K.

It takes hours. What is finished is read, not repeated: call it again to go on.
"""

import argparse
import contextlib
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

from rich.console import Console
from rich.table import Table

import candidates  # noqa: F401  its methods
from openprime.cli import main as openprime
from openprime.evaluation.page import COLOURS, figure, write
from openprime.evaluation.voting import bootstrap_interval
from openprime.run.jsonl import read_jsonl
from openprime.tasks.clock import DIGITS, OPERATIONS, apply

Flags = tuple[object, ...]
MEASURES = ("eval/greedy", "eval/avg@")


@dataclass(frozen=True)
class Setting:
    """A task and the model to begin with."""

    configs: str
    """configs/sft/NAME.yaml and configs/rl/NAME.yaml."""
    rollouts: int
    """About how many a run may take."""
    tokens: int
    """Longest response."""
    task: Callable[[int], dict[str, object]] = lambda seed: {}
    """Settings of the data by seed."""
    sft: Flags = ()
    """Flags of the SFT alone, such as more epochs."""
    pretrained: bool = False
    """The SFT starts from a model trained on right and wrong solutions by others, each with its outcome."""
    thresholds: tuple[float, ...] = (0.5, 0.7, 0.9)


def verified_by_code(seed: int) -> dict[str, object]:
    """A demonstrator of its own for every seed."""
    return {"task-seed": seed}


def clock(horizon: int) -> Callable[[int], dict[str, object]]:
    """A demonstrator of its own for every seed."""
    return lambda seed: {"task-seed": seed, "horizon": horizon}


SETTINGS = {
    "clock-8": Setting("tiny", 4000, 48, clock(8)),
    "clock-16": Setting("tiny", 4000, 80, clock(16), ("--epochs", 6)),
    "clock-32": Setting("tiny", 4000, 144, clock(32), ("--epochs", 8)),
    "pretrained": Setting("tiny", 3000, 48, clock(8), ("--epochs", 2), pretrained=True),
    "programs": Setting("programs-tiny", 3000, 96, verified_by_code, thresholds=(0.5, 0.7, 0.9)),
    "gym": Setting("gym-tiny", 4000, 64, thresholds=(0.5, 0.55, 0.6)),
}
LR = 4e-4
"""Of the policy, in the protocol `equal`, of every method whose name says nothing else."""


@dataclass(frozen=True)
class Method:
    """A way to train."""

    flags: Flags = ()
    warm: int = 0
    """Prompts, 4 responses each, that an offline PRM is trained on before; they are counted."""
    batch: int = 32
    """Prompts of a step, of 4 responses each."""
    per_step: int = 230
    """About how many rollouts a step of 32 prompts, 4 responses each, takes with its filter: how long a run is."""
    share: float = 1.0
    """Of the setting's rollouts: less where a step takes long."""
    lr: float = LR
    """Of the policy, in the protocol `equal`."""


NO_FILTER: Flags = ("--filter.low", 0, "--filter.high", 1)
PROCESS: Flags = ("--prm.lr", 1e-3, "--prm.beta", 0.3, "--prm.warmup", 4)
ONCE: Flags = ("--policy.epochs", 1, "--policy.warmup", 4)
REUSED: Flags = ("--policy.epochs", 4, "--policy.warmup", 8)
TWICE_AS_OFTEN: Flags = ("--policy.epochs", 8, "--policy.warmup", 8)
DISTILL: Flags = (
    *(*NO_FILTER, "--policy.epochs", 1, "--policy.warmup", 8, "--policy.minibatch", 32),
    *("--prm.lr", 3e-3, "--prm.minibatch", 32, "--prm.warmup", 0.1, "--distill.prm-epochs", 2),
)
LONGER: Flags = ("--prm.lr", 1e-3, "--prm.minibatch", 64, "--distill.prm-epochs", 8)
"""A PRM that is to be the policy itself learns slowly."""
GATE: Flags = ("--advantage.skill-gate",)
PREFIX: Flags = ("--prm.lr", 1e-3, "--prm.warmup", 4, "--prm.loss", "prefix", "--prm.beta", "auto")
SCALED: Flags = ("--advantage.scaling", "return")
"""The rewards of a PRM with a large beta, brought to the size of outcomes."""
FOLLOWING: Flags = ("--prm.reference", "policy", "--prm.update", "before")
"""The reference is the policy that sampled; the PRM has learnt from its samples before it scores them."""


def algorithm(name: str, *flags: object) -> Flags:
    """Flags of one of the package's methods, or of those in candidates.py."""
    return ("--algorithm", name, *flags)


METHODS = {
    "outcome-only, 4 epochs": Method(algorithm("outcome", *REUSED)),
    "outcome-only, 8 epochs": Method(algorithm("outcome", *TWICE_AS_OFTEN)),
    "MaxRL, 8 epochs": Method(algorithm("maxrl", *TWICE_AS_OFTEN)),
    "TPO, 8 epochs": Method(algorithm("tpo", *TWICE_AS_OFTEN)),
    "outcome-only": Method(algorithm("outcome", *ONCE)),
    "MaxRL, 4 epochs": Method(algorithm("maxrl", *REUSED)),
    "TPO, 4 epochs": Method(algorithm("tpo", *REUSED)),
    "SPRO, 4 epochs": Method(algorithm("spro", *REUSED, "--advantage.estimator", "grpo")),
    "PRIME, after": Method(algorithm("prime", *PROCESS, *ONCE, "--prm.update", "after")),
    "PRIME, before": Method(algorithm("prime", *PROCESS, *ONCE, "--prm.update", "before")),
    "PRIME, after, 4 epochs": Method(algorithm("prime", *PROCESS, *REUSED)),
    "PRIME, gate, 4 epochs": Method(algorithm("prime", *PROCESS, *REUSED, *GATE)),
    "PRIME, improved, 4 epochs": Method(algorithm("improved", *PROCESS, *REUSED, *GATE, "--prm.beta", 0.5)),
    "PRIME, balanced, 4 epochs": Method(algorithm("prime", *PROCESS, *REUSED, "--prm.balance")),
    "PRIME, prefix, 4 epochs": Method(algorithm("prime", *PREFIX, *SCALED, *REUSED)),
    "PRIME, prefix, balanced, 4 epochs": Method(
        algorithm("prime", *PREFIX, *SCALED, *REUSED, "--prm.balance")
    ),
    "PRIME, prefix, balanced, policy reference, 4 epochs": Method(
        algorithm("prime", *PREFIX, *SCALED, *REUSED, "--prm.balance", *FOLLOWING)
    ),
    "DistRL, 4 epochs": Method(algorithm("distrl", *PREFIX, *REUSED, "--prm.balance", *FOLLOWING)),
    "PRIME, frozen PRM, 4 epochs": Method(
        algorithm("prime", *PROCESS, *REUSED, "--prm.update", "never"), 128
    ),
    "PRIME, offline start, 4 epochs": Method(algorithm("prime", *PROCESS, *REUSED), warm=128),
    "oracle step checker alone, 4 epochs": Method(algorithm("checker", *NO_FILTER, *REUSED), per_step=128),
    "distill": Method(algorithm("distill", *DISTILL), batch=64, per_step=128),
    "distill, replay": Method(algorithm("distill", *DISTILL, "--distill.replay", 1), batch=64, per_step=128),
    "distill, twice the rate": Method(algorithm("distill", *DISTILL), batch=64, per_step=128, lr=8e-4),
    "distill, twice the rate, replay": Method(
        algorithm("distill", *DISTILL, "--distill.replay", 1), batch=64, per_step=128, lr=8e-4
    ),
    "distill, replay, twice as long": Method(
        algorithm("distill", *DISTILL, "--distill.replay", 1), batch=64, per_step=128, share=2.0
    ),
    "distill, half of the PRM": Method(
        algorithm("distill", *DISTILL, "--distill.prm-depth", 0.5), batch=64, per_step=128
    ),
    "distill, five times longer": Method(algorithm("distill", *DISTILL), batch=64, per_step=128, share=5.0),
    "distill, without outcomes beside it": Method(
        algorithm("distill", *DISTILL, "--distill.outcome-weight", 0), batch=64, per_step=128
    ),
    "distill, the PRM is the policy": Method(
        algorithm("undistilled", *DISTILL, *LONGER), batch=128, per_step=128, share=0.5
    ),
    "distill, shuffled outcomes": Method(algorithm("shuffled", *DISTILL), batch=64, per_step=128, share=0.5),
    "distill, the sharpened policy, no PRM": Method(
        algorithm("sharpened", *DISTILL), batch=64, per_step=128, share=0.5
    ),
}
"""The first is what all others are compared with."""


@dataclass(frozen=True)
class Result:
    """One finished run."""

    rows: list[dict]
    """Lines of metrics.jsonl."""
    warm: int
    """Judged rollouts before the first step."""
    collapsed: bool
    """The last greedy accuracy is more than .2 below the run's best."""

    def curve(self, measure: str, clock: bool = False) -> list[tuple[float, float]]:
        """(rollouts, which are verifier calls, and the accuracy) of each evaluation; seconds of steps by the clock."""
        points, seconds = [], 0.0
        for row in self.rows:
            seconds += row.get("time/step", 0.0)
            key = next((k for k in row if k.startswith(measure)), None)
            if key:
                points.append((seconds if clock else row.get("rollout/rollouts", 0) + self.warm, row[key]))
        return points

    def mean(self, metric: str) -> float:
        """Mean over steps; nan where it was not logged."""
        values = [row[metric] for row in self.rows if metric in row]
        return statistics.fmean(values) if values else math.nan


def crossing(curve: list[tuple[float, float]], threshold: float) -> float:
    """Where a curve first reaches the threshold, on straight lines between evaluations; inf if nowhere."""
    before = None
    for x, y in curve:
        if y >= threshold:
            if before is None or y == before[1]:
                return x
            return before[0] + (x - before[0]) * (threshold - before[1]) / (y - before[1])
        before = x, y
    return math.inf


def seconds_to(results: list[Result], threshold: float) -> list[float]:
    """Seconds of steps to a sampled accuracy, of every run."""
    return [crossing(r.curve(MEASURES[1], clock=True), threshold) for r in results]


def reached(curve: list[tuple[float, float]], rollouts: float) -> float:
    """The accuracy after so many rollouts, on straight lines between evaluations; the last one behind the end."""
    for (x, y), (after, then) in pairwise(curve):
        if x <= rollouts <= after:
            return y + (then - y) * (rollouts - x) / (after - x)
    return curve[-1][1]


def ratio(baseline: list[float], method: list[float], ends: list[float]) -> dict:
    """How many times fewer: geometric mean over seeds of baseline / method, and its interval.

    Seeds in which the method does not arrive have no number, `arrived` tells. Where the baseline does not, its run's
    end stands for it (`ends`), and the ratio is a lower bound. Seeds that begin above the threshold are left out.
    """
    logs, bound = [], False
    for c, m, end in zip(baseline, method, ends, strict=True):
        if math.isfinite(m) and m > 0 < c:
            logs.append(math.log(min(c, end) / m))
            bound |= not math.isfinite(c)
    arrived = [sum(map(math.isfinite, values)) for values in (baseline, method)]
    found: dict = {"seeds": len(method), "arrived": arrived, "ratio": None, "interval": None, "bound": bound}
    if logs:
        low, high = bootstrap_interval(logs)
        found |= {"ratio": math.exp(statistics.fmean(logs)), "interval": [math.exp(low), math.exp(high)]}
    return found


# Runs


@dataclass(frozen=True)
class Bench:
    """Where the runs lie, and how long and how precisely they are measured."""

    out: Path
    quick: bool
    responses: int = 4
    """To each prompt."""

    def run(self, setting: str, name: str, seed: int, lr: float, batch: int) -> Result:
        """A finished run is read; what is missing is run."""
        s, method = SETTINGS[setting], METHODS[name]
        folder = self.out / setting / str(seed)
        sft = self.sft(s, folder, seed)
        prm = self.prm(s, folder, seed, sft, method.warm) if method.warm else None
        rows = batch * self.responses
        steps = max(3, round(method.share * s.rollouts / (method.per_step * rows / 128)))
        point = f"{lr:g}-{batch}" + (f"-{self.responses}" if self.responses != 4 else "")
        place = folder / "rl" / f"{name.replace(', ', '-').replace(' ', '-')}-{point}"
        done, failed = place / "done", place / "failed"
        command: list[object] = ["rl", f"configs/rl/{s.configs}.yaml", "--out", place, "--seed", seed]
        command += ["--model", sft, "--steps", 3 if self.quick else steps]
        command += data_flags(s, seed, "data", "eval-data")
        # About 250 rollouts between two evaluations.
        command += ["--eval.every", max(1, 128 // rows * (2 if method.per_step == 128 else 1))]
        command += ["--eval.samples", 2, "--eval-data.limit", 20 if self.quick else 100, "--data.limit", 6000]
        command += ["--rollout.max-response-tokens", s.tokens, "--save-every", 0, "--sample-every", 0]
        command += ["--rollout.prompts", batch, "--rollout.responses", self.responses]
        command += ["--policy.minibatch", min(128, rows), "--policy.lr", lr]
        command += [*method.flags, *(("--prm.model", prm) if prm else ())]
        if not done.is_file() and not failed.is_file():
            status = openprime([*(str(part) for part in command), "--resume"])
            if status >= 128 or not (place / "metrics.jsonl").is_file():
                raise SystemExit(status)
            (done if status == 0 else failed).touch()
        rows = read_jsonl(place / "metrics.jsonl")
        greedy = [row["eval/greedy"] for row in rows if "eval/greedy" in row]
        return Result(rows, 4 * method.warm, greedy[-1] < max(greedy) - 0.2)

    def sft(self, s: Setting, folder: Path, seed: int) -> Path:
        """The model that all methods of a seed start from."""
        model = folder / "sft" / "model"
        base = [
            "sft",
            f"configs/sft/{s.configs}.yaml",
            "--seed",
            seed,
            *data_flags(s, seed, "data", "eval-data"),
        ]
        if not model.is_dir():
            start: list[object] = []
            if s.pretrained:
                read = folder / "read.jsonl"
                write_read(read, seed)
                must([*base, "--data.source", read, "--eval-data.source", "", "--out", folder / "pretrain"])
                start = ["--model", folder / "pretrain" / "model"]
            must([*base, *start, *s.sft, "--out", folder / "sft"])
        return model

    def prm(self, s: Setting, folder: Path, seed: int, sft: Path, prompts: int) -> Path:
        """An offline PRM from `prompts` x 4 labelled responses of the SFT model."""
        prm = folder / f"prm-{prompts}" / "prm"
        if not prm.is_dir():
            judged = folder / f"generate-{prompts}"
            rl = ["--model", sft, "--seed", seed]
            asked = ["generate", "configs/generate/tiny.yaml", *rl, *data_flags(s, seed, "data")]
            must([*asked, "--data.limit", prompts, "--max-response-tokens", s.tokens, "--out", judged])
            source = [
                "--data.source",
                judged / "responses.jsonl",
                "--held-out",
                0,
                "--epochs",
                8,
                "--out",
                prm.parent,
            ]
            must(["prm", "configs/prm/tiny.yaml", *rl, *source])
        return prm


def write_read(path: Path, seed: int) -> None:
    """6,000 solutions of shorter chains, half of them with a slip somewhere, and the verdict behind each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"read-{seed}")
    with path.open("w", encoding="utf-8") as file:
        for i in range(6000):
            horizon = rng.choice((2, 3, 4, 6, 8))
            digit = true = rng.randrange(10)
            operations = [rng.choice(OPERATIONS) for _ in range(horizon)]
            slip = rng.randrange(horizon) if i % 2 else -1
            prompt = [f"Start {DIGITS[digit]}", *(f"{operation} = ?" for operation in operations)]
            lines = []
            for k, operation in enumerate(operations):
                digit, true = apply(operation, digit), apply(operation, true)
                digit = (digit + rng.randrange(1, 10)) % 10 if k == slip else digit
                lines.append(f"{operation} {DIGITS[digit]}")
            lines += [f"#### {digit}", "right" if digit == true else "wrong"]
            row = {"prompt": "\n".join(prompt), "answer": str(true), "response": "\n".join(lines)}
            file.write(json.dumps(row) + "\n")


def data_flags(s: Setting, seed: int, *sections: str) -> list[object]:
    """Settings of the task for one seed."""
    return [part for section in sections for k, v in s.task(seed).items() for part in (f"--{section}.{k}", v)]


def must(command: list[object]) -> None:
    """A command that must succeed; one that was interrupted goes on."""
    status = openprime([*(str(part) for part in command), "--resume"])
    if status:
        raise SystemExit(status)


# Results


def main() -> None:
    """Run what is missing, print the tables, write results.json and results.html."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", default=["clock-8"], choices=SETTINGS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--lrs", type=float, nargs="*", default=[])
    parser.add_argument("--batches", type=int, nargs="*", default=[])
    parser.add_argument(
        "--select", type=int, nargs="*", default=[], help="seeds to choose the grid's point on"
    )
    parser.add_argument("--responses", type=int, default=4, help="K, to a prompt")
    parser.add_argument("--out", default="runs/sample-efficiency")
    parser.add_argument("--quick", action="store_true", help="six steps: does everything run?")
    args = parser.parse_args()
    if (args.lrs or args.batches) and (not args.select or set(args.select) & set(args.seeds)):
        parser.error("a grid is chosen on seeds of its own: give --select, other than --seeds")
    bench, console = Bench(Path(args.out), args.quick, args.responses), Console(width=200)
    grid = list(product(args.lrs or [LR], args.batches or [max(1, 128 // args.responses)]))
    protocols = ["equal"] + (["tuned"] if args.lrs or args.batches else [])
    report: dict = {}
    for setting, protocol in product(args.settings, protocols):
        found, points = {}, {}
        for name in args.methods:
            points[name] = (METHODS[name].lr, max(1, 4 * METHODS[name].batch // args.responses))
            if protocol == "tuned":
                points[name] = best(bench, setting, name, grid, args.select)
            found[name] = [bench.run(setting, name, seed, *points[name]) for seed in args.seeds]
            entry = summary(found, points, SETTINGS[setting].thresholds)
            show(console, setting, protocol, entry)  # after every method: it takes hours
        show_prms(console, entry)
        report[f"{setting}, {protocol}"] = entry
    bench.out.mkdir(parents=True, exist_ok=True)
    (bench.out / "results.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sections = [overview(report), *(page(*item) for item in report.items())]
    write(bench.out / "results.html", "Sample efficiency", sections)
    console.print(f"written: {bench.out / 'results.json'}, results.html")


def best(bench: Bench, setting: str, name: str, grid: list, seeds: list[int]) -> tuple:
    """The point of the grid where the thresholds cost the fewest rollouts on average.

    Geometric mean over thresholds, both accuracies and seeds; where a run does not arrive, twice its rollouts.
    """

    def cost(point: tuple) -> float:
        logs = []
        for result in (bench.run(setting, name, seed, *point) for seed in seeds):
            for measure, threshold in product(MEASURES, SETTINGS[setting].thresholds):
                curve = result.curve(measure)
                needed = crossing(curve, threshold)
                logs.append(math.log(max(1.0, needed if math.isfinite(needed) else 2 * curve[-1][0])))
        return statistics.fmean(logs)

    return min(grid, key=cost)


def summary(found: dict[str, list[Result]], points: dict, thresholds: Sequence[float]) -> dict:
    """What is printed and written of a setting; `points` are the learning rate and the prompts of each method."""
    baseline = next(iter(found.values()))
    entry: dict = {}
    for name, results in found.items():
        row: dict = {
            "lr, batch": list(points[name]),
            "collapsed": sum(r.collapsed for r in results),
            "reach": {},
        }
        for measure, threshold in product(MEASURES, thresholds):
            ours = [crossing(r.curve(measure), threshold) for r in results]
            theirs = [crossing(r.curve(measure), threshold) for r in baseline]
            ends = [r.curve(measure)[-1][0] for r in baseline]
            needed = [x if math.isfinite(x) else None for x in ours]
            label = f"{measure.removeprefix('eval/').replace('avg@', 'sampled')} {threshold}"
            row["reach"][label] = {"needed": needed} | ratio(theirs, ours, ends)
        longest = [r.curve(MEASURES[1], clock=True)[-1][0] for r in baseline]
        row["by the clock"] = [
            ratio(seconds_to(baseline, threshold), seconds_to(results, threshold), longest)
            for threshold in thresholds
        ]
        row["final"] = {m: [r.curve(m)[-1][1] for r in results] for m in MEASURES}
        row["baseline then"] = [
            reached(b.curve(MEASURES[1]), r.curve(MEASURES[1])[-1][0])
            for r, b in zip(results, baseline, strict=True)
        ]
        row["curves"] = {m: [r.curve(m) for r in results] for m in MEASURES}
        for name_of, key in (("pairwise", "prm/pairwise_accuracy"), ("brier", "prm/brier")):
            row[name_of] = [[(x["step"], x[key]) for x in r.rows if key in x] for r in results]
        row["seconds a step"] = statistics.fmean(r.mean("time/step") for r in results)
        entry[name] = row
    return entry


def show(console: Console, setting: str, protocol: str, entry: dict) -> None:
    """A table: times fewer rollouts than the first method."""
    first = next(iter(entry))
    title = f"{setting}, {protocol}: times fewer rollouts (and verifier calls) than {first} (95 % over seeds)"
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("lr, prompts", no_wrap=True)
    ends = "final greedy", "sampled", "baseline then", "pairs", "collapsed", "s/step", "by the clock, sampled"
    for heading in (*entry[first]["reach"], *ends):
        table.add_column(heading, justify="right")
    for name, row in entry.items():
        pairs = [y for curve in row["pairwise"] for _, y in curve]
        table.add_row(
            name,
            "{:g}, {}".format(*row["lr, batch"]),
            *map(cell, row["reach"].values()),
            *(f"{statistics.fmean(row['final'][m]):.3f}" for m in MEASURES),
            f"{statistics.fmean(row['baseline then']):.3f}",
            f"{statistics.fmean(pairs):.2f}" if pairs else "",
            str(row["collapsed"]),
            f"{row['seconds a step']:.2f}",
            ", ".join("-" if x["ratio"] is None else f"{x['ratio']:.2f}" for x in row["by the clock"]),
        )
    console.print(table)


def show_prms(console: Console, entry: dict) -> None:
    """The PRM and the policy over training: mean over seeds, and their range."""
    table = Table(title="PRMs over training, mean over seeds (range)", title_justify="left")
    for heading in ("method", "pairs, steps 1-3", "last 3", "Brier, steps 1-3", "last 3"):
        table.add_column(heading)
    for heading in ("greedy, best", "at the end", "sampled, best", "at the end"):
        table.add_column(heading)
    for name, row in entry.items():
        if all(row["brier"]):
            parts = [
                [statistics.fmean(y for _, y in curve[cut]) for curve in row[key]]
                for key in ("pairwise", "brier")
                for cut in (slice(3), slice(-3, None))
            ]
            for curves in row["curves"].values():
                parts += [[max(y for _, y in curve) for curve in curves], [curve[-1][1] for curve in curves]]
            cells = [f"{statistics.fmean(part):.2f} ({min(part):.2f}-{max(part):.2f})" for part in parts]
            table.add_row(name, *cells)
    if table.row_count:
        console.print(table)


def cell(found: dict) -> str:
    """1.52 (1.31-1.70); how many seeds arrived where it is not all."""
    reached = found["arrived"][1]
    note = "" if reached == found["seeds"] else f" {reached}/{found['seeds']}"
    if found["ratio"] is None:
        return f"-{note}"
    low, high = found["interval"]
    return f"{'>' if found['bound'] else ''}{found['ratio']:.2f}\n({low:.2f}-{high:.2f}){note}"


def overview(report: dict) -> str:
    """Sampled accuracy over rollouts, a plot for every setting."""
    plots = [
        figure(curves(entry, MEASURES[1]), f"{title}: sampled accuracy", "rollouts", "", height=320)
        for title, entry in report.items()
    ]
    return f"<div class=grid>{''.join(plots)}</div>"


def curves(entry: dict, measure: str) -> list[dict]:
    """Accuracy over rollouts: every seed thin, colours by method."""
    return traces({name: row["curves"][measure] for name, row in entry.items()}, 1.5)


def traces(found: dict[str, list], width: float) -> list[dict]:
    """A line a seed, in the colour of its method; where the colours are used up lines are dashed, then dotted."""
    drawn, looks = [], list(product(("solid", "dash", "dot"), COLOURS))
    for (name, lines), (dash, colour) in zip(found.items(), looks, strict=False):
        for i, points in enumerate(line for line in lines if line):
            x, y = zip(*points, strict=True)
            look = {"mode": "lines", "line": {"color": colour, "width": width, "dash": dash}}
            drawn.append(
                {"type": "scatter", "x": x, "y": y, "name": name, "legendgroup": name, "showlegend": i == 0}
                | look
            )
    return drawn


def page(title: str, entry: dict) -> str:
    """Accuracy and the PRMs of a setting."""
    parts = [f"<h2>{title}</h2><div class=grid>"]
    for measure in MEASURES:
        title = f"Held-out accuracy, {measure.removeprefix('eval/').replace('avg@', 'sampled')}"
        parts.append(figure(curves(entry, measure), title, "rollouts", "accuracy", height=420))
    pairs = traces({name: row["pairwise"] for name, row in entry.items()}, 2)
    title = "PRM: pairwise accuracy on new groups"
    parts.append(figure(pairs, title, "step", "accuracy (.5 is chance)", height=420))
    return "".join([*parts, "</div>"])


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
