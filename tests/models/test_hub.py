"""Model folders: what is written can be read, by us and by others; what is no language model is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from openprime.models.hub import (
    end_tokens,
    load_model,
    load_tokenizer,
    named_end_tokens,
    save_model,
)
from openprime.models.tiny import build_model, build_tokenizer
from openprime.types import UserError
from support.tiny_zoo import make

TEXT = "Start four\n+seven = ? 1234  数学"
IDS = torch.tensor([[5, 1, 7, 20, 3, 3, 12]])


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """Small, with a chat template."""
    return build_tokenizer(["Start four\n+seven = ?"] * 20, 300)


@pytest.fixture
def small(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The tiny model that belongs to the tokenizer, in evaluation mode."""
    return build_model(tokenizer, 32, 2, 4, 64, 0).eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("name", ["llama", "llama tied", "qwen2", "qwen2 tied", "gpt2 tied", "phi"])
def test_save_model__logits_are_the_same_bit_for_bit(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    """When others read it too; what was in the folder before is replaced."""
    save_model(make(name, seed=1), tokenizer, tmp_path)
    model = make(name)
    save_model(model, tokenizer, tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))
    assert (tmp_path / "model.safetensors").is_file()
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == ("tied" in name)


def test_save_model__the_tokenizer_keeps_its_ids_and_its_chat_template(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    save_model(small, tokenizer, tmp_path)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": TEXT}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    for loaded in (load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
        assert loaded.chat_template == tokenizer.chat_template
        assert loaded.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == rendered


def test_load_model__weights_are_float32_whatever_the_file_holds(tmp_path: Path):
    make("llama").bfloat16().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def masked(folder: Path, _: PreTrainedModel) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=40, **sizes)).save_pretrained(folder)


def encoder_decoder(folder: Path, _: PreTrainedModel) -> None:
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def half(folder: Path, model: PreTrainedModel) -> None:
    """As an interrupted copy leaves it."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("make_folder", "message"),
    [
        (masked, r"not a causal language model.*BertForMaskedLM"),
        (encoder_decoder, r"not a causal language model.*T5ForConditionalGeneration"),
        (lambda folder, _: folder.rmdir(), "model: neither a model folder"),
        (lambda *_: None, r"no readable config\.json"),
        (lambda folder, _: (folder / "config.json").write_text("{"), r"no readable config\.json"),
        (lambda folder, model: model.config.save_pretrained(folder), "its weights cannot be read"),
        (half, "its weights cannot be read"),
    ],
)
def test_load_model__what_is_no_language_model_is_refused(
    make_folder: Callable[[Path, PreTrainedModel], object],
    message: str,
    small: PreTrainedModel,
    tmp_path: Path,
):
    (tmp_path / "model").mkdir()
    make_folder(tmp_path / "model", small)
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path / "model"))


def test_load_tokenizer__a_folder_without_one_is_refused(small: PreTrainedModel, tmp_path: Path):
    small.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=f"{folder.name}: no tokenizer"):
            load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("listed", "own", "expected"),
    [(7, True, {7}), ([7, 9], True, {7, 9}), (None, True, set()), ([7, 9], False, {7, 9}), (0, False, {0})],
)
def test_end_tokens__are_those_of_the_generation_configuration_and_the_tokenizers_own(
    listed,
    own: bool,
    expected: set[int],
    small: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
):
    """Of a model, of its folder, and of a folder that another program loads, in older ones from config.json."""
    expected = expected | ({tokenizer.eos_token_id} if own else set())
    if not own:
        tokenizer.eos_token = tokenizer.chat_template = None
    small.generation_config = GenerationConfig(eos_token_id=listed)
    save_model(small, tokenizer, tmp_path)
    name = str(tmp_path)
    assert end_tokens(small, tokenizer) == expected
    assert end_tokens(load_model(name), load_tokenizer(name)) == expected
    assert named_end_tokens(name, tokenizer) == expected
    (tmp_path / "generation_config.json").unlink()
    assert named_end_tokens(name, tokenizer) == {small.config.eos_token_id}
    assert end_tokens(load_model(name), tokenizer) == {small.config.eos_token_id}


def test_end_tokens__a_model_that_never_ends_is_refused(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
):
    tokenizer.eos_token = None
    small.generation_config = GenerationConfig(eos_token_id=None)
    assert len(end_tokens(small, tokenizer)) == 1  # the chat template's
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="end-of-sequence"):
        end_tokens(small, tokenizer)
