"""Small models that vLLM can run on a CPU (its attention wants heads of 32), and the prompts put to them."""

from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from openprime.models.hub import end_tokens, save_model
from openprime.models.tiny import build_tokenizer
from openprime.types import Group, Prompt

TOKENIZER = build_tokenizer(["Start four\n+two = ?"] * 5, 290)
VOCABULARY = len(TOKENIZER)
LENGTHS = [5, 1, 9, 40, 256, 300, 299]
"""Some beyond two blocks of vLLM's prefix cache, 128 tokens each on a CPU."""


def build(tied: bool, seed: int) -> PreTrainedModel:
    """Random weights, spread so that greedy decoding is no matter of rounding."""
    end = TOKENIZER.eos_token_id
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        eos_token_id=end,
        pad_token_id=TOKENIZER.pad_token_id,
        bos_token_id=None,
        architectures=["Qwen2ForCausalLM"],
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).eval()
    # What vLLM must not take from a model's folder: it would change the distribution.
    model.generation_config = GenerationConfig(
        eos_token_id=end, do_sample=True, top_k=3, temperature=0.5, repetition_penalty=1.3
    )
    return model


def saved(model: PreTrainedModel, folder: Path) -> str:
    """The model's folder."""
    save_model(model, TOKENIZER, folder)
    return str(folder)


def ends_of(model: PreTrainedModel) -> frozenset[int]:
    """Many tokens that end a response, so that responses end at all sorts of places."""
    return end_tokens(model, TOKENIZER) | frozenset(range(3, VOCABULARY, 29))


def prompts_of(lengths: list[int], seed: int = 0) -> list[Prompt]:
    """Random tokens."""
    g = torch.Generator().manual_seed(seed)
    return [
        Prompt(f"p{i}", tuple(torch.randint(VOCABULARY, (n,), generator=g).tolist()), "", None)
        for i, n in enumerate(lengths)
    ]


def assert_logprobs(model: PreTrainedModel, groups: list[Group], temperature: float) -> None:
    """The responses' log-probabilities are the model's own at this temperature, each response read alone."""
    for group in groups:
        start = len(group.prompt.token_ids)
        for response in group.responses:
            ids = torch.tensor([[*group.prompt.token_ids, *response.token_ids]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, start - 1 : -1].double()
            exact = (logits / (temperature or 1.0)).log_softmax(-1).gather(-1, ids[0, start:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(response.logprobs).double(), exact, atol=1e-4, rtol=0)
