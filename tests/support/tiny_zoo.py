"""Causal language models of several architectures with random weights, small enough for any test."""

import torch
from transformers import (
    CohereForCausalLM,
    Gemma2ForCausalLM,
    GPT2LMHeadModel,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

VOCABULARY = 60
COMMON = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1}
SIZES = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}
KINDS: dict[str, tuple[type, dict]] = {
    "llama": (LlamaForCausalLM, SIZES),
    "mistral": (MistralForCausalLM, SIZES | {"sliding_window": 6, "head_dim": 8}),
    "gpt2": (GPT2LMHeadModel, COMMON | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "qwen2": (Qwen2ForCausalLM, SIZES),
    "qwen3": (Qwen3ForCausalLM, SIZES | {"head_dim": 8}),
    "phi": (PhiForCausalLM, SIZES),
    "gemma2": (
        Gemma2ForCausalLM,
        SIZES | {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 3.0},
    ),
    "cohere": (CohereForCausalLM, SIZES | {"logit_scale": 2.5}),
    "granite": (GraniteForCausalLM, SIZES | {"logits_scaling": 0.5}),
}
PLAIN = (
    *("llama", "llama tied", "mistral, sliding window", "gpt2 tied", "gpt2", "qwen2", "qwen2 tied", "qwen3"),
    "phi, head with a bias",
)
SCALED = ("gemma2, capped logits", "cohere, scaled logits", "granite, scaled logits")
"""Their logits are no linear function of the last hidden state."""


def make(name: str, seed: int = 0, **changes) -> PreTrainedModel:
    """The model of this name, in evaluation mode; logits of a few units."""
    kind = name.split(",")[0].split()[0]
    model_class, sizes = KINDS[kind]
    sizes = sizes | {"tie_word_embeddings": "tied" in name or kind == "gemma2"} | changes
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**sizes))
    if kind == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    return model.eval()


def logits_of_head(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The logits of a hidden state as the architecture's paper defines them, in the state's precision."""
    head, config = model.get_output_embeddings(), model.config
    logits = hidden @ head.weight.to(hidden.dtype).T
    if head.bias is not None:
        logits = logits + head.bias.to(hidden.dtype)
    if config.model_type == "gemma2":
        logits = config.final_logit_softcapping * torch.tanh(logits / config.final_logit_softcapping)
    elif config.model_type == "cohere":
        logits = logits * config.logit_scale
    elif config.model_type == "granite":
        logits = logits / config.logits_scaling
    return logits
