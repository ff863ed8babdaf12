"""The controls that the benchmark adds to the methods, against loops; and how it reads curves."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openprime.cli import main
from openprime.config import ALGORITHMS, OutcomeConfig, PolicyConfig
from openprime.models.lm import LM
from openprime.prime.learner import Learner, Update
from openprime.run.console import Clock
from openprime.types import Batch
from support import brute
from support.strategies import Case, cases, property_test
from support.tiny_lm import make_batch, make_model, naive_logprobs, weights
from support.tiny_runs import metrics, rl_args
from support.tiny_runs import weights as saved_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
BEFORE = set(ALGORITHMS)
import candidates  # noqa: E402
from sample_efficiency import Result, crossing, reached, seconds_to  # noqa: E402

ADDED = {name: ALGORITHMS.pop(name) for name in set(ALGORITHMS) - BEFORE}


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The algorithms of the benchmark, for one test."""
    for name, entry in ADDED.items():
        monkeypatch.setitem(ALGORITHMS, name, entry)
    yield
    monkeypatch.undo()


def policy_of(**options) -> tuple[Learner, PolicyConfig]:
    """A policy that takes plain steps on its whole batch."""
    config = PolicyConfig(**({"lr": 0.01, "clip_grad": 1e9, "tokens_per_microbatch": 20} | options))
    return Learner(LM(make_model(seed=1)), config, 10), config


def rows_of(block: torch.Tensor, batch: Batch) -> brute.Ragged:
    """The response tokens of each row."""
    return [row[mask].tolist() for row, mask in zip(block, batch.response_mask, strict=True)]


def check_clipped_step(method, batch: Batch, expected: list[list[float]]) -> None:
    """The advantages are the expected ones, and the policy's first step lowers their clipped loss."""
    policy, _ = policy_of()
    before = weights(policy.lm.model)
    done, found = method.step(policy, batch)
    for row, wanted in zip(rows_of(done.advantages, batch), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)
    assert bool((done.advantages[~batch.response_mask] == 0).all())
    assert math.isfinite(found["policy/loss"])
    assert not torch.equal(weights(policy.lm.model), before)


def test_maxrl__advantages_are_the_centred_outcome_over_the_groups_mean():
    """A group of three with two right ones, one with a soft outcome, and one without a right one."""
    outcomes = (1, 0, 1, 0, 0.5, 0, 0, 0)
    batch = make_batch(outcomes=outcomes)
    each = brute.maxrl_advantages(outcomes, batch.group.tolist())
    assert each == pytest.approx([1 / 2, -1, 1 / 2, -1, 1, 0, 0, 0])
    expected = [[a] * int(n) for a, n in zip(each, batch.response_mask.sum(-1), strict=True)]
    check_clipped_step(candidates.MaxRL(OutcomeConfig(), Clock()), batch, expected)


# TPO


def tpo(**options) -> candidates.TPO:
    return candidates.TPO(OutcomeConfig(policy=PolicyConfig(**options)), Clock())


@property_test
@given(case=cases(), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_tpo_loss__equals_the_loops(case: Case, temperature: float):
    """With groups of equal outcomes, and garbage off the responses; its gradient by row is p - q."""
    new, old = case.values("new", 0.5), case.values("old", 0.5)
    method = tpo()
    method.TEMPERATURE = temperature
    leaf = case.block(new, torch.float64).requires_grad_()
    batch = case.batch(logprobs=case.block(old, torch.float64), outcome=case.outcome_tensor.double())
    loss = method.loss(leaf, batch)
    expected = brute.tpo_loss(new, old, case.outcomes, case.group, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    slope = torch.autograd.grad(loss, leaf)[0]
    moved = [[value + 1e-5 * (b == 0) * (t == 0) for t, value in enumerate(row)] for b, row in enumerate(new)]
    higher = brute.tpo_loss(moved, old, case.outcomes, case.group, temperature)
    assert slope[0, case.prompts[0]].item() == pytest.approx((higher - expected) / 1e-5, abs=1e-4)
    assert bool((slope[~case.mask] == 0).all())


def test_tpo_loss__gradient_vanishes_where_the_policy_is_the_target():
    """Unlike a policy gradient's: of outcomes 1, 0, 0, 0 the standardised ones are sqrt 3 and -1 / sqrt 3."""
    batch = make_batch(group=[0, 0, 0, 0], outcomes=[1, 0, 0, 0])
    lift = torch.tensor([math.sqrt(3.0), *[-1 / math.sqrt(3.0)] * 3])
    first = batch.response_mask & (batch.response_mask.cumsum(-1) == 1)
    leaf = (batch.logprobs + lift[:, None] * first).requires_grad_()
    slope = torch.autograd.grad(tpo().loss(leaf, batch), leaf)[0]
    assert float(slope.abs().max()) < 1e-6


@pytest.mark.parametrize("tokens", [1, 1000])
def test_tpo_step__is_one_step_on_the_mean_over_groups_however_the_batch_is_cut(tokens: int):
    batch = make_batch()
    policy, config = policy_of(tokens_per_microbatch=tokens)
    twin = make_model(seed=1)
    new, old = (rows_of(x, batch) for x in (naive_logprobs(twin, batch).detach(), batch.logprobs))
    loss = brute.tpo_loss(new, old, batch.outcome.tolist(), batch.group.tolist(), 1.0) / 3
    method = candidates.TPO(OutcomeConfig(policy=config), Clock())
    done, found = method.step(policy, batch)
    assert found["policy/loss"] == pytest.approx(loss, rel=1e-4)
    assert policy.updates == 1
    assert bool((done.rewards == 0).all())
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.0)
    (method.loss(naive_logprobs(twin, batch), batch) / 3).backward()
    optimizer.step()
    torch.testing.assert_close(weights(policy.lm.model), weights(twin), rtol=1e-3, atol=2e-4)


def test_tpo_step__epochs_and_minibatches_keep_groups_whole_and_the_target_as_it_was():
    batch = make_batch()
    policy, config = policy_of(minibatch=3, epochs=4)
    seen = []
    method = candidates.TPO(OutcomeConfig(policy=config), Clock())
    plain = method.loss
    method.loss = lambda logprobs, micro: (seen.append(micro), plain(logprobs, micro))[1]
    method.step(policy, batch)
    assert 4 * 2 <= policy.updates <= 4 * 3  # groups of 3, 2 and 3 rows in any order
    sizes = {0: 3, 1: 2, 2: 3}
    for micro in seen:
        for g in micro.group.unique().tolist():
            rows = micro.group == g
            assert int(rows.sum()) == sizes[g]
            assert micro.logprobs[rows].sum().item() == pytest.approx(
                batch.logprobs[batch.group == g].sum().item(), rel=1e-5
            )
    assert {tuple(micro.group.unique().tolist()) for micro in seen} >= {(0,), (1,), (2,)}


# SPRO


@property_test
@given(cases())
def test_spro__masked_step_advantage_equals_the_loops(case: Case):
    """A group's responses begin in one column."""
    case = replace(case, prompts=[0] * len(case))
    rewards = case.values("rewards")
    method = candidates.SPRO(candidates.SPROConfig(), Clock(), LM(make_model(seed=2)))
    found = method.masked_step_advantage(case.batch(rewards=case.clean(rewards)))
    case.check(found, brute.masked_step_advantages(rewards, case.group), 1e-4)


def test_spro_step__adds_it_to_the_advantage_of_the_outcome():
    """Rewards of the sampling policy against the reference, times beta."""
    batch, reference = make_batch(), make_model(seed=2)
    known = naive_logprobs(reference, batch).detach()
    method = candidates.SPRO(candidates.SPROConfig(beta=0.3), Clock(), LM(reference))
    rewards = torch.where(batch.response_mask, 0.3 * (batch.logprobs - known), 0.0)
    own = rows_of(method.masked_step_advantage(replace(batch, rewards=rewards)), batch)
    group, outcomes, expected = batch.group.tolist(), batch.outcome.tolist(), []
    for i, row in enumerate(own):
        others = [outcomes[j] for j in range(8) if group[j] == group[i] and j != i]  # rloo
        expected.append([value + outcomes[i] - sum(others) / len(others) for value in row])
    assert max(abs(value) for row in own for value in row) > 0.1
    check_clipped_step(method, batch, expected)


def test_distrl__the_loss_equals_the_loops():
    """At random log-probabilities, with places that have no likely token, one and several."""
    generator = torch.Generator().manual_seed(0)
    batch, k = make_batch(), 10
    mask, places = batch.response_mask, (*batch.response_mask.shape, 1 + k)
    old, new, phi = (torch.randn(places, generator=generator).mul(2).log_softmax(-1) for _ in range(3))
    old[0] = -3.0  # nobody is likely there
    rewards = torch.randn(mask.shape, generator=generator) * mask
    config = candidates.DistRLConfig(policy=PolicyConfig(minibatch=len(batch)))
    losses, seen = [], []

    class Recorded:
        """A policy whose only update says what the loss is."""

        class lm:
            likeliest = staticmethod(lambda batch, count: (torch.zeros(places, dtype=torch.long), old))

        @staticmethod
        def update(part: Batch, loss, count: float, candidates: bool):
            width = part.rewards.shape[1]
            rows = [
                next(i for i, row in enumerate(rewards) if torch.equal(own, row[:width]))
                for own in part.rewards
            ]
            losses.append(float(loss(new[rows][:, :width], part)))
            seen.append((count, candidates))
            return Update(losses[-1], 1.0, 1e-3, part.logprobs)

    class Known:
        """A PRM with these rewards."""

        beta = 0.7

        class lm:
            candidate_logprobs = staticmethod(lambda batch: phi)

        @staticmethod
        def score_and_update(batch: Batch):
            return replace(batch, rewards=rewards), {}

    method = candidates.DistRL(config, Clock(), Known(), lambda folder: None)
    done, _ = method.step(Recorded(), batch)  # pyright: ignore[reportArgumentType]

    tokens = [(b, t) for b, t in mask.nonzero().tolist()]
    by_row = [[t for b, t in tokens if b == row] for row in range(len(batch))]
    mean_reward = sum(float(rewards[b, t]) for b, t in tokens) / len(tokens)
    prefix = [
        sum(float(rewards[b, u]) for u in by_row[b] if u <= t) / (by_row[b].index(t) + 1) for b, t in tokens
    ]
    centre_of = sum(prefix) / len(prefix)
    spread = math.sqrt(sum((v - centre_of) ** 2 for v in prefix) / len(prefix))
    returns = [sum(float(rewards[b, u]) - mean_reward for u in by_row[b] if u >= t) for b, t in tokens]
    middle = sum(returns) / len(returns)
    width = math.sqrt(sum((g - middle) ** 2 for g in returns) / len(returns) + 1e-8)
    group, outcomes = batch.group.tolist(), batch.outcome.tolist()
    expected = 0.0
    for (b, t), value in zip(tokens, returns, strict=True):
        own = [outcomes[j] for j in range(len(batch)) if group[j] == group[b]]
        mean = sum(own) / len(own)
        deviation = math.sqrt(sum((o - mean) ** 2 for o in own) / (len(own) - 1))
        advantage = (outcomes[b] - mean) / (deviation + 1e-6) + 0.05 * (value - middle) / width
        assert float(done.advantages[b, t]) == pytest.approx(advantage, abs=1e-4)

        def ppo(place: int, advantage: float, b: int = b, t: int = t) -> float:
            ratio = math.exp(float(new[b, t, place] - old[b, t, place]))
            low, high = 1 - config.policy.clip_low, 1 + config.policy.clip_high
            return -min(ratio * advantage, min(max(ratio, low), high) * advantage)

        expected += ppo(0, advantage)
        likely = [a for a in range(1, 1 + k) if math.exp(float(old[b, t, a])) >= 0.1]
        total = sum(math.exp(float(old[b, t, a])) for a in likely)
        for a in likely:
            credit = 0.7 * float(phi[b, t, a] - old[b, t, a]) / spread
            expected += 0.1 * math.exp(float(old[b, t, a])) / total * ppo(a, credit)
    assert losses == [pytest.approx(expected, rel=1e-4)]
    assert seen == [(len(tokens), True)]


# As the command runs them


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(
    "name", ["spro", *(pytest.param(name, marks=pytest.mark.slow) for name in ("maxrl", "tpo"))]
)
def test_rl__a_control_trains_and_a_resumed_run_is_the_same(model: Path, tmp_path: Path, name: str):
    whole, part = tmp_path / "whole", tmp_path / "part"
    for out, flags in ((whole, ()), (part, ("--steps", "1")), (part, ("--resume",))):
        args = rl_args(model, out, "--algorithm", name, "--policy.epochs", "2", "--save-every", "1", *flags)
        at = args.index("--prm.warmup")
        assert main(args[:at] + args[at + 2 :]) == 0  # without a PRM's flag
    assert metrics(part)[2] == metrics(whole)[2]
    assert saved_weights(part / "model") == saved_weights(whole / "model") != saved_weights(model)


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 20)), min_size=2, max_size=8),
    st.floats(0, 1),
)
@property_test
def test_reached__is_the_accuracy_where_the_curve_crosses_it(rises: list[tuple[int, int]], share: float):
    curve = [
        (float(sum(x for x, _ in rises[:i])), sum(y for _, y in rises[:i]) / 200)
        for i in range(len(rises) + 1)
    ]
    wanted = curve[-1][1] * share
    assert reached(curve, crossing(curve, wanted)) == pytest.approx(wanted)


def test_reached__behind_the_end_is_the_last_accuracy():
    assert reached([(0, 0.2), (100, 0.6), (300, 0.5)], 200) == pytest.approx(0.55)
    assert reached([(0, 0.2), (100, 0.6)], 101) == 0.6


def test_seconds_to__adds_up_the_steps_before_the_accuracy():
    """Two steps of 3 and 5 s between .2 and .6 at 8 s, then one of 4 s that ends below."""
    rows = [
        {"step": 0, "eval/avg@2": 0.2},
        {"step": 1, "time/step": 3.0},
        {"step": 2, "time/step": 5.0, "time/evaluate": 100.0, "eval/avg@2": 0.6},
        {"step": 3, "time/step": 4.0, "eval/avg@2": 0.5},
    ]
    runs = [Result(rows, 0, collapsed=False)]
    assert seconds_to(runs, 0.4) == pytest.approx([4.0])
    assert seconds_to(runs, 0.7) == [math.inf]
    assert runs[0].curve("eval/avg@", clock=True)[-1] == (12.0, 0.5)
