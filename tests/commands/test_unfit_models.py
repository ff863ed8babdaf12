"""Every command refuses a model that it cannot use with status 2 and one line, before it makes a folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from openprime.cli import main
from openprime.models.hub import load_model, load_tokenizer, save_model
from support.tiny_runs import SFT, records, rl_args

SHORT = ("--data.source", "task:clock", "--data.horizon", "2", "--data.limit", "6")
COMMANDS: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "sft": lambda model, out, _: [*SFT, "--model", str(model), "--epochs", "0.1", "--out", str(out)],
    "rl": lambda model, out, _: rl_args(model, out, "--steps", "1"),
    "generate": lambda model, out, _: [
        *("generate", str(model), *SHORT, "--responses", "2", "--max-response-tokens", "8", "--out", str(out))
    ],
    "evaluate": lambda model, out, _: [
        *("evaluate", str(model), "--benchmark", "clock", "--max-response-tokens", "8", "--out", str(out))
    ],
    "ask": lambda model, out, _: ["ask", str(model), "--question", "Start four", "--page", str(out)],
    "prm": lambda model, out, rows: [
        *("prm", "--model", str(model), "--data.source", str(rows), "--held-out", "0", "--out", str(out))
    ],
    "score": lambda model, out, rows: [
        *("score", str(rows), "--prm", str(model), "--reference", str(model), "--out", str(out))
    ],
}


def tensor_missing(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    del held["model.layers.0.mlp.up_proj.weight"]
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def token_without_embedding(folder: Path) -> None:
    """In the chat template, and so in every prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|turn|>")
    tokenizer.save_pretrained(folder)


def of_kind(folder: Path, kind: str, **sizes: object) -> None:
    """Another model in the place of the one in a folder."""
    tokenizer = load_tokenizer(str(folder))
    common = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(common | sizes))
    save_model(AutoModelForCausalLM.from_config(config).eval(), tokenizer, folder)


def few_positions(folder: Path) -> None:
    of_kind(folder, "gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=10)


def no_cache(folder: Path) -> None:
    of_kind(
        folder, "rwkv", hidden_size=16, attention_hidden_size=16, intermediate_size=16, num_hidden_layers=2
    )


ALL, SAMPLING = tuple(COMMANDS), ("sft", "rl", "generate", "evaluate")
CASES = [
    *[(tensor_missing, command, r"missing: model.layers.0.mlp.up_proj.weight") for command in ALL],
    *[
        (token_without_embedding, command, "('<|turn|>') is beyond the model's 300 embeddings")
        for command in ALL
    ],
    *[(few_positions, command, "but the model has 10 positions") for command in ALL],
    *[(no_cache, command, "cannot be sampled from with engine.kind=transformers") for command in SAMPLING],
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Judged responses."""
    file = tmp_path / "rows.jsonl"
    made = [{"prompt": "Start four", "response": "four\n" * i, "outcome": i % 2} for i in range(2, 9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


@pytest.mark.parametrize(("change", "command", "message"), CASES)
def test_command__a_model_that_does_not_fit_is_status_2_and_one_line(
    change, command: str, message: str, model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder, out = Path(shutil.copytree(model, tmp_path / "model")), tmp_path / "out"
    change(folder)
    capsys.readouterr()
    assert main(COMMANDS[command](folder, out, rows)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("openprime: ")]
    assert len(said) == 1
    assert message in said[0]
    assert not list(out.glob("*.jsonl")) if out.is_dir() else not out.exists()


def pad_beyond(folder: Path) -> None:
    """A tokenizer's own padding token, which the model has not."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id >= load_model(str(folder)).config.vocab_size


def generation(folder: Path) -> None:
    """What save_pretrained refuses."""
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.6}')


@pytest.mark.parametrize("change", [pad_beyond, generation])
@pytest.mark.parametrize("command", ALL)
def test_command__what_only_looks_unfit_is_used(
    change, command: str, model: Path, rows: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    change(folder)
    assert main(COMMANDS[command](folder, tmp_path / "out", rows)) == 0


def test_ask__an_answer_ends_where_a_models_positions_end(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    of_kind(folder, "gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=64, initializer_range=0.0)
    assert main(["ask", str(folder), "--question", "four", "--max-response-tokens", "500"]) == 0
    assert "cut at the model's positions" in capsys.readouterr().out


def greedy(folder: Path, prompt: list[int], tokens: int) -> list[int]:
    """By transformers' own forward pass over the whole row, token by token."""
    model, ids = load_model(str(folder)).eval(), list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.5}),
        (
            "falcon_h1",
            {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "mamba_n_heads": 4,
                "mamba_d_head": 16,
                "mamba_n_groups": 1,
                "mamba_d_state": 8,
                "mamba_d_ssm": 64,
                "initializer_range": 0.3,
            },
        ),
    ],
)
def test_generate__greedy_responses_of_models_with_a_state_are_transformers_own(
    kind: str, sizes: dict, model: Path, tmp_path: Path
):
    """Prompts of several lengths."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    of_kind(folder, kind, **sizes)
    out = tmp_path / "out"
    flags = ("--responses", "1", "--temperature", "0", "--max-response-tokens", "6", "--out", str(out))
    assert main(["generate", str(folder), *SHORT, *flags]) == 0
    tokenizer, lengths = load_tokenizer(str(folder)), set()
    for row in records(out / "responses.jsonl"):
        prompt = tokens_of(row, tokenizer)
        lengths.add(len(prompt))
        expected = greedy(folder, prompt, 6)
        found = row["responses"][0]["token_ids"]
        assert found == expected[: len(found)]
    assert len(lengths) > 1


def tokens_of(row: dict, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    chat = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
