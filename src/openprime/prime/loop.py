"""PRIME's algorithm 1 (arXiv 2502.01456): the loop of `openprime rl`.

                +-------------------------------- new weights ------------------------------+
                v                                                                           |
    prompts --> engine -------------> verifiers ------------> filter                        |
       ^        samples K             an outcome o            keeps groups with             |
       |        responses y           in [0, 1] each          .2 <= mean o <= .8            |
       |                                                         |   |                      |
       +---------- more prompts until the batch is full ---------+   |                      |
                                                                     v                      |
         +------------ Batch: tokens, log-probabilities, outcomes ---+                      |
         |                           |                               |                      |
         v                           v                               v                      |
        PRM phi, reference ref ---> advantages ------------------> policy pi ---------------+
        r_t = beta log(phi / ref)   leave-one-out baselines,       clipped update
                        (eq. 3)     returns to go, process +       (eq. 6)
        then learns from the o      outcome
                        (eq. 4)     (eq. 5)

What differs from the paper, or is left open in it (docs/algorithm.md says why):

1. One PRM update and one pass of policy updates a batch. Rewards are those of the PRM before its update
   (`prm.update: after`); all of a batch is scored by one version of the PRM (trap 4).
2. The old policy of the clipped loss is the sampler itself, by the log-probabilities that it returned (trap 12).
3. The leave-one-out baseline is eq. 5's. Published code scales it differently within a response (trap 1):
   `advantage.preset: released` computes what published code does.
4. Baselines, scaling and whitening take the statistics of the whole batch, whatever the number of ranks (trap 2).
5. A batch is drawn until it is full of groups that pass the filter. Surplus groups are not kept for the next step,
   whose policy is another one; their prompts return to the stream (traps 6 and 8).
"""

from collections.abc import Mapping
from contextlib import closing
from functools import partial

from transformers import PreTrainedTokenizerBase

from openprime.config import RLConfig
from openprime.prime.build import build, judges
from openprime.prime.measures import process_metrics
from openprime.prime.methods import check_mismatch, mismatch_limit
from openprime.prime.rollouts import accuracy
from openprime.run.alarms import alarms
from openprime.run.launch import joined
from openprime.types import Batch, Group, Metrics, Verifier


def train(config: RLConfig, verifiers: Mapping[str, Verifier] | None = None) -> None:
    """Train a policy. Leaves metrics, samples, checkpoints, `model` and the method's models in `config.out`.

    `verifiers`: by name, of this process itself (`Pool`).
    """
    with joined(config), judges(config, verifiers) as pool:
        run, policy, method, engine, rollouts, held_out, tokenizer = build(config, pool)
        longest = config.eval.max_response_tokens or config.rollout.max_response_tokens
        evaluate = partial(accuracy, engine, pool, held_out, config.eval.samples, longest, config.seed)
        with run, closing(rollouts):
            watched = alarms(mismatch_limit(policy.lm, config.policy.mismatch_limit))
            fresh = run.begin({"policy": policy, "method": method}, cursor=rollouts, alarms=watched)
            begun = run.done
            engine.load(policy.lm.tensors(), run.done)
            if fresh or run.unfinished:
                with run.step(run.done), run.measuring("evaluate"):
                    run.log(({"rollout/rollouts": 0} if fresh else {}) | evaluate(run.signals.check))
            for step in run.steps(config.steps, headline):
                with run.step(step):
                    # K responses to each prompt, judged; groups with .2 <= mean outcome <= .8
                    with run.clock.device("rollout"):
                        groups = rollouts.collect(step, run.signals.check)
                    batch = rollouts.batch(groups).to(policy.lm.device)
                    engine.sleep()
                    if step == begun + 1:
                        check_mismatch(policy.lm, batch, config.policy.mismatch_limit)
                    with run.training():
                        # Rewards and advantages; phi and pi learn: read on in methods.py.
                        batch, metrics = method.step(policy, batch)
                        engine.load(policy.lm.tensors(), step)
                    rewards = {"reward/outcome": float(batch.outcome.mean())} | process_metrics(batch)
                    run.log(rewards | rollouts.metrics | metrics)
                    if config.keeps_samples(step):
                        run.sample(samples(step, groups, batch, tokenizer))
                    if run.due(config.eval.every):
                        with run.measuring("evaluate"):
                            run.log(evaluate(run.signals.check))
            run.export("model", lambda folder: policy.lm.save(folder, tokenizer, config.data))
            for name, write in method.models().items():
                run.export(name, write)
            left = ", ".join(f"{name}/" for name in method.models())
            run.note(f"done: {run.folder} holds the policy in model/" + (f", and {left}" if left else ""), "")


def samples(step: int, groups: list[Group], batch: Batch, tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """The first two groups of a batch, for every token what it was worth: what `openprime report` shows."""
    columns = {
        "rewards": batch.rewards,
        "returns": batch.returns,
        "advantages": batch.advantages,
        "logprobs": batch.logprobs,
    }
    judged = [(g, r) for g, group in enumerate(groups) for r in group.responses if r.outcome is not None]
    rows = []
    for b, (g, response) in enumerate(judged[: int((batch.group < 2).sum())]):
        mask, prompt = batch.response_mask[b], groups[g].prompt  # [T]
        row = {"step": step, "group": g, "prompt": prompt.messages, "answer": prompt.answer}
        row |= {"outcome": response.outcome, "reason": response.reason, "truncated": response.truncated}
        row["tokens"] = [tokenizer.decode([token]) for token in response.token_ids]
        for name, values in columns.items():
            if values is not None:
                row[name] = [float(f"{value:.5g}") for value in values[b][mask].tolist()]
        rows.append(row)
    return rows


def headline(metrics: Metrics) -> dict[str, str]:
    """The numbers that matter while it runs."""
    shown = {"accuracy": f"{metrics['rollout/accuracy']:.3f}", "passed": f"{metrics['rollout/passed']:.2f}"}
    if "prm/pairwise_accuracy" in metrics:
        shown["prm pairs"] = f"{metrics['prm/pairwise_accuracy']:.3f}"
    if "speed/policy_mfu" in metrics:
        shown["mfu"] = f"{metrics['speed/policy_mfu']:.2f}"
    if peaks := [
        value for name, value in metrics.items() if name.startswith("memory/") and name.endswith("_peak")
    ]:
        shown["GiB"] = f"{max(peaks):.1f}"
    shown["tok/s"] = f"{metrics['rollout/tokens_per_second']:,.0f}"
    return shown | {"s/step": f"{metrics['time/step']:.2f}"}
