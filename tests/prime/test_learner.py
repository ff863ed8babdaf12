"""The learner against steps made by hand, and against itself with the batch cut in other ways."""

import copy
import io
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from openprime.config import OptimizerConfig
from openprime.prime import learner as module
from openprime.prime.learner import Learner, NonFiniteError, learning_rate, micro_batches
from openprime.prime.losses import sft_loss, token_weights
from openprime.types import Batch

property_test = settings(max_examples=150, deadline=None, derandomize=True)
GROUP, OUTCOMES = [0, 0, 0, 1, 1, 2, 2, 2], [1, 0, 1, 0, 0.5, 1, 1, 0]


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Eight responses of different lengths, longest neither first nor last."""
    made = make_batch(GROUP, OUTCOMES)
    assert len(set(made.lengths.tolist())) > 4
    assert made.lengths.argmax() not in (0, 7)
    return made


def weighted(batch: Batch, reduction: str) -> tuple[Callable[[Tensor, Batch, Tensor], Tensor], float]:
    """A loss with another advantage for every token of the batch, and its denominator."""
    weight, denominator = token_weights(batch.response_mask, reduction)
    advantage = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))

    def loss(logprobs: Tensor, micro: Batch, rows: Tensor) -> Tensor:
        width = logprobs.shape[1]
        return -(logprobs.exp() * (advantage * weight)[rows, :width]).sum()

    return loss, denominator


def sft(logprobs: Tensor, micro: Batch, rows: Tensor) -> Tensor:
    return sft_loss(logprobs, micro.response_mask)


def learner_for(model, **options) -> Learner:
    return Learner(model, OptimizerConfig(**({"lr": 0.01, "clip_grad": 1e9} | options)), 10)


def smooth(learner: Learner) -> Learner:
    """A large epsilon: AdamW's first step is the gradient's sign, and that of a zero is rounding noise."""
    learner.optimizer.param_groups[0]["eps"] = 0.1
    return learner


# Micro-batches


CUTS = {
    "1 of 8": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "8 of 1": [[0], [1], [2], [3], [4], [5], [6], [7]],
    "unsorted": [[5, 0, 3], [7], [2, 6], [4, 1]],
    "backwards": [[7, 6, 5, 4], [3, 2, 1, 0]],
}


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("cut", list(CUTS))
def test_trap_09_the_cut_into_micro_batches_changes_nothing(
    cut: str, reduction: str, batch: Batch, make_model, weights, catch_gradients, naive_logprobs, monkeypatch
):
    """Against autograd on the whole batch: gradient, loss, norm and new weights."""
    loss, denominator = weighted(batch, reduction)
    theirs = make_model()
    whole = loss(naive_logprobs(theirs, batch), batch, torch.arange(8)) / denominator
    whole.backward()
    assert abs(whole.item()) > 1e-3
    expected = [p.grad for p in theirs.parameters()]

    learner = smooth(learner_for(make_model()))
    caught = catch_gradients(learner.optimizer)
    monkeypatch.setattr(module, "micro_batches", lambda *_: [torch.tensor(rows) for rows in CUTS[cut]])
    done = learner.update(batch, loss, denominator)
    for mine, other in zip(caught[0], expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)
    assert done.loss == pytest.approx(whole.item(), rel=1e-5, abs=1e-7)
    assert done.grad_norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in expected)), rel=1e-4)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.01, eps=0.1, weight_decay=0.0)
    plain.step()
    torch.testing.assert_close(weights(learner.model), weights(theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_trap_09_token_budgets_from_one_row_to_the_whole_batch_give_the_same_weights(
    reduction: str, batch: Batch, make_model, weights, monkeypatch
):
    loss, denominator = weighted(batch, reduction)
    counts, after = [], []
    original = module.micro_batches
    monkeypatch.setattr(module, "micro_batches", lambda *a: counts.append(len(original(*a))) or original(*a))
    for tokens in (1, 20, 1000):
        learner = smooth(learner_for(make_model(), tokens_per_microbatch=tokens))
        for _ in range(3):
            learner.update(batch, loss, denominator)
        after.append(weights(learner.model))
    assert counts[0] == 8
    assert 1 < counts[3] < 8
    assert counts[6] == 1
    assert float((after[0] - weights(make_model())).abs().max()) > 1e-3
    for other in after[1:]:
        torch.testing.assert_close(after[0], other, rtol=0, atol=2e-6)


def test_trap_09_the_order_of_the_rows_in_the_batch_changes_nothing(batch: Batch, make_model, weights):
    after = []
    for order in (list(range(8)), [3, 7, 0, 5, 2, 6, 1, 4]):
        learner = smooth(learner_for(make_model(), tokens_per_microbatch=20))
        done = learner.update(batch.select(torch.tensor(order)), sft, float(batch.response_mask.sum()))
        after.append((weights(learner.model), done.loss))
    torch.testing.assert_close(after[0][0], after[1][0], rtol=0, atol=1e-6)
    assert after[0][1] == pytest.approx(after[1][1], rel=1e-5)


@pytest.mark.parametrize("tokens", [1, 20, 1000])
def test_trap_07_log_probabilities_come_back_in_the_batchs_order(
    tokens: int, batch: Batch, make_model, naive_logprobs
):
    learner = learner_for(make_model(), tokens_per_microbatch=tokens, lr=1.0)
    expected = naive_logprobs(learner.model, batch).detach()
    torch.testing.assert_close(learner.logprobs(batch), expected, rtol=1e-4, atol=1e-5)
    done = learner.update(batch, sft, 1.0)
    assert done.logprobs.shape == batch.token_ids.shape
    assert not done.logprobs.requires_grad
    torch.testing.assert_close(done.logprobs, expected, rtol=1e-4, atol=1e-5)  # before the step
    assert float((learner.logprobs(batch) - expected).abs().max()) > 0.1  # after it


def test_trap_07_the_loss_is_told_which_rows_of_the_batch_it_sees(batch: Batch, make_model):
    seen: list[int] = []

    def loss(logprobs: Tensor, micro: Batch, rows: Tensor) -> Tensor:
        for place, row in enumerate(rows.tolist()):
            length = int(batch.lengths[row])
            assert torch.equal(micro.token_ids[place, :length], batch.token_ids[row, :length])
            assert torch.equal(micro.logprobs[place, :length], batch.logprobs[row, :length])
            assert micro.outcome[place] == batch.outcome[row]
            assert micro.group[place] == batch.group[row]
        seen.extend(rows.tolist())
        assert logprobs.shape == micro.token_ids.shape
        return logprobs.sum()

    learner_for(make_model(), tokens_per_microbatch=20).update(batch, loss, 1.0)
    assert sorted(seen) == list(range(8))
    assert seen != sorted(seen)


@property_test
@given(st.lists(st.integers(1, 30), min_size=1, max_size=25), st.integers(1, 120), st.booleans(), st.data())
def test_micro_batches_are_a_partition_within_the_budget(sizes: list[int], tokens: int, whole: bool, data):
    group = data.draw(
        st.none() | st.lists(st.integers(0, 6), min_size=len(sizes), max_size=len(sizes)), "group"
    )
    cut = micro_batches(torch.tensor(sizes), tokens, None if group is None else torch.tensor(group), whole)
    rows = [part.tolist() for part in cut]
    assert sorted(row for part in rows for row in part) == list(range(len(sizes)))
    group_of = group if group is not None else list(range(len(sizes)))
    for part in rows:
        groups = {group_of[row] for row in part}
        assert len(groups if whole else part) == 1 or sum(sizes[row] for row in part) <= tokens
    homes = [{group_of[row] for row in part} for part in rows]
    if whole:
        assert sum(len(groups) for groups in homes) == len(set(group_of))  # no group in two micro-batches
    in_order = [group_of[row] for part in rows for row in part]
    changes = sum(one != other for one, other in pairwise(in_order))
    assert changes == len(set(group_of)) - 1  # a group's rows follow one another


def test_micro_batches_are_small_on_a_cpu():
    """Larger ones leave its cache; what is longer by itself still goes through."""
    sizes = [[len(rows) for rows in micro_batches(torch.tensor(x), 16384)] for x in ([512] * 9, [5000] * 2)]
    assert sizes == [[4, 4, 1], [1, 1]]


def test_micro_batches_fill_the_budget():
    """By hand: lengths 9, 9 | 5, 4, 3, 3, 1, 1 under a budget of 20 tokens."""
    cut = micro_batches(torch.tensor([3, 9, 1, 5, 3, 9, 4, 1]), 20)
    assert [sorted(part.tolist()) for part in cut] == [[1, 5], [0, 2, 3, 4, 6, 7]]


def test_groups_are_cut_where_the_budget_ends_or_stay_whole():
    lengths, group = torch.tensor([9, 1, 1, 9, 1]), torch.tensor([0, 1, 2, 0, 2])
    cut, whole = (micro_batches(lengths, 9, group, whole) for whole in (False, True))
    assert [part.tolist() for part in cut] == [[0], [3], [1, 2, 4]]
    assert [sorted(part.tolist()) for part in whole] == [[0, 3], [1, 2, 4]]


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
def test_two_steps_equal_adamw_by_hand_with_clipping_and_decay(
    clip: float, batch: Batch, make_model, naive_logprobs, catch_gradients
):
    """Gradients of the second step are taken at our own weights after the first."""
    options = {
        "weight_decay": 0.1,
        "beta2": 0.95,
        "clip_grad": clip,
        "warmup": 2,
        "tokens_per_microbatch": 20,
    }
    learner = learner_for(make_model(), **options)
    start = [p.detach().clone() for p in learner.model.parameters()]
    caught = catch_gradients(learner.optimizer)
    denominator = float(batch.response_mask.sum())
    clipped, norms = [], []
    for _ in range(2):
        twin = copy.deepcopy(learner.model)
        (sft(naive_logprobs(twin, batch), batch, torch.arange(8)) / denominator).backward()
        gradients = [p.grad for p in twin.parameters()]
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
        clipped.append([g * min(1.0, clip / (norm + 1e-6)) for g in gradients])
        norms.append(learner.update(batch, sft, denominator).grad_norm)
        assert norms[-1] == pytest.approx(norm, rel=1e-4)
    assert norms[0] > 0.05  # before clipping
    expected = adamw(start, clipped, [0.005, 0.01], 0.1, 0.95)
    for mine, other in zip(caught, clipped, strict=True):
        assert all(torch.allclose(g, h, rtol=1e-3, atol=1e-6) for g, h in zip(mine, other, strict=True))
    for mine, other, old in zip(learner.model.parameters(), expected, start, strict=True):
        # The mean: AdamW makes a step of any size up to the rate out of a gradient that is rounding noise.
        assert float((mine.detach().double() - other).abs().mean()) < 1e-5
        assert float((other - old.double()).abs().mean()) > 1e-3


def test_the_caller_divides_not_the_learner(batch: Batch, make_model):
    losses = [learner_for(make_model()).update(batch, sft, d).loss for d in (1.0, 4.0)]
    assert losses[0] == pytest.approx(4 * losses[1], rel=1e-5)


def test_gradients_do_not_leak_into_the_next_step(batch: Batch, make_model, catch_gradients):
    learner = learner_for(make_model(), lr=0.0)
    for p in learner.model.parameters():
        p.grad = torch.ones_like(p)
    caught = catch_gradients(learner.optimizer)
    learner.update(batch, sft, 1.0)
    learner.update(batch, sft, 1.0)
    for one, two in zip(caught[0], caught[1], strict=True):
        torch.testing.assert_close(one, two)
    assert all(p.grad is None for p in learner.model.parameters())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_temperature_divides_the_logits(temperature: float, batch: Batch, make_model, naive_logprobs):
    learner = Learner(make_model(), OptimizerConfig(), 1, temperature=temperature)
    expected = naive_logprobs(learner.model, batch, temperature).detach()
    torch.testing.assert_close(learner.logprobs(batch), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learner.update(batch, sft, 1.0).logprobs, expected, rtol=1e-4, atol=1e-5)


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
def test_learning_rates_by_hand(options: dict, total: int, expected: list[float]):
    config = OptimizerConfig(lr=8.0, **options)
    rates = [learning_rate(config, update, total) for update in range(len(expected))]
    assert rates == pytest.approx(expected, abs=1e-9)


@property_test
@given(
    st.floats(0, 0.99) | st.integers(1, 40).map(float),
    st.sampled_from(["constant", "cosine"]),
    st.integers(1, 60),
)
def test_the_rate_rises_to_its_peak_and_never_again(warmup: float, schedule: str, total: int):
    config = OptimizerConfig(lr=1.0, warmup=warmup, schedule=schedule)
    rates = [learning_rate(config, update, total) for update in range(total)]
    assert all(0 < rate <= 1 + 1e-12 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if warmup < 1 or warmup <= total:
        assert max(rates) == pytest.approx(1.0, abs=1e-6)


def test_each_step_uses_and_reports_the_rate_of_its_number(batch: Batch, make_model, weights):
    learner = learner_for(make_model(), warmup=4, lr=0.4)
    rates, sizes = [], []
    for _ in range(5):
        before = weights(learner.model)
        rates.append(learner.update(batch, sft, 1.0).lr)
        sizes.append(float((weights(learner.model) - before).abs().max()))
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert sizes[0] == pytest.approx(0.1, rel=1e-3)  # AdamW's first step is the rate itself


# Faults


def poison(value: float, only: int | None = None):
    """A loss that is `value` in every micro-batch, or in the one with row `only`."""

    def loss(logprobs: Tensor, micro: Batch, rows: Tensor) -> Tensor:
        bad = only is None or only in rows.tolist()
        return logprobs.sum() * (value if bad else 1.0)

    return loss


def infinite_slope(logprobs: Tensor, micro: Batch, rows: Tensor) -> Tensor:
    """A finite loss whose gradient is not."""
    return (logprobs - logprobs.detach()).abs().sqrt().sum()


@pytest.mark.parametrize(
    "loss",
    [poison(math.nan), poison(math.inf), poison(math.nan, 0), poison(-math.inf, 7), infinite_slope],
    ids=["nan", "inf", "nan in one micro-batch", "-inf in one micro-batch", "gradient alone"],
)
def test_a_loss_or_gradient_that_is_not_finite_leaves_everything_as_it_was(loss, batch: Batch, make_model):
    learner = learner_for(make_model(), tokens_per_microbatch=20, clip_grad=1.0)
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
    assert all(p.grad is None for p in learner.model.parameters())
    twin = learner_for(make_model(), tokens_per_microbatch=20, clip_grad=1.0)
    for _ in range(2):
        last = twin.update(batch, sft, 10.0)
    assert learner.update(batch, sft, 10.0).loss == last.loss


# Options that save memory or time


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_gradient_checkpointing_changes_no_update(kind: str, batch: Batch, make_model, weights):
    after, losses = [], []
    for checkpointing in (False, True):
        model = make_model() if kind == "qwen2" else dropout_model(0.1)
        learner = smooth(learner_for(model, gradient_checkpointing=checkpointing, tokens_per_microbatch=30))
        losses.append([learner.update(batch, sft, 30.0).loss for _ in range(2)])
        after.append(weights(learner.model))
        assert learner.model.is_gradient_checkpointing == checkpointing
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(after[0], after[1], rtol=0, atol=1e-6)


def test_gradient_checkpointing_does_recompute(batch: Batch, make_model):
    """Fewer tensors are kept for the backward pass."""
    kept = []
    for checkpointing in (False, True):
        learner = learner_for(make_model(), gradient_checkpointing=checkpointing)
        saved: list[int] = []

        def pack(tensor: Tensor, into: list[int] = saved) -> Tensor:
            into.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            module.token_logprobs(learner.model, batch.token_ids, batch.response_mask)
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 2


def dropout_model(p: float = 0.5) -> GPT2LMHeadModel:
    """GPT-2 with dropout everywhere, in training mode, as it comes from its constructor."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        resid_pdrop=p,
        embd_pdrop=p,
        attn_pdrop=p,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config).train()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_dropout_in_a_models_configuration_is_off(
    kind: str, checkpointing: bool, batch: Batch, make_model, naive_logprobs
):
    model = dropout_model() if kind == "gpt2" else make_model(attention_dropout=0.5).train()
    expected = naive_logprobs(copy.deepcopy(model).eval(), batch).detach()
    learner = learner_for(model, gradient_checkpointing=checkpointing, tokens_per_microbatch=1000, lr=0.0)
    for values in (
        learner.logprobs(batch),
        learner.update(batch, sft, 1.0).logprobs,
        learner.logprobs(batch),
    ):
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_float32_weights_and_optimiser(batch: Batch, make_model, catch_gradients):
    learners = [Learner(make_model(), OptimizerConfig(lr=0.01), 10, bfloat16) for bfloat16 in (True, False)]
    caught = [catch_gradients(learner.optimizer) for learner in learners]
    done = [learner.update(batch, sft, 30.0) for learner in learners]
    assert {p.dtype for p in learners[0].model.parameters()} == {torch.float32}
    moments = learners[0].optimizer.state_dict()["state"].values()
    assert {m["exp_avg"].dtype for m in moments} | {m["exp_avg_sq"].dtype for m in moments} == {torch.float32}
    assert done[0].logprobs.dtype == torch.float32
    assert done[0].loss != done[1].loss
    assert done[0].loss == pytest.approx(done[1].loss, rel=0.02)
    mine, other = (torch.cat([g.flatten() for g in c[0]]) for c in caught)
    assert float(torch.nn.functional.cosine_similarity(mine, other, dim=0)) > 0.99


def test_bfloat16_updates_smaller_than_a_bfloat16_step_are_kept(batch: Batch, make_model, weights):
    """1e-6 a step is far below the resolution of a bfloat16 weight of 0.3."""
    learner = Learner(make_model(), OptimizerConfig(lr=1e-6), 10, bfloat16=True)
    before = weights(learner.model)
    for _ in range(3):
        learner.update(batch, sft, 30.0)
    moved = (weights(learner.model) - before).abs()
    assert 1e-6 < float(moved.max()) < 4e-6
    assert float((moved > 0).float().mean()) > 0.5


# Going on


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_restored_learner_goes_on_exactly(bfloat16: bool, make_batch, make_model, weights):
    """Through a file, into a fresh learner with other weights; five updates with warm-up and cosine."""
    config = OptimizerConfig(
        lr=0.01, schedule="cosine", warmup=2, weight_decay=0.1, clip_grad=0.5, tokens_per_microbatch=20
    )
    batches = [make_batch(GROUP, OUTCOMES, seed) for seed in range(5)]
    through = Learner(make_model(), config, 5, bfloat16)
    straight = [through.update(b, sft, 30.0) for b in batches]

    first = Learner(make_model(), config, 5, bfloat16)
    for b in batches[:2]:
        first.update(b, sft, 30.0)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = Learner(make_model(seed=9), config, 5, bfloat16)
    second.restore(torch.load(file, weights_only=True))
    assert second.updates == 2
    resumed = [second.update(b, sft, 30.0) for b in batches[2:]]
    for one, two in zip(straight[2:], resumed, strict=True):
        assert (one.loss, one.grad_norm, one.lr) == (two.loss, two.grad_norm, two.lr)
        assert torch.equal(one.logprobs, two.logprobs)
    assert torch.equal(weights(through.model), weights(second.model))
