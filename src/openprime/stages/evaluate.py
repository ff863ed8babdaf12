"""`openprime evaluate`: benchmarks, greedy and sampled, votes and Best-of-N."""

import ast
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from openprime.algorithm.metrics import roc_auc
from openprime.algorithm.voting import best_of_n_subsets, bootstrap_interval, pass_at_k, vote_subsets
from openprime.config import BenchmarkConfig, DataConfig, EvaluateConfig, PromptFormat
from openprime.data.chat import encode_prompts
from openprime.data.readers import keeps, load_rows, read_json, read_questions
from openprime.data.responses import group_row, response_row, vocabulary_id
from openprime.engines.transformers import TransformersEngine
from openprime.models.hub import end_tokens, load_model, load_tokenizer, pick_device, read_format
from openprime.models.implicit_prm import ImplicitPRM, Score
from openprime.stages.process_bench import first_errors, read_solutions
from openprime.stages.scoreboard import print_results, write_page
from openprime.tasks.benchmarks import find_benchmark
from openprime.tasks.clock import check_steps
from openprime.training.collect import derive_seed, sample_and_verify
from openprime.training.run import fill_jsonl, open_folder
from openprime.types import Group, Prompt, Response, Sampling
from openprime.verifiers.math import canonical_answer, extract_answer
from openprime.verifiers.pool import Pool

Interval = tuple[float, float, float]
"""(mean over items, low, high), 95 %."""
Curves = dict[str, dict[int, Interval]]
"""method -> N -> interval."""


def measure(
    engine: TransformersEngine,
    prompts: list[Prompt],
    pool: Pool,
    samples: int,
    max_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Greedy accuracy and, with `samples`, avg@k on prompts. A response without a verdict counts as wrong."""
    greedy = sample_and_verify(engine, pool, prompts, Sampling(1, max_tokens, 0.0), seed)
    metrics = {"eval/greedy": mean_outcome(greedy)}
    if samples:
        sampling = Sampling(samples, max_tokens)
        drawn = sample_and_verify(engine, pool, prompts, sampling, derive_seed(seed, "evaluate"))
        metrics[f"eval/avg@{samples}"] = mean_outcome(drawn)
    return metrics


def mean_outcome(groups: list[Group]) -> float:
    """Mean outcome over all responses."""
    return float(np.mean([r.outcome or 0.0 for group in groups for r in group.responses]))


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with its items read."""

    name: str
    config: BenchmarkConfig
    items: list[Prompt]
    recorded: list[list[str]] | None
    """Recorded responses of each item; None where they are to be sampled."""

    @property
    def is_process(self) -> bool:
        """Whether a PRM is asked for the first wrong step."""
        return self.config.kind == "first_error"


@dataclass
class Models:
    """What answers and what scores; each is loaded when it is first needed."""

    config: EvaluateConfig

    @cached_property
    def engine(self) -> TransformersEngine:
        """The model that is evaluated."""
        model = load_model(self.config.model, pick_device(self.config.device))
        ends = end_tokens(model, self.tokenizer)
        return TransformersEngine(
            model, self.tokenizer, ends, self.config.sequences, self.config.dtype == "bfloat16"
        )

    @cached_property
    def tokenizer(self):
        """Its tokenizer."""
        return load_tokenizer(self.config.model)

    @cached_property
    def prm(self) -> ImplicitPRM | None:
        """The PRM, where one is named."""
        c = self.config
        bfloat16 = c.dtype == "bfloat16"
        return (
            ImplicitPRM.from_pretrained(c.prm, c.reference, c.device, c.tokens_per_microbatch, bfloat16)
            if c.prm
            else None
        )


def evaluate(config: EvaluateConfig) -> dict:
    """Evaluate; leaves results.json, results.html and a responses.jsonl for each benchmark in `config.out`."""
    config.check()
    console = Console()
    benchmarks = read_benchmarks(config)
    if all(b.recorded is None and not b.is_process for b in benchmarks):
        load_tokenizer(config.model)  # what is wrong with a model is said before anything is loaded
    models = Models(config)
    if models.prm is None and any(b.is_process for b in benchmarks):
        raise ValueError("a benchmark of first errors judges a PRM: name one with --prm")
    folder = open_folder(config, "evaluate")
    results: dict[str, Any] = {"model": config.model, "prm": config.prm, "benchmarks": {}}
    for benchmark in benchmarks:
        place = folder / benchmark.name
        place.mkdir(exist_ok=True)
        run = first_errors if benchmark.is_process else judge
        results["benchmarks"][benchmark.name] = run(benchmark, config, models, place, console)
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_results(results, console)
    write_page(results, folder / "results.html")
    console.print(f"written: {folder / 'results.json'}, results.html, and responses.jsonl in a folder each")
    return results


# Items


def read_benchmarks(config: EvaluateConfig) -> list[Benchmark]:
    """All benchmarks with their items and recorded responses: what is wrong with a file is said at once."""
    saved = read_format(config.model) if config.model and config.template == "auto" else None
    found = []
    for i, name in enumerate(config.benchmark):
        name, entry = find_benchmark(name)
        changed: dict[str, Any] = {"limit": config.limit or entry.data.limit}
        if config.data:
            changed |= {"source": config.data[i]}
        if config.template != "auto":
            changed |= {"template": config.template, "system": "", "suffix": ""}
        elif saved:
            changed |= {field: getattr(saved, field) for field in PromptFormat.model_fields}
        entry = entry.model_copy(update={"data": entry.data.model_copy(update=changed)})
        if entry.kind == "first_error":
            found.append(Benchmark(name, entry, read_solutions(entry.data), None))
            continue
        if not config.responses and not config.model:
            raise ValueError("model is not set: name the model to evaluate, or recorded --responses")
        items = read_questions(entry.data)
        recorded = read_recorded(config, config.responses[i], entry.data, items) if config.responses else None
        found.append(Benchmark(name, entry, items, recorded))
    return found


def read_recorded(
    config: EvaluateConfig, file: str, data: DataConfig, items: list[Prompt]
) -> list[list[str]]:
    """Recorded responses, a list of texts an item: line i of the file is that of item i, or of row i of the data.

    A text that is nothing but an answer, or nothing but a program, counts as one. Raises ValueError, with
    the line, for lines that are no lists of texts, and where N is larger than the responses at hand.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"responses: there is no file {file}")
    rows, lines = read_json(path, 0), []
    for i, row in enumerate(rows, 1):
        texts = row.get("responses")
        texts = (
            [t.get("text") if isinstance(t, dict) else t for t in texts] if isinstance(texts, list) else None
        )
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f'{file}:{i}: expected {{"responses": [...]}} with one text or more, found the fields {", ".join(row)}'
            )
        if len(texts) < config.samples:
            raise ValueError(f"{file}:{i}: {len(texts)} responses, fewer than samples={config.samples}")
        lines.append(texts[: config.samples] if config.samples else texts)
    if len(lines) != len(items) and (data.where or data.limit):
        every = load_rows(data.model_copy(update={"where": {}, "limit": 0}))
        if len(lines) == len(every):
            lines = [line for line, row in zip(lines, every, strict=True) if keeps(data, row)][: len(items)]
    if len(lines) != len(items):
        raise ValueError(f"{file}: {len(lines)} lines for the {len(items)} items of {data.source}")
    fewest = min(map(len, lines))
    if fewest < max(map(len, lines)):
        raise ValueError(
            f"{file}:{[len(line) for line in lines].index(fewest) + 1}: {fewest} responses, other lines have more: "
            f"use the first of each with --samples {fewest}"
        )
    return [[whole(text, item) for text in texts] for texts, item in zip(lines, items, strict=True)]


def whole(text: str, item: Prompt) -> str:
    r"""A recorded response as a model would write it: a bare answer in a box, a bare program in a fence."""
    if item.verifier == "math" and extract_answer(text) is None and "\n" not in text.strip():
        return rf"\boxed{{{text.strip()}}}" if text.strip() else text
    if item.verifier == "code" and "```" not in text:
        signature = item.columns.get("prompt")
        for program in (text, f"{signature}{text}"):
            if text.strip() and _parses(program):
                return f"```python\n{program}\n```"
    return text


def _parses(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


# One benchmark


def judge(
    benchmark: Benchmark, config: EvaluateConfig, models: Models, folder: Path, console: Console
) -> dict:
    """Sample or take the recorded responses, judge and score them; returns the benchmark's results."""
    verify = config.verify.model_copy(update={"answers": benchmark.config.answers})
    with Pool(verify) as pool:
        kept = {p.id for p in pool.admit(benchmark.items, console.print)}
        places = [i for i, item in enumerate(benchmark.items) if item.id in kept]
        console.print(
            f"[bold]{benchmark.name}[/]: {benchmark.config.about or benchmark.config.data.source}; "
            f"{len(places)} items",
            highlight=False,
        )
        rows = judged_rows(benchmark, places, config, models, pool, folder, console)
    results = summarise(rows, benchmark, config)
    results["left_out"] = len(benchmark.items) - len(places)
    return results


def judged_rows(
    benchmark: Benchmark,
    places: list[int],
    config: EvaluateConfig,
    models: Models,
    pool: Pool,
    folder: Path,
    console: Console,
) -> list[dict]:
    """A row an item: its greedy response, its N responses, their outcomes, their scores by the PRM."""
    form = benchmark.config.data
    tokens = config.max_response_tokens or benchmark.config.max_response_tokens
    sampled = benchmark.recorded is None
    if sampled and form.chat_template == "auto" and not models.tokenizer.chat_template:
        form = form.model_copy(update={"chat_template": "none"})
    vocabulary = vocabulary_id(models.tokenizer) if sampled else ""

    def ask(prompts: list[Prompt], samples: int, temperature: float, check: Callable[[], None], start: int):
        sampling = Sampling(samples, tokens, temperature)
        seed = derive_seed(config.seed, benchmark.name, start)
        return sample_and_verify(models.engine, pool, prompts, sampling, seed, check)

    def make(chunk: range, check: Callable[[], None]) -> list[dict]:
        items = [places[i] for i in chunk]
        prompts = [benchmark.items[i] for i in items]
        greedy: list[Group] = []
        if benchmark.recorded is None:
            prompts = with_ids(prompts, form, models.tokenizer)
            greedy = ask(prompts, 1, 0.0, check, chunk.start)
            many = config.samples
            groups = (
                ask(prompts, many, config.temperature, check, chunk.start)
                if many
                else [Group(p, (), 0) for p in prompts]
            )
        else:
            groups = pool.judge(
                [recorded_group(p, benchmark.recorded[i]) for p, i in zip(prompts, items, strict=True)]
            )
        rows = [group_row(i, group, form, vocabulary) for i, group in zip(items, groups, strict=True)]
        for row, group in zip(rows, greedy, strict=False):
            row["greedy"] = response_row(group.responses[0])
        if models.prm and any(group.responses for group in groups):
            add_scores(
                rows,
                groups,
                models.prm,
                config,
                sampled and vocabulary == vocabulary_id(models.prm.tokenizer),
            )
        if form.source == "task:clock":
            for row, prompt in zip(rows, prompts, strict=True):
                for response in row["responses"]:
                    response["steps"] = check_steps(str(prompt.messages), response["text"])
        return rows

    return fill_jsonl(folder / "responses.jsonl", len(places), benchmark.name, console, make)


def with_ids(prompts: list[Prompt], form: PromptFormat, tokenizer) -> list[Prompt]:
    """The prompts tokenised."""
    names, messages, verifiers = zip(*((p.id, p.messages, p.verifier) for p in prompts), strict=True)
    encoded = encode_prompts(messages, names, form, tokenizer, verifiers)
    return [replace(p, token_ids=tuple(ids)) for p, ids in zip(prompts, encoded, strict=True)]


def recorded_group(prompt: Prompt, texts: list[str]) -> Group:
    """Recorded responses; nobody knows their tokens."""
    return Group(prompt, tuple(Response((), (), text, False) for text in texts), 0)


def add_scores(
    rows: list[dict], groups: list[Group], prm: ImplicitPRM, config: EvaluateConfig, sampled: bool
) -> None:
    """Write the PRM's rewards into the rows' responses.

    Sampled tokens are scored as they are; recorded texts, and those of another vocabulary, are encoded.
    """
    if sampled:
        scores: Iterator[Score] = (s for group in prm.score_sampled(groups, config.step_split) for s in group)
    else:
        prompts = [row["prompt"] for row, group in zip(rows, groups, strict=True) for _ in group.responses]
        texts = [response.text for group in groups for response in group.responses]
        scores = iter(prm.score(prompts, texts, config.step_split))
    for row in rows:
        for response in row["responses"]:
            score = next(scores)
            response["tokens"] = score.tokens
            response["rewards"] = [round(value, 5) for value in score.token_rewards]
            response["step_rewards"] = [round(value, 5) for value in score.step_rewards]
            response["reward"] = score.reward
            response["reference_logprob"] = sum(score.reference_logprobs)


# Results


def summarise(rows: list[dict], benchmark: Benchmark, config: EvaluateConfig) -> dict[str, Any]:
    """What the table, the page and results.json say of a benchmark."""
    responses = [[*row["responses"], *([row["greedy"]] if "greedy" in row else [])] for row in rows]
    reasons = Counter(r["reason"] for row in responses for r in row)
    results: dict[str, Any] = {"items": len(rows), "reasons": dict(reasons.most_common())}
    lengths = [len(r["token_ids"]) for row in responses for r in row if r["token_ids"]]
    if lengths:
        results["response_tokens"] = float(np.mean(lengths))
        results["truncated"] = float(np.mean([r["truncated"] for row in responses for r in row]))
    if "greedy" in rows[0]:
        results["greedy"] = interval([row["greedy"]["outcome"] or 0.0 for row in rows])
    n = len(rows[0]["responses"])
    results["samples"] = n
    if n == 0:
        return results
    right = np.array([[r["outcome"] or 0.0 for r in row["responses"]] for row in rows])  # [P, N]
    results[f"avg@{n}"] = interval(right.mean(-1))
    if n == 1:
        return results
    count = (right >= 1).sum(-1)
    results["pass@k"] = {k: interval([pass_at_k(n, int(c), k) for c in count]) for k in powers(n)}
    texts = [[r["text"] for r in row["responses"]] for row in rows]
    answers = [[canonical_answer(text) for text in row] for row in texts]
    if all(answer is None for row in answers for answer in row):
        answers = None  # programs, say: no two are alike
    scores = choices(rows) if "rewards" in rows[0]["responses"][0] else {}
    results["best_of_n"] = best_of(right, answers, scores)
    if answers:
        results["maj@k"] = results["best_of_n"]["majority vote"]
    if scores and benchmark.config.data.source == "task:clock":
        results["step_auc"] = step_auc(rows)
    return results


def choices(rows: list[dict]) -> dict[str, np.ndarray]:
    """Scores [P, N] by which one of N responses may be chosen."""
    ways: dict[str, Callable[[dict], float]] = {
        "reference log-probability": lambda r: r["reference_logprob"],
        "PRM": lambda r: r["reward"],
        "PRM, mean of tokens": lambda r: float(np.mean(r["rewards"])),
        "PRM, lowest token": lambda r: min(r["rewards"]),
        "PRM, last token": lambda r: r["rewards"][-1],
        "PRM, mean of steps": lambda r: float(np.mean(r["step_rewards"])),
        "PRM, lowest step": lambda r: min(r["step_rewards"]),
        "PRM, last step": lambda r: r["step_rewards"][-1],
    }
    return {
        name: np.array([[way(r) for r in row["responses"]] for row in rows]) for name, way in ways.items()
    }


def best_of(
    right: np.ndarray, answers: list[list[str | None]] | None, scores: dict[str, np.ndarray]
) -> Curves:
    """Accuracy of each way to choose one of N responses, for N = 1, 2, 4, ... of all that there are.

    For fewer than all: the mean over all choices of N of them, exact for scores, over 200 choices drawn
    with a seed for votes. Equal scores share. Intervals are 95 % bootstrap intervals over items.
    """
    samples = right.shape[1]
    ones = np.ones_like(right)

    def by(score: np.ndarray) -> Callable[[int, int], float]:
        return lambda p, n: best_of_n_subsets(score[p], right[p], n)

    def vote(weights: np.ndarray) -> Callable[[int, int], float]:
        assert answers is not None
        return lambda p, n: vote_subsets(answers[p], weights[p], right[p], n)

    ways: dict[str, Callable[[int, int], float]] = {"random": lambda p, n: float(right[p].mean())}
    if answers is not None:
        ways["majority vote"] = vote(ones)
    ways |= {name: by(score) for name, score in scores.items()}
    if answers is not None and "PRM" in scores:
        ways["PRM-weighted vote"] = vote(1 / (1 + np.exp(-scores["PRM"])))
    ways["oracle"] = by(right)
    return {
        name: {n: interval([way(p, n) for p in range(len(right))]) for n in powers(samples)}
        for name, way in ways.items()
    }


def interval(values) -> Interval:
    """(mean, low, high)."""
    return (float(np.mean(values)), *bootstrap_interval(values))


def powers(n: int) -> list[int]:
    """1, 2, 4, ... up to n, and n itself."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


def step_auc(rows: list[dict]) -> float:
    """Embedded task: how well a line's reward tells right lines from wrong ones (area under the ROC curve).

    The perfect checker that judges the lines is for this analysis only. The answer's line is left out.
    """
    labels, values = [], []
    for row in rows:
        for response in row["responses"]:
            line_rewards = [0.0]
            for token, reward in zip(response["tokens"], response["rewards"], strict=True):
                line_rewards[-1] += reward
                line_rewards += [0.0] * token.count("\n")
            verdicts = response["steps"][:-1]
            labels += verdicts
            values += line_rewards[: len(verdicts)]
    return roc_auc(values, labels) if labels else math.nan
