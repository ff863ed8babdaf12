"""A language model of two narrow blocks, ragged batches for it, and its log-probabilities written out."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from openprime.types import Batch

VOCABULARY = 40
GROUP, OUTCOMES = (0, 0, 0, 1, 1, 2, 2, 2), (1, 0, 1, 0, 0.5, 1, 1, 0)
"""Groups of 3, 2 and 3; a soft outcome; pairs in every group."""


def make_model(seed: int = 0, **changes) -> PreTrainedModel:
    """A Qwen2 model with random weights; `changes` to its configuration."""
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**(options | changes)))


def make_batch(group: Sequence[int] = GROUP, outcomes: Sequence[float] = OUTCOMES, seed: int = 0) -> Batch:
    """Prompts of 1 to 4 tokens and responses of 1 to 9; a token in three ends a step, and so does the last."""
    rng = random.Random(f"batch-{seed}")
    prompts = [rng.randint(1, 4) for _ in group]
    lengths = [prompt + rng.randint(1, 9) for prompt in prompts]
    token_ids = torch.full((len(group), max(lengths)), 3)
    mask = torch.zeros(token_ids.shape, dtype=torch.bool)
    step_end = torch.zeros_like(mask)
    logprobs = torch.zeros(token_ids.shape)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        token_ids[row, :length] = torch.tensor([rng.randrange(VOCABULARY) for _ in range(length)])
        mask[row, prompt:length] = True
        step_end[row, list(range(prompt, length))[::-3]] = True
        logprobs[row, prompt:length] = torch.tensor([-rng.random() * 4 for _ in range(length - prompt)])
    return Batch(
        token_ids=token_ids,
        response_mask=mask,
        lengths=torch.tensor(lengths),
        outcome=torch.tensor([float(outcome) for outcome in outcomes]),
        group=torch.tensor(list(group)),
        logprobs=logprobs,
        step_end=step_end,
    )


def naive_distributions(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> list[Tensor]:
    """B x [T_b, V]: log p(. | tokens before t) of each row's response tokens, one row at a time, with autograd."""
    found = []
    for ids, mask, length in zip(batch.token_ids, batch.response_mask, batch.lengths.tolist(), strict=True):
        logits = model(input_ids=ids[None, :length], use_cache=False).logits[0] / temperature
        found.append(logits.log_softmax(-1)[:-1][mask[1:length]])
    return found


def naive_logprobs(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """[B, T]: log p of the response tokens from the model's own logits, with autograd; 0 elsewhere."""
    tables, mask = torch.cat(naive_distributions(model, batch, temperature)), batch.response_mask
    values = tables.gather(-1, batch.token_ids[mask][:, None])[:, 0]
    return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values)


def catch_gradients(optimizer: torch.optim.Optimizer) -> list[list[Tensor]]:
    """A list that gets the gradients of all parameters at each of the optimiser's steps."""
    caught: list[list[Tensor]] = []

    def note(*_) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        caught.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

    optimizer.register_step_pre_hook(note)
    return caught


def weights(model: torch.nn.Module) -> Tensor:
    """A copy of all parameters as one vector."""
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])
