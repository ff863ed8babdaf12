"""`openprime rl`: PRIME's algorithm 1 (arXiv 2502.01456), top to bottom; and its variant by distillation."""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from openprime.config import AdvantageConfig, PolicyConfig, RLConfig
from openprime.data.collate import collate, tokens_containing
from openprime.data.readers import read_prompts
from openprime.engines.make import make_engine
from openprime.evaluation.command import measure
from openprime.models.hub import compute_device, load_tokenizer, pad_token, pick_device, same_vocabulary
from openprime.models.lora import Loader
from openprime.models.sharding import load_trained, sampling_model
from openprime.prime import advantages as adv
from openprime.prime.distill import Distiller
from openprime.prime.learner import Learner
from openprime.prime.losses import importance_weights, policy_loss, token_weights
from openprime.prime.online import PRMTrainer
from openprime.prime.prm import is_prm, read_settings
from openprime.prime.rewards import gather_rewards, pairwise_accuracy, reward_positions, scale_by_return
from openprime.prime.rollouts import Ahead, Collector, derive_seed
from openprime.prime.stream import PromptStream
from openprime.ranks import LostRankError, all_sum, world
from openprime.run.console import Bar, Interrupted, Signals
from openprime.run.launch import joined, same_prompts, workers
from openprime.run.run import Run
from openprime.types import Batch, Engine, Group, NonFiniteError, Prompt, RunError, UserError
from openprime.verifiers.pool import Pool


def train(config: RLConfig) -> None:
    """Train a policy. Leaves metrics, samples, checkpoints, `model` and `prm` in `config.out`."""
    config.check()
    with joined(config), Pool(config.verify, workers(config.verify)) as pool:
        train_with(pool, config)


def train_with(pool: Pool, config: RLConfig) -> None:
    """`train` with verifiers at hand."""
    parts = prepare(config, pool)
    run, policy, prm, engine, collector = parts.run, parts.policy, parts.prm, parts.engine, parts.collector
    restored = run.load()
    if restored:
        parts.restore(restored)
    engine.load(policy.weights(), run.step)

    bar = Bar(run.console, "rl", config.steps, run.step)
    with Signals() as signals, closing(run), closing(collector), bar:
        if restored is None:
            record(run, bar, 0, {"rollout/rollouts": 0} | evaluate(parts, config) | run.clock.take())
        for step in range(run.step + 1, config.steps + 1):
            with finite(run, step), saved_on_error(parts, step):
                groups = collector.collect(step, signals.check)  # sample, verify, filter, refill
            batch = collate(groups, parts.step_ends, pad_token(parts.tokenizer)).to(
                compute_device(policy.model)
            )
            generator = torch.Generator().manual_seed(derive_seed(config.seed, "minibatches", step))
            engine.rest()
            with finite(run, step):
                if isinstance(prm, Distiller):
                    rewards, metrics = prm.step(policy, batch, config.policy, generator, run.clock)
                else:
                    rewards, prm_metrics = process_rewards(prm, batch, run)  # score, update the PRM
                    advantages, metrics = compute_advantages(batch, rewards, gated(config.advantage, prm))
                    with run.clock.phase("policy"):
                        old, weights, mismatch = importance(policy, batch, config.engine.importance_clip)
                        weighted = advantages * weights  # as good as weighting the loss: weights are positive
                        metrics |= update_policy(policy, old, weighted, config.policy, generator)
                    metrics |= prm_metrics | mismatch
            engine.load(policy.weights(), step)

            metrics = {"reward/outcome": float(batch.outcome.mean())} | collector.metrics | metrics
            last = step == config.steps
            if last or (config.eval.every and step % config.eval.every == 0):
                with saved_on_error(parts, step + 1):
                    metrics |= evaluate(parts, config)
            metrics = with_times(metrics | run.clock.take())
            record(run, bar, step, metrics)
            bar.report(step, headline(metrics))
            if config.sample_every and (last or step % config.sample_every == 0):
                run.sample(samples(step, groups, rewards, batch, parts.tokenizer))
            stopped = signals.agree()
            if last or stopped or (config.save_every and step % config.save_every == 0):
                run.save(step, parts.state(), wait=bool(last or stopped))
            if stopped and not last:
                raise Interrupted(stopped)

    run.export_model("model", policy.exportable(), parts.tokenizer, config.data)
    if prm:
        reference = "" if config.prm.reference == "policy" else reference_name(config)
        if isinstance(prm, Distiller):  # the last step's
            reference = str(run.export_model("reference", prm.reference, parts.tokenizer, config.data))
        run.export("prm", lambda folder: prm.prm.save_pretrained(folder, parts.tokenizer, reference))
    run.console.print(f"done: {run.folder} holds the policy in model/" + (", the PRM in prm/" if prm else ""))


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of."""

    run: Run
    policy: Learner
    prm: PRMTrainer | Distiller | None
    """None in the outcome-only control."""
    engine: Engine
    collector: Collector | Ahead
    held_out: list[Prompt]
    pool: Pool
    tokenizer: PreTrainedTokenizerBase
    step_ends: frozenset[int]
    """Tokens that end a step of a response."""

    def state(self) -> dict:
        """What a checkpoint keeps (trap 10)."""
        trained = {"policy": self.policy.state()} | ({"prm": self.prm.state()} if self.prm else {})
        return trained | {"collector": self.collector.state()}

    def restore(self, state: dict) -> None:
        """Go on from `state()`."""
        self.policy.restore(state["policy"])
        self.collector.restore(state["collector"])
        if self.prm:
            self.prm.restore(state["prm"])


def prepare(config: RLConfig, pool: Pool) -> Parts:
    """Check everything that can be checked, then load models and data."""
    warnings = config.check()
    device, bfloat16 = pick_device(config.device), config.dtype == "bfloat16"
    if config.algorithm == "distill" and world() > 1:
        raise UserError("algorithm=distill is for one process: start it without torchrun")
    pool.prepare(d.verifier for d in (config.data, config.eval_data) if d.source and not d.verifier_field)
    tokenizer = load_tokenizer(config.model)
    data = read_prompts(config.data, tokenizer)
    prompts = pool.admit(data.prompts, warnings.append)
    held_out = read_prompts(config.eval_data, tokenizer).prompts if config.eval_data.source else []
    held_out = pool.admit(held_out, warnings.append) if held_out else []
    torch.manual_seed(config.seed)
    loader = Loader(device, bfloat16, config.parallel.cpu_offload)
    model, adapter = loader.trained(config.model, "policy", config.policy.lora)
    rollout = config.rollout
    updates = -(-rollout.prompts * rollout.responses // config.policy.minibatch)
    total = config.steps * config.policy.epochs * updates
    policy = Learner(model, config.policy, total, bfloat16, rollout.temperature, adapter)
    prm = make_prm(config, loader, bfloat16) if config.uses_prm else None
    engine = make_engine(
        config.engine,
        config,
        config.model,
        tokenizer,
        rollout.sequences,
        config.data.max_prompt_tokens + rollout.max_response_tokens,
        sampling_model(model, device, bfloat16) if config.engine.kind == "transformers" else None,
        policy.weights,
    )
    same_prompts(prompts + held_out)
    stream = PromptStream(prompts, config.seed)
    collector = Collector(engine, stream, pool, rollout, config.filter, config.seed)
    if config.engine.max_staleness:
        if world() > 1:
            raise UserError(
                "engine.max_staleness: not under torchrun, where ranks collect together; set it to 0"
            )
        collector = Ahead(collector, config.engine.max_staleness, config.steps)
    step_ends = tokens_containing(tokenizer, config.advantage.step_delimiter)
    run = Run(config, "rl")
    if data.dropped_long:
        limit = config.data.max_prompt_tokens
        warnings.append(f"{data.dropped_long} of {data.rows} prompts are over {limit} tokens: dropped")
    if pool.sandbox:
        warnings.append(f"programs run in the sandbox: {pool.sandbox}")
    for warning in warnings:
        run.console.print(f"note: {warning}", highlight=False)
    return Parts(run, policy, prm, engine, collector, held_out, pool, tokenizer, step_ends)


@contextmanager
def saved_on_error(parts: Parts, step: int) -> Iterator[None]:
    """Sampling changes no weights: whatever ends it, save the run as it was before the step."""
    before = parts.collector.state()
    try:
        yield
    except (NonFiniteError, LostRankError):  # weights that are not worth keeping, or cannot be gathered
        raise
    except BaseException as error:
        if world() > 1 and not isinstance(error, OSError | RuntimeError | ValueError):
            raise  # this rank's alone: the others are elsewhere
        parts.run.save(step - 1, parts.state() | {"collector": before})
        parts.run.console.print(f"saved after step {step - 1}; go on with --resume")
        raise


@contextmanager
def finite(run: Run, step: int) -> Iterator[None]:
    """Name the step and the way back where a loss is not finite."""
    try:
        yield
    except NonFiniteError as error:
        raise RunError(
            f"step {step}: {error}. {run.way_back()} Lower the learning rate, or look at samples.jsonl"
        ) from error


def make_prm(config: RLConfig, loader: Loader, bfloat16: bool) -> PRMTrainer | Distiller:
    """The PRM, a copy of `prm.model` (else of the policy's start), and its reference."""
    if config.algorithm == "distill":
        model, reference = (load_trained(config.model, loader.device, bfloat16, False) for _ in range(2))
        return Distiller(model, reference, config.prm, config.distill, bfloat16)
    name = config.prm.model or config.model
    if config.prm.model:
        same_vocabulary(load_tokenizer(name), name, load_tokenizer(config.model), config.model)
    size = config.prm.minibatch or config.rollout.prompts * config.rollout.responses
    updates = -(-config.rollout.prompts * config.rollout.responses // size)
    model, adapter = loader.trained(name, "prm", config.prm.lora)
    learner = Learner(model, config.prm, config.steps * updates, bfloat16, adapter=adapter)
    reference = loader.reference(reference_name(config)) if config.prm.reference == "frozen" else None
    return PRMTrainer(learner, reference, config.prm)


def reference_name(config: RLConfig) -> str:
    """The frozen reference: that of a PRM trained before, else where the PRM starts; frozen, the policy's start."""
    saved = read_settings(config.prm.model)[1] if config.prm.model and is_prm(config.prm.model) else ""
    if saved:
        return saved
    return config.model if config.prm.update == "never" else (config.prm.model or config.model)


def process_rewards(trainer: PRMTrainer | None, batch: Batch, run: Run) -> tuple[Tensor, dict[str, float]]:
    """Token rewards [B, T] of a batch and what the PRM's step did; zeros for the outcome-only control."""
    if trainer is None:
        return torch.zeros_like(batch.logprobs), {}
    with run.clock.phase("reference"):
        reference = trainer.prm.reference_logprobs(batch)
    with run.clock.phase("prm"):
        done = trainer.step(batch, reference)
    won, pairs = pairwise_accuracy(done.fresh_scores, batch.outcome, batch.group)
    trainer.judge(float(won / pairs) if pairs else math.nan)
    probability = done.fresh_scores.sigmoid()
    metrics = {
        "prm/pairwise_accuracy": float(won / pairs),
        "prm/brier": float(((probability - batch.outcome) ** 2).mean()),
        "prm/score_right": float(done.fresh_scores[batch.outcome > 0.5].mean()),
        "prm/score_wrong": float(done.fresh_scores[batch.outcome <= 0.5].mean()),
        "prm/loss": done.loss,
        "prm/grad_norm": done.grad_norm,
        "prm/lr": done.lr,
    } | ({} if trainer.skill is None else {"prm/skill": trainer.skill})
    return done.rewards, metrics


def gated(config: AdvantageConfig, trainer: PRMTrainer | None) -> AdvantageConfig:
    """The settings with the process weight that the PRM's skill leaves, where a gate is asked for."""
    if trainer is None or not config.skill_gate:
        return config
    weight = config.process_weight * adv.skill_gate(trainer.skill or 0.0)
    return config.model_copy(update={"process_weight": weight})


def compute_advantages(
    batch: Batch, rewards: Tensor, config: AdvantageConfig
) -> tuple[Tensor, dict[str, float]]:
    """Advantages [B, T] from token rewards and outcomes, and how their variance splits."""
    mask, how = batch.response_mask, adv.Centring(config.estimator, config.preset)
    positions = reward_positions(mask, batch.step_end, config.granularity)
    placed = gather_rewards(rewards, positions)
    if config.scales_by_return:
        placed = scale_by_return(placed, adv.returns_to_go(placed, mask, config.process_gamma).abs().max())
    process = adv.returns_to_go(adv.centre(placed, positions, batch.group, how), mask, config.process_gamma)
    ends = reward_positions(mask, batch.step_end, "response")
    centred = adv.centre(adv.outcome_rewards(batch.outcome, mask), ends, batch.group, how)
    outcome = adv.returns_to_go(centred, mask, config.outcome_gamma)
    advantages = adv.combine(process, outcome, config.process_weight, config.outcome_weight)
    if config.whitens:
        advantages = adv.whiten(advantages, mask, adv.moments(advantages, mask))
    spread = {
        "advantage/process_std": config.process_weight * float(process[mask].std()),
        "advantage/outcome_std": config.outcome_weight * float(outcome[mask].std()),
        "advantage/std": float(advantages[mask].std()),
    }
    return advantages, spread


def importance(policy: Learner, batch: Batch, ceiling: float) -> tuple[Batch, Tensor, dict[str, float]]:
    """The batch with the policy's own log-probabilities as the old ones, tokens' importance weights, the mismatch.

    Where `ceiling` is 0: the batch as it is, whose old log-probabilities are the sampler's, and weights of 1.
    """
    mask = batch.response_mask
    if not ceiling:
        return batch, torch.ones_like(batch.logprobs), {}
    own = policy.logprobs(batch)
    weights = importance_weights(own, batch.logprobs, mask, ceiling)
    gap = (own - batch.logprobs)[mask]
    metrics = {
        "policy/mismatch_mean": float(gap.abs().mean()),
        "policy/mismatch_max": float(gap.abs().max()),
        "policy/importance_mean": float(weights[mask].mean()),
        "policy/importance_truncated": float((gap > math.log(ceiling)).float().mean()),
    }
    return replace(batch, logprobs=own), weights, metrics


def update_policy(
    policy: Learner, batch: Batch, advantages: Tensor, config: PolicyConfig, generator: torch.Generator
) -> dict[str, float]:
    """Clipped policy updates on minibatches of responses; `batch.logprobs` are the old log-probabilities."""
    done, sums = [], torch.zeros(3, dtype=torch.float64)
    mismatch: dict[str, float] = {}
    for _ in range(config.epochs):
        order = torch.randperm(len(batch), generator=generator).to(batch.token_ids.device)
        for rows in order.tensor_split(-(-len(batch) // config.minibatch)):
            part = batch.select(rows)
            advantage = advantages[rows, : part.token_ids.shape[1]]
            weights, denominator = token_weights(part.response_mask, config.reduction)

            def loss(
                logprobs: Tensor, micro: Batch, at: Tensor, advantage=advantage, weights=weights
            ) -> Tensor:
                width = logprobs.shape[1]
                result = policy_loss(
                    logprobs,
                    micro.logprobs,
                    advantage[at, :width],
                    weights[at, :width],
                    config.clip_low,
                    config.clip_high,
                )
                sums.add_(torch.stack([result.clipped, result.kl, weights[at, :width].sum()]).double().cpu())
                return result.loss

            update = policy.update(part, loss, denominator)
            if not done:  # before any update: the trainer's view of the sampler's tokens (trap 12)
                gap = (update.logprobs - part.logprobs)[part.response_mask].abs()
                mismatch = {
                    "policy/mismatch_mean": float(gap.mean()),
                    "policy/mismatch_max": float(gap.max()),
                }
            done.append(update)
    all_sum(sums)
    return {
        "policy/loss": sum(update.loss for update in done) / len(done),
        "policy/grad_norm": sum(update.grad_norm for update in done) / len(done),
        "policy/clip_fraction": float(sums[0] / sums[2]),
        "policy/kl": float(sums[1] / sums[2]),
        "policy/lr": done[-1].lr,
    } | mismatch


def samples(step: int, groups: list[Group], rewards: Tensor, batch: Batch, tokenizer) -> list[dict]:
    """The first two groups of a batch with the process reward of every token."""
    rows = []
    for b in (batch.group < 2).nonzero()[:, 0].tolist():
        mask = batch.response_mask[b]
        prompt = groups[int(batch.group[b])].prompt
        tokens = [tokenizer.decode([token]) for token in batch.token_ids[b][mask].tolist()]
        rows.append(
            {
                "step": step,
                "prompt": prompt.messages,
                "answer": prompt.answer,
                "outcome": float(batch.outcome[b]),
                "tokens": tokens,
                "rewards": [round(value, 5) for value in rewards[b][mask].tolist()],
            }
        )
    return rows


def evaluate(parts: Parts, config: RLConfig) -> dict[str, float]:
    """Accuracy on held-out prompts."""
    if not parts.held_out:
        return {}
    tokens = config.eval.max_response_tokens or config.rollout.max_response_tokens
    with parts.run.clock.phase("evaluate"):
        return measure(parts.engine, parts.held_out, parts.pool, config.eval.samples, tokens, config.seed)


def with_times(metrics: dict[str, float]) -> dict[str, float]:
    """Add the whole step's seconds and the engine's tokens a second."""
    beside = {"time/evaluate"} | ({"time/rollout", "time/verify"} if "time/wait" in metrics else set())
    phases = [name for name in metrics if name.startswith("time/") and name not in beside]
    seconds = sum(metrics[name] for name in phases)
    speed = metrics["rollout/tokens"] / metrics["time/rollout"]
    return metrics | {"time/step": seconds, "rollout/tokens_per_second": speed}


def record(run: Run, bar: Bar, step: int, metrics: dict[str, float]) -> None:
    """Log a step's metrics and say what was evaluated."""
    run.log(step, metrics)
    if "eval/greedy" in metrics:
        bar.say(f"step {step}: held-out accuracy, greedy {metrics['eval/greedy']:.3f}" + sampled(metrics))


def headline(metrics: dict[str, float]) -> dict[str, str]:
    """The numbers that matter while it runs."""
    shown = {"accuracy": f"{metrics['rollout/accuracy']:.3f}", "passed": f"{metrics['rollout/passed']:.2f}"}
    if "prm/pairwise_accuracy" in metrics:
        shown["prm pairs"] = f"{metrics['prm/pairwise_accuracy']:.3f}"
    shown["tok/s"] = f"{metrics['rollout/tokens_per_second']:,.0f}"
    return shown | {"s/step": f"{metrics['time/step']:.2f}"}


def sampled(metrics: dict[str, float]) -> str:
    """avg@k, where it was measured."""
    names = [name for name in metrics if name.startswith("eval/avg@")]
    return "".join(f", {name.removeprefix('eval/')} {metrics[name]:.3f}" for name in names)
