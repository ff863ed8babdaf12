"""Distillation: a PRM learnt anew from the policy, and a policy that moves towards what its rewards ask for."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openprime.config import (
    DistillConfig,
    DistillPolicyConfig,
    DistillPRMConfig,
    DistillRLConfig,
    LoRAConfig,
)
from openprime.models import logprobs as logprobs_module
from openprime.models.hub import load_tokenizer
from openprime.models.lm import LM, Loader
from openprime.models.placement import Placement
from openprime.models.sharding import freeze_below
from openprime.prime.distill import CLIP_HIGH, CLIP_LOW, Distill
from openprime.prime.learner import Learner, minibatch_rows
from openprime.prime.losses import prm_shifted_loss, with_rest
from openprime.prime.methods import minibatch_generator
from openprime.prime.prm import ImplicitPRM
from openprime.prime.rewards import with_group_outcome
from openprime.run.console import Clock
from openprime.types import Batch, UserError
from support import brute
from support.host_reads import OnDevice, on_device
from support.tiny_lm import (
    VOCABULARY,
    catch_gradients,
    make_batch,
    make_model,
    naive_distributions,
    naive_logprobs,
    weights,
)

HOW = DistillConfig(prm_epochs=3, low=-1.5, high=0.4, kl_coefficient=0.7, candidates=6, outcome_weight=0.0)


@pytest.fixture
def batch() -> Batch:
    return make_batch(outcomes=[1, 0, 1, 0, 1, 0, 0, 0])


@pytest.fixture
def policy() -> Learner:
    return make_policy()


def make_policy() -> Learner:
    config = DistillPolicyConfig(lr=0.02, tokens_per_microbatch=40, clip_grad=1e9)
    return Learner(LM(make_model(seed=5)), config, 100)


def make_method(lr: float = 0.01, minibatch: int = 8, epochs: int = 1, **how: float) -> Distill:
    """Its PRM is not the policy yet."""
    config = DistillRLConfig(
        policy=DistillPolicyConfig(minibatch=minibatch, epochs=epochs),
        prm=DistillPRMConfig(lr=lr, minibatch=3, tokens_per_microbatch=20),
        distill=HOW.model_copy(update=how),
    )
    return Distill(config, LM(make_model(seed=1)), Clock())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learn(method: Distill, policy: Learner, batch: Batch, seed: int = 0) -> Batch:
    """The batch with all that the PRM gives."""
    batch, known = method.look_up(policy, batch)
    return method.learn(policy, batch, known, generator(seed), len(batch))[0]


def lumped(table: Tensor, ids: Tensor) -> Tensor:
    """[N, k + 1] of [N, V]: the candidates and the sum of all others."""
    others = torch.ones_like(table).bool().scatter(-1, ids, False)
    rest = table.masked_fill(~others, -torch.inf).logsumexp(-1, keepdim=True).clamp(min=math.log(1e-6))
    return torch.cat([table.gather(-1, ids), rest], -1)


def target_kl(policy: torch.nn.Module, start: torch.nn.Module, method: Distill, batch: Batch) -> Tensor:
    """Mean over tokens of KL(policy || ref * exp(clip(log phi/ref) / c) / Z), with autograd, in float64.

    Over the reference's likeliest tokens and all others as one outcome.
    """
    how, pi = method.config.distill, torch.cat(naive_distributions(policy, batch))  # [N, V]
    with torch.no_grad():
        models = (copy.deepcopy(model).double() for model in (method.prm.lm.model, start))
        phi, ref = (torch.cat(naive_distributions(model, batch)) for model in models)
        ids = ref.topk(min(how.candidates, VOCABULARY)).indices
        phi, ref = lumped(phi, ids), lumped(ref, ids)
        target = (ref + (phi - ref).clamp(how.low, how.high) / how.kl_coefficient).log_softmax(-1)
    pi = lumped(pi, ids)
    return (pi.exp() * (pi - target)).sum(-1).mean()


def test_learn__the_prm_starts_from_the_policy_and_learns_the_outcomes(policy: Learner, batch: Batch):
    method, start = make_method(), weights(policy.lm.model)
    known = learn(method, policy, batch)
    assert torch.equal(weights(policy.lm.model), start), "the policy has not moved"
    with method.as_it_began():
        assert torch.equal(weights(method.prm.lm.model), start), "the reference is the policy"
    assert not torch.equal(weights(method.prm.lm.model), start)
    phi = naive_logprobs(method.prm.lm.model, batch).detach()
    ref = naive_logprobs(policy.lm.model, batch).detach()
    torch.testing.assert_close(known.rewards, method.prm.beta * (phi - ref), rtol=1e-3, atol=1e-5)
    scores = known.rewards.sum(-1)
    assert scores[batch.outcome > 0.5].mean() > scores[batch.outcome < 0.5].mean() + 0.1
    nats = sorted((-ref.sum(-1)).tolist())
    assert method.prm.beta == pytest.approx(min(1.0, max(0.05, 0.5 / ((nats[3] + nats[4]) / 2))), rel=1e-4)


def test_learn__begins_every_step_anew(policy: Learner, batch: Batch):
    """What it learnt from another batch before leaves nothing behind, its optimiser's memory included."""
    one, two = make_method(), make_method()
    learn(one, policy, replace(batch, outcome=1 - batch.outcome), seed=1)
    one.skill = None  # of which there is a memory
    found = [learn(method, policy, batch) for method in (one, two)]
    assert torch.equal(weights(one.prm.lm.model), weights(two.prm.lm.model))
    assert torch.equal(found[0].targets, found[1].targets)


def learnt_by(depth: float) -> tuple[Distill, set[str]]:
    """A method whose PRM learns its last blocks, and the names of the weights that it learns."""
    model = make_model(seed=1)
    freeze_below("m", model, depth)
    config = DistillRLConfig(prm=DistillPRMConfig(lr=0.01, minibatch=3), distill=HOW)
    method = Distill(config, LM(model), Clock())
    return method, {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_learn__of_the_last_blocks_alone_leaves_the_others_the_policys(policy: Learner, batch: Batch):
    method, names = learnt_by(0.5)
    layers = policy.lm.model.config.num_hidden_layers
    assert {int(n.split(".")[2]) for n in names if ".layers." in n} == set(
        range(layers - layers // 2, layers)
    )
    assert {n for n in names if ".layers." not in n} == {"model.norm.weight"}
    whole, start = learnt_by(1.0)[0], dict(policy.lm.model.named_parameters())
    known = learn(method, policy, batch)
    for name, weight in method.weights.items():
        assert torch.equal(weight, start[name]) == (name not in names), name
    assert method.start.keys() == names
    with method.as_it_began():
        assert torch.equal(weights(method.prm.lm.model), weights(policy.lm.model))
    phi = naive_logprobs(method.prm.lm.model, batch).detach()
    ref = naive_logprobs(policy.lm.model, batch).detach()
    torch.testing.assert_close(known.rewards, method.prm.beta * (phi - ref), rtol=1e-3, atol=1e-5)
    scores = known.rewards.sum(-1)
    assert scores[batch.outcome > 0.5].mean() > scores[batch.outcome < 0.5].mean() + 0.1
    assert not torch.equal(learn(whole, policy, batch).rewards, known.rewards)


def test_freeze_below__says_where_blocks_are_not_known():
    model = make_model()
    model._no_split_modules = None
    with pytest.raises(UserError, match=r"m: nobody knows .* blocks: set distill\.prm_depth=1"):
        freeze_below("m", model, 0.5)


@pytest.mark.parametrize("new", [8, 4])
def test_train__skill_is_measured_on_new_rows_in_the_first_epoch_before_each_update(
    new: int, policy: Learner, batch: Batch
):
    """Against the same updates made by hand, with a forward pass of its own before each."""
    method = make_method()
    found, known = method.look_up(policy, batch)
    _, metrics = method.learn(policy, found, known, generator(), new)
    twin = Learner(LM(make_model(seed=5)), method.config.prm, 9)
    found, scores, draw = with_group_outcome(found), [0.0] * len(batch), generator()
    for rows in minibatch_rows(batch, 3, draw):
        part, prm = found.select(rows), ImplicitPRM(twin.lm, None, method.prm.beta)
        for row, score in zip(rows.tolist(), prm.token_rewards(part).sum(-1).tolist(), strict=True):
            scores[row] = score if twin.updates else 0.0
        loss = lambda logprobs, micro: prm_shifted_loss(logprobs, micro, method.prm.beta, 3 / 8)  # noqa: E731
        twin.update(part, loss, len(part))
    own = (scores, batch.outcome.tolist(), batch.group.tolist())
    won, pairs = brute.pairwise_accuracy(*(column[:new] for column in own))
    assert sum(score != 0 for score in scores) == 5
    assert metrics["prm/pairwise_accuracy"] == pytest.approx(won / pairs)
    assert not math.isclose(won / pairs, 0.5)


def test_train__a_prm_that_sees_a_batch_at_once_has_no_skill_to_measure(policy: Learner, batch: Batch):
    method = make_method()
    method.config = method.config.model_copy(update={"prm": DistillPRMConfig(lr=0.01)})
    _, metrics = method.step(policy, batch)
    assert "prm/loss" in metrics
    assert "prm/pairwise_accuracy" not in metrics


@pytest.mark.parametrize("candidates", [1, 6, VOCABULARY])
def test_teach__the_policy_approaches_the_tilted_reference(candidates: int, policy: Learner, batch: Batch):
    method, start = make_method(lr=0.05, epochs=40, candidates=candidates), copy.deepcopy(policy.lm.model)
    known = learn(method, policy, batch)
    before = target_kl(policy.lm.model, start, method, batch)
    found, reference = method.look_up(policy, batch)
    _, metrics = method.learn(policy, found, reference, generator(), len(batch))
    assert metrics["policy/target_kl"] == pytest.approx(before.item(), rel=1e-3)
    method.teach(policy, known, generator(), len(batch))
    assert before > 0.005
    assert target_kl(policy.lm.model, start, method, batch) < before / 4


@pytest.mark.parametrize(("weight", "new"), [(0.0, 8), (0.3, 8), (0.3, 4)])
@pytest.mark.parametrize("candidates", [1, 6, VOCABULARY, 10 * VOCABULARY])
def test_teach__first_gradient_is_that_of_the_kl_and_of_the_new_outcomes(
    candidates: int, weight: float, new: int, policy: Learner, batch: Batch
):
    """By autograd through the definitions, in float64; the coefficient times KL, mean over the batch's tokens."""
    method = make_method(lr=0.05, candidates=candidates, outcome_weight=weight)
    start = copy.deepcopy(policy.lm.model)
    known = learn(method, policy, batch)
    known = replace(known, ref_logprobs=known.ref_logprobs + 0.3 * torch.randn(known.ref_logprobs.shape))
    twin, caught = copy.deepcopy(policy.lm.model).double(), catch_gradients(policy.optimizer)
    method.teach(policy, known, generator(), new)
    loss = HOW.kl_coefficient * target_kl(twin, start, method, batch)
    for b, (outcome, mask) in enumerate(zip(batch.outcome.tolist(), batch.response_mask, strict=True)):
        others = [
            o for i, o in enumerate(batch.outcome.tolist()) if batch.group[i] == batch.group[b] and i != b
        ]
        # Of each of its tokens: PRIME eq. 5, second term; what has been sampled before has none.
        advantage = outcome - sum(others) / len(others) if b < new else 0.0
        for t in mask.nonzero()[:, 0].tolist():
            own = torch.cat(naive_distributions(twin, batch.select(torch.tensor([b]))))
            own = own[t - int(mask.nonzero()[0]), batch.token_ids[b, t]]
            ratio = (own - known.ref_logprobs[b, t]).exp()
            clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
            surrogate = torch.minimum(ratio * advantage, clipped * advantage)
            loss = loss - weight * surrogate / int(batch.response_mask.sum())
    loss.backward()
    for mine, parameter in zip(caught[0], twin.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), parameter.grad, atol=2e-5, rtol=1e-3)


def test_learn__a_prm_that_ranks_no_better_than_chance_is_not_heard(policy: Learner, batch: Batch):
    """The skill is the moving average of what `train` measures: four fifths of it are what was known before."""
    for before in (0.0, 0.4, 0.5, 0.6, 1.0, None):
        method = make_method()
        method.skill = before
        found, known = method.look_up(policy, batch)
        taught, metrics = method.learn(policy, found, known, generator(), len(batch))
        new = metrics["prm/pairwise_accuracy"]
        skill = new if before is None else 0.8 * before + 0.2 * new
        assert metrics["prm/skill"] == pytest.approx(skill)
        assert (metrics["policy/target_kl"] > 1e-3) == (skill > 0.5)
        if skill <= 0.5:  # the policy is to stay where it is
            stay = with_rest(known[..., 1:]).softmax(-1)
            found = (taught.targets / HOW.kl_coefficient).softmax(-1)
            torch.testing.assert_close(found[batch.response_mask], stay[batch.response_mask])
        assert taught.rewards.abs().max() > 0.01


def test_teach__without_outcome_weight_looks_at_no_outcome(batch: Batch):
    results = []
    for outcome in (batch.outcome, 1 - batch.outcome):
        policy, method = make_policy(), make_method(minibatch=4)
        known = learn(method, policy, batch)
        method.teach(policy, replace(known, outcome=outcome), generator(), len(batch))
        results.append(weights(policy.lm.model))
    assert torch.equal(*results)


def test_teach__the_host_reads_the_batch_no_more_often_for_more_micro_batches(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    """As in a step of PRIME (test_learner.py); the loss of outcomes is there too."""
    monkeypatch.setattr(logprobs_module, "by_tokens", lambda device: True)
    found = []
    for tokens in (1000, 20):
        policy, method = make_policy(), make_method(outcome_weight=0.3)
        policy.lm = replace(policy.lm, tokens_per_microbatch=tokens)
        known = learn(method, policy, batch)
        method.teach(policy, known, generator(), len(batch))  # what is found out once is found
        OnDevice.found.clear()
        method.teach(policy, on_device(known), generator(), len(batch))
        found.append(dict(OnDevice.found))
    assert found[0] == found[1]
    assert found[0]  # the counter counts


def test_distill_step__reads_the_batch_once_for_the_reference_and_once_for_the_targets(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    """Beside the updates: one forward pass of the policy before any, one of the PRM after its own."""
    policy, method, seen = make_policy(), make_method(), []
    real = LM._of_whole

    def counted(lm: LM, *args):
        seen.append(("policy" if lm.model is policy.lm.model else "prm", policy.updates))
        return real(lm, *args)

    monkeypatch.setattr(LM, "_of_whole", counted)
    done, metrics = method.step(policy, batch)
    assert seen == [("policy", 0), ("prm", 0)]
    assert metrics["prm/score_right"] == pytest.approx(
        done.rewards.sum(-1)[batch.outcome > 0.5].mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("replay", [0, 1, 2])
def test_distill_step__learns_from_the_last_batches_too(replay: int):
    """The third of three steps is one of a single batch that has all of their rows; its metrics are of the new ones."""
    batches = [make_batch(outcomes=[i % 2, 1, 0, 1, 0, 1, i % 2, 0], seed=i) for i in range(3)]
    pairs = [(make_policy(), make_method(minibatch=7, replay=replay, outcome_weight=0.3)) for _ in range(2)]
    for policy, method in pairs:
        for batch in batches[:2]:
            method.step(policy, batch)
    (policy, method), (twin, other) = pairs
    done, metrics = method.step(policy, batches[2])
    rows = [batches[2], *batches[1::-1][:replay]]
    width = max(batch.token_ids.shape[1] for batch in rows)
    whole = {}
    for name in ("token_ids", "response_mask", "lengths", "outcome", "group", "logprobs", "step_end"):
        columns = [getattr(batch, name) for batch in rows]
        if name == "group":
            columns = [column + 10 * i for i, column in enumerate(columns)]
        if columns[0].dim() == 2:
            wide = [torch.zeros(len(column), width, dtype=column.dtype) for column in columns]
            for column, padded in zip(columns, wide, strict=True):
                padded[:, : column.shape[1]] = column
            columns = wide
        whole[name] = torch.cat(columns)
    draw = minibatch_generator(other.config.seed, 3)
    found, known = other.look_up(twin, Batch(**whole))
    found, learnt = other.learn(twin, found, known, draw, 8)
    other.teach(twin, found, draw, 8)
    assert torch.equal(weights(twin.lm.model), weights(policy.lm.model))
    assert len(done) == 8
    assert torch.equal(done.token_ids[:, : batches[2].token_ids.shape[1]], batches[2].token_ids)
    assert torch.equal(done.rewards, found.rewards[:8])
    right = batches[2].outcome > 0.5
    assert metrics["prm/score_right"] == pytest.approx(float(done.rewards.sum(-1)[right].mean()), rel=1e-5)
    assert metrics["prm/pairwise_accuracy"] == learnt["prm/pairwise_accuracy"]
    gap = (found.ref_logprobs[:8] - whole["logprobs"][:8])[whole["response_mask"][:8]].abs()
    assert metrics["policy/mismatch_mean"] == pytest.approx(float(gap.mean()), rel=1e-5)
    assert len(method.past) == replay


@pytest.mark.parametrize(("rank", "depth"), [(0, 1.0), (0, 0.5), (4, 1.0)])
def test_distill_models__are_the_prm_and_the_policy_that_it_began_from(
    rank: int, depth: float, model: Path, tmp_path: Path
):
    """Read again they have the rewards of the last step, with an adapter too."""
    if rank:
        pytest.importorskip("peft")
    settings = DistillPolicyConfig(lr=0.01, minibatch=8, lora=LoRAConfig(rank=rank))
    config = DistillRLConfig(
        model=str(model),
        policy=settings,
        prm=DistillPRMConfig(lr=0.05, minibatch=4),
        distill=DistillConfig(prm_depth=depth),
        out=str(tmp_path),
    )
    models, tokenizer = Loader(Placement()), load_tokenizer(str(model))
    policy = Learner(models.trained(str(model), "policy", settings), settings, 10)
    method = Distill.build(config, models, tokenizer, Clock())
    assert (method.prm.lm.model is policy.lm.model) == bool(rank)
    assert (len(method.start) < len(method.weights)) == (depth < 1)
    batch = make_batch()
    for _ in range(2):
        batch, _ = method.step(policy, batch)
    for name, write in method.models().items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    read = ImplicitPRM.from_pretrained(str(tmp_path / "prm"), device="cpu")
    assert read.beta == method.prm.beta
    rewards = read.token_rewards(read.with_reference(batch))
    torch.testing.assert_close(rewards, batch.rewards, rtol=1e-3, atol=1e-4)
    assert float(rewards.abs().max()) > 0.01


def test_distill_restore__is_what_was_saved_and_one_tensor_a_weight(policy: Learner, batch: Batch):
    method, other = make_method(replay=1), make_method(replay=1)
    method.step(policy, batch)
    state = copy.deepcopy(method.state())
    count = len(list(policy.lm.model.parameters()))
    assert len(state["tensors"]) == 2 * count, "neither gradients nor an optimiser"
    other.restore(state)
    assert method.skill is not None
    assert torch.equal(other.past[0].token_ids, batch.token_ids)
    assert other.past[0].ref_logprobs is None
    assert (other.steps, other.prm.beta, other.skill) == (method.steps, method.prm.beta, method.skill)
    assert torch.equal(weights(other.prm.lm.model), weights(method.prm.lm.model))
    for name, weight in method.start.items():
        assert torch.equal(other.start[name], weight)
