"""How many rollouts and verifier calls PRIME saves: real `openprime rl` runs against the outcome-only control.

python benchmarks/sample_efficiency.py [--settings clock-8] [--methods outcome-only ...] [--seeds 0 1 2 3 4]
    [--lrs 2e-4 4e-4] [--batches 8 32] [--select 100 101] [--out runs/sample-efficiency] [--quick]

A seed is a new pupil, a new SFT model and a new run. Every method of a seed starts from the same SFT model and, where
it wants an offline PRM, from the same judged responses, which count as rollouts and as verifier calls. Rollouts are
counted before the filter. Two protocols: `equal` (the learning rate and batch of the setting's configuration) and,
with --lrs and --batches, `tuned`: each method at the best point of the grid on the seeds of --select, reported on
--seeds. Prints how many times fewer rollouts and verifier calls than the first method are needed to reach an
accuracy, with 95 % bootstrap intervals over seeds, and writes results.json and results.html into --out.

The first of --methods is what the others are compared with. "outcome-only, 4 epochs" uses every label four times, as
an offline PRM does: a method that beats only the first control has gained from that alone.

It takes hours. What is finished is read, not repeated: call it again to go on.
"""

import argparse
import contextlib
import json
import math
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from candidates import Candidate, Lab, only_changed
from openprime.algorithm.voting import bootstrap_interval
from openprime.cli import main as openprime
from openprime.stages.report import COLOURS, draw, read_jsonl, write_html

Flags = tuple[object, ...]
MEASURES = ("eval/greedy", "eval/avg@")
COUNTS = ("rollouts", "verifier calls")


@dataclass(frozen=True)
class Setting:
    """A task and the model to begin with."""

    configs: str
    """configs/sft/NAME.yaml and configs/rl/NAME.yaml."""
    steps: int
    tokens: int
    """Longest response."""
    task: Callable[[int], dict[str, object]] = lambda seed: {}
    """Settings of the data by seed."""
    sft: Flags = ()
    """Flags of the SFT alone, such as more epochs."""
    pretrain: Flags = ()
    """Flags of an SFT before it, on broader data; then the SFT goes on from that model."""
    thresholds: tuple[float, ...] = (0.5, 0.7, 0.9)


def clock(horizon: int) -> Callable[[int], dict[str, object]]:
    """A pupil of its own for every seed."""
    return lambda seed: {"task-seed": seed, "horizon": horizon}


SETTINGS = {
    "clock-8": Setting("tiny", 60, 48, clock(8)),
    "clock-16": Setting("tiny", 80, 80, clock(16), ("--epochs", 6)),
    "clock-32": Setting("tiny", 100, 144, clock(32), ("--epochs", 8)),
    "gym": Setting("gym-tiny", 60, 48),
}


PACKAGE = Candidate()


@dataclass(frozen=True)
class Method:
    """A way to train."""

    flags: Flags = ()
    candidate: Candidate = PACKAGE
    warm: int = 0
    """Prompts, 4 responses each, that an offline PRM is trained on before; they are counted."""
    warm_epochs: int = 4
    """Passes of the offline PRM over them."""
    steps: int = 0
    """0: as many as the setting says."""
    policy_from_prm: bool = False
    """The policy starts from the offline PRM, which is a language model too."""


OUTCOME: Flags = ("--advantage.process-weight", 0)
ALONE: Flags = ("--advantage.outcome-weight", 0, "--filter.low", 0, "--filter.high", 1)
CHECKER = Candidate(checker=True, verified=0)
IMPROVED = Candidate(credit="token", clip=(-2.0, 0.3), gate=True, prm_updates=2)
REFRESHED = Candidate(verified=8, credit="all", clip=(-2.0, 0.3), anchor=0.5)
TEACHER = Candidate(verified=0, credit="all", clip=(-2.0, 0.3), anchor=0.5)
REUSED: Flags = ("--policy.epochs", 4, "--policy.warmup", 8)
TAUGHT: Flags = (*ALONE, *REUSED, "--prm.update", "never")
METHODS = {
    "outcome-only": Method(OUTCOME),
    "outcome-only, 4 epochs": Method((*OUTCOME, *REUSED)),
    "PRIME, after": Method(("--prm.update", "after")),
    "PRIME, before": Method(("--prm.update", "before")),
    "PRIME, gate": Method((), Candidate(gate=True)),
    "PRIME, improved": Method(("--prm.beta", 0.5), IMPROVED),
    "PRIME, frozen PRM": Method(("--prm.update", "never"), warm=512),
    "PRIME, offline start": Method(("--prm.update", "after"), warm=512),
    "perfect checker": Method((), Candidate(checker=True)),
    "perfect checker alone": Method(ALONE, CHECKER),
    "perfect checker alone, 4 epochs": Method((*ALONE, *REUSED), CHECKER),
    "sampled tokens, frozen PRM": Method(
        (*ALONE, "--prm.update", "never"), Candidate(verified=0, credit="token", clip=(-2.0, 0.3)), warm=512
    ),
    "PRM teaches, 128": Method(TAUGHT, TEACHER, warm=128, warm_epochs=8, steps=15),
    "PRM teaches, 256": Method(TAUGHT, TEACHER, warm=256, steps=15),
    "PRM teaches, 256, refreshed": Method(
        (*ALONE, *REUSED, "--prm.beta", 0.5), REFRESHED, warm=256, steps=15
    ),
    "PRM is the policy, 128": Method(OUTCOME, warm=128, warm_epochs=8, policy_from_prm=True),
    "PRM is the policy, 256": Method(OUTCOME, warm=256, policy_from_prm=True),
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
    """A loss was not finite, no batch could be filled, or the final greedy accuracy is below the first."""

    def curve(self, measure: str, count: str) -> list[tuple[float, float]]:
        """(rollouts or verifier calls, accuracy) of each evaluation."""
        points = []
        for row in self.rows:
            key = next((k for k in row if k.startswith(measure)), None)
            if key:
                rollouts = row.get("rollout/rollouts", 0)
                used = (
                    rollouts
                    if count == "rollouts"
                    else row.get("verify/calls", 0 if rollouts == 0 else rollouts)
                )
                points.append((used + self.warm, row[key]))
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


def ratio(control: list[float], method: list[float]) -> dict:
    """How many times fewer: geometric mean over seeds of control / method, and its interval.

    A seed in which neither arrives says nothing. Where only one arrives there is no number either: then `arrived`
    tells, and the ratio is over the seeds in which both did.
    """
    both = [
        math.log(c / m) for c, m in zip(control, method, strict=True) if math.isfinite(c) and math.isfinite(m)
    ]
    arrived = [sum(map(math.isfinite, values)) for values in (control, method)]
    found: dict = {"seeds": len(control), "arrived": arrived, "ratio": None, "interval": None}
    if both:
        low, high = bootstrap_interval(both)
        found |= {"ratio": math.exp(statistics.fmean(both)), "interval": [math.exp(low), math.exp(high)]}
    return found


# Runs


@dataclass(frozen=True)
class Bench:
    """Where the runs lie, and how long and how precisely they are measured."""

    out: Path
    quick: bool

    def run(self, setting: str, name: str, seed: int, lr: float | None, batch: int | None) -> Result:
        """A finished run is read; what is missing is run."""
        s, method = SETTINGS[setting], METHODS[name]
        folder = self.out / setting / str(seed)
        sft = self.sft(s, folder, seed)
        prm = self.prm(s, folder, seed, sft, method.warm, method.warm_epochs) if method.warm else None
        point = f"{lr or 'config'}-{batch or 'config'}"
        place = folder / "rl" / f"{name.replace(', ', '-').replace(' ', '-')}-{point}"
        done, failed = place / "done", place / "failed"
        command: list[object] = ["rl", f"configs/rl/{s.configs}.yaml", "--out", place, "--seed", seed]
        command += [
            "--model",
            prm if method.policy_from_prm else sft,
            "--steps",
            6 if self.quick else s.steps,
        ]
        command += data_flags(s, seed, "data", "eval-data")
        command += ["--eval.every", 3, "--eval.samples", 2, "--eval-data.limit", 20 if self.quick else 200]
        command += ["--rollout.max-response-tokens", s.tokens, "--save-every", 0, "--sample-every", 0]
        if prm and not method.policy_from_prm:
            command += ["--prm.model", prm]
        command += method.flags
        if lr is not None:
            command += ["--policy.lr", lr]
        if batch is not None:
            command += ["--rollout.prompts", batch, "--policy.minibatch", 4 * batch]
        if not done.is_file() and not failed.is_file():
            shutil.rmtree(place, ignore_errors=True)  # a candidate keeps no state: it starts again
            with Lab(method.candidate).installed():
                status = openprime([str(part) for part in command])
            if status >= 128:
                raise SystemExit(status)
            if not (place / "metrics.jsonl").is_file():
                raise SystemExit(status)
            (done if status == 0 else failed).write_text(json.dumps(only_changed(method.candidate)) + "\n")
        rows = read_jsonl(place / "metrics.jsonl")
        greedy = [row["eval/greedy"] for row in rows if "eval/greedy" in row]
        return Result(rows, 4 * method.warm, failed.is_file() or greedy[-1] < greedy[0])

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
            if s.pretrain:
                must([*base, *s.pretrain, "--out", folder / "pretrain"])
                start = ["--model", folder / "pretrain" / "model"]
            must([*base, *start, *s.sft, "--out", folder / "sft"])
        return model

    def prm(self, s: Setting, folder: Path, seed: int, sft: Path, prompts: int, epochs: int) -> Path:
        """An offline PRM from `prompts` x 4 judged responses of the SFT model."""
        prm = folder / f"prm-{prompts}-{epochs}" / "prm"
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
                epochs,
                "--out",
                prm.parent,
            ]
            must(["prm", "configs/prm/tiny.yaml", *rl, *source])
        return prm


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
    parser.add_argument("--out", default="runs/sample-efficiency")
    parser.add_argument("--quick", action="store_true", help="six steps: does everything run?")
    args = parser.parse_args()
    if (args.lrs or args.batches) and (not args.select or set(args.select) & set(args.seeds)):
        parser.error("a grid is chosen on seeds of its own: give --select, other than --seeds")
    bench, console = Bench(Path(args.out), args.quick), Console(width=160)
    grid = list(product(args.lrs or [None], args.batches or [None]))
    protocols = ["equal"] + (["tuned"] if args.lrs or args.batches else [])
    report: dict = {}
    for setting, protocol in product(args.settings, protocols):
        found, points = {}, {}
        for name in args.methods:
            points[name] = (
                (None, None) if protocol == "equal" else best(bench, setting, name, grid, args.select)
            )
            found[name] = [bench.run(setting, name, seed, *points[name]) for seed in args.seeds]
            entry = summary(setting, found, points)
            show(console, setting, protocol, entry)  # after every method: it takes hours
        report[f"{setting}, {protocol}"] = entry
    bench.out.mkdir(parents=True, exist_ok=True)
    (bench.out / "results.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    write_html(bench.out / "results.html", "Sample efficiency", [page(*item) for item in report.items()])
    console.print(f"written: {bench.out / 'results.json'}, results.html")


def best(bench: Bench, setting: str, name: str, grid: list, seeds: list[int]) -> tuple:
    """The point of the grid where the middle threshold costs the fewest rollouts, greedy; a collapse costs all."""
    middle = SETTINGS[setting].thresholds[len(SETTINGS[setting].thresholds) // 2]

    def cost(point: tuple) -> tuple[int, float]:
        results = [bench.run(setting, name, seed, *point) for seed in seeds]
        needed = [crossing(r.curve("eval/greedy", "rollouts"), middle) for r in results]
        finite = [x for x in needed if math.isfinite(x)]
        failed = len(needed) - len(finite) + sum(r.collapsed for r in results)
        return failed, math.exp(statistics.fmean(map(math.log, finite))) if finite else math.inf

    return min(grid, key=cost)


def summary(setting: str, found: dict[str, list[Result]], points: dict) -> dict:
    """What is printed and written of a setting."""
    control = next(iter(found.values()))
    entry: dict = {}
    for name, results in found.items():
        row: dict = {
            "lr, batch": list(points[name]),
            "collapsed": sum(r.collapsed for r in results),
            "reach": {},
        }
        for count, measure, threshold in product(COUNTS, MEASURES, SETTINGS[setting].thresholds):
            ours = [crossing(r.curve(measure, count), threshold) for r in results]
            theirs = [crossing(r.curve(measure, count), threshold) for r in control]
            needed = [x if math.isfinite(x) else None for x in ours]
            label = f"{count} to {measure.removeprefix('eval/').replace('avg@', 'sampled')} {threshold}"
            row["reach"][label] = {"needed": needed} | ratio(theirs, ours)
        row["final"] = {m: [r.curve(m, "rollouts")[-1][1] for r in results] for m in MEASURES}
        row["curves"] = {m: [r.curve(m, "rollouts") for r in results] for m in MEASURES}
        row["calls"] = {m: [r.curve(m, "verifier calls") for r in results] for m in MEASURES}
        key = "prm/pairwise_accuracy"
        row["pairwise"] = [[(x["step"], x[key]) for x in r.rows if key in x] for r in results]
        row["seconds a step"] = statistics.fmean(r.mean("time/step") for r in results)
        entry[name] = row
    return entry


def show(console: Console, setting: str, protocol: str, entry: dict) -> None:
    """One table a count: times fewer than the first method."""
    first = next(iter(entry))
    for count in COUNTS:
        title = f"{setting}, {protocol}: times fewer {count} than {first} (95 % over seeds)"
        labels = [label for label in entry[first]["reach"] if label.startswith(count)]
        table = Table(title=title, title_justify="left")
        heads = [label.split(" to ")[1] for label in labels]
        table.add_column("method", no_wrap=True)
        for heading in (*heads, "final greedy", "sampled", "pairs", "collapsed", "s/step"):
            table.add_column(heading, justify="right")
        for name, row in entry.items():
            pairs = [y for curve in row["pairwise"] for _, y in curve]
            table.add_row(
                name,
                *(cell(row["reach"][label]) for label in labels),
                *(f"{statistics.fmean(row['final'][m]):.3f}" for m in MEASURES),
                f"{statistics.fmean(pairs):.2f}" if pairs else "",
                str(row["collapsed"]),
                f"{row['seconds a step']:.2f}",
            )
        console.print(table)


def cell(found: dict) -> str:
    """1.52 (1.31-1.70); how many seeds arrived where it is not all."""
    reached = found["arrived"][1]
    note = "" if reached == found["seeds"] else f" {reached}/{found['seeds']}"
    if found["ratio"] is None:
        return f"-{note}"
    low, high = found["interval"]
    return f"{found['ratio']:.2f}\n({low:.2f}-{high:.2f}){note}"


def page(title: str, entry: dict) -> str:
    """Curves of a setting: every seed thin, colours by method."""
    parts = [f"<h2>{title}</h2><div class=grid>"]
    for (key, x), measure in product((("curves", "rollouts"), ("calls", "verifier calls")), MEASURES):
        figure = go.Figure()
        for (name, row), colour in zip(entry.items(), COLOURS * 3, strict=False):
            for i, curve in enumerate(row[key][measure]):
                xs, ys = zip(*curve, strict=True)
                line = {"color": colour, "width": 1.5}
                figure.add_scatter(
                    x=xs, y=ys, name=name, legendgroup=name, showlegend=i == 0, mode="lines", line=line
                )
        parts.append(
            draw(figure, f"Held-out accuracy, {measure.removeprefix('eval/')}", x, "accuracy", height=420)
        )
    figure = go.Figure()
    for (name, row), colour in zip(entry.items(), COLOURS * 3, strict=False):
        for i, curve in enumerate(c for c in row["pairwise"] if c):
            xs, ys = zip(*curve, strict=True)
            figure.add_scatter(x=xs, y=ys, name=name, showlegend=i == 0, mode="lines", line={"color": colour})
    parts.append(
        draw(figure, "PRM: pairwise accuracy on new groups", "step", "accuracy (.5 is chance)", height=420)
    )
    return "".join([*parts, "</div>"])


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
