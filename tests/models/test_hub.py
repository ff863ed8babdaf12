"""Model folders: what is written can be read, by us and by others; what is no language model is refused."""

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

from openprime.models.hub import end_tokens, load_model, load_tokenizer, pad_token, pick_device, save_model
from openprime.models.tiny import build_model, build_tokenizer
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
def test_a_saved_model_has_the_same_logits_bit_for_bit(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    model = make(name)
    save_model(model, tokenizer, tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == ("tied" in name)


def test_others_can_load_the_folder(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    save_model(small, tokenizer, tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(small))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(TEXT) == tokenizer.encode(TEXT)
    assert theirs.chat_template == tokenizer.chat_template
    assert (tmp_path / "model.safetensors").is_file()


def test_the_tokenizer_keeps_its_ids_and_its_chat_template(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    save_model(small, tokenizer, tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": TEXT}]
    rendered = [
        t.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] for t in (loaded, tokenizer)
    ]
    assert rendered[0] == rendered[1]
    assert end_tokens(load_model(str(tmp_path)), loaded) == end_tokens(small, tokenizer)


def test_saving_twice_into_the_same_folder_keeps_the_last(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    save_model(small, tokenizer, tmp_path)
    with torch.no_grad():
        small.get_input_embeddings().weight.add_(0.5)
    save_model(small, tokenizer, tmp_path)
    assert torch.equal(logits(load_model(str(tmp_path))), logits(small))


def test_weights_are_float32_whatever_the_file_holds(tmp_path: Path):
    make("llama").bfloat16().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_masked_language_model_is_refused(tmp_path: Path):
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not a causal language model.*BertForMaskedLM"):
        load_model(str(tmp_path))


def test_an_encoder_decoder_is_refused(tmp_path: Path):
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not a causal language model.*T5ForConditionalGeneration"):
        load_model(str(tmp_path))


def test_a_folder_that_does_not_exist_is_refused_by_name(tmp_path: Path):
    name = str(tmp_path / "nothing")
    with pytest.raises(ValueError, match="nothing: neither a model folder"):
        load_model(name)
    with pytest.raises(ValueError, match="nothing: no tokenizer"):
        load_tokenizer(name)


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        load_model(str(tmp_path))


def test_a_config_that_is_no_json_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        load_model(str(tmp_path))


def test_a_folder_without_weights_is_refused(small: PreTrainedModel, tmp_path: Path):
    small.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its weights cannot be read"):
        load_model(str(tmp_path))


def test_a_folder_with_half_of_its_weights_is_refused(small: PreTrainedModel, tmp_path: Path):
    """As an interrupted copy leaves it."""
    small.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="its weights cannot be read"):
        load_model(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(small: PreTrainedModel, tmp_path: Path):
    small.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(("listed", "expected"), [(7, {7}), ([7, 9], {7, 9}), (None, set())])
def test_responses_end_at_the_tokens_of_the_generation_configuration_and_the_tokenizers_own(
    listed, expected: set[int], small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
):
    small.generation_config = GenerationConfig(eos_token_id=listed)
    assert end_tokens(small, tokenizer) == expected | {tokenizer.eos_token_id}


def test_the_list_of_end_tokens_survives_saving(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    small.generation_config = GenerationConfig(eos_token_id=[7, 9])
    save_model(small, tokenizer, tmp_path)
    assert end_tokens(load_model(str(tmp_path)), load_tokenizer(str(tmp_path))) == {
        7,
        9,
        tokenizer.eos_token_id,
    }


def test_token_zero_can_end_a_response(small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
    tokenizer.eos_token = None
    small.generation_config = GenerationConfig(eos_token_id=0)
    assert end_tokens(small, tokenizer) == {0}


def test_a_model_that_never_ends_is_refused(small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
    tokenizer.eos_token = None
    small.generation_config = GenerationConfig(eos_token_id=None)
    with pytest.raises(ValueError, match="end-of-sequence"):
        end_tokens(small, tokenizer)


def test_any_tokenizer_has_a_token_to_fill_with(tokenizer: PreTrainedTokenizerBase):
    assert pad_token(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert pad_token(tokenizer) == 0


def test_devices_are_picked_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="no CUDA device"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
