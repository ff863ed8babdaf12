"""`openprime evaluate`: greedy, sampled and Best-of-N accuracy on held-out prompts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from openprime.algorithm.voting import best_of_n, bootstrap_interval, majority_vote, pass_at_k, weighted_vote
from openprime.config import EvaluateConfig
from openprime.data.collate import collate
from openprime.data.readers import read_prompts
from openprime.engines.transformers import TransformersEngine
from openprime.models.hub import end_tokens, load_model, load_tokenizer, pick_device
from openprime.tasks.clock import check_steps
from openprime.training.collect import derive_seed
from openprime.models.implicit_prm import ImplicitPRM
from openprime.training.run import append_jsonl
from openprime.types import Group, Prompt, Response, Sampling
from openprime.verifiers.math import canonical_answer
from openprime.verifiers.pool import Pool

Curves = dict[str, dict[int, tuple[float, float, float]]]
"""method -> N -> (accuracy, low, high)."""


def measure(
    engine: TransformersEngine,
    prompts: list[Prompt],
    pool: Pool,
    samples: int,
    max_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Greedy accuracy and, with `samples`, avg@k on prompts. A response without a verdict counts as wrong."""
    greedy = pool.judge(engine.generate(prompts, Sampling(1, max_tokens, 0.0), seed))
    metrics = {"eval/greedy": mean_outcome(greedy)}
    if samples:
        drawn = engine.generate(prompts, Sampling(samples, max_tokens), derive_seed(seed, "evaluate"))
        metrics[f"eval/avg@{samples}"] = mean_outcome(pool.judge(drawn))
    return metrics


def mean_outcome(groups: list[Group]) -> float:
    """Mean outcome over all responses."""
    return float(np.mean([r.outcome or 0.0 for group in groups for r in group.responses]))


def evaluate(config: EvaluateConfig) -> dict:
    """Evaluate a model, with `config.prm` also Best-of-N; leaves results.json and responses.jsonl in `config.out`."""
    config.check()
    with Pool(config.verify) as pool:
        return evaluate_with(pool, config)


def evaluate_with(pool: Pool, config: EvaluateConfig) -> dict:
    """`evaluate` with verifiers at hand."""
    device, console = pick_device(config.device), Console()
    pool.prepare([] if config.data.verifier_field else [config.data.verifier])
    prm = None
    bfloat16 = config.dtype == "bfloat16"
    if config.prm:
        prm = ImplicitPRM.load(config.prm, config.reference, device, config.tokens_per_microbatch, bfloat16)
    tokenizer = load_tokenizer(config.model)
    data = read_prompts(config.data, tokenizer)
    prompts = pool.admit(data.prompts, console.print)
    model = load_model(config.model, device)
    engine = TransformersEngine(model, tokenizer, end_tokens(model, tokenizer), config.sequences, bfloat16)

    sampling = Sampling(config.samples, config.max_response_tokens, config.temperature)
    console.print(f"{len(prompts)} prompts, 1 greedy and {config.samples} sampled responses each")
    greedy = pool.judge(engine.generate(prompts, Sampling(1, sampling.max_tokens, 0.0), 0))
    groups = pool.judge(engine.generate(prompts, sampling, derive_seed(config.seed, "evaluate")))
    right = np.array([[r.outcome or 0.0 for r in g.responses] for g in groups])  # [P, N]
    answers = [[canonical_answer(r.text) for r in g.responses] for g in groups]

    scores: dict[str, np.ndarray] = {}
    rewards: list[list[float]] = []
    if prm:
        reference, rewards = score_groups(prm, groups)
        scores["reference log-probability"] = by_group([sum(row) for row in reference], right.shape)
        scores["PRM"] = by_group([sum(row) for row in rewards], right.shape)
    table = best_of(right, answers, scores)
    n = config.samples
    results = {
        "model": config.model,
        "prompts": len(groups),
        "samples": n,
        "greedy": interval([g.responses[0].outcome or 0.0 for g in greedy]),
        f"avg@{n}": interval(right.mean(-1)),
        "pass@k": {
            k: float(np.mean([pass_at_k(n, int(row.sum()), k) for row in right >= 0.5])) for k in powers(n)
        },
        "best_of_n": table,
    }
    rows = response_rows(groups, rewards, tokenizer)
    if rewards and config.data.source == "task:clock":
        for row in rows:
            for response in row["responses"]:
                response["steps"] = check_steps(row["prompt"], response["text"])
        results["step_auc"] = step_auc(rows)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "responses.jsonl").unlink(missing_ok=True)
    for row in rows:
        append_jsonl(out / "responses.jsonl", row)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(f"greedy {results['greedy'][0]:.3f}, avg@{n} {results[f'avg@{n}'][0]:.3f}")
    console.print(render(table))
    console.print(f"written: {out / 'results.json'}, {out / 'responses.jsonl'}")
    return results


def score_groups(prm: ImplicitPRM, groups: list[Group]) -> tuple[list[list[float]], list[list[float]]]:
    """Reference log-probabilities and process rewards of every response's tokens, in the groups' order."""
    reference, rewards = [], []
    for start in range(0, len(groups), 64):
        part = [
            Group(g.prompt, tuple(_with_outcome(r) for r in g.responses), 0)
            for g in groups[start : start + 64]
        ]
        batch = collate(part, frozenset(), 0).to(prm.learner.model.device)
        log_reference = prm.reference_logprobs(batch)
        scored = prm.score(batch, log_reference)
        reference += [
            row[mask].tolist() for row, mask in zip(log_reference, batch.response_mask, strict=True)
        ]
        rewards += [row[mask].tolist() for row, mask in zip(scored, batch.response_mask, strict=True)]
    return reference, rewards


def best_of(right: np.ndarray, answers: list[list[str | None]], scores: dict[str, np.ndarray]) -> Curves:
    """Accuracy of each way to choose one of N responses, for N = 1, 2, 4, ...

    For N below the number of samples: the mean over disjoint runs of N samples of a prompt. Intervals
    are 95 % bootstrap intervals over prompts.
    """
    prompts, samples = right.shape
    methods = {"random": None, "majority vote": None} | dict.fromkeys(scores)
    if "PRM" in scores:
        methods["PRM-weighted vote"] = None
    methods["oracle"] = None
    table: Curves = {}
    for method in methods:
        for n in powers(samples):
            values = np.zeros(prompts)
            for p in range(prompts):
                for start in range(0, samples - n + 1, n):
                    part = slice(start, start + n)
                    if method == "random":
                        value = right[p, part].mean()
                    elif method == "oracle":
                        value = right[p, part].max()
                    elif method == "majority vote":
                        value = right[p, start + majority_vote(answers[p][part])]
                    elif method == "PRM-weighted vote":
                        weights = 1 / (1 + np.exp(-scores["PRM"][p, part]))
                        value = right[p, start + weighted_vote(answers[p][part], weights.tolist())]
                    else:
                        value = right[p, start + best_of_n(scores[method][p, part].tolist())]
                    values[p] += value / (samples // n)
            table.setdefault(method, {})[n] = interval(values)
    return table


def render(table: Curves) -> Table:
    """The table for the console."""
    shown = Table(title="accuracy of the chosen response (95 % interval over prompts)", title_justify="left")
    shown.add_column("method")
    sizes = list(next(iter(table.values())))
    for n in sizes:
        shown.add_column(f"N={n}", justify="right")
    for method, row in table.items():
        cells = [f"{row[n][0]:.3f}" for n in sizes[:-1]]
        value, low, high = row[sizes[-1]]
        shown.add_row(method, *cells, f"{value:.3f} ({low:.3f}-{high:.3f})")
    return shown


def interval(values) -> tuple[float, float, float]:
    """(mean, low, high)."""
    return (float(np.mean(values)), *bootstrap_interval(values))


def powers(n: int) -> list[int]:
    """1, 2, 4, ... up to n, and n itself."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


def by_group(values: list[float], shape: tuple[int, ...]) -> np.ndarray:
    """One number a response as [P, N]."""
    return np.array(values).reshape(shape)


def response_rows(groups: list[Group], rewards: list[list[float]], tokenizer) -> list[dict]:
    """What responses.jsonl holds: a line a prompt."""
    rows, place = [], 0
    for group in groups:
        responses = []
        for r in group.responses:
            row = {"text": r.text, "outcome": r.outcome, "reason": r.reason, "truncated": r.truncated}
            if rewards:
                row["tokens"] = [tokenizer.decode([token]) for token in r.token_ids]
                row["rewards"] = [round(value, 5) for value in rewards[place]]
            responses.append(row)
            place += 1
        rows.append({"prompt": group.prompt.messages, "answer": group.prompt.answer, "responses": responses})
    return rows


def step_auc(rows: list[dict]) -> float:
    """Embedded task: how well a line's reward tells right lines from wrong ones (area under the ROC curve).

    The perfect checker that judges the lines is for this analysis only.
    """
    labels, values = [], []
    for row in rows:
        for response in row["responses"]:
            line_rewards, pieces = [0.0], response["tokens"]
            for token, reward in zip(pieces, response["rewards"], strict=True):
                line_rewards[-1] += reward
                line_rewards += [0.0] * token.count("\n")
            verdicts = response["steps"][:-1]  # without the answer's line
            labels += verdicts
            values += line_rewards[: len(verdicts)]
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable") + 1.0
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    order = (np.bincount(inverse, order) / counts)[inverse]  # ties share their mean rank
    right = np.array(labels, dtype=bool)
    if right.all() or not right.any():
        return float("nan")
    hits = right.sum()
    return float((order[right].sum() - hits * (hits + 1) / 2) / (hits * (~right).sum()))


def _with_outcome(response: Response) -> Response:
    """Scoring needs no outcome; collate leaves out what has none."""
    return replace(response, outcome=response.outcome or 0.0)
