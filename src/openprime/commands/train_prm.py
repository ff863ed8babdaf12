"""`openprime prm`: train an implicit PRM offline on judged responses (arXiv 2412.01981), top to bottom."""

import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from openprime.config import OfflinePRMConfig
from openprime.data.readers import identity
from openprime.data.records import JudgedResponse, collate_judged, read_judged, split_prompts
from openprime.evaluation.held_out import ROWS, SAMPLE, kto_reference_point, measure
from openprime.evaluation.page import console_table
from openprime.models.checks import check_rows
from openprime.models.lm import Loader
from openprime.models.placement import Placement
from openprime.prime.learner import Learner
from openprime.prime.losses import PAIRS, prm_loss, prm_loss_count, scoring_of
from openprime.prime.prm import ImplicitPRM, find_parts, fit, is_prm, median_nats
from openprime.prime.rewards import Scoring, pairwise_accuracy, prefix_values, response_scores, token_rewards
from openprime.ranks import on_first, together
from openprime.run.console import Bar
from openprime.run.launch import joined
from openprime.run.run import Run
from openprime.types import Batch, Metrics, UserError


def train(config: OfflinePRMConfig) -> None:
    """Train an implicit PRM. Leaves metrics, checkpoints, held_out.json and `prm` in `config.out`."""
    notes = config.check()
    with joined(config):
        train_joined(config, notes)


@dataclass
class Known:
    """Found out once and kept."""

    beta: float = 0.0
    margin: float = 0.0
    held_out: dict[str, Metrics] = field(default_factory=dict)
    """Measures at the `start` and the `end`."""

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return asdict(self)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.beta, self.margin, self.held_out = state["beta"], state["margin"], state["held_out"]


def train_joined(config: OfflinePRMConfig, notes: list[str]) -> None:
    """`train` on one of the ranks."""
    goes_on = is_prm(config.model)  # with its own beta and reference
    named = config.reference or ("" if goes_on else config.model)
    saved, tokenizer = find_parts(config.model, named)
    scoring = scoring_of(config.loss)
    own_beta = saved.beta if goes_on and saved.scoring == scoring else None
    data = read_judged(config.data, tokenizer, config.max_tokens, config.loss == "steps")
    training, held_out = split_prompts(data.rows, config.held_out, config.seed)
    notes += data.notes
    if config.loss in PAIRS:
        training = with_pairs(training, config, notes)
    units = units_of(training, config.loss)
    plan = plan_steps([len(unit) for unit in units], config.batch, config.epochs, config.seed)
    torch.manual_seed(config.seed)
    models = Loader(Placement.of(config))
    learner = Learner(models.trained(config.model, "prm", config.optimizer), config.optimizer, len(plan))
    notes += models.notes
    rows = ((row.prompt.token_ids, row.response.token_ids) for row in data.rows)
    check_rows(
        learner.lm.model, tokenizer, rows, config.data.source, "lower max_tokens, over which rows are dropped"
    )
    learner.lm.try_save(tokenizer)
    reference = models.reference(saved.reference, config.optimizer.tokens_per_microbatch)
    prm, known = ImplicitPRM(learner.lm, reference, 0.0, tokenizer, scoring), Known()

    def headline(metrics: Metrics) -> dict[str, str]:
        name = "pairwise_accuracy" if "prm/pairwise_accuracy" in metrics else "accuracy"
        return {
            "loss": f"{metrics['prm/loss']:.4f}",
            name.replace("_", " "): f"{metrics[f'prm/{name}']:.3f}",
            "tok/s": f"{int(batch.lengths.sum()) / metrics['time/step']:,.0f}",
        }

    seen = (
        identity(r.group, r.prompt.token_ids, r.response.token_ids, r.response.outcome, str(r.labels))
        for r in data.rows
    )
    with Run(config, "prm", data=seen) as run:
        run.note(
            f"{learner.parameters:,} trained parameters, {len(training):,} responses, {len(held_out):,} held out, "
            f"{data.prompts:,} prompts in all, {len(plan):,} steps",
            "",
        )
        fresh = run.begin({"learner": learner, "known": known})
        if fresh:
            nats = nats_of_sample(prm, training, config.seed)
            asked = config.beta, config.margin
            known.beta, known.margin = choose_scale(*asked, own_beta, nats, scoring, notes)
        else:
            notes.append(f"beta {known.beta:.3g}, as before")
        for note in notes:
            run.note(note)
        prm.beta = known.beta

        def measured(when: str) -> None:
            with run.measuring("held_out"):
                known.held_out[when] = found = measure(prm, held_out, config, known.margin)
            run.log({f"held_out/{name}": value for name, value in found.items()})
            shown = [name for name in ("loss", "pairwise_accuracy", "auc") if name in found]
            said = ", ".join(f"{name.replace('_', ' ')} {found[name]:.3f}" for name in shown)
            run.note(f"step {run.step_number}: held out: {said}", "")

        again = config.epochs > 1 and run.done < len(plan)  # every response more than once
        values = reference_values(prm, training, run) if again else []
        if held_out and (fresh or run.unfinished):
            with run.step(run.done):
                measured("start" if fresh else "end")
        for step in run.steps(len(plan), headline, lines=20):
            numbers = [i for unit in plan[step - 1] for i in units[unit]]
            rows = [training[i] for i in numbers]
            with run.step(step):
                with run.training(), run.clock.phase("step"):
                    batch = collate_judged(rows, 0).to(learner.lm.device)
                    if values:
                        ref = torch.zeros_like(batch.logprobs)  # [B, T]
                        ref[batch.response_mask] = torch.cat([values[i] for i in numbers]).to(ref.device)
                        batch = replace(batch, ref_logprobs=ref)
                    else:
                        batch = prm.with_reference(batch)
                    z0 = kto_reference_point(prm, rows, config.max_tokens) if config.loss == "kto" else 0.0
                    scale = {"beta": prm.beta, "margin": known.margin}
                    loss = partial(prm_loss, config.loss, **scale, reference_point=z0)
                    count = prm_loss_count(config.loss, batch)
                    done = learner.update(batch, loss, count, whole_groups=config.loss in PAIRS)
                assert batch.ref_logprobs is not None
                rewards = token_rewards(done.logprobs, batch.ref_logprobs, batch.response_mask, prm.beta)
                run.log({"prm/loss": done.loss, "prm/grad_norm": done.grad_norm, "prm/lr": done.lr})
                run.log(batch_accuracy(config.loss, rewards, batch))
                run.log({"prm/reference_point": z0} if config.loss == "kto" else {})
                if held_out and run.due(0):
                    measured("end")
        run.export("prm", lambda folder: prm.save_pretrained(folder, tokenizer, saved.reference))
        if held_out:
            summary = {"prompts": len({row.group for row in held_out}), "responses": len(held_out)}
            summary |= {"loss": config.loss, "beta": prm.beta}
            summary |= ({"margin": known.margin} if config.loss == "prefix" else {}) | known.held_out
            text = json.dumps(summary, indent=2) + "\n"
            on_first(lambda: (run.folder / "held_out.json").write_text(text, encoding="utf-8"))
            rows = {
                name.replace("_", " "): {
                    when: f"{of[name]:.3f}" for when, of in known.held_out.items() if name in of
                }
                for name in known.held_out["end"]
            }
            scored = "labelled steps" if config.loss == "steps" else "responses"
            run.console.print(console_table(f"held out, of {scored}", rows))
        where = ", the figures in held_out.json" if held_out else ""
        run.note(f"done: {run.folder} holds the PRM in prm/{where}", "")


def with_pairs(
    rows: Sequence[JudgedResponse], config: OfflinePRMConfig, notes: list[str]
) -> list[JudgedResponse]:
    """The responses to prompts with a pair, a better and a worse one; raises UserError where there is none."""
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


def units_of(rows: Sequence[JudgedResponse], loss: str) -> list[list[int]]:
    """Rows that a step takes together: single responses, or whole prompts for losses on pairs."""
    units: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        units.setdefault(row.group if loss in PAIRS else i, []).append(i)
    return list(units.values())


def plan_steps(sizes: Sequence[int], batch: int, epochs: float, seed: int) -> list[list[int]]:
    """Units of each optimiser step: epochs in seeded orders, a step full with `batch` responses, an epoch's last short.

    `sizes` are the responses of each unit; whole units may make a step larger. What comes first does not
    depend on how many epochs follow.
    """
    wanted, steps, taken = max(1, round(epochs * sum(sizes))), [], 0
    for epoch in itertools.count():
        units = list(range(len(sizes)))
        random.Random(f"prm-{seed}-{epoch}").shuffle(units)
        while units:
            if taken >= wanted:
                return steps
            step, full = [], taken + batch
            while units and taken < full:
                step.append(units.pop())
                taken += sizes[step[-1]]
            steps.append(step)
    raise AssertionError


def nats_of_sample(prm: ImplicitPRM, rows: Sequence[JudgedResponse], seed: int) -> float:
    """S: -log ref(y) of the median response, in nats, of mean scores in nats a token, over up to 256 of them."""
    chosen = random.Random(f"nats-{seed}").sample(rows, min(SAMPLE, len(rows)))
    return median_nats(prm.with_reference(collate_judged(chosen, 0).to(prm.lm.device)), prm.scoring)


def choose_scale(
    asked: float | str,
    margin: float | str,
    own: float | None,
    nats: float,
    scoring: Scoring,
    notes: list[str],
) -> tuple[float, float]:
    """The PRM's (beta, margin): as asked; an auto beta is its own of a PRM that is trained on, else what fits `nats`.

    What fits is noted where P(right) of the median response cannot rise above 0.6.
    """
    fitting, _ = fit(nats, scoring, "auto", margin)
    beta, margin = fit(nats, scoring, own or asked if asked == "auto" else asked, margin)
    bound = 1 / (1 + math.exp(-beta * nats))
    per = " a token" if scoring == "mean" else ""
    note = (
        f"beta {beta:.3g}; the median response has {nats:.3g} nats{per} under the reference, so its P(right) "
    )
    note += f"cannot rise above {bound:.2f}"
    if bound < 0.6 and beta < fitting:
        note += f": beta={fitting:.2g} would let it move"
    notes.append(note)
    if scoring == "mean":
        reach = margin / beta
        notes.append(
            f"margin {margin:.3g}: a right response's tokens are to gain {reach:.2g} nats on average"
        )
    return beta, margin


def reference_values(prm: ImplicitPRM, rows: Sequence[JudgedResponse], run: Run) -> list[Tensor]:
    """log ref of each row's response tokens, [T_i], for every epoch.

    Always in the same batches: a resumed run gets the same numbers to the last bit.
    """
    lengths = [len(row.prompt.token_ids) + len(row.response.token_ids) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    values = [torch.empty(0)] * len(rows)
    with Bar(run.console, "reference", len(rows), 0) as bar:
        for start in range(0, len(order), ROWS):
            together(run.signals.check)
            chosen = order[start : start + ROWS]
            batch = prm.with_reference(collate_judged([rows[i] for i in chosen], 0).to(prm.lm.device))
            assert batch.ref_logprobs is not None
            for i, logprobs, mask in zip(chosen, batch.ref_logprobs, batch.response_mask, strict=True):
                values[i] = logprobs[mask].cpu()
            bar.report(start + len(chosen), {})
    return values


def batch_accuracy(loss: str, rewards: Tensor, batch: Batch) -> Metrics:
    """How often the PRM was right on a batch before the update on it: on pairs, steps or responses."""
    scores = response_scores(rewards)  # of the sign that a mean has
    if loss in PAIRS:
        won, pairs = pairwise_accuracy(scores, batch.outcome, batch.group)
        return {"prm/pairwise_accuracy": float(won / pairs)}
    values, truth = scores, batch.outcome
    if loss == "steps":
        assert batch.labels is not None
        values, truth = prefix_values(rewards)[batch.step_end], batch.labels[batch.step_end]
    return {"prm/accuracy": float(((values > 0) == (truth > 0.5)).float().mean())}
