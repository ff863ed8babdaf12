"""`openprime evaluate`: benchmarks, greedy and sampled, votes and Best-of-N."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from openprime.config import EvaluateConfig, StepSplit
from openprime.data.records import group_row, response_row, row_number, vocabulary_id
from openprime.engines.make import make_engine
from openprime.evaluation import page
from openprime.evaluation.accuracy import summarise
from openprime.evaluation.benchmarks import Benchmark, Tokenizer, read_benchmarks
from openprime.evaluation.first_error import first_errors
from openprime.models.hub import load_tokenizer
from openprime.prime.prm import ImplicitPRM
from openprime.prime.rollouts import derive_seed, sample_and_verify
from openprime.run.folder import check_folder, open_folder, refuse_changes
from openprime.run.jsonl import fill_jsonl
from openprime.tasks.clock import check_steps
from openprime.types import Engine, Group, Response, Sampling
from openprime.verifiers.pool import Pool

JUDGED = 16
"""Items with recorded responses that are judged between two looks at signals."""


@dataclass(frozen=True)
class Models:
    """The model that answers and the PRM that scores, each where it is needed."""

    engine: Engine | None
    vocabulary: str
    """Name of the engine's vocabulary."""
    prm: ImplicitPRM | None


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate; leaves results.json, results.html and a responses.jsonl for each benchmark in `config.out`."""
    config.check()
    check_folder(config, "evaluate")
    console, tokenizer = Console(markup=False, highlight=False), cache(partial(load_tokenizer, config.model))
    benchmarks = read_benchmarks(config, tokenizer)
    for note in notes(config, benchmarks):
        console.print(f"note: {note}")
    with ExitStack() as pools:
        pool = {
            mode: pools.enter_context(Pool(config.verify.model_copy(update={"answers": mode})))
            for mode in {b.config.answers for b in benchmarks}
        }
        benchmarks = [admit(b, pool[b.config.answers], console) for b in benchmarks]
        models = load(
            config, benchmarks, tokenizer
        )  # one that cannot be read is named before a folder is begun
        open_evaluation(config, benchmarks)
        path = Path(config.out) / "results.json"
        results: dict[str, Any] = {"model": config.model, "prm": config.prm, "benchmarks": {}}
        for benchmark in benchmarks:
            folder = Path(config.out) / benchmark.name
            folder.mkdir(exist_ok=True)
            about = benchmark.config.about or benchmark.config.data.source
            console.print(f"{benchmark.name}: {about}; {len(benchmark.items)} items")
            if benchmark.is_process and models.prm:
                found = first_errors(benchmark, models.prm, config.seed, folder, console)
            else:
                found = judge(benchmark, config, models, pool[benchmark.config.answers], folder, console)
            results["benchmarks"][benchmark.name] = found
            path.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))  # the keys of its tables are texts
    print_results(results, console)
    title = f"openprime evaluate: {page.model_names(results)}"
    page.write(path.with_suffix(".html"), title, page.evaluation(results))
    console.print(f"written: {path}, results.html, and responses.jsonl in a folder each")


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


def load(config: EvaluateConfig, benchmarks: list[Benchmark], tokenizer: Tokenizer) -> Models:
    """Load what the benchmarks need."""
    bfloat16, tokens = config.dtype == "bfloat16", config.tokens_per_microbatch
    prm = None
    if config.prm:
        prm = ImplicitPRM.from_pretrained(config.prm, config.reference, config.device, tokens, bfloat16)
    sampled = [b for b in benchmarks if b.is_sampled]
    if not sampled:
        return Models(None, "", prm)
    longest = max(
        len(item.token_ids) + (config.max_response_tokens or b.config.max_response_tokens)
        for b in sampled
        for item in b.items
    )
    engine = make_engine(config, tokenizer(), config.sequences, longest)
    return Models(engine, vocabulary_id(tokenizer()), prm)


def open_evaluation(config: EvaluateConfig, benchmarks: list[Benchmark]) -> None:
    """Begin the folder, with the benchmarks as they are asked in benchmarks.yaml.

    Raises UserError where a benchmark's file says something else than when the evaluation was begun.
    """
    path = Path(config.out) / "benchmarks.yaml"
    entries = {b.name: b.config.model_dump(mode="json") for b in benchmarks}
    if path.is_file():
        refuse_changes(path.parent, yaml.safe_load(path.read_text(encoding="utf-8")) or {}, entries)
    open_folder(config, "evaluate")
    path.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")


# One benchmark


def judge(
    benchmark: Benchmark, config: EvaluateConfig, models: Models, pool: Pool, folder: Path, console: Console
) -> dict[str, Any]:
    """Sample or take the recorded responses, judge and score them; returns the benchmark's results."""
    form = benchmark.config.data

    def make(chunk: range, check: Callable[[], None]) -> list[dict]:
        if benchmark.recorded is None:
            greedy, groups = sample(benchmark, chunk, config, models, pool, check)
        else:
            greedy, groups = [], judge_recorded(benchmark, chunk, pool, check)
        vocabulary = models.vocabulary if greedy else ""
        rows = [group_row(row_number(group.prompt), group, form, vocabulary) for group in groups]
        for row, group in zip(rows, greedy, strict=False):
            row["greedy"] = response_row(group.responses[0])
        if form.source == "task:clock":
            for row, group in zip(rows, groups, strict=True):
                for response in row["responses"]:  # the oracle step checker's verdicts on its lines
                    response["steps"] = check_steps(str(group.prompt.messages), response["text"])
        if models.prm:
            add_rewards(rows, groups, models.prm, config.step_split)
        return rows

    marks = [{"item": row_number(item)} for item in benchmark.items]
    rows = fill_jsonl(folder / "responses.jsonl", marks, benchmark.name, console, make)
    return summarise(rows, benchmark)


def sample(
    benchmark: Benchmark,
    chunk: range,
    config: EvaluateConfig,
    models: Models,
    pool: Pool,
    check: Callable[[], None],
) -> tuple[list[Group], list[Group]]:
    """Judged groups of each item's greedy response, and of its N sampled ones."""
    engine, prompts = models.engine, [benchmark.items[i] for i in chunk]
    assert engine is not None
    seed = derive_seed(config.seed, benchmark.name, chunk.start)

    def ask(samples: int, temperature: float) -> list[Group]:
        longest = config.max_response_tokens or benchmark.config.max_response_tokens
        sampling = Sampling(samples, longest, temperature)
        return sample_and_verify(engine, pool, prompts, sampling, seed, check)

    greedy = ask(1, 0.0)
    nothing = [Group(prompt, (), 0) for prompt in prompts]
    return greedy, ask(config.samples, config.temperature) if config.samples else nothing


def judge_recorded(benchmark: Benchmark, chunk: range, pool: Pool, check: Callable[[], None]) -> list[Group]:
    """Judged groups of each item's recorded responses, whose tokens nobody knows."""
    assert benchmark.recorded is not None
    groups: list[Group] = []
    for k in range(0, len(chunk), JUDGED):
        items = [benchmark.items[i] for i in chunk[k : k + JUDGED]]
        texts = [benchmark.recorded[item.id] for item in items]
        responses = [tuple(Response((), (), text, False) for text in each) for each in texts]
        groups += pool.judge([Group(*pair, 0) for pair in zip(items, responses, strict=True)])
        check()
    return groups


def add_rewards(rows: list[dict], groups: list[Group], prm: ImplicitPRM, split: StepSplit) -> None:
    """Write the PRM's rewards into the rows' responses.

    Of the very tokens that were sampled (trap 13), where they are of its vocabulary; else of the texts.
    """
    assert prm.tokenizer is not None
    responses = [response for row in rows for response in row["responses"]]
    if rows[0]["vocabulary"] == vocabulary_id(prm.tokenizer):
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
