"""The one thing that trains: SFT, policy and PRM are a Learner with another loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from openprime.config import OptimizerConfig
from openprime.models.lm import LM
from openprime.models.lora import trained_parameters
from openprime.ranks import all_sum, world
from openprime.run.checkpoint import SHARDS, load_shards
from openprime.types import Batch, NonFiniteError

Loss = Callable[[Tensor, Batch], Tensor]
"""(log-probabilities [b, t], or of candidates [b, t, 1 + k]; micro-batch) -> the SUM of the loss over it."""


@dataclass(frozen=True, slots=True)
class Update:
    """Result of one optimiser step."""

    loss: float
    grad_norm: float
    """Before clipping."""
    lr: float
    logprobs: Tensor
    """The forward pass's own log-probabilities, [B, T]: those of the weights before the step."""


class Learner:
    """A language model, its AdamW and its schedule."""

    def __init__(self, lm: LM, config: OptimizerConfig, total_updates: int) -> None:
        """Trains the model's adapter alone where it has one, else all its weights."""
        self.lm = replace(lm, tokens_per_microbatch=config.tokens_per_microbatch)
        self.trained = trained_parameters(lm.model, lm.adapter)
        self.config, self.total_updates, self.updates = config, total_updates, 0
        if config.gradient_checkpointing:
            lm.model.gradient_checkpointing_enable({"use_reentrant": False})
            _train_without_dropout(lm.model)
        else:
            # Dropout would make the same tokens' log-probabilities differ between sampler and trainer.
            lm.model.eval()
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=config.lr,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        if lm.device.type == "cuda":
            self._tensors()  # moments before an engine takes its share, and in no hole that activations leave

    @property
    def parameters(self) -> int:
        """How many numbers it trains: of a model in shares, of all ranks."""
        return sum(weight.numel() for weight in self.trained.values())

    def update(
        self,
        batch: Batch,
        loss: Loss,
        denominator: float,
        whole_groups: bool = False,
        candidates: bool = False,
    ) -> Update:
        """One optimiser step on the whole batch, in micro-batches, which the ranks share.

        The batch is the same on every rank, and so is what is returned; only `loss` sees a rank's own rows.
        `denominator` divides the summed loss once, whatever the micro-batches (trap 9). With `whole_groups` the
        rows of a group stay in one micro-batch. With `candidates` the loss gets the log-probabilities of those of
        the batch, of which the first is the token itself. Raises NonFiniteError before the step.
        """
        total, logprobs = self._backward(batch, loss, denominator, whole_groups, candidates)
        norm = self._clip(self.config.clip_grad)
        if not (math.isfinite(total) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(f"loss {total}, gradient norm {norm}: the optimiser step was not taken")
        rate = learning_rate(self.config, self.updates, self.total_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return Update(total, norm, rate, all_sum(logprobs))

    def gradient_norm(self, batch: Batch, loss: Loss, denominator: float) -> float:
        """Norm of the gradient that `update` would step along, before clipping; no step is taken."""
        self._backward(batch, loss, denominator, whole_groups=False, candidates=False)
        norm = self._clip(math.inf)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _backward(
        self, batch: Batch, loss: Loss, denominator: float, whole_groups: bool, candidates: bool
    ) -> tuple[float, Tensor]:
        """Fill the gradients, as `update` says. Returns the loss, and this rank's log-probabilities [B, T].

        Copies of a model (`Placement.replicas`) add up their gradients once, with the last micro-batch. Where weights
        are offloaded they do so with each, since what has not been added up stays on the GPU.
        """
        forward = self.lm.forward_candidates if candidates else self.lm.forward
        self.optimizer.zero_grad(set_to_none=True)
        logprobs = torch.zeros(batch.token_ids.shape, device=batch.token_ids.device)  # [B, T]
        total = torch.zeros((), dtype=torch.float64, device=logprobs.device)
        for micro in self.lm.micro_batches(batch, whole_groups):  # nothing within is read by the host
            rows = micro.rows
            if isinstance(self.lm.model, FSDPModule) and not self.lm.place.cpu_offload:
                self.lm.model.set_requires_all_reduce(micro.last)
            with self.lm.active():  # around the backward pass, which may compute again
                current = forward(micro.batch, micro.layout)  # [b, t] or [b, t, 1 + k]
                part = loss(current, micro.batch) / denominator if len(rows) else 0.0 * current.sum()
                (part * world()).backward()  # FSDP takes the mean over ranks: this makes it the sum (trap 2)
            total += part.detach()
            own = current.detach()[: len(rows)]
            # In the batch's order (trap 7).
            logprobs[rows, : own.shape[1]] = own[..., 0] if candidates else own
        for parameter in self.trained.values() if self.lm.adapter and world() > 1 else ():
            assert parameter.grad is not None
            all_sum(parameter.grad).div_(world())  # adapters are not FSDP's: this is its mean
        return float(all_sum(total)), logprobs

    def _clip(self, largest: float) -> float:
        """The gradients' norm, after which it is `largest` at most."""
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), largest)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def state(self) -> dict:
        """Trained weights, optimiser and schedule."""
        if isinstance(self.lm.model, FSDPModule):
            return {"updates": self.updates, SHARDS: self._tensors()}
        own = {name: p.detach() for name, p in self.trained.items()}
        return {
            "model": own if self.lm.adapter else self.lm.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def restore(self, state: dict) -> None:
        """Go on from `state()`, that of another number of ranks too."""
        self.updates = state["updates"]
        if SHARDS in state:
            load_shards(state[SHARDS], self._tensors())
        elif isinstance(self.lm.model, FSDPModule):
            self._take_shares(state)
        else:
            self.lm.model.load_state_dict(state["model"], strict=not self.lm.adapter)
            self.optimizer.load_state_dict(state["optimizer"])

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and what AdamW keeps of each, by name."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.trained.items():
            if parameter.requires_grad or self.lm.adapter:
                if not self.optimizer.state[parameter]:  # before the first step
                    self.optimizer.state[parameter] = {
                        "step": torch.zeros((), device=parameter.device),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
                tensors |= {f"{key}.{name}": value for key, value in self.optimizer.state[parameter].items()}
            tensors[f"weight.{name}"] = parameter.detach()
        return tensors

    def _take_shares(self, state: dict) -> None:
        """This rank's shares of the whole tensors that a single process has saved."""
        moments = state["optimizer"]["state"]
        own = self._tensors()
        for i, name in enumerate(self.trained):
            whole = {"weight": state["model"][name]} | moments.get(i, {})
            for key, tensor in whole.items():
                fill(own[f"{key}.{name}"], tensor)


def fill(target: Tensor, whole: Tensor) -> None:
    """Copy a tensor, which every rank has whole, into one that may be in shares."""
    if isinstance(target, DTensor):
        place = target.device_mesh, target.placements
        whole = distribute_tensor(whole.to(target.device), *place, src_data_rank=None)
    target.copy_(whole)


def minibatches(batch: Batch, size: int, generator: torch.Generator) -> list[Batch]:
    """The batch's rows in a random order, in equal parts of about `size`."""
    return [batch.select(rows) for rows in minibatch_rows(batch, size, generator)]


def minibatch_rows(batch: Batch, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The rows of each of `minibatches`."""
    order = torch.randperm(len(batch), generator=generator).to(batch.token_ids.device)
    return order.tensor_split(-(-len(batch) // size))


def learning_rate(config: OptimizerConfig, update: int, total: int) -> float:
    """Rate of optimiser step `update` (from 0) of `total`: linear warm-up, then constant or cosine to 0."""
    warmup = config.warmup if config.warmup >= 1 else config.warmup * total
    if update < warmup:
        return config.lr * (update + 1) / math.ceil(warmup)
    if config.schedule == "constant":
        return config.lr
    done = (update - warmup) / max(1, total - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _train_without_dropout(model: PreTrainedModel) -> None:
    """Training mode, which gradient checkpointing needs, with every dropout off."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # attention keeps its rate as a plain number
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
