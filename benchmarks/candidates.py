"""Ways to use process rewards that `openprime rl` does not offer, for `sample_efficiency.py` alone.

Each is a `Candidate` that stands in for functions of `openprime.prime.loop` while one run goes on. What it changes is
the reward and its credit; sampling, filter, learner and records are those of the package.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openprime.prime import loop as rl
from openprime.prime.advantages import Centring, centre
from openprime.prime.distill import Distiller
from openprime.prime.rewards import pairwise_accuracy, response_scores
from openprime.tasks.clock import check_steps
from openprime.types import Batch, Group


@dataclass(frozen=True)
class Candidate:
    """What stands in for the package's own way. The defaults change nothing."""

    checker: bool = False
    """Analysis only: the oracle step checker, `tasks.clock.check_steps`, instead of a PRM. Upper bound."""
    credit: str = "package"
    """package; token: A_t = r_t - E_pi[r], with the expectation over the vocabulary exact, gamma 0."""
    clip: tuple[float, float] = (-float("inf"), float("inf"))
    """Bounds of log phi - log ref, in nats, before it is a reward (credit token)."""
    prm_updates: int = 1
    """PRM updates on a step's groups."""
    prm_is_policy: bool = False
    """Of `algorithm: distill`, the PRM itself is the next policy: nothing is distilled."""


class Lab:
    """One run with a candidate."""

    def __init__(self, how: Candidate) -> None:
        self.how = how
        self.parts: Any = None
        self.groups: list[Group] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """In place of the package's functions."""
        names = ("prepare", "collate", "process_rewards", "compute_advantages", "Distiller")
        before = {name: getattr(rl, name) for name in names}
        self.before = before
        for name in names[:-1]:
            setattr(rl, name, getattr(self, name))
        if self.how.prm_is_policy:
            rl.Distiller = Undistilled
        try:
            yield
        finally:
            for name, function in before.items():
                setattr(rl, name, function)

    def prepare(self, config, pool):
        self.config = config
        self.parts = self.before["prepare"](config, pool)
        return self.parts

    def collate(self, groups: list[Group], step_ends, pad: int) -> Batch:
        self.groups = groups
        return self.before["collate"](groups, step_ends, pad)

    def process_rewards(self, prm, batch: Batch, run) -> tuple[Tensor, dict[str, float]]:
        if self.how.checker:
            rewards, metrics = self.checked(batch), {}
        elif self.how == Candidate() or prm is None:
            rewards, metrics = self.before["process_rewards"](prm, batch, run)
        else:
            with run.clock.phase("prm"):
                rewards, metrics = self.scored(prm, batch)
        return rewards, metrics

    def checked(self, batch: Batch) -> Tensor:
        """1 on every token of a right line, 0 on those of a wrong one."""
        rewards = torch.zeros_like(batch.logprobs)
        responses = [(g.prompt, r) for g in self.groups for r in g.responses if r.outcome is not None]
        ends = self.parts.step_ends
        for b, (prompt, response) in enumerate(responses):
            right = check_steps(str(prompt.messages), response.text)
            line, values = 0, []
            for token in response.token_ids:
                values.append(float(right[line]) if line < len(right) else float(all(right)))
                line += token in ends
            start = len(prompt.token_ids)
            rewards[b, start : start + len(values)] = torch.tensor(values)
        return rewards

    def scored(self, prm, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Scores of all tokens, then the PRM's updates."""
        if self.how.credit == "package":
            reference = prm.prm.reference_logprobs(batch)
            rewards = prm.prm.token_rewards(batch, reference)
        else:
            rewards, reference, self.process = self.expected(prm, batch)
        won, pairs = pairwise_accuracy(response_scores(rewards), batch.outcome, batch.group)
        now = float(won / pairs)
        prm.judge(now)
        metrics = {"prm/pairwise_accuracy": now}
        for _ in range(self.how.prm_updates):
            losses, _, _, _ = prm.update(batch, reference)
            metrics["prm/loss"] = sum(losses) / len(losses)
        return rewards, metrics

    @torch.no_grad()
    def expected(self, prm, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Token rewards, log ref of the tokens, and each clipped reward less what the policy expects, [B, T]."""
        rows, columns = batch.response_mask.nonzero(as_tuple=True)
        targets = batch.token_ids[rows, columns]
        phi = logits_of(prm.prm.model, batch, rows, columns).log_softmax(-1)
        pi = logits_of(self.parts.policy.model, batch, rows, columns).log_softmax(-1)
        ref = (
            pi
            if prm.prm.reference is None
            else logits_of(prm.prm.reference, batch, rows, columns).log_softmax(-1)
        )
        ratio = (phi - ref).clamp(*self.how.clip)
        expected = (pi.exp() * ratio).sum(-1)
        put = lambda values: torch.zeros_like(batch.logprobs).index_put((rows, columns), values)  # noqa: E731
        pick = lambda values: values.gather(-1, targets[:, None])[:, 0]  # noqa: E731
        rewards = put(prm.prm.beta * pick(phi - ref))
        return rewards, put(pick(ref)), put(pick(ratio) - expected)

    def compute_advantages(self, batch: Batch, rewards: Tensor, config):
        weight, mask = config.process_weight, batch.response_mask
        if self.how.checker:
            how = Centring(config.estimator, config.preset)
            process = centre(rewards, mask, batch.group, how) * mask
        elif self.how.credit == "token":
            process = self.process
        else:
            return self.before["compute_advantages"](batch, rewards, config)
        outcome = torch.zeros_like(process)
        if config.outcome_weight:
            only = config.model_copy(update={"process_weight": 0.0})
            outcome, _ = self.before["compute_advantages"](batch, torch.zeros_like(rewards), only)
        spread = {
            "advantage/process_std": weight * float(process[mask].std()),
            "advantage/outcome_std": float(outcome[mask].std()),
        }
        return weight * process + outcome, spread


class Undistilled(Distiller):
    """The PRM is the policy that its rewards ask for with beta = 1; here it becomes the policy as it is."""

    def teach(self, policy, batch: Batch, config, generator) -> dict[str, float]:
        policy.model.load_state_dict(self.prm.model.state_dict())
        return {}


def logits_of(model, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
    """Logits that say the tokens at (rows, columns), [N, V]."""
    hidden = model.base_model(input_ids=batch.token_ids, use_cache=False).last_hidden_state
    return torch.nn.functional.linear(hidden[rows, columns - 1], model.get_output_embeddings().weight).float()


def only_changed(how: Candidate) -> dict:
    """For records."""
    default = Candidate()
    return {k: v for k, v in dataclasses.asdict(how).items() if v != getattr(default, k)}
