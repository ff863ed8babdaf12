"""A small model of the Qwen2 architecture and its own tokenizer, made in seconds from any text."""

from collections.abc import Iterable

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer of Qwen2's kind with its chat format; any text can be encoded.

    Qwen2's own class and pre-tokenization: AutoTokenizer gives a model of this architecture that class,
    whatever the files say, so another pre-tokenization would be lost on loading.
    """
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        [*texts, *["user\nassistant\nsystem\n"] * 100],
        vocab_size,
        new_special_tokens=[START, END],
        show_progress=False,
    )
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side = END, PAD, "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    tokenizer: PreTrainedTokenizerBase,
    hidden_size: int,
    layers: int,
    heads: int,
    max_positions: int,
    seed: int,
) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 model with tied embeddings, float32."""
    end, pad = tokenizer.convert_tokens_to_ids(END), tokenizer.convert_tokens_to_ids(PAD)
    assert isinstance(end, int)
    assert isinstance(pad, int)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        initializer_range=hidden_size**-0.5,
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=pad,
        bos_token_id=None,
        architectures=["Qwen2ForCausalLM"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, do_sample=True)
    return model
