"""`openprime evaluate`: benchmarks, greedy and sampled, votes and Best-of-N."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from openprime.config import EvaluateConfig, StepSplit
from openprime.data.readers import identity
from openprime.data.records import group_row, response_row, row_number, vocabulary_id
from openprime.engines.make import make_engine
from openprime.evaluation import page
from openprime.evaluation.accuracy import summarise
from openprime.evaluation.benchmarks import Benchmark, Tokenizer, read_benchmarks
from openprime.evaluation.first_error import first_errors, step_rows
from openprime.models.hub import load_tokenizer
from openprime.models.placement import Placement
from openprime.prime.prm import ImplicitPRM
from openprime.prime.rollouts import derive_seed, sample_and_verify
from openprime.run.folder import check_folder, made_of, open_folder, read_record, refuse_changes
from openprime.run.jsonl import fill_jsonl
from openprime.tasks.clock import check_steps
from openprime.types import Group, Response, Sampling
from openprime.verifiers.pool import Pool

JUDGED = 16
"""Items with recorded responses that are judged between two looks at signals."""


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate; leaves results.json, results.html and a responses.jsonl for each benchmark in `config.out`."""
    config.check()
    check_folder(config, "evaluate")
    console, tokenizer = Console(markup=False, highlight=False), cache(partial(load_tokenizer, config.model))
    benchmarks = read_benchmarks(config, tokenizer)
    for note in (*Placement.of(config).notes, *notes(config, benchmarks)):
        console.print(f"note: {note}")
    with ExitStack() as pools:
        pool = {
            mode: pools.enter_context(Pool(config.verify.model_copy(update={"answers": mode})))
            for mode in {b.config.answers for b in benchmarks}
        }
        benchmarks = [admit(b, pool[b.config.answers], console) for b in benchmarks]
        judge = Judge(config, benchmarks, tokenizer)  # a model that cannot be read is named before the folder
        open_evaluation(config, benchmarks)
        written = Path(config.out) / "results.json"
        results: dict[str, Any] = {"model": config.model, "prm": config.prm, "benchmarks": {}}
        for benchmark in benchmarks:
            folder = Path(config.out) / benchmark.name
            folder.mkdir(exist_ok=True)
            about = benchmark.config.about or benchmark.config.data.source
            console.print(f"{benchmark.name}: {about}; {len(benchmark.items)} items")
            make = partial(judge.rows, benchmark, pool[benchmark.config.answers])
            path, marks = folder / "responses.jsonl", [{"item": row_number(i)} for i in benchmark.items]
            rows = fill_jsonl(path, marks, benchmark.name, console, make)
            with made_of(path):
                found = (
                    first_errors(rows, config.seed) if benchmark.is_process else summarise(rows, benchmark)
                )
                results["benchmarks"][benchmark.name] = found
                text = json.dumps(results, indent=2, allow_nan=False) + "\n"
            written.write_text(text, encoding="utf-8")
    results = json.loads(written.read_text(encoding="utf-8"))  # the keys of its tables are texts
    print_results(results, console)
    title = f"openprime evaluate: {page.model_names(results)}"
    page.write(written.with_suffix(".html"), title, page.evaluation(results))
    console.print(f"written: {written}, results.html, and responses.jsonl in a folder each")


def notes(config: EvaluateConfig, benchmarks: list[Benchmark]) -> Iterator[str]:
    """Notes on settings that have no effect."""
    if not any(b.is_sampled for b in benchmarks):
        default = EvaluateConfig()
        keys = ("temperature", "max_response_tokens", "sequences")
        if unused := [key for key in keys if getattr(config, key) != getattr(default, key)]:
            yield f"no effect where nothing is sampled: {', '.join(unused)}"
    elif config.prm and not config.samples:
        yield "no effect of prm without --samples: it chooses among N sampled responses"
    if config.reference and not config.prm:
        yield "no effect of reference without prm"


def admit(benchmark: Benchmark, pool: Pool, console: Console) -> Benchmark:
    """The benchmark without what its verifiers cannot judge."""
    if benchmark.is_process:
        return benchmark
    items = pool.admit(benchmark.items, lambda note: console.print(f"{benchmark.name}: {note}"))
    return replace(benchmark, items=items, left_out=benchmark.left_out + len(benchmark.items) - len(items))


def open_evaluation(config: EvaluateConfig, benchmarks: list[Benchmark]) -> None:
    """Begin the folder, with the benchmarks as they are asked in benchmarks.yaml.

    Raises UserError where a benchmark's file says something else than when the evaluation was begun.
    """
    path = Path(config.out) / "benchmarks.yaml"
    entries = {b.name: b.config.model_dump(mode="json") for b in benchmarks}
    if path.is_file():
        refuse_changes(path.parent, read_record(path, yaml.safe_load), entries)
    items = (
        identity(b.name, i.id, i.answer, i.token_ids, i.messages, i.columns if b.is_process else "", recorded)
        for b in benchmarks
        for i in b.items
        for recorded in [(b.recorded or {}).get(i.id)]
    )
    open_folder(config, "evaluate", items)
    path.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")


class Judge:
    """Makes the rows of responses.jsonl: asks the model, or takes what is recorded, judges and scores."""

    def __init__(self, config: EvaluateConfig, benchmarks: list[Benchmark], tokenizer: Tokenizer) -> None:
        """Load the PRM, if one is named, and the model, if it is asked."""
        self.config, self.prm, self.engine, self.vocabulary = config, None, None, ""
        if config.prm:
            tokens, place = config.tokens_per_microbatch, Placement.of(config)
            self.prm = ImplicitPRM.from_pretrained(
                config.prm, config.reference, place.device, tokens, place.bfloat16
            )
        if sampled := [b for b in benchmarks if b.is_sampled]:
            longest = max(len(item.token_ids) + self.longest(b) for b in sampled for item in b.items)
            self.engine = make_engine(config, tokenizer(), config.sequences, longest)
            self.vocabulary = vocabulary_id(tokenizer())

    def longest(self, benchmark: Benchmark) -> int:
        """Most tokens of a response."""
        return self.config.max_response_tokens or benchmark.config.max_response_tokens

    def rows(self, benchmark: Benchmark, pool: Pool, chunk: range, check: Callable[[], None]) -> list[dict]:
        """A row for each item: its responses, their outcomes, their rewards by the PRM."""
        if benchmark.is_process and self.prm:
            return step_rows(benchmark, self.prm, chunk, check)
        if benchmark.recorded is None:
            greedy, groups = self.sample(benchmark, pool, chunk, check)
        else:
            greedy, groups = [], judge_recorded(benchmark, pool, chunk, check)
        form, vocabulary = benchmark.config.data, self.vocabulary if greedy else ""
        rows = [group_row(row_number(group.prompt), group, form, vocabulary) for group in groups]
        for row, group in zip(rows, greedy, strict=False):
            row["greedy"] = response_row(group.responses[0])
        if form.source == "task:clock":
            for row, group in zip(rows, groups, strict=True):
                for response in row["responses"]:  # the oracle step checker's verdicts on its lines
                    response["steps"] = check_steps(str(group.prompt.messages), response["text"])
        if self.prm:
            add_rewards(rows, groups, self.prm, self.config.step_split)
        return rows

    def sample(
        self, benchmark: Benchmark, pool: Pool, chunk: range, check: Callable[[], None]
    ) -> tuple[list[Group], list[Group]]:
        """Judged groups of each item's greedy response, and of its N sampled ones."""
        config, engine, prompts = self.config, self.engine, [benchmark.items[i] for i in chunk]
        assert engine is not None
        seed = derive_seed(config.seed, benchmark.name, chunk.start)

        def ask(samples: int, temperature: float) -> list[Group]:
            sampling = Sampling(samples, self.longest(benchmark), temperature)
            return sample_and_verify(engine, pool, prompts, sampling, seed, check)

        greedy = ask(1, 0.0)
        nothing = [Group(prompt, (), 0) for prompt in prompts]
        return greedy, ask(config.samples, config.temperature) if config.samples else nothing


def judge_recorded(benchmark: Benchmark, pool: Pool, chunk: range, check: Callable[[], None]) -> list[Group]:
    """Judged groups of each item's recorded responses, whose tokens nobody knows."""
    assert benchmark.recorded is not None
    groups = []
    for i in chunk:
        texts = benchmark.recorded[benchmark.items[i].id]
        groups.append(Group(benchmark.items[i], tuple(Response((), (), text, False) for text in texts), 0))
    judged = []
    for start in range(0, len(groups), JUDGED):
        judged += pool.judge(groups[start : start + JUDGED])
        check()
    return judged


def add_rewards(rows: list[dict], groups: list[Group], prm: ImplicitPRM, split: StepSplit) -> None:
    """Write the PRM's rewards into the rows' responses.

    Of the very tokens that were sampled (trap 13), where they are of its vocabulary; else of the texts.
    """
    assert prm.tokenizer is not None
    responses = [response for row in rows for response in row["responses"]]
    if vocabulary_id(prm.tokenizer) == rows[0]["vocabulary"]:
        scores = chain.from_iterable(prm.score_sampled(groups, split))
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
            console.print(page.console_table("benchmark", rows))
    for name, result in results["benchmarks"].items():
        if len(result.get("best_of_n", {})) > 3:
            console.print(f"{name}: accuracy of the chosen response")
            console.print(page.console_table("chosen by", page.best_of_n_rows(result)))
            if note := page.ahead_note(result):
                console.print(note)
