"""The two functions of stages/rl.py that join the mathematics, against loops and plain PyTorch."""

import copy
import itertools
import math
import random

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from openprime.config import AdvantageConfig, PolicyConfig
from openprime.prime.learner import Learner, NonFiniteError
from openprime.prime.loop import compute_advantages, update_policy
from openprime.types import Batch
from support import brute

LENGTHS = (5, 1, 3, 7, 2, 6, 4)
"""Tokens of the responses."""
STARTS = (2, 4, 1, 3, 2, 1, 5)
"""Tokens of their prompts."""
GROUP = (0, 0, 0, 1, 1, 2, 2)
OUTCOME = (1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0)
"""The last group is all equal (trap 15)."""


def make_batch(seed: int = 0, vocabulary: int = 11) -> tuple[Batch, list[list[float]], list[list[bool]]]:
    """A batch with ragged responses; random token rewards and step ends of each, as lists."""
    rng = random.Random(seed)
    rewards = [[rng.gauss(0, 1) for _ in range(n)] for n in LENGTHS]
    ends = [[rng.random() < 0.4 for _ in range(n)] for n in LENGTHS]
    width = max(s + n for s, n in zip(STARTS, LENGTHS, strict=True)) + 1
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(LENGTHS), width, dtype=torch.bool)
    step_end = torch.zeros_like(mask)
    for b, (start, n) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        mask[b, start : start + n] = True
        step_end[b, start : start + n] = torch.tensor(ends[b])
    return (
        Batch(
            token_ids=torch.randint(vocabulary, mask.shape, generator=generator),
            response_mask=mask,
            lengths=torch.tensor([s + n for s, n in zip(STARTS, LENGTHS, strict=True)]),
            outcome=torch.tensor(OUTCOME),
            group=torch.tensor(GROUP),
            logprobs=torch.randn(mask.shape, generator=generator).sub(2) * mask,
            step_end=step_end,
        ),
        rewards,
        ends,
    )


def padded(rows: list[list[float]], batch: Batch) -> Tensor:
    """Values of the responses' tokens as [B, T]."""
    out = torch.zeros(batch.token_ids.shape)
    for b, row in enumerate(rows):
        out[b, batch.response_mask[b]] = torch.tensor(row)
    return out


def slow_advantages(rewards: list, ends: list, config: AdvantageConfig) -> dict[str, list[list[float]]]:
    """The process term, the outcome term and the advantage, token by token."""
    centre = brute.CENTRE[config.estimator, config.preset]
    stands = [brute.positions(row, config.granularity) for row in ends]
    placed = [brute.gather(row, where) for row, where in zip(rewards, stands, strict=True)]
    if config.scales_by_return:
        placed = brute.scale_by_return(placed, config.process_gamma)
    process = [brute.returns_to_go(row, config.process_gamma) for row in centre(placed, stands, list(GROUP))]
    last = [brute.positions(row, "response") for row in ends]
    placed = brute.outcome_rewards(OUTCOME, LENGTHS)
    outcome = [brute.returns_to_go(row, config.outcome_gamma) for row in centre(placed, last, list(GROUP))]
    total = brute.combine(process, outcome, config.process_weight, config.outcome_weight)
    return {
        "process": process,
        "outcome": outcome,
        "advantage": brute.whiten(total) if config.whitens else total,
    }


def std(rows: list[list[float]], weight: float = 1.0) -> float:
    """Sample standard deviation over all tokens."""
    values = [value for row in rows for value in row]
    mean = math.fsum(values) / len(values)
    return weight * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


@pytest.mark.parametrize("granularity", ["token", "step", "response"])
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("scaling", ["none", "return"])
@pytest.mark.parametrize("estimator", ["rloo", "grpo", "reinforce"])
def test_advantages_equal_the_loops(estimator: str, scaling: str, whiten: bool, granularity: str):
    for seed, (gammas, weights) in enumerate(
        itertools.product(
            [(1.0, 1.0), (0.9, 0.5), (1.0, 0.0)], [(1.0, 1.0), (0.3, 2.0), (0.0, 1.0), (1.0, 0.0)]
        )
    ):
        config = AdvantageConfig.model_validate(
            {
                "estimator": estimator,
                "scaling": scaling,
                "whiten": whiten,
                "granularity": granularity,
                "process_gamma": gammas[0],
                "outcome_gamma": gammas[1],
                "process_weight": weights[0],
                "outcome_weight": weights[1],
            }
        )
        compare(seed, config)


@pytest.mark.parametrize("settings", [{}, {"whiten": False}, {"scaling": "none"}, {"process_weight": 5.0}])
def test_the_released_preset_equals_the_loops(settings: dict):
    compare(0, AdvantageConfig.model_validate({"preset": "released"} | settings))


def compare(seed: int, config: AdvantageConfig) -> None:
    """Advantages and their spread against the loops."""
    batch, rewards, ends = make_batch(seed)
    advantages, spread = compute_advantages(batch, padded(rewards, batch), config)
    expected = slow_advantages(rewards, ends, config)
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(advantages, padded(expected["advantage"], batch), rtol=1e-4, atol=2e-5)
    assert spread["advantage/std"] == pytest.approx(std(expected["advantage"]), rel=1e-4, abs=1e-6)
    for name, weight in (("process", config.process_weight), ("outcome", config.outcome_weight)):
        assert spread[f"advantage/{name}_std"] == pytest.approx(
            std(expected[name], weight), rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "reinforce"])
def test_the_control_is_the_outcome_alone(estimator: str):
    """Whatever the process rewards say."""
    config = AdvantageConfig.model_validate({"estimator": estimator, "process_weight": 0})
    batch, rewards, _ = make_batch()
    ours, _ = compute_advantages(batch, padded(rewards, batch), config)
    theirs, _ = compute_advantages(batch, torch.zeros(batch.token_ids.shape), config)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_advantages_do_not_depend_on_the_order_of_the_rows():
    batch, rewards, _ = make_batch()
    values = padded(rewards, batch)
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    for config in (AdvantageConfig(), AdvantageConfig(estimator="grpo"), AdvantageConfig(preset="released")):
        advantages, _ = compute_advantages(batch, values, config)
        mixed = Batch(*(getattr(batch, name)[order] for name in Batch.__slots__))
        again, _ = compute_advantages(mixed, values[order], config)
        torch.testing.assert_close(again, advantages[order], rtol=1e-5, atol=1e-6)


# The policy's update


def tiny(seed: int = 0) -> Qwen2ForCausalLM:
    """A random model of 11 tokens."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
    ).eval()


def plain_logprobs(model: Qwen2ForCausalLM, batch: Batch, temperature: float) -> list[Tensor]:
    """Log-probabilities of each response's tokens: one sequence at a time, from whole logits."""
    rows = []
    for b, (start, n) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        ids = batch.token_ids[b, : start + n]
        logits = model(input_ids=ids[None]).logits[0].float() / temperature
        logprobs = logits.log_softmax(-1)
        rows.append(torch.stack([logprobs[t - 1, ids[t]] for t in range(start, start + n)]))
    return rows


def naive_step(
    model: Qwen2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    rows: list[int],
    advantages: Tensor,
    config: PolicyConfig,
    temperature: float,
) -> dict[str, float]:
    """One AdamW step on the clipped loss of some rows, written out."""
    logprobs = plain_logprobs(model, batch, temperature)
    terms, clipped, kl, weight_sum = [], 0.0, 0.0, 0.0
    count = sum(LENGTHS[b] for b in rows)
    for b in rows:
        for t, new in enumerate(logprobs[b]):
            at = STARTS[b] + t
            ratio = torch.exp(new - batch.logprobs[b, at])
            a = advantages[b, at]
            bounded = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
            weight = 1 / count if config.reduction == "token" else 1 / (LENGTHS[b] * len(rows))
            terms.append(-weight * torch.minimum(ratio * a, bounded * a))
            clipped += weight * (bounded * a < ratio * a).item()
            kl += weight * (ratio - 1 - torch.log(ratio)).item()
            weight_sum += weight
    loss = torch.stack(terms).sum()
    optimizer.zero_grad()
    loss.backward()
    norm = math.sqrt(
        sum(float((p.grad.double() ** 2).sum()) for p in model.parameters() if p.grad is not None)
    )
    for p in model.parameters():
        if p.grad is not None and norm > config.clip_grad:
            p.grad.mul_(config.clip_grad / (norm + 1e-6))
    optimizer.step()
    return {"loss": loss.item(), "norm": norm, "clipped": clipped / weight_sum, "kl": kl / weight_sum}


def adamw(model: Qwen2ForCausalLM, config: PolicyConfig) -> torch.optim.Optimizer:
    """PyTorch's own, the plain loop over parameters."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        foreach=False,
        fused=False,
    )


def case(seed: int = 0) -> tuple[Batch, Tensor, Qwen2ForCausalLM]:
    """A batch whose old log-probabilities are near the model's, so that some ratios are clipped."""
    batch, rewards, _ = make_batch(seed)
    model = tiny(seed)
    with torch.no_grad():
        near = padded([row.tolist() for row in plain_logprobs(model, batch, 1.0)], batch)
    noise = 0.3 * torch.randn(near.shape, generator=torch.Generator().manual_seed(seed))
    old = (near + noise) * batch.response_mask
    batch = Batch(*(old if name == "logprobs" else getattr(batch, name) for name in Batch.__slots__))
    return batch, padded(rewards, batch), model


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("clip_grad", [0.01, 1000.0])
@pytest.mark.parametrize("tokens", [1, 20, 16384])
def test_one_minibatch_is_one_plain_adamw_step_on_the_naive_loss(
    reduction: str, clip_grad: float, tokens: int
):
    config = PolicyConfig.model_validate(
        {
            "lr": 0.01,
            "minibatch": 7,
            "reduction": reduction,
            "clip_grad": clip_grad,
            "clip_high": 0.3,
            "weight_decay": 0.1,
            "beta2": 0.95,
            "tokens_per_microbatch": tokens,
        }
    )
    batch, advantages, model = case()
    plain = copy.deepcopy(model)
    optimizer = adamw(plain, config)
    expected = naive_step(plain, optimizer, batch, list(range(7)), advantages, config, 1.0)
    learner = Learner(model, config, 1)
    metrics = update_policy(learner, batch, advantages, config, torch.Generator().manual_seed(0))
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        # Adam's first step hardly feels the gradient's size, its memory of the gradient does.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
        memory = [o.state[p]["exp_avg"] for o, p in ((learner.optimizer, ours), (optimizer, theirs))]
        scale = float(memory[1].abs().max())
        torch.testing.assert_close(*memory, rtol=1e-3, atol=1e-5 * scale + 1e-9)
    assert metrics["policy/loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert metrics["policy/grad_norm"] == pytest.approx(expected["norm"], rel=1e-4)
    assert metrics["policy/clip_fraction"] == pytest.approx(expected["clipped"], abs=1e-6)
    assert metrics["policy/clip_fraction"] > 0.05
    assert metrics["policy/kl"] == pytest.approx(expected["kl"], rel=1e-3)
    assert metrics["policy/lr"] == 0.01


@pytest.mark.parametrize("minibatch", [2, 3, 4])
def test_minibatches_and_epochs_are_plain_steps_one_after_the_other(minibatch: int):
    """Every response once an epoch, in the generator's order; the old log-probabilities stay the sampler's."""
    config = PolicyConfig(lr=0.01, minibatch=minibatch, epochs=2, tokens_per_microbatch=16)
    batch, advantages, model = case(1)
    plain, seen = copy.deepcopy(model), []
    optimizer, generator = adamw(plain, config), torch.Generator().manual_seed(4)
    for _ in range(2):
        order = torch.randperm(7, generator=generator).tolist()
        parts = -(-7 // minibatch)
        sizes = [7 // parts + (i < 7 % parts) for i in range(parts)]
        assert max(sizes) <= minibatch
        for size in sizes:
            rows, order = order[:size], order[size:]
            seen.append(naive_step(plain, optimizer, batch, rows, advantages, config, 1.0))
    learner = Learner(model, config, len(seen))
    metrics = update_policy(learner, batch, advantages, config, torch.Generator().manual_seed(4))
    assert learner.updates == len(seen)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    for name, key in (("loss", "loss"), ("grad_norm", "norm")):
        mean = sum(step[key] for step in seen) / len(seen)
        assert metrics[f"policy/{name}"] == pytest.approx(mean, rel=1e-3)


def test_the_trainer_divides_its_logits_by_the_temperature():
    config = PolicyConfig(lr=0.01, minibatch=7, clip_grad=1000.0)
    batch, advantages, model = case(2)
    plain = copy.deepcopy(model)
    naive_step(plain, adamw(plain, config), batch, list(range(7)), advantages, config, 0.7)
    update_policy(
        Learner(model, config, 1, temperature=0.7),
        batch,
        advantages,
        config,
        torch.Generator().manual_seed(0),
    )
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


def test_trap_12_the_mismatch_is_taken_before_any_update():
    config = PolicyConfig(lr=0.1, minibatch=7)
    batch, advantages, model = case(3)
    with torch.no_grad():
        now = padded([row.tolist() for row in plain_logprobs(model, batch, 1.0)], batch)
    gap = (now - batch.logprobs)[batch.response_mask].abs()
    metrics = update_policy(Learner(model, config, 1), batch, advantages, config, torch.Generator())
    assert metrics["policy/mismatch_mean"] == pytest.approx(float(gap.mean()), rel=1e-4)
    assert metrics["policy/mismatch_max"] == pytest.approx(float(gap.max()), rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_takes_no_step(bad: float):
    config = PolicyConfig(lr=0.1, minibatch=7, weight_decay=0.1)
    batch, advantages, model = case(4)
    before = copy.deepcopy(model.state_dict())
    advantages[2, STARTS[2]] = bad
    learner = Learner(model, config, 1)
    with pytest.raises(NonFiniteError):
        update_policy(learner, batch, advantages, config, torch.Generator())
    assert learner.updates == 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
