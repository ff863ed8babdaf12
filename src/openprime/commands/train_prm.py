"""`openprime prm`: train an implicit PRM offline on judged responses (arXiv 2412.01981), top to bottom."""

import json
import math
import random
from collections.abc import Sequence
from contextlib import closing
from itertools import accumulate
from statistics import median

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from openprime.config import OfflinePRMConfig
from openprime.data.records import JudgedResponse as Judged
from openprime.data.records import collate_judged, read_judged, split_prompts
from openprime.data.steps import text_of_tokens, token_texts
from openprime.evaluation.calibration import brier, expected_calibration_error, lowest_is_last, roc_auc
from openprime.evaluation.voting import bootstrap_interval
from openprime.models.hub import compute_device, load_tokenizer, pad_token, pick_device, same_vocabulary
from openprime.models.logprobs import batch_logprobs
from openprime.models.lora import Loader, using_adapter
from openprime.prime.learner import Learner
from openprime.prime.online import PAIRS, fitting_beta, kto_reference_point, outcome_loss, prm_loss
from openprime.prime.prm import ImplicitPRM, is_prm, read_settings
from openprime.prime.rewards import pairwise_accuracy, prefix_values, response_scores, token_rewards
from openprime.ranks import on_first, together
from openprime.run.console import Bar, Interrupted, Signals
from openprime.run.launch import joined
from openprime.run.run import Run
from openprime.types import Batch, NonFiniteError, RunError, UserError

SAMPLE = 256
"""Responses that S is measured on."""
ROWS = 1024
"""Responses that are scored at a time."""

Measures = dict[str, float]


def train(config: OfflinePRMConfig) -> None:
    """Train an implicit PRM. Leaves metrics, checkpoints, held_out.json and `prm` in `config.out`."""
    config.check()
    with joined(config):
        train_joined(config)


def train_joined(config: OfflinePRMConfig) -> None:
    """`train` on one of the ranks."""
    notes = config.check()
    device, bfloat16 = pick_device(config.device), config.dtype == "bfloat16"
    tokenizer = load_tokenizer(config.model)
    own_beta, reference_name = starting_point(config)
    same_vocabulary(tokenizer, config.model, load_tokenizer(reference_name), reference_name)
    data = read_judged(config.data, tokenizer, config.max_tokens, config.loss == "steps")
    training, held_out = split_prompts(data.rows, config.held_out, config.seed)
    notes += data.notes
    if config.loss in PAIRS:
        training = with_pairs(training, config, notes)
    units = units_of(training, config.loss)
    plan = plan_steps([len(unit) for unit in units], config.batch, config.epochs, config.seed)
    steps = len(plan)
    torch.manual_seed(config.seed)
    loader = Loader(device, bfloat16, config.parallel.cpu_offload)
    model, adapter = loader.trained(config.model, "prm", config.optimizer.lora)
    frozen = loader.reference(reference_name)
    learner = Learner(model, config.optimizer, steps, bfloat16, adapter=adapter)

    run = Run(config, "prm")
    parameters = sum(p.numel() for p in learner.trained.values())
    run.console.print(
        f"{parameters:,} trained parameters, {len(training):,} responses, {len(held_out):,} held out, "
        f"{data.prompts:,} prompts in all, {steps:,} steps",
        highlight=False,
    )
    restored = run.load()
    measured: dict[str, Measures] = {}
    if restored:
        if restored["responses"] != len(training):
            raise UserError(
                f"the checkpoint was made with {restored['responses']} responses, the data now has {len(training)}: "
                "resume with the data that the run began with"
            )
        learner.restore(restored["learner"])
        beta, measured = restored["beta"], restored["held_out"]
        notes.append(f"beta {beta:.3g}, as before")
    else:
        beta = choose_beta(config.beta, own_beta, median_nats(frozen, training, config), notes)
    for note in notes:
        run.console.print(f"note: {note}", highlight=False)
    tokens = config.optimizer.tokens_per_microbatch
    prm = ImplicitPRM(model, frozen, beta, tokenizer, tokens, bfloat16, adapter)

    with Signals() as signals, closing(run):
        again = config.epochs > 1 and run.step < steps  # every response more than once
        known = reference_values(prm, training, run, signals) if again else []
        with Bar(run.console, "prm", steps, run.step) as bar:
            if held_out and restored is None:
                with run.clock.phase("held_out"):
                    measured["start"] = measure(prm, held_out, config)
                run.log(0, measured["start"] | run.clock.take())
                bar.say(f"step 0: {said(measured['start'])}")
            for step in range(run.step + 1, steps + 1):
                numbers = [i for unit in plan[step - 1] for i in units[unit]]
                rows = [training[i] for i in numbers]
                with run.clock.phase("step"):
                    batch, labels = collate_judged(rows, pad_token(tokenizer))
                    batch, labels = batch.to(device), labels.to(device)
                    if known:
                        reference = torch.zeros_like(batch.logprobs)
                        reference[batch.response_mask] = torch.cat([known[i] for i in numbers]).to(device)
                    else:
                        reference = prm.reference_logprobs(batch)
                    z0 = kto_reference_point(prm, rows, config.max_tokens) if config.loss == "kto" else 0.0
                    try:
                        loss = prm_loss(config.loss, batch, reference, beta, labels, z0)
                        done = learner.update(batch, *loss)
                    except NonFiniteError as error:
                        raise RunError(
                            f"step {step}: {error}. {run.way_back()} Lower optimizer.lr"
                        ) from error
                rewards = token_rewards(done.logprobs, reference, batch.response_mask, beta)
                metrics = {"prm/loss": done.loss, "prm/grad_norm": done.grad_norm, "prm/lr": done.lr}
                metrics |= batch_accuracy(config.loss, rewards, batch, labels)
                metrics |= {"prm/reference_point": z0} if config.loss == "kto" else {}
                last = step == steps
                if last and held_out:
                    with run.clock.phase("held_out"):
                        measured["end"] = measure(prm, held_out, config)
                    metrics |= measured["end"]
                metrics |= run.clock.take()
                run.log(step, metrics)
                if last and held_out:
                    bar.say(f"step {step}: {said(measured['end'])}")
                if bar.console.is_terminal or last or step % max(1, steps // 20) == 0:
                    bar.report(step, headline(metrics, batch))
                stopped = signals.agree()
                if stopped or last or (config.save_every and step % config.save_every == 0):
                    state = {"learner": learner.state(), "beta": beta, "held_out": measured}
                    run.save(step, state | {"responses": len(training)}, wait=bool(last or stopped))
                if stopped and not last:
                    raise Interrupted(stopped)

    run.export("prm", lambda folder: prm.save_pretrained(folder, tokenizer, reference_name))
    if held_out:
        summary = {
            "prompts": len({row.group for row in held_out}),
            "responses": len(held_out),
            "loss": config.loss,
            "beta": beta,
            "start": plain(measured["start"]),
            "end": plain(measured["end"]),
        }
        text = json.dumps(summary, indent=2) + "\n"
        on_first(lambda: (run.folder / "held_out.json").write_text(text, encoding="utf-8"))
        run.console.print(table(summary))
    where = ", the figures in held_out.json" if held_out else ""
    run.console.print(f"done: {run.folder} holds the PRM in prm/{where}", highlight=False)


def starting_point(config: OfflinePRMConfig) -> tuple[float | None, str]:
    """(beta of the PRM that training goes on with, or None for another model; the reference's name)."""
    if not is_prm(config.model):
        return None, config.reference or config.model
    beta, saved = read_settings(config.model)
    if not (config.reference or saved):
        raise UserError(f"{config.model}: the PRM was saved without a reference model: name it (--reference)")
    return beta, config.reference or saved


def with_pairs(rows: Sequence[Judged], config: OfflinePRMConfig, notes: list[str]) -> list[Judged]:
    """The responses to prompts with a pair, a better and a worse one; raises ValueError where there is none."""
    outcomes: dict[int, set[float | None]] = {}
    for row in rows:
        outcomes.setdefault(row.group, set()).add(row.response.outcome)
    left = sum(len(found) == 1 for found in outcomes.values())
    if left == len(outcomes):
        raise UserError(
            f"{config.data.source}: none of {left} prompts has both a right and a wrong response, so there is no pair "
            f"for loss={config.loss}: set loss=ce, which learns from single responses"
        )
    if left:
        notes.append(
            f"{left} of {len(outcomes)} prompts have no right or no wrong response: left out, as loss={config.loss} "
            "learns from pairs"
        )
    return [row for row in rows if len(outcomes[row.group]) > 1]


def units_of(rows: Sequence[Judged], loss: str) -> list[list[int]]:
    """Rows that a step takes together: single responses, or whole prompts for losses on pairs."""
    units: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        units.setdefault(row.group if loss in PAIRS else i, []).append(i)
    return list(units.values())


def plan_steps(sizes: Sequence[int], batch: int, epochs: float, seed: int) -> list[list[int]]:
    """Units of each optimiser step: epochs in seeded orders laid end to end, a step full with `batch` responses.

    `sizes` are the responses of each unit; whole units may make a step larger. What comes first does not
    depend on how many epochs follow.
    """
    assert sum(sizes) > 0
    wanted, batch = max(1, round(epochs * sum(sizes))), min(batch, sum(sizes))
    steps: list[list[int]] = []
    order: list[int] = []
    taken, epoch = 0, 0
    while taken < wanted:
        step: list[int] = []
        full = taken + batch
        while taken < full:
            if not order:
                order = list(range(len(sizes)))
                random.Random(f"prm-{seed}-{epoch}").shuffle(order)
                epoch += 1
            step.append(order.pop())
            taken += sizes[step[-1]]
        steps.append(step)
    return steps


def median_nats(reference: PreTrainedModel, rows: Sequence[Judged], config: OfflinePRMConfig) -> float:
    """S: -log ref(y) of the median response, in nats, over up to 256 of them."""
    chosen = random.Random(f"nats-{config.seed}").sample(rows, min(SAMPLE, len(rows)))
    batch = collate_judged(chosen, 0)[0].to(compute_device(reference))
    tokens, bfloat16 = config.optimizer.tokens_per_microbatch, config.dtype == "bfloat16"
    with using_adapter(reference, ""):
        return median((-batch_logprobs(reference, batch, tokens, bfloat16=bfloat16).sum(-1)).tolist())


def choose_beta(asked: float | str, own: float | None, nats: float, notes: list[str]) -> float:
    """The PRM's beta: as asked; auto is its own of a PRM that is trained on, else what fits `nats`.

    It is noted where P(right) of the median response cannot rise above 0.6.
    """
    fitting = fitting_beta(nats)
    beta = own or fitting if isinstance(asked, str) else asked
    bound = 1 / (1 + math.exp(-beta * nats))
    notes.append(
        f"beta {beta:.3g}; the median response has {nats:.3g} nats under the reference, so its P(right) can reach "
        f"{bound:.2f}"
    )
    if bound < 0.6 and beta < fitting:
        notes.append(
            f"with beta={beta:.3g} the sigmoid cannot rise above {bound:.2f} for half of the responses: "
            f"beta={fitting:.2g} would let it move"
        )
    return beta


def reference_values(prm: ImplicitPRM, rows: Sequence[Judged], run: Run, signals: Signals) -> list[Tensor]:
    """log ref of each row's response tokens, [T_i], for every epoch.

    Always in the same batches: a resumed run gets the same numbers to the last bit.
    """
    order = sorted(
        range(len(rows)), key=lambda i: len(rows[i].prompt.token_ids) + len(rows[i].response.token_ids)
    )
    values: dict[int, Tensor] = {}
    with Bar(run.console, "reference", len(rows), 0) as bar:
        for start in range(0, len(order), ROWS):
            together(signals.check)
            chosen = order[start : start + ROWS]
            batch = collate_judged([rows[i] for i in chosen], 0)[0].to(compute_device(prm.model))
            logprobs = prm.reference_logprobs(batch)
            for i, values_of_row, mask in zip(chosen, logprobs, batch.response_mask, strict=True):
                values[i] = values_of_row[mask].cpu()
            bar.report(len(values), {})
    return [values[i] for i in range(len(rows))]


def batch_accuracy(loss: str, rewards: Tensor, batch: Batch, labels: Tensor) -> Measures:
    """How often the PRM was right on a batch before the update on it: on pairs, steps or responses."""
    scores = response_scores(rewards)
    if loss in PAIRS:
        won, pairs = pairwise_accuracy(scores, batch.outcome, batch.group)
        return {"prm/pairwise_accuracy": float(won / pairs)}
    ends = batch.step_end
    values, truth = (
        (prefix_values(rewards)[ends], labels[ends]) if loss == "steps" else (scores, batch.outcome)
    )
    return {"prm/accuracy": float(((values > 0) == (truth > 0.5)).float().mean())}


def measure(prm: ImplicitPRM, rows: Sequence[Judged], config: OfflinePRMConfig) -> Measures:
    """How good the PRM is on held-out responses; with step labels the same over steps and their prefix values.

    pairwise_accuracy: how often the better of two of a prompt's responses (steps) has the higher score, mean
    over the prompts that have a pair, with a 95 % bootstrap interval over prompts. auc, ece and brier: over
    all responses (steps), right above one half. lowest_step_last: how often the lowest step reward is the
    last step's; a large share hints at a PRM that judges the outcome instead of the steps.
    """
    values, labels, step_rewards = [], [], []
    places: dict[int, list[int]] = {}
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        for row, (found, truth, steps) in zip(part, scored(prm, part, config), strict=True):
            places.setdefault(row.group, []).extend(range(len(values), len(values) + len(found)))
            values += found
            labels += truth
            step_rewards.append(steps)
    name = "ce" if config.loss == "steps" else config.loss
    z0 = kto_reference_point(prm, rows[:SAMPLE], config.max_tokens) if name == "kto" else 0.0
    scores, truths = torch.tensor(values, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)
    total, count, accuracies = 0.0, 0, []
    for group in places.values():
        whole = torch.zeros(len(group), dtype=torch.long)
        loss, number = outcome_loss(name, scores[group], truths[group], whole, z0)
        won, pairs = pairwise_accuracy(scores[group], truths[group], whole)
        total, count = total + float(loss), count + number
        accuracies += [float(won / pairs)] if pairs else []
    probabilities, right = scores.sigmoid().numpy(), np.array(labels) > 0.5
    low, high = bootstrap_interval(accuracies) if accuracies else (math.nan, math.nan)
    found = {
        "loss": total / count if count else math.nan,
        "pairwise_accuracy": sum(accuracies) / len(accuracies) if accuracies else math.nan,
        "pairwise_low": low,
        "pairwise_high": high,
        "auc": roc_auc(values, right),
        "ece": expected_calibration_error(probabilities, labels),
        "brier": brier(probabilities, labels),
        "lowest_step_last": lowest_is_last(step_rewards),
    }
    return {f"held_out/{name}": value for name, value in found.items() if math.isfinite(value)}


def scored(
    prm: ImplicitPRM, rows: Sequence[Judged], config: OfflinePRMConfig
) -> list[tuple[list[float], list[float], list[float]]]:
    """(scores, what they should tell, step rewards) of each row; a score a response, or a labelled step."""
    assert prm.tokenizer is not None
    ids = [row.response.token_ids for row in rows]
    if config.loss == "steps":
        texts = [text_of_tokens(prm.tokenizer, row.response.text, row.response.token_ids) for row in rows]
        how = [row.steps for row in rows]
    else:
        texts, how = [token_texts(prm.tokenizer, tokens) for tokens in ids], config.step_split
    found = []
    for row, score in zip(
        rows, prm.score_tokens([row.prompt.token_ids for row in rows], ids, texts, how), strict=True
    ):
        if config.loss == "steps":
            found.append((list(accumulate(score.step_rewards)), list(row.labels), score.step_rewards))
        else:
            found.append(([score.reward], [float(row.response.outcome or 0.0)], score.step_rewards))
    return found


def headline(metrics: Measures, batch: Batch) -> dict[str, str]:
    """The numbers that matter while it runs."""
    name = "pairwise_accuracy" if "prm/pairwise_accuracy" in metrics else "accuracy"
    return {
        "loss": f"{metrics['prm/loss']:.4f}",
        name.replace("_", " "): f"{metrics[f'prm/{name}']:.3f}",
        "tok/s": f"{int(batch.lengths.sum()) / metrics['time/step']:,.0f}",
    }


def said(measures: Measures) -> str:
    """What was measured on held-out responses, in short."""
    shown = ("loss", "pairwise_accuracy", "auc")
    found = [
        f"{name.replace('_', ' ')} {measures[key]:.3f}"
        for name in shown
        if (key := f"held_out/{name}") in measures
    ]
    return f"held out: {', '.join(found)}"


def plain(measures: Measures) -> Measures:
    """Without the prefix of the metrics."""
    return {name.removeprefix("held_out/"): value for name, value in measures.items()}


def table(summary: dict) -> Table:
    """What was measured on held-out prompts, for the console."""
    what = "labelled steps" if summary["loss"] == "steps" else "responses"
    title = f"{summary['responses']} held-out responses to {summary['prompts']} prompts; scores of {what}"
    shown = Table(title=title, title_justify="left")
    for column in ("", "before", "after"):
        shown.add_column(column, justify="right" if column else "left")
    start, end = summary["start"], summary["end"]
    for name, about in (
        ("loss", "loss"),
        ("pairwise_accuracy", "pairwise accuracy (95 %)"),
        ("auc", "AUC"),
        ("ece", "calibration error"),
        ("brier", "Brier score"),
        ("lowest_step_last", "lowest step is the last"),
    ):
        if name in end:
            cells = [f"{one[name]:.3f}" if name in one else "" for one in (start, end)]
            if name == "pairwise_accuracy":
                cells[1] += f" ({end['pairwise_low']:.3f}-{end['pairwise_high']:.3f})"
            shown.add_row(about, *cells)
    return shown
