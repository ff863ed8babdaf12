"""Models in GGUF files, written here with the format's own package from models whose weights are known."""

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from openprime.commands.sft import train
from openprime.config import RLConfig, SFTConfig, VLLMEngineConfig
from openprime.engines.make import make_engine
from openprime.models.checks import plain_logprobs
from openprime.models.hub import end_tokens, load_model, load_tokenizer, named_end_tokens, save_model
from openprime.models.tiny import CHAT_TEMPLATE, build_tokenizer
from openprime.plan.memory import read_shape
from openprime.types import UserError

ROW = [5, 1, 7, 20, 3, 3, 12]
TEXT = "Start four\n\n1. +seven  234 = ? don't 数学"
"""Two line ends before a digit, and two spaces, are one token only where digits stand alone."""
BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM's kind: byte-level BPE, every digit by itself, a chat template in which <|im_end|> ends a turn."""
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    whole.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    whole.train_from_iterator(["Start four\n\n1. +seven  2 = ?"] * 20, trainer)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, **names)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def llama(tied: bool = True, seed: int = 0) -> LlamaForCausalLM:
    """Rows of 32 and 64 weights, as blocks of quantised ones ask for; fewer key heads than heads."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def file_name(name: str) -> str:
    """A parameter's name in a file of llama.cpp."""
    name = name.removeprefix("model.").removesuffix(".weight")
    if name.startswith("layers."):
        _, number, rest = name.split(".", 2)
        return f"blk.{number}.{BLOCK[rest]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[name] + ".weight"


def llama_cpp_order(name: str, weight: np.ndarray, model: LlamaForCausalLM) -> np.ndarray:
    """Rows of queries and keys as llama.cpp rotates them: pairs side by side, not half a head apart."""
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for part, count in heads.items():
        if f".{part}." in name:
            halves = weight.reshape(count, 2, -1, weight.shape[1])
            return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
    return weight


def write(
    path: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind = Kind.F32,
    arch: str = "llama",
    split: str = "smollm",
    leave_out: Iterable[str] = (),
    more: dict[str, np.ndarray] | None = None,
) -> None:
    """A GGUF file of a model and its tokenizer; matrices are stored as `kind`."""
    config, vocabulary = model.config, tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    out = gguf.GGUFWriter(path, arch)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_dimension_count(config.head_dim)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(split)
    out.add_token_list(tokens)
    out.add_token_types([3 if token in special else 1 for token in tokens])
    out.add_token_merges([" ".join(pair) for pair in merges])
    out.add_bos_token_id(vocabulary["<|im_start|>"])
    out.add_eos_token_id(vocabulary["<|endoftext|>"])
    out.add_pad_token_id(vocabulary["<|endoftext|>"])
    out.add_unk_token_id(vocabulary["<|endoftext|>"])
    out.add_add_bos_token(False)
    out.add_chat_template(tokenizer.chat_template)
    for name, parameter in model.named_parameters():
        stored = llama_cpp_order(file_name(name), parameter.detach().numpy(), model)
        if file_name(name) in leave_out:
            continue
        if stored.ndim > 1 and kind != Kind.F32:
            out.add_tensor(file_name(name), quantize(stored, kind), raw_dtype=kind)
        else:
            out.add_tensor(file_name(name), stored)
    for name, extra in (more or {}).items():
        out.add_tensor(name, extra)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.mark.parametrize("tied", [True, False])
def test_load_model__a_gguf_file_is_the_model_that_it_was_made_from(
    tied: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    """By its path and by its folder, bit for bit."""
    model = llama(tied)
    write(tmp_path / "small.gguf", model, tokenizer)
    for name in (tmp_path / "small.gguf", tmp_path):
        loaded = load_model(str(name))
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
        assert torch.equal(plain_logprobs(loaded.eval(), ROW), plain_logprobs(model, ROW))


def test_load_model__quantised_weights_become_plain_ones(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    """Those of the format's own package; the log-probabilities are those of plain transformers with them."""
    model = llama()
    write(tmp_path / "small.gguf", model, tokenizer, Kind.Q8_0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # rows are blocks by themselves, in whatever order they stand
                around = dequantize(quantize(parameter.numpy(), Kind.Q8_0), Kind.Q8_0)
                parameter.copy_(torch.from_numpy(around))
    loaded = load_model(str(tmp_path)).eval()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(plain_logprobs(loaded, ROW), plain_logprobs(model, ROW))


def test_load_tokenizer__a_gguf_file_brings_tokens_template_and_what_ends_a_turn(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    """Text is split as the file says; its header names another token as the end of a text than ends a turn."""
    path = tmp_path / "small.gguf"
    write(path, llama(), tokenizer)
    loaded = load_tokenizer(str(path))
    chat = [{"role": "user", "content": TEXT}]
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert loaded.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(
        chat, tokenize=False
    )
    vocabulary = tokenizer.get_vocab()
    ends = {vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]}
    assert end_tokens(load_model(str(path)), loaded) == named_end_tokens(str(path), loaded) == ends


def test_load_tokenizer__a_gguf_file_splits_text_as_it_names(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    """Qwen2's way, and one that nobody knows, which transformers would take for GPT-2's."""
    qwen = build_tokenizer(["Start four\n+seven = ?"] * 20, 300)
    write(tmp_path / "qwen.gguf", llama(), qwen, split="qwen2")
    assert load_tokenizer(str(tmp_path / "qwen.gguf"))(TEXT)["input_ids"] == qwen(TEXT)["input_ids"]
    write(tmp_path / "odd.gguf", llama(), tokenizer, split="unheard")
    with pytest.raises(UserError, match="its text is split by 'unheard'"):
        load_tokenizer(str(tmp_path / "odd.gguf"))


def test_save_model__of_a_gguf_file_is_a_plain_model(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    """Nothing in it says that its weights were quantised."""
    write(tmp_path / "small.gguf", llama(), tokenizer, Kind.Q8_0)
    model, own = load_model(str(tmp_path)), load_tokenizer(str(tmp_path))
    save_model(model, own, tmp_path / "plain")
    again, tokens = load_model(str(tmp_path / "plain")), load_tokenizer(str(tmp_path / "plain"))
    assert torch.equal(plain_logprobs(again.eval(), ROW), plain_logprobs(model.eval(), ROW))
    assert (tokens.get_vocab(), tokens.chat_template) == (own.get_vocab(), own.chat_template)
    assert tokens(TEXT)["input_ids"] == own(TEXT)["input_ids"]
    assert end_tokens(again, tokens) == end_tokens(model, own)
    config = json.loads((tmp_path / "plain" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_sft__trains_a_gguf_file(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    """The run's model is a folder like any other, as the plan has its shape."""
    path, rows = tmp_path / "small.gguf", tmp_path / "rows.jsonl"
    write(path, llama(), tokenizer)
    rows.write_text(json.dumps({"prompt": "Start four", "response": "four"}) + "\n", encoding="utf-8")
    settings = {"model": str(path), "data": {"source": str(rows)}, "out": str(tmp_path / "run")}
    train(SFTConfig(**settings, epochs=1, sample_every=0))
    model = load_model(str(tmp_path / "run" / "model"))
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), llama().parameters(), strict=True))
    assert read_shape(str(path)) == read_shape(str(tmp_path / "run" / "model"))


def spoil_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4000])


def spoil_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def spoil_magic(path: Path) -> None:
    path.write_bytes(b"GGML" + path.read_bytes()[4:])


@pytest.mark.parametrize("spoil", [spoil_end, spoil_header, spoil_magic])
def test_load_model__a_damaged_gguf_file_is_one_line(
    spoil, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    path = tmp_path / "small.gguf"
    write(path, llama(), tokenizer)
    spoil(path)
    with pytest.raises(UserError, match=r"small\.gguf: ") as error:
        load_model(str(path))
    assert "\n" not in str(error.value)


def test_load_model__what_transformers_cannot_read_of_a_gguf_file_is_said(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    """An architecture, a tensor that it leaves out, one that is not there, a weight that is no number."""
    path = tmp_path / "small.gguf"
    write(path, llama(), tokenizer, arch="unheard")
    with pytest.raises(UserError, match="architecture unheard is not supported"):
        load_model(str(path))
    write(path, llama(), tokenizer, more={"rope_freqs.weight": np.ones(4, dtype=np.float32)})
    with pytest.raises(UserError, match="cannot read it whole"):
        load_model(str(path))
    write(path, llama(), tokenizer, leave_out=["blk.1.ffn_up.weight"])
    with pytest.raises(UserError, match="cannot read it whole"):
        load_model(str(path))
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 4] = torch.nan
    write(path, model, tokenizer)
    with pytest.raises(UserError, match="damaged weights"):
        load_model(str(path))


def test_load_model__which_gguf_file_is_meant_must_be_clear(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    write(tmp_path / "one.gguf", llama(), tokenizer)
    write(tmp_path / "two.gguf", llama(seed=1), tokenizer)
    with pytest.raises(UserError, match="2 GGUF files: name one of them"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(str(tmp_path / "three.gguf"))
    assert load_model(str(tmp_path / "two.gguf")) is not None
    save_model(llama(), tokenizer, tmp_path)
    assert torch.equal(next(load_model(str(tmp_path)).parameters()), next(llama().parameters()))


def test_load_model__without_the_package_a_gguf_file_says_what_to_install(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path / "small.gguf", llama(), tokenizer)
    monkeypatch.setattr(
        "openprime.models.gguf.find_spec", lambda name: None if name == "gguf" else find_spec(name)
    )
    with pytest.raises(UserError, match=r"pip install 'openprime\[gguf\]'"):
        load_model(str(tmp_path))


def test_make_engine__vllm_is_not_started_from_a_gguf_file(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    write(tmp_path / "small.gguf", llama(), tokenizer)
    config = RLConfig(model=str(tmp_path), engine=VLLMEngineConfig(kind="vllm"))
    with pytest.raises(UserError, match=r"not a GGUF file: set engine\.kind=transformers"):
        make_engine(config, tokenizer, 1, 32)
