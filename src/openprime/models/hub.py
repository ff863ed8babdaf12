"""Load and save Hugging Face causal language models."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging
from transformers.utils.hub import cached_file

from openprime.config import PromptFormat
from openprime.ranks import first, on_first
from openprime.types import StorageError, UserError

FORMAT_FILE = "prompt_format.json"
FILE_BYTES = 5 * 2**30
"""Largest safetensors file that several ranks write."""

logging.disable_progress_bar()  # "Loading weights" would break up our own progress


def load_model(name: str, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A causal language model with float32 weights, from a directory or a hub id.

    Raises UserError for a path that does not exist or a model that is not a causal language model.
    """
    read_architecture(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{name}: its weights cannot be read: {error}") from error
    return model.to(device)  # pyright: ignore[reportArgumentType]


def read_architecture(name: str) -> PreTrainedConfig:
    """The configuration of a causal language model; raises UserError as `load_model` does."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: {_not_found(name)}: {error}") from error
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = config.architectures or []
    if not causal.intersection(architectures):
        raise UserError(
            f"{name}: not a causal language model (its architectures: {', '.join(architectures) or 'none given'}); "
            "use a model whose config.json names a ...ForCausalLM class"
        )
    return config


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, chat template included."""
    folder = Path(name)
    if folder.is_dir() and not any(any(folder.glob(kind)) for kind in ("tokenizer*", "*.model", "vocab*")):
        raise UserError(f"{name}: no tokenizer in this folder")  # some classes would make an empty one
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: no tokenizer: {error}") from error


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    form: PromptFormat | None = None,
) -> None:
    """Write safetensors weights, configuration, tokenizer and chat template: a model others can load.

    `form` is how the model was asked in training; it is written beside them. Of a sharded model every rank
    calls it, and the first one writes.
    """
    if isinstance(model, FSDPModule):
        _save_whole(model, folder)
    elif first():
        model.save_pretrained(folder)
    if not first():
        return
    tokenizer.save_pretrained(folder)
    if form is not None:
        settings = PromptFormat(**{name: getattr(form, name) for name in PromptFormat.model_fields})
        (folder / FORMAT_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_format(name: str) -> PromptFormat | None:
    """Format of a model's prompts in training, if it was trained here."""
    path = find_file(name, FORMAT_FILE)
    return PromptFormat.model_validate_json(path.read_text(encoding="utf-8")) if path else None


def find_file(name: str, file: str) -> Path | None:
    """A file of a model folder or of a hub id; None where there is none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        found = cached_file(name, file)
    except OSError:  # no such model, no such file, no hub: loading the model says which
        return None
    return Path(found) if found else None


def same_vocabulary(
    ours: PreTrainedTokenizerBase, name: str, theirs: PreTrainedTokenizerBase, other: str
) -> None:
    """Raises UserError where two models would read the same token ids as different texts."""
    if ours.get_vocab() != theirs.get_vocab():
        raise UserError(
            f"the vocabulary of {name} ({len(ours)} tokens) differs from that of {other} ({len(theirs)} tokens): "
            "use models with the same tokenizer"
        )


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a response: those of the generation configuration and the tokenizer's own."""
    return _end_tokens(model.generation_config, tokenizer)


def named_end_tokens(name: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """`end_tokens` of a model that is loaded elsewhere."""
    if find_file(name, "generation_config.json"):
        return _end_tokens(GenerationConfig.from_pretrained(name), tokenizer)
    return _end_tokens(GenerationConfig.from_model_config(AutoConfig.from_pretrained(name)), tokenizer)


def most_positions(name: str) -> int:
    """The longest sequence that a model is made for, in tokens."""
    config = AutoConfig.from_pretrained(name).get_text_config()
    return config.to_dict().get("max_position_embeddings") or 2**31


def _end_tokens(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    listed = generation.eos_token_id if generation else None
    ids = [listed] if isinstance(listed, int) else list(listed or [])
    if isinstance(tokenizer.eos_token_id, int):
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise UserError(
            "neither the tokenizer nor the generation configuration names an end-of-sequence token"
        )
    return frozenset(ids)


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills batches up; any will do, for no other token ever sees it."""
    return tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0


def named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """(name, whole weight) of a model, one after the other; every rank must take them all."""
    for name, parameter in model.named_parameters():
        yield name, parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def compute_device(model: PreTrainedModel) -> torch.device:
    """Where a model computes, which is not where its weights are when these are kept in the host's memory."""
    if isinstance(model, FSDPModule) and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return model.device


def _save_whole(model: PreTrainedModel, folder: Path) -> None:
    """Write a sharded model as Hugging Face does, file by file; every rank calls it, the first one writes."""
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    files: list[list[str]] = [[]]
    size = 0
    for name, more in sizes.items():
        if size + more > FILE_BYTES and files[-1]:
            files.append([])
            size = 0
        files[-1].append(name)
        size += more
    whole = named_tensors(model)
    index: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        one = (
            "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        tensors = {}
        for name, (other, tensor) in zip(names, whole, strict=False):
            assert name == other
            if first():
                tensors[name] = tensor.detach().cpu().contiguous()
        index |= dict.fromkeys(names, one)
        on_first(lambda tensors=tensors, path=folder / one: _write_tensors(tensors, path))
    if not first():
        return
    if len(files) > 1:
        text = json.dumps({"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}, indent=2)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise StorageError(f"{path} could not be written: {error}") from error


def _not_found(name: str) -> str:
    if Path(name).is_dir():
        return "no readable config.json of a Hugging Face model in this folder"
    return "neither a model folder here nor a model on the hub that can be reached"
