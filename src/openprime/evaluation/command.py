"""`openprime evaluate`: benchmarks, greedy and sampled, votes and Best-of-N."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from openprime.config import EvaluateConfig
from openprime.data.records import group_row, response_row, row_number, vocabulary_id
from openprime.engines.make import make_engine
from openprime.evaluation import page
from openprime.evaluation.accuracy import summarise
from openprime.evaluation.benchmarks import Benchmark, read_benchmarks
from openprime.evaluation.first_error import first_errors
from openprime.models.hub import load_tokenizer
from openprime.prime.prm import ImplicitPRM
from openprime.prime.rollouts import derive_seed, sample_and_verify
from openprime.run.folder import check_folder, open_folder, refuse_changes
from openprime.run.jsonl import fill_jsonl
from openprime.tasks.clock import check_steps
from openprime.types import Engine, Group, Prompt, Response, Sampling
from openprime.verifiers.pool import Pool

JUDGED = 16
"""Items with recorded responses that are judged between two looks at signals."""


@dataclass
class Models:
    """The model that answers and the PRM that scores; each is loaded when it is first needed."""

    config: EvaluateConfig
    longest: int = 0
    """Prompt and response together, in tokens."""

    @cached_property
    def engine(self) -> Engine:
        """The model that is evaluated."""
        c = self.config
        return make_engine(c, self.tokenizer, c.sequences, self.longest)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model that is evaluated."""
        return load_tokenizer(self.config.model)

    @cached_property
    def vocabulary(self) -> str:
        """Name of that tokenizer's vocabulary."""
        return vocabulary_id(self.tokenizer)

    @cached_property
    def prm(self) -> ImplicitPRM | None:
        """The PRM, where one is named."""
        c = self.config
        if not c.prm:
            return None
        bfloat16 = c.dtype == "bfloat16"
        return ImplicitPRM.from_pretrained(c.prm, c.reference, c.device, c.tokens_per_microbatch, bfloat16)

    def load(self, engine: bool) -> None:
        """Load what will be needed: a model that cannot be read is named before a folder is begun."""
        _ = self.prm
        if engine:
            _ = self.engine

    @cached_property
    def prm_reads_tokens(self) -> bool:
        """True if the PRM has the model's vocabulary: it then scores the very tokens that were sampled."""
        tokenizer = self.prm.tokenizer if self.prm else None
        return tokenizer is not None and vocabulary_id(tokenizer) == self.vocabulary


def evaluate(config: EvaluateConfig) -> dict:
    """Evaluate; leaves results.json, results.html and a responses.jsonl for each benchmark in `config.out`."""
    config.check()
    check_folder(config, "evaluate")
    console, models = Console(markup=False, highlight=False), Models(config)
    benchmarks = read_benchmarks(config, lambda: models.tokenizer)
    for note in notes(config, benchmarks):
        console.print(f"note: {note}")
    with ExitStack() as pools:
        pool = {
            mode: pools.enter_context(Pool(config.verify.model_copy(update={"answers": mode})))
            for mode in {b.config.answers for b in benchmarks}
        }
        benchmarks = [admit(b, pool[b.config.answers], console) for b in benchmarks]
        models.longest = max((longest(b, config) for b in benchmarks if b.is_sampled), default=0)
        models.load(engine=any(b.is_sampled for b in benchmarks))
        folder = open_evaluation(config, benchmarks)
        results: dict[str, Any] = {"model": config.model, "prm": config.prm, "benchmarks": {}}
        for benchmark in benchmarks:
            place = folder / benchmark.name
            place.mkdir(exist_ok=True)
            about = benchmark.config.about or benchmark.config.data.source
            console.print(f"{benchmark.name}: {about}; {len(benchmark.items)} items")
            if benchmark.is_process and models.prm:
                found = first_errors(benchmark, models.prm, config.seed, place, console)
            else:
                found = judge(benchmark, models, pool[benchmark.config.answers], place, console)
            results["benchmarks"][benchmark.name] = found
            text = json.dumps(results, indent=2, allow_nan=False)
            (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    written = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    print_results(written, console)
    title = f"openprime evaluate: {page.model_names(written)}"
    page.write(folder / "results.html", title, page.evaluation(written))
    console.print(f"written: {folder / 'results.json'}, results.html, and responses.jsonl in a folder each")
    return results


def notes(config: EvaluateConfig, benchmarks: list[Benchmark]) -> list[str]:
    """Notes on settings that have no effect."""
    said, default = [], EvaluateConfig()
    if any(b.is_sampled for b in benchmarks):
        if config.prm and not config.samples:
            said.append("no effect of prm without --samples: it chooses among N sampled responses")
    else:
        only_sampling = ("temperature", "max_response_tokens", "sequences")
        unused = [key for key in only_sampling if getattr(config, key) != getattr(default, key)]
        if unused:
            said.append(f"no effect where nothing is sampled: {', '.join(unused)}")
    if config.reference and not config.prm:
        said.append("no effect of reference without prm")
    return said


def longest(benchmark: Benchmark, config: EvaluateConfig) -> int:
    """The most tokens that a prompt and a response of it can have together."""
    response = config.max_response_tokens or benchmark.config.max_response_tokens
    return max(len(item.token_ids) for item in benchmark.items) + response


def admit(benchmark: Benchmark, pool: Pool, console: Console) -> Benchmark:
    """The benchmark without what its verifiers cannot judge."""
    if benchmark.is_process:
        return benchmark

    items = pool.admit(benchmark.items, lambda note: console.print(f"{benchmark.name}: {note}"))
    kept, recorded = {item.id for item in items}, benchmark.recorded
    if recorded:
        pairs = zip(recorded, benchmark.items, strict=True)
        recorded = [texts for texts, item in pairs if item.id in kept]
    left_out = benchmark.left_out + len(benchmark.items) - len(items)
    return replace(benchmark, items=items, recorded=recorded, left_out=left_out)


def open_evaluation(config: EvaluateConfig, benchmarks: list[Benchmark]) -> Path:
    """The folder, with the benchmarks as they are asked in benchmarks.yaml.

    Raises ValueError where a benchmark's file says something else than when the evaluation was begun.
    """
    folder, path = Path(config.out), Path(config.out) / "benchmarks.yaml"
    entries = {b.name: b.config.model_dump(mode="json") for b in benchmarks}
    if path.is_file():
        refuse_changes(folder, yaml.safe_load(path.read_text(encoding="utf-8")) or {}, entries)
    open_folder(config, "evaluate")
    path.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    return folder


# One benchmark


def judge(benchmark: Benchmark, models: Models, pool: Pool, folder: Path, console: Console) -> dict:
    """Sample or take the recorded responses, judge and score them; returns the benchmark's results."""

    def make(chunk: range, check: Callable[[], None]) -> list[dict]:
        rows = recorded_rows if benchmark.recorded else sampled_rows
        return rows(benchmark, chunk, models, pool, check)

    path = folder / "responses.jsonl"
    rows = fill_jsonl(path, len(benchmark.items), benchmark.name, console, make)
    return summarise(rows, benchmark)


def sampled_rows(
    benchmark: Benchmark, chunk: range, models: Models, pool: Pool, check: Callable[[], None]
) -> list[dict]:
    """A row for each item: its greedy response, N sampled ones, their outcomes, their rewards by the PRM."""
    config, prompts = models.config, benchmark.items[chunk.start : chunk.stop]
    seed = derive_seed(config.seed, benchmark.name, chunk.start)
    tokens = config.max_response_tokens or benchmark.config.max_response_tokens

    def ask(samples: int, temperature: float) -> list[Group]:
        sampling = Sampling(samples, tokens, temperature)
        return sample_and_verify(models.engine, pool, prompts, sampling, seed, check)

    greedy = ask(1, 0.0)
    nothing = [Group(prompt, (), 0) for prompt in prompts]
    groups = ask(config.samples, config.temperature) if config.samples else nothing
    rows = as_rows(groups, benchmark, models.vocabulary)
    for row, group in zip(rows, greedy, strict=True):
        row["greedy"] = response_row(group.responses[0])
    if config.samples:
        add_rewards(rows, models, groups if models.prm_reads_tokens else [])
    return rows


def recorded_rows(
    benchmark: Benchmark, chunk: range, models: Models, pool: Pool, check: Callable[[], None]
) -> list[dict]:
    """A row for each item: its recorded responses, their outcomes, their rewards by the PRM."""
    assert benchmark.recorded is not None
    groups: list[Group] = []
    for start in range(chunk.start, chunk.stop, JUDGED):
        some = range(start, min(start + JUDGED, chunk.stop))
        groups += pool.judge([recorded_group(benchmark.items[i], benchmark.recorded[i]) for i in some])
        check()
    rows = as_rows(groups, benchmark, "")
    add_rewards(rows, models, [])
    return rows


def as_rows(groups: list[Group], benchmark: Benchmark, vocabulary: str) -> list[dict]:
    """The groups as rows; those of the embedded task with the oracle step checker's verdicts on their lines."""
    form = benchmark.config.data
    rows = [group_row(row_number(group.prompt), group, form, vocabulary) for group in groups]
    if form.source == "task:clock":
        for row, group in zip(rows, groups, strict=True):
            for response in row["responses"]:
                response["steps"] = check_steps(str(group.prompt.messages), response["text"])
    return rows


def recorded_group(prompt: Prompt, texts: list[str]) -> Group:
    """Recorded responses; nobody knows their tokens."""
    return Group(prompt, tuple(Response((), (), text, False) for text in texts), 0)


def add_rewards(rows: list[dict], models: Models, sampled: list[Group]) -> None:
    """Write the PRM's rewards into the rows' responses, where there is a PRM.

    `sampled`: the groups of the rows, whose very tokens are scored; [] where they are not known or mean nothing
    to the PRM: it then reads the texts.
    """
    prm, split = models.prm, models.config.step_split
    if prm is None:
        return
    responses = [response for row in rows for response in row["responses"]]
    if sampled:
        scores = [score for group in prm.score_sampled(sampled, split) for score in group]
    else:
        prompts = [row["prompt"] for row in rows for _ in row["responses"]]
        scores = prm.score(prompts, [response["text"] for response in responses], split)
    for response, score in zip(responses, scores, strict=True):
        response["tokens"] = score.tokens
        response["rewards"] = [round(value, 5) for value in score.token_rewards]
        response["step_rewards"] = [round(value, 5) for value in score.step_rewards]
        response["reward"] = score.reward
        response["reference_logprob"] = sum(score.reference_logprobs)


# The results in the terminal


def print_results(results: dict[str, Any], console: Console) -> None:
    """One line a benchmark, then the first errors, then the ways to choose among N; 80 columns will do."""
    console.print(f"\n{page.model_names(results)}; 95 % intervals over items")
    for rows in (page.accuracy_rows(results), page.first_error_rows(results)):
        if rows:
            console.print(table("benchmark", rows))
    for name, result in results["benchmarks"].items():
        if len(result.get("best_of_n", {})) > 3:
            console.print(f"{name}: accuracy of the chosen response")
            console.print(table("chosen by", page.best_of_n_rows(result)))


def table(first: str, rows: page.Rows) -> Table:
    """Rows for the terminal: an interval goes on a line of its own, and a long name rather than a number is folded."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    (name, *headings), *lines = page.grid(first, rows)
    made.add_column(name, overflow="fold")
    for heading in headings:
        made.add_column(heading, justify="right", no_wrap=True)
    for name, *cells in lines:
        made.add_row(name, *(cell.replace(" (", "\n").replace(")", "") for cell in cells))
    return made
