"""The learner against steps made by hand, and against itself with the batch cut in other ways."""

import copy
import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from openprime.config import OptimizerConfig
from openprime.models import logprobs as logprobs_module
from openprime.models.lm import LM
from openprime.models.placement import Placement
from openprime.prime.learner import Learner, Update, learning_rate, minibatches
from openprime.prime.losses import PAIRS, prm_loss, prm_loss_count, sft_loss, token_weights
from openprime.prime.rewards import with_group_outcome
from openprime.types import Batch, NonFiniteError
from support.host_reads import OnDevice, on_device
from support.strategies import property_test
from support.tiny_lm import (
    catch_gradients,
    make_batch,
    make_model,
    naive_distributions,
    naive_logprobs,
    weights,
)

BFLOAT16 = Placement(bfloat16=True)


@pytest.fixture
def batch() -> Batch:
    """Eight responses of different lengths, longest neither first nor last."""
    made = make_batch()
    assert len(set(made.lengths.tolist())) > 4
    assert made.lengths.argmax() not in (0, 7)
    return made


def learner_for(model, place: Placement = Placement(), **options) -> Learner:  # noqa: B008
    return Learner(LM(model, place), OptimizerConfig(**({"lr": 0.01, "clip_grad": 1e9} | options)), 10)


def smooth(learner: Learner) -> Learner:
    """A large epsilon: AdamW's first step is the gradient's sign, and that of a zero is rounding noise."""
    learner.optimizer.param_groups[0]["eps"] = 0.1
    return learner


def sft(logprobs: Tensor, micro: Batch) -> Tensor:
    return sft_loss(logprobs, micro.response_mask)


def weighted(logprobs: Tensor, micro: Batch) -> Tensor:
    """A loss with another advantage and weight for every token."""
    assert logprobs.shape == micro.token_ids.shape
    return -(logprobs.exp() * micro.advantages * micro.weights).sum()


def check_first_step(learner: Learner, twin, whole: Tensor, step: Callable[[], Update]) -> None:
    """A step's loss, gradient, norm and weights are those of the loss `whole` of a twin of the model."""
    whole.backward()
    expected = [p.grad for p in twin.parameters()]
    caught = catch_gradients(smooth(learner).optimizer)
    done = step()
    assert abs(whole.item()) > 1e-3
    assert done.loss == pytest.approx(whole.item(), rel=1e-5, abs=1e-7)
    assert done.grad_norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in expected)), rel=1e-4)
    assert len(caught) == 1
    for mine, other in zip(caught[0], expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)
    torch.optim.AdamW(twin.parameters(), lr=0.01, eps=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(weights(learner.lm.model), weights(twin), rtol=0, atol=1e-6)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize(("tokens", "parts"), [(1, 8), (20, 5), (1000, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6, 7), (3, 7, 0, 5, 2, 6, 1, 4)])
def test_trap_09__the_cut_into_micro_batches_and_the_order_of_rows_change_no_step(
    reduction: str, tokens: int, parts: int, order: tuple[int, ...], batch: Batch
):
    """Against autograd on the whole batch, a row at a time."""
    weight, count = token_weights(batch.response_mask, reduction)
    advantages = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    batch, seen = replace(batch, advantages=advantages, weights=weight), []
    twin, learner = make_model(), learner_for(make_model(), tokens_per_microbatch=tokens)

    def loss(logprobs: Tensor, micro: Batch) -> Tensor:
        seen.append(len(micro))
        return weighted(logprobs, micro)

    check_first_step(
        learner,
        twin,
        weighted(naive_logprobs(twin, batch), batch) / count,
        lambda: learner.update(batch.select(torch.tensor(order)), loss, count),
    )
    assert (len(seen), sum(seen)) == (parts, 8)


@pytest.mark.parametrize("tokens", [1, 30, 1000])
@pytest.mark.parametrize(
    "name", ["ce", "dpo", "nca", "kto", "prefix", "steps", "ce, balanced", "prefix, balanced"]
)
def test_trap_09__prm_losses_are_those_of_the_whole_batch(name: str, tokens: int, batch: Batch):
    """Where pairs are compared, groups stay whole; balanced, a micro-batch knows of the rest of its groups."""
    name, _, balance = name.partition(", ")
    generator = torch.Generator().manual_seed(0)
    reference, labels = naive_logprobs(make_model(2), batch).detach(), torch.rand(9, generator=generator)
    labels = labels[torch.arange(batch.token_ids.numel()) % 9].view_as(reference)
    batch = with_group_outcome(replace(batch, ref_logprobs=reference, labels=labels))
    twin, learner = make_model(1), learner_for(make_model(1), tokens_per_microbatch=tokens)
    how = {"beta": 0.3, "reference_point": 0.2, "margin": 0.5, "balance": bool(balance)}
    loss, count = partial(prm_loss, name, **how), prm_loss_count(name, batch)
    check_first_step(
        learner,
        twin,
        loss(naive_logprobs(twin, batch), batch) / count,
        lambda: learner.update(batch, loss, count, whole_groups=name in PAIRS),
    )


@pytest.mark.parametrize("name", ["sft", "ce", "dpo", "kto", "prefix", "steps"])
def test_learner_update__the_host_reads_the_batch_no_more_often_for_more_micro_batches(
    name: str, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    """A GPU that is asked for something in between is idle until it is given work again."""
    monkeypatch.setattr(logprobs_module, "by_tokens", lambda device: True)
    zeros = torch.zeros_like(batch.logprobs)
    batch = replace(batch, ref_logprobs=zeros, labels=zeros)
    loss = sft if name == "sft" else partial(prm_loss, name, beta=0.3, margin=0.5)
    count = 40 if name == "sft" else prm_loss_count(name, batch)
    found = []
    for tokens in (1000, 20):
        learner = learner_for(make_model(), tokens_per_microbatch=tokens)
        learner.update(batch, loss, count, whole_groups=name in PAIRS)  # what is found out once is found
        OnDevice.found.clear()
        learner.update(on_device(batch), loss, count, whole_groups=name in PAIRS)
        found.append(dict(OnDevice.found))
    assert found[0] == found[1]


@pytest.mark.parametrize("tokens", [1, 20, 1000])
def test_learner_update__losses_of_candidates_are_those_of_the_whole_batch(tokens: int, batch: Batch):
    """The update's own log-probabilities are those of the first candidate."""
    shape, mask = (*batch.token_ids.shape, 6), batch.response_mask
    candidates, targets = torch.randint(40, shape), torch.randn(shape)

    def loss(log_policy: Tensor, micro: Batch) -> Tensor:
        return (log_policy.exp() * (log_policy - micro.targets) * micro.response_mask[..., None]).sum()

    twin, learner = make_model(), learner_for(make_model(), tokens_per_microbatch=tokens)
    batch = replace(batch, candidates=candidates, targets=targets)
    whole = torch.cat(naive_distributions(twin, batch)).gather(-1, candidates[mask])
    naive = torch.zeros(shape).masked_scatter(mask[..., None].expand(shape), whole)
    done = []

    def step() -> Update:
        done.append(learner.update(batch, loss, 7.0, candidates=True))
        return done[0]

    check_first_step(learner, twin, loss(naive, batch) / 7.0, step)
    torch.testing.assert_close(done[0].logprobs, naive[..., 0].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tokens", [1, 20, 1000])
def test_trap_07__an_updates_log_probabilities_come_back_in_the_order_of_the_batch(
    tokens: int, temperature: float, batch: Batch
):
    """They are those of the weights before the step; the temperature divides the logits."""
    config = OptimizerConfig(lr=1.0, tokens_per_microbatch=tokens)
    learner = Learner(LM(make_model(), temperature=temperature), config, 10)
    expected = naive_logprobs(learner.lm.model, batch, temperature).detach()
    torch.testing.assert_close(learner.lm.logprobs(batch), expected, rtol=1e-4, atol=1e-5)
    done = learner.update(batch, sft, 1.0)
    assert done.logprobs.shape == batch.token_ids.shape
    assert not done.logprobs.requires_grad
    torch.testing.assert_close(done.logprobs, expected, rtol=1e-4, atol=1e-5)
    assert float((learner.lm.logprobs(batch) - expected).abs().max()) > 0.1  # after the step


def adamw(
    parameters: list[Tensor], steps: list[list[Tensor]], rates: list[float], decay: float, beta2: float
):
    """AdamW written out (Loshchilov and Hutter, algorithm 2) in float64."""
    now = [p.detach().double().clone() for p in parameters]
    first, second = [torch.zeros_like(p) for p in now], [torch.zeros_like(p) for p in now]
    for t, (gradients, rate) in enumerate(zip(steps, rates, strict=True), start=1):
        for i, g in enumerate(gradients):
            g = g.double()
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = beta2 * second[i] + (1 - beta2) * g**2
            m, v = first[i] / (1 - 0.9**t), second[i] / (1 - beta2**t)
            now[i] = now[i] - rate * decay * now[i] - rate * m / (v.sqrt() + 1e-8)
    return now


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_learner_update__two_steps_equal_adamw_by_hand_with_clipping_and_decay(clip: float, batch: Batch):
    """Gradients of the second step are taken at our own weights after the first."""
    learner = learner_for(
        make_model(), weight_decay=0.1, beta2=0.95, clip_grad=clip, warmup=2, tokens_per_microbatch=20
    )
    start = [p.detach().clone() for p in learner.lm.model.parameters()]
    caught = catch_gradients(learner.optimizer)
    denominator = float(batch.response_mask.sum())
    clipped, norms = [], []
    for _ in range(2):
        twin = copy.deepcopy(learner.lm.model)
        (sft(naive_logprobs(twin, batch), batch) / denominator).backward()
        gradients = [p.grad for p in twin.parameters()]
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
        clipped.append([g * min(1.0, clip / (norm + 1e-6)) for g in gradients])
        norms.append(learner.update(batch, sft, denominator).grad_norm)
        assert norms[-1] == pytest.approx(norm, rel=1e-4)
    assert norms[0] > 0.05  # before clipping
    expected = adamw(start, clipped, [0.005, 0.01], 0.1, 0.95)
    for mine, other in zip(caught, clipped, strict=True):
        assert all(torch.allclose(g, h, rtol=1e-3, atol=1e-6) for g, h in zip(mine, other, strict=True))
    for mine, other, old in zip(learner.lm.model.parameters(), expected, start, strict=True):
        # The mean: AdamW makes a step of any size up to the rate out of a gradient that is rounding noise.
        assert float((mine.detach().double() - other).abs().mean()) < 1e-5
        assert float((other - old.double()).abs().mean()) > 1e-3


def test_learner_update__gradients_do_not_leak_into_the_next_step(batch: Batch):
    learner = learner_for(make_model(), lr=0.0)
    for p in learner.lm.model.parameters():
        p.grad = torch.ones_like(p)
    caught = catch_gradients(learner.optimizer)
    for _ in range(2):
        learner.update(batch, sft, 1.0)
    for one, two in zip(caught[0], caught[1], strict=True):
        torch.testing.assert_close(one, two)
    assert all(p.grad is None for p in learner.lm.model.parameters())


def test_minibatches__take_every_row_once_in_equal_parts(batch: Batch):
    batch = replace(batch, outcome=torch.arange(8.0))
    parts, again, other = (minibatches(batch, 3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert [len(part) for part in parts] == [3, 3, 2]
    order, same, another = (torch.cat([part.outcome for part in found]) for found in (parts, again, other))
    assert sorted(order.tolist()) == list(range(8))
    assert order.tolist() == same.tolist() != another.tolist()


# Learning rate


@pytest.mark.parametrize(
    ("options", "total", "expected"),
    [
        ({}, 4, [8, 8, 8, 8]),
        ({"warmup": 0.5}, 8, [2, 4, 6, 8, 8, 8, 8, 8]),
        ({"warmup": 4}, 8, [2, 4, 6, 8, 8, 8, 8, 8]),
        ({"warmup": 1}, 3, [8, 8, 8]),
        ({"schedule": "cosine"}, 4, [8, 4 + 4 * math.sqrt(0.5), 4, 4 - 4 * math.sqrt(0.5), 0]),
        (
            {"schedule": "cosine", "warmup": 2},
            6,
            [4, 8, 8, 4 + 4 * math.sqrt(0.5), 4, 4 - 4 * math.sqrt(0.5)],
        ),
        ({"schedule": "cosine", "warmup": 0.5}, 4, [4, 8, 8, 4]),
        ({"schedule": "cosine"}, 2, [8, 4, 0, 0, 0]),
        ({"warmup": 0.25}, 10, [8 / 3, 16 / 3, 8, 8, 8]),
        ({"warmup": 10}, 5, [0.8, 1.6, 2.4, 3.2, 4.0]),
    ],
)
def test_learning_rate__by_hand(options: dict, total: int, expected: list[float]):
    config = OptimizerConfig(lr=8.0, **options)
    rates = [learning_rate(config, update, total) for update in range(len(expected))]
    assert rates == pytest.approx(expected, abs=1e-9)


@property_test
@given(
    st.just(0.0) | st.floats(1e-12, 0.99) | st.integers(1, 40).map(float),
    st.sampled_from(["constant", "cosine"]),
    st.integers(1, 60),
)
def test_learning_rate__rises_to_its_peak_and_never_again(warmup: float, schedule: str, total: int):
    config = OptimizerConfig(lr=1.0, warmup=warmup, schedule=schedule)
    rates = [learning_rate(config, update, total) for update in range(total)]
    assert all(0 < rate <= 1 + 1e-12 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if warmup < 1 or warmup <= total:
        assert max(rates) == pytest.approx(1.0, abs=1e-6)


def test_learner_update__uses_and_reports_the_rate_of_its_number(batch: Batch):
    learner = learner_for(make_model(), warmup=4, lr=0.4)
    rates, sizes = [], []
    for _ in range(5):
        before = weights(learner.lm.model)
        rates.append(learner.update(batch, sft, 1.0).lr)
        sizes.append(float((weights(learner.lm.model) - before).abs().max()))
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert sizes[0] == pytest.approx(0.1, rel=1e-3)  # AdamW's first step is the rate itself


# Faults


def poison(value: float, only: int | None = None):
    """A loss that is `value` in every micro-batch, or in those with rows of group `only`."""

    def loss(logprobs: Tensor, micro: Batch) -> Tensor:
        return logprobs.sum() * (value if only is None or only in micro.group else 1.0)

    return loss


def infinite_slope(logprobs: Tensor, micro: Batch) -> Tensor:
    """A finite loss whose gradient is not."""
    return (logprobs - logprobs.detach()).abs().sqrt().sum()


@pytest.mark.parametrize(
    "loss",
    [poison(math.nan), poison(math.inf), poison(math.nan, 0), poison(-math.inf, 2), infinite_slope],
    ids=["nan", "inf", "nan in one micro-batch", "-inf in one micro-batch", "gradient alone"],
)
def test_learner_update__what_is_not_finite_leaves_everything_as_it_was(loss, batch: Batch):
    learner, twin = (learner_for(make_model(), tokens_per_microbatch=20, clip_grad=1.0) for _ in range(2))
    learner.update(batch, sft, 10.0)
    before = copy.deepcopy(learner.state())
    with pytest.raises(NonFiniteError):
        learner.update(batch, loss, 10.0)
    after = learner.state()
    assert after["updates"] == before["updates"] == 1
    assert before["model"].keys() == after["model"].keys()
    for key, tensor in before["model"].items():
        assert torch.equal(tensor, after["model"][key]), key
    for index, moments in before["optimizer"]["state"].items():
        for key, tensor in moments.items():
            assert torch.equal(tensor, after["optimizer"]["state"][index][key]), (index, key)
    assert before["optimizer"]["param_groups"] == after["optimizer"]["param_groups"]
    assert all(p.grad is None for p in learner.lm.model.parameters())
    for _ in range(2):
        last = twin.update(batch, sft, 10.0)
    assert learner.update(batch, sft, 10.0).loss == last.loss


# Options that save memory or time


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_gradient_checkpointing__changes_no_update(kind: str, batch: Batch):
    after, losses = [], []
    for checkpointing in (False, True):
        model = make_model() if kind == "qwen2" else dropout_model(0.1)
        learner = smooth(learner_for(model, gradient_checkpointing=checkpointing, tokens_per_microbatch=30))
        losses.append([learner.update(batch, sft, 30.0).loss for _ in range(2)])
        after.append(weights(model))
        assert model.is_gradient_checkpointing == checkpointing
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(after[0], after[1], rtol=0, atol=1e-6)


def test_gradient_checkpointing__keeps_fewer_tensors_for_the_backward_pass(batch: Batch):
    kept = []
    for checkpointing in (False, True):
        learner = learner_for(make_model(), gradient_checkpointing=checkpointing)
        saved: list[int] = []

        def pack(tensor: Tensor, into: list[int] = saved) -> Tensor:
            into.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            learner.lm.forward(batch)
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 2


def dropout_model(p: float = 0.5) -> GPT2LMHeadModel:
    """GPT-2 with dropout everywhere, in training mode, as it comes from its constructor."""
    torch.manual_seed(0)
    size = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    dropout = {"resid_pdrop": p, "embd_pdrop": p, "attn_pdrop": p}
    config = GPT2Config(**size, **dropout, initializer_range=0.3, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config).train()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_learner__dropout_of_a_models_configuration_is_off(kind: str, checkpointing: bool, batch: Batch):
    model = dropout_model() if kind == "gpt2" else make_model(attention_dropout=0.5).train()
    expected = naive_logprobs(copy.deepcopy(model).eval(), batch).detach()
    learner = learner_for(model, gradient_checkpointing=checkpointing, lr=0.0)
    for values in (
        learner.lm.logprobs(batch),
        learner.update(batch, sft, 1.0).logprobs,
        learner.lm.logprobs(batch),
    ):
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_learner__bfloat16_keeps_float32_weights_and_optimiser(batch: Batch):
    learners = [learner_for(make_model(), place, clip_grad=1.0) for place in (BFLOAT16, Placement())]
    caught = [catch_gradients(learner.optimizer) for learner in learners]
    done = [learner.update(batch, sft, 30.0) for learner in learners]
    assert {p.dtype for p in learners[0].lm.model.parameters()} == {torch.float32}
    moments = learners[0].optimizer.state_dict()["state"].values()
    assert {m["exp_avg"].dtype for m in moments} | {m["exp_avg_sq"].dtype for m in moments} == {torch.float32}
    assert done[0].logprobs.dtype == torch.float32
    assert done[0].loss != done[1].loss
    assert done[0].loss == pytest.approx(done[1].loss, rel=0.02)
    mine, other = (torch.cat([g.flatten() for g in c[0]]) for c in caught)
    assert float(torch.nn.functional.cosine_similarity(mine, other, dim=0)) > 0.99


def test_learner__bfloat16_keeps_updates_smaller_than_a_bfloat16_step(batch: Batch):
    """1e-6 a step is far below the resolution of a bfloat16 weight of 0.3."""
    learner = learner_for(make_model(), BFLOAT16, lr=1e-6, clip_grad=1.0)
    before = weights(learner.lm.model)
    for _ in range(3):
        learner.update(batch, sft, 30.0)
    moved = (weights(learner.lm.model) - before).abs()
    assert 1e-6 < float(moved.max()) < 4e-6
    assert float((moved > 0).float().mean()) > 0.5


# Going on


@pytest.mark.parametrize("place", [Placement(), BFLOAT16], ids=["float32", "bfloat16"])
def test_learner_restore__goes_on_exactly(place: Placement):
    """Through a file, into a fresh learner with other weights; five updates with warm-up and cosine."""
    config = OptimizerConfig(
        lr=0.01, schedule="cosine", warmup=2, weight_decay=0.1, clip_grad=0.5, tokens_per_microbatch=20
    )
    batches = [make_batch(seed=seed) for seed in range(5)]
    through, first, second = (Learner(LM(make_model(seed), place), config, 5) for seed in (0, 0, 9))
    straight = [through.update(b, sft, 30.0) for b in batches]
    for b in batches[:2]:
        first.update(b, sft, 30.0)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second.restore(torch.load(file, weights_only=True))
    assert second.updates == 2
    resumed = [second.update(b, sft, 30.0) for b in batches[2:]]
    for one, two in zip(straight[2:], resumed, strict=True):
        assert (one.loss, one.grad_norm, one.lr) == (two.loss, two.grad_norm, two.lr)
        assert torch.equal(one.logprobs, two.logprobs)
    assert torch.equal(weights(through.lm.model), weights(second.lm.model))
