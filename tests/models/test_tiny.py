"""The model and the tokenizer made on the spot."""

import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
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
@given(st.text())
def test_any_text_is_encoded_and_decoded_back(tokenizer: PreTrainedTokenizerBase, text: str):
    """Back to its composed form (NFC), which Qwen2's tokenizers write."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n\t", "  two  spaces , and . points !", "äöü 数学 🙂", "don't\r\n"]
)
def test_these_texts_come_back_exactly(tokenizer: PreTrainedTokenizerBase, text: str):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_training_text_takes_fewer_tokens_than_bytes(tokenizer: PreTrainedTokenizerBase):
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2


def test_special_tokens_are_one_token_each_and_no_other_text_makes_them(tokenizer: PreTrainedTokenizerBase):
    special = [tokenizer.convert_tokens_to_ids(token) for token in (START, END, PAD)]
    assert len(set(special)) == 3
    assert tokenizer.encode(f"{START}{END}{PAD}", add_special_tokens=False) == special
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    assert not set(special) & set(
        tokenizer.encode("im_start | <|im end|> endoftext", add_special_tokens=False)
    )


def test_the_vocabulary_keeps_to_its_limit(tokenizer: PreTrainedTokenizerBase):
    assert len(tokenizer) <= 320
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1


def test_the_chat_format(tokenizer: PreTrainedTokenizerBase):
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == f"{START}user\nStart four\n+seven = ?{END}\n{START}assistant\n"
    assert START not in tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)


@pytest.mark.parametrize(
    "text", [*TEXTS[:2], "Ünïcode  数学 1234 don't\n\n#### 8", f"{START}user\nhello{END}"]
)
def test_the_tokenizer_survives_saving(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, text: str):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert len(loaded) == len(tokenizer)
    assert loaded.chat_template == tokenizer.chat_template == CHAT_TEMPLATE
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_the_survivor_of_a_model_folder_is_the_same_too(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    """Beside a config.json, AutoTokenizer picks the class of the architecture."""
    build_model(tokenizer, 32, 1, 4, 64, 0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Start four\n+seven = ? 1234 don't  数学"
    assert loaded.encode(text) == tokenizer.encode(text)


def test_the_same_texts_make_the_same_tokenizer():
    one, two = (build_tokenizer(TEXTS, 300).get_vocab() for _ in range(2))
    assert one == two


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_seed_decides_the_weights(tokenizer: PreTrainedTokenizerBase):
    first, again, other = (weights(build_model(tokenizer, 32, 2, 4, 64, seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_random_state_is_left_alone(tokenizer: PreTrainedTokenizerBase):
    torch.manual_seed(11)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    build_model(tokenizer, 32, 1, 4, 64, 5)
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_the_weights_do_not_depend_on_the_global_random_state(tokenizer: PreTrainedTokenizerBase):
    torch.manual_seed(1)
    one = weights(build_model(tokenizer, 32, 1, 4, 64, 5))
    torch.manual_seed(2)
    assert torch.equal(one, weights(build_model(tokenizer, 32, 1, 4, 64, 5)))


def test_the_model_is_as_described(tokenizer: PreTrainedTokenizerBase):
    model = build_model(tokenizer, 32, 2, 4, 64, 0)
    assert model.config.vocab_size == len(tokenizer)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.dtype == torch.float32
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    logits = model(torch.arange(6)[None]).logits
    assert logits.shape == (1, 6, len(tokenizer))
    assert bool(logits.isfinite().all())
