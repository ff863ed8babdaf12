"""The implicit process reward model: two language models, the log-ratio between them is the reward of a token."""

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from openprime.colours import full_colour, legend_html, steps_html, tokens_html
from openprime.config import PRMConfig, PromptFormat, StepSplit
from openprime.data.chat import encode_turns, read_messages, suitable
from openprime.data.collate import collate
from openprime.data.steps import ENDS, split_steps, steps_of_tokens, token_texts
from openprime.data.template import Messages
from openprime.models.checks import check_rows
from openprime.models.hub import find_file, load_model, load_tokenizer, same_vocabulary
from openprime.models.lm import LM, check_scoring
from openprime.models.placement import Placement, pick_device
from openprime.prime.learner import Learner
from openprime.prime.losses import PAIRS, prm_loss, prm_loss_count, scoring_of
from openprime.prime.rewards import (
    Scoring,
    prefix_values,
    response_scores,
    score_metrics,
    token_rewards,
    with_group_outcome,
)
from openprime.ranks import first
from openprime.run.console import Clock
from openprime.types import Batch, Group, Metrics, Prompt, Response, UserError

SETTINGS_FILE = "implicit_prm.json"
PUBLISHED_BETA = 0.05
SKILL_RATE = 0.2
"""Weight of a new batch in the moving average of a PRM's skill."""
NO_UPDATE: Metrics = {"prm/loss": math.nan, "prm/grad_norm": math.nan, "prm/lr": 0.0}
REACH = 0.5
"""beta S as `fitting_beta` sets it, where S is -log ref of the median response: its P(right) can reach 0.62. And the
share of what the median response's mean prefix value can reach at which `fitting_margin` puts the margin."""
PUBLISHED_MARGIN = 5.0
"""m of the prefix loss, beside a beta of 10 (2604.13197)."""
FEWEST_NATS = 0.01
"""A reference is never taken to have fewer nats a token than this."""
ROWS = 256
"""Responses that are scored at a time."""


@dataclass(frozen=True, repr=False)
class Score:
    """The rewards of one response, in nats times beta."""

    tokens: list[str]
    """Text of each token, T of them; the end-of-sequence token's is empty."""
    token_rewards: list[float]
    """r_t, T of them."""
    reference_logprobs: list[float]
    """log ref(y_t | x, y_<t), T of them, in nats."""
    steps: list[str]
    """The steps; joined they are the response."""
    step_of_token: list[int]
    """The step to which each token belongs."""
    scoring: Scoring = "sum"
    """What the PRM was trained to give: the sum of token rewards, or their mean."""

    def __repr__(self) -> str:
        """The numbers in one line."""
        steps = ", ".join(f"{reward:+.4f}" for reward in self.step_rewards)
        return (
            f"Score(reward={self.reward:+.4f}, probability={self.probability:.4f}, step_rewards=[{steps}], "
            f"{len(self.tokens)} tokens)"
        )

    def _repr_html_(self) -> str:
        """The last value of a notebook's cell: the tokens in the colours of their rewards."""
        largest = full_colour(self.token_rewards)
        return self.html(largest) + legend_html(largest)

    def html(self, largest: float) -> str:
        """The same without the legend, where `largest` is the reward of the strongest colour: for several beside each
        other."""
        said = f"reward {self.reward:+.4f}, probability of being right {self.probability:.3f}"
        tokens = tokens_html(self.tokens, self.token_rewards, largest)
        return f"<div>{said}</div>{tokens}{steps_html(self.steps, self.step_rewards)}"

    @cached_property
    def step_rewards(self) -> list[float]:
        """The summed rewards of each step's tokens; where scores are means, the mean prefix value at its end."""
        if self.scoring == "mean":
            rewards = torch.tensor([self.token_rewards], dtype=torch.float64)  # [1, T]
            values = [0.0, *prefix_values(rewards, torch.ones_like(rewards))[0].tolist()]
            return [values[bisect_right(self.step_of_token, step)] for step in range(len(self.steps))]
        sums = [0.0] * len(self.steps)
        for step, reward in zip(self.step_of_token, self.token_rewards, strict=True):
            sums[step] += reward
        return sums

    @property
    def reward(self) -> float:
        """s(y) = sum_t r_t, or the mean."""
        return sum(self.token_rewards) / (max(1, len(self.token_rewards)) if self.scoring == "mean" else 1)

    @property
    def probability(self) -> float:
        """The PRM's probability that the response is right, sigmoid(s(y))."""
        return float(torch.tensor(self.reward, dtype=torch.float64).sigmoid())


class ImplicitPRM:
    """r_t = beta * (log phi(y_t | x, y_<t) - log ref(y_t | x, y_<t)). PRIME eq. 3, 2412.01981 eq. 1."""

    def __init__(
        self,
        lm: LM,
        reference: LM | None,
        beta: float,
        tokenizer: PreTrainedTokenizerBase | None = None,
        scoring: Scoring = "sum",
    ) -> None:
        """`reference` None: the sampling policy's log-probabilities, which a batch carries.

        The reference may be the PRM's own model, or the policy's, with its adapters off.
        """
        self.lm, self.reference, self.beta, self.tokenizer = lm, reference, beta, tokenizer
        self.scoring: Scoring = scoring

    @classmethod
    def from_pretrained(
        cls,
        prm: str | Path,
        reference: str | Path = "",
        device: str | torch.device = "auto",
        tokens_per_microbatch: int = 16384,
        bfloat16: bool = False,
    ) -> "ImplicitPRM":
        """A saved PRM and its reference, '' for the one that it was saved with, from folders or hub ids.

        With a reference any causal language model will do, such as the published EurusPRM; beta is then .05.
        Raises UserError where no reference is known, and where the two do not share a vocabulary.
        """
        place = Placement(pick_device(device) if isinstance(device, str) else device, bfloat16)
        saved, tokenizer = find_parts(str(prm), str(reference))
        lms = []
        for name in (str(prm), saved.reference):
            model = load_model(name, place.device).requires_grad_(False).eval()
            lms.append(LM(model, place, tokens_per_microbatch=tokens_per_microbatch))
            check_scoring(name, lms[-1])
        return cls(lms[0], lms[1], saved.beta, tokenizer, saved.scoring)

    def save_pretrained(self, folder: Path, tokenizer: PreTrainedTokenizerBase, reference: str) -> None:
        """Write the PRM as a Hugging Face model, with beta, the name of its reference and its scoring beside it."""
        self.lm.save(folder, tokenizer)
        if not first():
            return
        if reference and Path(reference).exists():
            reference = str(Path(reference).absolute())  # to be found from other working directories too
        settings = {"beta": self.beta, "reference": reference, "scoring": self.scoring}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def with_reference(self, batch: Batch) -> Batch:
        """The batch with log ref of its response tokens."""
        known = batch.logprobs if self.reference is None else self.reference.logprobs(batch)
        return replace(batch, ref_logprobs=known)

    def token_rewards(self, batch: Batch) -> Tensor:
        """Token rewards [B, T] under the present weights, PRIME eq. 3; the batch comes from `with_reference`."""
        assert batch.ref_logprobs is not None
        return token_rewards(self.lm.logprobs(batch), batch.ref_logprobs, batch.response_mask, self.beta)

    def response_scores(self, rewards: Tensor, mask: Tensor) -> Tensor:
        """s(y) of token rewards [B, T] on the response mask [B, T] as this PRM was trained to give it, [B]."""
        return response_scores(rewards, mask if self.scoring == "mean" else None)

    def score(
        self,
        prompts: Sequence[str | Messages],
        responses: Sequence[str],
        step_split: StepSplit | Sequence[Sequence[str]] = "newline",
        form: PromptFormat | None = None,
    ) -> list[Score]:
        """Token, step and response rewards of responses, one to each prompt; the same in any company.

        Prompts are texts or chat messages, `form` says how they are put to the model (if not given: by the
        tokenizer's chat template, where it has one). `step_split` may be the steps of each response instead,
        which must join to the response. A response ends with the token that ends a turn, which has its reward
        in the last step. Raises UserError for what cannot be encoded.
        """
        if len(prompts) != len(responses):
            raise UserError(
                f"score: {len(prompts)} prompts, but {len(responses)} responses: give one to each"
            )
        assert self.tokenizer is not None
        names = [f"prompt {i}" for i in range(len(prompts))]
        messages = [read_messages(prompt, name) for prompt, name in zip(prompts, names, strict=True)]
        form = suitable(form or PromptFormat(), self.tokenizer)
        turns = encode_turns(messages, responses, names, form, self.tokenizer, texts=True)
        prompt_ids, response_ids = [t.prompt_ids for t in turns], [t.response_ids for t in turns]
        return self.score_tokens(prompt_ids, response_ids, [[*t.texts] for t in turns], step_split)

    def score_sampled(self, groups: Sequence[Group], step_split: StepSplit = "newline") -> list[list[Score]]:
        """`score` of sampled responses by their own token ids (trap 13), group by group."""
        assert self.tokenizer is not None
        prompt_ids = [group.prompt.token_ids for group in groups for _ in group.responses]
        response_ids = [response.token_ids for group in groups for response in group.responses]
        texts = [token_texts(self.tokenizer, ids) for ids in response_ids]
        scores = iter(self.score_tokens(prompt_ids, response_ids, texts, step_split))
        return [[next(scores) for _ in group.responses] for group in groups]

    def score_tokens(
        self,
        prompt_ids: Sequence[Sequence[int]],
        response_ids: Sequence[Sequence[int]],
        texts: Sequence[list[str]],
        step_split: StepSplit | Sequence[Sequence[str]] = "newline",
    ) -> list[Score]:
        """`score` of token ids, in order; `texts` are those of each response's tokens (`data.steps`)."""
        assert self.reference is not None
        steps = _all_steps(["".join(pieces) for pieces in texts], step_split)
        if self.tokenizer is not None:
            rows = list(zip(prompt_ids, response_ids, strict=True))
            for lm in (self.lm, self.reference):
                check_rows(lm.model, self.tokenizer, rows, "what is scored", "leave the longer ones out")
        order = sorted(range(len(response_ids)), key=lambda i: len(prompt_ids[i]) + len(response_ids[i]))
        found: dict[int, tuple[list[float], list[float]]] = {}
        for start in range(0, len(order), ROWS):
            chosen = order[start : start + ROWS]
            batch = collate([_group(prompt_ids[i], response_ids[i]) for i in chosen], frozenset(), 0)
            batch = self.with_reference(batch.to(self.lm.device))
            assert batch.ref_logprobs is not None
            rewards = self.token_rewards(batch)  # [B, T]
            for row, i in enumerate(chosen):
                mask = batch.response_mask[row]
                found[i] = rewards[row][mask].tolist(), batch.ref_logprobs[row][mask].tolist()
        return [
            Score(pieces, *found[i], own, steps_of_tokens(pieces, own), self.scoring)
            for i, (pieces, own) in enumerate(zip(texts, steps, strict=True))
        ]


class OnlinePRM(ImplicitPRM):
    """An implicit PRM that learns beside the policy, from outcomes alone (PRIME section 3.2, eq. 3 and 4)."""

    def __init__(self, learner: Learner, reference: LM | None, config: PRMConfig, clock: Clock) -> None:
        """`reference` None: the sampling policy's log-probabilities, which a batch carries."""
        beta = math.nan if isinstance(config.beta, str) else config.beta
        super().__init__(learner.lm, reference, beta, scoring=scoring_of(config.loss))
        self.learner, self.config, self.clock = learner, config, clock
        self.margin = math.nan if isinstance(config.margin, str) else config.margin
        """Of the prefix loss; nan until the first batch is seen, as beta is, where it is fitted to it."""
        self.skill: float | None = None
        """Moving average of pairwise accuracy on groups new to the PRM."""

    def score_and_update(self, batch: Batch) -> tuple[Batch, Metrics]:
        """The batch with its process rewards (eq. 3), and what the PRM's update on its outcomes (eq. 4) did.

        `config.update`: after: score, then update. before: update, then score. never: score only. One version of the
        PRM scores the whole batch (trap 4).
        """
        how, size = self.config.update, self.config.minibatch
        with self.clock.phase("reference"):
            batch = self.with_reference(batch)
        if math.isnan(self.beta + self.margin):  # the first batch, from which on both stay as they are
            nats = median_nats(batch, self.scoring)
            self.beta, self.margin = fit(nats, self.scoring, self.config.beta, self.config.margin)
        if self.config.balance:
            batch = with_group_outcome(batch)
        with self.clock.phase("prm"):
            # Single forward: the only optimiser step's own forward pass sees the weights before it.
            one_pass = how == "after" and not 0 < size < len(batch)
            fresh = None if one_pass else self.lm.logprobs(batch)
            own, metrics = self.learn(batch) if how != "never" else (None, NO_UPDATE)
            fresh = own if fresh is None else fresh  # log phi [B, T] before any update on this batch
            if fresh is None:  # DPO without a right and a wrong response: there was none
                fresh = self.lm.logprobs(batch)
            logprobs = self.lm.logprobs(batch) if how == "before" else fresh
        assert batch.ref_logprobs is not None
        rewards, scored = (
            token_rewards(values, batch.ref_logprobs, batch.response_mask, self.beta)  # [B, T]
            for values in (logprobs, fresh)
        )
        metrics = metrics | score_metrics(self.response_scores(scored, batch.response_mask), batch)
        self.skill = moving_average(self.skill, metrics["prm/pairwise_accuracy"])
        metrics |= {} if self.skill is None else {"prm/skill": self.skill}
        return replace(batch, rewards=rewards), metrics

    def learn(self, batch: Batch) -> tuple[Tensor | None, Metrics]:
        """Train on the batch's outcomes, one pass in minibatches of whole groups (PRIME eq. 4).

        Returns log phi [B, T] as the optimiser steps' own forward passes gave it, None where there was no step, and
        what was done.
        """
        logprobs, done = torch.zeros_like(batch.logprobs), []
        how = self.config
        loss = partial(prm_loss, how.loss, beta=self.beta, margin=self.margin, balance=how.balance)
        for rows in minibatches_of_groups(batch.group, self.config.minibatch):
            part = batch.select(rows)
            if count := prm_loss_count(self.config.loss, part):
                done.append(self.learner.update(part, loss, count, whole_groups=self.config.loss in PAIRS))
                logprobs[rows, : part.token_ids.shape[1]] = done[-1].logprobs
        if not done:
            return None, NO_UPDATE
        return logprobs, {
            "prm/loss": sum(update.loss for update in done) / len(done),
            "prm/grad_norm": max(update.grad_norm for update in done),
            "prm/lr": done[-1].lr,
        }

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return self.learner.state() | {"skill": self.skill, "beta": self.beta, "margin": self.margin}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.skill, self.beta, self.margin = state["skill"], state["beta"], state["margin"]
        self.learner.restore(state)


def moving_average(before: float | None, value: float) -> float | None:
    """The skill after another batch; nan, where there are no pairs, says nothing."""
    if math.isnan(value):
        return before
    return value if before is None else before + SKILL_RATE * (value - before)


def minibatches_of_groups(group: Tensor, size: int) -> list[Tensor]:
    """Rows in minibatches of about `size` responses, groups kept whole, in the batch's order; 0 is all."""
    if size == 0:
        return [torch.arange(len(group), device=group.device)]
    batches: list[list[int]] = [[]]
    last = None
    for row, g in enumerate(group.tolist()):
        if g != last and len(batches[-1]) >= size:
            batches.append([])
        batches[-1].append(row)
        last = g
    return [torch.tensor(rows, device=group.device) for rows in batches]


def fitting_beta(nats: float) -> float:
    """The beta for responses of which the median has S = `nats` nats under the reference: REACH / S, in [.05, 1].

    The log-ratio of a response, sum_t log(phi/ref), cannot exceed -log ref(y), for phi(y) <= 1. So sigmoid(beta S)
    bounds P(right) of the median response from above, and a beta that is too small leaves the loss nothing to gain.
    """
    return max(PUBLISHED_BETA, min(1.0, REACH / max(nats, 1e-6)))


def fitting_prefix_beta(nats: float) -> float:
    """The beta of mean prefix values where the median response has S = `nats` a token: PUBLISHED_MARGIN / (REACH S).

    The mean log-ratio of a response cannot exceed S, so its value, beta times that, cannot exceed beta S. The prefix
    loss wants a right response's value above the margin m: its sigmoid turns where the mean log-ratio is m / beta. As
    published, beta 10 and m 5, that is half a nat a token. Responses that are likely under the reference have less in
    all (.1 to .4 where a model is good at its task): no right response could ever satisfy the loss, whose gradient
    would stay what it is at 0 however well the PRM knew it. So the shape of the published loss is kept, m = 5, and its
    scale is fitted: the sigmoid turns at half of what the median response can reach, beta = 5 / (S / 2). At one nat a
    token these are the published numbers.
    """
    return PUBLISHED_MARGIN / (REACH * max(nats, FEWEST_NATS))


def fitting_margin(beta: float, nats: float) -> float:
    """The margin of the prefix loss at half of what the median response's value can reach: REACH beta S.

    `nats`: S, a token. 5 with the beta of `fitting_prefix_beta`, for which it has the reason.
    """
    return REACH * beta * max(nats, FEWEST_NATS)


def median_nats(batch: Batch, scoring: Scoring) -> float:
    """S: -log ref(y) of the median response in nats, or where scores are means in nats a token."""
    assert batch.ref_logprobs is not None
    rewards = -batch.ref_logprobs * batch.response_mask
    scores = response_scores(rewards, batch.response_mask if scoring == "mean" else None)  # [B]
    return float(scores.quantile(0.5))


def fit(nats: float, scoring: Scoring, beta: float | str, margin: float | str) -> tuple[float, float]:
    """(beta, margin) as asked for; what is auto fits the reference's `nats`, those of `median_nats`.

    Where scores are sums there is no margin: 0.
    """
    if scoring == "sum":
        return fitting_beta(nats) if isinstance(beta, str) else beta, 0.0
    beta = fitting_prefix_beta(nats) if isinstance(beta, str) else beta
    return beta, fitting_margin(beta, nats) if isinstance(margin, str) else margin


class Settings(NamedTuple):
    """What a PRM was saved with."""

    beta: float
    reference: str
    scoring: Scoring


def find_parts(prm: str, reference: str = "") -> tuple[Settings, PreTrainedTokenizerBase]:
    """The settings, with the reference that is to be used, and the tokenizer of a saved PRM; loads no weights.

    Raises UserError where no reference is known or found, and where the two do not share a vocabulary.
    """
    known = is_prm(prm) or not reference
    saved = read_settings(prm) if known else Settings(PUBLISHED_BETA, "", "sum")
    if not (reference or saved.reference):
        raise UserError(f"{prm}: the PRM was saved without a reference model: name it (--reference)")
    tokenizer = load_tokenizer(prm)
    try:
        other = load_tokenizer(reference or saved.reference)
    except ValueError as error:
        if reference:
            raise
        raise UserError(f"{prm}: its reference cannot be loaded: name it (--reference): {error}") from error
    same_vocabulary(tokenizer, prm, other, reference or saved.reference)
    return saved._replace(reference=reference or saved.reference), tokenizer


def is_prm(name: str) -> bool:
    """True where a folder or hub id holds an implicit PRM with its settings."""
    return find_file(name, SETTINGS_FILE) is not None


def read_settings(prm: str) -> Settings:
    """What a PRM was saved with; of one without a scoring, such as an older one, scores are sums."""
    path = find_file(prm, SETTINGS_FILE)
    if path is None:
        raise UserError(
            f"{prm}: not an implicit PRM: it has no {SETTINGS_FILE} (a run's `prm` folder has one); "
            "any other model needs a reference (--reference)"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        scoring = settings.get("scoring", "sum")
        if scoring not in get_args(Scoring):
            raise ValueError(f"scoring {scoring!r}")
        return Settings(float(settings["beta"]), str(settings["reference"]), scoring)
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected an object with beta and reference: {error!r}") from error


def _all_steps(texts: Sequence[str], how: StepSplit | Sequence[Sequence[str]]) -> list[list[str]]:
    """The steps of each text, found or given."""
    if isinstance(how, str):
        if how not in ENDS:
            raise UserError(f"step_split: no {how!r}; there are: {', '.join(ENDS)}")
        return [split_steps(text, cast(StepSplit, how)) for text in texts]
    if len(how) != len(texts):
        raise UserError(f"step_split: the steps of {len(how)} responses, but there are {len(texts)}")
    for i, (steps, text) in enumerate(zip(how, texts, strict=True)):
        if not steps or "".join(steps) != text:
            raise UserError(f"step_split: the steps of response {i} do not join to the response")
    return [list(steps) for steps in how]


def _group(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Group:
    response = Response(tuple(response_ids), (0.0,) * len(response_ids), "", False, 0.0)
    return Group(Prompt("", tuple(prompt_ids), "", None), (response,), 0)
