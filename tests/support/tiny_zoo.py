"""Causal language models of several architectures with random weights, small enough for any test."""

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 60
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GPT2_SIZES = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
PLAIN = (
    "llama",
    "llama tied",
    "mistral, sliding window",
    "gpt2 tied",
    "gpt2",
    "qwen2",
    "qwen2 tied",
    "qwen3",
    "phi, head with a bias",
)
SCALED = ("gemma2, capped logits", "cohere, scaled logits", "granite, scaled logits")
"""Their logits are no linear function of the last hidden state."""


def make(name: str, seed: int = 0, **changes) -> PreTrainedModel:
    """The model of this name, in evaluation mode; logits of a few units."""
    kind, tied = name.split(",")[0].split()[0], "tied" in name
    sizes = (GPT2_SIZES if kind == "gpt2" else SIZES) | {"tie_word_embeddings": tied} | changes
    torch.manual_seed(seed)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=6, head_dim=8))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**sizes))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    elif kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8))
    elif kind == "phi":
        model = PhiForCausalLM(PhiConfig(**sizes))
        torch.nn.init.normal_(model.lm_head.bias)
    elif kind == "gemma2":
        sizes |= {"tie_word_embeddings": True}
        options = {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 3.0}
        model = Gemma2ForCausalLM(Gemma2Config(**(options | sizes)))
    elif kind == "cohere":
        model = CohereForCausalLM(CohereConfig(**(sizes | {"logit_scale": 2.5})))
    else:
        assert kind == "granite"
        model = GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=0.5))
    return model.eval()


def logits_of_head(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """The logits of a hidden state as the architecture's paper defines them, in the state's precision."""
    head, config = model.get_output_embeddings(), model.config
    logits = hidden @ head.weight.to(hidden.dtype).T
    if head.bias is not None:
        logits = logits + head.bias.to(hidden.dtype)
    if config.model_type == "gemma2":
        cap = config.final_logit_softcapping
        logits = cap * torch.tanh(logits / cap)
    elif config.model_type == "cohere":
        logits = logits * config.logit_scale
    elif config.model_type == "granite":
        logits = logits / config.logits_scaling
    return logits
