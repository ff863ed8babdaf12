"""The implicit process reward model against formulas written out, and the order of scoring and updating."""

import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from openprime.config import OptimizerConfig, PRMConfig
from openprime.data.records import JudgedResponse as Judged
from openprime.models import logprobs as logprobs_module
from openprime.models.hub import load_model
from openprime.models.tiny import build_model, build_tokenizer
from openprime.prime import learner as learner_module
from openprime.prime.learner import Learner
from openprime.prime.online import PRMTrainer, kto_reference_point, prm_loss
from openprime.prime.prm import ImplicitPRM, read_settings
from openprime.types import Batch, Prompt, Response

BETA = 0.3
GROUP, OUTCOMES = [0, 0, 0, 1, 1, 2, 2, 2], [1, 0, 1, 0, 0.5, 1, 1, 0]


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Groups of 3, 2 and 3; a soft label; pairs in every group."""
    return make_batch(GROUP, OUTCOMES)


@pytest.fixture
def make_prm(make_model) -> Callable[..., PRMTrainer]:
    """(reference, **options) -> a PRM that differs from its reference, with a rate that moves it visibly."""

    def make(reference: bool = True, **options) -> PRMTrainer:
        defaults = {"lr": 0.05, "beta": BETA, "clip_grad": 1e9, "tokens_per_microbatch": 20}
        config = PRMConfig(**(defaults | options))
        learner = Learner(make_model(seed=1), config, 10)
        return PRMTrainer(learner, make_model(seed=2) if reference else None, config)

    return make


@pytest.fixture
def by_hand(naive_logprobs) -> Callable[..., Tensor]:
    """(model, batch, reference or None) -> r_t = beta * (log phi - log ref), token by token, with autograd."""

    def rewards(model, batch: Batch, reference) -> Tensor:
        phi = naive_logprobs(model, batch)
        with torch.no_grad():
            ref = batch.logprobs if reference is None else naive_logprobs(reference, batch)
        rows = []
        for b in range(len(batch)):
            row = [
                BETA * (phi[b, t] - ref[b, t]) if batch.response_mask[b, t] else phi.new_zeros(())
                for t in range(phi.shape[1])
            ]
            rows.append(torch.stack(row))
        return torch.stack(rows)

    return rewards


def assert_rewards(mine: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(mine, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reference", [True, False])
def test_rewards_are_beta_times_the_log_ratio(reference: bool, batch: Batch, make_prm, by_hand):
    """With a frozen reference model, and with the sampling policy's own log-probabilities."""
    prm = make_prm(reference)
    expected = by_hand(prm.learner.model, batch, prm.prm.reference)
    mine = prm.prm.token_rewards(batch, prm.prm.reference_logprobs(batch))
    assert_rewards(mine, expected)
    assert mine.shape == batch.token_ids.shape
    assert bool((mine[~batch.response_mask] == 0).all())
    assert float(mine.abs().max()) > 0.1


def test_without_a_reference_model_the_batchs_own_log_probabilities_are_taken(batch: Batch, make_prm):
    assert torch.equal(make_prm(reference=False).prm.reference_logprobs(batch), batch.logprobs)
    assert not torch.allclose(
        make_prm(reference=True).prm.reference_logprobs(batch), batch.logprobs, atol=0.1
    )


def test_a_prm_that_is_its_reference_gives_no_reward(batch: Batch, make_model):
    config = PRMConfig(beta=BETA)
    prm = PRMTrainer(Learner(make_model(1), config, 1), make_model(1), config)
    assert float(prm.prm.token_rewards(batch, prm.prm.reference_logprobs(batch)).abs().max()) < 1e-6


def test_the_reference_is_frozen_and_stays_as_it_was(batch: Batch, make_prm, weights):
    prm = make_prm()
    before = weights(prm.prm.reference)
    for _ in range(2):
        prm.step(batch, prm.prm.reference_logprobs(batch))
    assert torch.equal(weights(prm.prm.reference), before)
    assert not any(p.requires_grad for p in prm.prm.reference.parameters())
    assert not prm.prm.reference.training
    assert not prm.prm.reference_logprobs(batch).requires_grad


# The order of scoring and updating


def test_after_one_forward_pass_scores_with_the_weights_before_the_update(
    batch: Batch, make_prm, by_hand, weights, monkeypatch: pytest.MonkeyPatch
):
    prm = make_prm(update="after")
    reference = prm.prm.reference_logprobs(batch)
    expected, before = by_hand(prm.learner.model, batch, prm.prm.reference), weights(prm.learner.model)
    calls = []
    original = learner_module.token_logprobs
    monkeypatch.setattr(
        learner_module, "token_logprobs", lambda *a: calls.append(a[1].shape[0]) or original(*a)
    )
    done = prm.step(batch, reference)
    assert sum(calls) == len(batch)  # one forward pass
    assert len(calls) > 1
    assert_rewards(done.rewards, expected)
    torch.testing.assert_close(done.fresh_scores, expected.detach().sum(-1), rtol=1e-4, atol=1e-4)
    assert not done.rewards.requires_grad
    assert float((weights(prm.learner.model) - before).abs().max()) > 0.01
    assert float((prm.prm.token_rewards(batch, reference) - done.rewards).abs().max()) > 0.05


def test_before_scores_with_the_updated_weights_and_reports_fresh_scores(
    batch: Batch, make_prm, by_hand, weights
):
    before_prm, after_prm = make_prm(update="before"), make_prm(update="after")
    reference = before_prm.prm.reference_logprobs(batch)
    old = by_hand(before_prm.learner.model, batch, before_prm.prm.reference)
    done = before_prm.step(batch, reference)
    new = by_hand(before_prm.learner.model, batch, before_prm.prm.reference)
    assert_rewards(done.rewards, new)
    torch.testing.assert_close(done.fresh_scores, old.detach().sum(-1), rtol=1e-4, atol=1e-4)
    assert (new - old).abs().max().item() > 0.05
    # The update itself is the same either way.
    other = after_prm.step(batch, reference)
    assert (done.loss, done.grad_norm, done.lr) == (other.loss, other.grad_norm, other.lr)
    assert torch.equal(weights(before_prm.learner.model), weights(after_prm.learner.model))


def test_never_leaves_the_weights_alone(batch: Batch, make_prm, by_hand, weights):
    prm = make_prm(update="never")
    before = weights(prm.learner.model)
    done = prm.step(batch, prm.prm.reference_logprobs(batch))
    assert torch.equal(weights(prm.learner.model), before)
    assert prm.learner.updates == 0
    assert_rewards(done.rewards, by_hand(prm.learner.model, batch, prm.prm.reference))
    torch.testing.assert_close(done.fresh_scores, done.rewards.sum(-1))
    assert math.isnan(done.loss)
    assert math.isnan(done.grad_norm)


@pytest.mark.parametrize("loss", ["ce", "dpo"])
@pytest.mark.parametrize(("update", "minibatch"), [("after", 3), ("after", 1), ("before", 3)])
def test_trap_04_several_minibatches_are_scored_by_one_version_of_the_prm(
    update: str, minibatch: int, loss: str, batch: Batch, make_prm, by_hand
):
    prm = make_prm(update=update, minibatch=minibatch, loss=loss)
    old = by_hand(prm.learner.model, batch, prm.prm.reference)
    done = prm.step(batch, prm.prm.reference_logprobs(batch))
    new = by_hand(prm.learner.model, batch, prm.prm.reference)
    assert prm.learner.updates == (3 if minibatch == 1 else 2)
    assert_rewards(done.rewards, old if update == "after" else new)
    torch.testing.assert_close(done.fresh_scores, old.detach().sum(-1), rtol=1e-4, atol=1e-4)
    for rows in ([0, 1, 2], [3, 4], [5, 6, 7]):  # every group's rewards would have told another version
        assert (old - new)[rows].abs().max().item() > 0.02


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (1, [[0, 1, 2], [3, 4], [5, 6, 7]]),
        (3, [[0, 1, 2], [3, 4, 5, 6, 7]]),
        (4, [[0, 1, 2, 3, 4], [5, 6, 7]]),
        (5, [[0, 1, 2, 3, 4], [5, 6, 7]]),
        (6, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (8, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (100, [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_minibatches_keep_groups_whole(size: int, expected, batch: Batch, make_prm, monkeypatch):
    """Responses of the outer minibatch, found by their tokens, in the order of the optimiser steps."""
    prm = make_prm(minibatch=size)
    seen: list[list[int]] = []
    original = prm.learner.update

    def note(part: Batch, *rest):
        seen.append(
            [
                next(
                    b
                    for b in range(len(batch))
                    if batch.lengths[b] == n and torch.equal(batch.token_ids[b, :n], ids[:n])
                )
                for ids, n in zip(part.token_ids, part.lengths.tolist(), strict=True)
            ]
        )
        return original(part, *rest)

    monkeypatch.setattr(prm.learner, "update", note)
    prm.step(batch, prm.prm.reference_logprobs(batch))
    assert seen == expected


# Losses


def bce(scores: Tensor, batch: Batch) -> Tensor:
    """Mean over responses of -o log sigmoid(s) - (1 - o) log(1 - sigmoid(s))."""
    p = torch.sigmoid(scores.double())
    o = batch.outcome.double()
    return -(o * p.log() + (1 - o) * (1 - p).log()).mean()


def dpo(scores: Tensor, batch: Batch) -> Tensor:
    """Mean over all pairs of a group with different outcomes."""
    losses = []
    for i in range(len(batch)):
        for j in range(len(batch)):
            if batch.group[i] == batch.group[j] and batch.outcome[i] > batch.outcome[j]:
                losses.append(-torch.log(torch.sigmoid(scores[i].double() - scores[j].double())))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize(("name", "formula"), [("ce", bce), ("dpo", dpo)])
@pytest.mark.parametrize("tokens", [1, 30, 1000])
def test_gradients_are_those_of_the_loss_of_the_whole_batch(
    tokens: int, name: str, formula, reference: bool, batch: Batch, make_prm, by_hand, catch_gradients
):
    prm = make_prm(reference, loss=name, tokens_per_microbatch=tokens)
    caught = catch_gradients(prm.learner.optimizer)
    twin = copy.deepcopy(prm.learner.model)
    whole = formula(by_hand(twin, batch, prm.prm.reference).sum(-1), batch)
    whole.backward()
    done = prm.step(batch, prm.prm.reference_logprobs(batch))
    assert done.loss == pytest.approx(whole.item(), rel=1e-4)
    norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
    assert done.grad_norm == pytest.approx(norm.item(), rel=1e-3)
    assert len(caught) == 1
    for mine, other in zip(caught[0], twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other.grad, rtol=1e-3, atol=1e-5)


def test_trap_04_minibatches_mean_their_losses_and_report_the_largest_norm(batch: Batch, make_prm, by_hand):
    """Three steps, the loss of each at the weights after the one before."""
    prm = make_prm(minibatch=1)
    reference = prm.prm.reference_logprobs(batch)
    twin = make_prm(minibatch=1)
    losses, norms = [], []
    for rows in ([0, 1, 2], [3, 4], [5, 6, 7]):
        part = batch.select(torch.tensor(rows))
        losses.append(bce(by_hand(twin.learner.model, part, twin.prm.reference).sum(-1), part).item())
        norms.append(twin.step(part, twin.prm.reference_logprobs(part)).grad_norm)
    done = prm.step(batch, reference)
    assert done.loss == pytest.approx(sum(losses) / 3, rel=1e-3)
    assert done.grad_norm == pytest.approx(max(norms), rel=1e-3)
    assert len(set(norms)) == 3


@pytest.mark.parametrize("update", ["after", "before"])
def test_dpo_without_a_pair_updates_nothing(update: str, make_batch, make_prm, by_hand, weights):
    batch = make_batch([0, 0, 1, 1, 2], [1, 1, 0, 0, 1])
    prm = make_prm(loss="dpo", update=update)
    before = weights(prm.learner.model)
    done = prm.step(batch, prm.prm.reference_logprobs(batch))
    assert torch.equal(weights(prm.learner.model), before)
    assert prm.learner.updates == 0
    assert_rewards(done.rewards, by_hand(prm.learner.model, batch, prm.prm.reference))
    assert math.isnan(done.loss)
    assert math.isnan(done.grad_norm)


@pytest.mark.parametrize("update", ["after", "before"])
def test_dpo_passes_over_minibatches_without_a_pair(update: str, make_batch, make_prm, by_hand):
    batch = make_batch([0, 0, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0])
    prm = make_prm(loss="dpo", minibatch=2, update=update)
    old = by_hand(prm.learner.model, batch, prm.prm.reference)
    done = prm.step(batch, prm.prm.reference_logprobs(batch))
    assert prm.learner.updates == 1
    new = by_hand(prm.learner.model, batch, prm.prm.reference)
    assert_rewards(done.rewards, old if update == "after" else new)
    pair = old.detach().sum(-1)[2:4]
    assert done.loss == pytest.approx(math.log1p(math.exp(float(pair[1] - pair[0]))), rel=1e-3)


def test_training_teaches_the_outcomes(batch: Batch, make_prm):
    prm = make_prm(lr=0.01)
    reference = prm.prm.reference_logprobs(batch)
    steps = [prm.step(batch, reference) for _ in range(25)]
    assert steps[-1].loss < 0.5 * steps[0].loss
    scores = steps[-1].fresh_scores
    assert bool((scores[batch.outcome == 1] > scores[batch.outcome == 0].max()).all())


# Saving


@pytest.mark.parametrize("reference", ["sft/model", ""])
def test_a_saved_prm_is_a_model_with_its_settings_beside_it(reference: str, tmp_path: Path):
    tokenizer = build_tokenizer(["Start four"] * 5, 280)
    config = PRMConfig(beta=0.07)
    model = build_model(tokenizer, 16, 1, 2, 32, 0)
    prm = PRMTrainer(Learner(model, config, 1), None, config)
    prm.prm.save_pretrained(tmp_path / "prm", tokenizer, reference)
    ids = torch.tensor([[5, 9, 30, 2]])
    with torch.no_grad():
        expected = model(ids).logits
        for loaded in (
            AutoModelForCausalLM.from_pretrained(tmp_path / "prm"),
            load_model(str(tmp_path / "prm")),
        ):
            assert torch.equal(loaded.eval()(ids).logits, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "prm").encode("Start") == tokenizer.encode("Start")
    assert read_settings(str(tmp_path / "prm")) == (0.07, reference)
    written = json.loads((tmp_path / "prm" / "implicit_prm.json").read_text(encoding="utf-8"))
    assert written == {"beta": 0.07, "reference": reference}


def test_a_folder_that_is_no_prm_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"not an implicit PRM.*implicit_prm\.json"):
        read_settings(str(tmp_path))


# Offline: every loss through the learner's micro-batches, and KTO's reference point


LABELS = torch.tensor([1.0, 0.0, 0.25, 1.0, 0.0])
"""Dealt out to the labelled steps in turn."""


def labelled(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with the last token of each response and every third one before it as labelled steps."""
    step_end, labels = torch.zeros_like(batch.step_end), torch.zeros_like(batch.logprobs)
    count = 0
    for b in range(len(batch)):
        for t in batch.response_mask[b].nonzero()[:, 0].tolist()[::-3]:
            step_end[b, t], labels[b, t] = True, LABELS[count % len(LABELS)]
            count += 1
    assert count > len(batch)
    return replace(batch, step_end=step_end), labels


def naive_loss(name: str, rewards: Tensor, batch: Batch, labels: Tensor, z0: float) -> Tensor:
    """The mean loss as the papers write it, pair by pair, response by response, step by step."""
    s, o, terms = rewards.sum(-1), batch.outcome.double(), []

    def sigma(x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-x))

    for i in range(len(batch)):
        if name == "ce":
            terms.append(-(o[i] * sigma(s[i]).log() + (1 - o[i]) * (1 - sigma(s[i])).log()))
        if name == "kto":
            terms.append(1 - (sigma(s[i] - z0) if o[i] > 0.5 else sigma(z0 - s[i])))
        for t in range(rewards.shape[1]):
            if name == "steps" and batch.step_end[i, t]:
                q, label = rewards[i, : t + 1].sum(), float(labels[i, t])
                terms.append(-(label * sigma(q).log() + (1 - label) * (1 - sigma(q)).log()))
        for j in range(len(batch)):
            if batch.group[i] == batch.group[j] and o[i] > o[j]:
                if name == "dpo":
                    terms.append(-sigma(s[i] - s[j]).log())
                if name == "nca":
                    terms.append(-sigma(s[i]).log() - 0.5 * sigma(-s[i]).log() - 0.5 * sigma(-s[j]).log())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("name", ["ce", "dpo", "nca", "kto", "steps"])
@pytest.mark.parametrize("tokens", [1, 30, 1000])
def test_gradients_of_the_offline_losses(
    tokens: int, name: str, batch: Batch, make_model, naive_logprobs, catch_gradients
):
    """Against autograd through the whole batch in float64, whatever the micro-batches."""
    batch, labels = labelled(batch)
    model, z0 = make_model(1), 0.2
    twin, other = copy.deepcopy(model).double(), make_model(2).double()
    with torch.no_grad():
        reference = naive_logprobs(other, batch)
    mask = batch.response_mask
    rewards = torch.where(mask, BETA * (naive_logprobs(twin, batch) - reference), 0.0)
    expected = naive_loss(name, rewards, batch, labels, z0)
    expected.backward()

    config = OptimizerConfig(lr=0.01, clip_grad=1e9, tokens_per_microbatch=tokens)
    learner = Learner(model, config, 1)
    caught = catch_gradients(learner.optimizer)
    done = learner.update(batch, *prm_loss(name, batch, reference.float(), BETA, labels, z0))
    assert done.loss == pytest.approx(expected.item(), rel=1e-4)
    for mine, theirs in zip(caught[0], twin.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(mine.double(), theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.fixture
def judged() -> list[Judged]:
    """Two, one and three responses to three prompts; tokens at random."""
    rng = random.Random("judged")

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(40) for _ in range(count))

    prompts = [Prompt(str(g), tokens(g + 1), "", None) for g in range(3)]
    return [
        Judged(g, prompts[g], Response(ids := tokens(length), (0.0,) * len(ids), "", False, 1.0))
        for g, length in ((0, 3), (2, 5), (1, 4), (0, 2), (2, 6), (2, 1))
    ]


def test_the_reference_point_of_kto_is_the_mean_score_beside_the_next_prompt(judged, make_model):
    """By hand: groups appear in the order 0, 2, 1, so 0 goes beside 2, 2 beside 1 and 1 beside 0."""
    model, reference, nxt = make_model(1), make_model(2), {0: 2, 2: 1, 1: 0}
    prompts = {row.group: row.prompt.token_ids for row in judged}
    scores = []
    for row in judged:
        ids, start = prompts[nxt[row.group]] + row.response.token_ids, len(prompts[nxt[row.group]])
        with torch.no_grad():
            logs = [m(torch.tensor([ids])).logits[0].log_softmax(-1) for m in (model, reference)]
        ratios = [logs[0][t - 1, ids[t]] - logs[1][t - 1, ids[t]] for t in range(start, len(ids))]
        scores.append(BETA * sum(float(r) for r in ratios))
    mean = sum(scores) / len(scores)
    there = kto_reference_point(ImplicitPRM(model, reference, BETA), judged, 100)
    back = kto_reference_point(ImplicitPRM(reference, model, BETA), judged, 100)
    assert sorted([there, back]) == pytest.approx([0.0, abs(mean)], abs=1e-5)  # never below 0
    assert abs(mean) > 0.01

    # Pairs of more than seven tokens are left out.
    lengths = [len(prompts[nxt[row.group]]) + len(row.response.token_ids) for row in judged]
    short = [score for score, length in zip(scores, lengths, strict=True) if length <= 7]
    assert 0 < len(short) < len(scores)
    sign = 1 if sum(short) > 0 else -1
    prm = ImplicitPRM(model, reference, BETA) if sign > 0 else ImplicitPRM(reference, model, BETA)
    assert kto_reference_point(prm, judged, 7) == pytest.approx(sign * sum(short) / len(short), abs=1e-5)
    assert kto_reference_point(prm, [row for row in judged if row.group == 2], 100) == 0.0
    assert model.base_model.embed_tokens.weight.grad is None


def test_the_first_gradient_is_reinforce_on_a_twin_of_the_policy(make_model, make_batch):
    """Where phi is still the reference, d CE / d phi = -beta * sum (o - 1/2) grad log phi(y): REINFORCE with baseline
    one half, written out response by response. What a PRM knows beyond that it has from somewhere else."""
    batch = make_batch(GROUP, OUTCOMES)
    model, reference, twin = make_model(seed=4), make_model(seed=4), make_model(seed=4)
    prm = ImplicitPRM(model, reference, BETA)
    loss, count, _ = prm_loss("ce", batch, prm.reference_logprobs(batch), BETA)
    rows = torch.arange(len(batch))
    logprobs = logprobs_module.token_logprobs(model, batch.token_ids, batch.response_mask)
    (loss(logprobs, batch, rows) / count).backward()
    total = torch.zeros(())
    for row, mask, length, outcome in zip(
        batch.token_ids, batch.response_mask, batch.lengths, batch.outcome, strict=True
    ):
        logits = twin(input_ids=row[None, :length]).logits[0].log_softmax(-1)
        tokens = [t for t in range(int(length)) if mask[t]]
        total = total - BETA * (outcome - 0.5) * sum(logits[t - 1, row[t]] for t in tokens)
    (total / len(batch)).backward()
    for (name, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None, name
        assert other.grad is not None, name
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-3)
