"""A small model, and random ragged batches for it."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from openprime.types import Batch

VOCABULARY = 40


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """(seed, **changes to the configuration) -> a Qwen2 model of two narrow blocks."""

    def make(seed: int = 0, **changes) -> PreTrainedModel:
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

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """(group, outcomes, seed) -> a batch with prompts of 1 to 4 tokens and responses of 1 to 9."""

    def make(group: Sequence[int], outcomes: Sequence[float], seed: int = 0) -> Batch:
        rng = random.Random(f"batch-{seed}")
        prompts = [rng.randint(1, 4) for _ in group]
        lengths = [prompt + rng.randint(1, 9) for prompt in prompts]
        width = max(lengths)
        token_ids = torch.full((len(group), width), 3)
        mask = torch.zeros(len(group), width, dtype=torch.bool)
        logprobs = torch.zeros(len(group), width)
        for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            token_ids[row, :length] = torch.tensor([rng.randrange(VOCABULARY) for _ in range(length)])
            mask[row, prompt:length] = True
            logprobs[row, prompt:length] = torch.tensor([-rng.random() * 4 for _ in range(length - prompt)])
        return Batch(
            token_ids=token_ids,
            response_mask=mask,
            lengths=torch.tensor(lengths),
            outcome=torch.tensor([float(outcome) for outcome in outcomes]),
            group=torch.tensor(list(group)),
            logprobs=logprobs,
            step_end=torch.zeros_like(mask),
        )

    return make


@pytest.fixture
def naive_logprobs() -> Callable[..., torch.Tensor]:
    """(model, batch, temperature) -> [B, T] from the model's own logits, row by row, with autograd."""

    def logprobs(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
        width = batch.token_ids.shape[1]
        rows = []
        for ids, mask, length in zip(
            batch.token_ids, batch.response_mask, batch.lengths.tolist(), strict=True
        ):
            table = (
                model(input_ids=ids[None, :length], use_cache=False).logits[0] / temperature
            ).log_softmax(-1)
            zero = table.new_zeros(())
            values = [table[t - 1, ids[t]] if mask[t] else zero for t in range(length)]
            rows.append(torch.stack(values + [zero] * (width - length)))
        return torch.stack(rows)

    return logprobs


@pytest.fixture
def catch_gradients() -> Callable[..., list[list[torch.Tensor]]]:
    """(optimizer) -> a list that gets the gradients of all parameters at each of its steps."""

    def catch(optimizer: torch.optim.Optimizer) -> list[list[torch.Tensor]]:
        caught: list[list[torch.Tensor]] = []

        def note(*_) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            caught.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

        optimizer.register_step_pre_hook(note)
        return caught

    return catch


@pytest.fixture
def weights() -> Callable[[torch.nn.Module], torch.Tensor]:
    """(model) -> a copy of all its parameters as one vector."""
    return lambda model: torch.cat([p.detach().flatten().clone() for p in model.parameters()])
