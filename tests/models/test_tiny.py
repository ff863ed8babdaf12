"""The model and the tokenizer made on the spot."""

import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from openprime.models.tiny import CHAT_TEMPLATE, END, PAD, START, build_model, build_tokenizer

TEXTS = ["Start four\n+seven = ?\n*three = ?", "+seven one\n*three three\n#### 8"] * 20
MESSAGES = [{"role": "user", "content": "Start four\n+seven = ?"}]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """Not changed by any test."""
    return build_tokenizer(TEXTS, 320)


@settings(max_examples=200, deadline=None, derandomize=True)
@example("")
@example("\n\n\t")
@example("  two  spaces , and . points !")
@example("äöü 数学 🙂 don't\r\n")
@given(st.text())
def test_build_tokenizer__any_text_is_decoded_back(tokenizer: PreTrainedTokenizerBase, text: str):
    """Back to its composed form (NFC), which Qwen2's tokenizers write."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_build_tokenizer__training_text_takes_fewer_tokens_than_bytes(tokenizer: PreTrainedTokenizerBase):
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2


def test_build_tokenizer__special_tokens_are_one_token_each(tokenizer: PreTrainedTokenizerBase):
    """And no other text makes them."""
    special = [tokenizer.convert_tokens_to_ids(token) for token in (START, END, PAD)]
    assert len(set(special)) == 3
    assert tokenizer.encode(f"{START}{END}{PAD}", add_special_tokens=False) == special
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    others = tokenizer.encode("im_start | <|im end|> endoftext", add_special_tokens=False)
    assert not set(special) & set(others)


def test_build_tokenizer__the_vocabulary_keeps_to_its_limit(tokenizer: PreTrainedTokenizerBase):
    assert len(tokenizer) <= 320
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1


def test_build_tokenizer__the_chat_format(tokenizer: PreTrainedTokenizerBase):
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == f"{START}user\nStart four\n+seven = ?{END}\n{START}assistant\n"
    assert START not in tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_build_tokenizer__survives_saving(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, beside_a_model: bool
):
    """Beside a config.json, AutoTokenizer picks the class of the architecture."""
    if beside_a_model:
        build_model(tokenizer, 32, 1, 4, 64, 0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS[:2], "Ünïcode  数学 1234 don't\n\n#### 8", f"{START}user\nhello{END}"):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert len(loaded) == len(tokenizer)
    assert loaded.chat_template == tokenizer.chat_template == CHAT_TEMPLATE
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_build_tokenizer__is_deterministic():
    one, two = (build_tokenizer(TEXTS, 300).get_vocab() for _ in range(2))
    assert one == two


def test_build_model__weights_follow_from_the_seed_alone(tokenizer: PreTrainedTokenizerBase):
    """They do not depend on the global random states, nor change them."""

    def weights(seed: int) -> torch.Tensor:
        model = build_model(tokenizer, 32, 2, 4, 64, seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    torch.manual_seed(1)
    before = states()
    first = weights(3)
    assert states() == before
    torch.manual_seed(2)
    assert torch.equal(weights(3), first)
    assert not torch.equal(weights(4), first)


def test_build_model__is_as_described(tokenizer: PreTrainedTokenizerBase):
    model = build_model(tokenizer, 32, 2, 4, 64, 0)
    assert model.config.vocab_size == len(tokenizer)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.dtype == torch.float32
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    logits = model(torch.arange(6)[None]).logits
    assert logits.shape == (1, 6, len(tokenizer))
    assert bool(logits.isfinite().all())
